"""Compare predictions with measurements: errors, bias, coverage of the intervals, and the baselines beside them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..simulator.calibration import Errors
from ..simulator.estimate import Z_80, Array


def errors(predicted_s: Array, measured_s: Array, log_sd: npt.ArrayLike, pure_s: Array, three_s: Array) -> Errors:
    """Errors of rows (all of one length) whose 80 % intervals have this standard deviation of the logarithm."""
    error, sd = predicted_s / measured_s - 1, np.broadcast_to(np.asarray(log_sd, dtype=float), predicted_s.shape)
    inside = np.abs(np.log(measured_s / predicted_s)) <= Z_80 * sd
    size, pure, three = np.abs(error), np.abs(pure_s / measured_s - 1), np.abs(three_s / measured_s - 1)

    def percent(value: object) -> float:
        return 100 * float(value)  # type: ignore[arg-type]

    return Errors(
        n=len(error),
        mape=percent(size.mean()),
        median=percent(np.median(size)),
        p90=percent(np.quantile(size, 0.9)),
        bias=percent(np.median(error)),
        coverage=percent(inside.mean()),
        width=percent(np.median(np.exp(Z_80 * sd) - np.exp(-Z_80 * sd))),
        pure_mape=percent(pure.mean()),
        pure_median=percent(np.median(pure)),
        three_mape=percent(three.mean()),
        three_median=percent(np.median(three)),
    )
