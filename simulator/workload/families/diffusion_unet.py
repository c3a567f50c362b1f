"""The U-Net of Stable Diffusion 1 to XL (`UNet2DConditionModel` of diffusers): convolutions, and attention to the text.

High-Resolution Image Synthesis with Latent Diffusion Models, arXiv 2112.10752; SDXL, arXiv 2307.01952.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from ....errors import InputError
from ..network import Conv, Layer, Linear, Network, Pointwise, holding, repeated
from .pieces import Canvas, attention, embedder, feed_forward, norm, residual, stacked
from .reader import Reader

BLOCKS = ("CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")
# What other U-Nets of the class have and these do not; a config that states one is refused by name.
UNKNOWN = (
    "class_embed_type", "num_class_embeds", "encoder_hid_dim", "encoder_hid_dim_type", "dual_cross_attention",
    "only_cross_attention", "reverse_transformer_layers_per_block", "mid_block_only_cross_attention",
)  # fmt: skip


class Level(NamedTuple):
    """One resolution: its channels and size, how many transformer layers stand behind a residual block, their heads."""

    channels: int
    height: int
    width: int
    transformers: int
    heads: int

    @property
    def pixels(self) -> int:
        """Latent pixels."""
        return self.height * self.width


class Text(NamedTuple):
    """What the attention of every level reads: tokens and their width."""

    tokens: int
    width: int


def read(get: Reader, canvas: Canvas) -> Network:
    """The U-Net over latents of that size."""
    get = get.assuming(
        in_channels=4, out_channels=4, layers_per_block=2, block_out_channels=[320, 640, 1280, 1280],
        down_block_types=[*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"], mid_block_type="UNetMidBlock2DCrossAttn",
        up_block_types=["UpBlock2D", *["CrossAttnUpBlock2D"] * 3], attention_head_dim=8, num_attention_heads=None,
        cross_attention_dim=1280, transformer_layers_per_block=1, addition_embed_type=None, time_cond_proj_dim=None,
        conv_in_kernel=3, conv_out_kernel=3, use_linear_projection=False, resnet_time_scale_shift="default",
    )  # fmt: skip
    _refuse_strangers(get)
    channels = get.several("block_out_channels")
    first, depth, time = channels[0], get.integer("layers_per_block"), 4 * channels[0]
    levels, downs, ups = _levels(get, channels, canvas)
    text = Text(canvas.tokens, get.integer("cross_attention_dim"))
    linear = get.flag("use_linear_projection")

    layers: list[Layer] = [*_time_embedding(get, first, time)]
    side = get.integer("conv_in_kernel")
    layers.append(Conv("conv in", get.integer("in_channels"), first, side, levels[0].height, levels[0].width))
    skips, inputs = [(first, levels[0])], first
    for i, level in enumerate(levels):
        for _ in range(depth):
            held = _elements(skips)
            block = resnet(inputs, level.channels, level.height, level.width, time)
            layers += holding(held - inputs * level.pixels, block)
            if downs[i]:
                layers += holding(held, transformer(level, text, linear))
            inputs = level.channels
            skips.append((inputs, level))
        if i + 1 < len(levels):
            below = levels[i + 1]
            down = Conv("downsample", inputs, inputs, 3, below.height, below.width)
            layers += holding(_elements(skips[:-1]), [down])
            skips.append((inputs, below))
    layers += _middle(get, levels[-1], text, time, _elements(skips))
    for i, level in reversed(list(enumerate(levels))):
        above = levels[i - 1] if i else None
        own, skips = skips[-depth - 1 :], skips[: -depth - 1]
        layers += _up(inputs, level, own, _elements(skips), above, ups[i], text, time, linear)
        inputs = level.channels
    pixels, side = levels[0].pixels, get.integer("conv_out_kernel")
    layers += [Pointwise("norm out", 2 * first, first * pixels), Pointwise("activation", 0, first * pixels)]
    layers.append(Conv("conv out", first, get.integer("out_channels"), side, levels[0].height, levels[0].width))
    return Network(get.name, tuple(layers))


def resnet(
    inputs: int, outputs: int, height: int, width: int, time: int | None = None, frames: float = 1, span: int = 1
) -> tuple[Layer, ...]:
    """Norm, activation, convolution, the timestep's shift, and the same again; a 1x1 one where widths differ."""
    pixels = height * width * frames
    wide, out = inputs * pixels, outputs * pixels

    def conv(name: str, n_in: int, side: int, span: int, held: float = 0.0) -> Conv:
        return Conv(name, n_in, outputs, side, height, width, span=span, depth=frames, held=held)

    layers: list[Layer] = [
        Pointwise("norm", 2 * inputs, wide),
        Pointwise("activation", 0, wide),
        conv("conv 1", inputs, 3, span),
    ]
    if time is not None:
        layers.append(Linear("timestep", time, outputs, 1, held=out))
        layers.append(Pointwise("timestep shift", 0, out, held=out))
    layers += [Pointwise("norm", 2 * outputs, out), Pointwise("activation", 0, out), conv("conv 2", outputs, 3, span)]
    if inputs != outputs:
        layers.append(conv("shortcut", inputs, 1, 1, held=out))
    layers.append(Pointwise("add", 0, out, inputs=2))
    return residual(wide, layers, adds=False)


def transformer(level: Level, text: Text, linear: bool) -> tuple[Layer, ...]:
    """`level.transformers` blocks over the pixels: attention to themselves, to the text, and a gated feed-forward."""
    width, tokens = level.channels, level.pixels
    dim, passed = width // level.heads, float(width * tokens)

    def projection(name: str) -> Layer:
        if linear:
            return Linear(name, width, width, tokens)
        return Conv(name, width, width, 1, level.height, level.width)

    itself = attention(width, level.heads, dim, tokens, bias=False)
    crossing = attention(
        width, level.heads, dim, tokens, keys=text.tokens, context=text.width, bias=False, name="text attention"
    )
    block = stacked(
        passed,
        residual(passed, [norm(width, tokens), *itself]),
        residual(passed, [norm(width, tokens), *crossing]),
        residual(passed, [norm(width, tokens), *feed_forward(width, 4 * width, tokens, gated=True)]),
    )
    blocks = repeated(level.transformers, block)
    inside = [
        norm(width, tokens, name="group norm"),
        projection("projection in"),
        *blocks,
        projection("projection out"),
    ]
    return residual(passed, inside)


def _time_embedding(get: Reader, first: int, time: int) -> tuple[Layer, ...]:
    layers: list[Layer] = list(embedder(first, time, "timestep")[:2])
    if (condition := get.optional("time_cond_proj_dim")) is not None:
        layers.append(Linear("guidance embedding", condition, first, 1, bias=False))
    layers.append(Linear("timestep embedding out", time, time, 1))
    if get.word("addition_embed_type", ("text_time",)) is not None:
        layers += embedder(get.integer("projection_class_embeddings_input_dim"), time, "text and size")
    return tuple(layers)


def _middle(get: Reader, level: Level, text: Text, time: int, held: float) -> tuple[Layer, ...]:
    """Residual block, attention, residual block; their input is the last skip connection."""
    block = resnet(level.channels, level.channels, level.height, level.width, time)
    inside = transformer(level, text, get.flag("use_linear_projection"))
    return (*holding(held - level.channels * level.pixels, block), *holding(held, (*inside, *block)))


def _up(
    inputs: int,
    level: Level,
    skips: list[tuple[int, Level]],
    held: float,
    above: Level | None,
    attends: bool,
    text: Text,
    time: int,
    linear: bool,
) -> tuple[Layer, ...]:
    """One level on the way up: each residual block reads the level's skip connections, which all live until its end."""
    layers: list[Layer] = []
    for channels, _ in reversed(skips):
        joined = inputs + channels
        layers.append(Pointwise("join", 0, joined * level.pixels))
        layers += resnet(joined, level.channels, level.height, level.width, time)
        if attends:
            layers += transformer(level, text, linear)
        inputs = level.channels
    if above is not None:
        layers.append(Pointwise("upsample", 0, inputs * above.pixels))
        layers.append(Conv("upsample", inputs, inputs, 3, above.height, above.width))
    entered = layers[0].output_elements - skips[-1][0] * level.pixels
    return holding(held + _elements(skips), residual(entered, layers, adds=False))


def _levels(get: Reader, channels: list[int], canvas: Canvas) -> tuple[list[Level], list[bool], list[bool]]:
    """The resolutions from the outermost in, and which of them attend on the way down and up."""
    count = len(channels)
    downs, ups = (get.words(key, BLOCKS, count) or [] for key in ("down_block_types", "up_block_types"))
    stated = "num_attention_heads" if get.has("num_attention_heads") else "attention_head_dim"
    heads = get.integers(stated, count)  # diffusers calls the number of heads `attention_head_dim`
    transformers = get.integers("transformer_layers_per_block", count)
    height, width, levels = canvas.height, canvas.width, []
    for i in range(count):
        get.divided(channels[i], stated, heads[i])
        levels.append(Level(channels[i], height, width, transformers[i], heads[i]))
        height, width = math.ceil(height / 2), math.ceil(width / 2)
    attends = [["CrossAttn" in kind for kind in kinds] for kinds in (downs, list(reversed(ups)))]
    return levels, attends[0], attends[1]


def _elements(skips: list[tuple[int, Level]]) -> float:
    return float(sum(channels * level.pixels for channels, level in skips))


def _refuse_strangers(get: Reader) -> None:
    for key in UNKNOWN:
        if get.config.get(key) not in (None, False):
            raise InputError("not known of this U-Net", file=get.file, key=key, value=get.config[key])
    get.word("mid_block_type", ("UNetMidBlock2DCrossAttn",))
    get.word("resnet_time_scale_shift", ("default",))
