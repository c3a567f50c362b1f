"""The alpha-beta model of links: latency, hops, bandwidth.

    T = alpha + gamma log2(ranks) + V / (e W)

V is the traffic that crosses one link in one direction, W the link's datasheet bandwidth of one direction
(nccl-tests, doc/PERFORMANCE.md defines V as "bus" bytes).
"""

from __future__ import annotations

import numpy as np

from ..calibration import Denominators
from ..estimate import Array, Terms
from ..parameters import LatencyBandwidth


def latency_bandwidth(traffic_bytes: Array, ranks: Array, d: Denominators, p: LatencyBandwidth) -> Terms:
    """Time of moving `traffic_bytes` over a link; nothing to move takes no time."""
    latency = p.floor_s + p.hop_s * np.log2(np.maximum(ranks, 1.0))
    return Terms(
        floor_s=np.asarray(np.where(traffic_bytes > 0, latency, 0.0)),
        link_s=np.asarray(traffic_bytes / (p.link_fraction * d.link_bytes_per_s)),
    )
