"""Norms, rotary embedding, gating, residual adds, look-ups: every byte in once, every byte out once."""

from __future__ import annotations

import numpy as np

from ..estimate import Array
from ..operators import Elementwise


def traffic_bytes(table: Elementwise) -> Array:
    """Bytes read plus bytes written."""
    return np.asarray(table.read_bytes + table.write_bytes)
