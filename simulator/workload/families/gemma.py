"""Gemma 3n and Gemma 4: layers that reuse an earlier one's keys and values, and an embedding of every layer's own.

What is cached is read from the classes in `transformers`: layers behind the first `num_hidden_layers` -
`num_kv_shared_layers` take keys and values from the last earlier layer of their kind and cache nothing.
"""

from __future__ import annotations

from ....errors import InputError
from ..layers import Attention, Block, Experts, Mlp, Norms
from ..model import Model
from .reader import Reader

SLIDING, FULL = "sliding_attention", "full_attention"
SANDWICH = Norms(2, 2)


def read(get: Reader) -> Model:
    """The model of one of these families."""
    return {"gemma3n_text": gemma3n, "gemma4_text": gemma4}[get.family](get)


def _kinds(get: Reader, layers: int, period: int) -> list[str]:
    default = [FULL if (i + 1) % period == 0 else SLIDING for i in range(layers)]
    return get.words("layer_types", (SLIDING, FULL), layers) or default


def _own_layers(get: Reader, layers: int) -> int:
    """How many layers make keys and values of their own; there must be one."""
    shared = get.count("num_kv_shared_layers")
    if shared >= layers:
        problem = f"leaves none of the {layers} layers to make keys and values"
        raise InputError(problem, file=get.file, key="num_kv_shared_layers", value=shared)
    return layers - shared


def gemma3n(get: Reader) -> Model:
    """Gemma 3n: four copies of the hidden state of which each layer runs one (AltUp), a low-rank residual (LAuReL).

    The three idle copies change little that is counted here: the products that make and merge them, and two small
    predictors a layer. Their memory and the element-wise passes over them are not.
    """
    get = get.assuming(
        max_position_embeddings=32768, num_attention_heads=8, num_key_value_heads=2, head_dim=256, sliding_window=512,
        attention_bias=False, hidden_size=2048, num_hidden_layers=35, vocab_size=262400, intermediate_size=16384,
        vocab_size_per_layer_input=262144, hidden_size_per_layer_input=256, altup_num_inputs=4,
        num_kv_shared_layers=15, laurel_rank=64, tie_word_embeddings=True,
    )  # fmt: skip
    hidden, layers, heads = (get.integer(k) for k in ("hidden_size", "num_hidden_layers", "num_attention_heads"))
    bias, own = get.flag("attention_bias"), _own_layers(get, layers)
    attention = Attention(
        heads, get.kv_heads("num_key_value_heads", heads, heads), get.integer("head_dim"), bias, bias, qk_norm=True
    )
    copies, rank, embedded = (
        get.integer(k) for k in ("altup_num_inputs", "laurel_rank", "hidden_size_per_layer_input")
    )
    side = ((rank, hidden), (hidden, rank), (embedded, hidden), (hidden, embedded), (copies, hidden))
    # Scale of the corrected copy, norms of the predictors' router, of LAuReL, of the layer's embedding; the predictors.
    small = 4 * hidden + copies**2 + copies**3
    widths = get.integers("intermediate_size", layers)
    per_layer = []
    for i, kind in enumerate(_kinds(get, layers, 5)):
        mixer = attention._replace(window=get.integer("sliding_window") if kind == SLIDING else None, borrows=i >= own)
        per_layer.append(Block(_name(mixer, "dense"), mixer, Mlp(widths[i]), SANDWICH, small=small, side=side))
    return get.model(
        hidden,
        per_layer,
        max_context=get.integer("max_position_embeddings"),
        tied=get.flag("tie_word_embeddings"),
        lookups=((get.integer("vocab_size_per_layer_input"), layers * embedded),),
        side=((layers * embedded, hidden), *((hidden, hidden),) * (2 * (copies - 1))),
        small=embedded,
    )


def gemma4(get: Reader) -> Model:
    """Gemma 4: wider heads in the layers that see everything, where keys may serve as values; experts in some sizes."""
    get = get.assuming(
        max_position_embeddings=131072, num_attention_heads=8, num_key_value_heads=4, head_dim=256,
        global_head_dim=512, num_global_key_value_heads=None, attention_k_eq_v=False, attention_bias=False,
        sliding_window=512, num_kv_shared_layers=0, use_double_wide_mlp=False, enable_moe_block=False,
        hidden_size_per_layer_input=256, vocab_size_per_layer_input=262144, vocab_size=262144,
        tie_word_embeddings=True,
    )  # fmt: skip
    if get.has("per_layer_config"):
        problem = "layers stated one by one are not read; it needs global_head_dim and num_global_key_value_heads"
        raise InputError(problem, file=get.file, key="per_layer_config")
    hidden, layers, heads = (get.integer(k) for k in ("hidden_size", "num_hidden_layers", "num_attention_heads"))
    bias, own = get.flag("attention_bias"), _own_layers(get, layers)
    same, embedded = get.flag("attention_k_eq_v"), get.count("hidden_size_per_layer_input")
    kv_heads = get.kv_heads("num_key_value_heads", heads, heads)
    full_kv_heads = get.kv_heads("num_global_key_value_heads", heads, kv_heads) if same else kv_heads
    window = get.integer("sliding_window")
    attentions = {
        SLIDING: Attention(heads, kv_heads, get.integer("head_dim"), bias, bias, qk_norm=True, window=window),
        FULL: Attention(heads, full_kv_heads, get.integer("global_head_dim"), bias, bias, qk_norm=True, no_value=same),
    }
    side = ((embedded, hidden), (hidden, embedded)) if embedded else ()
    small, norms, width = (hidden if embedded else 0), SANDWICH, get.integer("intermediate_size")
    experts: Experts | None = None
    if get.flag("enable_moe_block"):
        count = get.integer("num_experts")
        top_k = get.top_k("top_k_experts", count)
        experts = Experts(count, top_k, get.integer("moe_intermediate_size"), shared=width)
        norms, small = Norms(2, 5), small + hidden + count  # scales of the router's input and of each expert
    kinds = _kinds(get, layers, 6)
    kinds[-1] = FULL
    per_layer = []
    for i, kind in enumerate(kinds):
        mixer = attentions[kind]._replace(borrows=i >= own)
        double = get.flag("use_double_wide_mlp") and mixer.borrows
        ffn = experts or Mlp(2 * width if double else width)
        per_layer.append(Block(_name(mixer, "moe" if experts else "dense"), mixer, ffn, norms, small=small, side=side))
    return get.model(
        hidden,
        per_layer,
        max_context=get.integer("max_position_embeddings"),
        tied=get.flag("tie_word_embeddings"),
        lookups=((get.integer("vocab_size_per_layer_input"), layers * embedded),) if embedded else (),
        side=((layers * embedded, hidden),) if embedded else (),
        small=embedded,
    )


def _name(attention: Attention, ffn: str) -> str:
    return f"{ffn}{'-window' if attention.window else ''}{'-borrowing' if attention.borrows else ''}"
