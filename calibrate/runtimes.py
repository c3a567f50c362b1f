"""Constants of runtimes measured as a whole: three for each vendor's devices, fitted on published runs.

Nobody publishes kernel times of llama.cpp on forty consumer cards; people publish tokens per second. So every kernel of
the runtime on a vendor's devices gets the same three constants (launch floor, shares of the arithmetic and of the
bandwidth), fitted on the rows of use `development` in `speeds`. What is judged has no part in it.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..dtypes import DType
from ..hwspecs.load import host_fleet
from ..simulator.calibration import Basis, Calibration, Denominators, Hull, Provenance
from ..simulator.operators import Kernel, KernelName
from ..simulator.parameters import ThreeConstants
from ..simulator.schedule import COMPOSITION_LOG_SD
from . import speeds, store
from .transfer import ANY_DEVICE, SERVERS, Calibrations

ENGINE = "llama.cpp"
K, D = KernelName, DType
KERNELS = (
    *(Kernel(name, d) for name in (K.GEMM, K.EXPERTS) for d in (D.BF16, D.FP16, D.FP32)),
    *(Kernel(name, d) for name in (K.GEMM_WEIGHT_ONLY, K.EXPERTS_WEIGHT_ONLY) for d in (D.INT4, D.INT8, D.FP4)),
    *(Kernel(name, d) for name in (K.GEMM, K.GEMM_BLOCK_SCALED, K.EXPERTS, K.EXPERTS_BLOCK_SCALED) for d in (D.FP8,)),
    *(
        Kernel(name, d)
        for name in (K.ATTENTION_PREFILL, K.ATTENTION_DECODE, K.MLA_PREFILL, K.MLA_DECODE)
        for d in (D.BF16, D.FP16, D.FP8, D.INT8, D.INT4)
    ),
    *(Kernel(K.ELEMENTWISE, d) for d in (D.BF16, D.FP16, D.FP32)),
)
START = (4e-6, 0.4, 0.6)
LOWEST = (1e-7, 0.01, 0.1)
HIGHEST = (1e-4, 1.0, 1.0)
PRIOR_LOG_SD = (0.7, 0.7, 0.3)  # of the starting values: what a constant keeps to where the rows say little
OWN_LOG_SD = 0.1  # of single kernels beside their run's; hardly seen in a sum of many
SMALLEST_SPREAD = 0.15  # no vendor's rows are so many that less could be claimed
ROW_LOG_SD = 0.2  # spread of single rows around constants that fit: other builds, clocks, settings


class Group(NamedTuple):
    """A vendor's devices under one runtime: what shares three constants."""

    vendor: str
    engine: str

    def holds(self, row: speeds.Row) -> bool:
        """Whether a row is evidence for it: for the host's constants where layers or experts are computed there."""
        if row.gpu == "cpu" or row.mode in ("layers", "experts"):
            host = host_fleet(speeds.fleet_of_row(row)) if row.gpu != "cpu" else speeds.fleet_of_row(row)
            return self.vendor == host.device.architecture_class
        served = row.engine != ENGINE
        return speeds.fleet_of_row(row).device.vendor == self.vendor and served == (self.engine == SERVERS)


GROUPS = (
    *(Group(vendor, ENGINE) for vendor in ("nvidia", "amd", "apple", "intel")),
    Group("amd", SERVERS),
    Group("cpu", ENGINE),  # hosts last: beside devices that are settled
    Group("cpu-server", ENGINE),
)


class Found(NamedTuple):
    """The constants of a group and how the development rows lie around them (log of measured over predicted)."""

    group: Group
    constants: ThreeConstants
    residuals: npt.NDArray[np.float64]


def calibrations_of(
    vendor: str, constants: ThreeConstants, log_sd: float, rows: int, engine: str = ENGINE
) -> list[Calibration]:
    """One entry for each kernel, all alike. The spread is that of whole runs, so what composing adds is part of it."""
    width, shared = len(constants), math.sqrt(max(log_sd**2 - COMPOSITION_LOG_SD**2, 0.05**2))
    return [
        Calibration(
            device=f"{ANY_DEVICE}-{vendor}",
            architecture=ANY_DEVICE,
            architecture_class=vendor,
            kernel=kernel,
            engine=engine,
            version="2024-2026",
            source="whole runs",
            basis=Basis.FITTED,
            parameters=constants,
            baseline=constants,
            log_sd=(0.3,) * width,
            correlation=tuple(tuple(row) for row in np.eye(width).tolist()),
            at_bound=(),
            denominators=Denominators(1.0, 1.0, 1.0),
            hull=Hull((0.0, 30.0), (0.0, 30.0)),
            residual_quantiles=(-1.28 * log_sd, 0.0, 1.28 * log_sd),
            own_log_sd=OWN_LOG_SD,
            shared_log_sd=shared,
            transfer_log_sd=shared,
            transfer_own_log_sd=OWN_LOG_SD,
            accuracy=None,
            provenance=Provenance(
                "published runs, rows of use development in calibrate/reality/speeds_asked.csv",
                "speeds_asked.csv",
                datetime.date.today().isoformat(),
                rows,
                0,
            ),
        )
        for kernel in KERNELS
    ]


def fit(group: Group, rows: Sequence[speeds.Row], others: Sequence[Calibration]) -> Found:
    """The constants that bring predictions of the rows closest to what was measured, least squares of logarithms."""
    from scipy.optimize import least_squares

    measured = np.log([row.tokens_per_s for row in rows])
    entries = store.entries()

    def away(log_values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        constants = ThreeConstants(*(float(v) for v in np.exp(log_values)))
        known = (*calibrations_of(group.vendor, constants, 0.2, len(rows), group.engine), *others, *entries)
        predicted = [speeds.predict(row, _for(row, known)).tokens_per_s for row in rows]
        prior = (log_values - np.log(START)) / PRIOR_LOG_SD
        return np.concatenate([(measured - np.log(predicted)) / ROW_LOG_SD, prior])

    found = least_squares(away, np.log(START), bounds=(np.log(LOWEST), np.log(HIGHEST)), loss="soft_l1", diff_step=1e-3)
    residuals = away(found.x)[: len(rows)] * ROW_LOG_SD
    return Found(group, ThreeConstants(*(float(v) for v in np.exp(found.x))), residuals)


def _for(row: speeds.Row, known: Sequence[Calibration | store.Entry]) -> Calibrations:
    return Calibrations(speeds.fleet_of_row(row), tuple(known), row.engine)


def spread(residuals: npt.NDArray[np.float64]) -> float:
    """Spread of whole runs around the constants: what holds 80 % of them, small samples widened as Student's t is.

    By the quantile, not the square: single odd runs (four sockets, an early build) are no reason to doubt all.
    """
    from scipy.stats import norm, t

    free = max(1, len(residuals) - 2)
    held = float(np.quantile(np.abs(residuals), 0.8)) / float(norm.ppf(0.9))
    return max(SMALLEST_SPREAD, held * float(t.ppf(0.9, free) / norm.ppf(0.9)))


def build(out: Path) -> list[Found]:
    """Fit every group's constants and write a calibration file for each."""
    development = [row for row in speeds.rows() if row.use == "development"]
    found, settled = [], list[Calibration]()
    for group in GROUPS:
        rows = [row for row in development if group.holds(row)]
        result = fit(group, rows, settled)
        log_sd = spread(result.residuals)
        entries = calibrations_of(group.vendor, result.constants, log_sd, len(rows), group.engine)
        store.write(out / f"{group.engine}-{group.vendor}.json", f"{ANY_DEVICE}-{group.vendor}", entries)
        settled += entries
        found.append(result)
    return found
