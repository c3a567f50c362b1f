"""How large errors may be: the committed table a test holds every kind of evidence to, each bound with its source.

The most specific bound counts: a row that names device and engine stands above one that names neither. Bounds marked
"missed" are not met yet; they hold what was measured, and say by how much the gate was missed.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from ..errors import InputError
from ..simulator.calibration import Errors

FILE = Path(__file__).parent / "gates.csv"
ANY = "*"
LEAST, MOST = "least_coverage", "most_coverage"
DEGENERATE = frozenset({"compute_fraction", "read_fraction"})  # rates that the data did not hold


class Bound(NamedTuple):
    """Limits, in percent, of the errors of one group of rows; None: unlimited. `*` stands for every name."""

    evidence: str
    kernel: str
    dtype: str
    device: str
    engine: str
    regime: str
    mape: float | None
    median: float | None
    p90: float | None
    bias: float | None
    least_coverage: float | None
    most_coverage: float | None
    source: str

    @property
    def about(self) -> tuple[str, str, str, str]:
        """Kernel, dtype, device and engine it is about."""
        return self.kernel, self.dtype, self.device, self.engine

    @property
    def missed(self) -> bool:
        """Whether the gate it stands for is not met yet."""
        return "missed" in self.source

    def covers(self, evidence: str, regime: str, about: Sequence[str]) -> bool:
        """Whether it speaks of these rows."""
        names = zip(self.about, about, strict=True)
        return (self.evidence, self.regime) == (evidence, regime) and all(own in (ANY, name) for own, name in names)

    def broken(self, found: Errors) -> Iterator[str]:
        """The limits these errors do not keep."""
        for name in ("mape", "median", "p90"):
            limit, value = getattr(self, name), getattr(found, name)
            if limit is not None and value > limit:
                yield f"{name} {value:.2f} > {limit:g}"
        if self.bias is not None and abs(found.bias) > self.bias:
            yield f"|bias| {abs(found.bias):.2f} > {self.bias:g}"
        if self.least_coverage is not None and found.coverage < self.least_coverage:
            yield f"coverage {found.coverage:.1f} < {self.least_coverage:g}"
        if self.most_coverage is not None and found.coverage > self.most_coverage:
            yield f"coverage {found.coverage:.1f} > {self.most_coverage:g}"


@lru_cache(maxsize=1)
def read(path: Path = FILE) -> tuple[Bound, ...]:
    """All bounds."""
    with path.open(newline="", encoding="utf-8") as file:
        return tuple(_bound(row, path, line) for line, row in enumerate(csv.DictReader(file), start=2))


def _bound(row: dict[str, str], path: Path, line: int) -> Bound:
    numbers = ("mape", "median", "p90", "bias", LEAST, MOST)
    try:
        limits = {name: float(row[name]) if row[name] else None for name in numbers}
        texts = {name: row[name] for name in Bound._fields if name not in numbers}
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"not a bound: {error}", file=str(path), key=f"line {line}") from None
    return Bound(**texts, **limits)  # type: ignore[arg-type]


def bound_of(evidence: str, regime: str, about: Sequence[str]) -> Bound | None:
    """The most specific bound of these rows, if any speaks of them."""
    found = [b for b in read() if b.covers(evidence, regime, about)]
    return min(found, key=lambda b: b.about.count(ANY)) if found else None
