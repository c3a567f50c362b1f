"""Which rows a fit sees: whole sites are kept for judging, and of the rest a designed sample is drawn.

The sample is stratified over the columns that matter to a kernel; a stratum gets points by the square root of its
rows, so that rare corners are seen, and each point a weight that gives the strata their share of the rows back.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..simulator.estimate import Array
from ..simulator.operators import NO_WINDOW, Attention, Collective, Experts, Gemm, KernelName, Table

Rows = npt.NDArray[np.int64]
POINTS = {
    KernelName.ATTENTION_PREFILL: 80,
    KernelName.ATTENTION_DECODE: 80,
    KernelName.MLA_PREFILL: 80,
    KernelName.MLA_DECODE: 80,
    KernelName.ALL_REDUCE: 60,
    KernelName.ALL_GATHER: 60,
    KernelName.REDUCE_SCATTER: 60,
    KernelName.ALL_TO_ALL: 60,
    KernelName.ELEMENTWISE: 60,
}
MOST_POINTS = 300
# The grid a GPU of a known class can be calibrated on: see the study the forms come from.
GRID_96 = {
    "m": (4.0, 32.0, 128.0, 768.0, 4096.0, 32768.0),
    "n": (128.0, 1024.0, 5120.0, 16384.0),
    "k": (128.0, 768.0, 3072.0, 12288.0),
}


class Sample(NamedTuple):
    """Row indices and their weights (mean 1)."""

    rows: Rows
    weights: Array


def split_sites(table: Table, site: Array, seed: int) -> tuple[Rows, Rows]:
    """Row indices of the sites to fit on and of those to judge by: half of the sites each, none in both.

    Sites are drawn at random; message sizes, which are an axis and not shapes, alternate.
    """
    sites = np.unique(site)
    order = sites if isinstance(table, Collective) else np.random.default_rng(seed).permutation(sites)
    chosen = order[::2] if isinstance(table, Collective) else order[: max(1, len(sites) // 2)]
    inside = np.isin(site, chosen)
    return np.flatnonzero(inside), np.flatnonzero(~inside)


def points(kernel: KernelName) -> int:
    """Most points a fit of the kernel may use."""
    return POINTS.get(kernel, MOST_POINTS)


def designed(table: Table, seconds: Array, size: int, seed: int) -> Sample:
    """A stratified sample of at most `size` rows."""
    cells = strata(table, seconds)
    distinct, inverse, count = np.unique(cells, return_inverse=True, return_counts=True)
    inverse = np.ravel(inverse)
    rng = np.random.default_rng(seed)
    wanted = np.sqrt(count) / np.sqrt(count).sum() * min(size, len(cells))
    whole = np.floor(wanted).astype(int)
    rest = wanted - whole
    spare = min(min(size, len(cells)) - whole.sum(), int((rest > 0).sum()))
    if spare > 0:
        whole[rng.choice(len(distinct), spare, replace=False, p=rest / rest.sum())] += 1
    rows: list[int] = []
    weights: list[float] = []
    for cell, number in enumerate(np.minimum(whole, count)):
        if number:
            rows += list(rng.choice(np.flatnonzero(inverse == cell), number, replace=False))
            weights += [count[cell] / number] * int(number)
    weight = np.array(weights)
    return Sample(np.array(rows, dtype=np.int64), weight / weight.mean())


def grid_rows(table: Gemm) -> Rows:
    """Rows of the 96-point grid."""
    chosen = np.isin(table.m, GRID_96["m"]) & np.isin(table.n, GRID_96["n"]) & np.isin(table.k, GRID_96["k"])
    return np.flatnonzero(chosen)


def strata(table: Table, seconds: Array) -> npt.NDArray[np.int64]:
    """The stratum of each row, by the columns that matter to its operator class."""
    parts: list[npt.NDArray[Any]]
    match table:
        case Gemm():
            parts = [_bins(table.m, 9), _bins(table.n, 5), _bins(table.k, 5)]
        case Attention():
            windowed, grouped = table.window < NO_WINDOW, table.heads > table.kv_heads
            parts = [_bins(seconds, 6), windowed, grouped, table.head_dim > 128]
        case Experts():
            parts = [_bins(table.tokens, 6), _bins(seconds, 5), table.routing_alpha > 0]
        case Collective():
            parts = [_bins(table.message_bytes, 10), table.ranks]
        case _:
            parts = [_bins(seconds, 10)]
    result = np.zeros(len(seconds), dtype=np.int64)
    for part in parts:
        result = result * 64 + np.asarray(part).astype(np.int64)
    return result


def _bins(values: Array, number: int) -> npt.NDArray[np.int64]:
    """Quantile bins of the distinct values."""
    log = np.log(values)
    edges = np.quantile(np.unique(log), np.linspace(0, 1, number + 1)[1:-1])
    return np.asarray(np.digitize(log, edges))
