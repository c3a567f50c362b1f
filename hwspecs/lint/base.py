"""What the checks share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from ..device import Fact, Part

TOLERANCE = 0.02  # printed figures are rounded to two or three digits


class Finding(NamedTuple):
    """One thing wrong with a file, with the arithmetic that shows it."""

    file: str
    key: str
    problem: str


Check = Callable[[Part], Iterator[Finding]]


def off(stated: float, expected: float, tolerance: float = TOLERANCE) -> bool:
    """Whether a number differs from what it should be by more than rounding."""
    return expected <= 0 or abs(stated / expected - 1) > tolerance


def about(ratio: float, multiple: float, tolerance: float = 0.05) -> bool:
    """Whether a ratio is that multiple, given that both of its numbers are rounded."""
    return abs(ratio / multiple - 1) <= tolerance


def facts_of(part: Part) -> Iterator[tuple[str, Fact]]:
    """Every number of a file with its dotted key."""
    for name, value in vars(part).items():
        if isinstance(value, Fact):
            yield name, value
        elif name.startswith(("peak_", "sustained_", "flops_per_")):
            yield from ((f"{name}.{dtype}", fact) for dtype, fact in value.items())
