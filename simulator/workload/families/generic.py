"""A family nobody described: read as a gated transformer by the usual field names, or refused naming what it lacks."""

from __future__ import annotations

from ....errors import InputError
from .. import families
from ..layers import Attention, Block, Experts, Mlp
from ..model import Model
from .reader import Reader

NEEDED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
WIDTHS = ("intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner")
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
# Fields of layers that are not plain attention: guessing would be worse than refusing.
FOREIGN = ("kv_lora_rank", "ssm_state_size", "mamba_d_state", "state_size", "linear_num_value_heads", "block_types")


def read(get: Reader) -> Model:
    """A generic transformer: grouped-query attention, gated feed-forward, experts where the usual fields name them."""
    missing = [key for key in NEEDED if not get.has(key)]
    width_key = next((key for key in WIDTHS if get.has(key)), None)
    if width_key is None:
        missing.append("intermediate_size")
    foreign = [key for key in FOREIGN if get.has(key)]
    if missing or foreign:
        known = ", ".join(sorted({*families.MODULES, *families.ALIASES}))
        what = f"lacks {', '.join(missing)}" if missing else f"has {', '.join(foreign)}"
        problem = f"unknown family, and not one to read by the usual fields: it {what}"
        raise InputError(problem, file=get.file, key="model_type", value=get.family, remedy=f"known: {known}")
    get = get.assuming(max_position_embeddings=8192, attention_bias=False, tie_word_embeddings=False)
    hidden, layers, heads = (get.integer(key) for key in NEEDED[:3])
    kv_heads = get.kv_heads("num_key_value_heads", heads, heads)
    dim = get.optional("head_dim") or get.divided(hidden, "num_attention_heads", heads)
    bias = get.flag("attention_bias")
    attention = Attention(heads, kv_heads, dim, bias, bias)
    width = get.integer(width_key or "intermediate_size")
    ffn: Mlp | Experts = Mlp(width)
    experts_key = next((key for key in EXPERTS if get.has(key)), None)
    if experts_key and get.integer(experts_key) > 1:
        experts, top_k = get.integer(experts_key), get.top_k("num_experts_per_tok", get.integer(experts_key))
        narrow = get.optional("moe_intermediate_size") or width
        shared = (get.integer("n_shared_experts") if get.has("n_shared_experts") else 0) * narrow
        ffn = Experts(experts, top_k, narrow, shared=shared)
    first = get.count("first_k_dense_replace") if get.has("first_k_dense_replace") else 0
    dense = Block("dense", attention, Mlp(width))
    main = dense if isinstance(ffn, Mlp) else Block("moe", attention, ffn)
    per_layer = [dense if i < first else main for i in range(layers)]
    limit = get.integer("max_position_embeddings")
    return get.model(hidden, per_layer, max_context=limit, tied=get.flag("tie_word_embeddings"), generic=True)
