"""Build the calibration files from the public tables: one a device, and one for devices without a relative."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..dtypes import DType
from ..hwspecs.device import Device
from ..hwspecs.load import fleet_of
from ..hwspecs.load import load as load_part
from ..simulator.calibration import (
    Basis,
    Cache,
    Calibration,
    Denominators,
    Errors,
    Hull,
    Parameters,
    Provenance,
)
from ..simulator.costs import datasheet, work
from ..simulator.estimate import Array
from ..simulator.operators import Kernel, KernelName, Table
from ..simulator.parameters import LatencyBandwidth, ScaledGemm
from . import forms, silicon, store
from .fit import Fit, baseline, earned, pure_roofline, seconds, spread
from .judge import errors
from .sample import designed, points, split_sites
from .transfer import ANY_DEVICE, kindred, may_lend

SHARED_FLOOR = 0.03  # two collections of the same kernel differ by 2 to 4 %: no calibration is better founded
HOST_BOUND = "the host's launch dominates: floor above 30 us for a matrix product"
HOST_BOUND_S = 3e-5
UNTRIED_LOG_SD = 0.3  # displacement of a kernel measured on one device only, so never tried on another (assumed)
PRODUCTS = (KernelName.GEMM, KernelName.GEMM_BLOCK_SCALED, KernelName.GEMM_WEIGHT_ONLY)
SEED = 0
TRANSFER_ROWS = 1500  # of a series, on which other devices' parameters are tried


class Fitted(NamedTuple):
    """A calibration and a sample of the rows it was judged on."""

    calibration: Calibration
    table: Table
    seconds: Array


class Trial(NamedTuple):
    """A fit on a designed sample of half the sites, judged on all rows of the other half."""

    found: Fit
    baseline: Parameters
    own_log_sd: float
    shared_log_sd: float
    sample: Table
    judged: Table
    judged_s: Array
    accuracy: Errors


def try_series(series: silicon.Series, d: Denominators, seed: int = SEED) -> Trial:
    """Fit and judge one series on a device of these rates."""
    assert series.kernel is not None
    measured, kernel = silicon.load(series), series.kernel
    inside, outside = split_sites(measured.table, measured.site, seed)
    candidates, judged, truth = measured.table.take(inside), measured.table.take(outside), measured.seconds[outside]
    chosen = designed(candidates, measured.seconds[inside], points(kernel.name), seed)
    rows, known = candidates.take(chosen.rows), measured.seconds[inside][chosen.rows]
    found = earned(forms.form_of(kernel, series.engine), rows, known, chosen.weights, d, Cache.REUSED)
    three = baseline(rows, known, chosen.weights, d).parameters
    own, shared = spread(found.residual_quantiles), max(SHARED_FLOOR, abs(found.residual_quantiles[1]))
    accuracy = errors(
        seconds(judged, d, found.parameters, Cache.REUSED),
        truth,
        np.hypot(own, shared),
        pure_roofline(judged, d),
        seconds(judged, d, three, Cache.REUSED),
    )
    return Trial(found, three, own, shared, rows, judged, truth, accuracy)


class Origin(NamedTuple):
    """Whose kernels were timed, and where."""

    engine: str
    version: str
    source: str


def calibration_of(
    device: Device,
    origin: Origin,
    found: Fit,
    three: Parameters,
    own_log_sd: float,
    shared_log_sd: float,
    d: Denominators,
    sample: Table,
    provenance: Provenance,
) -> Calibration:
    """A fit of a sample as a calibration of its kernel, beside the three constants of the same rows.

    Nobody tried it on another device, and its accuracy is not known: to transfer costs the kernel's own errors.
    """
    amount = work(sample)
    return Calibration(
        device=device.key,
        architecture=device.architecture,
        architecture_class=device.architecture_class,
        kernel=sample.kernel,
        engine=origin.engine,
        version=origin.version,
        source=origin.source,
        basis=Basis.FITTED,
        parameters=found.parameters,
        baseline=three,
        log_sd=found.log_sd,
        correlation=found.correlation,
        at_bound=found.at_bound,
        denominators=d,
        hull=Hull(_range(amount.flops), _range(amount.traffic_bytes)),
        residual_quantiles=found.residual_quantiles,
        own_log_sd=own_log_sd,
        shared_log_sd=shared_log_sd,
        transfer_log_sd=own_log_sd,
        transfer_own_log_sd=own_log_sd,
        accuracy=None,
        provenance=provenance,
    )


def fit_series(series: silicon.Series, seed: int = SEED) -> Fitted:
    """The calibration of one series and a sample of the rows it was judged on."""
    assert series.kernel is not None
    device = load_part(Device, series.device)
    d = datasheet(fleet_of(device), series.kernel)
    trial = try_series(series, d, seed)
    truth = trial.judged_s
    origin = Origin(series.engine, series.version, series.source)
    provenance = Provenance(
        silicon.SOURCE, series.file, datetime.date.today().isoformat(), len(trial.sample.label), len(truth)
    )
    own, shared = trial.own_log_sd, trial.shared_log_sd
    calibration = calibration_of(device, origin, trial.found, trial.baseline, own, shared, d, trial.sample, provenance)
    calibration = calibration._replace(accuracy=trial.accuracy)
    few = np.random.default_rng(seed).permutation(len(truth))[:TRANSFER_ROWS]
    return Fitted(calibration, trial.judged.take(few), truth[few])


def host_bound_floor(kernel: Kernel, p: Parameters) -> bool:
    """Whether a product was timed with the host's launches, not from a captured graph."""
    floor_s = p.gemm.floor_s if isinstance(p, ScaledGemm) else p[0]
    return kernel.name in PRODUCTS and isinstance(floor_s, float) and floor_s > HOST_BOUND_S


def build(out: Path, devices: Iterable[str], progress: Callable[[str], None], workers: int = 2) -> list[Path]:
    """Fit every series of the devices and write the files; returns their paths."""
    series = [s for device in devices for s in silicon.catalogue(device) if s.left_out is None]
    fitted: list[Fitted] = []
    done = 0
    with ProcessPoolExecutor(workers) as pool:
        for one, found in zip(series, pool.map(fit_series, series), strict=True):
            accuracy = found.calibration.accuracy
            assert accuracy is not None
            done += 1
            progress(f"{done}/{len(series)} {one.name}: {accuracy.mape:.1f} / {accuracy.median:.1f} %")
            if host_bound_floor(found.calibration.kernel, found.calibration.parameters):
                series[done - 1] = one._replace(left_out=HOST_BOUND)
            else:
                fitted.append(found)
    with_errors = [with_transfer(f, fitted) for f in fitted]
    written = []
    for device in dict.fromkeys(s.device for s in series):
        path = out / f"{device}.json"
        store.write(path, device, [c for c in with_errors if c.device == device])
        written.append(path)
    path = out / f"{ANY_DEVICE}.json"
    store.write(path, ANY_DEVICE, [*pooled(fitted), *assumed()])
    return [*written, path]


def residuals(parameters: Parameters, target: Fitted) -> Array:
    """log(measured / predicted) of the rows of another device, priced with these parameters and its datasheet."""
    predicted = seconds(target.table, target.calibration.denominators, parameters, Cache.REUSED)
    return np.asarray(np.log(target.seconds / predicted))


def displacement(left: list[Array]) -> float:
    """RMS over devices of the median residual: how far a whole device is off."""
    return float(np.sqrt(np.mean([np.median(r) ** 2 for r in left])))


def scatter(left: list[Array]) -> float:
    """RMS over devices of the spread around their medians."""
    spreads = [spread((float(np.quantile(r, 0.1)), 0.0, float(np.quantile(r, 0.9)))) for r in left]
    return float(np.sqrt(np.mean(np.square(spreads))))


def borrowers(lender: Calibration, everybody: Iterable[Fitted], without: str = "") -> list[Fitted]:
    """The other devices of a kernel and engine that a calibration could be lent to."""
    return [
        f
        for f in everybody
        if f.calibration.kernel == lender.kernel
        and f.calibration.engine == lender.engine
        and f.calibration.device not in (lender.device, without)
        and kindred(lender.architecture_class, f.calibration.architecture_class)
        and may_lend(lender, f.calibration.denominators)
    ]


def with_transfer(one: Fitted, everybody: list[Fitted], without: str = "") -> Calibration:
    """The calibration with the errors seen when it prices other devices of its class."""
    lender = one.calibration
    left = [residuals(lender.parameters, target) for target in borrowers(lender, everybody, without)]
    if not left:  # nobody to try it on: twice the kernel's own errors
        return lender._replace(transfer_log_sd=lender.own_log_sd, transfer_own_log_sd=lender.own_log_sd)
    displaced = max(displacement(left), lender.shared_log_sd)
    return lender._replace(transfer_log_sd=displaced, transfer_own_log_sd=max(scatter(left), lender.own_log_sd))


def pooled(everybody: list[Fitted]) -> list[Calibration]:
    """Three constants for devices nobody measured, a kernel at a time, each device left out of the mean in turn."""
    result = []
    for kernel in dict.fromkeys(f.calibration.kernel for f in everybody):
        group = [f for f in everybody if f.calibration.kernel == kernel]
        result.append(_pool(kernel, group))
    return result


def _mean(group: list[Fitted]) -> Parameters:
    """Geometric mean of the baselines."""
    logs = np.array([np.log(forms.values_of(f.calibration.baseline)) for f in group])
    return forms.build(type(group[0].calibration.baseline), np.exp(logs.mean(axis=0)))


def _pool(kernel: Kernel, group: list[Fitted]) -> Calibration:
    first = group[0].calibration
    devices = list(dict.fromkeys(f.calibration.device for f in group))
    left, three, truth, pure = [], [], [], []
    for target in group:
        others = [f for f in group if f.calibration.device != target.calibration.device] or group
        guess = _mean(others)
        left.append(residuals(guess, target))
        three.append(seconds(target.table, target.calibration.denominators, guess, Cache.REUSED))
        truth.append(target.seconds)
        pure.append(pure_roofline(target.table, target.calibration.denominators))
    displaced = displacement(left) if len(devices) > 1 else UNTRIED_LOG_SD
    own = scatter(left)
    low, middle, high = np.quantile(np.concatenate(left), [0.1, 0.5, 0.9])
    predicted = np.concatenate(three)
    logs = np.array([np.log(forms.values_of(f.calibration.baseline)) for f in group])
    sds = logs.std(axis=0, ddof=1) if len(group) > 1 else np.full(logs.shape[1], own)
    hulls = [f.calibration.hull for f in group]
    return first._replace(
        device=ANY_DEVICE,
        architecture=ANY_DEVICE,
        architecture_class=ANY_DEVICE,
        engine="pooled",
        version="1",
        source="mean of all devices and engines",
        basis=Basis.POOLED,
        parameters=_mean(group),
        baseline=_mean(group),
        log_sd=tuple(float(v) for v in sds),
        correlation=tuple(tuple(row) for row in np.eye(len(sds)).tolist()),
        at_bound=(),
        hull=Hull(
            (min(h.flops[0] for h in hulls), max(h.flops[1] for h in hulls)),
            (min(h.bytes[0] for h in hulls), max(h.bytes[1] for h in hulls)),
        ),
        residual_quantiles=(float(low), float(middle), float(high)),
        own_log_sd=own,
        shared_log_sd=displaced,
        transfer_log_sd=displaced,
        transfer_own_log_sd=own,
        accuracy=errors(predicted, np.concatenate(truth), np.hypot(own, displaced), np.concatenate(pure), predicted),
        provenance=Provenance(
            silicon.SOURCE,
            f"mean of {', '.join(devices)}; each judged with itself left out",
            datetime.date.today().isoformat(),
            sum(f.calibration.provenance.fit_rows for f in group),
            sum(len(t) for t in truth),
        ),
    )


def assumed() -> list[Calibration]:
    """Kernels without public measurements: constants with a stated reason, and wide errors."""
    rows: dict[KernelName, tuple[Parameters, str]] = {
        KernelName.HOST_COPY: (
            LatencyBandwidth(1e-5, 1e-8, 0.8),
            "pinned copies reach 80 to 90 % of the link after packet headers; 10 us to start one",
        ),
    }
    return [_assume(name, parameters, why) for name, (parameters, why) in rows.items()]


def _assume(name: KernelName, parameters: Parameters, why: str) -> Calibration:
    width = len(forms.values_of(parameters))
    return Calibration(
        device=ANY_DEVICE,
        architecture=ANY_DEVICE,
        architecture_class=ANY_DEVICE,
        kernel=Kernel(name, DType.BF16),
        engine="none",
        version="0",
        source="assumption",
        basis=Basis.ASSUMED,
        parameters=parameters,
        baseline=parameters,
        log_sd=(0.3,) * width,
        correlation=tuple(tuple(row) for row in np.eye(width).tolist()),
        at_bound=(),
        denominators=Denominators(1.0, 1.0, 1.0),
        hull=Hull((0.0, 30.0), (0.0, 30.0)),
        residual_quantiles=(-0.3845, 0.0, 0.3845),
        own_log_sd=0.3,
        shared_log_sd=0.2,
        transfer_log_sd=0.2,
        transfer_own_log_sd=0.3,
        accuracy=None,
        provenance=Provenance(f"assumption: {why}", "none", datetime.date.today().isoformat(), 0, 0),
    )


def _range(values: Array) -> tuple[float, float]:
    log = np.log10(np.maximum(values, 1.0))
    return float(log.min()), float(log.max())
