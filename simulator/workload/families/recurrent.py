"""State-space layers, linear attention and their mixtures with attention, after the classes in `transformers`."""

from __future__ import annotations

from ....errors import InputError
from ..layers import Attention, Block, Experts, LatentAttention, Mlp, Norms, Recurrent
from ..model import Model
from .reader import Reader

LINEAR, FULL, SLIDING = "linear_attention", "full_attention", "sliding_attention"
LEAN = Norms(1, 0)  # one norm for the one half a layer has


def read(get: Reader) -> Model:
    """The model of one of these families."""
    return _READERS[get.family](get)


def _mamba1(get: Reader, hidden: int, prefix: str, inner: int, rank: int, norms: int) -> Recurrent:
    """Mamba (arXiv 2312.00752): input-dependent step, B and C through a bottleneck of `rank`.

    `norms` extra parameters are those Jamba puts behind the bottleneck.
    """
    state = get.integer("mamba_d_state" if prefix else "state_size")
    width = get.integer("mamba_d_conv" if prefix else "conv_kernel")
    bias = get.flag("mamba_conv_bias" if prefix else "use_conv_bias", True)
    proj = get.flag("mamba_proj_bias" if prefix else "use_bias")
    vectors = inner * state + inner + (inner if bias else 0) + inner + norms  # A, D, convolution's and step's biases
    narrow = ((rank + 2 * state, inner), (inner, rank))
    return Recurrent(
        "mamba", inner, 2 * inner, inner, inner * state, inner, width, narrow, vectors, proj, proj, state_bytes=4.0
    )


def _mamba2(get: Reader, keys: tuple[str, str, str, str], head_dim: int, bias_key: str, proj_key: str) -> Recurrent:
    """Mamba-2 (arXiv 2405.21060): a scalar decay a head; x, B and C pass the convolution together.

    `keys` name heads, groups, state and width of the convolution, as each family spells them.
    """
    heads, groups, state, width = (get.integer(key) for key in keys)
    conv_bias, proj = get.flag(bias_key, True), get.flag(proj_key)
    inner = heads * head_dim
    channels = inner + 2 * groups * state
    vectors = 3 * heads + inner + (channels if conv_bias else 0)  # decay, D, step bias; gated norm; convolution
    inputs = inner + channels + heads
    return Recurrent("mamba2", heads, inputs, inner, inner * state, channels, width, (), vectors, proj, proj)


def mamba(get: Reader) -> Model:
    """Mamba and Falcon-Mamba: layers of nothing but the recurrence."""
    get = get.assuming(
        state_size=16, conv_kernel=4, expand=2, use_bias=False, use_conv_bias=True, time_step_rank="auto",
        tie_word_embeddings=True,
    )  # fmt: skip
    hidden = get.first("hidden_size", "d_model")
    inner = get.optional("intermediate_size") or get.integer("expand") * hidden
    rank = -(-hidden // 16) if get.config.get("time_step_rank", "auto") == "auto" else get.integer("time_step_rank")
    mixer = _mamba1(get, hidden, "", inner, rank, 0)
    layers = [Block("mamba", mixer, None, LEAN)] * get.first("num_hidden_layers", "n_layer")
    return get.model(hidden, layers, max_context=2**20, tied=get.flag("tie_word_embeddings"))


def mamba2(get: Reader) -> Model:
    """Mamba-2."""
    get = get.assuming(
        state_size=128, conv_kernel=4, n_groups=8, num_heads=128, head_dim=64, use_bias=False, use_conv_bias=True,
        tie_word_embeddings=False,
    )  # fmt: skip
    hidden = get.integer("hidden_size")
    keys = ("num_heads", "n_groups", "state_size", "conv_kernel")
    mixer = _mamba2(get, keys, get.integer("head_dim"), "use_conv_bias", "use_bias")
    layers = [Block("mamba2", mixer, None, LEAN)] * get.integer("num_hidden_layers")
    return get.model(hidden, layers, max_context=2**20, tied=get.flag("tie_word_embeddings"))


def jamba(get: Reader) -> Model:
    """Jamba: one layer of eight attends, every other one has experts, the rest are Mamba."""
    get = get.assuming(
        num_key_value_heads=8, max_position_embeddings=262144, num_experts=16, num_experts_per_tok=2,
        expert_layer_period=2, expert_layer_offset=1, attn_layer_period=8, attn_layer_offset=4, mamba_d_state=16,
        mamba_d_conv=4, mamba_expand=2, mamba_dt_rank="auto", mamba_conv_bias=True, mamba_proj_bias=False,
        tie_word_embeddings=False,
    )  # fmt: skip
    hidden, layers = get.integer("hidden_size"), get.integer("num_hidden_layers")
    heads = get.integer("num_attention_heads")
    attention = Attention(
        heads, get.kv_heads("num_key_value_heads", heads, 8), get.divided(hidden, "num_attention_heads", heads)
    )
    stated = get.config.get("mamba_dt_rank", "auto")
    rank = -(-hidden // 16) if stated == "auto" else get.integer("mamba_dt_rank")
    inner, state = get.integer("mamba_expand") * hidden, get.integer("mamba_d_state")
    mixer = _mamba1(get, hidden, "mamba_", inner, rank, rank + 2 * state)
    width, experts = get.integer("intermediate_size"), get.integer("num_experts")
    sparse = Experts(experts, get.top_k("num_experts_per_tok", experts), width)
    attends = [i % get.integer("attn_layer_period") == get.count("attn_layer_offset") for i in range(layers)]
    routes = [
        experts > 1 and i % get.integer("expert_layer_period") == get.count("expert_layer_offset")
        for i in range(layers)
    ]
    per_layer = [
        Block(
            f"{'attention' if a else 'mamba'}-{'moe' if r else 'dense'}",
            attention if a else mixer,
            sparse if r else Mlp(width),
        )
        for a, r in zip(attends, routes, strict=True)
    ]
    limit = get.integer("max_position_embeddings")
    return get.model(hidden, per_layer, max_context=limit, tied=get.flag("tie_word_embeddings"))


def nemotron_h(get: Reader) -> Model:
    """Nemotron-H: every layer is one thing, a Mamba-2 (M), an attention (*), a feed-forward (-) or experts (E)."""
    get = get.assuming(
        max_position_embeddings=4096, head_dim=128, num_key_value_heads=8, ssm_state_size=128, mamba_num_heads=128,
        mamba_head_dim=64, n_groups=8, conv_kernel=4, use_conv_bias=True, mamba_proj_bias=False, mlp_bias=False,
        attention_bias=False, tie_word_embeddings=False, n_shared_experts=1, num_experts_per_tok=2,
        moe_shared_expert_intermediate_size=None, moe_latent_size=None,
    )  # fmt: skip
    hidden, heads = get.integer("hidden_size"), get.integer("num_attention_heads")
    bias = get.flag("attention_bias")
    dim = get.optional("attention_head_dim") or get.integer("head_dim")
    kv_heads = get.kv_heads("num_key_value_heads", heads, heads)
    keys = ("mamba_num_heads", "n_groups", "ssm_state_size", "conv_kernel")
    mamba_ = _mamba2(get, keys, get.integer("mamba_head_dim"), "use_conv_bias", "mamba_proj_bias")
    parts = {
        LINEAR: lambda: Block("mamba2", mamba_, None, LEAN),
        FULL: lambda: Block("attention", Attention(heads, kv_heads, dim, bias, bias), None, LEAN),
        "mlp": lambda: Block("dense", None, Mlp(get.integer("intermediate_size"), get.flag("mlp_bias"), False), LEAN),
        "moe": lambda: Block("moe", None, _squared_relu_experts(get), LEAN),
    }
    letters = {"M": LINEAR, "*": FULL, "-": "mlp", "E": "moe"}
    pattern = get.config.get("hybrid_override_pattern")
    if isinstance(pattern, str) and set(pattern) <= set(letters):
        kinds = [letters[letter] for letter in pattern]
    else:
        words = get.words("layers_block_type", (*parts, "mamba", "attention"))
        kinds = [{"mamba": LINEAR, "attention": FULL}.get(word, word) for word in words or []]
    if not kinds:
        problem = f"must say of each layer what it is: {', '.join(letters)}"
        raise InputError(problem, file=get.file, key="hybrid_override_pattern", value=pattern)
    limit = get.integer("max_position_embeddings")
    per_layer = [parts[kind]() for kind in kinds]
    return get.model(hidden, per_layer, max_context=limit, tied=get.flag("tie_word_embeddings"))


def _squared_relu_experts(get: Reader) -> Experts:
    experts, width = get.integer("n_routed_experts"), get.integer("moe_intermediate_size")
    shared = (get.optional("moe_shared_expert_intermediate_size") or width) * get.count("n_shared_experts")
    latent = get.optional("moe_latent_size") or 0
    top_k = get.top_k("num_experts_per_tok", experts)
    return Experts(experts, top_k, width, shared=shared, gated=False, latent=latent)


def granite_hybrid(get: Reader) -> Model:
    """Granite 4: Mamba-2 or attention, each with experts and a shared feed-forward that every token passes."""
    get = get.assuming(
        max_position_embeddings=2048, num_key_value_heads=None, attention_bias=False, num_local_experts=8,
        num_experts_per_tok=2, shared_intermediate_size=1024, mamba_n_heads=128, mamba_d_head="auto", mamba_n_groups=1,
        mamba_d_state=256, mamba_d_conv=4, mamba_expand=2, mamba_conv_bias=True, mamba_proj_bias=False,
        tie_word_embeddings=False,
    )  # fmt: skip
    hidden, layers, heads = (get.integer(k) for k in ("hidden_size", "num_hidden_layers", "num_attention_heads"))
    bias = get.flag("attention_bias")
    dim = get.divided(hidden, "num_attention_heads", heads)
    attention = Attention(heads, get.kv_heads("num_key_value_heads", heads, heads), dim, bias, bias)
    mamba_heads = get.integer("mamba_n_heads")
    auto = get.config.get("mamba_d_head", "auto") == "auto"
    inner = get.integer("mamba_expand") * hidden
    head_dim = get.divided(inner, "mamba_n_heads", mamba_heads) if auto else get.integer("mamba_d_head")
    keys = ("mamba_n_heads", "mamba_n_groups", "mamba_d_state", "mamba_d_conv")
    mixer = _mamba2(get, keys, head_dim, "mamba_conv_bias", "mamba_proj_bias")
    experts, shared = get.count("num_local_experts"), get.integer("shared_intermediate_size")
    ffn: Experts | Mlp = Mlp(shared)
    if experts:
        width = get.integer("intermediate_size")
        ffn = Experts(experts, get.top_k("num_experts_per_tok", experts), width, shared=shared)
    known = (LINEAR, FULL, "mamba", "attention")
    kinds = (
        get.words("layer_types", known, layers) or get.words("layers_block_type", known, layers) or [LINEAR] * layers
    )
    blocks = {True: Block("attention", attention, ffn), False: Block("mamba2", mixer, ffn)}
    per_layer = [blocks[kind in (FULL, "attention")] for kind in kinds]
    limit = get.integer("max_position_embeddings")
    return get.model(hidden, per_layer, max_context=limit, tied=get.flag("tie_word_embeddings"))


def qwen_next(get: Reader) -> Model:
    """Qwen3-Next and Qwen3.5: three gated delta-rule layers (arXiv 2412.06464), then a gated attention."""
    get = get.assuming(
        max_position_embeddings=32768, head_dim=256, num_key_value_heads=2, linear_conv_kernel_dim=4,
        linear_key_head_dim=128, linear_value_head_dim=128, linear_num_key_heads=16, linear_num_value_heads=32,
        decoder_sparse_step=1, moe_intermediate_size=512, shared_expert_intermediate_size=512, num_experts_per_tok=10,
        num_experts=512, full_attention_interval=4, tie_word_embeddings=False, attention_bias=False,
        mamba_ssm_dtype="float32",
    )  # fmt: skip
    hidden, layers, heads = (get.integer(k) for k in ("hidden_size", "num_hidden_layers", "num_attention_heads"))
    bias, kv_heads = get.flag("attention_bias"), get.kv_heads("num_key_value_heads", heads, heads)
    attention = Attention(heads, kv_heads, get.integer("head_dim"), bias, bias, qk_norm=True, gated=True)
    key_heads, value_heads = get.integer("linear_num_key_heads"), get.integer("linear_num_value_heads")
    key_dim, value_dim = get.integer("linear_key_head_dim"), get.integer("linear_value_head_dim")
    keys, values = key_heads * key_dim, value_heads * value_dim
    mixer = Recurrent(
        "gated-delta",
        key_heads,
        inputs=2 * keys + 2 * values + 2 * value_heads,  # q, k, v, z; step size and decay of each head
        inner=values,
        state=value_heads * key_dim * value_dim,
        conv_channels=2 * keys + values,
        conv_width=get.integer("linear_conv_kernel_dim"),
        small=2 * value_heads + value_dim,  # step bias, decay; gated norm
    )
    dense = get.family == "qwen3_5_text"
    ffn: Mlp | Experts
    if dense:
        ffn = Mlp(get.integer("intermediate_size"))
    else:
        experts = get.integer("num_experts")
        ffn = Experts(
            experts,
            get.top_k("num_experts_per_tok", experts),
            get.integer("moe_intermediate_size"),
            shared=get.integer("shared_expert_intermediate_size"),
            shared_switch=True,
        )
    every = get.integer("full_attention_interval")
    default = [FULL if (i + 1) % every == 0 else LINEAR for i in range(layers)]
    kinds = get.words("layer_types", (LINEAR, FULL), layers) or default
    kind_of = {FULL: Block("attention", attention, ffn), LINEAR: Block("gated-delta", mixer, ffn)}
    limit = get.integer("max_position_embeddings")
    per_layer = [kind_of[kind] for kind in kinds]
    return get.model(hidden, per_layer, max_context=limit, tied=get.flag("tie_word_embeddings"))


def minimax(get: Reader) -> Model:
    """MiniMax-Text-01: seven lightning-attention layers (arXiv 2501.08313), then an attention; all with experts."""
    get = get.assuming(
        max_position_embeddings=131072, num_key_value_heads=8, head_dim=None, num_local_experts=8,
        num_experts_per_tok=2, tie_word_embeddings=False,
    )  # fmt: skip
    hidden, layers, heads = (get.integer(k) for k in ("hidden_size", "num_hidden_layers", "num_attention_heads"))
    dim = get.optional("head_dim") or get.divided(hidden, "num_attention_heads", heads)
    attention = Attention(heads, get.kv_heads("num_key_value_heads", heads, heads), dim)
    inner = heads * dim
    mixer = Recurrent("lightning", heads, inputs=4 * inner, inner=inner, state=heads * dim * dim, small=inner)
    experts = get.integer("num_local_experts")
    ffn = Experts(experts, get.top_k("num_experts_per_tok", experts), get.integer("intermediate_size"))
    stated = get.config.get("attn_type_list")
    if isinstance(stated, list) and len(stated) == layers and all(v in (0, 1) for v in stated):
        kinds = [FULL if v else LINEAR for v in stated]
    else:
        default = [FULL if i % 2 == 0 else LINEAR for i in range(layers)]
        kinds = get.words("layer_types", (LINEAR, FULL), layers) or default
    kind_of = {FULL: Block("attention", attention, ffn), LINEAR: Block("lightning", mixer, ffn)}
    limit = get.integer("max_position_embeddings")
    per_layer = [kind_of[kind] for kind in kinds]
    return get.model(hidden, per_layer, max_context=limit, tied=get.flag("tie_word_embeddings"))


def recurrent_gemma(get: Reader) -> Model:
    """RecurrentGemma (Griffin): two gated linear recurrences, then a local attention."""
    get = get.assuming(
        num_key_value_heads=None, attention_window_size=2048, conv1d_width=4, lru_width=None, attention_bias=False,
        tie_word_embeddings=True, head_dim=None,
    )  # fmt: skip
    hidden, layers, heads = (get.integer(k) for k in ("hidden_size", "num_hidden_layers", "num_attention_heads"))
    inner = get.optional("lru_width") or hidden
    dim = get.optional("head_dim") or get.divided(hidden, "num_attention_heads", heads)
    kv_heads = get.kv_heads("num_key_value_heads", heads, heads)
    window, bias = get.integer("attention_window_size"), get.flag("attention_bias")
    attention = Attention(heads, kv_heads, dim, bias, out_bias=True, window=window)
    block = get.divided(inner, "num_attention_heads", heads)
    mixer = Recurrent(
        "rg-lru",
        heads,
        inputs=2 * inner,
        inner=inner,
        state=inner,
        conv_channels=inner,
        conv_width=get.integer("conv1d_width"),
        narrow=((heads * block, block), (heads * block, block)),  # two gates, block-diagonal by head
        small=4 * inner,  # decay, the biases of both gates and of the convolution
        in_bias=True,
        out_bias=True,
    )
    ffn = Mlp(get.integer("intermediate_size") // 2, bias=True)
    known = ("recurrent", "attention")
    cycle = get.words("block_types", known) or get.words("_block_types", known) or ["recurrent"] * 2 + ["attention"]
    kind_of = {"attention": Block("attention-window", attention, ffn), "recurrent": Block("rg-lru", mixer, ffn)}
    per_layer = [kind_of[cycle[i % len(cycle)]] for i in range(layers)]
    return get.model(hidden, per_layer, max_context=8192, tied=get.flag("tie_word_embeddings"))


def lfm2(get: Reader) -> Model:
    """LFM2: short gated convolutions, with an attention here and there."""
    get = get.assuming(
        max_position_embeddings=128000, num_key_value_heads=8, conv_bias=False, conv_L_cache=3, block_multiple_of=256,
        block_ffn_dim_multiplier=1.0, block_auto_adjust_ff_dim=True, tie_word_embeddings=True,
    )  # fmt: skip
    hidden, layers, heads = (get.integer(k) for k in ("hidden_size", "num_hidden_layers", "num_attention_heads"))
    dim = get.divided(hidden, "num_attention_heads", heads)
    attention = Attention(heads, get.kv_heads("num_key_value_heads", heads, heads), dim, qk_norm=True)
    bias = get.flag("conv_bias")
    mixer = Recurrent(
        "short-convolution",
        heads,
        inputs=3 * hidden,
        inner=hidden,
        state=0,
        conv_channels=hidden,
        conv_width=get.integer("conv_L_cache"),
        small=hidden if bias else 0,
        in_bias=bias,
        out_bias=bias,
    )
    width = (
        get.first("block_ff_dim", "intermediate_size") if get.has("block_ff_dim") else get.integer("intermediate_size")
    )
    if get.flag("block_auto_adjust_ff_dim"):
        multiplier = get.number("block_ffn_dim_multiplier", 1.0, 1000)
        multiple = get.integer("block_multiple_of")
        width = int(multiplier * int(2 * width / 3))
        width = multiple * -(-width // multiple)
    attends = set(get.layer_list("full_attn_idxs", layers))
    if not get.has("full_attn_idxs"):
        kinds = get.words("layer_types", (FULL, "conv", LINEAR), layers) or [FULL] * layers
        attends = {i for i, kind in enumerate(kinds) if kind == FULL}
    ffn = Mlp(width)
    per_layer = [
        Block("attention", attention, ffn) if i in attends else Block("convolution", mixer, ffn) for i in range(layers)
    ]
    limit = get.integer("max_position_embeddings")
    return get.model(hidden, per_layer, max_context=limit, tied=get.flag("tie_word_embeddings"))


def kimi_linear(get: Reader) -> Model:
    """Kimi Linear (arXiv 2510.26692): three Kimi-delta layers, then a latent attention; experts but in the first."""
    get = get.assuming(
        model_max_length=1048576, q_lora_rank=None, num_shared_experts=1, first_k_dense_replace=1,
        tie_word_embeddings=False,
    )  # fmt: skip
    hidden, layers, heads = (get.integer(k) for k in ("hidden_size", "num_hidden_layers", "num_attention_heads"))
    attention = LatentAttention(
        heads,
        get.optional("q_lora_rank"),
        latent=get.integer("kv_lora_rank"),
        rope=get.integer("qk_rope_head_dim"),
        nope=get.integer("qk_nope_head_dim"),
        value=get.integer("v_head_dim"),
    )
    linear = get.section("linear_attn_config")
    dim, width = linear.integer("head_dim"), linear.integer("short_conv_kernel_size")
    delta_heads = linear.integer("num_heads")
    inner = delta_heads * dim
    mixer = Recurrent(
        "kimi-delta",
        delta_heads,
        inputs=3 * inner + 2 * dim + delta_heads,  # q, k, v; the bottlenecks of decay and gate; step size
        inner=inner,
        state=delta_heads * dim * dim,
        conv_channels=3 * inner,
        conv_width=width,
        narrow=((inner, dim), (inner, dim)),
        small=inner + delta_heads + dim,  # step bias, decay, gated norm
    )
    experts, ffn_width = get.integer("num_experts"), get.integer("moe_intermediate_size")
    top_k = get.top_k("num_experts_per_token", experts)
    sparse = Experts(experts, top_k, ffn_width, shared=get.count("num_shared_experts") * ffn_width)
    dense, first = Mlp(get.integer("intermediate_size")), get.count("first_k_dense_replace")
    full = {i - 1 for i in linear.layer_list("full_attn_layers", layers, first=1)}
    per_layer = [
        Block(
            f"{'latent' if i in full else 'kimi-delta'}-{'dense' if i < first else 'moe'}",
            attention if i in full else mixer,
            dense if i < first else sparse,
        )
        for i in range(layers)
    ]
    limit = get.integer("model_max_length")
    return get.model(hidden, per_layer, max_context=limit, tied=get.flag("tie_word_embeddings"))


_READERS = {
    "mamba": mamba,
    "falcon_mamba": mamba,
    "mamba2": mamba2,
    "jamba": jamba,
    "nemotron_h": nemotron_h,
    "granitemoehybrid": granite_hybrid,
    "qwen3_next": qwen_next,
    "qwen3_5_text": qwen_next,
    "qwen3_5_moe_text": qwen_next,
    "minimax": minimax,
    "recurrent_gemma": recurrent_gemma,
    "lfm2": lfm2,
    "kimi_linear": kimi_linear,
}
