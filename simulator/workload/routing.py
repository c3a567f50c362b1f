"""How tokens spread over the experts of a layer, and so how many experts a step reads."""

from __future__ import annotations

from enum import StrEnum

import numpy as np
import numpy.typing as npt

POWER_LAW_TOP = 0.8  # share of all tokens the most popular expert may receive

Array = npt.NDArray[np.float64]


class Routing(StrEnum):
    """The distribution of tokens over experts."""

    UNIFORM = "uniform"
    POWER_LAW = "power-law"


def touched_experts(tokens: Array, experts: int, top_k: int, routing: Routing, alpha: float) -> Array:
    """Expected number of distinct experts a step reads; between top_k and min(experts, tokens * top_k).

    uniform:   E (1 - (1 - k/E)^N).
    power law: a token picks expert i with probability p_i = min(1, k s_i), where the share s_i is proportional to the
               inverse CDF, at (i - 1/2) / E, of p(x) ~ x^-alpha on [1, 0.8 N]; the sum of 1 - (1 - p_i)^N is touched.
               Real decode traffic is skewed: uniform routing over-counts its weights.
    """
    n = np.asarray(tokens, dtype=float)
    if routing is Routing.UNIFORM:
        touched = experts * -np.expm1(np.maximum(n, 0.0) * np.log1p(-min(top_k / experts, 1 - 1e-12)))
    else:
        unique, inverse = np.unique(n, return_inverse=True)
        touched = _power_law(unique, experts, top_k, alpha)[inverse].reshape(n.shape)
    lowest = np.minimum(top_k * np.minimum(n, 1.0), experts)
    return np.asarray(np.clip(touched, lowest, np.minimum(experts, n * top_k)))


def _power_law(tokens: Array, experts: int, top_k: int, alpha: float) -> Array:
    quantile = (np.arange(experts) + 0.5) / experts
    top = np.maximum(POWER_LAW_TOP * tokens, 1.0 + 1e-9)[:, None]
    if abs(alpha - 1.0) < 1e-9:
        load = top**quantile
    else:
        load = (1 + quantile * (top ** (1 - alpha) - 1)) ** (1 / (1 - alpha))
    chosen = np.minimum(top_k * load / load.sum(axis=1, keepdims=True), 1.0 - 1e-12)
    return np.asarray(-np.expm1(tokens[:, None] * np.log1p(-chosen)).sum(axis=1))
