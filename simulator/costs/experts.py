"""Mixture-of-experts feed-forward as one fused kernel: gate, up and down of the experts the tokens touch.

FLOPs follow the active experts (top_k of each token), weight bytes the touched ones: at batch 1 these agree, at
large batch every expert is read though each token uses few. Counting total parameters for either is a classic error.
"""

from __future__ import annotations

import numpy as np

from ..estimate import Array
from ..operators import Experts


def flops(table: Experts) -> Array:
    """2 FLOPs for each weight of the three matrices and each (token, expert) assignment."""
    return np.asarray(2.0 * 3.0 * table.tokens * table.top_k * table.hidden * table.intermediate)


def traffic_bytes(table: Experts) -> Array:
    """Weights of the touched experts; each assignment's input, gated product (written and read) and output."""
    weights = table.touched * table.expert_bytes
    assignments = table.tokens * table.top_k
    activations = assignments * (2.0 * table.hidden + 4.0 * table.intermediate) * table.activation_bytes
    return np.asarray(np.where(table.tokens > 0, weights + activations, 0.0))
