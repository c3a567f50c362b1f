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
from ..simulator.estimate import Z_80
from ..simulator.operators import Kernel, KernelName
from . import store
from .fit import KERNELS, Points, accuracy, calibrate, predict, pure_roofline
from .silicon import DEVICES, load
from .transfer import ANY_DEVICE

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
    pooled = [_pool(kernel, group) for kernel, group in judged.items() if group]
    path = out / f"{ANY_DEVICE}.json"
    store.write(path, ANY_DEVICE, [*pooled, *assumed()])
    return [*written, path]


def _displacement(parameters: Parameters, targets: list[tuple[Calibration, Points]]) -> float:
    """RMS over devices of the median log ratio of their measurements to what these parameters predict there."""
    shifts = [np.median(np.log(p.seconds / predict(parameters, p, c.denominators))) for c, p in targets]
    return float(np.sqrt(np.mean(np.square(shifts))))


def _with_transfer(calibration: Calibration, group: list[tuple[Calibration, Points]]) -> Calibration:
    """The calibration with the error seen when it prices the other devices (its own class, where there is one)."""
    others = [o for o in group if o[0].device != calibration.device]
    same = [o for o in others if o[0].architecture_class == calibration.architecture_class] or others
    # Two Hopper parts are closer kin than a new device will be: never claim less than the spread over all devices.
    spread = max(_displacement(calibration.parameters, g) for g in (same, others)) if others else calibration.own_log_sd
    return calibration._replace(transfer_log_sd=spread)


def _pool(kernel: Kernel, group: list[tuple[Calibration, Points]]) -> Calibration:
    """Geometric mean of the devices' parameters, with the error it shows on all their rows."""
    form = type(group[0][0].parameters)
    logs = np.array([[np.log(v) for v in c.parameters] for c, _ in group])
    parameters = form(*(float(v) for v in np.exp(logs.mean(axis=0))))
    link = isinstance(parameters, LatencyBandwidth)
    measured = np.concatenate([p.seconds for _, p in group])
    predicted = np.concatenate([predict(parameters, p, c.denominators) for c, p in group])
    pure = np.concatenate([pure_roofline(p, c.denominators, link) for c, p in group])
    low, middle, high = np.quantile(np.log(measured / predicted), [0.1, 0.5, 0.9])
    first, hulls = group[0][0], [c.hull for c, _ in group]
    return first._replace(
        device=ANY_DEVICE,
        architecture=ANY_DEVICE,
        architecture_class=ANY_DEVICE,
        basis=Basis.POOLED,
        parameters=parameters,
        covariance=tuple(tuple(float(v) for v in row) for row in np.atleast_2d(np.cov(logs.T)))
        if len(group) > 1
        else (),
        hull=Hull(
            *(
                (min(h[0] for h in s), max(h[1] for h in s))
                for s in ([x.flops for x in hulls], [x.bytes for x in hulls])
            )
        ),
        residual_quantiles=(float(low), float(middle), float(high)),
        own_log_sd=float(high - low) / (2 * Z_80),
        shared_log_sd=_displacement(parameters, group),
        transfer_log_sd=_displacement(parameters, group),
        accuracy=accuracy(predicted, measured, pure),
        provenance=first.provenance._replace(
            table=f"all devices: {', '.join(c.device for c, _ in group)}", held_out_rows=len(measured)
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
            accuracy=None,
            provenance=Provenance(f"assumption: {why}", "none", today, 0, 0),
        )
        for name, (parameters, why) in rows.items()
    ]
