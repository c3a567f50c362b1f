"""Bounds on the errors of a validation: what a user's CI holds a kernel to."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

from ..errors import InputError, UnknownNameError
from ..simulator.operators import KernelName
from .validate import ALL, SERVING, Case

CLASSES = (*map(str, KernelName), SERVING, ALL)
POOLED = "all rows"


class Measure(StrEnum):
    """Which figure is bounded."""

    MAPE = "mape"
    MEDIAN = "median"
    COVERAGE = "coverage"


class Bound(NamedTuple):
    """A kernel class (or `all`) and the percentage its error may reach; of coverage the least that is enough."""

    measure: Measure
    of: str
    limit_percent: float


class Outcome(NamedTuple):
    """A bound beside the figure it was held against."""

    bound: Bound
    evidence: str
    case: str
    value_percent: float
    held: bool


def parse(texts: Iterable[str], measure: Measure, key: str) -> tuple[Bound, ...]:
    """Bounds from `gemm=8` and the like."""
    found: dict[str, float] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError("must be CLASS=PERCENT", key=key, value=text, remedy=f"write it like {key} gemm=8")
        name = name.strip().lower()
        if name in found:
            raise InputError("bounded twice", key=key, value=name, remedy="give one bound a class")
        found[name] = percent(value, key)
    return of_mapping(found, measure, key)


def of_mapping(limits: Mapping[str, float], measure: Measure, key: str) -> tuple[Bound, ...]:
    """Bounds from a mapping of classes to percentages."""
    for name, limit in limits.items():
        if name not in CLASSES:
            raise UnknownNameError(f"class of {key}", name, CLASSES, listing="roofplan validate --help")
        percent(limit, key)
    return tuple(Bound(measure, name, float(limit)) for name, limit in limits.items())


def percent(value: object, key: str) -> float:
    """A percentage: finite, not negative."""
    try:
        number = float(str(value).strip().removesuffix("%"))
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number >= 0):
        raise InputError("must be a percentage of zero or more", key=key, value=value, remedy="write it like 8 or 7.5")
    return number


def coverage(limit: object, key: str) -> Bound:
    """The least share of all judged rows that must lie inside their interval."""
    if (number := percent(limit, key)) > 100:
        raise InputError("no more than 100 % of the rows can be covered", key=key, value=limit)
    return Bound(Measure.COVERAGE, POOLED, number)


def pooled_coverage(cases: Iterable[Case]) -> float:
    """Share of the rows of some cases that lie inside their interval, in percent."""
    whole = [c.errors for c in cases if c.regime == ALL]
    return sum(e.n * e.coverage for e in whole) / sum(e.n for e in whole)


def hold(bounds: Sequence[Bound], cases: Sequence[Case]) -> tuple[Outcome, ...]:
    """Every bound against every case of its class, all rows of it; a bound that meets no case is a mistake."""
    whole = [c for c in cases if c.regime == ALL]
    found: list[Outcome] = []
    for bound in bounds:
        if bound.measure is Measure.COVERAGE:
            value = pooled_coverage(cases)
            found.append(Outcome(bound, "pooled", bound.of, value, value >= bound.limit_percent))
            continue
        mine = [c for c in whole if bound.of in (ALL, c.kernel.split("/")[0])]
        if not mine:
            there = ", ".join(sorted({c.kernel.split("/")[0] for c in whole}))
            remedy = f"judged were: {there}"
            raise InputError(
                "no case of this class was judged", key=f"--max-{bound.measure}", value=bound.of, remedy=remedy
            )
        for case in mine:
            value = case.errors.mape if bound.measure is Measure.MAPE else case.errors.median
            found.append(Outcome(bound, case.evidence, case.name, value, value <= bound.limit_percent))
    return tuple(found)
