"""Operator tables of shapes: built from columns, read back a row at a time; random ones that are always the same."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..simulator.estimate import Array
from ..simulator.operators import Column, Kernel, TableT

CALIBRATION, HELD_OUT, SMALL = "calibration", "held out", "small"


def table_of(cls: type[TableT], kernel: Kernel, label: str | Sequence[str], **columns: Column) -> TableT:
    """A table of as many rows as the longest column; single numbers hold for every row."""
    arrays = np.broadcast_arrays(*(np.atleast_1d(np.asarray(c, dtype=float)) for c in columns.values()))
    rows = len(arrays[0])
    labels = (label,) * rows if isinstance(label, str) else tuple(label)
    values = {name: np.array(array) for name, array in zip(columns, arrays, strict=True)}
    return cls(labels, ("microkernel",) * rows, np.ones((rows, 1)), kernel, **values)


def cases(table: TableT) -> list[TableT]:
    """Each row as a table of its own."""
    return [table.take(np.array([row])) for row in range(len(table.label))]


def only(column: Array) -> int:
    """The whole number in a column of one row."""
    (value,) = np.ravel(column)
    if not float(value).is_integer():
        raise ValueError(f"not a whole number: {value}")
    return int(value)


def not_among(
    shapes: Sequence[tuple[str, tuple[int, int, int]]], fitted: Sequence[tuple[int, int, int]]
) -> list[tuple[str, tuple[int, int, int]]]:
    """The named (m, n, k) whose (n, k), the weight's shape, no fit has seen at any m."""
    sites = {(n, k) for _, n, k in fitted}
    return [(name, (m, n, k)) for name, (m, n, k) in shapes if (n, k) not in sites]


def log_uniform(seed: int, count: int, low: float, high: float, multiple: int = 1) -> list[int]:
    """Seeded whole numbers, uniform in the logarithm, rounded to a multiple and at least that."""
    drawn = np.exp(np.random.default_rng(seed).uniform(np.log(low), np.log(high), count))
    return [max(multiple, round(value / multiple) * multiple) for value in drawn]
