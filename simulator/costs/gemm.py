"""Matrix products: 2 m n k FLOPs; weights, input and output each cross memory once."""

from __future__ import annotations

import numpy as np

from ..estimate import Array
from ..operators import Gemm


def flops(table: Gemm) -> Array:
    """2 m n k: a multiply-add is two operations (the language-model head included)."""
    return np.asarray(2.0 * table.m * table.n * table.k)


def traffic_bytes(table: Gemm) -> Array:
    """m k a + weights + m n o. No rows, no traffic: weights are not read for m = 0."""
    moved = table.m * table.k * table.activation_bytes + table.weight_bytes + table.m * table.n * table.output_bytes
    return np.asarray(np.where(table.m > 0, moved, 0.0))
