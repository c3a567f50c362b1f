"""Open a step up: one row per operator and layer class, and the sentence that names what binds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .answers import Quantity, Share
from .calibration import CalibrationSet, Resolved
from .costs import work
from .estimate import NO_TIME, Array, Bound, Estimate
from .operators import (
    Attention,
    Bidirectional,
    Collective,
    Copy,
    Elementwise,
    Experts,
    Gemm,
    KernelName,
    LatentAttention,
    Table,
)
from .schedule import Priced


class Row(NamedTuple):
    """One operator of one layer class: work and time over all its repetitions on all stages."""

    table: Table
    label: str
    layer: str
    repetitions: float
    flops: float
    traffic_bytes: float
    time: Estimate
    resolved: Resolved


def rows_of(operators: Sequence[Priced], calibrations: CalibrationSet) -> list[Row]:
    """The rows of the priced operators of a scalar step."""
    result = []
    for table, times, on in operators:
        amount = work(table)
        resolved = (on or calibrations).resolve(table.kernel)
        for i, (label, layer) in enumerate(zip(table.label, table.layer, strict=True)):
            count = float(table.count[i].sum())
            if count == 0:
                continue
            flops, moved = (float(np.ravel(a[i])[0]) for a in (amount.flops, amount.traffic_bytes))
            time = times.row(i).scaled(count)
            result.append(Row(table, label, layer, count, flops * count, moved * count, time, resolved))
    return result


def quantity(estimate_: Estimate, unit: str = "s") -> Quantity:
    """A scalar estimate as a quantity."""
    return known(float(estimate_.time_s), float(estimate_.low_s), float(estimate_.high_s), unit)


def rate(estimate_: Estimate, amount: float, unit: str) -> Quantity:
    """`amount` per time of a scalar estimate; the interval's ends change places."""
    return known(
        amount / float(estimate_.time_s), amount / float(estimate_.high_s), amount / float(estimate_.low_s), unit
    )


def known(value: float, low: float, high: float, unit: str) -> Quantity:
    """A quantity; what is not finite becomes null with a reason."""
    if not all(map(math.isfinite, (value, low, high))):
        return Quantity(None, None, None, unit, "not finite")
    return Quantity(value, low, high, unit)


def operator_class(table: Table) -> str:
    """The operator class as people call it."""
    return "attention" if isinstance(table, Attention | LatentAttention) else type(table).__name__.lower()


def cause(table: Table, bound: Bound) -> str:
    """What a term of an operator is spent on, in words that add up over a step."""
    if bound is Bound.COMPUTE:
        return "arithmetic"
    if bound is Bound.FLOOR:
        return "communication latency" if isinstance(table, Collective) else "kernel launches"
    if bound is Bound.LINK:
        return "copies over the host link" if isinstance(table, Copy) else "communication"
    if bound is Bound.LATENCY:
        return "communication latency" if isinstance(table, Collective) else "latency inside kernels"
    match table:
        case Bidirectional() if table.kernel.name is KernelName.ATTENTION_PREFILL:
            return "activation traffic"
        case Gemm() | Experts():
            return "weight traffic"
        case Attention() | LatentAttention():
            return "KV cache traffic"
        case Elementwise() | Copy():
            return "activation traffic"
    return "convolution traffic"


def shares(operators: Sequence[Priced]) -> tuple[Share, ...]:
    """A scalar step's time by cause over all stages, largest first."""
    causes: dict[str, float] = {}
    for table, times, on in operators:
        repetitions = table.count.sum(axis=1)
        for bound, term in zip(Bound, times.terms.stack(), strict=True):
            if term is not NO_TIME:
                name = cause(table, bound) + ("" if on is None else ON_HOST)
                causes[name] = causes.get(name, 0.0) + float(term.reshape(len(repetitions)) @ repetitions)
    whole = sum(causes.values()) or 1.0
    ordered = sorted(causes.items(), key=lambda item: -item[1])
    return tuple(Share(name, seconds / whole) for name, seconds in ordered if seconds > 0)


def largest_cause(operators: Sequence[Priced]) -> npt.NDArray[np.int8]:
    """What most of a step's time goes to at each grid point, as its place in `CAUSES`: the first of `shares`."""
    causes: dict[str, Array] = {}
    for table, times, _ in operators:
        repetitions = table.count.sum(axis=1)
        for bound, term in zip(Bound, times.terms.stack(), strict=True):
            if term is not NO_TIME:
                name = cause(table, bound)
                causes[name] = causes.get(name, NO_TIME) + np.tensordot(repetitions, term, axes=1)
    most, result = NO_TIME, np.zeros((), np.int8)
    for name, seconds in causes.items():
        result = np.where(seconds > most, np.int8(CAUSES.index(name)), result)
        most = np.maximum(most, seconds)
    return result


ON_HOST = " on the host"
_BOUND_NAME = {
    "weight traffic": "memory-bound",
    "KV cache traffic": "memory-bound",
    "activation traffic": "memory-bound",
    "convolution traffic": "memory-bound",
    "arithmetic": "compute-bound",
    "communication": "link-bound",
    "copies over the host link": "link-bound",
    "communication latency": "latency-bound",
    "kernel launches": "launch-bound",
    "latency inside kernels": "latency-bound",
}
CAUSES = tuple(_BOUND_NAME)
"""Every word of `cause`."""


def sentence(phase: str, parts: tuple[Share, ...], of: str = "step") -> str:
    """'decode is memory-bound: 83 % of the step is weight traffic, 9 % kernel launches'."""
    if not parts:
        return f"{phase} takes no time"
    first, rest = parts[0], [p for p in parts[1:3] if p.share >= 0.05]
    bound = "bound by the host" if first.name.endswith(ON_HOST) else _BOUND_NAME[first.name]
    text = f"{phase} is {bound}: {first.share:.0%} of the {of} is {first.name}"
    return text + "".join(f", {p.share:.0%} {p.name}" for p in rest)
