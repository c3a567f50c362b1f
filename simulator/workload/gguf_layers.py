"""One layer of a GGUF file as a block: its attention, recurrence and feed-forward by the tensors it has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from ...errors import InputError
from .layers import Attention, Block, Experts, LatentAttention, Mixer, Mlp, Norms, Recurrent, Role

if TYPE_CHECKING:
    from .gguf import GgufTensor
    from .gguf_model import Meta

ROLES = {
    "attn_q": Role.Q,
    "attn_k": Role.K,
    "attn_v": Role.V,
    "attn_output": Role.O,
    "attn_q_norm": Role.Q_NORM,
    "attn_k_norm": Role.K_NORM,
    "attn_sinks": Role.SINKS,
    "attn_q_a": Role.Q_A,
    "attn_q_a_norm": Role.Q_A_NORM,
    "attn_q_b": Role.Q_B,
    "attn_kv_a_mqa": Role.KV_A,
    "attn_kv_a_norm": Role.KV_A_NORM,
    "attn_kv_b": Role.KV_B,
    "attn_k_b": Role.KV_B,
    "attn_v_b": Role.KV_B,
    "attn_norm": Role.ATTENTION_NORM,
    "attn_norm_2": Role.FFN_NORM,
    "ffn_norm": Role.FFN_NORM,
    "post_ffw_norm": Role.FFN_NORM,
    "ffn_gate": Role.GATE,
    "ffn_up": Role.UP,
    "ffn_down": Role.DOWN,
    "ffn_gate_inp": Role.ROUTER,
    "ffn_gate_exps": Role.GATE,
    "ffn_up_exps": Role.UP,
    "ffn_down_exps": Role.DOWN,
    "ffn_gate_shexp": Role.SHARED_GATE,
    "ffn_up_shexp": Role.SHARED_UP,
    "ffn_down_shexp": Role.SHARED_DOWN,
    "ffn_gate_inp_shexp": Role.SHARED_SWITCH,
    "exp_probs_b": Role.SMALL,
    "ssm_in": Role.MIX_IN,
    "ssm_ba": Role.MIX_IN,
    "ssm_alpha": Role.MIX_IN,
    "ssm_beta": Role.MIX_IN,
    "attn_gate": Role.MIX_IN,
    "ssm_x": Role.MIX_NARROW,
    "ssm_out": Role.MIX_OUT,
    "ssm_a": Role.SMALL,
    "ssm_d": Role.SMALL,
    "ssm_norm": Role.SMALL,
    "ssm_dt_norm": Role.SMALL,
    "ssm_b_norm": Role.SMALL,
    "ssm_c_norm": Role.SMALL,
    "shortconv.in_proj": Role.MIX_IN,
    "shortconv.conv": Role.MIX_CONV,
    "shortconv.out_proj": Role.MIX_OUT,
}
SMALL_OF_MIXER = frozenset(
    {
        "ssm_a",
        "ssm_d",
        "ssm_norm.weight",
        "ssm_conv1d.bias",
        "ssm_dt.bias",
        "ssm_dt",
        "ssm_dt_norm.weight",
        "ssm_b_norm.weight",
        "ssm_c_norm.weight",
    }
)
BESIDE_EXPERTS = {Role.GATE: Role.SHARED_GATE, Role.UP: Role.SHARED_UP, Role.DOWN: Role.SHARED_DOWN}


class Layer(NamedTuple):
    """The tensors of one layer by their names within it, and what metadata says of it."""

    meta: Meta
    number: int
    tensors: Mapping[str, GgufTensor]
    hidden: int
    heads: int
    kv_heads: int
    window: int | None
    borrows: bool

    def has(self, stem: str) -> bool:
        """Whether the layer has that weight."""
        return f"{stem}.weight" in self.tensors

    def has_bias(self, *stems: str) -> bool:
        """Whether any of those has a bias."""
        return any(f"{stem}.bias" in self.tensors for stem in stems)

    def inputs(self, stem: str) -> int:
        """Columns of a weight: the dimension ggml stores first."""
        return self.tensors[f"{stem}.weight"].shape[0]

    def outputs(self, stem: str) -> int:
        """Rows of a weight, of each expert where there are several; 0 where there is no such matrix."""
        tensor = self.tensors.get(f"{stem}.weight")
        return tensor.shape[1] if tensor is not None and len(tensor.shape) >= 2 else 0

    def elements(self, *names: str) -> int:
        """Elements of all the layer's tensors of these full names."""
        return sum(t.elements for name, t in self.tensors.items() if name in names)

    def refuse(self, problem: str, stem: str, value: object = None) -> InputError:
        """The error to raise about a tensor of this layer."""
        return InputError(problem, file=self.meta.file, key=f"blk.{self.number}.{stem}", value=value)

    @property
    def is_delta(self) -> bool:
        """Whether a gated delta rule mixes its tokens: step size and decay stand beside fused projections."""
        return self.has("ssm_ba") or self.has("ssm_beta")

    @property
    def fused_gate(self) -> bool:
        """Whether ffn_up holds the gate as well."""
        width = self.inputs("ffn_down") if self.has("ffn_down") else 0
        return not self.has("ffn_gate") and width > 0 and self.outputs("ffn_up") == 2 * width

    @property
    def routes(self) -> bool:
        """Whether its tokens go to experts."""
        return self.has("ffn_down_exps")

    def roles_of(self, name: str) -> tuple[tuple[Role, float], ...]:
        """The roles a tensor of the layer has, with the share of its bytes each takes."""
        stem = name.removesuffix(".weight").removesuffix(".bias")
        if stem == "attn_qkv":
            if self.is_delta:
                return ((Role.MIX_IN, 1.0),)
            rows = self.heads + 2 * self.kv_heads
            return ((Role.Q, self.heads / rows), (Role.K, self.kv_heads / rows), (Role.V, self.kv_heads / rows))
        if stem == "ffn_gate_up_exps":
            return ((Role.GATE, 0.5), (Role.UP, 0.5))
        if stem == "ffn_up" and self.fused_gate:
            halves = ((Role.GATE, 0.5), (Role.UP, 0.5))
            return tuple((BESIDE_EXPERTS[r], s) for r, s in halves) if self.routes else halves
        if stem in ("ssm_conv1d", "ssm_dt"):
            narrow = Role.MIX_CONV if stem == "ssm_conv1d" else Role.MIX_NARROW
            return ((narrow if name.endswith(".weight") else Role.SMALL, 1.0),)
        if stem == "post_attention_norm":
            return ((Role.FFN_NORM if self.norms_feed_forward_late else Role.ATTENTION_NORM, 1.0),)
        role = ROLES.get(stem, Role.EXTRA)
        if self.routes and stem in ("ffn_gate", "ffn_up", "ffn_down"):
            role = BESIDE_EXPERTS[role]
        return ((role, 1.0),)

    @property
    def norms_feed_forward_late(self) -> bool:
        """Whether `post_attention_norm` is in truth the feed-forward's norm, which has no other (gpt-oss, GLM-4.5)."""
        return self.has("attn_norm") and not self.has("ffn_norm") and self.has("post_attention_norm")


def block_of(layer: Layer) -> Block:
    """The block a layer is."""
    mixer, ffn = _mixer(layer), _feedforward(layer)
    if mixer is None and ffn is None:
        raise layer.refuse("neither attention nor a feed-forward that is known", "*")
    of_mixer = ["attn_norm"] if layer.has("attn_norm") else []
    of_ffn = [name for name in ("ffn_norm", "attn_norm_2", "post_ffw_norm") if layer.has(name)]
    if layer.has("post_attention_norm"):
        (of_ffn if layer.norms_feed_forward_late else of_mixer).append("post_attention_norm")
    vectors = 2 if layer.has_bias("attn_norm", "ffn_norm") else 1 if of_mixer or of_ffn else 0
    both = mixer is not None and ffn is not None
    stated = layer.meta.raw("use_parallel_residual") is True
    parallel = both and (stated or layer.has("attn_norm_2") or (bool(of_mixer) and not of_ffn))
    correction = layer.elements("exp_probs_b.bias", "exp_probs_b")
    norms = Norms(len(of_mixer), len(of_ffn), vectors)
    if not vectors:  # OLMo norms without parameters
        norms = Norms(int(mixer is not None), int(ffn is not None), 0)
    return Block(_name(mixer, ffn), mixer, ffn, norms, parallel, small=correction)


def _name(mixer: Mixer | None, ffn: Mlp | Experts | None) -> str:
    """What a reader calls such a layer: by its feed-forward, by what mixes its tokens where that is not attention."""
    kind = {Mlp: "dense", Experts: "moe"}.get(type(ffn), "") if ffn is not None else ""
    match mixer:
        case Recurrent():
            return f"{mixer.kind}-{kind}" if kind else mixer.kind
        case Attention() if mixer.window is not None:
            return f"{kind or 'attention'}-window"
    return kind or "attention"


def _mixer(layer: Layer) -> Mixer | None:
    recurrent = layer.has("ssm_conv1d") or layer.has("shortconv.conv")
    attends = any(layer.has(stem) for stem in ("attn_q", "attn_qkv", "attn_kv_a_mqa"))
    if recurrent and attends and not layer.is_delta:
        raise layer.refuse("attention and a recurrence in one layer are not modelled", "ssm_conv1d.weight")
    if recurrent:
        return _recurrent(layer)
    if layer.has("attn_kv_a_mqa"):
        return _latent(layer)
    return _attention(layer) if attends else None


def _attention(layer: Layer) -> Attention:
    heads, kv_heads, meta = layer.heads, layer.kv_heads, layer.meta
    if heads < 1 or kv_heads < 1 or heads % kv_heads:
        key = meta.key("attention.head_count_kv")
        raise InputError(f"not a divisor of the {heads} heads", file=meta.file, key=key, value=kv_heads)
    key_rows, fused_rows = layer.outputs("attn_k"), layer.outputs("attn_qkv")
    if key_rows and key_rows % kv_heads == 0:
        dim = key_rows // kv_heads
    elif fused_rows and fused_rows % (heads + 2 * kv_heads) == 0:
        dim = fused_rows // (heads + 2 * kv_heads)
    else:
        dim = meta.integer("attention.key_length", max(1, layer.hidden // heads), limit=65536)
    norm = layer.tensors.get("attn_q_norm.weight")
    fused = layer.has("attn_qkv")
    return Attention(
        heads,
        kv_heads,
        dim,
        qkv_bias=layer.has_bias("attn_q", "attn_qkv"),
        out_bias=layer.has_bias("attn_output"),
        qk_norm=norm is not None,
        window=layer.window,
        whole_norm=norm is not None and norm.elements > dim,
        sinks=layer.has("attn_sinks"),
        gated=layer.outputs("attn_q") == 2 * heads * dim,
        borrows=layer.borrows,
        no_value=not fused and layer.has("attn_k") and not layer.has("attn_v"),
    )


def _latent(layer: Layer) -> LatentAttention:
    """Latent attention, all its sizes from the shapes of its projections."""
    queries = "attn_q_b" if layer.has("attn_q_b") else "attn_q"
    norm = layer.tensors.get("attn_kv_a_norm.weight")
    latent = norm.elements if norm is not None else 0
    rope = layer.outputs("attn_kv_a_mqa") - latent
    heads = layer.heads
    query = layer.outputs(queries) // heads if heads and layer.outputs(queries) % heads == 0 else 0
    value = layer.inputs("attn_output") // heads if heads and layer.has("attn_output") else 0
    if min(latent, rope, query - rope, value) < 1:
        raise layer.refuse("the sizes of latent attention do not add up", "attn_kv_a_mqa.weight")
    return LatentAttention(
        heads,
        query_latent=layer.inputs("attn_q_b") if queries == "attn_q_b" else None,
        latent=latent,
        rope=rope,
        nope=query - rope,
        value=value,
        bias=layer.has_bias("attn_kv_a_mqa"),
    )


def _recurrent(layer: Layer) -> Recurrent:
    """State-space layers, the gated delta rule and short convolutions."""
    if layer.has("shortconv.conv"):
        width, channels = layer.inputs("shortconv.conv"), layer.outputs("shortconv.conv")
        inputs, inner = layer.outputs("shortconv.in_proj"), layer.hidden
        return Recurrent("short-convolution", max(1, layer.heads), inputs, inner, 0, channels, width)
    width, channels = layer.inputs("ssm_conv1d"), layer.outputs("ssm_conv1d")
    if not (layer.has("ssm_out") and channels):
        raise layer.refuse("a recurrence without output or convolution", "ssm_out.weight")
    inner, small = layer.inputs("ssm_out"), layer.elements(*SMALL_OF_MIXER)
    projections = ("ssm_in", "ssm_ba", "ssm_alpha", "ssm_beta", *(("attn_qkv", "attn_gate") if layer.is_delta else ()))
    inputs = sum(layer.outputs(stem) for stem in projections)
    if layer.has("ssm_x"):
        state = layer.elements("ssm_a")
        narrow = tuple((layer.outputs(s), layer.inputs(s)) for s in ("ssm_x", "ssm_dt") if layer.outputs(s))
        return Recurrent("mamba", inner, inputs, inner, state, channels, width, narrow, small)
    size, heads = layer.meta.integer("ssm.state_size"), layer.meta.integer("ssm.time_step_rank")
    if layer.is_delta:
        keys = layer.meta.integer("ssm.group_count")
        return Recurrent("gated-delta", keys, inputs, inner, inner * size, channels, width, (), small)
    return Recurrent("mamba2", heads, inputs, inner, inner * size, channels, width, (), small)


def _feedforward(layer: Layer) -> Mlp | Experts | None:
    if not layer.routes and layer.meta.has("expert_count") and layer.has("ffn_gate.0"):
        remedy = "convert it with a current llama.cpp, which stores the experts of a layer as one tensor"
        key = layer.meta.key("expert_count")
        raise InputError("experts without ffn_gate_exps", file=layer.meta.file, key=key, remedy=remedy)
    dense = layer.inputs("ffn_down") if layer.has("ffn_down") else 0
    gated = layer.has("ffn_gate") or layer.fused_gate
    if not layer.routes:
        return Mlp(dense, layer.has_bias("ffn_up", "ffn_down"), gated) if dense else None
    down = layer.tensors["ffn_down_exps.weight"]
    meta = layer.meta
    count, top_k = meta.integer("expert_count", limit=65536), meta.integer("expert_used_count", limit=65536)
    if top_k > count or len(down.shape) != 3:
        key = meta.key("expert_used_count")
        raise InputError("experts used exceed experts stored", file=meta.file, key=key, value=top_k)
    if down.shape[2] != count:
        problem = f"the file stores {down.shape[2]} experts a layer"
        raise InputError(problem, file=meta.file, key=meta.key("expert_count"), value=count)
    return Experts(
        count,
        top_k,
        down.shape[0],
        shared=(layer.inputs("ffn_down_shexp") if layer.has("ffn_down_shexp") else 0) + dense,
        bias=layer.has_bias("ffn_up_exps", "ffn_gate_up_exps"),
        gated=layer.has("ffn_gate_exps") or layer.has("ffn_gate_up_exps"),
        shared_switch=layer.has("ffn_gate_inp_shexp"),
    )
