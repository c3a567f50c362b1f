"""The three-constant roofline: launch floor, sustained FLOP/s, sustained bytes/s; and a fourth, how both overlap.

    T = launches * floor + max(F / (e_c P), B / (e_m W))

Williams, Waterman and Patterson, "Roofline" (CACM 2009) with a floor: the rule for every operator class and device
that has no model of its own, and the baseline beside every model that has.

    T = launches * floor + ((F / (e_c P))^p + (B / (e_m W))^p)^(1/p)

A fourth constant replaces the maximum: libraries on CPUs add traffic to arithmetic where a maximum would hide it.
"""

from __future__ import annotations

import numpy as np

from ..calibration import Denominators
from ..estimate import Array, Terms
from ..overlap import norm_of
from ..parameters import SoftRoofline, ThreeConstants


def three_constants(flops: Array, traffic_bytes: Array, launches: Array, d: Denominators, p: ThreeConstants) -> Terms:
    """Time of work `flops` and `traffic_bytes` (broadcastable, seconds out). A row without work takes no time."""
    compute = flops / (p.compute_fraction * d.peak_flops_per_s)
    memory = traffic_bytes / (p.memory_fraction * d.bandwidth_bytes_per_s)
    busy, is_compute = (flops + traffic_bytes) > 0, compute > memory
    return Terms(
        compute_s=np.asarray(np.where(is_compute, compute, 0.0)),
        memory_s=np.asarray(np.where(is_compute, 0.0, memory)),
        floor_s=np.asarray(np.where(busy, launches * p.floor_s, 0.0)),
    )


def soft_roofline(flops: Array, traffic_bytes: Array, launches: Array, d: Denominators, p: SoftRoofline) -> Terms:
    """The same with imperfect overlap; each term gets its share of the norm."""
    compute = np.asarray(flops / (p.compute_fraction * d.peak_flops_per_s))
    memory = np.asarray(traffic_bytes / (p.memory_fraction * d.bandwidth_bytes_per_s))
    _, (computed, moved) = norm_of((compute, memory), p.overlap)
    busy = (flops + traffic_bytes) > 0
    return Terms(computed, moved, floor_s=np.asarray(np.where(busy, launches * p.floor_s, 0.0)))
