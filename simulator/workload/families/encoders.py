"""Text encoders: BERT and what followed, the text halves of CLIP and SigLIP, the encoders of T5.

`tokens` is the length of one input. Masks, causal ones too, are left out: every token sees every token.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..network import Layer, Linear, Mix, Network, Pointwise, holding, repeated
from .pieces import attention, feed_forward, norm, residual, stacked
from .reader import Reader


def _looked_up(width: int, tokens: int, rows: int, name: str = "embedding") -> Pointwise:
    return Pointwise(name, rows * width, tokens * width)


def _behind(width: int, tokens: int, inside: Iterable[Layer]) -> tuple[Layer, ...]:
    """A residual half with its norm behind the sum (as in the first transformers)."""
    return (*residual(float(tokens * width), inside), norm(width, tokens))


def _heads(get: Reader, width_key: str, heads_key: str) -> tuple[int, int, int]:
    width, heads = get.integer(width_key), get.integer(heads_key)
    return width, heads, get.divided(width, heads_key, heads)


def bert(get: Reader, tokens: int) -> Network:
    """BERT, RoBERTa and XLM-RoBERTa with their pooler (arXiv 1810.04805): norms behind each half."""
    get = get.assuming(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, vocab_size=30522,
        max_position_embeddings=512, type_vocab_size=2,
    )  # fmt: skip
    width, heads, dim = _heads(get, "hidden_size", "num_attention_heads")
    rows = get.integer("vocab_size") + get.integer("max_position_embeddings") + get.integer("type_vocab_size")
    layer = (
        *_behind(width, tokens, attention(width, heads, dim, tokens)),
        *_behind(width, tokens, feed_forward(width, get.integer("intermediate_size"), tokens)),
    )
    return Network(
        get.name,
        (
            _looked_up(width, tokens, rows, "embeddings"),
            norm(width, tokens, name="embedding norm"),
            *repeated(get.integer("num_hidden_layers"), layer),
            Linear("pooler", width, width, 1),
            Pointwise("pooler activation", 0, width),
        ),
        tokens=tokens,
    )


def distilbert(get: Reader, tokens: int) -> Network:
    """DistilBERT: BERT without token types and pooler."""
    get = get.assuming(dim=768, hidden_dim=3072, n_layers=6, n_heads=12, vocab_size=30522, max_position_embeddings=512)
    width, heads, dim = _heads(get, "dim", "n_heads")
    rows = get.integer("vocab_size") + get.integer("max_position_embeddings")
    layer = (
        *_behind(width, tokens, attention(width, heads, dim, tokens)),
        *_behind(width, tokens, feed_forward(width, get.integer("hidden_dim"), tokens)),
    )
    layers = (_looked_up(width, tokens, rows, "embeddings"), norm(width, tokens, name="embedding norm"))
    return Network(get.name, (*layers, *repeated(get.integer("n_layers"), layer)), tokens=tokens)


def nomic(get: Reader, tokens: int) -> Network:
    """Nomic's BERT: rotary positions and gated feed-forwards (arXiv 2402.01613).

    Its own configs name sizes as GPT-2's do, those that `transformers` saves as BERT's do.
    """
    get = get.assuming(
        n_embd=768, n_inner=3072, n_layer=12, n_head=12, vocab_size=30528, type_vocab_size=2, qkv_proj_bias=False,
        mlp_fc1_bias=False, mlp_fc2_bias=False,
    )  # fmt: skip
    width, heads = get.first("n_embd", "hidden_size"), get.first("n_head", "num_attention_heads")
    dim, inner = get.divided(width, "n_head", heads), get.first("n_inner", "intermediate_size")
    bias, ups, downs = (get.flag(key) for key in ("qkv_proj_bias", "mlp_fc1_bias", "mlp_fc2_bias"))
    forward = feed_forward(width, inner, tokens, bias=ups, out_bias=downs, gated=True)
    layer = (
        *_behind(width, tokens, attention(width, heads, dim, tokens, bias=bias, out_bias=bias, rotated=True)),
        *_behind(width, tokens, forward),
    )
    rows = get.integer("vocab_size") + get.integer("type_vocab_size")
    layers = (_looked_up(width, tokens, rows, "embeddings"), norm(width, tokens, name="embedding norm"))
    return Network(get.name, (*layers, *repeated(get.first("n_layer", "num_hidden_layers"), layer)), tokens=tokens)


def modernbert(get: Reader, tokens: int) -> Network:
    """ModernBERT: gated feed-forwards, and a window in all but every third layer (arXiv 2412.13663)."""
    get = get.assuming(
        hidden_size=768, intermediate_size=1152, num_hidden_layers=22, num_attention_heads=12, vocab_size=50368,
        global_attn_every_n_layers=3, local_attention=128, attention_bias=False, mlp_bias=False, norm_bias=False,
    )  # fmt: skip
    width, heads, dim = _heads(get, "hidden_size", "num_attention_heads")
    passed, vectors = float(tokens * width), 2 if get.flag("norm_bias") else 1
    bias, plain = get.flag("attention_bias"), get.flag("mlp_bias")
    forward = feed_forward(width, get.integer("intermediate_size"), tokens, bias=plain, gated=True)
    window = float(min(tokens, get.integer("local_attention") + 1))
    layers: list[Layer] = [_looked_up(width, tokens, get.integer("vocab_size"))]
    layers.append(norm(width, tokens, vectors=vectors, name="embedding norm"))
    for i in range(get.integer("num_hidden_layers")):
        whole = i % get.integer("global_attn_every_n_layers") == 0
        limit = None if whole else window
        mixing = attention(width, heads, dim, tokens, bias=bias, out_bias=bias, rotated=True, limit=limit)
        before = [norm(width, tokens, vectors=vectors)] if i else []
        layers += stacked(
            passed,
            residual(passed, [*before, *mixing]),
            residual(passed, [norm(width, tokens, vectors=vectors), *forward]),
        )
    return Network(get.name, (*layers, norm(width, tokens, vectors=vectors, name="final norm")), tokens=tokens)


def deberta(get: Reader, tokens: int) -> Network:
    """DeBERTa-v2 and -v3: scores of content and of relative positions, both ways (arXiv 2006.03654)."""
    get = get.assuming(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, vocab_size=128100,
        type_vocab_size=0, position_buckets=256, share_att_key=True, relative_attention=True, conv_kernel_size=0,
        position_biased_input=False,
    )  # fmt: skip
    for key, value in (("share_att_key", True), ("relative_attention", True), ("position_biased_input", False)):
        get.only(key, value)
    get.only("conv_kernel_size", 0)
    width, heads, dim = _heads(get, "hidden_size", "num_attention_heads")
    depth, rows = get.integer("num_hidden_layers"), 2 * get.integer("position_buckets")
    layer = (
        *_behind(width, tokens, attention(width, heads, dim, tokens)),
        *_behind(width, tokens, feed_forward(width, get.integer("intermediate_size"), tokens)),
    )
    # Positions pass the same weights as content; each direction is a product of scores, half an attention's work.
    positions: tuple[Layer, ...] = (
        *(Linear(f"position {x}", width, width, rows) for x in "qk"),
        *(Mix("position scores", heads, dim, tokens, rows / 2) for _ in range(2)),
    )
    return Network(
        get.name,
        (
            _looked_up(width, tokens, get.integer("vocab_size") + get.count("type_vocab_size"), "embeddings"),
            norm(width, tokens, name="embedding norm"),
            Pointwise("relative positions", rows * width, rows * width),
            norm(width, rows, name="relative positions norm"),
            *repeated(depth, layer),
        ),
        tokens=tokens,
        again=repeated(depth, positions),
    )


def _before(width: int, heads: int, dim: int, inner: int, tokens: int, depth: int) -> tuple[Layer, ...]:
    """Layers with a norm before each half, biases, and no gate: the text halves of CLIP and SigLIP."""
    passed = float(tokens * width)
    return repeated(
        depth,
        stacked(
            passed,
            residual(passed, [norm(width, tokens), *attention(width, heads, dim, tokens)]),
            residual(passed, [norm(width, tokens), *feed_forward(width, inner, tokens)]),
        ),
    )


def clip_text(get: Reader, tokens: int, *, projected: bool = False) -> Network:
    """CLIP's text half (arXiv 2103.00020), with the projection of its last token where it is `projected`."""
    get = get.assuming(
        hidden_size=512, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=8, vocab_size=49408,
        max_position_embeddings=77, projection_dim=512,
    )  # fmt: skip
    width, heads, dim = _heads(get, "hidden_size", "num_attention_heads")
    rows = get.integer("vocab_size") + get.integer("max_position_embeddings")
    inner, depth = get.integer("intermediate_size"), get.integer("num_hidden_layers")
    head = (Linear("projection", width, get.integer("projection_dim"), 1, bias=False),) if projected else ()
    stack = _before(width, heads, dim, inner, tokens, depth)
    first, last = _looked_up(width, tokens, rows, "embeddings"), norm(width, tokens, name="final norm")
    return Network(get.name, (first, *stack, last, *head), tokens=tokens)


def clip_text_projected(get: Reader, tokens: int) -> Network:
    """CLIP's text half with its projection."""
    return clip_text(get, tokens, projected=True)


def siglip_text(get: Reader, tokens: int) -> Network:
    """SigLIP's text half: as CLIP's, with a product of the last token that has a bias."""
    get = get.assuming(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, vocab_size=32000,
        max_position_embeddings=64, projection_size=None,
    )  # fmt: skip
    width, heads, dim = _heads(get, "hidden_size", "num_attention_heads")
    rows = get.integer("vocab_size") + get.integer("max_position_embeddings")
    inner, depth = get.integer("intermediate_size"), get.integer("num_hidden_layers")
    stack = _before(width, heads, dim, inner, tokens, depth)
    head = Linear("head", width, get.optional("projection_size") or width, 1)
    first, last = _looked_up(width, tokens, rows, "embeddings"), norm(width, tokens, name="final norm")
    return Network(get.name, (first, *stack, last, head), tokens=tokens)


def t5_layers(get: Reader, tokens: int) -> tuple[Layer, ...]:
    """The layers of T5's encoder and its last norm, embeddings apart (arXiv 1910.10683).

    Scores get a bias of each relative position and head; one table serves all layers, in UMT5 each has its own.
    """
    get = t5_defaults(get)
    width, heads, dim = get.integer("d_model"), get.integer("num_heads"), get.integer("d_kv")
    gate, depth = t5_gated(get), get.integer("num_layers")
    table, passed = get.integer("relative_attention_num_buckets") * heads, float(tokens * width)
    own = get.family == "umt5"
    biases = float(heads * tokens * tokens)
    bias = Pointwise("position bias", table, biases)
    mixing = attention(width, heads, dim, tokens, bias=False, out_bias=False)
    forward = feed_forward(width, get.integer("d_ff"), tokens, bias=False, gated=gate)
    layer = (
        *([bias] if own else []),
        *residual(passed, [norm(width, tokens, vectors=1), *mixing]),
        *residual(passed, [norm(width, tokens, vectors=1), *forward]),
    )
    stack = holding(biases, repeated(depth, layer))
    return (*([] if own else [bias]), *stack, norm(width, tokens, vectors=1, name="final norm"))


def t5_defaults(get: Reader) -> Reader:
    """What the classes of T5, and those of mT5 and UMT5, assume of a config."""
    common = get.assuming(d_model=512, d_kv=64, num_decoder_layers=None, relative_attention_num_buckets=32)
    if get.family in ("mt5", "umt5"):
        return common.assuming(vocab_size=250112, d_ff=1024, num_layers=8, num_heads=6, feed_forward_proj="gated-gelu")
    return common.assuming(vocab_size=32128, d_ff=2048, num_layers=6, num_heads=8, feed_forward_proj="relu")


def t5_gated(get: Reader) -> bool:
    """Whether feed-forwards multiply two products."""
    known = ("relu", "gelu", "gated-gelu", "gated-silu", "gated-relu")
    return str(get.word("feed_forward_proj", known)).startswith("gated-")


def t5_encoder(get: Reader, tokens: int) -> Network:
    """T5's, mT5's or UMT5's encoder with its embedding."""
    get = t5_defaults(get)
    first = _looked_up(get.integer("d_model"), tokens, get.integer("vocab_size"))
    return Network(get.name, (first, *t5_layers(get, tokens)), tokens=tokens)
