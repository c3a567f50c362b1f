"""What a frame of unlike places could reach at best, before its program is solved: values no plan of it is below.

Three relaxations, the largest counts: every layer in its fastest alternative where it is fastest; the memory of all
devices as one, at a price, and the slowest place as a mean of all (Lagrangian, over all prices at which an alternative
changes); what no memory holds read from the drives again for every step.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ..estimate import Array
from ..workload.model import Experts
from .bounds import QUALITY
from .place import HOST_SHARE
from .unlike_places import DECODE, PREFILL, PlaceCosts
from .unlike_program import UnlikeFrame

LATE = 1.0 + 1e-6  # of a limit of time, which the solver keeps to within its tolerance
SHARES = (0.0, 0.5, 1.0)  # of a decode cycle that is bounded by its slowest place, not by its way through all
MOST_PRICES = 64


def least(frame: UnlikeFrame) -> float:
    """A value of the goal no plan of the frame is below; infinite where none of it can hold."""
    counts = np.array(frame.counts, float)
    fastest = np.zeros((2, len(frame.places), len(counts)))
    for p, c in enumerate(frame.costs):
        for k in (DECODE, PREFILL):
            fastest[k, p] = c.seconds(k)[0].min(axis=0)
    through = [float(counts @ fastest[k].min(axis=0)) for k in (DECODE, PREFILL)]
    # The slowest place has at least the share of layers that would let all of them end together.
    even = [
        1.0 / float((1.0 / np.maximum(fastest[k].min(axis=1) * counts.sum(), 1e-12)).sum()) for k in (DECODE, PREFILL)
    ]
    cycle = max(through[DECODE], frame.load.micro_batches * even[DECODE])
    if not (_may_keep_times(frame, through[PREFILL], cycle) and may_keep_quality(frame) and _may_fit(frame)):
        return np.inf
    return max(float(frame.goal(through, even, cycle)), _at_prices(frame), _from_drives(frame))


def _may_keep_times(frame: UnlikeFrame, first: float, cycle: float) -> bool:
    limits = frame.question.limits
    late = limits.pace_s is not None and cycle > limits.pace_s * LATE
    return not late and (limits.first_s is None or first <= limits.first_s * LATE)


def may_keep_quality(frame: UnlikeFrame) -> bool:
    """Whether the most faithful of its formats keep the limit of quality."""
    limit, layout = frame.question.limits.log_ppl, frame.costs[0].layout
    if limit is None:
        return True
    spent = float(np.array(frame.counts, float) @ layout.log_ppl.min(axis=0))
    return spent + frame.kv_log_ppl + layout.outer_log_ppl <= limit + 1e-9


def _may_fit(frame: UnlikeFrame) -> bool:
    """Whether places have room for as many layers of the smallest kind; a drive holds whatever does not fit."""
    if any(frame.nodes[i].storage is not None for i in _hosts(frame)):
        return True
    room = sum(
        room_bytes(frame, p) // (c.slope * float(c.device_bytes.min()))
        for p, c in enumerate(frame.costs)
        if float(c.device_bytes.min()) > 0
    )
    return any(float(c.device_bytes.min()) <= 0 for c in frame.costs) or room >= sum(frame.counts)


def _hosts(frame: UnlikeFrame) -> list[int]:
    """Nodes whose host may hold something."""
    here = {p.node for p, c in zip(frame.places, frame.costs, strict=True) if p.on_host or c.host_bytes.any()}
    return sorted(here)


def room_bytes(frame: UnlikeFrame, place: int) -> float:
    """What a place has for layers beside what it holds anyway."""
    return max(0.0, frame.budget_bytes(place) - frame.costs[place].fixed.here)


class _Kind(NamedTuple):
    """Places that cost the same: so many of them."""

    costs: PlaceCosts
    on_host: bool
    places: int

    @property
    def held(self) -> Array:
        """Bytes of a layer on a device here, (alternatives, blocks)."""
        return np.zeros_like(self.costs.device_bytes) if self.on_host else self.costs.slope * self.costs.device_bytes

    def priced(self, decode: float, prefill: float) -> Array:
        """Cost of a layer at prices of a second of each kind of step, (alternatives, blocks)."""
        return np.asarray(decode * self.costs.seconds(DECODE)[0] + prefill * self.costs.seconds(PREFILL)[0])


def _kinds(frame: UnlikeFrame) -> list[_Kind]:
    on_host = dict(zip(frame.costs, (place.on_host for place in frame.places), strict=True))
    return [_Kind(costs, host, frame.costs.count(costs)) for costs, host in on_host.items()]


def _at_prices(frame: UnlikeFrame) -> float:
    """The least cost of all layers at prices of time, device memory and quality, less the worth of what there is.

    A decode cycle is at least 1 - s of its way through all places and s of micro-batches x the slowest place, which
    takes at least any mean of the places' times: here weighted by how fast they are.
    """
    counts, kinds = np.array(frame.counts, float), _kinds(frame)
    batches, output, more = frame.load.micro_batches, float(frame.question.output), frame.pieces - 1.0
    overhead = frame.question.engine.step_overhead_s
    speeds = np.array(
        [1.0 / max(float(counts @ k.priced(output * batches, more + 1.0).min(axis=0)), 1e-12) for k in kinds]
    )
    weights = speeds / float(speeds @ [k.places for k in kinds])
    held, found = np.concatenate([k.held for k in kinds]), 0.0
    room = sum(room_bytes(frame, p) for p, place in enumerate(frame.places) if not place.on_host)
    for share in SHARES:
        prices = [(output * (1.0 - share + share * batches * w), 1.0 + more * w) for w in weights]
        seconds = np.concatenate([k.priced(d, f) for k, (d, f) in zip(kinds, prices, strict=True)])
        ends = min(
            d * k.costs.ends_s(DECODE) + f * k.costs.ends_s(PREFILL) for k, (d, f) in zip(kinds, prices, strict=True)
        )
        outside = ends + overhead * (1.0 + output * (1.0 - share))
        for cost, worth in _with_quality(frame, seconds, kinds, counts):
            prices_of_memory = _breakpoints(cost, held)
            each = (cost + prices_of_memory[:, None, None] * held).min(axis=1) @ counts - prices_of_memory * room
            found = max(found, float(each.max()) - worth + outside)
    return found * float(frame.goal([0.0, 1.0], [0.0, 0.0], 0.0))


def _with_quality(
    frame: UnlikeFrame, seconds: Array, kinds: list[_Kind], counts: Array
) -> Iterator[tuple[Array, float]]:
    """The costs at prices of quality, and what all of it that may be spent is worth."""
    limit, layout = frame.question.limits.log_ppl, frame.costs[0].layout
    yield seconds, 0.0
    if limit is None or len(frame.formats) == 1:
        return
    change = np.concatenate([k.costs.layout.log_ppl for k in kinds])
    scale, spare = float(counts @ seconds.min(axis=0)), limit - frame.kv_log_ppl - layout.outer_log_ppl
    for factor in QUALITY[1:]:
        price = factor * scale / max(limit, 1e-9)
        yield seconds + price * change, price * spare


def _breakpoints(cost: Array, held: Array) -> Array:
    """Prices of a byte at which one alternative gets cheaper than another, and none; evenly fewer where many."""
    found = [np.zeros(1)]
    for c, h in zip(cost.T, held.T, strict=True):
        dearer, smaller = c[:, None] - c, h - h[:, None]
        pairs = (dearer > 0) & (smaller > 0)
        found.append(dearer[pairs] / smaller[pairs])
    prices = np.unique(np.concatenate(found))
    return np.asarray(prices[np.linspace(0, len(prices) - 1, min(len(prices), MOST_PRICES)).astype(int)])


def _from_drives(frame: UnlikeFrame) -> float:
    """The goal if steps took what it takes to read from the drives whatever no memory can hold.

    A decode step reads of an expert layer at least the share of the experts that one token chooses.
    """
    counts, kinds = np.array(frame.counts, float), _kinds(frame)
    least = np.min([np.min(k.held + k.costs.host_bytes, axis=0) for k in kinds], axis=0)
    room = sum(room_bytes(frame, p) for p, place in enumerate(frame.places) if not place.on_host)
    hosts = [frame.nodes[i] for i in _hosts(frame)]
    over = float(counts @ least) * (1.0 - 1e-9) - room - sum(HOST_SHARE * node.memory_bytes() for node in hosts)
    if over <= 0.0:
        return 0.0
    rate = sum(node.storage.read_bytes_per_s.value for node in hosts if node.storage is not None)
    if not rate:
        return np.inf
    blocks = [block.ffn for block in frame.question.model.blocks]
    chosen = min((ffn.top_k / ffn.experts if isinstance(ffn, Experts) else 1.0 for ffn in blocks), default=1.0)
    decode, prefill = over * chosen / rate, over / rate
    return float(frame.goal([decode, prefill], [decode, prefill], frame.load.micro_batches * decode))
