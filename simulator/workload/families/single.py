"""Families that spell their config, or shape their layers, like no other: DBRX, ChatGLM, MiMo-V2, Llama 3.2 Vision."""

from __future__ import annotations

from ..layers import Attention, Block, Experts, Mlp
from ..model import Model
from .reader import Reader


def read(get: Reader) -> Model:
    """The model of one of these families."""
    return _READERS[get.family](get)


def dbrx(get: Reader) -> Model:
    """DBRX: every layer has experts; attention and feed-forward have sections of their own in the config."""
    get = get.assuming(d_model=2048, n_heads=16, n_layers=24, max_seq_len=2048)
    inner = get.section("attn_config").assuming(kv_n_heads=1)
    feed = get.section("ffn_config").assuming(ffn_hidden_size=3584, moe_num_experts=4, moe_top_k=1)
    hidden, heads = get.integer("d_model"), get.integer("n_heads")
    dim = get.divided(hidden, "n_heads", heads)
    attention = Attention(heads, inner.kv_heads("kv_n_heads", heads, heads), dim)
    experts = feed.integer("moe_num_experts")
    ffn = Experts(experts, feed.top_k("moe_top_k", experts), feed.integer("ffn_hidden_size"))
    layers = [Block("moe", attention, ffn)] * get.integer("n_layers")
    return get.model(hidden, layers, max_context=get.integer("max_seq_len"), tied=get.flag("tie_word_embeddings"))


def chatglm(get: Reader) -> Model:
    """ChatGLM2 and 3: the layers of GLM-4 under older names (no class in transformers)."""
    get = get.assuming(kv_channels=128, seq_length=8192, multi_query_group_num=1, add_qkv_bias=False)
    hidden, heads = get.integer("hidden_size"), get.integer("num_attention_heads")
    kv_heads = heads
    if get.flag("multi_query_attention"):
        kv_heads = get.kv_heads("multi_query_group_num", heads, heads)
    bias = get.flag("add_bias_linear")
    attention = Attention(heads, kv_heads, get.integer("kv_channels"), bias or get.flag("add_qkv_bias"), bias)
    layers = [Block("dense", attention, Mlp(get.integer("ffn_hidden_size"), bias))] * get.integer("num_layers")
    vocab = get.integer("padded_vocab_size")
    get = get._replace(config={**get.config, "vocab_size": vocab})
    return get.model(hidden, layers, max_context=get.integer("seq_length"), tied=get.flag("tie_word_embeddings"))


def mimo_v2(get: Reader) -> Model:
    """MiMo-V2-Flash: mostly windowed layers, with sinks and twice the KV heads; values narrower than keys."""
    get = get.assuming(
        max_position_embeddings=131072, num_key_value_heads=4, head_dim=192, v_head_dim=128, sliding_window=128,
        n_routed_experts=256, num_experts_per_tok=8, moe_intermediate_size=2048, n_shared_experts=None,
        attention_bias=False,
    )  # fmt: skip
    hidden, layers, heads = (get.integer(k) for k in ("hidden_size", "num_hidden_layers", "num_attention_heads"))
    kv_heads, bias = get.kv_heads("num_key_value_heads", heads, heads), get.flag("attention_bias")
    dim, value = get.integer("head_dim"), get.integer("v_head_dim")
    full = Attention(heads, kv_heads, dim, bias, value_dim=value)
    get = get.assuming(
        swa_num_attention_heads=heads, swa_num_key_value_heads=2 * kv_heads, swa_head_dim=dim, swa_v_head_dim=value
    )
    window_heads = get.integer("swa_num_attention_heads")
    windowed = Attention(
        window_heads,
        get.kv_heads("swa_num_key_value_heads", window_heads, window_heads),
        get.integer("swa_head_dim"),
        bias,
        window=get.integer("sliding_window"),
        sinks=True,
        value_dim=get.integer("swa_v_head_dim"),
    )
    experts, width = get.integer("n_routed_experts"), get.integer("moe_intermediate_size")
    sparse = Experts(
        experts, get.top_k("num_experts_per_tok", experts), width, shared=get.count("n_shared_experts") * width
    )
    windows = get.choices("hybrid_layer_pattern", layers) or [i > 0 and (i + 1) % 6 > 0 for i in range(layers)]
    routed = get.choices("moe_layer_freq", layers) or [i > 0 for i in range(layers)]
    blocks = {
        (w, r): Block(
            f"{'moe' if r else 'dense'}{'-window' if w else ''}",
            windowed if w else full,
            sparse if r else Mlp(get.integer("intermediate_size")),
        )
        for w in (True, False)
        for r in (True, False)
    }
    per_layer = [blocks[w, r] for w, r in zip(windows, routed, strict=True)]
    limit = get.integer("max_position_embeddings")
    return get.model(hidden, per_layer, max_context=limit, tied=get.flag("tie_word_embeddings"))


def mllama(get: Reader) -> Model:
    """Llama 3.2 Vision: some layers attend to an image's tokens and to nothing else; eight more rows of embedding."""
    get = get.assuming(
        max_position_embeddings=131072, num_key_value_heads=8, vocab_size=128256,
        cross_attention_layers=[3, 8, 13, 18, 23, 28, 33, 38], tie_word_embeddings=False,
    )  # fmt: skip
    hidden, layers, heads = (get.integer(k) for k in ("hidden_size", "num_hidden_layers", "num_attention_heads"))
    dim = get.divided(hidden, "num_attention_heads", heads)
    attention = Attention(heads, get.kv_heads("num_key_value_heads", heads, heads), dim)
    ffn = Mlp(get.integer("intermediate_size"))
    own = Block("dense", attention, ffn)
    cross = Block("dense-cross", attention._replace(cross=True, qk_norm=True), ffn, small=2)  # a gate for each half
    crossing = set(get.layer_list("cross_attention_layers", layers))
    per_layer = [cross if i in crossing else own for i in range(layers)]
    limit, tied = get.integer("max_position_embeddings"), get.flag("tie_word_embeddings")
    return get.model(hidden, per_layer, max_context=limit, tied=tied, lookups=((8, hidden),))


_READERS = {"dbrx": dbrx, "chatglm": chatglm, "mimo_v2_flash": mimo_v2, "mllama_text_model": mllama}
