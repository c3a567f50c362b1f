"""Towers of Gemma 3n and Gemma 4: a MobileNet and a vision transformer that see, conformers that hear."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from ..network import Conv, Layer, Linear, Mix, Network, Pointwise
from .reader import Reader
from .vision import Encoder, Patches, vision_transformer

# Clips are described at the length their processors cut them to: 30 s of 10 ms frames.
FRAMES = 3000


def gemma4_vision(get: Reader, vision: Reader, hidden: int) -> Network:
    """Gemma 4: normed heads, rotary and learned positions of rows and columns; patches are pooled, then projected."""
    get = get.assuming(vision_soft_tokens_per_image=280)
    vision = vision.assuming(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=16, num_attention_heads=12, num_key_value_heads=12,
        head_dim=64, patch_size=16, pooling_kernel_size=3, position_embedding_size=10240,
    )  # fmt: skip
    width, heads, dim = (vision.integer(k) for k in ("hidden_size", "num_attention_heads", "head_dim"))
    e = Encoder(
        width,
        vision.integer("num_hidden_layers"),
        heads,
        dim,
        vision.integer("intermediate_size"),
        kv_heads=vision.kv_heads("num_key_value_heads", heads, heads),
        norms=4,
        norm_vectors=1,
        extras=2 * dim,
        qkv_bias=False,
        out_bias=False,
        mlp_bias=False,
        gated=True,
    )
    pool, tokens = vision.integer("pooling_kernel_size"), get.integer("vision_soft_tokens_per_image")
    # An image has any shape of at most this many patches; only their number matters here.
    patches = Patches(pool, pool * tokens, vision.integer("patch_size"), bias=False)
    tail = (
        Pointwise("pooling", 0, patches.tokens * width),
        Linear("projector", width, hidden, tokens, bias=False),
    )
    positions = 2 * vision.integer("position_embedding_size")
    return vision_transformer(e, patches, positions=positions, norms_behind=0, tail=tail, handed_on=tokens)


class _Conformer(NamedTuple):
    """A stack of convolution-augmented attention layers (arXiv 2005.08100) with attention to the near past."""

    hidden: int
    layers: int
    heads: int
    kernel: int
    window: int
    channels: tuple[int, int]
    features: int


def _conformer(c: _Conformer, tokens: int) -> tuple[Layer, ...]:
    """Two strided convolutions over time and frequency, a product to the width, then the layers.

    A layer: half a feed-forward, attention (relative positions through a product of their own), a depthwise
    convolution behind a gate, half a feed-forward. Nine norms of one vector, and a scale for each element of a head.
    """
    first, second = c.channels
    dim, passed, n = c.hidden // c.heads, tokens * c.hidden, c.layers
    return (
        Conv("subsample 1", 1, first, 3, 2 * tokens, c.features // 2, bias=False),
        Pointwise("subsample 1 norm", first, 2 * tokens * c.features // 2 * first),
        Conv("subsample 2", first, second, 3, tokens, c.features // 4, bias=False),
        Pointwise("subsample 2 norm", second, tokens * c.features // 4 * second),
        Linear("subsample out", c.features // 4 * second, c.hidden, tokens, bias=False),
        Pointwise("norms", 9 * c.hidden + dim, 9 * passed, n),
        Linear("feed-forward up", c.hidden, 4 * c.hidden, tokens, bias=False, repeat=2 * n),
        Pointwise("feed-forward activation", 0, 4 * passed, 2 * n),
        Linear("feed-forward down", 4 * c.hidden, c.hidden, tokens, bias=False, repeat=2 * n),
        Linear("qkv", c.hidden, 3 * c.hidden, tokens, bias=False, repeat=n),
        Linear("relative positions", c.hidden, c.hidden, c.window // 2 + 1, bias=False, repeat=n),
        Mix("attention", c.heads, dim, tokens, min(c.window, tokens), n),
        Linear("out", c.hidden, c.hidden, tokens, bias=False, repeat=n),
        Linear("gate", c.hidden, 2 * c.hidden, tokens, bias=False, repeat=n),
        Conv("depthwise", c.hidden, c.hidden, c.kernel, tokens, 1, c.hidden, bias=False, repeat=n, side_width=1),
        Linear("behind depthwise", c.hidden, c.hidden, tokens, bias=False, repeat=n),
    )


def _channels(get: Reader, key: str) -> tuple[int, int]:
    first, second = get.assuming(**{key: [128, 32]}).integers(key, 2)
    return first, second


def gemma4_audio(get: Reader, audio: Reader, hidden: int) -> Network:
    """Gemma 4: a conformer, a product to its outer width, and the projector."""
    audio = audio.assuming(
        hidden_size=1024, num_hidden_layers=12, num_attention_heads=8, conv_kernel_size=5, attention_chunk_size=12,
        attention_context_left=13, attention_context_right=0, output_proj_dims=1536,
    )  # fmt: skip
    width, heads = audio.integer("hidden_size"), audio.integer("num_attention_heads")
    audio.divided(width, "num_attention_heads", heads)
    before, behind = audio.count("attention_context_left"), audio.count("attention_context_right")
    window = audio.integer("attention_chunk_size") + max(before - 1, 0) + behind
    channels, kernel = _channels(audio, "subsampling_conv_channels"), audio.integer("conv_kernel_size")
    # The class sizes the first product by the channels of the first convolution: as many as mel features.
    stack = _Conformer(width, audio.integer("num_hidden_layers"), heads, kernel, window, channels, features=channels[0])
    tokens, out = FRAMES // 4, audio.integer("output_proj_dims")
    layers = (
        *_conformer(stack, tokens),
        Linear("output", width, out, tokens),
        Linear("projector", out, hidden, tokens, bias=False),
    )
    return Network("audio", layers, float(tokens * width), tokens)


def gemma3n_audio(get: Reader, audio: Reader, hidden: int) -> Network:
    """Gemma 3n: a conformer of which every fourth token is handed on; a small vocabulary of its own, two norms."""
    audio = audio.assuming(
        hidden_size=1536, conf_num_hidden_layers=12, conf_num_attention_heads=8, conf_conv_kernel_size=5,
        conf_attention_chunk_size=12, conf_attention_context_left=13, conf_attention_context_right=0,
        conf_reduction_factor=4, input_feat_size=128, vocab_size=128,
    )  # fmt: skip
    width, heads = audio.integer("hidden_size"), audio.integer("conf_num_attention_heads")
    audio.divided(width, "conf_num_attention_heads", heads)
    before, behind = audio.count("conf_attention_context_left"), audio.count("conf_attention_context_right")
    stack = _Conformer(
        width,
        audio.integer("conf_num_hidden_layers"),
        heads,
        audio.integer("conf_conv_kernel_size"),
        audio.integer("conf_attention_chunk_size") + max(before - 1, 0) + behind,
        _channels(audio, "sscp_conv_channel_size"),
        audio.integer("input_feat_size"),
    )
    tokens = FRAMES // 4
    handed_on = -(-tokens // audio.integer("conf_reduction_factor"))
    layers = (*_conformer(stack, tokens), *_own_vocabulary(audio.integer("vocab_size"), width, hidden, handed_on))
    return Network("audio", layers, float(tokens * width), handed_on)


def _own_vocabulary(vocab: int, width: int, hidden: int, tokens: int) -> tuple[Layer, ...]:
    """Gemma 3n's way into the decoder: a table for tokens that are no sight or sound, norms, a product."""
    return (
        Pointwise("own vocabulary, norms", (vocab + 2) * width, tokens * width),
        Linear("projector", width, hidden, tokens, bias=False),
    )


# MobileNetV5-300M of Gemma 3n, after timm's `mobilenetv5_300m_enc`: blocks of each stage as (kind, how many in a row,
# kernel at the start, kernel in the middle, widening); the first of a stage halves the resolution.
class _Stage(NamedTuple):
    """One stage of the MobileNet: its channels, resolution, the heads and their width of its attention blocks."""

    channels: int
    side: int
    inverted: tuple[tuple[int, int, int], ...]  # kernel at the start (0: none), kernel in the middle, widening
    attentions: int = 0
    heads: int = 0
    head_dim: int = 0
    stride: int = 1


STAGES = (
    _Stage(256, 96, ((3, 5, 6), (5, 0, 4), (3, 0, 4), (5, 0, 4), (3, 0, 4))),
    _Stage(640, 48, ((5, 5, 6), *((5, 0, 4),) * 7, (0, 0, 1)), 14, 12, 64, stride=2),
    _Stage(1280, 24, ((5, 5, 6),), 19, 16, 96),
)
STEM, EDGE, FUSED = 64, 128, 2048


def gemma3n_vision(get: Reader, vision: Reader, hidden: int) -> Network:
    """Gemma 3n: MobileNetV5 on 768 x 768 pixels, its last two resolutions fused and pooled to 256 tokens."""
    vision = vision.assuming(vocab_size=128, hidden_size=FUSED)
    tokens = get.assuming(vision_soft_tokens_per_image=256).integer("vision_soft_tokens_per_image")
    width = vision.integer("hidden_size")
    layers = (*_mobilenet(), *_own_vocabulary(vision.integer("vocab_size"), width, hidden, tokens))
    return Network("vision", layers, float(EDGE * 192 * 192), tokens)


def _mobilenet() -> Iterator[Layer]:
    yield Conv("stem", 3, STEM, 3, 384, 384)
    yield _norm("stem norm", STEM, 384)
    for i, channels in enumerate((STEM, EDGE, EDGE)):
        yield Conv(f"edge {i} widen", channels, 4 * channels, 3, 192, 192, bias=False)
        yield _norm(f"edge {i} norm", 4 * channels, 192)
        yield Conv(f"edge {i} narrow", 4 * channels, EDGE, 1, 192, 192, bias=False)
        yield _norm(f"edge {i} norm behind", EDGE, 192)
    before = EDGE
    for number, stage in enumerate(STAGES, 1):
        for start, middle, widening in stage.inverted:
            yield from _inverted(f"stage {number}", before, stage, start, middle, widening)
            before = stage.channels
        if stage.attentions:
            yield from _attention(f"stage {number}", stage)
            inverted = _inverted(f"stage {number}", before, stage, 0, 0, 2)
            yield from (layer._replace(repeat=stage.attentions) for layer in inverted)
    fused, side = STAGES[1].channels + STAGES[2].channels, STAGES[1].side
    yield Conv("fusion widen", fused, 2 * fused, 1, side, side, bias=False)
    yield _norm("fusion norm", 2 * fused, side)
    yield Conv("fusion narrow", 2 * fused, FUSED, 1, side, side, bias=False)
    yield _norm("fusion norm behind", FUSED, side)
    yield _norm("pooled norm", FUSED, 16)


def _norm(name: str, channels: int, side: int, repeat: int = 1) -> Pointwise:
    return Pointwise(name, channels, channels * side * side, repeat)


def _inverted(name: str, before: int, stage: _Stage, start: int, middle: int, widening: int) -> Iterator[Layer]:
    """A depthwise convolution, a widening, another depthwise one (which halves the resolution), a narrowing."""
    wide, side = before * widening, stage.side * (2 if middle else 1)
    if start:
        yield Conv(f"{name} start", before, before, start, side, side, before, bias=False)
        yield _norm(f"{name} start norm", before, side)
    yield Conv(f"{name} widen", before, wide, 1, side, side, bias=False)
    yield _norm(f"{name} widen norm", wide, side)
    if middle:
        yield Conv(f"{name} middle", wide, wide, middle, stage.side, stage.side, wide, bias=False)
        yield _norm(f"{name} middle norm", wide, stage.side)
    yield Conv(f"{name} narrow", wide, stage.channels, 1, stage.side, stage.side, bias=False)
    yield Pointwise(f"{name} narrow norm, scale", 2 * stage.channels, 2 * stage.channels * stage.side**2)


def _attention(name: str, stage: _Stage) -> Iterator[Layer]:
    """Attention with one head of keys and values, made (where `stride` is 2) from a quarter of the positions."""
    n, channels, side, inner = stage.attentions, stage.channels, stage.side, stage.heads * stage.head_dim
    kept = side // stage.stride
    yield Pointwise(f"{name} attention norm, scale", 2 * channels, 2 * channels * side**2, n)
    if stage.stride > 1:
        yield Conv(f"{name} fewer keys", channels, channels, 3, kept, kept, channels, bias=False, repeat=2 * n)
        yield _norm(f"{name} fewer keys norm", channels, kept, 2 * n)
    yield Linear(f"{name} query", channels, inner, side**2, bias=False, repeat=n)
    yield Linear(f"{name} key, value", channels, 2 * stage.head_dim, kept**2, bias=False, repeat=n)
    yield Mix(f"{name} attention", stage.heads, stage.head_dim, side**2, kept**2, n)
    yield Linear(f"{name} attended", inner, channels, side**2, bias=False, repeat=n)
