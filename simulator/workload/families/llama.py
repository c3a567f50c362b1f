"""Llama and the families that vary it: norms, biases, windows, experts and latent attention, one row of facts each.

A key that a config leaves out takes the default of that family's configuration class in `transformers` (a test holds
the table below equal to those classes). Everything else a family needs must be there. Partial rotary embedding changes
nothing that is counted; layers that only predict further tokens (`num_nextn_predict_layers`, `num_mtp_modules`) are
left out: plain decoding does not run them.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from ..layers import Attention, Block, Experts, LatentAttention, Mixer, Mlp, Norms
from ..model import Model
from .llama_sparse_table import DENSE_FIRST, SPARSE
from .llama_table import DENSE, Family
from .reader import Reader

FAMILIES: Mapping[str, Family] = MappingProxyType({**DENSE, **SPARSE})
KINDS = ("full_attention", "sliding_attention", "chunked_attention")


def read(get: Reader) -> Model:
    """The model of one of these families."""
    family = FAMILIES[get.family]
    get = get.assuming(**family.defaults)
    hidden, layers = get.integer("hidden_size"), get.integer("num_hidden_layers")
    attention = _latent_attention(get, family) if family.latent else _attention(get, family, hidden)
    bias = get.flag(family.mlp_bias_key, family.qkv_bias) if family.mlp_bias_key else False
    sparse = _sparse_layers(get, family, layers)
    all_sparse = len(sparse) == layers
    dense = None if all_sparse else Mlp(get.integer(family.dense_width_key), bias, family.gated)
    windows = _windows(get, family, layers)
    experts = _experts(get, family) if family.moe else None
    norms, parallel = family.norms, family.parallel or get.flag("use_parallel_residual")
    if parallel and not family.parallel:
        norms = norms._replace(ffn=0)  # StableLM 2 12B: one norm for both halves
    indexers = _indexers(get, hidden, layers) if family.indexed else [0] * layers
    correction = experts.experts if experts is not None and family.correction else 0
    per_layer = [
        _block(
            attention,
            windows[i],
            experts if i in sparse and experts else dense,
            norms,
            parallel,
            indexers[i] + (correction if i in sparse else 0),
        )
        for i in range(layers)
    ]
    return get.model(
        hidden,
        per_layer,
        max_context=get.first(family.length_key, "max_position_embeddings", "model_max_length"),
        tied=get.flag("tie_word_embeddings", family.tied),
        norm_vectors=norms.vectors,
        head_bias=get.flag(family.head_bias_key) if family.head_bias_key else False,
    )


def _attention(get: Reader, family: Family, hidden: int) -> Attention:
    heads = get.integer("num_attention_heads")
    kv_heads = get.kv_heads("num_key_value_heads", heads, heads)
    head_dim = get.optional("head_dim") or get.divided(hidden, "num_attention_heads", heads)
    bias = get.flag(family.qkv_bias_key, family.qkv_bias) if family.qkv_bias_key else family.qkv_bias
    return Attention(
        heads,
        kv_heads,
        head_dim,
        qkv_bias=bias,
        out_bias=bias and family.out_bias,
        qk_norm=get.flag(family.qk_norm_key) if family.qk_norm_key else family.qk_norm,
        whole_norm=family.whole_norm,
        sinks=family.sinks,
    )


def _latent_attention(get: Reader, family: Family) -> LatentAttention:
    return LatentAttention(
        heads=get.integer("num_attention_heads"),
        query_latent=get.optional("q_lora_rank"),
        latent=get.integer("kv_lora_rank"),
        rope=get.integer("qk_rope_head_dim"),
        nope=get.integer("qk_nope_head_dim"),
        value=get.integer("v_head_dim"),
        bias=get.flag(family.qkv_bias_key, family.qkv_bias) if family.qkv_bias_key else family.qkv_bias,
    )


def _indexers(get: Reader, hidden: int, layers: int) -> list[int]:
    """Parameters of each layer that pick the keys of sparse attention (DeepSeek-V3.2): queries, keys, norm, weights.

    Of GLM-5's layers some share what an earlier one picked. Counted, not costed: attention is priced as if it read
    every key.
    """
    heads, dim, latent = (get.integer(key) for key in ("index_n_heads", "index_head_dim", "q_lora_rank"))
    own = heads * dim * latent + dim * hidden + 2 * dim + heads * hidden
    kinds = get.words("indexer_types", ("full", "shared"), layers)
    return [own if kind == "full" else 0 for kind in kinds or ["full"] * layers]


def _windows(get: Reader, family: Family, layers: int) -> list[int | None]:
    """The sliding window (or chunk) of each layer. Mistral and Mixtral use it in every layer, Qwen only where
    `use_sliding_window` says so: from layer `max_window_layers` on unless `layer_types` lists them (qwen3_moe: all).
    Others let every so many layers see everything, unless `layer_types` (Llama 4: `no_rope_layers`) lists them.
    """
    if family.latent or family.windowless:
        return [None] * layers
    window = get.optional(family.window_key)
    if family.window_period:
        period = next((get.integer(k) for k in ("sliding_window_pattern",) if isinstance(get.config.get(k), int)), None)
        period = period or family.window_period
        default = [KINDS[0] if (i + 1) % period == 0 else KINDS[1] for i in range(layers)]
        kinds = get.words("layer_types", KINDS, layers) or default
        return [None if kind == KINDS[0] else window for kind in kinds]
    if family.gated_window:
        if window is None or not get.flag("use_sliding_window", False):
            return [None] * layers
        if "max_window_layers" not in family.defaults:
            return [window] * layers
        types = get.words("layer_types", KINDS, layers)
        if types is not None:
            return [window if kind == KINDS[1] else None for kind in types]
        first = get.count("max_window_layers")
        return [window if i >= first else None for i in range(layers)]
    return [window] * layers


def _experts(get: Reader, family: Family) -> Experts:
    width, experts = get.integer(family.expert_width_key), get.integer(family.experts_key)
    shared = get.count(family.shared_key) if family.shared_key else 0
    return Experts(
        experts,
        get.top_k(family.top_k_key, experts),
        width,
        shared=shared if family.shared_is_width else shared * width,
        bias=family.expert_bias,
        shared_switch=family.shared_switch,
    )


def _sparse_layers(get: Reader, family: Family, layers: int) -> set[int]:
    """Layers with experts: all, but the first ones (DeepSeek, GLM, Ernie) or as `mlp_layer_types` lists them; every
    `decoder_sparse_step`-th not in `mlp_only_layers` (Qwen), every `interleave_moe_layer_step`-th (Llama 4).
    """
    if not family.moe:
        return set()
    kinds = get.words("mlp_layer_types", ("dense", "sparse"), layers)
    if kinds is not None:
        return {i for i, kind in enumerate(kinds) if kind == "sparse"}
    if family.dense_first_key is not None:
        first = get.assuming(**{**DENSE_FIRST, **family.defaults}).count(family.dense_first_key)
        return set(range(first, layers))
    if "interleave_moe_layer_step" in family.defaults:
        step = get.integer("interleave_moe_layer_step")
        return {i for i in range(layers) if (i + 1) % step == 0}
    if "decoder_sparse_step" not in family.defaults:
        return set(range(layers))
    step, dense = get.integer("decoder_sparse_step"), set(get.layer_list("mlp_only_layers", layers))
    return {i for i in range(layers) if i not in dense and (i + 1) % step == 0}


def _block(
    attention: Mixer, window: int | None, ffn: Mlp | Experts | None, norms: Norms, parallel: bool, small: int
) -> Block:
    if window is not None and isinstance(attention, Attention):
        attention = attention._replace(window=window)
    kind = "moe" if isinstance(ffn, Experts) else "dense"
    return Block(kind if window is None else f"{kind}-window", attention, ffn, norms, parallel, small=small)
