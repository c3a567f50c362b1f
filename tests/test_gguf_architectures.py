"""GGUF files of many architectures: written under llama.cpp's names, read back, and held to the model of the config.

The model of a config.json is held to `transformers` elsewhere; here two descriptions of one model must meet.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
import pytest

from roofplan.errors import InputError
from roofplan.simulator.workload import zoo
from roofplan.simulator.workload.gguf import read_gguf
from roofplan.simulator.workload.gguf_model import ARCHITECTURES
from roofplan.simulator.workload.hf import parse_config
from roofplan.simulator.workload.layers import Attention, Block, Experts, LatentAttention, Mlp, Recurrent
from roofplan.simulator.workload.model import Model, Role

H, FFN, WIDE, VOCAB, LAYERS = 256, 384, 128, 320, 8
Shapes = dict[str, tuple[int, ...]]


class Style(NamedTuple):
    """How an architecture spells what a model has: names of its norms, and what it fuses."""

    mixer_norms: tuple[str, ...] = ("attn_norm",)
    ffn_norms: tuple[str, ...] = ("ffn_norm",)
    fused_qkv: bool = False
    fused_up: bool = False
    final_norm: str = "output_norm"
    split_kv_b: bool = False


SANDWICH = Style(("attn_norm", "post_attention_norm"), ("ffn_norm", "post_ffw_norm"))
LATE = Style(ffn_norms=("post_attention_norm",))


def base(**more: Any) -> dict[str, Any]:
    """A config.json in small with the fields most families share."""
    usual = {
        "hidden_size": H, "num_hidden_layers": LAYERS, "num_attention_heads": 8, "num_key_value_heads": 2,
        "intermediate_size": FFN, "vocab_size": VOCAB, "max_position_embeddings": 4096,
    }  # fmt: skip
    return usual | more


def gpt(**more: Any) -> dict[str, Any]:
    return {"n_embd": H, "n_layer": LAYERS, "n_head": 8, "n_positions": 512, "vocab_size": VOCAB} | more


EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": WIDE}
ROUTED = {"n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": WIDE, "n_shared_experts": 1}
LATENT = {"kv_lora_rank": 64, "qk_rope_head_dim": 16, "qk_nope_head_dim": 32, "v_head_dim": 48}
MAMBA = {"mamba_d_state": 16, "mamba_d_conv": 4, "mamba_expand": 2}
DELTA = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 32, "linear_value_head_dim": 32,
    "full_attention_interval": 4, "shared_expert_intermediate_size": WIDE, "head_dim": 32,
}  # fmt: skip

# architecture: (family, config, style, further metadata)
CASES: dict[str, tuple[str, dict[str, Any], Style, dict[str, Any]]] = {
    "llama": ("llama", base(attention_bias=True, mlp_bias=True), Style(), {}),
    "llama4": (
        "llama4_text",
        base(head_dim=32, num_local_experts=8, intermediate_size_mlp=FFN, interleave_moe_layer_step=2),
        Style(),
        {},
    ),
    "qwen2moe": ("qwen2_moe", base(**EXPERTS, shared_expert_intermediate_size=192), Style(), {}),
    "gemma": ("gemma", base(head_dim=64), Style(), {}),
    "gemma2": ("gemma2", base(head_dim=64, sliding_window=128), SANDWICH, {"attention.sliding_window": 128}),
    "gemma3": ("gemma3_text", base(head_dim=64, sliding_window=64), SANDWICH, {"attention.sliding_window": 64}),
    "phi2": ("phi", base(num_key_value_heads=None), Style(ffn_norms=()), {}),
    "phi3": ("phi3", base(), Style(fused_qkv=True, fused_up=True), {}),
    "phimoe": ("phimoe", base(num_local_experts=8, num_experts_per_tok=2, lm_head_bias=True), Style(), {}),
    "deepseek2": ("deepseek_v2", base(**LATENT, **ROUTED, q_lora_rank=96, first_k_dense_replace=2), Style(), {}),
    "chatglm": ("glm", base(head_dim=32), Style(fused_qkv=True, fused_up=True), {}),
    "glm4": ("glm4", base(head_dim=32), SANDWICH._replace(fused_up=True), {}),
    "glm4moe": (
        "glm4_moe",
        base(**ROUTED, first_k_dense_replace=1, attention_bias=True, use_qk_norm=True),
        LATE,
        {"nextn_predict_layers": 0},
    ),
    "gpt-oss": (
        "gpt_oss",
        base(head_dim=32, num_local_experts=8, num_experts_per_tok=2, sliding_window=128),
        LATE,
        {"attention.sliding_window": 128},
    ),
    "starcoder": ("gpt_bigcode", gpt(), Style(fused_qkv=True), {}),
    "starcoder2": ("starcoder2", base(use_bias=True), Style(), {}),
    "falcon": (
        "falcon",
        base(new_decoder_architecture=True, bias=False, num_kv_heads=2, ffn_hidden_size=4 * H),
        Style(fused_qkv=True, ffn_norms=("attn_norm_2",)),
        {},
    ),
    "gpt2": ("gpt2", gpt(), Style(fused_qkv=True), {}),
    "gptj": ("gptj", gpt(), Style(ffn_norms=()), {}),
    "gptneox": ("gpt_neox", base(), Style(fused_qkv=True), {"use_parallel_residual": True}),
    "bloom": (
        "bloom",
        {"hidden_size": H, "n_layer": LAYERS, "n_head": 8, "vocab_size": VOCAB},
        Style(fused_qkv=True),
        {},
    ),
    "mpt": ("mpt", {"d_model": H, "n_layers": LAYERS, "n_heads": 8, "vocab_size": VOCAB}, Style(fused_qkv=True), {}),
    "stablelm": ("stablelm", base(use_qkv_bias=True), Style(), {}),
    "command-r": ("cohere", base(use_qk_norm=True), Style(ffn_norms=()), {}),
    "cohere2": ("cohere2", base(sliding_window=128), Style(ffn_norms=()), {"attention.sliding_window": 128}),
    "olmo": ("olmo", base(), Style((), ()), {}),
    "olmo2": ("olmo2", base(), Style(("post_attention_norm",), ("post_ffw_norm",)), {}),
    "olmoe": ("olmoe", base(num_experts=8, num_experts_per_tok=2), Style(), {}),
    "granite": ("granite", base(), Style(), {}),
    "granitemoe": ("granitemoe", base(num_local_experts=8, num_experts_per_tok=2), Style(), {}),
    "exaone4": (
        "exaone4",
        base(sliding_window=64),
        Style(("post_attention_norm",), ("post_ffw_norm",)),
        {"attention.sliding_window": 64},
    ),
    "minimax-m2": ("minimax_m2", base(head_dim=32, num_local_experts=8, num_experts_per_tok=2), Style(), {}),
    "seed_oss": ("seed_oss", base(head_dim=32), LATE, {}),
    "mamba": ("mamba", {"hidden_size": H, "num_hidden_layers": LAYERS, "vocab_size": VOCAB}, Style(), {}),
    "mamba2": (
        "mamba2",
        {"hidden_size": H, "num_hidden_layers": LAYERS, "vocab_size": VOCAB, "num_heads": 16, "head_dim": 32}
        | {"n_groups": 2, "state_size": 64},
        Style(),
        {"ssm.state_size": 64, "ssm.time_step_rank": 16},
    ),
    "jamba": ("jamba", base(**MAMBA, num_experts=8, mamba_dt_rank=16), Style(), {}),
    "nemotron_h": (
        "nemotron_h",
        base(
            hybrid_override_pattern="M-M*-MM-", ssm_state_size=64, mamba_num_heads=16, mamba_head_dim=32, n_groups=2,
            head_dim=32,
        ),
        Style(),
        {"ssm.state_size": 64, "ssm.time_step_rank": 16},
    ),
    "granitehybrid": (
        "granitemoehybrid",
        base(
            mamba_n_heads=16, mamba_d_head=32, mamba_d_state=64, num_local_experts=8, num_experts_per_tok=2,
            shared_intermediate_size=192, layers_block_type=["mamba", "mamba", "attention", "mamba"] * 2,
        ),
        Style(),
        {"ssm.state_size": 64, "ssm.time_step_rank": 16},
    ),
    "qwen3next": (
        "qwen3_next",
        base(**EXPERTS, **DELTA),
        LATE,
        {"ssm.state_size": 32, "ssm.time_step_rank": 4, "ssm.group_count": 2},
    ),
    "lfm2": (
        "lfm2",
        base(full_attn_idxs=[2, 5], conv_L_cache=3, block_auto_adjust_ff_dim=False),
        Style(final_norm="token_embd_norm"),
        {},
    ),
}  # fmt: skip


def norm(name: str, size: int, vectors: int) -> Shapes:
    both = {f"{name}.weight": (size,), f"{name}.bias": (size,)}
    return dict(list(both.items())[:vectors])


def matrix(name: str, rows: int, cols: int, bias: bool = False) -> Shapes:
    return {f"{name}.weight": (rows, cols)} | ({f"{name}.bias": (rows,)} if bias else {})


def attention(a: Attention, style: Style) -> Shapes:
    q, kv, shapes = a.heads * a.head_dim, a.kv_heads * a.head_dim, Shapes()
    if style.fused_qkv:
        shapes |= matrix("attn_qkv", q + 2 * kv, H, a.qkv_bias)
    else:
        shapes |= matrix("attn_q", q * (2 if a.gated else 1), H, a.qkv_bias)
        shapes |= matrix("attn_k", kv, H, a.qkv_bias) | matrix("attn_v", kv, H, a.qkv_bias)
    if a.qk_norm:
        shapes |= {"attn_q_norm.weight": (q,) if a.whole_norm else (a.head_dim,)}
        shapes |= {"attn_k_norm.weight": (kv,) if a.whole_norm else (a.head_dim,)}
    if a.sinks:
        shapes |= {"attn_sinks.weight": (a.heads,)}
    return shapes | matrix("attn_output", H, q, a.out_bias)


def latent(a: LatentAttention, style: Style) -> Shapes:
    assert a.query_latent is not None
    query = a.heads * (a.nope + a.rope)
    shapes = matrix("attn_q_a", a.query_latent, H) | norm("attn_q_a_norm", a.query_latent, 1)
    shapes |= matrix("attn_q_b", query, a.query_latent)
    shapes |= matrix("attn_kv_a_mqa", a.latent + a.rope, H) | norm("attn_kv_a_norm", a.latent, 1)
    if style.split_kv_b:
        shapes |= {"attn_k_b.weight": (a.heads, a.latent, a.nope), "attn_v_b.weight": (a.heads, a.value, a.latent)}
    else:
        shapes |= matrix("attn_kv_b", a.heads * (a.nope + a.value), a.latent)
    return shapes | matrix("attn_output", H, a.heads * a.value)


def recurrence(r: Recurrent, model: Model) -> Shapes:
    if r.kind == "short-convolution":
        shapes = matrix("shortconv.in_proj", r.inputs, H) | matrix("shortconv.conv", r.conv_channels, r.conv_width)
        return shapes | matrix("shortconv.out_proj", H, r.inner)
    shapes = matrix("ssm_conv1d", r.conv_channels, r.conv_width) | matrix("ssm_out", H, r.inner)
    if r.kind == "gated-delta":
        values = 4
        shapes |= matrix("attn_qkv", r.conv_channels, H) | matrix("attn_gate", r.inner, H)
        shapes |= matrix("ssm_ba", 2 * values, H) | {"ssm_dt.bias": (values,), "ssm_a": (values,)}
        return shapes | norm("ssm_norm", r.inner // values, 1)
    shapes |= {"ssm_conv1d.bias": (r.conv_channels,)} | matrix("ssm_in", r.inputs, H)
    if r.kind == "mamba2":
        groups = 1 if model.family == "granitemoehybrid" else 2
        shapes |= {"ssm_a": (r.heads, 1), "ssm_d": (r.heads, 1), "ssm_dt.bias": (r.heads,)}
        return shapes | {"ssm_norm.weight": (groups, r.inner // groups)}
    (x_rows, inner), (_, rank) = r.narrow
    state = r.state // inner
    shapes |= matrix("ssm_x", x_rows, inner) | matrix("ssm_dt", inner, rank, True)
    if model.family == "jamba":
        shapes |= norm("ssm_dt_norm", rank, 1) | norm("ssm_b_norm", state, 1) | norm("ssm_c_norm", state, 1)
    return shapes | {"ssm_a": (inner, state), "ssm_d": (inner,)}


def feedforward(f: Mlp | Experts, style: Style) -> Shapes:
    if isinstance(f, Mlp):
        rows = f.intermediate
        if style.fused_up:
            return matrix("ffn_up", 2 * rows, H) | matrix("ffn_down", H, rows)
        gate = matrix("ffn_gate", rows, H, f.bias) if f.gated else {}
        return gate | matrix("ffn_up", rows, H, f.bias) | matrix("ffn_down", H, rows, f.bias)
    shapes = matrix("ffn_gate_inp", f.experts, H, f.bias)
    for name, rows, cols in (("gate", f.intermediate, H), ("up", f.intermediate, H), ("down", H, f.intermediate)):
        if name != "gate" or f.gated:
            shapes[f"ffn_{name}_exps.weight"] = (f.experts, rows, cols)
            shapes |= {f"ffn_{name}_exps.bias": (f.experts, rows)} if f.bias else {}
    if f.shared:
        shapes |= matrix("ffn_gate_shexp", f.shared, H) if f.gated else {}
        shapes |= matrix("ffn_up_shexp", f.shared, H) | matrix("ffn_down_shexp", H, f.shared)
    return shapes | ({"ffn_gate_inp_shexp.weight": (H,)} if f.shared_switch else {})


def layer(block: Block, model: Model, style: Style) -> Shapes:
    shapes = Shapes()
    names = style.mixer_norms if block.attention is not None else style.mixer_norms[:1]
    for name in names[: block.norms.mixer]:
        shapes |= norm(name, H, block.norms.vectors)
    for name in style.ffn_norms[: block.norms.ffn]:
        shapes |= norm(name, H, block.norms.vectors)
    match block.attention:
        case Attention():
            shapes |= attention(block.attention, style)
        case LatentAttention():
            shapes |= latent(block.attention, style)
        case Recurrent():
            shapes |= recurrence(block.attention, model)
    shapes |= feedforward(block.ffn, style) if block.ffn is not None else {}
    return shapes | ({"exp_probs_b.bias": (block.small,)} if block.small else {})


def shapes_of(model: Model, style: Style) -> Shapes:
    shapes: Shapes = {"token_embd.weight": (model.vocab, H)} | norm(style.final_norm, H, model.norm_vectors)
    shapes |= {} if model.tied else matrix("output", model.vocab, H, model.head_bias)
    shapes |= {"position_embd.weight": (model.positions, H)} if model.positions else {}
    shapes |= norm("token_embd_norm", H, model.embed_norm_vectors)
    for i, block in enumerate(model.pattern):
        shapes |= {f"blk.{i}.{name}": shape for name, shape in layer(model.blocks[block], model, style).items()}
    return shapes


def metadata(architecture: str, model: Model) -> Iterator[tuple[str, Any]]:
    """What the converter writes for every architecture; heads as a list where layers differ."""
    mixers = [model.blocks[i].attention for i in model.pattern]
    attends = [m for m in mixers if isinstance(m, Attention | LatentAttention)]
    heads = attends[0].heads if attends else 0
    listed = [m.kv_heads if isinstance(m, Attention) else 0 for m in mixers]
    yield "block_count", model.layers
    yield "context_length", model.max_context
    yield "embedding_length", H
    yield "attention.head_count", heads
    if attends and isinstance(attends[0], Attention):
        one = len(set(listed)) == 1 or architecture == "qwen3next"
        yield "attention.head_count_kv", attends[0].kv_heads if one else listed
    for block in model.blocks:
        if isinstance(block.ffn, Experts):
            yield "expert_count", block.ffn.experts
            yield "expert_used_count", block.ffn.top_k


def write(path: Path, architecture: str, model: Model, shapes: Shapes, more: dict[str, Any]) -> int:
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in (dict(metadata(architecture, model)) | more).items():
        name = f"{architecture}.{key}"
        if isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, list):
            writer.add_array(name, value)
        else:
            writer.add_uint32(name, value)
    total = 0
    for name, shape in shapes.items():
        kind = np.float32 if len(shape) == 1 or "ssm_a" in name else np.float16
        writer.add_tensor(name, np.zeros(shape, dtype=kind))
        total += math.prod(shape) * kind().itemsize
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return total


def nameless(blocks: tuple[Block, ...]) -> list[Block]:
    """Blocks without what readers may differ in: their names, and how a norm that is not there would be made."""
    plain = [block._replace(name="") for block in blocks]
    return [
        b._replace(attention=b.attention._replace(whole_norm=b.attention.whole_norm and b.attention.qk_norm))
        if isinstance(b.attention, Attention)
        else b
        for b in plain
    ]


def config_model(architecture: str) -> Model:
    family, config, _, _ = CASES[architecture]
    return parse_config(config | {"model_type": family}, name="small", file="config.json")


@pytest.mark.parametrize("architecture", CASES)
def test_a_file_reads_as_the_config_of_the_same_model(tmp_path: Path, architecture: str) -> None:
    expected, (_, _, style, more) = config_model(architecture), CASES[architecture]
    path, shapes = tmp_path / "m.gguf", shapes_of(expected, style)
    total = write(path, architecture, expected, shapes, more)
    model = read_gguf(path)
    assert nameless(model.blocks) == nameless(expected.blocks) and model.pattern == expected.pattern
    assert model.parameters == expected.parameters == sum(math.prod(shape) for shape in shapes.values())
    assert model.weight_bytes(model.native) == pytest.approx(total, rel=1e-12)
    assert model.stored.get((Role.EXTRA, None), 0.0) == 0.0, "every tensor has its place"
    outer = ("hidden", "vocab", "tied", "positions", "norm_vectors", "embed_norm_vectors", "head_bias", "generic")
    assert [getattr(model, key) for key in outer] == [getattr(expected, key) for key in outer]
    assert model.family == ARCHITECTURES[architecture]


@pytest.mark.parametrize("architecture", CASES)
def test_the_names_are_those_of_llama_cpp(architecture: str) -> None:
    """The tables of the `gguf` package, not ours, say which tensors an architecture has."""
    number = next(n for n, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    known = {gguf.TENSOR_NAMES[t].format(bid=0) for t in gguf.MODEL_TENSORS[number]}
    shapes = shapes_of(config_model(architecture), CASES[architecture][2])
    used = {
        name.removesuffix(".weight").removesuffix(".bias")
        for name in shapes
        if ".blk." not in f".{name}" or ".blk.0." in f".{name}"
    }
    assert used <= known


def test_split_latent_projections_and_layers_that_only_predict(tmp_path: Path) -> None:
    """Current converters store `kv_b` as two tensors; a prediction layer behind the last is loaded but not run."""
    expected = config_model("deepseek2")
    shapes = shapes_of(expected, Style(split_kv_b=True))
    extra = {f"blk.{LAYERS}.{name}": shape for name, shape in layer(expected.blocks[0], expected, Style()).items()}
    path = tmp_path / "m.gguf"
    more = {"block_count": LAYERS + 1, "nextn_predict_layers": 1}
    total = write(path, "deepseek2", expected, shapes | extra, more)
    model = read_gguf(path)
    assert nameless(model.blocks) == nameless(expected.blocks) and model.layers == LAYERS
    assert model.weight_bytes(model.native) == pytest.approx(total)
    assert model.stored[Role.EXTRA, None] > 0


def test_windows_the_file_lists_itself(tmp_path: Path) -> None:
    expected, path = config_model("granite"), tmp_path / "m.gguf"
    slides = [True, False, False, True, True, True, True, False]
    more = {"attention.sliding_window": 96, "attention.sliding_window_pattern": slides}
    write(path, "granite", expected, shapes_of(expected, Style()), more)
    model = read_gguf(path)
    windows = [model.blocks[i].attention.window for i in model.pattern]
    assert windows == [96 if s else None for s in slides]


def test_a_dense_feed_forward_beside_experts_is_passed_by_every_token(tmp_path: Path) -> None:
    expected, path = config_model("granitemoe"), tmp_path / "m.gguf"
    shapes = shapes_of(expected, Style())
    shapes |= {f"blk.{i}.{n}": s for i in range(LAYERS) for n, s in feedforward(Mlp(FFN), Style()).items()}
    total = write(path, "granitemoe", expected, shapes, {})
    model = read_gguf(path)
    assert model.blocks[0].ffn.shared == FFN and model.weight_bytes(model.native) == pytest.approx(total)
    assert model.parameters == sum(math.prod(shape) for shape in shapes.values())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"attention.causal": False}, "an encoder"),
        ({"attention.head_count_kv": [2] * (LAYERS - 1)}, "for each of 8 layers"),
        ({"attention.head_count_kv": [3] * (LAYERS - 1) + [2]}, "not a divisor"),
        ({"expert_count": 9}, "stores 8 experts"),
        ({"expert_used_count": 9}, "exceed"),
        ({"block_count": LAYERS + 2}, "neither attention nor"),
    ],
)
def test_what_does_not_add_up_is_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    expected, path = config_model("granitemoe"), tmp_path / "m.gguf"
    write(path, "granitemoe", expected, shapes_of(expected, Style()), change)
    with pytest.raises(InputError, match=words):
        read_gguf(path)


def test_attention_and_recurrence_in_one_layer_are_refused(tmp_path: Path) -> None:
    expected, path = config_model("mamba2"), tmp_path / "m.gguf"
    shapes = shapes_of(expected, Style())
    shapes |= {f"blk.0.{n}": s for n, s in attention(Attention(8, 2, 32), Style()).items()}
    write(
        path, "falcon-h1", expected, shapes, {"attention.head_count": 8, "ssm.state_size": 64, "ssm.time_step_rank": 16}
    )
    with pytest.raises(InputError, match="not modelled"):
        read_gguf(path)


def test_every_bundled_family_that_llama_cpp_knows_is_written_above() -> None:
    """A family we can read from a config and llama.cpp from a file must not be forgotten here."""
    covered = {family for family, *_ in CASES.values()} | {"mistral", "qwen2", "qwen3", "qwen3_moe"}
    bundled = {zoo.bundled(name).family for name in zoo.names()}
    known = set(ARCHITECTURES.values())
    assert bundled & known - covered <= {
        "deepseek", "ernie4_5", "ernie4_5_moe", "exaone", "nemotron", "qwen3_5_moe_text", "qwen3_5_text", "smollm3",
    }  # fmt: skip
