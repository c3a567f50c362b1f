"""Fit the constants of a cost model to measurements: few physical parameters, log ratio, robust, judged on whole sites.

Half of the sites (weight shapes, head configurations, message sizes) may be fitted on, from which a sample
is drawn; every row of the other half judges. Least squares on log(predicted / measured)
with soft-L1 loss and bounds from physics: fractions of a datasheet rate at most 1, floors at least 0.1 us.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..dtypes import DType
from ..simulator.calibration import (
    Accuracy,
    Basis,
    Calibration,
    Denominators,
    Hull,
    LatencyBandwidth,
    Parameters,
    Provenance,
    ThreeConstants,
)
from ..simulator.costs import work
from ..simulator.estimate import Z_80, Array
from ..simulator.operators import Collective, Kernel, KernelName
from .silicon import SOURCE, Measured, SiliconDevice, load

KERNELS = tuple(
    Kernel(name, dtype)
    for name, dtypes in {
        KernelName.GEMM: (DType.BF16, DType.FP8),
        KernelName.ATTENTION_PREFILL: (DType.BF16, DType.FP8),
        KernelName.ATTENTION_DECODE: (DType.BF16, DType.FP8),
        KernelName.EXPERTS: (DType.BF16, DType.FP8),
        KernelName.EXPERTS_WEIGHT_ONLY: (DType.INT4,),
        KernelName.ALL_REDUCE: (DType.BF16,),
        KernelName.ALL_GATHER: (DType.BF16,),
    }.items()
    for dtype in dtypes
)
SAMPLE = {KernelName.ATTENTION_PREFILL: 80, KernelName.ATTENTION_DECODE: 80, KernelName.ALL_REDUCE: 60}
DEFAULT_SAMPLE = 300
Rows = npt.NDArray[np.int64]
SHARED_FLOOR = 0.03  # two collections of the same kernel differ by 2 to 4 %: no calibration is better founded


@dataclass(frozen=True, eq=False)
class Points:
    """What the forms see of a table: work, ranks and measured seconds of each row."""

    flops: Array
    traffic_bytes: Array
    ranks: Array
    seconds: Array
    site: Array

    @staticmethod
    def of(measured: Measured) -> Points:
        """Work from the cost models' own functions."""
        amount = work(measured.table)
        ranks = measured.table.ranks if isinstance(measured.table, Collective) else np.ones_like(measured.seconds)
        return Points(amount.flops, amount.traffic_bytes, ranks, measured.seconds, measured.site)

    def __getitem__(self, index: Rows) -> Points:
        return Points(*(a[index] for a in (self.flops, self.traffic_bytes, self.ranks, self.seconds, self.site)))


def predict(parameters: Parameters, points: Points, d: Denominators) -> Array:
    """Seconds by the form of the parameters, exactly as `simulator.costs` prices them."""
    if isinstance(parameters, LatencyBandwidth):
        latency = parameters.floor_s + parameters.hop_s * np.log2(points.ranks)
        return np.asarray(latency + points.traffic_bytes / (parameters.link_fraction * d.link_bytes_per_s))
    compute = points.flops / (parameters.compute_fraction * d.peak_flops_per_s)
    memory = points.traffic_bytes / (parameters.memory_fraction * d.bandwidth_bytes_per_s)
    return np.asarray(parameters.floor_s + np.maximum(compute, memory))


def pure_roofline(points: Points, d: Denominators, link: bool) -> Array:
    """The datasheet alone: no floor, all fractions 1."""
    if link:
        return np.asarray(points.traffic_bytes / d.link_bytes_per_s)
    return np.asarray(np.maximum(points.flops / d.peak_flops_per_s, points.traffic_bytes / d.bandwidth_bytes_per_s))


def sample_rows(points: Points, size: int, seed: int) -> Rows:
    """Indices of a random sample: half from all rows alike, half spread evenly over log time (20 bins).

    The first half keeps the constants true to the bulk of the rows, the second sees the rare long ones.
    """
    rng = np.random.default_rng(seed)
    log = np.log(points.seconds)
    bins = np.digitize(log, np.linspace(log.min(), log.max(), 21)[1:-1])
    order = rng.permutation(len(log))
    alike, rest = order[: size // 2], order[size // 2 :]
    rank = np.zeros(len(rest))
    for b in np.unique(bins[rest]):
        members = np.flatnonzero(bins[rest] == b)
        rank[members] = np.arange(len(members))
    return np.concatenate([alike, rest[np.argsort(rank, kind="stable")][: size - len(alike)]])


def split_sites(points: Points, seed: int) -> tuple[Rows, Rows]:
    """Row indices of the sites to fit on and of those to judge by; no site is in both."""
    sites = np.unique(points.site)
    chosen = np.random.default_rng(seed).permutation(sites)[: max(1, len(sites) // 2)]
    inside = np.isin(points.site, chosen)
    return np.flatnonzero(inside), np.flatnonzero(~inside)


def fit_constants(points: Points, d: Denominators, link: bool) -> tuple[Parameters, Array]:
    """Parameters and the covariance of their logarithms (J^T J scaled by the residual variance)."""
    from scipy.optimize import least_squares

    form: type[Parameters] = LatencyBandwidth if link else ThreeConstants
    low, high = ([1e-7, 1e-8, 0.02], [1e-3, 1e-3, 1.0]) if link else ([1e-7, 0.02, 0.02], [1e-3, 1.0, 1.0])
    floor = float(np.quantile(points.seconds, 0.02))
    start = np.clip([0.7 * floor, 0.2 * floor, 0.6] if link else [0.7 * floor, 0.7, 0.7], low, high)

    def residual(x: Array) -> Array:
        return np.asarray(np.log(predict(form(*np.exp(x)), points, d) / points.seconds))

    solution = least_squares(
        residual, np.log(start), bounds=(np.log(low) - 1e-9, np.log(high) + 1e-9), loss="soft_l1", f_scale=0.1
    )
    freedom = max(1, len(points.seconds) - len(start))
    variance = float(np.sum(residual(solution.x) ** 2)) / freedom
    covariance = variance * np.linalg.pinv(solution.jac.T @ solution.jac)
    return form(*np.minimum(np.exp(solution.x), high)), covariance


def accuracy(predicted: Array, measured: Array, pure: Array) -> Accuracy:
    """MAPE, median, p90 and median bias in percent, beside the pure roofline on the same rows."""
    error, base = predicted / measured - 1, np.abs(pure / measured - 1)
    return Accuracy(
        mape=100 * float(np.mean(np.abs(error))),
        median=100 * float(np.median(np.abs(error))),
        p90=100 * float(np.quantile(np.abs(error), 0.9)),
        bias=100 * float(np.median(error)),
        pure_roofline_mape=100 * float(np.mean(base)),
        pure_roofline_median=100 * float(np.median(base)),
    )


def denominators(device: SiliconDevice, kernel: Kernel) -> Denominators:
    """Datasheet numbers the fractions of this kernel refer to."""
    peak = device.peak.get(kernel.arithmetic, device.peak[DType.BF16])
    return Denominators(peak, device.bandwidth_bytes_per_s, device.link_bytes_per_s)


def calibrate(device: SiliconDevice, kernel: Kernel, seed: int = 0) -> Calibration | None:
    """Fit one kernel on one device and judge it on the sites it never saw; None where there are no rows."""
    measured = load(device, device.engine, kernel)
    if measured is None:
        return None
    points, d = Points.of(measured), denominators(device, kernel)
    link = isinstance(measured.table, Collective)
    fit_rows, judge_rows = split_sites(points, seed)
    sample = points[fit_rows][sample_rows(points[fit_rows], SAMPLE.get(kernel.name, DEFAULT_SAMPLE), seed)]
    parameters, covariance = fit_constants(sample, d, link)
    judged = points[judge_rows]
    predicted = predict(parameters, judged, d)
    low, middle, high = np.quantile(np.log(judged.seconds / predicted), [0.1, 0.5, 0.9])
    return Calibration(
        device=device.key,
        architecture=device.architecture,
        architecture_class=device.architecture_class,
        kernel=kernel,
        engine="nccl" if link else device.engine,
        version=measured.version,
        basis=Basis.FITTED,
        parameters=parameters,
        covariance=tuple(tuple(float(v) for v in row) for row in covariance),
        denominators=d,
        hull=Hull(_range(sample.flops), _range(sample.traffic_bytes)),
        residual_quantiles=(float(low), float(middle), float(high)),
        own_log_sd=float(high - low) / (2 * Z_80),
        shared_log_sd=max(SHARED_FLOOR, abs(float(middle))),
        transfer_log_sd=0.0,
        transfer_own_log_sd=0.0,
        accuracy=accuracy(predicted, judged.seconds, pure_roofline(judged, d, link)),
        provenance=Provenance(
            SOURCE, measured.file, datetime.date.today().isoformat(), len(sample.seconds), len(judged.seconds)
        ),
    )


def _range(values: Array) -> tuple[float, float]:
    log = np.log10(np.maximum(values, 1.0))
    return float(log.min()), float(log.max())
