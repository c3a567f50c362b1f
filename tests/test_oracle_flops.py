"""FLOPs of matrix products and attention against torch's own counter, and the classic ways to count them wrongly."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.masking_utils import sliding_window_causal_mask_function

from roofplan.dtypes import DType
from roofplan.hwspecs.load import load_fleet
from roofplan.simulator.costs import attention, convolution, experts, gemm, latent_attention
from roofplan.simulator.lowering.attention import NO_WINDOW
from roofplan.simulator.lowering.decoder import lower
from roofplan.simulator.operators import (
    Attention,
    Convolution,
    Experts,
    Gemm,
    Kernel,
    KernelName,
    LatentAttention,
    Operators,
    Table,
    one_row,
)
from roofplan.simulator.scenario import Engine, Numerics, Phase, Routing, Scenario, Step
from roofplan.simulator.workload import zoo
from roofplan.simulator.workload.families import ALIASES, RECURRENT
from roofplan.simulator.workload.formats import FORMATS
from roofplan.simulator.workload.hf import parse_config

Config = dict[str, Any]

SMALL: Config = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 321,
    "head_dim": 8,
}
MIXTRAL: Config = {"num_local_experts": 5, "num_experts_per_tok": 3}
QWEN_MOE: Config = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 40}
DEEPSEEK: Config = {
    "num_key_value_heads": 8,
    "n_routed_experts": 8,
    "n_group": 2,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 40,
    "q_lora_rank": 24,
    "kv_lora_rank": 20,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,  # = head_dim above, by which transformers sizes its rotary tables
    "v_head_dim": 10,
    "first_k_dense_replace": 1,
}
SMALL_CONFIGS: tuple[Config, ...] = tuple(
    {**SMALL, **changes}
    for changes in (
        {"model_type": "llama"},
        {"model_type": "llama", "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
        {"model_type": "llama", "num_key_value_heads": 8, "head_dim": 24},
        {"model_type": "mistral"},
        {"model_type": "mistral", "num_key_value_heads": 1, "head_dim": 12},
        {"model_type": "qwen2"},
        {"model_type": "qwen2", "tie_word_embeddings": True, "num_hidden_layers": 1},
        {"model_type": "qwen3"},
        {"model_type": "qwen3", "attention_bias": True, "head_dim": 32},
        {"model_type": "mixtral", **MIXTRAL},
        {"model_type": "mixtral", **MIXTRAL, "num_experts_per_tok": 5, "head_dim": 20},
        {"model_type": "qwen3_moe", **QWEN_MOE},
        {"model_type": "qwen3_moe", **QWEN_MOE, "mlp_only_layers": [1], "tie_word_embeddings": True},
        {"model_type": "qwen3_moe", **QWEN_MOE, "decoder_sparse_step": 2, "num_hidden_layers": 5},
        {"model_type": "deepseek_v3", **DEEPSEEK},
        {"model_type": "deepseek_v3", **DEEPSEEK, "q_lora_rank": None, "n_shared_experts": 2},
        {"model_type": "gpt_oss", **MIXTRAL},
        {"model_type": "minimax_m2", **MIXTRAL},
    )
)


@dataclass(frozen=True)
class Flops:
    """FLOPs of a forward pass: linear layers (experts included) and attention over the full S x S."""

    linear: float
    attention: float


def bundled(name: str) -> Config:
    """The config.json of a bundled model, of its text part where it has more, read without roofplan's parser."""
    entries = map(json.loads, zoo.ZOO.read_text(encoding="utf-8").splitlines())
    config = next(dict(e["config"]) for e in entries if e["name"] == name)
    outer = {k: config[k] for k in ("tie_word_embeddings", "torch_dtype", "dtype") if k in config}
    text = {**outer, **config["text_config"]} if "text_config" in config else config
    return {k: v for k, v in text.items() if k not in ("vision_config", "audio_config")}


def scenario_of(config: Config, *, batch: int = 1, context: int = 128, engine: Engine | None = None) -> Scenario:
    """The config on one H200 in bf16."""
    model = parse_config(config, name="model", file="config.json")
    numerics = Numerics(FORMATS["bf16"], DType.BF16)
    return Scenario(model, load_fleet("h200"), batch, context, context, numerics, engine=engine or Engine())


def total(tables: tuple[Table, ...], kind: type[Table], flops: Callable[[Any], np.ndarray]) -> float:
    """FLOPs of all rows of the tables of a kind, each row as often as it runs."""
    return sum(float((flops(t).reshape(-1) * t.count.sum(axis=1)).sum()) for t in tables if isinstance(t, kind))


def our_flops(config: Config, sequences: int, new_tokens: int) -> Flops:
    """What roofplan lowers a prefill with logits for every token to; its causal attention scaled up to S x S."""
    step = Step(Phase.PREFILL, sequences, new_tokens, 0, logit_tokens=sequences * new_tokens)
    tables = lower(scenario_of(config), step).operators.tables
    causal = float(attention.causal_factor(np.asarray(float(new_tokens)), np.asarray(float(new_tokens))))
    assert all(np.all(t.window >= new_tokens) for t in tables if isinstance(t, Attention))
    linear = total(tables, Gemm, gemm.flops) + total(tables, Experts, experts.flops)
    scored = total(tables, Attention, attention.flops) + total(tables, LatentAttention, latent_attention.flops)
    return Flops(linear, scored / causal)


def torch_flops(
    config: Config, sequences: int, new_tokens: int, device: str = "meta", moe: str = "batched_mm"
) -> Flops:
    """What torch counts in the transformers model.

    `eager` attention is two bmm over all S x S pairs. `batched_mm` experts are a bmm of each (token, expert)
    assignment with a copy of that expert's weights: absurd to run, but exactly the active FLOPs, and free on the meta
    device (the counter has no formula for `grouped_mm`, and the eager loop cannot route without values).
    """
    family = ALIASES.get(config["model_type"], config["model_type"])
    settings = CONFIG_MAPPING[family](
        **{k: v for k, v in config.items() if k not in ("model_type", "quantization_config", "torch_dtype", "dtype")}
    )
    routed = any(config.get(key) for key in ("num_experts_per_tok", "moe_topk", "top_k_experts"))
    options = {"experts_implementation": moe} if routed else {}
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(settings, attn_implementation="eager", **options).eval()
        ids = torch.zeros(sequences, new_tokens, dtype=torch.long)
        mask = torch.zeros(1, 1, new_tokens, new_tokens)  # ready-made: building one looks at values
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(ids, attention_mask=mask, use_cache=False)
    counts = counter.get_flop_counts()

    def of(module: str, *names: str) -> int:
        return sum(int(n) for op, n in counts.get(module, {}).items() if str(op) in names)

    products, batched = ("aten.mm", "aten.addmm"), ("aten.bmm", "aten.baddbmm")
    assert {str(op) for op in counts["Global"]} <= {*products, *batched}
    expert_batched = sum(of(m, *batched) for m in counts if m.endswith(".experts"))
    # Rotary embedding: the outer product of frequencies (head_dim / 2, 1) and positions (1, S) is a matmul in some
    # releases of transformers (S x head_dim FLOPs for each sequence of positions), a broadcast product in others.
    rotary = sum(of(m, *batched) for m in counts if m.endswith(".rotary_emb"))
    if rotary:
        head_dim = getattr(settings, "head_dim", None) or settings.hidden_size // settings.num_attention_heads
        assert rotary == new_tokens * head_dim
    return Flops(of("Global", *products) + expert_batched, of("Global", *batched) - expert_batched - rotary)


def name_of(config: Config) -> str:
    base = {**SMALL, **MIXTRAL, **QWEN_MOE, **DEEPSEEK}
    return "-".join(
        [config["model_type"], *(f"{k}={v}" for k, v in config.items() if k != "model_type" and base.get(k) != v)]
    )


@pytest.mark.parametrize("shape", [(1, 16), (3, 8), (2, 1)], ids=str)
@pytest.mark.parametrize("config", SMALL_CONFIGS, ids=name_of)
def test_small_flops(config: Config, shape: tuple[int, int]) -> None:
    # The lengths are powers of two: (S + 1) / (2 S) is exact, so equality can be.
    config = {**config, "sliding_window": None}
    assert our_flops(config, *shape) == torch_flops(config, *shape)


# Families whose layers multiply what torch counts otherwise or what we leave out, by the reason.
NOT_LIKE_TORCH = {
    "opt": "attention by another product",
    "bloom": "attention adds ALiBi inside the product",
    "granitemoe": "experts without a switch of implementation",
    "ernie4_5_moe": "experts without a switch of implementation",
    "dbrx": "experts without a switch of implementation",
    "llama4_text": "the class multiplies every token by every expert",
    "gemma3n_text": "copies of the hidden state are mixed by small products that are left out",
    "chatglm": "no class",
    "deepseek": "no class",
    **dict.fromkeys(("t5", "mt5", "umt5", "bart", "whisper"), "reads a source (tests/test_oracle_networks.py)"),
    "mllama_text_model": "the class leaves out layers that attend to an image where there is none",
    "deepseek_v32": "the indexer of sparse attention is counted in bytes only",
    "glm_moe_dsa": "the indexer of sparse attention is counted in bytes only",
    **dict.fromkeys(RECURRENT, "the products inside a chunk of a recurrence are left out"),
}


WINDOWED = ("gemma4_text", "mimo_v2_flash")  # their classes refuse to go without


@pytest.mark.parametrize("name", [n for n in zoo.names() if bundled(n)["model_type"] not in NOT_LIKE_TORCH])
def test_bundled_flops(name: str) -> None:
    config = bundled(name)
    if config["model_type"] not in WINDOWED:
        config["sliding_window"] = None
    elif "sliding_window" in config:
        config |= {"sliding_window": 4096, "sliding_window_size": 4096}
    assert our_flops(config, 1, 128) == torch_flops(config, 1, 128)


@pytest.mark.parametrize("config", [c for c in SMALL_CONFIGS if "num_experts_per_tok" in c], ids=name_of)
def test_expert_flops_of_a_run_with_values(config: Config) -> None:
    """The reference loop over experts on the CPU: real routing, each expert multiplies the tokens it got."""
    torch.manual_seed(0)
    config = {**config, "sliding_window": None}
    assert our_flops(config, 2, 16) == torch_flops(config, 2, 16, device="cpu", moe="eager")


@pytest.mark.parametrize("past", [0, 1, 5, 40])
@pytest.mark.parametrize("window", [1, 3, 8, 17, 64])
@pytest.mark.parametrize("new", [1, 2, 8, 17])
def test_windowed_pairs_are_those_of_the_mask(new: int, window: int, past: int) -> None:
    """Every pair that the mask of transformers keeps, and no other, costs 4 head_dim FLOPs a head."""
    keep = sliding_window_causal_mask_function(window)
    kept = sum(bool(keep(0, 0, torch.tensor(past + q), torch.tensor(k))) for q in range(new) for k in range(past + new))
    table = attention_table(new=new, past=past, window=window)
    assert attention.flops(table) == 4 * 128 * 64 * kept


def attention_table(*, new: int, past: int = 0, kv_heads: int = 8, window: float = NO_WINDOW) -> Attention:
    """Attention of one sequence with the heads of a 70B Llama."""
    return one_row(
        Attention,
        "attention",
        "dense",
        1,
        Kernel(KernelName.ATTENTION_PREFILL, DType.BF16),
        sequences=1,
        new_tokens=new,
        kv_tokens=past + new,
        heads=64,
        kv_heads=kv_heads,
        head_dim=128,
        window=window,
        kv_bytes=2,
        activation_bytes=2,
    )


# (input channels, output channels, kernel, stride, padding, dilation, groups)
CONVOLUTIONS = [
    (3, 1280, (14, 14), (14, 14), (0, 0), (1, 1), 1),  # a vision transformer's patches
    (16, 32, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    (16, 32, (3, 3), (2, 2), (1, 1), (1, 1), 4),
    (32, 32, (3, 3), (1, 1), (1, 1), (1, 1), 32),  # depthwise
    (8, 24, (5, 1), (1, 3), (2, 0), (1, 1), 2),
    (8, 12, (3, 7), (2, 1), (0, 3), (2, 1), 4),
    (64, 128, (1, 1), (1, 1), (0, 0), (1, 1), 1),
    (64, 128, (1, 1), (2, 2), (0, 0), (1, 1), 1),
]


@pytest.mark.parametrize("images", [1, 5])
@pytest.mark.parametrize("shape", CONVOLUTIONS, ids=str)
def test_convolution_flops(shape: tuple[Any, ...], images: int) -> None:
    inputs, outputs, kernel, stride, padding, dilation, groups = shape
    with torch.device("meta"):
        pixels, weights = torch.empty(images, inputs, 56, 42), torch.empty(outputs, inputs // groups, *kernel)
    with FlopCounterMode(display=False) as counter:
        out = torch.nn.functional.conv2d(pixels, weights, None, stride, padding, dilation, groups)
    table = one_row(
        Convolution,
        "patches",
        "vision",
        1,
        Kernel(KernelName.CONVOLUTION, DType.BF16),
        images=images,
        in_channels=inputs,
        out_channels=outputs,
        height=out.shape[2],
        width=out.shape[3],
        kernel_height=kernel[0],
        kernel_width=kernel[1],
        groups=groups,
        element_bytes=2,
    )
    assert counter.get_total_flops() > 0
    assert convolution.flops(table) == counter.get_total_flops()


def rows(operators: Operators, kind: type[Table], name: str) -> list[tuple[Any, int]]:
    """(table, row index) of the rows of that name."""
    tables = [t for t in operators.tables if isinstance(t, kind)]
    return [(t, i) for t in tables for i, label in enumerate(t.label) if label == name]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("logit_tokens", [1, 7, 128])
def test_head_counts_two_flops_a_weight_and_logit_position(tied: bool, logit_tokens: int) -> None:
    config = {**bundled("llama-3.1-8b"), "tie_word_embeddings": tied}
    step = Step(Phase.PREFILL, 1, 128, 0, logit_tokens=logit_tokens)
    [(table, row)] = rows(lower(scenario_of(config), step).operators, Gemm, "lm head")
    assert gemm.flops(table)[row] == 2 * logit_tokens * 4096 * 128256
    assert table.count[row].sum() == 1


def test_kv_traffic_follows_kv_heads() -> None:
    """A 70B Llama has 64 query heads and 8 KV heads: decoding reads an eighth of what query heads would."""
    context = 4096
    step = Step(Phase.DECODE, 1, 1, context - 1)
    [(table, row)] = rows(lower(scenario_of(bundled("llama-3.1-70b")), step).operators, Attention, "attention")
    assert (table.heads.item(), table.kv_heads.item()) == (64, 8)
    keys_and_values, query_and_output = 2 * context * 8 * 128 * 2, 2 * 64 * 128 * 2
    assert attention.traffic_bytes(table)[row] == keys_and_values + query_and_output
    assert attention.flops(table)[row] == 4 * 128 * 64 * context  # arithmetic does follow query heads
    every_head = replace(table, kv_heads=table.heads)
    assert attention.traffic_bytes(every_head)[row] == 8 * keys_and_values + query_and_output


@pytest.mark.parametrize("window", [NO_WINDOW, 512])
@pytest.mark.parametrize("tokens", [128, 4096, 131072])
def test_prefill_attention_moves_nothing_quadratic(tokens: int, window: float) -> None:
    once, twice = (attention_table(new=n, window=window) for n in (tokens, 2 * tokens))
    assert attention.traffic_bytes(twice) <= 2 * attention.traffic_bytes(once)
    if window == NO_WINDOW:
        assert attention.flops(twice) > 3.9 * attention.flops(once)


def experts_row(name: str, tokens: int, routing: Routing = Routing.UNIFORM, **changes: Any) -> Experts:
    """The experts of a bundled model for a decode step of `tokens` sequences."""
    scenario = scenario_of({**bundled(name), **changes}, engine=Engine(routing=routing))
    tables = lower(scenario, Step(Phase.DECODE, tokens, 1, 127)).operators.tables
    [table] = [t for t in tables if isinstance(t, Experts)]
    return table


@pytest.mark.parametrize("routing", Routing)
@pytest.mark.parametrize("tokens", [1, 16, 4096])
def test_expert_flops_follow_active_experts(tokens: int, routing: Routing) -> None:
    expected = 2 * 3 * 2048 * 768 * 8 * tokens
    assert experts.flops(experts_row("qwen3-30b-a3b", tokens, routing)) == expected
    assert experts.flops(experts_row("qwen3-30b-a3b", tokens, routing, num_experts=256)) == expected
    assert experts.flops(experts_row("qwen3-30b-a3b", tokens, routing, num_experts_per_tok=16)) == 2 * expected


@pytest.mark.parametrize("routing", Routing)
def test_expert_weight_bytes_follow_touched_experts(routing: Routing) -> None:
    """One token reads its own 8 experts, thousands read (almost) all 128, whatever top_k says of the FLOPs."""
    one_expert = 3 * 2048 * 768 * 2

    def weight_bytes(tokens: int, **changes: Any) -> float:
        table = experts_row("qwen3-30b-a3b", tokens, routing, **changes)
        assert table.expert_bytes == one_expert
        return float(
            (experts.traffic_bytes(table) - experts.traffic_bytes(replace(table, expert_bytes=np.zeros(1))))[0]
        )

    assert weight_bytes(1) == pytest.approx(8 * one_expert, rel=1e-12)
    assert weight_bytes(1, num_experts=256) == pytest.approx(8 * one_expert, rel=1e-12)
    assert 8 * one_expert < weight_bytes(4) < 32 * one_expert
    assert 0.9 * 128 * one_expert < weight_bytes(8192) <= 128 * one_expert
    counts = [weight_bytes(n) for n in (1, 2, 8, 64, 512, 8192)]
    assert counts == sorted(counts)
