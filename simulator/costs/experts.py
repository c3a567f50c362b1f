"""Mixture-of-experts feed-forward as one fused kernel: gate, up and down of the experts the tokens touch.

FLOPs follow the active experts (top_k of each token), weight bytes the touched ones: at batch 1 these agree, at
large batch every expert is read though each token uses few. Counting total parameters for either is a classic error.
"""

from __future__ import annotations

import numpy as np

from ..estimate import Array
from ..operators import Experts
from ..workload.routing import Routing, touched_experts


def assignments(table: Experts) -> Array:
    """(token, expert) pairs of one rank, ranks alike."""
    return np.asarray(table.tokens * table.top_k / table.ranks)


def touched(table: Experts) -> Array:
    """Experts of one rank that at least one token chose, so whose weights are read; ranks alike."""
    rows = len(table.label)
    kinds = np.stack([np.broadcast_to(np.ravel(c), rows) for c in (table.experts, table.top_k, table.routing_alpha)])
    result = np.empty((rows, *table.tokens.shape[1:]))
    for experts, top_k, alpha in np.unique(kinds, axis=1).T:
        chosen = np.flatnonzero((kinds == np.array([[experts], [top_k], [alpha]])).all(axis=0))
        routing = Routing.POWER_LAW if alpha > 0 else Routing.UNIFORM
        result[chosen] = touched_experts(table.tokens[chosen], int(experts), int(top_k), routing, float(alpha))
    return np.asarray(result / table.ranks)


def flops(table: Experts) -> Array:
    """2 FLOPs for each weight of the three matrices and each (token, expert) assignment."""
    return np.asarray(2.0 * 3.0 * assignments(table) * table.hidden * table.intermediate)


def traffic_bytes(table: Experts) -> Array:
    """Weights of the touched experts; each assignment's input, gated product (written and read) and output."""
    weights = touched(table) * table.expert_bytes
    activations = assignments(table) * (2.0 * table.hidden + 4.0 * table.intermediate) * table.activation_bytes
    return np.asarray(np.where(table.tokens > 0, weights + activations, 0.0))
