"""How tokens spread over the experts of a layer, and so how many experts a step reads."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

BALANCED = -1.0  # in place of an exponent: every expert gets as many tokens as any other, as a benchmark may arrange it
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


class Load(NamedTuple):
    """What the busiest of the expert-parallel ranks has to do: its assignments, experts, and blocks of rows."""

    rows: Array
    touched: Array
    blocks: Array
    block_rows: Array


# Expected maximum of n standard normals, n = 2, 4, 8, ...: how far the busiest of n ranks lies above the mean.
_EXPECTED_MAXIMUM = ((1, 0.0), (2, 0.564), (4, 1.029), (8, 1.424), (16, 1.766), (32, 2.070), (64, 2.344), (256, 2.827))


def busiest_rank(
    tokens: Array, experts: int, top_k: int, ranks: int, alpha: float, row_blocks: tuple[float, ...]
) -> Load:
    """Expected load of the busiest rank of `ranks`, each holding `experts / ranks`; alpha 0 is uniform routing.

    Experts get shares s as in `touched_experts` and fall to ranks at random. The busiest rank is the larger of two
    estimates: the mean plus the expected maximum of `ranks` normal sums of E / ranks shares; the most popular expert
    beside average ones. It never exceeds the N min(k, local experts) assignments there can be, and its experts have the
    shares of as many quantiles. BALANCED: min(rows, local) experts, all alike.
    touched: the sum of 1 - (1 - min(1, k s))^N on one rank, of 1 - exp(-rows s) on several (independent assignments).
    blocks:  rows are padded to the first of `row_blocks` that holds the mean load of a touched expert, else the last;
             an expert has ceil(rows s / block) of them, of which those not expected to be touched are taken off again.
    """
    unique, inverse = np.unique(np.asarray(tokens, dtype=float), return_inverse=True)
    local = max(1, experts // ranks)
    everywhere = _shares(unique, experts, alpha)
    mean, popular = 1.0 / experts, everywhere.max(axis=1)
    above = np.interp(np.log2(ranks), np.log2([n for n, _ in _EXPECTED_MAXIMUM]), [z for _, z in _EXPECTED_MAXIMUM])
    normal = local * mean + above * everywhere.std(axis=1) * np.sqrt(local)
    around = popular + (local - 1) * (1.0 - popular) / max(1, experts - 1)
    busiest = np.maximum(normal, around) if ranks > 1 else np.ones_like(unique)
    rows = np.minimum(unique * top_k * busiest, unique * min(top_k, local))
    share = _shares(unique, local, alpha)
    loads = rows[:, None] * share
    if alpha == BALANCED:
        touched = np.minimum(rows, float(local))
        loads = rows[:, None] / np.maximum(touched, 1.0)[:, None] * (np.arange(local) < touched[:, None])
    else:
        touched = np.minimum(-np.expm1(-loads).sum(axis=1) if ranks > 1 else _touched(unique, share, top_k), rows)
    average = rows / np.maximum(touched, 1e-9)
    limits = np.array(row_blocks)
    block = limits[np.minimum(np.searchsorted(limits, average), len(limits) - 1)]
    blocks = np.maximum(np.ceil(loads / block[:, None] - 1e-9).sum(axis=1) - (local - touched), touched)
    shape = np.shape(tokens)
    return Load(*(np.asarray(v[inverse].reshape(shape)) for v in (rows, touched, blocks, block)))


def _shares(tokens: Array, experts: int, alpha: float) -> Array:
    """Share of the assignments of each expert, (tokens, experts)."""
    if alpha <= 0:
        return np.full((len(tokens), experts), 1.0 / experts)
    quantile = (np.arange(experts) + 0.5) / experts
    top = np.maximum(POWER_LAW_TOP * tokens, 1.0 + 1e-9)[:, None]
    load = top**quantile if abs(alpha - 1) < 1e-9 else (1 + quantile * (top ** (1 - alpha) - 1)) ** (1 / (1 - alpha))
    return np.asarray(load / load.sum(axis=1, keepdims=True))


def _touched(tokens: Array, share: Array, top_k: int) -> Array:
    chosen = np.minimum(top_k * share, 1.0 - 1e-12)
    return np.asarray(-np.expm1(tokens[:, None] * np.log1p(-chosen)).sum(axis=1))


POPULARITY_TOKENS = 8.0  # tokens whose power law stands for how popular experts are over many steps (assumed)


def popularity(tokens: npt.ArrayLike, experts: int, top_k: int, skewed: bool) -> Array:
    """Probability that at least one of `tokens` chooses each expert, least popular first, (*tokens, experts).

    Over many steps experts are alike, or as unlike as the power law makes them at `POPULARITY_TOKENS` tokens: what a
    cache of the most popular ones can make use of.
    """
    reference = np.array([POPULARITY_TOKENS])
    share = _shares(reference, experts, 1.0)[0] if skewed else np.full(experts, 1.0 / experts)
    chosen = np.minimum(top_k * share, 1.0 - 1e-12)
    return np.asarray(-np.expm1(np.asarray(tokens, float)[..., None] * np.log1p(-chosen)))
