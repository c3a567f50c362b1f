"""The alpha-beta model of links: latency, hops, bandwidth.

    T = alpha + gamma log2(ranks) + V / (e W)

V is the traffic that crosses one link in one direction, W the link's datasheet bandwidth of one direction
(nccl-tests, doc/PERFORMANCE.md defines V as "bus" bytes).
"""

from __future__ import annotations

import numpy as np

from ...hwspecs.device import Fact, Kind
from ..calibration import LatencyBandwidth, Resolved
from ..estimate import Array, Estimate, Terms, priced
from .roofline import WIDENING_PER_DECADE


def latency_bandwidth(
    traffic_bytes: Array, ranks: Array, link_bytes_per_s: Fact, resolved: Resolved, parameters: LatencyBandwidth
) -> Estimate:
    """Time of moving `traffic_bytes` over a link; nothing to move takes no time."""
    busy = traffic_bytes > 0
    latency = parameters.floor_s + parameters.hop_s * np.log2(np.maximum(ranks, 1.0))
    outside = np.where(busy, resolved.calibration.hull.outside(np.ones_like(traffic_bytes), traffic_bytes), 0.0)
    return priced(
        Terms(
            floor_s=np.asarray(np.where(busy, latency, 0.0)),
            link_s=np.asarray(traffic_bytes / (parameters.link_fraction * link_bytes_per_s.value)),
        ),
        tier=resolved.tier,
        shared_log_sd=resolved.shared_log_sd,
        own_log_sd=resolved.own_log_sd + WIDENING_PER_DECADE * outside,
        extrapolated=outside > 0,
        guessed=np.ones_like(busy) if link_bytes_per_s.kind is Kind.ASSUMED else None,
    )
