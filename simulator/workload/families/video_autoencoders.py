"""The autoencoder of Wan's videos (`AutoencoderKLWan`, and `AutoencoderKLQwenImage`, which is the same on one frame).

Wan, arXiv 2503.20314: convolutions in time see the past only. Latent frames are decoded one after another, the first to
one frame, every later one to four; each convolution keeps the last two frames of its input for the next.
"""

from __future__ import annotations

from itertools import pairwise

from ....errors import InputError
from ..network import Conv, Layer, Mix, Network, Pointwise, holding, repeated, unused
from .pieces import Canvas
from .reader import Reader

KEPT_FRAMES = 2  # of the input of each convolution over three frames


def wan_factor(get: Reader) -> int:
    """Pixels of one side that one latent pixel stands for."""
    levels = len(get.assuming(dim_mult=[1, 2, 4, 4]).several("dim_mult"))
    return int(2 ** (levels - 1)) * (get.assuming(patch_size=None).optional("patch_size") or 1)


def wan(get: Reader, canvas: Canvas) -> Network:
    """The autoencoder; its encoder half is loaded and does not run."""
    get = get.assuming(
        base_dim=96, decoder_base_dim=None, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=2,
        temperal_downsample=[False, True, True], is_residual=False, in_channels=3, out_channels=3,
    )  # fmt: skip
    if get.config.get("attn_scales"):
        raise InputError("not known of this autoencoder", file=get.file, key="attn_scales", value="not empty")
    encoder, decoder = _encoder(get), _decoder(get, canvas, first=True)
    layers = (*unused(encoder), *holding(_kept(decoder), decoder))
    later = canvas.frames - 1
    if not later:
        return Network(get.name, layers)
    chunk, growth = _decoder(get, canvas, first=False), 2 ** sum(_temporal(get, len(get.several("dim_mult"))))
    made = chunk[-1].output_elements
    done = made * (later - 1) + made / growth  # frames decoded before the last chunk
    again = repeated(later, holding(_kept(chunk) + done, chunk))
    return Network(get.name, layers, again=(*again, Pointwise("join frames", 0, done + made, held=done)))


def _kept(decoder: list[Layer]) -> float:
    """Elements that convolutions keep of their inputs for the next latent frame."""
    causal = [layer for layer in decoder if isinstance(layer, Conv) and layer.span == 3]
    return sum(min(KEPT_FRAMES, c.depth) * c.in_channels * c.height * c.width for c in causal)


def _temporal(get: Reader, levels: int) -> list[bool]:
    value = get.config.get("temperal_downsample", get.defaults["temperal_downsample"])
    if not isinstance(value, list) or len(value) != levels - 1 or any(not isinstance(v, bool) for v in value):
        problem = f"must be a list of {levels - 1} times true or false"
        raise InputError(problem, file=get.file, key="temperal_downsample", value=value)
    return value


def _encoder(get: Reader) -> list[Layer]:
    """Its layers, of one pixel: they count weights only."""
    base, latent, depth = get.integer("base_dim"), get.integer("z_dim"), get.integer("num_res_blocks")
    widths = [base * m for m in get.several("dim_mult")]
    temporal = _temporal(get, len(widths))
    layers: list[Layer] = [Conv("conv in", get.integer("in_channels"), widths[0], 3, 1, 1, span=3)]
    for i, (before, out) in enumerate(pairwise([base, *widths])):
        for j in range(depth):
            layers += _resnet(before if j == 0 else out, out, 1, 1, 1)
        if i + 1 < len(widths):
            layers.append(Conv("downsample", out, out, 3, 1, 1))
            if temporal[i]:
                layers.append(Conv("downsample in time", out, out, 1, 1, 1, span=3))
    layers += _middle(widths[-1], 1, 1)
    layers += [_gamma(widths[-1]), Conv("conv out", widths[-1], 2 * latent, 3, 1, 1, span=3)]
    return [*layers, Conv("quantisation", 2 * latent, 2 * latent, 1, 1, 1)]


def _decoder(get: Reader, canvas: Canvas, *, first: bool) -> list[Layer]:
    """The decoder over one latent frame; of the first one nothing is upsampled in time."""
    frames = 1
    base = get.optional("decoder_base_dim") or get.integer("base_dim")
    latent, depth, h, w = get.integer("z_dim"), get.integer("num_res_blocks"), canvas.height, canvas.width
    multiples = get.several("dim_mult")
    widths = [base * m for m in (multiples[-1], *reversed(multiples))]
    temporal, whole = list(reversed(_temporal(get, len(multiples)))), get.flag("is_residual")
    layers: list[Layer] = [Conv("quantisation", latent, latent, 1, h, w)]
    layers += _causal("conv in", latent, widths[0], h, w, 1, first=first)
    layers += _middle(widths[0], h, w, first=first)
    for i, (before, out) in enumerate(pairwise(widths)):
        block: list[Layer] = []
        if i and not whole:
            before //= 2
        entered = float(before * h * w * frames)
        beginning = _resnet(before, out, h, w, frames, first=first)
        block += [layer for _ in range(depth) for layer in _resnet(out, out, h, w, frames, first=first)]
        if i + 1 < len(multiples):
            grows = temporal[i]
            if grows:
                block += _in_time(out, h, w, frames, first)
                frames = frames if first else 2 * frames
            h, w = 2 * h, 2 * w
            narrowed = out if whole else out // 2
            passed = float(out * h * w * frames)
            block += [Pointwise("upsample", 0, passed), Conv("upsample", out, narrowed, 3, h, w, depth=frames)]
            if whole:
                block += [Pointwise("spread input", 0, passed, held=passed)]
                block += [Pointwise("add", 0, passed, inputs=2, held=passed)]
        layers += (*holding(entered if whole else 0.0, beginning), *holding(2 * entered if whole else entered, block))
    out = widths[-1]
    layers += [*_norm(out, h * w * frames), Pointwise("activation", 0, out * h * w * frames)]
    return [*layers, *_causal("conv out", out, get.integer("out_channels"), h, w, frames, first=first)]


def _causal(name: str, inputs: int, outputs: int, h: int, w: int, frames: int, *, first: bool) -> tuple[Layer, ...]:
    """A convolution over three frames, the two before kept from the last chunk; joining and padding copy its input.

    In later chunks what it keeps for the next one stands beside what was kept for this one.
    """
    frame = float(inputs * h * w)
    passed, padded = frames * frame, (frames + KEPT_FRAMES) * frame
    convolution = Conv(name, inputs, outputs, 3, h, w, span=3, depth=frames, held=passed)
    if first:
        return (Pointwise(f"{name} pad", 0, padded), convolution)
    padding = Pointwise(f"{name} pad", 0, padded, held=passed)
    return holding(KEPT_FRAMES * frame, [Pointwise(f"{name} join", 0, padded), padding, convolution])


def _in_time(width: int, h: int, w: int, frames: int, first: bool) -> tuple[Layer, ...]:
    """A convolution in time that makes two frames of one; its weights alone for the first frame."""
    convolution = Conv("upsample in time", width, 2 * width, 1, h, w, span=3, depth=frames)
    if first:
        return unused([convolution])
    return (convolution, Pointwise("interleave", 0, 2.0 * width * h * w * frames))


def _gamma(width: int) -> Pointwise:
    return Pointwise("norm", width, 0)


def _norm(width: int, pixels: float) -> tuple[Layer, ...]:
    """An RMS norm over channels in three passes that each make a tensor."""
    passed = float(width * pixels)
    return (
        Pointwise("norm", width, passed),
        Pointwise("norm scale", 0, passed, held=passed),
        Pointwise("norm weight", 0, passed, held=2 * passed),
        Pointwise("norm shift", 0, passed, held=2 * passed),
    )


def _resnet(inputs: int, outputs: int, h: int, w: int, frames: int, *, first: bool = True) -> tuple[Layer, ...]:
    """The shortcut first, then twice norm, activation and convolution; what the caller handed in stays throughout."""
    pixels = h * w * frames
    wide, out = float(inputs * pixels), float(outputs * pixels)
    shortcut = Conv("shortcut", inputs, outputs, 1, h, w, depth=frames)
    layers: list[Layer] = [
        *_norm(inputs, pixels),
        Pointwise("activation", 0, wide),
        *_causal("conv 1", inputs, outputs, h, w, frames, first=first),
        *_norm(outputs, pixels),
        Pointwise("activation", 0, out),
        *_causal("conv 2", outputs, outputs, h, w, frames, first=first),
        Pointwise("add", 0, out, inputs=2),
    ]
    if inputs == outputs:
        return (layers[0], *holding(wide, layers[1:]))
    return (shortcut, *holding(wide + out, layers))


def _middle(width: int, h: int, w: int, *, first: bool = True) -> tuple[Layer, ...]:
    """Residual block, attention with one head within a frame, residual block."""
    passed, block = float(width * h * w), _resnet(width, width, h, w, 1, first=first)
    attention = (
        *_norm(width, h * w),
        Conv("attention qkv", width, 3 * width, 1, h, w),
        Pointwise("attention heads last", 0, 3 * passed),
        Mix("attention", 1, width, h * w, h * w),
        Conv("attention out", width, width, 1, h, w, held=3 * passed),
        Pointwise("add", 0, passed, inputs=2),
    )
    return (*block, *holding(passed, attention), *block)
