"""Fit the constants of a cost model to measurements: few physical parameters, log ratio, robust, bounded, staged.

Weighted least squares on log(predicted / measured) with soft-L1 loss. First the launch floor and the rates move, then
everything; where a form has a structural choice (whether a library splits k, whether heads share a tile) both are
fitted and the better kept. Prices come from `simulator.costs.terms`, the path of every prediction.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..simulator.calibration import Cache, Denominators, Parameters
from ..simulator.costs import terms, work
from ..simulator.estimate import Z_80, Array
from ..simulator.operators import Collective, Copy, Table
from ..simulator.parameters import LatencyBandwidth, ThreeConstants
from . import forms

SOFTNESS = 0.1  # log ratio beyond which a residual counts less than squared
UNKNOWN_LOG_SD = 1.0  # what is known of a parameter before any measurement: its order of magnitude
FIRST = ("floor_s", "_fraction", "row_s")  # what moves in the first stage
CHOICES = {"most_splits": (32.0, 1.0), "packs_heads": (1.0, 0.0)}
# Where the maximum of a roofline never takes the arithmetic its rate has no slope: a second start where it does.
STARTS: Mapping[type[Any], tuple[str, tuple[float, ...]]] = MappingProxyType(
    {ThreeConstants: ("compute_fraction", (0.7, 0.1))}
)


class Fit(NamedTuple):
    """Parameters with the standard deviations and correlations of their logarithms, and what was left over.

    `residual_quantiles` are the 10, 50 and 90 % quantiles of log(measured / predicted), each point by its weight and
    by what the fit's own freedom hides: n / (n - parameters).
    """

    parameters: Parameters
    log_sd: tuple[float, ...]
    correlation: tuple[tuple[float, ...], ...]
    residual_quantiles: tuple[float, float, float]
    at_bound: tuple[str, ...]


def seconds(table: Table, d: Denominators, parameters: Parameters, cache: Cache) -> Array:
    """Predicted seconds of a table's rows."""
    return terms(table, d, parameters, cache).total_s()


def fit(form: type[Any], table: Table, measured_s: Array, weights: Array, d: Denominators, cache: Cache) -> Fit:
    """The form's parameters on these rows; the better of its structural choices."""
    names = list(forms.ranges(form))
    best: tuple[float, Fit] | None = None
    for fixed, start in product(_choices(names), _starts(form)):
        cost, found = _fit_one(form, table, measured_s, weights, d, cache, fixed, start)
        if best is None or cost < best[0]:
            best = (cost, found)
    assert best is not None
    return best[1]


def earned(form: type[Any], table: Table, measured_s: Array, weights: Array, d: Denominators, cache: Cache) -> Fit:
    """The form's fit where it beats the three constants on the same points, each by its freedom; else those."""
    rich = fit(form, table, measured_s, weights, d, cache)
    plain = baseline(table, measured_s, weights, d)
    return rich if spread(rich.residual_quantiles) < spread(plain.residual_quantiles) else plain


def _choices(names: list[str]) -> Iterator[dict[str, float]]:
    structural = [n for n in names if n.rpartition(".")[2] in CHOICES]
    if not structural:
        yield {}
        return
    for value in CHOICES[structural[0].rpartition(".")[2]]:
        yield {structural[0]: value}


def _starts(form: type[Any]) -> list[dict[str, float]]:
    name, values = STARTS.get(form, ("", ()))
    return [{name: value} for value in values] or [{}]


def _fit_one(
    form: type[Any],
    table: Table,
    measured_s: Array,
    weights: Array,
    d: Denominators,
    cache: Cache,
    fixed: dict[str, float],
    start: dict[str, float],
) -> tuple[float, Fit]:
    from scipy.optimize import least_squares

    ranges = forms.ranges(form)
    names = list(ranges)
    low, high = np.array([r.low for r in ranges.values()]), np.array([r.high for r in ranges.values()])
    values = np.array([fixed.get(n, start.get(n, r.start)) for n, r in ranges.items()])
    if "floor_s" in names[0]:  # what the fastest rows take is nearly all launch
        values[0] = np.clip(0.8 * np.quantile(measured_s, 0.02), 1.01 * low[0], 0.99 * high[0])
    root = np.sqrt(weights)

    def solve(free: npt.NDArray[np.int64]) -> Any:
        def residual(x: Array) -> Array:
            trial = values.copy()
            trial[free] = np.exp(x)
            return np.asarray(np.log(seconds(table, d, forms.build(form, trial), cache) / measured_s) * root)

        bounds = (np.log(low[free]) - 1e-9, np.log(high[free]) + 1e-9)
        found = least_squares(residual, np.log(values[free]), bounds=bounds, loss="soft_l1", f_scale=SOFTNESS)
        values[free] = np.clip(np.exp(found.x), low[free], high[free])
        return found

    movable = np.flatnonzero((low < high) & np.array([n not in fixed for n in names]))
    early = np.array([i for i in movable if names[i].rpartition(".")[2].endswith(FIRST)], dtype=np.int64)
    solve(early)
    found = solve(movable)
    parameters = forms.build(form, values)
    left = np.log(measured_s / seconds(table, d, parameters, cache))
    freedom = len(left) / max(1, len(left) - len(movable))
    noise = max(float(np.mean(weights * left**2)) * freedom, 1e-12)
    covariance = np.linalg.inv(found.jac.T @ found.jac / noise + np.eye(len(movable)) / UNKNOWN_LOG_SD**2)
    log_sd = np.sqrt(np.maximum(np.diag(covariance), 0.0))
    scale = np.where(log_sd > 0, log_sd, np.inf)
    sds = np.zeros(len(names))
    sds[movable] = log_sd
    correlation = np.eye(len(names))
    correlation[np.ix_(movable, movable)] = np.clip(covariance / np.outer(scale, scale), -1.0, 1.0)
    np.fill_diagonal(correlation, 1.0)
    inflated = np.median(left) + (left - np.median(left)) * np.sqrt(freedom)
    near = [names[i] for i in movable if values[i] < 1.02 * low[i] or values[i] > 0.98 * high[i]]
    quantiles = weighted_quantiles(inflated, weights, (0.1, 0.5, 0.9))
    return float(found.cost), Fit(
        parameters,
        tuple(float(v) for v in sds),
        tuple(tuple(float(v) for v in row) for row in correlation),
        (float(quantiles[0]), float(quantiles[1]), float(quantiles[2])),
        tuple(near),
    )


def baseline(table: Table, measured_s: Array, weights: Array, d: Denominators) -> Fit:
    """Three constants (links: alpha-beta) fitted on the same rows: what a model must beat to earn its place."""
    form: type[Any] = LatencyBandwidth if isinstance(table, Collective | Copy) else ThreeConstants
    return fit(form, table, measured_s, weights, d, Cache.COLD)


def pure_roofline(table: Table, d: Denominators) -> Array:
    """The datasheet alone: no floor, all fractions 1."""
    amount = work(table)
    if isinstance(table, Collective | Copy):
        return np.asarray(amount.traffic_bytes / d.link_bytes_per_s)
    return np.asarray(np.maximum(amount.flops / d.peak_flops_per_s, amount.traffic_bytes / d.bandwidth_bytes_per_s))


def weighted_quantiles(values: Array, weights: Array, at: tuple[float, ...]) -> Array:
    """Quantiles of values that stand for different numbers of rows."""
    order = np.argsort(values)
    cumulative = np.cumsum(weights[order]) - 0.5 * weights[order]
    return np.asarray(np.interp(at, cumulative / weights.sum(), values[order]))


def spread(quantiles: tuple[float, float, float]) -> float:
    """Standard deviation whose 80 % interval is as wide as the middle 80 % of the residuals."""
    return (quantiles[2] - quantiles[0]) / (2 * Z_80)
