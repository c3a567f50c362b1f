"""wav2vec 2.0: convolutions over the waveform, then a stack of layers (arXiv 2006.11477)."""

from __future__ import annotations

from ..network import Conv, Layer, Linear, Network, Pointwise, repeated
from .pieces import attention, feed_forward, norm, residual
from .reader import Reader

SAMPLES = 160_000  # ten seconds at 16 kHz


def wav2vec2(get: Reader, _tokens: int) -> Network:
    """The model without a head, over ten seconds."""
    get = get.assuming(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, conv_dim=[512] * 7,
        conv_kernel=[10, 3, 3, 3, 3, 2, 2], conv_stride=[5, 2, 2, 2, 2, 2, 2], conv_bias=False,
        feat_extract_norm="group", num_conv_pos_embeddings=128, num_conv_pos_embedding_groups=16,
    )  # fmt: skip
    width, heads = get.integer("hidden_size"), get.integer("num_attention_heads")
    channels = get.several("conv_dim")
    kernels, strides = (get.several(key, len(channels)) for key in ("conv_kernel", "conv_stride"))
    bias, grouped = get.flag("conv_bias"), get.word("feat_extract_norm", ("group", "layer")) == "group"
    frames, before, layers = SAMPLES, 1, list[Layer]()
    for i, (out, side, stride) in enumerate(zip(channels, kernels, strides, strict=True)):
        frames = (frames - side) // stride + 1
        layers.append(Conv(f"conv {i}", before, out, side, frames, 1, bias=bias, side_width=1))
        if i == 0 or not grouped:
            layers.append(norm(out, frames))
        layers.append(Pointwise("activation", 0, frames * out))
        before = out
    passed, taps = float(frames * width), get.integer("num_conv_pos_embeddings")
    groups = get.integer("num_conv_pos_embedding_groups")
    positions = Conv("positions", width, width, taps, frames, 1, groups=groups, side_width=1)
    layer = (
        *residual(passed, attention(width, heads, get.divided(width, "num_attention_heads", heads), frames)),
        norm(width, frames),
        *residual(passed, feed_forward(width, get.integer("intermediate_size"), frames)),
        norm(width, frames),
    )
    return Network(
        get.name,
        (
            Pointwise("mask embedding", width, 0),
            *layers,
            norm(before, frames, name="feature norm"),
            Linear("feature projection", before, width, frames),
            *residual(passed, [positions, Pointwise("norm of its weights", taps, passed)]),
            norm(width, frames, name="norm before"),
            *repeated(get.integer("num_hidden_layers"), layer),
        ),
        tokens=frames,
    )
