"""Build the calibration files from the public tables: one per device, and one pooled for devices without a relative."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..dtypes import DType
from ..simulator.calibration import (
    Basis,
    Calibration,
    Denominators,
    Hull,
    LatencyBandwidth,
    Parameters,
    Provenance,
    ThreeConstants,
)
from ..simulator.estimate import Z_80, Array
from ..simulator.operators import Kernel, KernelName
from . import store
from .fit import KERNELS, Points, accuracy, calibrate, predict, pure_roofline
from .silicon import DEVICES, load
from .transfer import ANY_DEVICE, may_lend

Judged = dict[Kernel, list[tuple[Calibration, Points]]]


def build(out: Path, progress: Callable[[str], None]) -> list[Path]:
    """Fit every kernel of every device and write the files; returns their paths."""
    judged: Judged = {kernel: [] for kernel in KERNELS}
    for device in DEVICES:
        for kernel in KERNELS:
            progress(f"{device.key}: {kernel}")
            calibration, measured = calibrate(device, kernel), load(device, device.engine, kernel)
            if calibration is not None and measured is not None:
                judged[kernel].append((calibration, Points.of(measured)))
    written = []
    for device in DEVICES:
        own = [
            _with_transfer(c, judged[c.kernel]) for group in judged.values() for c, _ in group if c.device == device.key
        ]
        path = out / f"{device.key}.json"
        store.write(path, device.key, own)
        written.append(path)
    spread = {k: [(_with_transfer(c, group), p) for c, p in group] for k, group in judged.items()}
    pooled = [_pool(kernel, group) for kernel, group in spread.items() if group]
    path = out / f"{ANY_DEVICE}.json"
    store.write(path, ANY_DEVICE, [*pooled, *assumed()])
    return [*written, path]


def _residuals(parameters: Parameters, target: tuple[Calibration, Points]) -> Array:
    """log(measured / predicted) of all rows of another device, priced with these parameters and its datasheet."""
    calibration, points = target
    return np.asarray(np.log(points.seconds / predict(parameters, points, calibration.denominators)))


def _displacement(residuals: list[Array]) -> float:
    """RMS over devices of the median residual: how far a whole device is off."""
    return float(np.sqrt(np.mean([np.median(r) ** 2 for r in residuals])))


def _spread(residuals: list[Array]) -> float:
    """Largest of the devices' own spreads around their medians."""
    return max(float(np.quantile(r, 0.9) - np.quantile(r, 0.1)) / (2 * Z_80) for r in residuals)


def _borrowers(calibration: Calibration, group: list[tuple[Calibration, Points]]) -> list[tuple[Calibration, Points]]:
    """The other devices a calibration could be lent to."""
    return [o for o in group if o[0].device != calibration.device and may_lend(calibration, o[0].denominators)]


def _with_transfer(calibration: Calibration, group: list[tuple[Calibration, Points]]) -> Calibration:
    """The calibration with the error seen when it prices the other devices."""
    others = _borrowers(calibration, group)
    if not others:  # nobody to try it on: the kernel's own errors, twice
        return calibration._replace(transfer_log_sd=calibration.own_log_sd, transfer_own_log_sd=calibration.own_log_sd)
    everybody = [_residuals(calibration.parameters, o) for o in others]
    kin = [
        r for r, o in zip(everybody, others, strict=True) if o[0].architecture_class == calibration.architecture_class
    ]
    # Two Hopper parts are closer kin than a new device will be: never claim less than the spread over all devices.
    displaced = max(_displacement(group) for group in (everybody, kin) if group)
    return calibration._replace(transfer_log_sd=displaced, transfer_own_log_sd=_spread(everybody))


def _mean_parameters(group: list[tuple[Calibration, Points]]) -> Parameters:
    """Geometric mean of the devices' parameters."""
    logs = np.array([[np.log(v) for v in c.parameters] for c, _ in group])
    return type(group[0][0].parameters)(*(float(v) for v in np.exp(logs.mean(axis=0))))


def _pool(kernel: Kernel, group: list[tuple[Calibration, Points]]) -> Calibration:
    """One set of parameters for devices nobody measured, judged by leaving each device out of the mean in turn."""
    first = group[0][0]
    left_out = [_mean_parameters([o for o in group if o is not target] or group) for target in group]
    residuals = [_residuals(parameters, target) for parameters, target in zip(left_out, group, strict=True)]
    link = isinstance(first.parameters, LatencyBandwidth)
    measured = np.concatenate([p.seconds for _, p in group])
    pure = np.concatenate([pure_roofline(p, c.denominators, link) for c, p in group])
    every = np.concatenate(residuals)
    low, middle, high = np.quantile(every, [0.1, 0.5, 0.9])
    # Never better founded than what a relative lends: a device that falls back to the pool has no relative.
    displaced = max(_displacement(residuals), *(c.transfer_log_sd for c, _ in group if _borrowers(c, group)))
    logs = np.array([[np.log(v) for v in c.parameters] for c, _ in group])
    devices = ", ".join(c.device for c, _ in group)
    return first._replace(
        device=ANY_DEVICE,
        architecture=ANY_DEVICE,
        architecture_class=ANY_DEVICE,
        engine="pooled",
        version="1",
        basis=Basis.POOLED,
        parameters=_mean_parameters(group),
        covariance=tuple(tuple(float(v) for v in row) for row in np.atleast_2d(np.cov(logs.T)))
        if len(group) > 1
        else (),
        hull=Hull(
            (min(c.hull.flops[0] for c, _ in group), max(c.hull.flops[1] for c, _ in group)),
            (min(c.hull.bytes[0] for c, _ in group), max(c.hull.bytes[1] for c, _ in group)),
        ),
        residual_quantiles=(float(low), float(middle), float(high)),
        own_log_sd=_spread(residuals),
        shared_log_sd=displaced,
        transfer_log_sd=displaced,
        transfer_own_log_sd=_spread(residuals),
        accuracy=accuracy(measured / np.exp(every), measured, pure),
        provenance=first.provenance._replace(
            table=f"mean of {devices}; each judged with itself left out of the mean",
            fit_rows=sum(c.provenance.fit_rows for c, _ in group),
            held_out_rows=len(measured),
        ),
    )


def assumed() -> list[Calibration]:
    """Kernels without public measurements: constants somebody used in a composition that was checked, wide errors."""
    today = datetime.date.today().isoformat()
    rows: dict[KernelName, tuple[Parameters, str]] = {
        KernelName.ELEMENTWISE: (
            ThreeConstants(1.5e-6, 1.0, 0.75),
            "1.5 us a kernel and 75 % of the bandwidth: constants of a serving-step composition whose 1,296 steps "
            "were met within 12 %",
        ),
        KernelName.HOST_COPY: (
            LatencyBandwidth(1e-5, 1e-8, 0.8),
            "pinned copies reach 80 to 90 % of the link after packet headers; 10 us to start one",
        ),
    }
    return [
        Calibration(
            device=ANY_DEVICE,
            architecture=ANY_DEVICE,
            architecture_class=ANY_DEVICE,
            kernel=Kernel(name, DType.BF16),
            engine="none",
            version="0",
            basis=Basis.ASSUMED,
            parameters=parameters,
            covariance=(),
            denominators=Denominators(1.0, 1.0, 1.0),
            hull=Hull((0.0, 30.0), (0.0, 30.0)),
            residual_quantiles=(-0.3845, 0.0, 0.3845),
            own_log_sd=0.3,
            shared_log_sd=0.2,
            transfer_log_sd=0.2,
            transfer_own_log_sd=0.3,
            accuracy=None,
            provenance=Provenance(f"assumption: {why}", "none", today, 0, 0),
        )
        for name, (parameters, why) in rows.items()
    ]
