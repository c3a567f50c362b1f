"""Denoisers whose attention mixes image and text (MMDiT): Stable Diffusion 3, Flux, Qwen-Image, Z-Image and videos.

Scaling Rectified Flow Transformers, arXiv 2403.03206. A double block has weights of its own for each of both streams,
a single block one set of weights for both together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..network import Conv, Layer, Linear, Mix, Network, Pointwise, holding, repeated
from .diffusion_transformers import TIME, patches, refuse
from .pieces import (
    Canvas,
    Streams,
    attention,
    embedder,
    feed_forward,
    gated,
    joint_attention,
    modulated,
    norm,
    residual,
    rotary,
    stacked,
)
from .reader import Reader


class Double(NamedTuple):
    """What double blocks differ in: modulations of image and text (0: shared by all), their feed-forward, norms.

    The last one of Stable Diffusion 3 has no text behind its attention, some of it a second attention of the image.
    `kept` more tensors of the image keep a name until the block returns.
    """

    inner: int
    modulations: tuple[int, int] = (6, 6)
    norms: int = 0
    bias: bool = True
    gate: bool = False
    rotated: bool = True
    text_behind: bool = True
    twice: bool = False
    kept: int = 0


def _double(s: Streams, d: Double) -> tuple[Layer, ...]:
    """One double block; both inputs stay with the caller, and every name in it keeps its tensor until it returns."""
    image, text = float(s.tokens * s.width), float(s.text * s.width)
    both = image + text
    own = [Linear("modulation", s.width, n * s.width, 1, d.bias) for n in d.modulations if n]
    layers: list[Layer] = list(holding(both, [*own, *modulated(s.width, s.tokens)]))
    layers += holding(both + image, modulated(s.width, s.text, name="text norm"))
    mixing = joint_attention(s, bias=d.bias, norms=d.norms, rotated=d.rotated, text_out=d.text_behind)
    layers += holding(both, mixing)
    gate, add = Pointwise("gate", 0, image), Pointwise("add", 0, image, inputs=2)
    layers += holding(3 * both, [gate, add])
    if d.twice:
        again = attention(s.width, s.heads, s.head_dim, s.tokens, bias=d.bias, norms=d.norms // 2)
        layers += holding(3 * both, gated(image, [*modulated(s.width, s.tokens), *again]))
    behind = [*modulated(s.width, s.tokens), *_feed_forward(s.width, d, s.tokens), gate]
    layers += holding(3 * both, residual(image, behind))
    if d.text_behind:
        gates = (Pointwise("text gate", 0, text), Pointwise("text add", 0, text, inputs=2))
        layers += holding(4 * both, gates)
        inside = [*modulated(s.width, s.text, name="text norm"), *_feed_forward(s.width, d, s.text), gates[0]]
        layers += holding(4 * both, residual(text, inside))
    return holding(d.kept * image, layers)


def _feed_forward(width: int, d: Double, tokens: int) -> tuple[Layer, ...]:
    return feed_forward(width, d.inner, tokens, bias=d.bias, gated=d.gate)


def _single(s: Streams, inner: int, *, modulation: bool = True) -> tuple[Layer, ...]:
    """One single block of Flux: attention and feed-forward side by side, both results through one product."""
    passed, wide = float(s.all * s.width), float(s.all * inner)
    parallel = (Linear("feed-forward up", s.width, inner, s.all), Pointwise("feed-forward activation", 0, wide))
    mixing = attention(s.width, s.heads, s.head_dim, s.all, norms=2 * s.head_dim, rotated=True)[:-1]
    own = [Linear("modulation", s.width, 3 * s.width, 1)] if modulation else []
    inside: list[Layer] = [
        *own,
        *modulated(s.width, s.all),
        *residual(passed, parallel, adds=False),
        *holding(passed + wide, mixing),
        Pointwise("join attention and feed-forward", 0, passed + wide, held=passed + wide),
        Linear("out", s.width + inner, s.width, s.all, held=2 * passed + wide),
        Pointwise("gate", 0, passed, held=passed + wide),
    ]
    return holding(passed, residual(passed, [Pointwise("join streams", 0, passed), *inside]))


def _out(width: int, tokens: int, outputs: int, *, bias: bool = True, time: int | None = None) -> tuple[Layer, ...]:
    """A last norm, modulated by the timestep, and the product back to latents."""
    return (
        Linear("modulation out", width if time is None else time, 2 * width, 1, bias),
        *modulated(width, tokens, name="norm out"),
        Linear("out", width, outputs, tokens, bias),
    )


def _heads(get: Reader) -> tuple[int, int, int]:
    heads, dim = get.integer("num_attention_heads"), get.integer("attention_head_dim")
    return heads, dim, heads * dim


def sd3(get: Reader, canvas: Canvas) -> Network:
    """Stable Diffusion 3 and 3.5. Its table of positions is kept with the weights without being a parameter."""
    get = get.assuming(
        patch_size=2, in_channels=16, out_channels=16, num_layers=18, attention_head_dim=64, num_attention_heads=18,
        joint_attention_dim=4096, caption_projection_dim=1152, pooled_projection_dim=2048, pos_embed_max_size=96,
        dual_attention_layers=[], qk_norm=None,
    )  # fmt: skip
    heads, dim, width = _heads(get)
    side, rows, columns = patches(get, canvas)
    s = Streams(rows * columns, canvas.tokens, width, heads, dim)
    layers_ = get.integer("num_layers")
    twice = set(get.layer_list("dual_attention_layers", layers_))
    d = Double(4 * width, norms=4 * dim if get.word("qk_norm", ("rms_norm",)) else 0, rotated=False)
    blocks: list[Layer] = []
    for i in range(layers_):
        last = i + 1 == layers_
        mods = (9 if i in twice else 6, 2 if last else 6)
        blocks += _double(s, d._replace(modulations=mods, twice=i in twice, text_behind=not last, kept=int(i in twice)))
    outputs = get.optional("out_channels") or get.integer("in_channels")
    return Network(
        get.name,
        (
            Conv("patches", get.integer("in_channels"), width, side, rows, columns),
            Pointwise("positions", 0, s.tokens * width),
            *embedder(TIME, width, "timestep"),
            *embedder(get.integer("pooled_projection_dim"), width, "pooled text"),
            Linear("text in", get.integer("joint_attention_dim"), get.integer("caption_projection_dim"), s.text),
            *blocks,
            *_out(width, s.tokens, side * side * outputs),
        ),
        buffers=get.integer("pos_embed_max_size") ** 2 * width,
    )


def _packed(get: Reader, canvas: Canvas) -> Streams:
    """Streams of a pipeline that packs 2x2 latents into one token."""
    heads, dim, width = _heads(get)
    rows, columns = canvas.cut(2)
    return Streams(rows * columns, canvas.tokens, width, heads, dim)


def _conditions(get: Reader, width: int, *, bias: bool = True) -> tuple[Layer, ...]:
    """Timestep, and the strength of guidance where it is distilled into the weights."""
    layers = embedder(TIME, width, "timestep", bias=bias)
    return (*layers, *embedder(TIME, width, "guidance", bias=bias)) if get.flag("guidance_embeds") else layers


def flux(get: Reader, canvas: Canvas) -> Network:
    """FLUX.1: double blocks, then single ones; latents are packed 2x2."""
    get = get.assuming(
        in_channels=64, out_channels=None, num_layers=19, num_single_layers=38, attention_head_dim=128,
        num_attention_heads=24, joint_attention_dim=4096, pooled_projection_dim=768, guidance_embeds=False,
    )  # fmt: skip
    s = _packed(get, canvas)
    inner = 4 * s.width
    return Network(
        get.name,
        (
            Linear("image in", get.integer("in_channels"), s.width, s.tokens),
            *_conditions(get, s.width),
            *embedder(get.integer("pooled_projection_dim"), s.width, "pooled text"),
            Linear("text in", get.integer("joint_attention_dim"), s.width, s.text),
            *repeated(get.integer("num_layers"), _double(s, Double(inner, norms=4 * s.head_dim))),
            *repeated(get.integer("num_single_layers"), _single(s, inner)),
            *_out(s.width, s.tokens, get.optional("out_channels") or get.integer("in_channels")),
        ),
    )


def flux2(get: Reader, canvas: Canvas) -> Network:
    """FLUX.2: modulations shared by all blocks of a kind, gated feed-forwards, no biases; latents are packed 2x2."""
    get = get.assuming(
        in_channels=128, out_channels=None, num_layers=8, num_single_layers=48, attention_head_dim=128,
        num_attention_heads=48, joint_attention_dim=15360, mlp_ratio=3.0, guidance_embeds=True,
    )  # fmt: skip
    s = _packed(get, canvas)
    inner = int(get.ratio("mlp_ratio", 3.0) * s.width)
    passed, wide = float(s.all * s.width), float(s.all * inner)
    double = Double(inner, modulations=(0, 0), norms=4 * s.head_dim, bias=False, gate=True)
    merged = 3 * s.width + 2 * inner
    q_k_v_up = float(s.all * merged)
    single = (
        *modulated(s.width, s.all),
        Linear("attention qkv, feed-forward up", s.width, merged, s.all, bias=False),
        Pointwise("attention norm", 2 * s.head_dim, 2 * passed, held=q_k_v_up),
        *holding(q_k_v_up + 2 * passed, [*rotary(passed, "q"), *rotary(passed, "k")]),
        Mix("attention", s.heads, s.head_dim, s.all, s.all, held=q_k_v_up + 2 * passed),
        Pointwise("feed-forward gate", 0, wide, held=q_k_v_up + 3 * passed),
        Pointwise("feed-forward product", 0, wide, inputs=2, held=q_k_v_up + 3 * passed),
        Pointwise("join attention and feed-forward", 0, passed + wide, held=q_k_v_up + 3 * passed),
        Linear("out", s.width + inner, s.width, s.all, bias=False, held=q_k_v_up + 2 * passed),
    )
    return Network(
        get.name,
        (
            *_conditions(get, s.width, bias=False),
            *(Linear("modulation", s.width, n * s.width, 1, bias=False) for n in (6, 6, 3)),
            Linear("image in", get.integer("in_channels"), s.width, s.tokens, bias=False),
            Linear("text in", get.integer("joint_attention_dim"), s.width, s.text, bias=False),
            *repeated(get.integer("num_layers"), _double(s, double)),
            Pointwise("join streams", 0, passed),
            *repeated(get.integer("num_single_layers"), gated(passed, single)),
            *_out(s.width, s.tokens, get.optional("out_channels") or get.integer("in_channels"), bias=False),
        ),
    )


def qwen_image(get: Reader, canvas: Canvas) -> Network:
    """Qwen-Image: double blocks alone (arXiv 2508.02324); latents are packed 2x2."""
    get = get.assuming(
        patch_size=2, in_channels=64, out_channels=16, num_layers=60, attention_head_dim=128, num_attention_heads=24,
        joint_attention_dim=3584, guidance_embeds=False,
    )  # fmt: skip
    refuse(get, "guidance_embeds", "zero_cond_t", "use_additional_t_cond", "use_layer3d_rope")
    s, width = _packed(get, canvas), get.integer("joint_attention_dim")
    return Network(
        get.name,
        (
            *embedder(TIME, s.width, "timestep"),
            norm(width, s.text, vectors=1, name="text norm"),
            Linear("image in", get.integer("in_channels"), s.width, s.tokens),
            Linear("text in", width, s.width, s.text),
            *repeated(get.integer("num_layers"), _double(s, Double(4 * s.width, norms=4 * s.head_dim, kept=2))),
            *_out(s.width, s.tokens, get.integer("patch_size") ** 2 * get.integer("out_channels")),
        ),
    )


def hunyuan(get: Reader, canvas: Canvas) -> Network:
    """HunyuanVideo: text through a refiner, then Flux's two kinds of blocks over all frames (arXiv 2412.03603)."""
    get = get.assuming(
        in_channels=16, out_channels=16, num_attention_heads=24, attention_head_dim=128, num_layers=20,
        num_single_layers=40, num_refiner_layers=2, mlp_ratio=4.0, patch_size=2, patch_size_t=1, guidance_embeds=True,
        text_embed_dim=4096, pooled_projection_dim=768,
    )  # fmt: skip
    get.word("qk_norm", ("rms_norm",))
    refuse(get, "image_condition_type")
    heads, dim, width = _heads(get)
    side, rows, columns = patches(get, canvas)
    span = get.integer("patch_size_t")
    frames, inner = canvas.frames // span, int(get.ratio("mlp_ratio", 4.0) * width)
    s, read = Streams(frames * rows * columns, canvas.tokens, width, heads, dim), get.integer("text_embed_dim")
    passed = float(s.text * width)
    refiner = stacked(
        passed,
        gated(passed, [norm(width, s.text), *attention(width, heads, dim, s.text)]),
        gated(passed, [norm(width, s.text), *feed_forward(width, inner, s.text)]),
    )
    refined = (*refiner, Linear("refiner modulation", width, 2 * width, 1))
    return Network(
        get.name,
        (
            Conv("patches", get.integer("in_channels"), width, side, rows, columns, span=span, depth=frames),
            *_conditions(get, width),
            *embedder(get.integer("pooled_projection_dim"), width, "pooled text"),
            *embedder(TIME, width, "refiner timestep"),
            *embedder(read, width, "refiner text"),
            Linear("text in", read, width, s.text),
            *repeated(get.integer("num_refiner_layers"), refined),
            *repeated(get.integer("num_layers"), _double(s, Double(inner, norms=4 * dim))),
            *repeated(get.integer("num_single_layers"), _single(s, inner)),
            *_out(width, s.tokens, side * side * span * get.integer("out_channels")),
        ),
    )


def cogvideox(get: Reader, canvas: Canvas) -> Network:
    """CogVideoX: one set of weights for text and frames, joined into one sequence (arXiv 2408.06072)."""
    get = get.assuming(
        num_attention_heads=30, attention_head_dim=64, in_channels=16, out_channels=16, num_layers=30,
        text_embed_dim=4096, time_embed_dim=512, patch_size=2, use_rotary_positional_embeddings=False,
        attention_bias=True, norm_elementwise_affine=True,
    )  # fmt: skip
    refuse(get, "ofs_embed_dim", "patch_size_t", "use_learned_positional_embeddings")
    heads, dim, width = _heads(get)
    side, rows, columns = patches(get, canvas)
    s = Streams(canvas.frames * rows * columns, canvas.tokens, width, heads, dim)
    time, passed = get.integer("time_embed_dim"), float(s.all * width)
    rotated, vectors = get.flag("use_rotary_positional_embeddings"), 2 if get.flag("norm_elementwise_affine") else 0
    bias = get.flag("attention_bias")

    def half(inside: Sequence[Layer]) -> tuple[Layer, ...]:
        modulation = Linear("modulation", time, 6 * width, 1, held=passed)
        joined = Pointwise("join text and frames", 0, passed, held=passed)
        return gated(passed, [modulation, *modulated(width, s.all, vectors=vectors), joined, *inside])

    mixing = attention(width, heads, dim, s.all, bias=bias, norms=4 * dim, rotated=rotated)
    block = stacked(passed, half(mixing), half(feed_forward(width, 4 * width, s.all)))
    return Network(
        get.name,
        (
            *embedder(width, time, "timestep"),
            Linear("text in", get.integer("text_embed_dim"), width, s.text),
            Conv("patches", get.integer("in_channels"), width, side, rows, columns, depth=canvas.frames),
            *repeated(get.integer("num_layers"), block),
            norm(width, s.all, vectors=vectors, name="norm final"),
            norm(width, 0, vectors=vectors, name="norm out"),
            *_out(width, s.tokens, side * side * get.integer("out_channels"), time=time),
        ),
    )


def z_image(get: Reader, canvas: Canvas) -> Network:
    """Z-Image: image and text refined apart, then as one sequence; gated feed-forwards (arXiv 2511.22699)."""
    get = get.assuming(
        all_patch_size=[2], all_f_patch_size=[1], in_channels=16, dim=3840, n_layers=30, n_refiner_layers=2,
        n_heads=30, cap_feat_dim=2560, qk_norm=True,
    )  # fmt: skip
    width, heads, channels = get.integer("dim"), get.integer("n_heads"), get.integer("in_channels")
    [side], [span] = get.several("all_patch_size", 1), get.several("all_f_patch_size", 1)
    dim, time, middle = get.divided(width, "n_heads", heads), min(width, TIME), 1024
    rows, columns = canvas.cut(side)
    tokens, text = rows * columns, canvas.tokens
    norms, values = 2 * dim if get.flag("qk_norm") else 0, side * side * span * channels

    def block(length: int, timed: bool) -> tuple[Layer, ...]:
        passed = float(length * width)
        mixing = attention(width, heads, dim, length, bias=False, out_bias=False, norms=norms, rotated=True)
        second = feed_forward(width, int(width / 3 * 8), length, bias=False, gated=True)
        halves = (
            gated(passed, [norm(width, length, vectors=1), *part, norm(width, length, vectors=1)])
            for part in (mixing, second)
        )
        own = (Linear("modulation", time, 4 * width, 1, held=passed),) if timed else ()
        return (*own, *stacked(passed, *halves))

    refiners = get.integer("n_refiner_layers")
    return Network(
        get.name,
        (
            Linear("image in", values, width, tokens),
            Pointwise("padding tokens", 2 * width, 0),
            *embedder(TIME, time, "timestep", inner=middle),
            *repeated(refiners, block(tokens, True)),
            norm(get.integer("cap_feat_dim"), text, vectors=1, name="text norm"),
            Linear("text in", get.integer("cap_feat_dim"), width, text),
            *repeated(refiners, block(text, False)),
            Pointwise("join image and text", 0, (tokens + text) * width),
            *repeated(get.integer("n_layers"), block(tokens + text, True)),
            Linear("modulation out", time, width, 1),
            *modulated(width, tokens + text, name="norm out"),
            Linear("out", width, values, tokens + text),
        ),
    )
