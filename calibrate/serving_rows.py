"""Public end-to-end serving measurements and which of them a model of one engine's steps may be compared with.

`silicon_sample.csv` of the `aiconfigurator-core` wheel lists runs of two origins: InferenceX (SemiAnalysis, closed
loop, recipes public) and a vendor's gap analysis (grids of fixed lengths). Its columns need corrections, each a
function here. The rules in `RULES` look at metadata and at the measured values among themselves, never at a
prediction; they were fixed before the first error on these rows was computed.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from itertools import pairwise
from math import isqrt
from typing import NamedTuple

from ..dtypes import DType
from ..errors import InputError, UnknownNameError
from . import silicon

DEVICES = {"h200": "h200_sxm", "h100-sxm": "h100_sxm", "b200": "b200_sxm", "b300": "b300_sxm"}
DEVICES |= {name: name for name in ("gb200", "gb300", "b60")}
TUNED = ("h200", "h100-sxm")  # looked at while the composition was made
HELD_OUT = ("b300", "gb200", "gb300", "b60")  # evaluated once a release, never tuned to
OTHER_FORMS = ("qwen3.5-397b-a17b", "glm-5")  # gated delta layers, sparse attention: no operator of ours prices them
BLOCK_SCALED = ("deepseek-r1", "deepseek-v3", "minimax-m2.5", "qwen3-235b-a22b")  # weight_block_size [128, 128]

# InferenceX sets `RANDOM_RANGE_RATIO: 0.8` (.github/workflows/benchmark-tmpl.yml) and its client draws input and output
# lengths from `randint(int(length * range_ratio), length + 1)` (kimbochen/bench_serving, benchmark_serving.py).
INFERENCEX_LENGTHS = 0.9
SPECULATION_SINCE = "2026-01-07"  # InferenceX pull request 392: DeepSeek TRT-LLM recipes that predict 1 or 3 tokens
NODE, MOST_CLIENTS, OUT_OF_ORDER = 8, 256, 1.25

Record = Mapping[str, str]
Key = tuple[object, ...]


class Source(StrEnum):
    """Who measured a row."""

    INFERENCEX = "inferencex"
    GAP_ANALYSIS = "gap-analysis"


class ServingRow(NamedTuple):
    """One measured point of a server in steady use.

    `tp` devices share a sequence's attention and `attention_dp` such groups share the experts, which are cut `ep`
    ways; `concurrency` counts the clients of all groups. Actual lengths average `mean_length` times the nominal
    `isl` and `osl`. An empty `version` or `date` was not stated. `exclusion` names the first rule that makes the
    row incomparable.
    """

    id: str
    device: str
    engine: str
    version: str
    model: str
    weights: str
    kv: DType
    tp: int
    ep: int
    attention_dp: int
    pp: int
    concurrency: int
    isl: int
    osl: int
    mean_length: float
    ttft_s: float
    tpot_s: float
    date: str
    source: Source
    exclusion: str | None = None

    @property
    def devices(self) -> int:
        """Devices the server occupies."""
        return self.tp * self.attention_dp * self.pp


def source_of(record: Record) -> Source:
    """The gap analysis names its folder; everything else is InferenceX or a rounded copy of it."""
    gap = "/aic-auto-gap-analysis/" in record["silicon_data_source"]
    return Source.GAP_ANALYSIS if gap else Source.INFERENCEX


def concurrency_of(record: Record) -> int:
    """`silicon_concurrency` in the source is the number of clients; `batch_size` is at times that of one group."""
    found = re.search(r"silicon_concurrency=(\d+)", record["silicon_data_source"])
    return int(found[1] if found else float(record["batch_size"]))


def model_of(record: Record) -> str:
    """Our name of the model; InferenceX's `dsr1` is DeepSeek-R1, which the newer records file under V3."""
    if record["id"].startswith("dsr1_"):
        return "deepseek-r1"
    return re.sub(r"(-instruct|-fp8|-nvfp4)+$", "", record["model_path"].split("/")[-1].lower())


def weights_of(record: Record, model: str) -> str:
    """The format of the checkpoint: no quantisation mode means bf16, and the modes are at times another format's name.

    DeepSeek, MiniMax and Qwen3-235B-FP8 publish 128 x 128 block scales (`fp8` in some records); gpt-oss keeps its
    experts in mxfp4 and the rest in bf16 (`nvfp4` or `fp8` here); Kimi-K2.5 has int4 experts.
    """
    if model.startswith("gpt-oss"):
        return "mxfp4"
    mode = record["gemm_quant_mode"]
    if mode == "fp8" and model in BLOCK_SCALED:
        return "fp8-block"
    return {"": "bf16", "fp8_block": "fp8-block", "int4_wo": "int4"}.get(mode, mode)


def kv_of(device: str, engine: str, model: str, weights: str, source: Source) -> DType:
    """The format of the KV cache, which no column states.

    InferenceX recipes for H100 and H200 (benchmarks/70b_fp8_h100_slurm.sh, 70b_fp8_h200_slurm.sh,
    70b_fp8_h200_trt_slurm.sh, dsr1_fp8_h200_trt.sh) ask for fp8 for Llama-70B and for DeepSeek under TRT-LLM; those
    of gpt-oss, Kimi, MiniMax (fp8 only since pull request 1354, 2026-05-12) and DeepSeek under SGLang leave the
    default, bf16. Recipes of other devices were not read: fp8 under TRT-LLM is assumed. The gap analysis serves what
    aiconfigurator proposes: fp8 wherever weights are fp8 (src/aiconfigurator/sdk/models/helpers.py).
    """
    if source is Source.GAP_ANALYSIS:
        fp8 = weights in ("fp8", "fp8-block")
    elif engine == "trtllm" and device not in ("h200", "h100-sxm"):
        fp8 = True
    else:
        fp8 = model == "llama-3.1-70b" or (engine == "trtllm" and model.startswith("deepseek"))
    return DType.FP8 if fp8 else DType.BF16


def layout_of(record: Record) -> tuple[int, int, int]:
    """`tp`, `ep` and `attention_dp`, from `tp8_ep8` in the id where it is there.

    Columns at times hold the product of equal sizes (64 devices in a node of 8). A tensor parallel size of 1 beside
    several attention groups is attention data parallelism; without `ep` in the id the columns of the experts count.
    """
    tp, moe_tp, moe_ep = (max(1, int(float(record[c] or 1))) for c in ("tp_size", "moe_tp_size", "moe_ep_size"))
    groups = int(float(record["attention_dp_size"] or 1))
    named = re.search(r"_tp(\d+)(?:_0)?_ep(none|\d+)", record["id"])
    if named and named[2] == "none":
        world = max(tp, moe_tp * moe_ep)
        return tp, moe_ep, world // tp
    if named:
        world, ep = int(named[1]), int(named[2])
    else:
        world = tp * groups
        if world > NODE and not record["system"].startswith("gb"):
            world = isqrt(world)
        ep = min(moe_ep, world)
    attention_dp = world if tp == 1 and groups > 1 else 1
    return world // attention_dp, ep, attention_dp


def row_of(record: Record, device: str) -> ServingRow:
    """A record, read with all corrections."""
    date = re.search(r"measured=(\d{4}-\d{2}-\d{2})", record["silicon_data_source"])
    model, source, engine = model_of(record), source_of(record), record["backend"]
    weights, (tp, ep, attention_dp) = weights_of(record, model), layout_of(record)
    return ServingRow(
        id=record["id"],
        device=device,
        engine=engine,
        version=record["backend_version"],
        model=model,
        weights=weights,
        kv=kv_of(device, engine, model, weights, source),
        tp=tp,
        ep=ep,
        attention_dp=attention_dp,
        pp=int(float(record["pp_size"] or 1)),
        concurrency=concurrency_of(record),
        isl=int(record["isl"]),
        osl=int(record["osl"]),
        mean_length=INFERENCEX_LENGTHS if source is Source.INFERENCEX else 1.0,
        ttft_s=float(record["silicon_ttft_ms"]) * 1e-3,
        tpot_s=float(record["silicon_tpot_ms"]) * 1e-3,
        date=date[1] if date else "",
        source=source,
    )


class Listing(NamedTuple):
    """What a rule may know of the other rows: who was first to list a measurement, and the rows of one run."""

    first: dict[Key, str]
    runs: dict[Key, list[ServingRow]]


def measurement(row: ServingRow) -> Key:
    """Equal for two records of one measurement; copies are rounded to 10 us."""
    values = round(row.ttft_s * 1e3, 2), round(row.tpot_s * 1e3, 2)
    return (row.device, row.engine, row.isl, row.osl, row.concurrency, *values)


def run(row: ServingRow) -> Key:
    """Equal for rows that differ in nothing but concurrency and what was measured."""
    return row._replace(id="", concurrency=0, ttft_s=0.0, tpot_s=0.0, exclusion=None)


def too_many_clients(row: ServingRow, _: Listing) -> bool:
    """More than 256 clients: time per token is that of 4 to 64 while first tokens take 20 to 460 s.

    The batch in the server is then not the concurrency.
    """
    return row.concurrency > MOST_CLIENTS


def unlabelled_speculation(row: ServingRow, _: Listing) -> bool:
    """DeepSeek under TRT-LLM measured since recipes with multi-token prediction exist; the table has no column for it.

    Time per token at 4 clients is 7 to 9 ms against 14 ms in the runs before, with and without expert parallelism,
    and rows of 2026-01-28 are of both kinds under one label.
    """
    return row.model.startswith("deepseek") and row.engine == "trtllm" and row.date >= SPECULATION_SINCE


def unknown_load(row: ServingRow, _: Listing) -> bool:
    """Gap-analysis rows whose prompt is a multiple of 1,000 tokens: points a planner chose, not a closed-loop grid.

    Concurrency differs with every length and is missing in some, and time per token hardly reacts to either (vLLM
    Qwen3-235B on 2 H200: 37 to 59 ms in no order from 4 to 20 clients).
    """
    return row.source is Source.GAP_ANALYSIS and row.isl % 1000 == 0


def repeated(row: ServingRow, others: Listing) -> bool:
    """The same measurement, first token and time per token, listed before: it must not count twice."""
    return others.first[measurement(row)] != row.id


def out_of_order(row: ServingRow, others: Listing) -> bool:
    """Over 1.25 times the time per token of more clients in the same run: a closed loop only slows down."""
    busier = (r.tpot_s for r in others.runs[run(row)] if r.concurrency > row.concurrency)
    return any(row.tpot_s > OUT_OF_ORDER * tpot_s for tpot_s in busier)


Rule = Callable[[ServingRow, Listing], bool]
RULES: tuple[Rule, ...] = (too_many_clients, unlabelled_speculation, unknown_load, repeated, out_of_order)


def judged(rows: Sequence[ServingRow]) -> list[ServingRow]:
    """The rows, each with the name of the first rule it breaks."""
    others = Listing({}, {})
    for row in rows:
        others.first.setdefault(measurement(row), row.id)
        others.runs.setdefault(run(row), []).append(row)
    return [row._replace(exclusion=next((r.__name__ for r in RULES if r(row, others)), None)) for row in rows]


def load(devices: Sequence[str] = TUNED, held_out: bool = False) -> list[ServingRow]:
    """All rows of aggregated serving on these devices, in the order of the file, judged."""
    for device in devices:
        if device not in DEVICES:
            raise UnknownNameError("device of the serving rows", device, DEVICES, listing="roofplan hw")
        if device in HELD_OUT and not held_out:
            raise InputError("held out: evaluated once a release, never tuned to", key="devices", value=device)
    ours = {DEVICES[device]: device for device in devices}
    with (silicon.root().parent / "silicon_sample.csv").open(newline="", encoding="utf-8") as file:
        records = [r for r in csv.DictReader(file) if r["mode"] == "agg" and r["system"] in ours]
    rows = [row_of(record, ours[record["system"]]) for record in records]
    return judged([row for row in rows if row.model not in OTHER_FORMS])


class Neighbours(NamedTuple):
    """Pairs of comparable rows that differ in one choice, the smaller value first."""

    concurrency: list[tuple[ServingRow, ServingRow]]
    layout: list[tuple[ServingRow, ServingRow]]


def neighbours(rows: Iterable[ServingRow]) -> Neighbours:
    """Consecutive concurrencies of one run, and consecutive `tp` of one kind (experts cut or not) at one load."""
    runs: dict[Key, dict[int, ServingRow]] = {}
    loads: dict[Key, dict[int, ServingRow]] = {}
    for row in rows:
        if row.exclusion is None:
            runs.setdefault(run(row), {}).setdefault(row.concurrency, row)
            cut = row.ep > 1, row.attention_dp > 1, row.concurrency
            loads.setdefault((run(row._replace(tp=0, ep=0, attention_dp=0)), *cut), {}).setdefault(row.tp, row)
    return Neighbours(_consecutive(runs), _consecutive(loads))


def _consecutive(groups: dict[Key, dict[int, ServingRow]]) -> list[tuple[ServingRow, ServingRow]]:
    return [pair for group in groups.values() for pair in pairwise(group[value] for value in sorted(group))]


def summary(rows: Sequence[ServingRow]) -> str:
    """Rows and comparable rows of each model, engine, device and version, and what each rule took out."""
    total = Counter((r.model, r.engine, r.device, r.version or "-") for r in rows)
    kept = Counter((r.model, r.engine, r.device, r.version or "-") for r in rows if r.exclusion is None)
    taken = Counter(r.exclusion for r in rows)
    table = [("model", "engine", "device", "version", "rows", "comparable")]
    table += [(*key, str(total[key]), str(kept[key])) for key in sorted(total)]
    table += [("all", "", "", "", str(total.total()), str(kept.total()))]
    lines = [f"{m:<16} {e:<7} {d:<9} {v:<15} {n:>5} {k:>10}" for m, e, d, v, n, k in table]
    return "\n".join([*lines, *(f"{rule.__name__}: {taken[rule.__name__]}" for rule in RULES)])
