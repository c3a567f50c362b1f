"""Models that see: the towers before their decoder and what projects their answer, by the outer `model_type`.

A tower that takes images of any size is described for one of `NOMINAL_SIDE` pixels each way. The tokens an image
becomes join the context; only where layers attend across do they stay apart (`Model.encoder_tokens`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ..model import Attention, Model
from ..network import Conv, Layer, Linear, Network, Pointwise
from .gemma_towers import gemma3n_audio, gemma3n_vision, gemma4_audio, gemma4_vision
from .reader import Reader
from .vision import (
    Encoder,
    Patches,
    clip_vision,
    encoder_layers,
    plain_encoder,
    siglip_vision,
    square_patches,
    vision_transformer,
)

NOMINAL_SIDE = 1024


def with_towers(get: Reader, model: Model) -> Model:
    """The model with the towers its config states; one whose towers nobody described here is marked `generic`."""
    makers = TOWERS.get(get.family)
    if makers is None:
        return replace(model, generic=True)
    stated = [(key, make) for key, make in makers if get.config.get(key) is not None]
    towers = tuple(make(get, get.section(key), model.hidden) for key, make in stated)
    across = any(isinstance(b.attention, Attention) and b.attention.cross for b in model.blocks)
    return replace(model, towers=towers, encoder_tokens=sum(t.tokens for t in towers) if across else 0)


def _followed_by(tower: Network, *tail: Layer, tokens: int | None = None) -> Network:
    """The tower with a projector behind it, which hands on `tokens` (default: as many as the tower)."""
    return replace(tower, layers=(*tower.layers, *tail), tokens=tower.tokens if tokens is None else tokens)


def _two_products(hidden: int, inner: int, out: int, tokens: float, bias: bool = True) -> tuple[Layer, ...]:
    """A projector of two products with an activation between them."""
    return (
        Linear("projector in", hidden, inner, tokens, bias),
        Pointwise("projector activation", 0, tokens * inner),
        Linear("projector out", inner, out, tokens, bias),
    )


def _features(get: Reader) -> int:
    """How many layers of the tower the projector reads side by side."""
    stated = get.config.get("vision_feature_layer")
    return max(len(stated), 1) if isinstance(stated, list) else 1


def llava(get: Reader, vision: Reader, hidden: int) -> Network:
    """LLaVA: CLIP's patches (one of its last layers, without the class token) through two products.

    LLaVA-NeXT adds a learned token between rows of tiles; an image of several tiles runs the tower once for each.
    """
    tower = clip_vision(vision)
    width = vision.assuming(hidden_size=768).integer("hidden_size") * _features(get)
    bias = get.flag("multimodal_projector_bias", True)
    newline = (Pointwise("newline", hidden, hidden),) if get.family == "llava_next" else ()
    return _followed_by(tower, *_two_products(width, hidden, hidden, tower.tokens, bias), *newline)


def paligemma(get: Reader, vision: Reader, _hidden: int) -> Network:
    """PaliGemma: SigLIP (its configs leave out the pooling head), one product."""
    tower = siglip_vision(vision)
    width = vision.assuming(hidden_size=768).integer("hidden_size")
    out = get.assuming(projection_dim=2048).integer("projection_dim")  # the decoder's width
    return _followed_by(tower, Linear("projector", width, out, tower.tokens))


def gemma3(get: Reader, vision: Reader, hidden: int) -> Network:
    """Gemma 3: SigLIP, its patches averaged to `mm_tokens_per_image`, a norm and one product."""
    tower = siglip_vision(vision)
    width = vision.assuming(hidden_size=768).integer("hidden_size")
    tokens = get.assuming(mm_tokens_per_image=256).integer("mm_tokens_per_image")
    return _followed_by(
        tower,
        Pointwise("pooling, norm", width, tower.tokens * width),
        Linear("projector", width, hidden, tokens, bias=False),
        tokens=tokens,
    )


def mistral3(get: Reader, vision: Reader, hidden: int) -> Network:
    """Pixtral's tower (rotary, RMS norms, no biases), then 2 x 2 patches merged to one token and two products."""
    vision = vision.assuming(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, num_channels=3,
        patch_size=16, head_dim=None,
    )  # fmt: skip
    plain = plain_encoder(vision)
    width = plain.hidden
    e = plain._replace(norm_vectors=1, qkv_bias=False, out_bias=False, mlp_bias=False, gated=True)
    merge = get.assuming(spatial_merge_size=2).integer("spatial_merge_size")
    patches = _nominal_patches(vision, "num_channels", merge, bias=False)
    tower = vision_transformer(e, patches, norms_before=1, norms_behind=0)
    tokens, features = patches.tokens // merge**2, _features(get)
    return _followed_by(
        tower,
        Pointwise("projector norm", width, patches.tokens * width),
        Linear("merge", width * merge**2, width, tokens, bias=False),
        *_two_products(width * features, hidden, hidden, tokens, get.flag("multimodal_projector_bias")),
        tokens=tokens,
    )


def _nominal_patches(vision: Reader, channels_key: str, merge: int, *, bias: bool, frames: int = 1) -> Patches:
    """Patches of the nominal image, as many as merge evenly."""
    side = vision.integer("patch_size")
    across = max(NOMINAL_SIDE // (side * merge), 1) * merge
    return Patches(across, across, side, vision.integer(channels_key), frames, bias)


def qwen(get: Reader, vision: Reader, hidden: int) -> Network:
    """Qwen's towers: two frames a patch, neighbouring patches merged to one token by two products.

    Qwen2-VL has layer norms and a plain feed-forward, Qwen2.5-VL RMS norms, a gated one and windows in most layers;
    Qwen3-VL adds learned positions (interpolated) and hands on some inner layers too, each through a merger.
    """
    channels = "in_channels" if vision.has("in_channels") else "in_chans"
    vision = vision.assuming(depth=32, num_heads=16, patch_size=14, spatial_merge_size=2, temporal_patch_size=2)
    first, windowed = get.family == "qwen2_vl", get.family == "qwen2_5_vl"
    inner_layers = [8, 16, 24] if get.family.startswith("qwen3_vl") else []
    vision = vision.assuming(
        **{channels: 3}, mlp_ratio=4, window_size=112, fullatt_block_indexes=[7, 15, 23, 31],
        num_position_embeddings=2304, deepstack_visual_indexes=inner_layers,
    )  # fmt: skip
    width, layers = vision.integer("embed_dim" if first else "hidden_size"), vision.integer("depth")
    heads, merge = vision.integer("num_heads"), vision.integer("spatial_merge_size")
    inner = width * vision.integer("mlp_ratio") if first else vision.integer("intermediate_size")
    vectors = 1 if windowed else 2
    e = Encoder(
        width, layers, heads, vision.divided(width, "num_heads", heads), inner, norm_vectors=vectors, gated=windowed
    )
    later = not (first or windowed)
    frames = vision.integer("temporal_patch_size")
    patches = _nominal_patches(vision, channels, merge, bias=later, frames=frames)
    seen: tuple[tuple[float, int], ...] = ()
    if windowed:
        full = len(set(vision.layer_list("fullatt_block_indexes", layers)))
        window = (vision.integer("window_size") // patches.side) ** 2
        seen = ((min(window, patches.tokens), layers - full), (patches.tokens, full))
    positions = vision.integer("num_position_embeddings") if later else 0
    tokens = patches.tokens // merge**2
    tower = vision_transformer(e, patches, positions=positions, norms_behind=0, seen=seen)
    merged = width * merge**2
    deep = len(set(vision.layer_list("deepstack_visual_indexes", layers))) if later else 0
    return _followed_by(
        tower,
        Pointwise("merger norm", vectors * width, patches.tokens * width),
        *_two_products(merged, merged, hidden, tokens),
        *(layer for _ in range(deep) for layer in _deep_merger(merged, hidden, tokens)),
        tokens=tokens,
    )


def _deep_merger(merged: int, hidden: int, tokens: float) -> tuple[Layer, ...]:
    """What an inner layer's patches pass on their way to an early layer of the decoder."""
    return (Pointwise("deep merger norm", 2 * merged, tokens * merged), *_two_products(merged, merged, hidden, tokens))


def llama4(get: Reader, vision: Reader, hidden: int) -> Network:
    """Llama 4: one tile; neighbouring patches are shuffled into one token (`pixel_shuffle_ratio`), three products."""
    vision = vision.assuming(
        hidden_size=768, intermediate_size=5632, num_hidden_layers=34, num_attention_heads=16, num_channels=3,
        image_size=448, patch_size=14, vision_output_dim=7680, projector_input_dim=4096, projector_output_dim=4096,
    )  # fmt: skip
    e, patches = plain_encoder(vision), square_patches(vision, bias=False)
    tower = vision_transformer(e, patches, class_tokens=1, positions=patches.tokens + 1, norms_before=1)
    ratio = vision.number("pixel_shuffle_ratio", 0.5, 1)
    tokens = max(int(patches.tokens * ratio**2), 1)
    inner, out = vision.integer("projector_input_dim"), vision.integer("projector_output_dim")
    return _followed_by(
        tower,
        Linear("adapter in", e.intermediate, inner, tokens, bias=False),
        Pointwise("adapter activation", 0, tokens * inner),
        Linear("adapter out", out, out, tokens, bias=False),  # as the class has it: both widths are the same
        Linear("projector", vision.integer("vision_output_dim"), hidden, tokens, bias=False),
        tokens=tokens,
    )


def mllama(get: Reader, vision: Reader, hidden: int) -> Network:
    """Llama 3.2 Vision: all tiles of an image together through two stacks; the second has a gate for each half.

    Positions inside a tile, of a tile, and of both together; some inner layers stand beside the last one's answer.
    """
    vision = vision.assuming(
        hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_global_layers=8, attention_heads=16,
        image_size=448, patch_size=14, max_num_tiles=4, num_channels=3, vision_output_dim=7680,
    )  # fmt: skip
    width, heads = vision.integer("hidden_size"), vision.integer("attention_heads")
    e = Encoder(
        width,
        vision.integer("num_hidden_layers"),
        heads,
        vision.divided(width, "attention_heads", heads),
        vision.integer("intermediate_size"),
        qkv_bias=False,
        out_bias=False,
    )
    patches, tiles = square_patches(vision, bias=False), vision.integer("max_num_tiles")
    rows, ratios = patches.tokens + 1, vision.config.get("supported_aspect_ratios")
    kinds = (len(ratios) if isinstance(ratios, list) else 8) + 1
    learned = width + rows * width + kinds * tiles * width * (rows + 2) + 3  # class, positions, and a gate for each
    tokens, run = tiles * rows, tiles * 8 * -(-rows // 8)  # a tile's tokens are padded to whole eights
    passed = float(run * width)
    layers = (
        Conv("patches", patches.channels, width, patches.side, patches.rows, patches.columns, bias=False, depth=tiles),
        Pointwise("class token, positions", learned, 4 * passed),
        Pointwise("norm before", 2 * width, passed),
        *encoder_layers(e, run),
        Pointwise("norm behind", 2 * width, passed),
        *encoder_layers(e._replace(layers=vision.integer("num_global_layers"), extras=2), run, prefix="global "),
        Linear("projector", vision.integer("vision_output_dim"), hidden, tokens),
    )
    return Network("vision", layers, 2 * passed, tokens)


Maker = Callable[[Reader, Reader, int], Network]
QWEN: tuple[tuple[str, Maker], ...] = (("vision_config", qwen),)
TOWERS: dict[str, tuple[tuple[str, Maker], ...]] = {
    "llava": (("vision_config", llava),),
    "llava_next": (("vision_config", llava),),
    "paligemma": (("vision_config", paligemma),),
    "mistral3": (("vision_config", mistral3),),
    "llama4": (("vision_config", llama4),),
    "mllama": (("vision_config", mllama),),
    "qwen2_vl": QWEN,
    "qwen2_5_vl": QWEN,
    "qwen3_vl": QWEN,
    "qwen3_vl_moe": QWEN,
    "qwen3_5": QWEN,
    "qwen3_5_moe": QWEN,
    "gemma3": (("vision_config", gemma3),),
    "gemma3n": (("vision_config", gemma3n_vision), ("audio_config", gemma3n_audio)),
    "gemma4": (("vision_config", gemma4_vision), ("audio_config", gemma4_audio)),
}
