"""Copies between device and host over the host link."""

from __future__ import annotations

import numpy as np

from ..estimate import Array
from ..operators import Copy


def traffic_bytes(table: Copy) -> Array:
    """Bytes copied in one direction."""
    return np.asarray(table.copy_bytes)
