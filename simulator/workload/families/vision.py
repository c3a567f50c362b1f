"""Vision transformers as networks of one pass: patches, positions, a stack of layers, and what stands behind it.

`encoder_layers` is the stack alone (text encoders of the same shape use it too), `vision_transformer` the whole tower.
Sizes are those of one image of the size its config states.
"""

from __future__ import annotations

from typing import NamedTuple

from ..network import Conv, Layer, Linear, Mix, Network, Pointwise
from .reader import Reader


class Encoder(NamedTuple):
    """`layers` equal layers over tokens of width `hidden`: attention, then a feed-forward, `norms` norms a layer.

    A layer norm has two `norm_vectors`, an RMS norm one. `extras` counts further parameters of a layer that scale or
    shift (layer scale, norms of q and k). A `gated` feed-forward multiplies two products before the last one.
    """

    hidden: int
    layers: int
    heads: int
    head_dim: int
    intermediate: int
    kv_heads: int | None = None
    norms: int = 2
    norm_vectors: int = 2
    extras: int = 0
    qkv_bias: bool = True
    out_bias: bool = True
    mlp_bias: bool = True
    gated: bool = False


class Patches(NamedTuple):
    """How an input becomes tokens: `rows` x `columns` patches of `side` x `side` pixels and `frames` frames each."""

    rows: int
    columns: int
    side: int
    channels: int = 3
    frames: int = 1
    bias: bool = True

    @property
    def tokens(self) -> int:
        """Patches of one image."""
        return self.rows * self.columns


def encoder_layers(
    e: Encoder, tokens: float, *, prefix: str = "", seen: tuple[tuple[float, int], ...] = ()
) -> tuple[Layer, ...]:
    """The layers of a stack that `tokens` tokens pass; those of one kind stand together, `repeat` says how often.

    Queries see all tokens, unless `seen` says (keys, layers): how many keys in how many of the layers.
    """
    query, keys = e.heads * e.head_dim, (e.kv_heads or e.heads) * e.head_dim
    ups = 2 if e.gated else 1
    return (
        Pointwise(f"{prefix}norms", e.norms * e.norm_vectors * e.hidden, e.norms * tokens * e.hidden, e.layers),
        *((Pointwise(f"{prefix}scales", e.extras, tokens * e.hidden, e.layers),) if e.extras else ()),
        Linear(f"{prefix}qkv", e.hidden, query + 2 * keys, tokens, e.qkv_bias, e.layers),
        *(
            Mix(f"{prefix}attention", e.heads, e.head_dim, tokens, limit, layers)
            for limit, layers in seen or ((tokens, e.layers),)
        ),
        Linear(f"{prefix}out", query, e.hidden, tokens, e.out_bias, e.layers),
        Linear(f"{prefix}up", e.hidden, e.intermediate, tokens, e.mlp_bias, ups * e.layers),
        Pointwise(f"{prefix}activation", 0, tokens * e.intermediate, e.layers),
        Linear(f"{prefix}down", e.intermediate, e.hidden, tokens, e.mlp_bias, e.layers),
    )


def vision_transformer(
    e: Encoder,
    patches: Patches,
    *,
    name: str = "vision",
    class_tokens: int = 0,
    positions: int = 0,
    norms_before: int = 0,
    norms_behind: int = 1,
    seen: tuple[tuple[float, int], ...] = (),
    tail: tuple[Layer, ...] = (),
    handed_on: int | None = None,
) -> Network:
    """A vision tower: a convolution whose stride is its kernel makes the patches, then the stack, then the `tail`.

    `class_tokens` learned tokens stand before the patches; `positions` are rows of learned positions (0: rotary ones);
    `norms_before` and `norms_behind` stand around the stack. `handed_on` are the tokens of its answer: its patches
    unless the tail merges them. Four tensors as wide as the stack stay alive while a layer runs: its input, the norm of
    it, and what the half before gave and added up to.
    """
    tokens = patches.tokens + class_tokens
    passed = float(tokens * e.hidden)
    cut = Conv(
        "patches", patches.channels, e.hidden, patches.side, patches.rows, patches.columns,
        bias=patches.bias, span=patches.frames,
    )  # fmt: skip
    layers: list[Layer] = [cut]
    if class_tokens or positions:
        layers.append(Pointwise("class token, positions", (class_tokens + positions) * e.hidden, passed))
    if norms_before:
        layers.append(Pointwise("norm before", norms_before * e.norm_vectors * e.hidden, norms_before * passed))
    layers += encoder_layers(e, tokens, seen=seen)
    if norms_behind:
        layers.append(Pointwise("norm behind", norms_behind * e.norm_vectors * e.hidden, norms_behind * passed))
    return Network(name, (*layers, *tail), 4 * passed, patches.tokens if handed_on is None else handed_on)


def attention_pooling(e: Encoder, tokens: float) -> tuple[Layer, ...]:
    """SigLIP's head: one learned query attends to all tokens, then a norm and a feed-forward."""
    return (
        Pointwise("probe", e.hidden, e.hidden),
        Linear("pooling q", e.hidden, e.hidden, 1),
        Linear("pooling kv", e.hidden, 2 * e.hidden, tokens),
        Mix("pooling", e.heads, e.head_dim, 1, tokens),
        Linear("pooling out", e.hidden, e.hidden, 1),
        Pointwise("pooling norm", 2 * e.hidden, e.hidden),
        Linear("pooling up", e.hidden, e.intermediate, 1),
        Linear("pooling down", e.intermediate, e.hidden, 1),
    )


def square_patches(get: Reader, *, bias: bool = True) -> Patches:
    """Patches of the square image a config states; what does not fill a patch is cut off."""
    side = get.integer("patch_size")
    across = max(get.integer("image_size") // side, 1)
    return Patches(across, across, side, get.integer("num_channels"), bias=bias)


def plain_encoder(get: Reader, *, qkv_bias: bool = True) -> Encoder:
    """The stack a config of the usual fields states: layer norms before each half, biases, no gate."""
    hidden, heads = get.integer("hidden_size"), get.integer("num_attention_heads")
    dim = get.divided(hidden, "num_attention_heads", heads)
    layers, width = get.integer("num_hidden_layers"), get.integer("intermediate_size")
    return Encoder(hidden, layers, heads, dim, width, qkv_bias=qkv_bias)


def clip_vision(get: Reader, *, projection: int = 0) -> Network:
    """CLIP's vision tower: class token, a norm before the stack and one behind it; `projection` outputs in all."""
    get = get.assuming(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, num_channels=3,
        image_size=224, patch_size=32,
    )  # fmt: skip
    e, patches = plain_encoder(get), square_patches(get, bias=False)
    tail = (Linear("projection", e.hidden, projection, 1, bias=False),) if projection else ()
    return vision_transformer(e, patches, class_tokens=1, positions=patches.tokens + 1, norms_before=1, tail=tail)


def siglip_vision(get: Reader) -> Network:
    """SigLIP's vision tower: no class token; the pooling head is left out where `vision_use_head` says so."""
    get = get.assuming(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, num_channels=3,
        image_size=224, patch_size=16,
    )  # fmt: skip
    e, patches = plain_encoder(get), square_patches(get)
    tail = attention_pooling(e, patches.tokens) if get.flag("vision_use_head", True) else ()
    return vision_transformer(e, patches, positions=patches.tokens, tail=tail)


def vit(get: Reader, *, pooled: bool = True, classes: int = 0) -> Network:
    """ViT (arXiv 2010.11929): class token; behind the stack a norm, a pooler (`ViTModel`) or a head for `classes`."""
    get = get.assuming(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, num_channels=3,
        image_size=224, patch_size=16, qkv_bias=True,
    )  # fmt: skip
    e, patches = plain_encoder(get, qkv_bias=get.flag("qkv_bias")), square_patches(get)
    tail: tuple[Layer, ...] = ()
    if pooled:
        tail = (Linear("pooler", e.hidden, e.hidden, 1), Pointwise("tanh", 0, e.hidden))
    if classes:
        tail += (Linear("classes", e.hidden, classes, 1, narrowed=False),)
    return vision_transformer(e, patches, class_tokens=1, positions=patches.tokens + 1, tail=tail)
