"""What a layer costs in a mode: its parts computed here or there, copied beside the computing or waited for.

One function for every caller: a placement's step (`offload.py`), the coefficients of the integer program
(`planner/prices.py`), the search of `fits` (`planner/place.py`).
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from .estimate import Array
from .operators import Attention, Experts, LatentAttention
from .scenario import MemoryTier, Mode, Where

PARTS = ("shell", "experts", "kv")


def part_of(table: object) -> int:
    """The part of a layer a table of operators belongs to, an index into `PARTS`."""
    return 1 if isinstance(table, Experts) else 2 if isinstance(table, Attention | LatentAttention) else 0


class PartCosts(Protocol):
    """Seconds of the parts of layers in one kind of step, (parts, layers, *grid); a layer may stand for several."""

    @property
    def on_device(self) -> Array:
        """Computing on the device."""

    @property
    def on_host(self) -> Array:
        """Computing on the host."""

    @property
    def copying(self) -> Array:
        """All of a part's bytes over the host link."""

    @property
    def over_cxl(self) -> Array:
        """The same bytes, of all ranks, out of memory behind CXL."""

    @property
    def copying_inputs(self) -> Array:
        """The inputs of the cached tokens instead of their keys and values, (layers, *grid)."""

    @property
    def remaking(self) -> Array:
        """Keys and values made of those inputs again, (layers, *grid)."""

    @property
    def repeats(self) -> Array:
        """Layers that each stands for, (layers,)."""

    @property
    def handing_over(self) -> Array:
        """The hidden state to the host and back, (*grid)."""

    @property
    def held_up(self) -> Array:
        """Share of copying each part that nothing runs beside, (parts,)."""

    @property
    def decoding(self) -> bool:
        """Whether it is a decode step."""

    def chosen(self, cached: float) -> Array:
        """Share of a layer's expert bytes that is chosen and not among the `cached` popular ones, (layers, *grid)."""


class LayerTimes(NamedTuple):
    """Seconds a layer would take in a mode, (layers, *grid): computing, hand-overs included; prefetched, late copies.

    `by_host`: whether the host computes a part of it in this step, (parts, layers, *grid).
    """

    computing: Array
    prefetched: Array
    late: Array
    by_host: npt.NDArray[np.bool_]


def layer_times(costs: PartCosts, mode: Mode, cached: float = 0.0, tier: MemoryTier = MemoryTier.HOST) -> LayerTimes:
    """The times of every layer in a mode. A prompt's host parts run wherever that is faster.

    Copies of experts that a router chose are waited for, and staging that holds up the launching of kernels; all others
    are begun before.
    """
    grid = costs.on_device.shape[1:]
    computing, ahead, late = np.zeros(grid), np.zeros(grid), np.zeros(grid)
    by_host = np.zeros((len(PARTS), *grid), dtype=bool)
    for index, part in enumerate(PARTS):
        where: Where = getattr(mode, part)
        here = costs.on_device[index]
        if where is Where.DEVICE:
            computing = computing + here
            continue
        copies, there = _copies(costs, index, where, cached, tier), here
        if where is Where.HOST:
            there = host_seconds(costs, index, cached, tier)
            by_host[index] = np.logical_not(_better_copied(costs, copies, here, there))
        elif where is Where.REMADE:
            here = here + costs.remaking
        computing = computing + np.where(by_host[index], there, here)
        moved = np.where(by_host[index], 0.0, copies)
        waits = part == "experts" and mode.shell is Where.DEVICE and costs.decoding
        alone = 1.0 if waits else float(costs.held_up[index])
        late, ahead = late + alone * moved, ahead + (1.0 - alone) * moved
    if mode.shell is not Where.HOST and by_host.any():
        computing = computing + np.where(by_host.any(axis=0), costs.handing_over, 0.0)
    return LayerTimes(np.asarray(computing), np.asarray(ahead), np.asarray(late), by_host)


def host_seconds(costs: PartCosts, index: int, cached: float, tier: MemoryTier) -> Array:
    """Seconds the host computes with a part: no faster than memory behind CXL gives it."""
    here = np.asarray(costs.on_host[index])
    return np.maximum(here, costs.over_cxl[index] * _used(costs, index, cached)) if tier is MemoryTier.CXL else here


def _used(costs: PartCosts, index: int, cached: float) -> Array:
    """Share of a part's bytes that a step uses: of experts those chosen that are not cached, of the others all."""
    return costs.chosen(cached) if PARTS[index] == "experts" else np.ones(())


def _copies(costs: PartCosts, index: int, where: Where, cached: float, tier: MemoryTier) -> Array:
    """Seconds of copying a part: over the host link, or as fast as memory behind CXL gives it."""
    share = _used(costs, index, cached)
    if where is Where.REMADE:
        link, full = costs.copying_inputs, np.maximum(costs.copying[index], 1e-300)
        share = share * link / full  # fewer bytes, out of CXL as well
    else:
        link = costs.copying[index] * share
    return np.asarray(np.maximum(link, costs.over_cxl[index] * share) if tier is MemoryTier.CXL else link)


def _better_copied(costs: PartCosts, copies: Array, here: Array, there: Array) -> Array:
    """Whether a prompt is faster with a host part copied over, (*grid): llama.cpp and KTransformers decide by batch."""
    if costs.decoding:
        return np.zeros(here.shape[1:], dtype=bool)
    repeats = costs.repeats.reshape(-1, *([1] * (here.ndim - 1)))
    return np.asarray((repeats * np.maximum(copies, here)).sum(axis=0) < (repeats * there).sum(axis=0))
