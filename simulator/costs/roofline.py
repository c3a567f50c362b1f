"""The three-constant roofline: launch floor, sustained FLOP/s, sustained bytes/s.

    T = launches * floor + max(F / (e_c P), B / (e_m W))

Williams, Waterman and Patterson, "Roofline" (CACM 2009) with a floor: the rule for every operator class and device
that has no model of its own, and the baseline beside every model that has.
"""

from __future__ import annotations

import numpy as np

from ..calibration import Denominators
from ..estimate import Array, Terms
from ..parameters import ThreeConstants


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
