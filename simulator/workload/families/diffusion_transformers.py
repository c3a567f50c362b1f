"""Denoisers that attend to the text, or to a class, beside themselves: DiT, PixArt, SANA, Wan and LTX-Video."""

from __future__ import annotations

from ....errors import InputError
from ..network import Conv, Layer, Linear, Mix, Network, Pointwise, holding, repeated
from .autoencoders import gated_convolutions
from .pieces import Canvas, attention, embedder, feed_forward, gated, modulated, norm, residual, stacked
from .reader import Reader

TIME = 256  # sinusoids of a timestep


def refuse(get: Reader, *keys: str) -> None:
    """Refuse a config that states what is not known here."""
    for key in keys:
        if get.config.get(key) not in (None, False, 0):
            raise InputError(f"not known of a {get.family}", file=get.file, key=key, value=get.config[key])


def patches(get: Reader, canvas: Canvas) -> tuple[int, int, int]:
    """Side of a patch, and patches in height and width."""
    side = get.integer("patch_size")
    return (side, *canvas.cut(side))


def _width(get: Reader) -> tuple[int, int, int]:
    heads, dim = get.integer("num_attention_heads"), get.integer("attention_head_dim")
    return heads, dim, heads * dim


def dit(get: Reader, canvas: Canvas) -> Network:
    """DiT: each block embeds timestep and class itself and modulates both halves with them (arXiv 2212.09748)."""
    get = get.assuming(
        num_attention_heads=16, attention_head_dim=72, in_channels=4, out_channels=None, num_layers=28, patch_size=2,
        num_embeds_ada_norm=1000, norm_elementwise_affine=False, attention_bias=True,
    )  # fmt: skip
    refuse(get, "norm_elementwise_affine")
    heads, dim, width = _width(get)
    side, rows, columns = patches(get, canvas)
    tokens, channels = rows * columns, get.integer("in_channels")
    passed = float(tokens * width)
    own = (
        *embedder(TIME, width, "timestep"),
        Pointwise("class embedding", (get.integer("num_embeds_ada_norm") + 1) * width, width),
        Linear("modulation", width, 6 * width, 1),
    )
    itself = attention(width, heads, dim, tokens, bias=get.flag("attention_bias"))
    block = (
        *holding(passed, own),
        *stacked(
            passed,
            gated(passed, [*modulated(width, tokens), *itself]),
            gated(passed, [*modulated(width, tokens), *feed_forward(width, 4 * width, tokens)]),
        ),
    )
    out = side * side * (get.optional("out_channels") or channels)
    return Network(
        get.name,
        (
            Conv("patches", channels, width, side, rows, columns),
            Pointwise("positions", 0, passed),
            *repeated(get.integer("num_layers"), block),
            Linear("modulation out", width, 2 * width, 1),
            *modulated(width, tokens, name="norm out"),
            Linear("out", width, out, tokens),
        ),
        again=embedder(TIME, width, "timestep"),  # the first block's, for the last modulation
    )


def pixart(get: Reader, canvas: Canvas) -> Network:
    """PixArt: one modulation for all blocks, attention to the text behind attention to itself (arXiv 2310.00426)."""
    get = get.assuming(
        num_attention_heads=16, attention_head_dim=72, in_channels=4, out_channels=8, num_layers=28, patch_size=2,
        cross_attention_dim=1152, caption_channels=None, attention_bias=True, norm_elementwise_affine=False,
        use_additional_conditions=None, sample_size=128,
    )  # fmt: skip
    refuse(get, "norm_elementwise_affine")
    heads, dim, width = _width(get)
    side, rows, columns = patches(get, canvas)
    tokens, bias, text = rows * columns, get.flag("attention_bias"), canvas.tokens
    passed = float(tokens * width)
    sized = get.config.get("use_additional_conditions")
    if sized is None:
        sized = get.integer("sample_size") == 128
    layers: list[Layer] = [
        Conv("patches", get.integer("in_channels"), width, side, rows, columns),
        Pointwise("positions", 0, passed),
        *_adaptive(width, 6),
    ]
    if sized:
        layers += embedder(TIME, width // 3, "resolution", tokens=2)
        layers += embedder(TIME, width // 3, "aspect ratio")
    if (caption := get.optional("caption_channels")) is not None:
        layers += embedder(caption, width, "caption", tokens=text)
    itself = attention(width, heads, dim, tokens, bias=bias)
    crossing = attention(
        width, heads, dim, tokens, keys=text, context=get.integer("cross_attention_dim"), bias=bias,
        name="text attention",
    )  # fmt: skip
    block = (
        Pointwise("modulation table", 6 * width, 6 * width, held=passed),
        *stacked(
            passed,
            gated(passed, [*modulated(width, tokens), *itself]),
            residual(passed, crossing),
            gated(passed, [*modulated(width, tokens), *feed_forward(width, 4 * width, tokens)]),
        ),
    )
    layers += repeated(get.integer("num_layers"), block)
    layers += [*modulated(width, tokens, vectors=2, name="norm out")]
    layers.append(Linear("out", width, side * side * get.integer("out_channels"), tokens))
    return Network(get.name, tuple(layers))


def _adaptive(width: int, times: int) -> tuple[Layer, ...]:
    """The timestep, embedded once, as `times` vectors for every block."""
    return (*embedder(TIME, width, "timestep"), Linear("modulation", width, times * width, 1))


def sana(get: Reader, canvas: Canvas) -> Network:
    """SANA: linear attention, attention to the text, and a feed-forward of convolutions (arXiv 2410.10629)."""
    get = get.assuming(
        in_channels=32, out_channels=32, num_attention_heads=70, attention_head_dim=32, num_layers=20,
        num_cross_attention_heads=20, cross_attention_head_dim=112, cross_attention_dim=2240, caption_channels=2304,
        patch_size=1, attention_bias=False, norm_elementwise_affine=False, qk_norm=None, guidance_embeds=False,
    )  # fmt: skip
    refuse(get, "guidance_embeds", "norm_elementwise_affine")
    heads, dim, width = _width(get)
    side, rows, columns = patches(get, canvas)
    tokens, text, bias = rows * columns, canvas.tokens, get.flag("attention_bias")
    passed = float(tokens * width)
    across = get.word("qk_norm", ("rms_norm_across_heads",)) is not None
    crossing = attention(
        width, get.integer("num_cross_attention_heads"), get.integer("cross_attention_head_dim"), tokens, keys=text,
        context=get.integer("cross_attention_dim"), norms=2 * width if across else 0, name="text attention",
    )  # fmt: skip
    convolved = gated_convolutions(width, get.ratio("mlp_ratio", 2.5), rows, columns, adds=False)
    block = (
        Pointwise("modulation table", 6 * width, 6 * width, held=passed),
        *stacked(
            passed,
            gated(passed, [*modulated(width, tokens), *_linear_attention(heads, dim, tokens, bias, across)]),
            residual(passed, crossing),
            gated(passed, [*modulated(width, tokens), *convolved]),
        ),
    )
    return Network(
        get.name,
        (
            Conv("patches", get.integer("in_channels"), width, side, rows, columns),
            *_adaptive(width, 6),
            *embedder(get.integer("caption_channels"), width, "caption", tokens=text),
            norm(width, text, vectors=1, name="caption norm"),
            *repeated(get.integer("num_layers"), block),
            *modulated(width, tokens, vectors=2, name="norm out"),
            Linear("out", width, side * side * get.integer("out_channels"), tokens),
        ),
    )


def _linear_attention(heads: int, dim: int, tokens: int, bias: bool, across: bool) -> tuple[Layer, ...]:
    """Attention to a state of dim x (dim + 1) numbers a head, in fp32."""
    width = heads * dim
    passed = float(tokens * width)
    layers: list[Layer] = [
        *(Linear(f"attention {x}", width, width, tokens, bias, held=i * passed) for i, x in enumerate("qkv"))
    ]
    if across:
        layers.append(Pointwise("attention norm", 2 * width, 2 * passed, held=passed))
    layers += [
        Pointwise("attention to fp32", 0, 6 * passed, held=2 * passed),
        Mix("linear attention", heads, dim, tokens, dim + 1, held=2 * passed),
        Pointwise("attention quotient", 0, 2 * passed, held=6 * passed),
        Linear("attention out", width, width, tokens),
    ]
    return residual(passed, layers, adds=False)


def wan(get: Reader, canvas: Canvas) -> Network:
    """Wan's video transformer: full attention over space and time, attention to the text (arXiv 2503.20314)."""
    get = get.assuming(
        patch_size=[1, 2, 2], num_attention_heads=40, attention_head_dim=128, in_channels=16, out_channels=16,
        text_dim=4096, freq_dim=256, ffn_dim=13824, num_layers=40, cross_attn_norm=True,
    )  # fmt: skip
    refuse(get, "image_dim", "added_kv_proj_dim", "pos_embed_seq_len")
    get.word("qk_norm", ("rms_norm_across_heads",))
    heads, dim, width = _width(get)
    span, side, side_width = get.several("patch_size", 3)
    frames = canvas.frames // span
    rows, columns = canvas.cut(side, side_width)
    tokens, text = frames * rows * columns, canvas.tokens
    passed, channels = float(tokens * width), get.integer("in_channels")
    norms, inner = 2 * width, get.integer("ffn_dim")
    itself = attention(width, heads, dim, tokens, rotated=True, norms=norms)
    crossing = attention(width, heads, dim, tokens, keys=text, norms=norms, name="text attention")
    before = (Pointwise("text norm to fp32", 0, 2 * passed), norm(width, 2 * tokens, name="text norm"))
    if not get.flag("cross_attn_norm"):
        before = (before[0], Pointwise("text norm", 0, passed))
    patch = Conv("patches", channels, width, side, rows, columns, span=span, depth=frames, side_width=side_width)
    block = (
        Pointwise("modulation table", 6 * width, 6 * width, held=passed),
        *stacked(
            passed,
            gated(passed, [*modulated(width, tokens, fp32=True), *itself]),
            residual(passed, [*before, Pointwise("from fp32", 0, passed), *crossing]),
            gated(passed, [*modulated(width, tokens, fp32=True), *feed_forward(width, inner, tokens)]),
        ),
    )
    return Network(
        get.name,
        (
            patch,
            *embedder(get.integer("freq_dim"), width, "timestep"),
            Linear("modulation", width, 6 * width, 1),
            *embedder(get.integer("text_dim"), width, "text", tokens=text),
            *repeated(get.integer("num_layers"), block),
            *modulated(width, tokens, vectors=2, fp32=True, name="norm out"),
            Linear("out", width, span * side * side_width * get.integer("out_channels"), tokens),
        ),
    )


def ltx(get: Reader, canvas: Canvas) -> Network:
    """LTX-Video: a latent pixel is a token; norms of q and k over all heads (arXiv 2501.00103)."""
    get = get.assuming(
        in_channels=128, out_channels=128, num_attention_heads=32, attention_head_dim=64, cross_attention_dim=2048,
        num_layers=28, caption_channels=4096, attention_bias=True, attention_out_bias=True, patch_size=1,
        patch_size_t=1, norm_elementwise_affine=False,
    )  # fmt: skip
    refuse(get, "norm_elementwise_affine")
    heads, dim, width = _width(get)
    tokens, text = canvas.frames * canvas.height * canvas.width, canvas.tokens
    passed = float(tokens * width)
    bias, out_bias = get.flag("attention_bias"), get.flag("attention_out_bias")
    norms, context = 2 * width, get.integer("cross_attention_dim")
    itself = attention(width, heads, dim, tokens, rotated=True, bias=bias, out_bias=out_bias, norms=norms)
    crossing = attention(
        width, heads, dim, tokens, keys=text, context=context, bias=bias, out_bias=out_bias, norms=norms,
        name="text attention",
    )  # fmt: skip
    block = (
        Pointwise("modulation table", 6 * width, 6 * width, held=passed),
        *stacked(
            passed,
            gated(passed, [*modulated(width, tokens), *itself]),
            residual(passed, crossing),
            gated(passed, [*modulated(width, tokens), *feed_forward(width, 4 * width, tokens)]),
        ),
    )
    return Network(
        get.name,
        (
            Linear("patches", get.integer("in_channels"), width, tokens),
            *_adaptive(width, 6),
            *embedder(get.integer("caption_channels"), width, "caption", tokens=text),
            *repeated(get.integer("num_layers"), block),
            *modulated(width, tokens, vectors=2, name="norm out"),
            Linear("out", width, get.integer("out_channels"), tokens),
        ),
        4 * passed,  # two fp32 tables of its rotary embedding
    )
