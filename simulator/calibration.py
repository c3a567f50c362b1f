"""Calibrations: what was fitted, on what, how well, and the datasheet numbers its fractions refer to.

A calibration belongs to (device, kernel, dtype, engine, version). Its parameters are dimensionless fractions of
the denominators it carries, plus floors in seconds, so it can be carried over to a relative of its device.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple, Protocol

import numpy as np

from .estimate import Array, Tier
from .operators import Kernel


class Basis(StrEnum):
    """What the parameters rest on: rows of one device, rows of several devices pooled, or a stated assumption."""

    FITTED = "fitted"
    POOLED = "pooled"
    ASSUMED = "assumed"


class ThreeConstants(NamedTuple):
    """T = floor + max(FLOPs / (compute_fraction * peak), bytes / (memory_fraction * bandwidth))."""

    floor_s: float
    compute_fraction: float
    memory_fraction: float


class LatencyBandwidth(NamedTuple):
    """T = floor + hop * log2(ranks) + traffic / (link_fraction * link bandwidth), the alpha-beta model."""

    floor_s: float
    hop_s: float
    link_fraction: float


Parameters = ThreeConstants | LatencyBandwidth


class Denominators(NamedTuple):
    """The datasheet numbers the fractions refer to; without them a fraction means nothing."""

    peak_flops_per_s: float
    bandwidth_bytes_per_s: float
    link_bytes_per_s: float


class Hull(NamedTuple):
    """Range of the points a calibration was fitted on, as log10 of FLOPs and of bytes moved."""

    flops: tuple[float, float]
    bytes: tuple[float, float]

    def outside(self, flops: Array, traffic_bytes: Array) -> Array:
        """Decades by which a point lies outside, 0 inside."""

        def beyond(value: Array, low_high: tuple[float, float]) -> Array:
            log = np.log10(np.maximum(value, 1.0))
            return np.asarray(np.maximum(np.maximum(low_high[0] - log, log - low_high[1]), 0.0))

        return np.asarray(np.maximum(beyond(flops, self.flops), beyond(traffic_bytes, self.bytes)))


class Provenance(NamedTuple):
    """Where the numbers of a calibration come from."""

    source: str
    table: str
    fitted: str
    fit_rows: int
    held_out_rows: int


class Accuracy(NamedTuple):
    """Error on held-out rows in percent, beside the pure roofline on the same rows."""

    mape: float
    median: float
    p90: float
    bias: float
    pure_roofline_mape: float
    pure_roofline_median: float


class Calibration(NamedTuple):
    """Fitted parameters of one kernel with covariance, hull, residuals and provenance.

    `residual_quantiles` are the 10, 50 and 90 % quantiles of log(measured / predicted) on held-out rows;
    `own_log_sd` their spread, `shared_log_sd` how much the whole table of another engine's kernel is displaced,
    `transfer_log_sd` and
    `transfer_own_log_sd` are the displacement and the spread seen when such parameters priced other devices.
    """

    device: str
    architecture: str
    architecture_class: str
    kernel: Kernel
    engine: str
    version: str
    basis: Basis
    parameters: Parameters
    covariance: tuple[tuple[float, ...], ...]
    denominators: Denominators
    hull: Hull
    residual_quantiles: tuple[float, float, float]
    own_log_sd: float
    shared_log_sd: float
    transfer_log_sd: float
    transfer_own_log_sd: float
    accuracy: Accuracy | None
    provenance: Provenance
    file: str = ""

    @property
    def id(self) -> str:
        """Readable key: device/kernel/dtype/engine-version."""
        return f"{self.device}/{self.kernel}/{self.engine}-{self.version}"


class Resolved(NamedTuple):
    """The calibration that answers for a kernel on a device, and what that answer is worth."""

    calibration: Calibration
    tier: Tier
    shared_log_sd: float
    own_log_sd: float
    reason: str


class CalibrationSet(Protocol):
    """Anything that can answer for a kernel (see `calibrate.transfer`)."""

    def resolve(self, kernel: Kernel) -> Resolved:
        """The best calibration there is; always answers, with the tier the answer deserves."""
        ...
