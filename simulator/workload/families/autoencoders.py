"""Autoencoders of images: `AutoencoderKL` of Stable Diffusion and Flux, `AutoencoderDC` of SANA; only decoding runs.

The encoder half is loaded with the weights and does nothing where text alone is asked with.
"""

from __future__ import annotations

import math

from ....errors import InputError
from ..network import Conv, Layer, Linear, Mix, Network, Pointwise, holding, unused
from .diffusion_unet import resnet
from .pieces import Canvas, attention, norm, residual, rms_norm_in_fp32
from .reader import Reader


def kl_factor(get: Reader) -> int:
    """Pixels of one side that one latent pixel stands for."""
    channels = get.assuming(block_out_channels=[64]).several("block_out_channels")
    return int(2 ** (len(channels) - 1))


def kl(get: Reader, canvas: Canvas) -> Network:
    """`AutoencoderKL`: residual blocks, one attention in the middle (arXiv 2112.10752); from latents to an image."""
    get = get.assuming(
        in_channels=3, out_channels=3, latent_channels=4, block_out_channels=[64], layers_per_block=1,
        down_block_types=["DownEncoderBlock2D"], up_block_types=["UpDecoderBlock2D"], use_quant_conv=True,
        use_post_quant_conv=True, mid_block_add_attention=True,
    )  # fmt: skip
    channels, depth, latent = get.several("block_out_channels"), get.integer("layers_per_block"), _latent(get)
    get.words("down_block_types", ("DownEncoderBlock2D",), len(channels))
    get.words("up_block_types", ("UpDecoderBlock2D",), len(channels))
    h, w, inner = canvas.height, canvas.width, channels[-1]
    attends = get.flag("mid_block_add_attention")

    encoder: list[Layer] = [Conv("conv in", get.integer("in_channels"), channels[0], 3, h, w)]
    for i, out in enumerate(channels):
        before = channels[max(i - 1, 0)]
        for j in range(depth):
            encoder += resnet(before if j == 0 else out, out, h, w)
        if i + 1 < len(channels):
            encoder.append(Conv("downsample", out, out, 3, h, w))
    encoder += _middle(inner, h, w, attends)
    encoder += [norm(inner, h * w, name="norm out"), Conv("conv out", inner, 2 * latent, 3, h, w)]
    if get.flag("use_quant_conv"):
        encoder.append(Conv("quantisation", 2 * latent, 2 * latent, 1, h, w))

    decoder: list[Layer] = []
    if get.flag("use_post_quant_conv"):
        decoder.append(Conv("quantisation", latent, latent, 1, h, w))
    decoder.append(Conv("conv in", latent, inner, 3, h, w))
    decoder += _middle(inner, h, w, attends)
    before = inner
    for i, out in reversed(list(enumerate(channels))):
        entered = float(before * h * w)
        rest = [layer for _ in range(depth) for layer in resnet(out, out, h, w)]
        decoder += resnet(before, out, h, w)
        if i:
            h, w = 2 * h, 2 * w
            rest += [Pointwise("upsample", 0, out * h * w), Conv("upsample", out, out, 3, h, w)]
        decoder += holding(entered, rest)
        before = out
    first = channels[0]
    decoder += [norm(first, h * w, name="norm out"), Pointwise("activation", 0, first * h * w)]
    decoder.append(Conv("conv out", first, get.integer("out_channels"), 3, h, w))
    return Network(get.name, (*unused(encoder), *decoder))


def _latent(get: Reader) -> int:
    return get.integer("latent_channels")


def _middle(width: int, h: int, w: int, attends: bool) -> tuple[Layer, ...]:
    """Two residual blocks, and between them attention of all pixels with one head as wide as they are."""
    passed = float(width * h * w)
    block = resnet(width, width, h, w)
    inside = residual(passed, [norm(width, h * w), *attention(width, 1, width, h * w)]) if attends else ()
    return (*block, *holding(passed, (*inside, *block)))


def dc_factor(get: Reader) -> int:
    """Pixels of one side that one latent pixel stands for."""
    channels = get.assuming(encoder_block_out_channels=[128, 256, 512, 512, 1024, 1024])
    return int(2 ** (len(channels.several("encoder_block_out_channels")) - 1))


def dc(get: Reader, canvas: Canvas) -> Network:
    """`AutoencoderDC`: convolutions outside, blocks of linear attention inside (arXiv 2410.10733)."""
    widths = [128, 256, 512, 512, 1024, 1024]
    get = get.assuming(
        in_channels=3, latent_channels=32, attention_head_dim=32, encoder_block_out_channels=widths,
        decoder_block_out_channels=widths, encoder_layers_per_block=[2, 2, 2, 3, 3, 3],
        decoder_layers_per_block=[3] * 6, upsample_block_type="pixel_shuffle", downsample_block_type="pixel_unshuffle",
        encoder_block_types="ResBlock", decoder_block_types="ResBlock",
    )  # fmt: skip
    latent, pixels = _latent(get), get.integer("in_channels")
    h, w = canvas.height, canvas.width

    channels, depths, kinds, scales = _levels(get, "encoder")
    unshuffled = get.word("downsample_block_type", ("Conv", "pixel_unshuffle")) == "pixel_unshuffle"
    encoder: list[Layer] = [Conv("conv in", pixels, channels[0], 3, h, w)]
    for i, out in enumerate(channels):
        encoder += [layer for _ in range(depths[i]) for layer in _block(get, kinds[i], out, scales[i], h, w)]
        if i + 1 < len(channels):
            encoder.append(Conv("downsample", out, channels[i + 1] // (4 if unshuffled else 1), 3, h, w))
    encoder.append(Conv("conv out", channels[-1], latent, 3, h, w))

    channels, depths, kinds, scales = _levels(get, "decoder")
    shuffled = get.word("upsample_block_type", ("interpolate", "pixel_shuffle")) == "pixel_shuffle"
    repeated = Pointwise("repeat latents", 0, channels[-1] * h * w)
    decoder: list[Layer] = [repeated, Conv("conv in", latent, channels[-1], 3, h, w)]
    decoder.append(Pointwise("add", 0, channels[-1] * h * w, inputs=2, held=channels[-1] * h * w))
    for i, out in reversed(list(enumerate(channels))):
        block: list[Layer] = []
        entered = float(channels[min(i + 1, len(channels) - 1)] * h * w)
        if i + 1 < len(channels):
            block += _upsample(channels[i + 1], out, 2 * h, 2 * w, shuffled)
            h, w = 2 * h, 2 * w
        block += [layer for _ in range(depths[i]) for layer in _block(get, kinds[i], out, scales[i], h, w)]
        decoder += residual(entered, block, adds=False)
    first = channels[0]
    decoder += [*rms_norm_in_fp32(first, h * w, vectors=2, name="norm out"), Pointwise("activation", 0, first * h * w)]
    decoder.append(Conv("conv out", first, pixels, 3, h, w))
    return Network(get.name, (*unused(encoder), *decoder))


def _levels(get: Reader, half: str) -> tuple[list[int], list[int], list[str], list[list[int]]]:
    """Channels, depth, kind of block and kernel sizes of the wider views of q, k and v, from the outermost level in."""
    channels = get.several(f"{half}_block_out_channels")
    count = len(channels)
    depths = get.several(f"{half}_layers_per_block", count)
    known = ("ResBlock", "EfficientViTBlock")
    stated = get.config.get(f"{half}_block_types", "ResBlock")
    kinds = [stated] * count if stated in known else get.words(f"{half}_block_types", known, count) or []
    key = f"{half}_qkv_multiscales"
    scales = get.config.get(key, [[], [], [], [5], [5], [5]])
    fine = isinstance(scales, list) and len(scales) == count and all(isinstance(s, list) for s in scales)
    if not fine or any(not isinstance(n, int) or n < 1 for s in scales for n in s):
        raise InputError(f"must be {count} lists of kernel sizes", file=get.file, key=key, value=scales)
    return channels, depths, kinds, scales


def _block(get: Reader, kind: str, width: int, scales: list[int], h: int, w: int) -> tuple[Layer, ...]:
    if kind == "EfficientViTBlock":
        return (*_linear_attention(get, width, scales, h, w), *gated_convolutions(width, 4.0, h, w, norm_vectors=2))
    passed = float(width * h * w)
    second = Conv("conv 2", width, width, 3, h, w, bias=False)
    first = (Conv("conv 1", width, width, 3, h, w), Pointwise("activation", 0, passed))
    return residual(passed, (*first, second, *rms_norm_in_fp32(width, h * w, vectors=2)))


def _linear_attention(get: Reader, width: int, scales: list[int], h: int, w: int) -> tuple[Layer, ...]:
    """Multi-scale linear attention: q, k and v beside copies of them that depthwise convolutions have widened.

    A head of dimension d keeps a state of d x (d + 1); it runs in fp32, twice as wide.
    """
    dim = get.integer("attention_head_dim")
    heads = get.divided(width, "attention_head_dim", dim)
    pixels, inner, views = h * w, heads * dim, 1 + len(scales)
    joined = 3.0 * inner * pixels
    layers: list[Layer] = [Linear(f"attention {x}", width, inner, pixels, bias=False, held=0.0) for x in "qkv"]
    layers.append(Pointwise("join q, k, v", 0, joined, held=2.0 / 3.0 * joined))
    for size in scales:
        layers.append(Conv("wider view", 3 * inner, 3 * inner, size, h, w, groups=3 * inner, bias=False, held=joined))
        layers.append(Conv("wider view out", 3 * inner, 3 * inner, 1, h, w, groups=3 * heads, bias=False, held=joined))
    layers.append(Pointwise("join views", 0, views * joined, held=views * joined))
    layers.append(Pointwise("to fp32", 0, 2 * views * joined, held=views * joined))
    state = Mix("linear attention", views * heads, dim, pixels, dim + 1)
    layers += holding((2 + 4 / 3) * views * joined, [state])
    layers.append(Linear("attention out", views * inner, width, pixels, bias=False))
    return residual(float(width * pixels), [*layers, *rms_norm_in_fp32(width, pixels, vectors=2)])


def gated_convolutions(
    width: int, ratio: float, h: int, w: int, *, norm_vectors: int = 0, adds: bool = True
) -> tuple[Layer, ...]:
    """SANA's feed-forward: widen, a depthwise 3x3 convolution, one half gates the other, back."""
    inner, pixels = math.floor(ratio * width), h * w
    gated = float(inner * pixels)
    layers: list[Layer] = [
        Conv("widen", width, 2 * inner, 1, h, w),
        Pointwise("activation", 0, 2 * gated),
        Conv("depthwise", 2 * inner, 2 * inner, 3, h, w, groups=2 * inner),
        Pointwise("gate", 0, gated),
        Pointwise("product", 0, gated, inputs=2, held=2 * gated),
        Conv("narrow", inner, width, 1, h, w, bias=False),
    ]
    if norm_vectors:
        layers += rms_norm_in_fp32(width, pixels, vectors=norm_vectors)
    return residual(float(width * pixels), layers, adds=adds)


def _upsample(before: int, out: int, h: int, w: int, shuffled: bool) -> tuple[Layer, ...]:
    """To `h` x `w`: a convolution before the pixels are spread, or behind it; the input spread out is added."""
    spread = float(out * h * w)
    if shuffled:
        layers: list[Layer] = [Conv("upsample", before, 4 * out, 3, h // 2, w // 2), Pointwise("spread", 0, spread)]
    else:
        layers = [Pointwise("spread", 0, before * h * w), Conv("upsample", before, out, 3, h, w)]
    layers += [Pointwise("spread input", 0, spread, held=spread), Pointwise("add", 0, spread, inputs=2, held=spread)]
    return tuple(layers)
