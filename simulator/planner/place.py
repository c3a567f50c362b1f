"""Where layers, experts and KV cache go when they do not all fit the device: one function, by whole enumeration.

The domain: a first stretch of layers in one mode, a second in another, the rest on the device; streamed experts with
each of a few shares cached. Every pair of modes and every length of the first stretch is looked at, the second as
short as memory allows; time adds up over layers, so the whole domain is a few prefix sums.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..calibration import CalibrationSet
from ..layer_parts import layer_times
from ..memory import ledger
from ..offload import OVERLAP, StepCosts
from ..overlap import norm_of
from ..placement import away, layer_bytes, staging_bytes
from ..remake import remakes
from ..scenario import MODES, Mode, Placement, Scenario, Sharding, Stretch, Where
from ..steps import decode_step
from .verdict import Verdict, budget_bytes, verdict

CACHED_SHARES = (0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875)
HOST_SHARE = 0.95  # of the host memory that is there; the rest is left to the system
TRIES = 4  # the allocator's share grows with what stays, so the first answer may miss by a little

Floats = npt.NDArray[np.float64]


class Prefix(NamedTuple):
    """Sums over the first n layers in one mode, (layers + 1,): device bytes freed, host bytes held, seconds."""

    stretch: Stretch
    freed: Floats
    weights: Floats
    state: Floats
    computing: Floats
    prefetched: Floats
    late: Floats
    staging: float


class Placed(NamedTuple):
    """The placement found, and how many were looked at (0 placements fit: None)."""

    scenario: Scenario | None
    looked_at: int


def modes_of(scenario: Scenario, wanted: tuple[Mode, ...]) -> tuple[Mode, ...]:
    """Those of the modes that differ for the model: without experts those that move only experts do nothing,

    and keys and values are made again only of what takes less room than they do.
    """
    sparse = scenario.model.has_experts
    here = [m for m in wanted if sparse or m.experts is Where.DEVICE or m.shell is not Where.DEVICE]
    return tuple(m for m in here if m.kv is not Where.REMADE or remakes(scenario))


def place(scenario: Scenario, calibrations: CalibrationSet, wanted: tuple[Mode, ...] = MODES) -> Placed:
    """The placement with the fastest decode step among those that surely fit device and host (and drive).

    For one pipeline stage; `wanted` restricts the modes. Memory the host shares with the device offloads nothing.
    """
    fleet = scenario.fleet
    if fleet.host_memory_bytes is None or fleet.device.unified_memory or scenario.sharding.pp > 1:
        return Placed(None, 0)
    costs = StepCosts(scenario, decode_step(scenario), calibrations)
    modes = modes_of(scenario, wanted)
    prefixes = [
        _prefix(costs, Stretch(mode, 1, cached))
        for mode in modes
        for cached in (CACHED_SHARES if mode.experts is Where.STREAMED and mode.shell is Where.DEVICE else (0.0,))
    ]
    short = float(np.max(ledger(scenario).high_bytes())) - budget_bytes(scenario)
    looked_at = 0
    for _ in range(TRIES):
        placement, priced = _fastest(costs, prefixes, short)
        looked_at += priced
        if placement is None:
            return Placed(None, looked_at)
        placed = scenario.but(placement=placement)
        memory = ledger(placed)
        if verdict(placed, memory) is Verdict.SURELY:
            return Placed(placed, looked_at)
        short += float(np.max(memory.high_bytes())) - budget_bytes(scenario)
    return Placed(None, looked_at)


def _prefix(costs: StepCosts, stretch: Stretch) -> Prefix:
    scenario, mode = costs.scenario, stretch.mode
    here, whole = layer_bytes(scenario, scenario.sharding), layer_bytes(scenario, Sharding())
    taken = away(mode, stretch.cached, here, whole)
    times = layer_times(costs, mode, stretch.cached)
    base = costs.device.seconds.sum(axis=0)

    def summed(values: Floats) -> Floats:
        return np.concatenate([[0.0], np.cumsum(values)])

    def state(values: Floats) -> Floats:
        return values.reshape(len(base), -1)[:, 0]

    return Prefix(
        stretch,
        summed(taken.freed_weights + state(taken.freed_state)),
        summed(taken.weights),
        summed(state(taken.state)),
        summed(times.computing - base),
        summed(times.prefetched),
        summed(times.late),
        float(np.max(staging_bytes(taken.buffer, taken.made, Placement().ahead))),
    )


def _fastest(costs: StepCosts, prefixes: list[Prefix], short: float) -> tuple[Placement | None, int]:
    """The fastest pair of stretches that frees `short` bytes, and how many pairs were looked at."""
    fleet, layers = costs.scenario.fleet, costs.scenario.model.layers
    room = HOST_SHARE * (fleet.host_memory_bytes or 0.0)
    drive = None if fleet.storage is None else fleet.storage.read_bytes_per_s.value
    before = float(costs.outside.time_s) + float(costs.device.seconds.sum())
    best: tuple[float, Placement | None] = (np.inf, None)
    first = np.arange(layers + 1)
    looked_at = 0
    for a in prefixes:
        for b in prefixes:
            alone = a.stretch.mode is b.stretch.mode  # then the first stretch is empty
            lengths = first[:1] if alone else first
            staging = max(a.staging, b.staging)
            target = short + staging - a.freed[lengths] + b.freed[lengths]
            stop = np.searchsorted(b.freed, target - 1e-6)
            stop = np.maximum(stop, lengths)
            possible = stop <= layers
            stop = np.minimum(stop, layers)
            computing, prefetched, late = (
                getattr(a, f)[lengths] + getattr(b, f)[stop] - getattr(b, f)[lengths]
                for f in ("computing", "prefetched", "late")
            )
            weights = a.weights[lengths] + b.weights[stop] - b.weights[lengths]
            state = a.state[lengths] + b.state[stop] - b.state[lengths] + staging
            over = np.maximum(weights + state - room, 0.0)
            possible &= (over <= 0) | ((over <= weights) & (drive is not None))
            share = np.where(weights > 0, over / np.maximum(weights, 1.0), 0.0)
            together, _ = norm_of((np.maximum(before + computing, 0.0), prefetched), OVERLAP)
            seconds = together + late + (share * _read(costs, weights) / drive if drive else 0.0)
            seconds = np.where(possible, seconds, np.inf)
            looked_at += len(lengths)
            at = int(np.argmin(seconds))
            if seconds[at] < best[0]:
                n, m = int(lengths[at]), int(stop[at] - lengths[at])
                stretches = tuple(s._replace(layers=k) for s, k in ((a.stretch, n), (b.stretch, m)) if k)
                best = (float(seconds[at]), Placement(stretches, float(share[at])))
    return best[1], looked_at


def _read(costs: StepCosts, weights: Floats) -> Floats:
    """Bytes of the host's weights a step reads: all of a dense model's, of experts those its tokens choose."""
    here = costs.copied_bytes
    read = here[0] + here[1] * costs.chosen(0.0)
    return np.asarray(weights * float(read.sum() / max(1.0, (here[0] + here[1]).sum())))
