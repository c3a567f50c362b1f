"""SAM, which segments what a point marks (arXiv 2304.02643), and DINOv2 (arXiv 2304.07193)."""

from __future__ import annotations

import math

from ..network import Conv, Layer, Linear, Mix, Network, Pointwise, repeated
from .pieces import attention, feed_forward, norm, residual
from .reader import Reader
from .vision import Encoder, square_patches, vision_transformer

POINTS = 2  # a point and what pads it, as one prompt becomes tokens


def dinov2(get: Reader) -> Network:
    """DINOv2: a vision transformer with layer scale and a token that masks patches in training."""
    get = get.assuming(
        hidden_size=768, num_hidden_layers=12, num_attention_heads=12, mlp_ratio=4, image_size=224, patch_size=14,
        num_channels=3, qkv_bias=True, use_swiglu_ffn=False,
    )  # fmt: skip
    width, heads = get.integer("hidden_size"), get.integer("num_attention_heads")
    inner, gate = get.integer("mlp_ratio") * width, get.flag("use_swiglu_ffn")
    if gate:  # two thirds of the width, in whole eights
        inner = (int(inner * 2 / 3) + 7) // 8 * 8
    e = Encoder(
        width, get.integer("num_hidden_layers"), heads, get.divided(width, "num_attention_heads", heads), inner,
        qkv_bias=get.flag("qkv_bias"), extras=2 * width, gated=gate,
    )  # fmt: skip
    patches = square_patches(get)
    mask = Pointwise("mask token", width, 0)
    return vision_transformer(e, patches, class_tokens=1, positions=patches.tokens + 1, tail=(mask,))


def sam_vision(get: Reader) -> Network:
    """SAM's image encoder: windows in most layers, relative positions in all, a neck of two convolutions."""
    vision = get.section("vision_config").assuming(
        hidden_size=768, num_hidden_layers=12, num_attention_heads=12, mlp_dim=None, mlp_ratio=4.0, output_channels=256,
        image_size=1024, patch_size=16, num_channels=3, window_size=14, global_attn_indexes=[2, 5, 8, 11],
        qkv_bias=True, use_abs_pos=True, use_rel_pos=True,
    )  # fmt: skip
    width, heads = vision.integer("hidden_size"), vision.integer("num_attention_heads")
    dim, depth = vision.divided(width, "num_attention_heads", heads), vision.integer("num_hidden_layers")
    patches, out = square_patches(vision), vision.integer("output_channels")
    side, tokens, window = patches.rows, patches.tokens, vision.integer("window_size")
    whole = set(vision.layer_list("global_attn_indexes", depth))
    inner = vision.optional("mlp_dim") or int(width * vision.ratio("mlp_ratio", 4.0))
    layers: list[Layer] = [Conv("patches", patches.channels, width, patches.side, side, side)]
    if vision.flag("use_abs_pos"):
        layers.append(Pointwise("positions", tokens * width, tokens * width))
    for i in range(depth):
        reach = side if i in whole else window
        padded = tokens if i in whole else (math.ceil(side / window) * window) ** 2
        mixing = attention(width, heads, dim, padded, limit=reach * reach, bias=vision.flag("qkv_bias"))
        relative: tuple[Layer, ...] = ()
        if vision.flag("use_rel_pos"):
            tables = Pointwise("relative positions", 2 * (2 * reach - 1) * dim, 2 * reach * reach * dim)
            relative = (tables, Mix("relative position scores", heads, dim, padded, reach))
        layers += residual(float(tokens * width), [norm(width, tokens), *mixing, *relative])
        layers += residual(float(tokens * width), [norm(width, tokens), *feed_forward(width, inner, tokens)])
    layers += [
        Conv("neck in", width, out, 1, side, side, bias=False),
        norm(out, tokens),
        Conv("neck", out, out, 3, side, side, bias=False),
        norm(out, tokens),
    ]
    return Network(f"{get.name} image", tuple(layers), tokens=tokens)


def sam_mask(get: Reader) -> Network:
    """SAM's prompt encoder and mask decoder for one point: two layers that attend both ways, masks four times finer."""
    prompt = get.section("prompt_encoder_config").assuming(
        hidden_size=256, image_size=1024, patch_size=16, mask_input_channels=16, num_point_embeddings=4
    )
    mask = get.section("mask_decoder_config").assuming(
        hidden_size=256, mlp_dim=2048, num_hidden_layers=2, num_attention_heads=8, attention_downsample_rate=2,
        num_multimask_outputs=3, iou_head_depth=3, iou_head_hidden_dim=256,
    )  # fmt: skip
    width, heads, masks = mask.integer("hidden_size"), mask.integer("num_attention_heads"), 1
    masks += mask.integer("num_multimask_outputs")
    dim, narrow = width // heads, width // heads // mask.integer("attention_downsample_rate")
    side = prompt.integer("image_size") // prompt.integer("patch_size")
    pixels, tokens = side * side, masks + 1 + POINTS
    read, channels = prompt.integer("hidden_size"), prompt.integer("mask_input_channels")
    few = channels // 4
    unmasked: tuple[Layer, ...] = (  # run only where a mask is given with the prompt
        Conv("mask 1", 1, few, 2, 0, 0),
        Pointwise("mask norm 1", 2 * few, 0),
        Conv("mask 2", few, channels, 2, 0, 0),
        Pointwise("mask norm 2", 2 * channels, 0),
        Conv("mask 3", channels, read, 1, 0, 0),
        Pointwise("no mask", read, read * pixels),
        Pointwise("points", (prompt.integer("num_point_embeddings") + 1) * read, POINTS * read),
        Pointwise("random positions", read // 2 * 2, read * pixels),
    )
    layer = (
        *attention(width, heads, dim, tokens),
        norm(width, tokens),
        *attention(width, heads, narrow, tokens, keys=pixels, context=width),
        norm(width, tokens),
        *feed_forward(width, mask.integer("mlp_dim"), tokens),
        norm(width, tokens),
        *attention(width, heads, narrow, pixels, keys=tokens, context=width),
        norm(width, pixels),
    )
    half, quarter = width // 4, width // 8
    hidden = mask.integer("iou_head_hidden_dim")
    return Network(
        f"{get.name} mask",
        (
            *unmasked,
            Pointwise("output tokens", (masks + 1) * width, (masks + 1) * width),
            *repeated(mask.integer("num_hidden_layers"), layer),
            *attention(width, heads, narrow, tokens, keys=pixels, context=width),
            norm(width, tokens),
            *_finer("upscale 1", width, half, pixels),
            norm(half, 4 * pixels),
            *_finer("upscale 2", half, quarter, 4 * pixels),
            *repeated(masks, _perceptron(width, width, quarter, 3)),
            # Each mask is a product of its token with all pixels, half of an attention's work.
            Mix("masks", 1, quarter, masks, 16 * pixels / 2),
            *_perceptron(width, hidden, masks, mask.integer("iou_head_depth")),
        ),
    )


def _finer(name: str, inputs: int, outputs: int, pixels: int) -> tuple[Layer, ...]:
    """A transposed convolution of stride and side 2: one product makes four pixels of one."""
    product = Linear(name, inputs, 4 * outputs, pixels, bias=False, narrowed=False)
    return (product, Pointwise(f"{name} bias", outputs, 4 * outputs * pixels))


def _perceptron(inputs: int, hidden: int, outputs: int, depth: int) -> tuple[Layer, ...]:
    """Products of one token, `depth` of them."""
    middle = (Linear("perceptron", hidden, hidden, 1),) * (depth - 2)
    return (Linear("perceptron in", inputs, hidden, 1), *middle, Linear("perceptron out", hidden, outputs, 1))
