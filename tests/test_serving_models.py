"""Models served on many devices: narrow checkpoints, latent attention, shared experts, expert parallelism; by hand."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from roofplan.dtypes import DType
from roofplan.errors import InputError
from roofplan.hwspecs.load import load_fleet
from roofplan.simulator.costs import experts, gemm, latent_attention
from roofplan.simulator.lowering.decoder import lower
from roofplan.simulator.lowering.linear import linear_kernel
from roofplan.simulator.memory import TensorClass, ledger
from roofplan.simulator.operators import (
    Collective,
    Experts,
    Gemm,
    Kernel,
    KernelName,
    LatentAttention,
    Operators,
    Table,
)
from roofplan.simulator.planner.domain import precisions
from roofplan.simulator.scenario import Numerics, Phase, Scenario, Sharding, Step
from roofplan.simulator.tensor_bytes import kv_cache_bytes, stage_weight_bytes
from roofplan.simulator.workload import zoo
from roofplan.simulator.workload.formats import FORMATS, WeightFormat, quantised_checkpoint
from roofplan.simulator.workload.hf import parse_config
from roofplan.simulator.workload.model import Model, Role

DECODE, PREFILL = Step(Phase.DECODE, 16, 1, 4095), Step(Phase.PREFILL, 2, 1024, 3072)


EIGHT = Sharding(8)


def scenario(name: str, sharding: Sharding = EIGHT, **changes: Any) -> Scenario:
    """A bundled model in its own format, 16 users with 4096 tokens each."""
    model = zoo.bundled(name)
    numerics = Numerics(model.native, DType.BF16)
    load = {"batch": 16, "context": 4096, "prompt": 1024} | changes
    return Scenario(model, load_fleet("8xh200"), **load, numerics=numerics, sharding=sharding)


def rows(operators: Operators, kind: type[Table]) -> dict[tuple[str, str], tuple[Any, int]]:
    """(table, row) by label and layer."""
    found = {}
    for table in operators.tables:
        if isinstance(table, kind):
            found |= {key: (table, i) for i, key in enumerate(zip(table.label, table.layer, strict=True))}
    return found


# ---- checkpoints

PUBLISHED_GIB = {"gpt-oss-20b": 12.8, "gpt-oss-120b": 60.8}  # gpt-oss model card (arXiv 2508.10925), table 1


@pytest.mark.parametrize("name", PUBLISHED_GIB)
def test_a_narrow_checkpoint_weighs_what_its_files_weigh(name: str) -> None:
    model = zoo.bundled(name)
    assert round(model.weight_bytes(model.native) / 2**30, 1) == PUBLISHED_GIB[name]


def test_only_what_a_checkpoint_narrows_is_narrow() -> None:
    kimi, oss, deepseek = (zoo.bundled(n) for n in ("kimi-k2.5", "gpt-oss-120b", "deepseek-v3"))

    def formats(model: Model) -> dict[Role, str]:
        return {t.role: model.format_of(t, model.native).name for t in model.tensors if t.block == 1 or t.block is None}

    assert {r for r, f in formats(kimi).items() if f == "int4-g32"} == {Role.GATE, Role.UP, Role.DOWN}
    assert {r for r, f in formats(oss).items() if f == "mxfp4"} == {Role.GATE, Role.UP, Role.DOWN}
    wide = {Role.EMBED, Role.LM_HEAD, Role.ROUTER}
    assert {r for r, f in formats(deepseek).items() if f == "bf16" and "norm" not in r} == wide


def test_bits_include_their_scales() -> None:
    bits = {name: FORMATS[name].bits_per_weight for name in ("fp8-block", "mxfp4", "nvfp4")}
    assert bits == {"fp8-block": 8 + 32 / 128**2, "mxfp4": 4 + 8 / 32, "nvfp4": 4 + 8 / 16}
    assert zoo.bundled("kimi-k2.5").native.bits_per_weight == 4 + 16 / 32


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"quant_method": "fp8"}, FORMATS["fp8"]),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, FORMATS["fp8-block"]),
        (
            {"quant_method": "fp8", "weight_block_size": [64, 32]},
            WeightFormat("fp8-block-64x32", 8 + 32 / 2048, DType.FP8, block_scaled=True),
        ),
        ({"quant_method": "mxfp4"}, FORMATS["mxfp4"]),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, FORMATS["nvfp4"]),
        (
            {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["model.layers.0.self_attn*", "lm_head"]},
            FORMATS["nvfp4"]._replace(exceptions=(("model.layers.0.self_attn*", None),)),
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"g": {"weights": {"type": "float", "num_bits": 8}}},
            },
            FORMATS["fp8"],
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {
                    "g": {"weights": {"type": "int", "num_bits": 4, "group_size": 128, "symmetric": False}}
                },
            },
            WeightFormat("int4-g128", 4 + 20 / 128, DType.BF16),
        ),
    ],
    ids=lambda value: value.name if isinstance(value, WeightFormat) else "",
)
def test_quantisation_configs(config: dict[str, Any], expected: WeightFormat) -> None:
    assert quantised_checkpoint(config, "config.json") == expected


@pytest.mark.parametrize(
    "config",
    [
        {"quant_method": "fp8", "weight_block_size": [128]},
        {"quant_method": "fp8", "weight_block_size": [0, 128]},
        {"quant_method": "fp8", "weight_block_size": "128"},
        {"quant_method": "modelopt", "quant_algo": "W4A8"},
        {"quant_method": "compressed-tensors"},
        {"quant_method": "compressed-tensors", "config_groups": {"a": {"weights": None}}},
        {"quant_method": "compressed-tensors", "config_groups": {"a": {"weights": {"type": "int", "num_bits": 3}}}},
        {
            "quant_method": "compressed-tensors",
            "config_groups": {"a": {"weights": {"num_bits": 8}}, "b": {"weights": {"num_bits": 4}}},
        },
    ],
    ids=json.dumps,
)
def test_unknown_quantisation_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="quantization_config"):
        quantised_checkpoint(config, "config.json")


def test_a_nested_text_model_is_read_with_the_quantisation_beside_it() -> None:
    entry = next(json.loads(line) for line in zoo.ZOO.read_text().splitlines() if "kimi-k2.5" in line)
    text = dict(entry["config"])
    beside = {"model_type": "kimi_k25", "quantization_config": text.pop("quantization_config"), "vision_config": {}}
    nested = parse_config({**beside, "text_config": text}, name="nested", file="config.json")
    kimi = zoo.bundled("kimi-k2.5")
    assert (nested.blocks, nested.native, nested.parameters) == (kimi.blocks, kimi.native, kimi.parameters)


def test_a_pinned_name_keeps_the_scope_of_the_checkpoint() -> None:
    model = zoo.bundled("gpt-oss-20b")
    assert {n.weights for n in precisions(model, FORMATS["mxfp4"])} == {model.native}
    with pytest.raises(InputError, match="stored in mxfp4"):
        precisions(model, FORMATS["bf16"])


# ---- kernels


@pytest.mark.parametrize(
    ("gpu", "name", "expected"),
    [
        ("h200", "fp8", (KernelName.GEMM, DType.FP8)),
        ("h200", "fp8-block", (KernelName.GEMM_BLOCK_SCALED, DType.FP8)),
        ("a100-80gb", "fp8-block", (KernelName.GEMM_WEIGHT_ONLY, DType.INT8)),
        ("h200", "mxfp4", (KernelName.GEMM_WEIGHT_ONLY, DType.FP4)),
        ("h200", "nvfp4", (KernelName.GEMM_WEIGHT_ONLY, DType.FP4)),
        ("h200", "int4", (KernelName.GEMM_WEIGHT_ONLY, DType.INT4)),
        ("h200", "bf16", (KernelName.GEMM, DType.BF16)),
    ],
)
def test_kernel_of_a_format(gpu: str, name: str, expected: tuple[KernelName, DType]) -> None:
    assert linear_kernel(FORMATS[name], load_fleet(gpu).device, DType.BF16) == Kernel(*expected)


@pytest.mark.parametrize(
    ("name", "dense", "routed"),
    [
        ("deepseek-v3", (KernelName.GEMM_BLOCK_SCALED, DType.FP8), (KernelName.EXPERTS_BLOCK_SCALED, DType.FP8)),
        ("minimax-m2.5", (KernelName.GEMM_BLOCK_SCALED, DType.FP8), (KernelName.EXPERTS_BLOCK_SCALED, DType.FP8)),
        ("kimi-k2.5", (KernelName.GEMM, DType.BF16), (KernelName.EXPERTS_WEIGHT_ONLY, DType.INT4)),
        ("gpt-oss-120b", (KernelName.GEMM, DType.BF16), (KernelName.EXPERTS_WEIGHT_ONLY, DType.FP4)),
        ("qwen3-235b-a22b", (KernelName.GEMM, DType.BF16), (KernelName.EXPERTS, DType.BF16)),
    ],
)
def test_kernels_of_a_checkpoint(name: str, dense: Any, routed: Any) -> None:
    operators = lower(scenario(name), DECODE).operators
    assert rows(operators, Gemm)["out", "moe"][0].kernel == Kernel(*dense)
    assert rows(operators, Experts)["experts", "moe"][0].kernel == Kernel(*routed)
    assert rows(operators, Gemm)["router", "moe"][0].kernel == Kernel(KernelName.GEMM, DType.BF16)


# ---- latent attention


@pytest.mark.parametrize(("name", "layers"), [("deepseek-v3", 61), ("kimi-k2.5", 61)])
@pytest.mark.parametrize("tp", [1, 2, 8])
def test_every_rank_caches_the_whole_latent(name: str, layers: int, tp: int) -> None:
    """The famous 70 kB a token of DeepSeek-V3 in 16 bits: (512 + 64) x 2 bytes x 61 layers, whatever tp."""
    held = kv_cache_bytes(scenario(name, Sharding(tp), batch=3, context=1600))
    assert held == 3 * 1600 * (512 + 64) * 2 * layers


def test_decode_reads_the_latent_once_for_all_heads() -> None:
    """Per token and head 2 (576 + 512) FLOPs a key; the cache is read once, queries and outputs are latent-wide."""
    operators = lower(scenario("deepseek-v3"), DECODE).operators
    table, row = rows(operators, LatentAttention)["attention", "moe"]
    heads, context = 128 // 8, 4096
    assert table.kernel == Kernel(KernelName.MLA_DECODE, DType.BF16)
    assert latent_attention.flops(table)[row] == 16 * heads * context * 2 * (576 + 512)
    moved = context * 576 * 2 + heads * (576 + 512) * 2
    assert latent_attention.traffic_bytes(table)[row] == 16 * moved


def test_prefill_expands_all_keys_and_multiplies_full_heads() -> None:
    operators = lower(scenario("deepseek-v3"), PREFILL).operators
    table, row = rows(operators, LatentAttention)["attention", "moe"]
    heads, new, past = 128 // 8, 1024, 3072
    kept = sum(past + i for i in range(1, new + 1))
    assert table.kernel == Kernel(KernelName.MLA_PREFILL, DType.BF16)
    assert latent_attention.flops(table)[row] == 2 * heads * kept * 2 * (192 + 128)
    moved = (new + past) * heads * (192 + 128) * 2 + new * heads * (192 + 128) * 2
    assert latent_attention.traffic_bytes(table)[row] == 2 * moved
    expand, row = rows(operators, Gemm)["kv_b", "moe"]
    assert (expand.m[row], expand.n[row], expand.k[row]) == (2 * (new + past), heads * 256, 512)


def test_bottlenecks_are_replicated_and_heads_are_cut() -> None:
    whole, cut = (rows(lower(scenario("deepseek-v3", Sharding(tp)), DECODE).operators, Gemm) for tp in (1, 8))
    for label, share in (("q_a, kv_a", 1), ("q_b", 8), ("out", 8), ("query into latent", 8), ("output from latent", 8)):
        (a, i), (b, j) = whole[label, "moe"], cut[label, "moe"]
        assert gemm.flops(a)[i] == share * gemm.flops(b)[j], label
        assert a.weight_bytes[i] == pytest.approx(share * b.weight_bytes[j]), label
    halves = [cut[label, "moe"] for label in ("query into latent", "output from latent")]
    assert sum(t.weight_bytes[i] for t, i in halves) == 16 * 512 * (128 + 128) * 2
    assert sum(gemm.flops(t)[i] for t, i in halves) == 2 * 16 * 16 * 512 * (128 + 128)


def test_a_narrow_kv_b_is_kept_twice() -> None:
    """Decoding multiplies a 16-bit copy: 61 layers of 128 heads x 256 x 512."""
    asked = scenario("deepseek-v3", Sharding(1))
    copies = 61 * 128 * 256 * 512 * 2
    assert float(stage_weight_bytes(asked)[0]) == pytest.approx(asked.model.weight_bytes(asked.model.native) + copies)
    wide = asked.but(numerics=Numerics(FORMATS["bf16"], DType.BF16))
    assert float(stage_weight_bytes(wide)[0]) == pytest.approx(asked.model.weight_bytes(FORMATS["bf16"]))


# ---- MiniMax and gpt-oss


def test_a_norm_over_all_heads_talks_to_all_ranks() -> None:
    together = rows(lower(scenario("minimax-m2.5"), DECODE).operators, Collective)
    table, row = together["qk norm all-reduce", "moe"]
    assert (table.message_bytes[row], table.ranks[row]) == (16 * 2 * 4, 8)
    alone = lower(scenario("minimax-m2.5", Sharding(1)), DECODE).operators
    assert not rows(alone, Collective)


def test_every_other_layer_keeps_its_window_only() -> None:
    """18 layers of gpt-oss-120b cache all tokens, 18 at most 128 and a page."""
    held = kv_cache_bytes(scenario("gpt-oss-120b", Sharding(1), batch=1, context=32768))
    assert held == 18 * 2 * 8 * 64 * 2 * (32768 + 128 + 16)


# ---- expert parallelism


@pytest.mark.parametrize("ep", [1, 2, 4, 8])
@pytest.mark.parametrize("name", ["deepseek-v3", "gpt-oss-120b"])
def test_expert_parallel_ranks_hold_whole_experts(name: str, ep: int) -> None:
    """The same weights and FLOPs a rank in fewer, larger pieces; everything else stays as it was."""
    plain, dealt = scenario(name), scenario(name, Sharding(8, 1, ep))
    (a, i), (b, j) = (rows(lower(s, DECODE).operators, Experts)["experts", "moe"] for s in (plain, dealt))
    assert b.ranks[j] == ep and b.intermediate[j] == a.intermediate[i] * ep
    assert b.expert_bytes[j] == pytest.approx(a.expert_bytes[i] * ep)
    assert experts.flops(b)[j] == pytest.approx(experts.flops(a)[i])
    assert stage_weight_bytes(dealt) == pytest.approx(stage_weight_bytes(plain))
    assert ledger(dealt).of(TensorClass.KV_CACHE) == ledger(plain).of(TensorClass.KV_CACHE)
    others = [t.label for t in lower(dealt, DECODE).operators.tables if isinstance(t, Collective)]
    assert others == [t.label for t in lower(plain, DECODE).operators.tables if isinstance(t, Collective)]


def test_an_expert_rank_weighs_its_experts() -> None:
    """61 layers less 3 dense ones, 256 / 4 experts cut in two: 3 x 7168 x 1024 weights of 8 bits and their scales."""
    [(table, row)] = rows(lower(scenario("deepseek-v3", Sharding(8, 1, 4)), DECODE).operators, Experts).values()
    assert table.expert_bytes[row] == pytest.approx(3 * 7168 * 1024 * (1 + 4 / 128**2))
    assert float(np.sum(table.count)) == 58


def test_sharding_reads_as_people_write_it() -> None:
    assert [str(s) for s in (Sharding(), Sharding(8, 2), Sharding(8, 1, 4))] == ["tp1", "tp8 pp2", "tp8 ep4"]


@pytest.mark.parametrize(
    ("name", "sharding", "problem"),
    [
        ("llama-3.1-8b", Sharding(8, 1, 2), "has no experts"),
        ("deepseek-v3", Sharding(8, 1, 3), "does not divide a tensor-parallel degree of 8"),
        ("deepseek-v3", Sharding(4, 1, 8), "does not divide a tensor-parallel degree of 4"),
        ("deepseek-v3", Sharding(4, 1, 0), "does not divide"),
        ("deepseek-v3", Sharding(3, 1, 3), "does not divide 256 experts"),
        ("deepseek-v3", Sharding(6, 1, 2), "not even"),
    ],
)
def test_uneven_experts_are_refused(name: str, sharding: Sharding, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        scenario(name, sharding)


def test_shared_experts_are_one_feed_forward_cut_over_all_ranks() -> None:
    for sharding in (Sharding(8), Sharding(8, 1, 8)):
        found = rows(lower(scenario("deepseek-v3", sharding), DECODE).operators, Gemm)
        (up, i), (down, j) = found["shared gate-up", "moe"], found["shared down", "moe"]
        assert (up.m[i], up.n[i], up.k[i]) == (16, 2 * 2048 / 8, 7168)
        assert (down.m[j], down.n[j], down.k[j]) == (16, 7168, 2048 / 8)
