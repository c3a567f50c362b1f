"""Regimes of an operator class: the ranges in which different terms of its model decide, and errors differ."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from ..simulator.estimate import Array
from ..simulator.operators import (
    NO_WINDOW,
    Attention,
    Collective,
    Elementwise,
    Experts,
    Gemm,
    LatentAttention,
    Table,
)

Mask = npt.NDArray[np.bool_]


def regimes(table: Table, seconds: Array) -> Mapping[str, Mask]:
    """Named masks over the rows; they need not be disjoint."""
    match table:
        case Gemm():
            big = table.n * table.k >= 16e6
            return {**_between("m", table.m, (16, 256, 2048)), "n k >= 16M": big}
        case Attention():
            windowed = table.window < NO_WINDOW
            grouped = table.heads > table.kv_heads
            return {
                **_by_time(seconds),
                "window": windowed,
                "no window": ~windowed,
                "grouped": grouped,
                "ungrouped": ~grouped,
            }
        case Experts():
            return {**_between("tokens", table.tokens, (8, 128, 1024)), "expert-parallel": table.ranks > 1}
        case Collective():
            ranks = {f"{n} ranks": table.ranks == n for n in np.unique(table.ranks).astype(int)}
            return {**_between("bytes", table.message_bytes, (65536, 2**20, 2**24)), **ranks}
        case LatentAttention() | Elementwise():
            return _by_time(seconds)
    return {}


def _between(name: str, values: Array, edges: tuple[float, ...]) -> dict[str, Mask]:
    bounds = (-np.inf, *edges, np.inf)
    found = {}
    for low, high in pairwise(bounds):
        label = f"{name} <= {high:g}" if low == -np.inf else f"{name} > {low:g}" if high == np.inf else None
        found[label or f"{low:g} < {name} <= {high:g}"] = (values > low) & (values <= high)
    return found


def _by_time(seconds: Array) -> dict[str, Mask]:
    names = ("under 50 us", "50 to 500 us", "0.5 to 5 ms", "over 5 ms")
    edges = (0.0, 5e-5, 5e-4, 5e-3, np.inf)
    return {name: (seconds >= low) & (seconds < high) for name, (low, high) in zip(names, pairwise(edges), strict=True)}
