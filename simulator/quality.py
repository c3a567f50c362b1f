"""What number formats cost in quality: the change of log-perplexity, from a table of published measurements.

`quality.csv` holds a line for each published figure with its source: weights (`part` weights) and KV caches (`cache`)
in a format, of a model. Lines of accuracies confirm, they enter no figure: no law turns one into the other.

A change is ln(perplexity in the format / perplexity in 16 bits) of the whole model. The law of what nobody measured:

    ln change = level(format) + slope ln(parameters) + offset(family)

The slope is one for all formats, the median of the slopes between models of one source and format (Theil, 1950) at
least twice apart in size: large models lose less. Caches take that of weights, they have too few lines for their own.
Levels are medians, and fall with the size of the file on each ladder of formats of one kind (violators pooled, Barlow
et al. 1972). An offset is the mean of what is left of a family, as if two more lines said 0. Figures of the very model
stand as published.

Left out of the table: 8-bit whole numbers with static activations and nothing smoothed (AMD Quark: Llama-2-7B from 5.47
to 19.09), which no engine's checkpoints are. Three lines have a base of 8 or 4 bits, which their `method` says.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..dtypes import DType
from .workload.formats import WeightFormat
from .workload.model import Model, Role, Tensor

FILE = Path(__file__).parent / "quality.csv"
ADDITIVITY = (
    "assumed: changes of log-perplexity add up over layers and tensors, each in proportion to its parameters; they do "
    "so roughly while all are small (a user's own measurements: --sensitivity)"
)
FLOOR = 2e-4  # of a change, before its logarithm: what two runs of one model differ by
NOISE = 0.002  # of one published figure: two digits of a perplexity of 5
LEAST = -0.01  # no change is better than that: formats do not improve models
PRIOR_LINES = 2.0
APART = 2.0
# 10th and 90th percentile of ln(measured / predicted) where a model's lines are left out (`left_out`), which a test
# holds; and the 90th percentile of the factor between figures of one model and format by different people or methods.
SPREADS = MappingProxyType({"weights": (-1.17, 0.93), "cache": (-2.08, 2.19)})
SAME_MODEL = 1.34
# Bits per weight of whole files of Llama 3 8B, by which formats nobody measured are placed (ggml-org/llama.cpp,
# tools/quantize/README.md; Q3_K_M and Q4_0 to Q5_1 from the sizes in examples/perplexity/README.md).
# fmt: off
FILE_BITS: Mapping[str, float] = MappingProxyType({
    "IQ1_S": 2.0042, "IQ1_M": 2.1460, "IQ2_XXS": 2.3824, "IQ2_XS": 2.5882, "IQ2_S": 2.7403, "IQ2_M": 2.9294,
    "IQ3_XXS": 3.2548, "IQ3_XS": 3.4977, "IQ3_S": 3.6606, "IQ3_M": 3.7628, "IQ4_XS": 4.4597, "IQ4_NL": 4.6818,
    "Q2_K_S": 2.9697, "Q2_K": 3.1593, "Q3_K_S": 3.6429, "Q3_K_M": 4.00, "Q3_K_L": 4.2979, "Q4_K_S": 4.6672,
    "Q4_K_M": 4.8944, "Q5_K_S": 5.5704, "Q5_K_M": 5.7036, "Q6_K": 6.5633, "Q8_0": 8.5008, "Q4_0": 4.64,
    "Q4_1": 5.11, "Q5_0": 5.57, "Q5_1": 6.04,
})
# fmt: on
_TOP = ("Q6_K", "Q8_0")
_K = ("Q2_K_S", "Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", *_TOP)
# Formats of one kind, the narrowest first: along each a wider format is never worse.
LADDERS: tuple[tuple[str, ...], ...] = (
    _K,
    (*(name for name in FILE_BITS if name.startswith("IQ")), *_TOP),
    ("Q4_0", "Q5_0", "Q8_0"),
    ("int4-rounded", "int4", "int8-w8a16"),
    ("mxfp4-w4a16", "nvfp4-w4a16", "fp8-w8a16"),
    ("nvfp4", "fp8"),
)
# A publisher's own weights in a narrow format, for which the model was trained: nothing wider exists to compare with.
# gpt-oss (arXiv 2508.10925, section 2.1), DeepSeek-V3 (arXiv 2412.19437, section 3.3) and what follows it.
TRAINED_IN: tuple[tuple[str, str], ...] = (
    ("gpt_oss", "mxfp4"),
    ("deepseek_v3", "fp8-block"),
    ("minimax_m2", "fp8-block"),
)
# What stands for a format without a line of its own, by the start of its name.
STAND_INS = (
    ("fp8-block", "fp8"),
    ("mxfp4", "mxfp4-w4a16"),
    ("MXFP4_MOE", "mxfp4-w4a16"),
    ("int4-g", "int4"),
    ("hqq4", "int4-rounded"),
)
BY_COMPUTE = MappingProxyType({DType.FP4: "nvfp4", DType.FP8: "fp8", DType.INT8: "int8"})

Floats = npt.NDArray[np.float64]


class Part(StrEnum):
    """What a change is split over: layers without routed experts, routed experts, token table, output head."""

    SHELL = "shell"
    EXPERTS = "experts"
    EMBEDDING = "embedding"
    HEAD = "head"


class Tier(StrEnum):
    """How near to the model a change was measured, the nearest first."""

    REFERENCE = "reference"  # 16 bits, or the publisher's own weights
    MODEL = "this model"
    FAMILY = "same family"
    SIZE = "by size"
    ASSUMED = "assumed"  # another format stands for it


class Change(NamedTuple):
    """Change of ln(perplexity) of a whole model: usual, and what 8 in 10 measurements lie between."""

    low: float
    usual: float
    high: float
    basis: str
    tier: Tier


NOTHING = Change(0.0, 0.0, 0.0, "16 bits or more", Tier.REFERENCE)


class Line(NamedTuple):
    """A published figure; `families` are starts of model names, `change` None where accuracies were published."""

    part: str
    format: str
    model: str
    families: tuple[str, ...]
    parameters: float
    change: float | None
    method: str
    source: str

    @property
    def log_change(self) -> float:
        """Logarithm of the change, of what cannot be told from nothing that of the noise."""
        assert self.change is not None
        return math.log(max(self.change, FLOOR))


class Law(NamedTuple):
    """Levels by format at one parameter, the slope, and the spread of what was left out: 10th and 90th percentile."""

    levels: Mapping[str, float]
    slope: float
    offsets: Mapping[tuple[str, ...], float]
    spread: tuple[float, float]

    def log_change(self, format_: str, parameters: float, families: tuple[str, ...] = ()) -> float:
        """Logarithm of the usual change."""
        return self.levels[format_] + self.slope * math.log(parameters) + self.offsets.get(families, 0.0)


@lru_cache(maxsize=1)
def lines(path: Path = FILE) -> tuple[Line, ...]:
    """The table."""
    with path.open(newline="", encoding="utf-8") as file:
        return tuple(_line(row) for row in csv.DictReader(file))


def _line(row: Mapping[str, str]) -> Line:
    value = float(row["value"])
    change: float | None
    match row["metric"]:
        case "perplexity":
            change = math.log(value / float(row["base"]))
        case "log ratio":
            change = value
        case _:
            change = None
    families, parameters = tuple(row["family"].split("|")), float(row["billions"]) * 1e9
    return Line(row["part"], row["format"], row["model"], families, parameters, change, row["method"], row["source"])


def increase(model: Model, weights: WeightFormat) -> Change:
    """Change of ln(perplexity) of the model with its weights in that format."""
    if weights.bits_per_weight >= 16:
        return NOTHING
    if weights.name == model.native.name and (model.origin == "bundled" or (model.family, weights.name) in TRAINED_IN):
        return NOTHING._replace(basis=f"the publisher's own weights in {weights.name}")
    return _change("weights", model.name.lower(), model.parameters, *_known(model, weights))


def kv_increase(model: Model, kv: DType) -> Change:
    """Change of ln(perplexity) of the model with its KV cache in that format; contexts longer than 8k may lose more."""
    if kv.bits >= 16:
        return NOTHING
    return _change("cache", model.name.lower(), model.parameters, kv.value, None)


def of_parts(model: Model, formats: Mapping[Part, WeightFormat]) -> Change:
    """Change of a model with another format in each part: the sum of the parts' shares of each (`ADDITIVITY`)."""
    low = usual = high = 0.0
    tiers, bases = [Tier.REFERENCE], []
    whole = any(weights.whole for weights in formats.values())  # else embedding and head stay wide
    for part, weights in formats.items():
        change, of_it = increase(model, weights), share(model, part, whole)
        low, usual, high = low + of_it * change.low, usual + of_it * change.usual, high + of_it * change.high
        if of_it:
            tiers.append(change.tier)
            bases.append(f"{part}: {change.basis}")
    worst = max(tiers, key=list(Tier).index)
    return Change(low, usual, high, "; ".join(bases), worst)


def _known(model: Model, weights: WeightFormat) -> tuple[str, float | None]:
    """The format of the table that stands for this one, or bits to place it by."""
    name = weights.name
    levels = law("weights").levels
    if not weights.exceptions:
        if name in levels:
            return name, None
        for start, other in STAND_INS:
            if name.startswith(start):
                return other, None if name == other else weights.bits_per_weight
    if not weights.weight_only and weights.compute in BY_COMPUTE:
        return BY_COMPUTE[weights.compute], weights.bits_per_weight
    return "", 8 * model.weight_bytes(weights) / model.parameters


@lru_cache(maxsize=4096)
def _change(part: str, name: str, parameters: float, format_: str, bits: float | None) -> Change:
    """The change by the nearest evidence; `bits` are given where the format is only like one of the table."""
    found = law(part)
    families = next((line.families for line in lines() if _is_of(name, line.families)), ())
    measured = [line for line in _measured(part) if line.format == format_ and _is_of(name, (line.model,))]
    if measured and bits is None:
        changes = [line.change for line in measured if line.change is not None]
        low, high = min(changes) / SAME_MODEL - NOISE, max(changes) * SAME_MODEL + NOISE  # noise covers those below 0
        said = "; ".join(dict.fromkeys(line.source for line in measured))
        return _bounded(low, float(np.median(changes)), high, said, Tier.MODEL)
    if format_:
        usual, said = found.log_change(format_, parameters, families), f"{_count(part, format_)} of {format_}"
    else:
        assert bits is not None
        usual, said = _by_bits(found, bits) + found.slope * math.log(parameters), f"{bits:.2f} bits among GGUF files"
        usual += found.offsets.get(families, 0.0)
    near = families in found.offsets
    tier = Tier.ASSUMED if bits is not None else Tier.FAMILY if near else Tier.SIZE
    said += f", shifted to {'/'.join(families)}" if near else ", by size"
    low, high = (math.exp(usual + by) for by in found.spread)
    return _bounded(low - NOISE, math.exp(usual), high + NOISE, said, tier)


def _bounded(low: float, usual: float, high: float, basis: str, tier: Tier) -> Change:
    usual = max(usual, LEAST)
    return Change(max(min(low, usual), LEAST), usual, max(high, usual), basis, tier)


def _count(part: str, format_: str) -> str:
    count = sum(line.format == format_ for line in _measured(part))
    return f"{count} {'figure' if count == 1 else 'figures'}"


@lru_cache(maxsize=65536)
def _is_of(name: str, starts: tuple[str, ...]) -> bool:
    """Whether a model's name holds one of these as its start or behind a mark (`meta-llama/Llama-3-8B`)."""
    return any(re.search(rf"(?:^|[^a-z0-9.]){re.escape(start)}(?![0-9])", name) for start in starts)


@lru_cache(maxsize=2)
def _measured(part: str) -> tuple[Line, ...]:
    return tuple(line for line in lines() if line.part == part and line.change is not None)


@lru_cache(maxsize=2)
def law(part: str) -> Law:
    """The law of weights or caches."""
    slope = slope_of(_measured("weights"))
    return fit(_measured(part), slope)._replace(spread=SPREADS[part])


def left_out(part: str) -> list[tuple[float, float, float]]:
    """Of each line ln(measured / predicted), the measured and the predicted change, its model's lines left out."""
    table, found = _measured(part), []
    for model in dict.fromkeys(line.model for line in table):
        slope = slope_of([line for line in _measured("weights") if line.model != model])
        others = fit([line for line in table if line.model != model], slope)
        for line in table:
            if line.model == model and line.format in others.levels and line.change is not None:
                usual = others.log_change(line.format, line.parameters, line.families)
                found.append((line.log_change - usual, line.change, math.exp(usual)))
    return found


def fit(table: Iterable[Line], slope: float) -> Law:
    """Levels and offsets of a table (no spread)."""
    table = tuple(table)
    by_format: dict[str, list[float]] = {}
    for line in table:
        by_format.setdefault(line.format, []).append(line.log_change - slope * math.log(line.parameters))
    levels = {name: float(np.median(values)) for name, values in by_format.items()}
    for ladder in LADDERS:
        steps = [name for name in ladder if name in levels]
        pooled = falling([levels[name] for name in steps], [len(by_format[name]) for name in steps])
        levels.update(zip(steps, pooled, strict=True))
    left: dict[tuple[str, ...], list[float]] = {}
    for line in table:
        residual = line.log_change - levels[line.format] - slope * math.log(line.parameters)
        left.setdefault(line.families, []).append(residual)
    offsets = {families: sum(values) / (len(values) + PRIOR_LINES) for families, values in left.items()}
    return Law(levels, slope, offsets, (0.0, 0.0))


def slope_of(table: Iterable[Line]) -> float:
    """Median slope of ln change over ln parameters between models of one source and format."""
    alike: dict[tuple[str, str], list[Line]] = {}
    for line in table:
        if (line.change or 0.0) > NOISE:
            alike.setdefault((line.format, _tool(line)), []).append(line)
    slopes = []
    for group in alike.values():
        for i, a in enumerate(group):
            for b in group[i + 1 :]:
                ratio = b.parameters / a.parameters
                if not 1 / APART < ratio < APART:
                    slopes.append((b.log_change - a.log_change) / math.log(ratio))
    return min(0.0, float(np.median(slopes))) if slopes else 0.0


def _tool(line: Line) -> str:
    """Who measured, and how: the slope is not to come from the difference of two benchmarks."""
    return f"{line.source.split('/')[1] if line.source.startswith('huggingface') else line.source}: {line.method}"


def falling(values: Sequence[float], weights: Sequence[float]) -> list[float]:
    """The nearest sequence that never rises: neighbours that do are pooled (Barlow et al. 1972, section 1.2)."""
    blocks: list[tuple[float, float, int]] = []
    for value, weight in zip(values, weights, strict=True):
        blocks.append((value, weight, 1))
        while len(blocks) > 1 and blocks[-2][0] < blocks[-1][0]:
            (a, wa, na), (b, wb, nb) = blocks[-2:]
            blocks[-2:] = [((a * wa + b * wb) / (wa + wb), wa + wb, na + nb)]
    return [value for value, _, count in blocks for _ in range(count)]


def _by_bits(found: Law, bits: float) -> float:
    """Level of a weight-only format of so many bits among the GGUF files, which it is assumed to be no better than."""
    names = sorted((name for name in FILE_BITS if name in found.levels), key=FILE_BITS.__getitem__)
    levels = falling([found.levels[name] for name in names], [1.0] * len(names))
    return float(np.interp(bits, [FILE_BITS[name] for name in names], levels))


def same_model_spread() -> float:
    """Factor between figures of one model and format by different sources or methods: their 90th percentile."""
    groups: dict[tuple[str, str, str], list[float]] = {}
    for part in ("weights", "cache"):
        for line in _measured(part):
            if line.change is not None and line.change > NOISE:
                groups.setdefault((part, line.format, line.model), []).append(line.log_change)
    left = [abs(v - float(np.median(g))) for g in groups.values() if len(g) > 1 for v in g]
    return math.exp(float(np.quantile(left, 0.9)))


def part_of(model: Model, tensor: Tensor) -> Part | None:
    """The part a tensor belongs to; None: no number format narrows it (norms, routers, towers)."""
    if tensor.role is Role.EMBED:
        return Part.EMBEDDING
    if tensor.role is Role.LM_HEAD:
        return Part.HEAD
    if tensor.block is None or tensor.scope is None:
        return None
    return Part.EXPERTS if tensor.routed else Part.SHELL


def share(model: Model, part: Part, whole: bool = False) -> float:
    """Share of a whole-model change that falls to a part: that of its parameters (`ADDITIVITY`).

    The shares of all parts add up to 1. Where a format is not `whole`, embedding and head stay wide and bear nothing;
    a table that is the head too counts as embedding.
    """
    counts = _counts(model)
    borne = {p: n for p, n in counts.items() if whole or p in (Part.SHELL, Part.EXPERTS)}
    return borne.get(part, 0.0) / sum(borne.values())


def layer_shares(model: Model, part: Part, whole: bool = False) -> Floats:
    """The part's share by layer, (layers,): alike in all layers that hold it; zeros for embedding and head."""
    held = np.array(
        [
            any(t.block == block and part_of(model, t) is part for t in model.tensors)
            for block in range(len(model.blocks))
        ]
    )
    layers = held[np.array(model.pattern)].astype(float)
    return np.asarray(layers * share(model, part, whole) / max(1.0, layers.sum()))


def _counts(model: Model) -> dict[Part, int]:
    counts: dict[Part, int] = {}
    for tensor in model.tensors:
        part = part_of(model, tensor)
        if part is not None:
            counts[part] = counts.get(part, 0) + tensor.elements * model.instances(tensor)
    return counts
