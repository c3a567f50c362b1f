"""The three-constant roofline: launch floor, sustained FLOP/s, sustained bytes/s.

    T = launches * floor + max(F / (e_c P), B / (e_m W))

Williams, Waterman and Patterson, "Roofline" (CACM 2009) with a floor. What it reaches on public tables beside
the pure roofline stands in the calibration files and in the README.
"""

from __future__ import annotations

import numpy as np

from ...hwspecs.device import Fact, Kind
from ..calibration import Resolved, ThreeConstants
from ..estimate import Array, Estimate, Terms, priced

WIDENING_PER_DECADE = 0.25  # log-sd added for each decade outside the calibrated range (assumed; see `Resolved`)


def three_constants(
    flops: Array,
    traffic_bytes: Array,
    launches: Array,
    peak_flops_per_s: Fact,
    bandwidth_bytes_per_s: Fact,
    resolved: Resolved,
    parameters: ThreeConstants,
) -> Estimate:
    """Time of work `flops` and `traffic_bytes` (broadcastable, seconds out). A row without work takes no time.

    Where the rate that bounds a row is itself an assumption, so is the time, and its error is that much larger.
    """
    compute = flops / (parameters.compute_fraction * peak_flops_per_s.value)
    memory = traffic_bytes / (parameters.memory_fraction * bandwidth_bytes_per_s.value)
    busy = (flops + traffic_bytes) > 0
    is_compute = compute > memory
    outside = np.where(busy, resolved.calibration.hull.outside(flops, traffic_bytes), 0.0)
    guessed = np.where(is_compute, peak_flops_per_s.kind is Kind.ASSUMED, bandwidth_bytes_per_s.kind is Kind.ASSUMED)
    return priced(
        Terms(
            compute_s=np.asarray(np.where(is_compute, compute, 0.0)),
            memory_s=np.asarray(np.where(is_compute, 0.0, memory)),
            floor_s=np.asarray(np.where(busy, launches * parameters.floor_s, 0.0)),
        ),
        tier=resolved.tier,
        shared_log_sd=resolved.shared_log_sd,
        own_log_sd=resolved.own_log_sd + WIDENING_PER_DECADE * outside,
        extrapolated=outside > 0,
        guessed=guessed if guessed.any() else None,
    )
