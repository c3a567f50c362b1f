"""GPT-2 and what followed before Llama: plain feed-forwards, layer norms, biases, learned positions or ALiBi."""

from __future__ import annotations

from ..layers import Attention, Block, Mlp, Norms
from ..model import Model
from .reader import Reader

LAYER_NORM = Norms(vectors=2)


def read(get: Reader) -> Model:
    """The model of one of these families."""
    return _READERS[get.family](get)


def _layers(get: Reader, key: str, attention: Attention, ffn: Mlp, norms: Norms, parallel: bool = False) -> list[Block]:
    return [Block("dense", attention, ffn, norms, parallel)] * get.integer(key)


def gpt2(get: Reader) -> Model:
    """GPT-2: learned positions, biases everywhere, head tied to the embedding."""
    get = get.assuming(n_positions=1024, n_inner=None, tie_word_embeddings=True)
    hidden, heads, positions = get.integer("n_embd"), get.integer("n_head"), get.integer("n_positions")
    attention = Attention(heads, heads, get.divided(hidden, "n_head", heads), qkv_bias=True, out_bias=True)
    ffn = Mlp(get.optional("n_inner") or 4 * hidden, bias=True, gated=False)
    layers = _layers(get, "n_layer", attention, ffn, LAYER_NORM)
    tied = get.flag("tie_word_embeddings")
    return get.model(hidden, layers, max_context=positions, tied=tied, positions=positions, norm_vectors=2)


def gpt_bigcode(get: Reader) -> Model:
    """StarCoder: GPT-2 with one KV head for all."""
    get = get.assuming(n_positions=1024, n_inner=None, tie_word_embeddings=True, multi_query=True)
    hidden, heads, positions = get.integer("n_embd"), get.integer("n_head"), get.integer("n_positions")
    kv_heads = 1 if get.flag("multi_query") else heads
    attention = Attention(heads, kv_heads, get.divided(hidden, "n_head", heads), qkv_bias=True, out_bias=True)
    ffn = Mlp(get.optional("n_inner") or 4 * hidden, bias=True, gated=False)
    layers = _layers(get, "n_layer", attention, ffn, LAYER_NORM)
    tied = get.flag("tie_word_embeddings")
    return get.model(hidden, layers, max_context=positions, tied=tied, positions=positions, norm_vectors=2)


def gptj(get: Reader) -> Model:
    """GPT-J: mixer and feed-forward side by side behind one norm; the head has a bias."""
    get = get.assuming(n_positions=2048, n_inner=None, tie_word_embeddings=False)
    hidden, heads = get.integer("n_embd"), get.integer("n_head")
    attention = Attention(heads, heads, get.divided(hidden, "n_head", heads))
    ffn = Mlp(get.optional("n_inner") or 4 * hidden, bias=True, gated=False)
    layers = _layers(get, "n_layer", attention, ffn, Norms(1, 0, 2), parallel=True)
    tied, positions = get.flag("tie_word_embeddings"), get.integer("n_positions")
    return get.model(hidden, layers, max_context=positions, tied=tied, norm_vectors=2, head_bias=True)


def gpt_neox(get: Reader) -> Model:
    """GPT-NeoX and Pythia: rotary embedding, two norms, both halves side by side."""
    get = get.assuming(max_position_embeddings=2048, attention_bias=True, use_parallel_residual=True)
    hidden, heads = get.integer("hidden_size"), get.integer("num_attention_heads")
    bias = get.flag("attention_bias")
    attention = Attention(heads, heads, get.divided(hidden, "num_attention_heads", heads), qkv_bias=bias, out_bias=bias)
    ffn = Mlp(get.integer("intermediate_size"), bias=True, gated=False)
    parallel = get.flag("use_parallel_residual")
    layers = _layers(get, "num_hidden_layers", attention, ffn, LAYER_NORM, parallel)
    tied, limit = get.flag("tie_word_embeddings"), get.integer("max_position_embeddings")
    return get.model(hidden, layers, max_context=limit, tied=tied, norm_vectors=2)


def opt(get: Reader) -> Model:
    """OPT: learned positions with two rows before the first (`OPTLearnedPositionalEmbedding.offset`)."""
    get = get.assuming(
        max_position_embeddings=2048, tie_word_embeddings=True, enable_bias=True, do_layer_norm_before=True
    )
    hidden, heads = get.integer("hidden_size"), get.integer("num_attention_heads")
    bias, limit = get.flag("enable_bias"), get.integer("max_position_embeddings")
    attention = Attention(heads, heads, get.divided(hidden, "num_attention_heads", heads), qkv_bias=bias, out_bias=bias)
    ffn = Mlp(get.integer("ffn_dim"), bias=bias, gated=False)
    layers = _layers(get, "num_hidden_layers", attention, ffn, LAYER_NORM)
    before = get.flag("do_layer_norm_before") and not get.flag("_remove_final_layer_norm")
    tied = get.flag("tie_word_embeddings")
    embedded = get.optional("word_embed_proj_dim") or hidden
    # OPT-350m embeds narrower than it computes: two projections more, embedding and head that much smaller.
    narrower = 2 * embedded * hidden - get.integer("vocab_size") * (hidden - embedded) if embedded != hidden else 0
    outer = {"positions": limit + 2, "norm_vectors": 2 if before else 0, "small": narrower}
    return get.model(hidden, layers, max_context=limit, tied=tied, **outer)


def bloom(get: Reader) -> Model:
    """BLOOM: ALiBi, a norm behind the embedding, biases everywhere. Its context ends where its training did."""
    get = get.assuming(tie_word_embeddings=True, seq_length=2048)
    hidden, heads = get.first("hidden_size", "n_embed"), get.first("n_head", "num_attention_heads")
    attention = Attention(heads, heads, get.divided(hidden, "n_head", heads), qkv_bias=True, out_bias=True)
    ffn = Mlp(4 * hidden, bias=True, gated=False)
    layers = [Block("dense", attention, ffn, LAYER_NORM)] * get.first("n_layer", "num_hidden_layers")
    tied, limit = get.flag("tie_word_embeddings"), get.integer("seq_length")
    return get.model(hidden, layers, max_context=limit, tied=tied, norm_vectors=2, embed_norm_vectors=2)


def falcon(get: Reader) -> Model:
    """Falcon: both halves side by side; the first ones share one KV head, the later ones 8."""
    get = get.assuming(
        max_position_embeddings=2048, bias=False, multi_query=True, parallel_attn=True, new_decoder_architecture=False,
        tie_word_embeddings=True, num_ln_in_parallel_attn=None, ffn_hidden_size=None, num_kv_heads=None,
    )  # fmt: skip
    hidden, heads = get.integer("hidden_size"), get.first("num_attention_heads", "n_head")
    newer, bias = get.flag("new_decoder_architecture"), get.flag("bias")
    if newer:
        kv_heads = get.kv_heads("num_kv_heads" if get.has("num_kv_heads") else "n_head_kv", heads, heads)
    else:
        kv_heads = 1 if get.flag("multi_query") else heads
    attention = Attention(
        heads, kv_heads, get.divided(hidden, "num_attention_heads", heads), qkv_bias=bias, out_bias=bias
    )
    ffn = Mlp(get.optional("ffn_hidden_size") or 4 * hidden, bias=bias, gated=False)
    parallel = newer or get.flag("parallel_attn")
    norms = (get.optional("num_ln_in_parallel_attn") or (2 if newer else 1)) if parallel else 2
    layers = [Block("dense", attention, ffn, Norms(1, norms - 1, 2), parallel)]
    layers *= get.first("num_hidden_layers", "n_layer")
    tied, limit = get.flag("tie_word_embeddings"), get.integer("max_position_embeddings")
    return get.model(hidden, layers, max_context=limit, tied=tied, norm_vectors=2)


def phi(get: Reader) -> Model:
    """Phi-1 to Phi-2: both halves side by side behind one norm; the head has a bias."""
    get = get.assuming(max_position_embeddings=2048, num_key_value_heads=None, tie_word_embeddings=False)
    hidden, heads = get.integer("hidden_size"), get.integer("num_attention_heads")
    kv_heads = get.kv_heads("num_key_value_heads", heads, heads)
    attention = Attention(
        heads, kv_heads, get.divided(hidden, "num_attention_heads", heads), qkv_bias=True, out_bias=True
    )
    ffn = Mlp(get.integer("intermediate_size"), bias=True, gated=False)
    layers = _layers(get, "num_hidden_layers", attention, ffn, Norms(1, 0, 2), parallel=True)
    tied, limit = get.flag("tie_word_embeddings"), get.integer("max_position_embeddings")
    return get.model(hidden, layers, max_context=limit, tied=tied, norm_vectors=2, head_bias=True)


def mpt(get: Reader) -> Model:
    """MPT: ALiBi, no biases, norms of one vector."""
    get = get.assuming(n_heads=16, n_layers=24, expansion_ratio=4, max_seq_len=2048, tie_word_embeddings=True)
    hidden, heads = get.integer("d_model"), get.integer("n_heads")
    attention = Attention(heads, heads, get.divided(hidden, "n_heads", heads))
    ffn = Mlp(get.integer("expansion_ratio") * hidden, gated=False)
    layers = _layers(get, "n_layers", attention, ffn, Norms())
    return get.model(hidden, layers, max_context=get.integer("max_seq_len"), tied=get.flag("tie_word_embeddings"))


_READERS = {
    "gpt2": gpt2,
    "gpt_bigcode": gpt_bigcode,
    "gptj": gptj,
    "gpt_neox": gpt_neox,
    "opt": opt,
    "bloom": bloom,
    "falcon": falcon,
    "phi": phi,
    "mpt": mpt,
}
