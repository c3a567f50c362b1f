"""Norms, rotary embedding, gating, residual adds, look-ups: every byte in once, every byte out once.

    T = launches t_0 + misses / (e B) + hits / (L2 rate),   misses = bytes / (1 + (l2_fraction L2 / bytes)^4)

What such a kernel reads was written by the one before it: a buffer that fits the last-level cache is still there, in a
model's step as in a benchmark's loop.
"""

from __future__ import annotations

import numpy as np

from ..calibration import Denominators
from ..estimate import Array, Terms
from ..operators import Elementwise
from ..parameters import Streaming

RESIDENCY_EXPONENT = 4  # how sharply a buffer falls out of the cache as it outgrows it


def traffic_bytes(table: Elementwise) -> Array:
    """Bytes read plus bytes written."""
    return np.asarray(table.read_bytes + table.write_bytes)


def streaming(table: Elementwise, d: Denominators, p: Streaming) -> Terms:
    """Time of each row by the formula above; rows without bytes take no time."""
    moved = traffic_bytes(table)
    missed = 1.0 / (1.0 + (p.l2_fraction * d.l2_bytes / np.maximum(moved, 1.0)) ** RESIDENCY_EXPONENT)
    l2 = p.l2_bytes_per_clock_per_sm * d.clock_hz * d.sm_count
    memory = moved * missed / (p.memory_fraction * d.bandwidth_bytes_per_s) + moved * (1 - missed) / l2
    return Terms(
        memory_s=np.asarray(memory),
        floor_s=np.asarray(np.where(moved > 0, table.launches * p.floor_s, 0.0)),
    )
