"""Collectives: the bytes that cross one device's link, one direction ("bus" bytes of nccl-tests).

all-reduce 2 (n-1)/n S, all-gather (n-1)/n S of the gathered buffer S, point to point S.
Source: NVIDIA nccl-tests, doc/PERFORMANCE.md.
"""

from __future__ import annotations

import numpy as np

from ..estimate import Array
from ..operators import Collective, KernelName

_SHARE = {KernelName.ALL_REDUCE: 2.0, KernelName.ALL_GATHER: 1.0}


def traffic_bytes(table: Collective) -> Array:
    """Bytes each link carries; none for a single rank."""
    if table.kernel.name is KernelName.SEND:
        return np.asarray(np.where(table.ranks > 1, table.message_bytes, 0.0))
    return np.asarray(_SHARE[table.kernel.name] * (table.ranks - 1) / table.ranks * table.message_bytes)
