"""Calibrations: what was fitted, on what, how well, and the datasheet numbers its fractions refer to.

A calibration belongs to (device, kernel, dtype, engine, version). Its parameters are dimensionless fractions of
the denominators it carries, plus floors in seconds, so it can be carried over to a relative of its device.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple, Protocol

import numpy as np

from ..hwspecs.device import Fleet
from .estimate import Array, Tier
from .operators import Kernel
from .parameters import (
    FlashPrefill,
    GroupedExperts,
    LatencyBandwidth,
    LatentDecode,
    OneOrTwoShot,
    PackedGemm,
    Ring,
    ScaledGemm,
    SoftRoofline,
    SplitKGemm,
    SplitKvDecode,
    Streaming,
    ThreeConstants,
)


class Basis(StrEnum):
    """What the parameters rest on: rows of one device, rows of several devices pooled, or a stated assumption."""

    FITTED = "fitted"
    POOLED = "pooled"
    ASSUMED = "assumed"


Parameters = (
    ThreeConstants
    | SoftRoofline
    | PackedGemm
    | LatencyBandwidth
    | SplitKGemm
    | ScaledGemm
    | FlashPrefill
    | SplitKvDecode
    | LatentDecode
    | GroupedExperts
    | Ring
    | Streaming
    | OneOrTwoShot
)


class Cache(StrEnum):
    """What the last-level cache holds when an operator starts."""

    COLD = "cold"  # a model's step: other layers have swept it, only the activations just made are there
    REUSED = "reused"  # a benchmark's loop over one operator: whatever fits has stayed


class Denominators(NamedTuple):
    """The datasheet numbers the fractions refer to; without them a fraction means nothing."""

    peak_flops_per_s: float
    bandwidth_bytes_per_s: float
    link_bytes_per_s: float
    sm_count: float = 1.0
    clock_hz: float = 1.0
    l2_bytes: float = 1.0


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


class Errors(NamedTuple):
    """How predictions met measurements, in percent, beside two baselines on the same rows.

    Bias is the median of predicted / measured - 1; coverage the share of rows inside the 80 % interval, whose median
    width is relative to the prediction. The baselines are the datasheet alone and a three-constant roofline (links:
    alpha-beta) fitted on the same points as the model.
    """

    n: int
    mape: float
    median: float
    p90: float
    bias: float
    coverage: float
    width: float
    pure_mape: float
    pure_median: float
    three_mape: float
    three_median: float


class Calibration(NamedTuple):
    """Fitted parameters of one kernel with their uncertainty, hull, residuals and provenance.

    `log_sd` and `correlation` are of the logarithms of the parameters in the order of `calibrate.forms.ranges`;
    `residual_quantiles` the 10, 50 and 90 % quantiles of log(measured / predicted) on the points of the fit, widened
    by its freedom; `own_log_sd` their spread, `shared_log_sd` how far a whole table of the same kernel may be
    displaced. `transfer_log_sd` and `transfer_own_log_sd` are the displacement and the spread seen when these
    parameters priced other devices. `at_bound` names parameters the data did not hold: the form is degenerate there.
    """

    device: str
    architecture: str
    architecture_class: str
    kernel: Kernel
    engine: str
    version: str
    source: str
    basis: Basis
    parameters: Parameters
    baseline: Parameters
    log_sd: tuple[float, ...]
    correlation: tuple[tuple[float, ...], ...]
    at_bound: tuple[str, ...]
    denominators: Denominators
    hull: Hull
    residual_quantiles: tuple[float, float, float]
    own_log_sd: float
    shared_log_sd: float
    transfer_log_sd: float
    transfer_own_log_sd: float
    accuracy: Errors | None
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

    def on(self, fleet: Fleet) -> CalibrationSet:
        """The same calibrations asked for another fleet."""
        ...
