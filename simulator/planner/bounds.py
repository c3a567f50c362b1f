"""What a frame could reach at best, before any program is solved: Lagrangian bounds of all numbers of users at once.

Whatever prices are put on the memory of devices and host and on the change of log-perplexity, the plan that is best at
those prices, less the worth of what is there, lies below every plan that keeps the limits. The largest over a grid of
prices counts; a frame whose bound is above a plan already found needs no program.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..estimate import Array
from .constraints import tangent
from .frames import Family
from .program import Frame, cxl_room, host_room
from .question import Question

FACTORS = (0.0, 0.3, 1.0, 3.0)  # of the goal's value for all of a resource
QUALITY = (0.0, 0.1, 0.3, 1.0)
ANGLES = (1.0, 0.5, 0.0)


def first_bounds(question: Question, family: Family) -> Array:
    """A value of the goal no plan of the frames is below, (users,); infinite where nothing fits."""
    layout, limits = family.layout, question.limits
    possible = _may_fit(question, family)
    if not possible.any():  # then nothing of it needs a price
        return np.full(layout.users, np.inf)
    counts = np.array(layout.counts, float)
    goal = np.stack([Frame(family, at).weights_of(question) for at in range(layout.users)], axis=1)
    outside, passes, times = _least_times(family)
    pace, first = (_weighted(family, name, times) for name in ("pace", "first"))
    if limits.pace_s is not None:
        possible = np.asarray(possible & (pace <= limits.pace_s * 1.02))
    if limits.first_s is not None:
        possible = np.asarray(possible & (first <= limits.first_s))
    best = (goal * times).sum(axis=0)
    for values in _lagrangian(question, family, goal * passes, outside, counts, best):
        best = np.maximum(best, values)
    return np.where(possible, best, np.inf)


def _least_times(family: Family) -> tuple[Array, Array, Array]:
    """Of each kind of step, (kinds, users): seconds outside the layers, passes of the pipeline, seconds at least."""
    layout = family.layout
    stages, overhead = layout.base.sharding.pp, layout.base.engine.step_overhead_s
    passes = np.stack([np.maximum(1.0, kind.cycles / stages) for kind in layout.kinds])
    outside = np.stack([layout.outside(k).sum(axis=0) + overhead for k in range(len(layout.kinds))])
    fastest = _through([_cost(family, k, 1.0, 0.0) for k in range(len(layout.kinds))], np.array(layout.counts, float))
    return outside, passes, (fastest + outside) * passes


def _weighted(family: Family, name: str, times: Array) -> Array:
    """Seconds of all kinds of steps as they count for a time that is limited, (users,)."""
    return np.asarray(sum(getattr(kind, name) * t for kind, t in zip(family.layout.kinds, times, strict=True)))


class Least(NamedTuple):
    """What a domain could do at best: frames whose layers fit and keep the quality, and of those the least time per
    output token and to the first one (infinite: none fits)."""

    frames: int
    pace_s: float
    first_s: float


def least(question: Question, families: Iterable[Family]) -> Least:
    """What keeps a question from having a plan: how many frames memory and quality leave, and how fast those are."""
    frames, pace_s, first_s = 0, float("inf"), float("inf")
    for family in families:
        possible = _may_fit(question, family)
        if not possible.any():
            continue
        times = _least_times(family)[2]
        pace, first = (np.where(possible, _weighted(family, name, times), np.inf) for name in ("pace", "first"))
        frames += int(possible.sum())
        pace_s, first_s = min(pace_s, float(pace.min())), min(first_s, float(first.min()))
    return Least(frames, pace_s, first_s)


def _through(costs: list[Array], counts: Array) -> Array:
    return np.stack([counts @ cost.min(axis=0) for cost in costs])


def _cost(family: Family, kind: int, u: float, v: float) -> Array:
    computing, prefetched, late = family.layout.seconds(kind)
    return np.asarray(u * computing + v * prefetched + late)


def _lagrangian(
    question: Question, family: Family, goal: Array, outside: Array, counts: Array, scale: Array
) -> list[Array]:
    """The bound at every combination of prices."""
    layout = family.layout
    fixed, slope = layout.fixed_bytes, layout.slope
    device, host = layout.bytes_.device, layout.bytes_.host
    stages = layout.base.sharding.pp
    room = question.budget_bytes() * stages - fixed.sum(axis=0)  # of all stages together: a relaxation
    host_left = host_room(question)
    hosts = FACTORS if family.placed and question.fleet.storage is None and host_left > 0 else (0.0,)
    limit = question.limits.log_ppl
    quality = QUALITY if limit is not None and limit > 0 else (0.0,)
    spare = 0.0 if limit is None else limit - family.kv_log_ppl - layout.outer_log_ppl
    found = []
    for angle in ANGLES if family.placed else (1.0,):
        u, v = tangent(angle)
        time = sum(goal[k] * _cost(family, k, u, v) for k in range(len(layout.kinds)))
        constant = u * (goal * outside).sum(axis=0)
        for d, h, q in product(FACTORS, hosts, quality):
            per_byte = d * scale / np.maximum(room, 1.0)
            per_host = h * scale / max(host_left, 1.0)
            per_ppl = q * scale / max(limit or 1.0, 1e-9)
            cost = time + per_byte * slope * device + per_host * host + per_ppl * layout.log_ppl[:, :, None]
            least = counts @ cost.min(axis=0)
            found.append(constant + least - per_byte * room - per_host * host_left - per_ppl * spare)
    return found


def _may_fit(question: Question, family: Family) -> npt.NDArray[np.bool_]:
    """Whether the smallest alternatives of all layers fit devices and host, and the most faithful keep the quality."""
    layout = family.layout
    held = layout.bytes_
    counts = np.array(layout.counts, float)
    possible = np.asarray(layout.least_bytes <= question.budget_bytes())
    if family.placed and question.fleet.storage is None:
        either = counts @ (held.device + held.host + held.cxl).min(axis=0)
        room = host_room(question) + cxl_room(question)
        possible &= either <= question.budget_bytes() * layout.base.sharding.devices + room
    limit = question.limits.log_ppl
    if limit is not None:
        spent = float(counts @ layout.log_ppl.min(axis=0)) + family.kv_log_ppl + layout.outer_log_ppl
        possible &= spent <= limit + 1e-9
    return possible
