"""GGUF file types by name: sizes of published files, the rules behind them, and that they are taken wherever asked."""

import csv
import statistics
from collections import Counter
from pathlib import Path

import pytest

from roofplan import api
from roofplan.errors import InputError, UnknownNameError
from roofplan.simulator.planner.domain import precisions, takes
from roofplan.simulator.workload import zoo
from roofplan.simulator.workload.formats import FORMATS, weight_format
from roofplan.simulator.workload.gguf_types import FILE_TYPES, TYPES, tensor_types
from roofplan.simulator.workload.model import Model, Role

# Listed, with sources, before any was predicted.
PUBLISHED = Path(__file__).parent / "data" / "gguf_sizes.csv"
UNITS = {"B": 1.0, "GiB": 2.0**30}
# The file holds a second copy of the tied embedding as its head.
COPIED_EMBEDDING = ("falcon-7b", "Q4_0")


def predicted(model: Model, name: str) -> float:
    return model.weight_bytes(weight_format({"MXFP4": "MXFP4_MOE"}.get(name, name)))


def errors() -> dict[tuple[str, str], list[float]]:
    """Predicted over published size, less one, of every file of the list."""
    result: dict[tuple[str, str], list[float]] = {}
    with PUBLISHED.open(encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            model = zoo.bundled(row["model"])
            unit = UNITS[row["unit"]] if row["unit"] in UNITS else model.parameters / 8
            error = predicted(model, row["weights"]) / (float(row["size"]) * unit) - 1
            result.setdefault((row["model"], row["weights"]), []).append(error)
    return result


def test_sizes_of_published_files() -> None:
    found = errors()
    sizes = [abs(e) for listed in found.values() for e in listed]
    assert len(sizes) == 112 and len({weights for _, weights in found}) == 28
    assert statistics.median(sizes) < 0.0005, "measured: 0.03 %"
    worst = {key: max(map(abs, listed)) for key, listed in found.items()}
    assert worst.pop(COPIED_EMBEDDING) > 0.03
    assert max(worst.values()) < 0.01, "measured: 0.8 %, a table made without an importance matrix"


def test_the_one_miss_is_the_copy_of_an_embedding() -> None:
    model = zoo.bundled(COPIED_EMBEDDING[0])
    copy = model.vocab * model.hidden * TYPES["Q4_0"].bits_per_weight / 8
    assert (predicted(model, "Q4_0") + copy) / 4210994112 == pytest.approx(1, abs=0.001)


def counted(model: Model, name: str) -> Counter[str]:
    """How many tensors of each type a file has, as llama.cpp prints when it loads one."""
    types = Counter[str]()
    for tensor, type_ in tensor_types(model, name):
        types["F32" if type_ is None else type_.name] += tensor.copies if not tensor.routed else 1
    return types


@pytest.mark.parametrize(
    ("model", "name", "expected"),
    [
        # Logs of llama_model_loader: "- type q4_K: 193 tensors", "- type q6_K: 33 tensors" and so on.
        ("llama-3.1-8b", "Q4_K_M", {"Q4_K": 193, "Q6_K": 33}),
        ("llama-3.1-8b", "Q8_0", {"Q8_0": 226}),
        ("llama-2-7b", "Q4_K_M", {"Q4_K": 193, "Q6_K": 33}),
        ("llama-3.1-70b", "Q4_K_M", {"Q4_K": 441, "Q5_K": 40, "Q6_K": 81}),
        ("gpt-oss-20b", "MXFP4_MOE", {"Q8_0": 98, "MXFP4": 72}),
    ],
)
def test_counts_of_tensors_as_llama_cpp_logs_them(model: str, name: str, expected: dict[str, int]) -> None:
    types = counted(zoo.bundled(model), name)
    del types["F32"]
    assert types == expected


def test_rows_that_fit_no_block_fall_back() -> None:
    """gpt-oss is 2880 wide, which no block of 256 divides."""
    types = {t.role: kind.name for t, kind in tensor_types(zoo.bundled("gpt-oss-20b"), "Q4_K_M") if kind is not None}
    assert types[Role.GATE] == "Q5_0" and types[Role.LM_HEAD] == "Q8_0"


def test_wider_types_weigh_more() -> None:
    order = ["IQ1_S", "IQ2_XXS", "IQ2_M", "IQ3_XS", "Q3_K_M", "IQ4_XS", "Q4_K_S", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0"]
    for name in ("llama-3.1-8b", "mixtral-8x7b", "qwen3-30b-a3b", "deepseek-v3", "nemotron-h-8b", "gemma-2-9b"):
        model = zoo.bundled(name)
        sizes = [predicted(model, t) for t in order] + [model.weight_bytes(FORMATS["bf16"])]
        assert sizes == sorted(sizes), name


@pytest.mark.parametrize("name", FILE_TYPES)
def test_every_file_type_stores_every_weight_once(name: str) -> None:
    for key in ("llama-3.1-8b", "mixtral-8x7b", "gpt2", "jamba-v0.1", "recurrentgemma-2b", "deepseek-v2-lite"):
        model = zoo.bundled(key)
        held = sum(t.copies * t.rows * t.cols for t, _ in tensor_types(model, name))
        biases = sum(t.copies * t.rows * model.instances(t) for t in model.tensors if t.bias)
        assert held + biases == model.parameters
        widths = [t.bits_per_weight for _, t in tensor_types(model, name) if t is not None]
        assert min(widths) <= 8 * predicted(model, name) / model.parameters <= max(widths) + 1, key


@pytest.mark.parametrize("spelling", ["Q4_K_M", "q4_k_m", "q4-k-m", "Q4_K"])
def test_spellings(spelling: str) -> None:
    assert weight_format(spelling).name == "Q4_K_M"
    assert weight_format("F16") == FORMATS["fp16"] and weight_format("BF16") == FORMATS["bf16"]


def test_unknown_file_types_name_the_near_ones() -> None:
    with pytest.raises(UnknownNameError, match="Q4_K_M"):
        weight_format("Q4_K_XM")


def test_a_narrow_checkpoint_can_be_made_into_a_file_but_a_file_not_into_another() -> None:
    model, type_ = zoo.bundled("deepseek-v3"), weight_format("IQ2_XXS")
    assert takes(model, type_) and {n.weights for n in precisions(model, type_)} == {type_}
    with pytest.raises(InputError, match="stored in fp8-block"):
        precisions(model, FORMATS["int4"])


def test_an_answer_in_a_file_type() -> None:
    fleet, _ = api.load_fleet("rtx-3060")
    model = api.load_model("llama-3.1-8b")
    wishes = api.Wishes(weights=weight_format("Q4_K_M"))
    report = api.ask_fit(api.make_scenario(model, fleet), api.load_calibrations(fleet), wishes)
    assert report.question.weights == "Q4_K_M" and report.question.bits_per_weight == pytest.approx(4.8944, rel=1e-3)
    assert report.answer.verdict == "surely" and "--weights Q4_K_M" in report.answer.next_step
    ledger = api.ask_ledger(api.make_scenario(model, fleet), wishes).answer
    weights = next(row for row in ledger.rows if row.tensor_class == "weights")
    assert weights.bytes.value == pytest.approx(4.92e9, rel=0.005), "published: 4.92 GB with its metadata"
    steps = api.explain_step(api.make_scenario(model, fleet), wishes=wishes).answer.rows
    assert {row.kernel for row in steps if "gemm" in row.kernel} == {"gemm-weight-only/int4"}
