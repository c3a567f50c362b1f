"""Judge the shipped models: predictions of `simulator.costs` beside measurements, by device, kernel and regime.

Four kinds of evidence, from the strictest down. *Held-out sites*: rows of the public tables whose weight shape or head
configuration no fit saw. *Transferred*: the same rows priced as if their device had no calibration of its own.
*Records*: a file of measurements, the user's or the anchors that ship. *Serving*: whole steps composed from operators.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import InputError, UnknownNameError
from ..hwspecs.device import Device, Fleet
from ..hwspecs.load import fleet_of
from ..hwspecs.load import load as load_part
from ..simulator.calibration import Basis, Cache, Calibration, Denominators, Errors, Resolved
from ..simulator.costs import datasheet, estimate_with, terms, work
from ..simulator.estimate import Array
from ..simulator.operators import Collective, Copy, Table
from . import records, silicon, store
from .bundle import SEED, TRANSFER_ROWS, Fitted, with_transfer
from .fit import pure_roofline, seconds
from .judge import errors
from .regimes import Mask, regimes
from .sample import split_sites
from .transfer import ANY_DEVICE, Calibrations

ALL = "all"
SERVING = "serving"  # whole steps; in the place of a kernel
ANCHORS = Path(__file__).parent / "anchors"
PCIE_OR_SWITCH = 8  # devices of the node that collectives were measured in
NO_ERRORS = Errors(0, *([0.0] * 10))
LEAST_ROWS = 10  # of a regime, below which an error says little
RATES = ("compute_fraction", "read_fraction")  # without one of them a form says nothing about its rate
SEVERAL = "several"

Progress = Callable[[str], None]


class Wanted(NamedTuple):
    """Devices, kernels (`gemm` or `gemm/bf16`) and engines to judge; none named: all of them."""

    devices: tuple[str, ...] = ()
    kernels: tuple[str, ...] = ()
    engines: tuple[str, ...] = ()

    def takes(self, device: str, kernel: str, engine: str) -> bool:
        """Whether a series is asked for."""
        return (
            (not self.devices or device in self.devices)
            and (not self.kernels or bool({kernel, kernel.split("/")[0]} & set(self.kernels)))
            and (not self.engines or engine in self.engines)
        )


EVERYTHING = Wanted()


class Case(NamedTuple):
    """One line of a validation: a kernel on a device in a regime, on one kind of evidence.

    `source` names what priced it where that is not the device's own fit; `at_bound` the parameters of what priced it
    that its data did not hold.
    """

    evidence: str
    device: str
    kernel: str
    engine: str
    version: str
    source: str
    regime: str
    errors: Errors
    at_bound: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Readable key: device/kernel/dtype/engine-version."""
        software = "-".join(part for part in (self.engine, self.version) if part)
        return "/".join(part for part in (self.device, self.kernel, software) if part)

    @property
    def degenerate(self) -> tuple[str, ...]:
        """The rates nothing is known about: the data left them at the end of their range."""
        return tuple(name for name in self.at_bound if name.rpartition(".")[2] in RATES)


class Points(NamedTuple):
    """Predicted and measured seconds of the rows behind a case, for a picture.

    `flops` and `traffic_bytes` are the work of each row and the rates those of its device's datasheet; all are empty
    or 0 where no roof is above them (links, whole steps).
    """

    name: str
    device: str
    kernel: str
    predicted_s: Array
    measured_s: Array
    flops: Array
    traffic_bytes: Array
    peak_flops_per_s: float
    bandwidth_bytes_per_s: float


class Rows(NamedTuple):
    """Measured and predicted seconds of some rows, how sure the prediction is, and the two baselines' seconds."""

    measured_s: Array
    predicted_s: Array
    log_sd: Array
    pure_s: Array
    three_s: Array

    def errors(self, which: Mask | slice = slice(None)) -> Errors:
        """Errors of some of the rows."""
        measured, predicted, log_sd, pure, three = (values[which] for values in self)
        return errors(predicted, measured, log_sd, pure, three)


class Judged(NamedTuple):
    """A kernel's cases, all rows first, the points behind them for a picture, and the rows they were judged on."""

    cases: tuple[Case, ...]
    points: Points
    rows: Rows


def pooled(group: Sequence[Judged]) -> Judged:
    """Several devices and engines as one line: a few rows of each say more together than apart."""
    cases = [one.cases[0] for one in group]
    devices, engines = ({getattr(c, name) for c in cases} for name in ("device", "engine"))
    rows = Rows(*(np.concatenate(values) for values in zip(*(one.rows for one in group), strict=True)))

    def some(names: set[str], what: str) -> str:
        return names.pop() if len(names) == 1 else f"{len(names)} {what}"

    about = cases[0]._replace(
        device=some(devices, "devices"), engine=some(engines, "engines"), version="", source="", at_bound=()
    )
    first = group[0].points
    points = first._replace(
        name=about.name,
        device=about.device,
        predicted_s=rows.predicted_s,
        measured_s=rows.measured_s,
        flops=np.zeros(0),
        traffic_bytes=np.zeros(0),
        peak_flops_per_s=0.0,
        bandwidth_bytes_per_s=0.0,
    )
    return Judged((about._replace(errors=rows.errors()),), points, rows)


def refuse_unknown(wanted: Wanted, there: Iterable[tuple[str, str, str]], listing: str) -> None:
    """Complain about a name that nothing there has, with the nearest that something has."""
    devices, kernels, engines = (dict.fromkeys(values) for values in zip(*there, strict=True))
    kernels |= dict.fromkeys(kernel.split("/")[0] for kernel in kernels)
    for what, asked, known in (
        ("device", wanted.devices, devices),
        ("kernel", wanted.kernels, kernels),
        ("engine", wanted.engines, engines),
    ):
        for name in asked:
            if name not in known:
                raise UnknownNameError(f"{what} among what can be judged", name, known, listing=listing)


@lru_cache(maxsize=1)
def shipped() -> tuple[Calibration, ...]:
    """All bundled calibrations."""
    return tuple(c for path in store.bundled_files() for c in store.read(path))


def fleet(device: str, beside: Path | None = None) -> Fleet:
    """A node of the device, as the tables were measured in; its file may lie in the folder `beside`."""
    own = None if beside is None else beside / f"{device}.toml"
    there = own is not None and "/" not in device and own.is_file()
    return fleet_of(load_part(Device, str(own) if there else device), PCIE_OR_SWITCH)


def fitted(wanted: Wanted = EVERYTHING) -> list[Calibration]:
    """The shipped calibrations that rest on rows of their own device."""
    own = (c for c in shipped() if c.basis is Basis.FITTED)
    return [c for c in own if wanted.takes(c.device, str(c.kernel), c.engine)]


def held_out(calibration: Calibration, seed: int = SEED) -> Fitted:
    """The rows of a shipped calibration that its fit never saw."""
    wanted = (calibration.engine, calibration.version, calibration.source, calibration.kernel)
    for series in silicon.of_file(calibration.device, calibration.provenance.table):
        if series.left_out is None and (series.engine, series.version, series.source, series.kernel) == wanted:
            measured = silicon.load(series)
            _, outside = split_sites(measured.table, measured.site, seed)
            return Fitted(calibration, measured.table.take(outside), measured.seconds[outside])
    raise InputError("the public tables have no such series", file=calibration.file, key=calibration.id)


def judge_held_out(device: str, progress: Progress, wanted: Wanted = EVERYTHING) -> Iterator[Judged]:
    """Every fitted kernel of a device on its held-out sites."""
    for calibration in fitted(wanted):
        if calibration.device == device:
            progress(calibration.id)
            found = held_out(calibration)
            log_sd = float(np.hypot(calibration.own_log_sd, calibration.shared_log_sd))
            predicted = seconds(found.table, calibration.denominators, calibration.parameters, Cache.REUSED)
            about = _about("held-out sites", calibration, calibration.source, calibration)
            yield _judged(about, calibration, found, predicted, np.full_like(predicted, log_sd))


def lender(calibration: Calibration) -> Calibration | None:
    """Who would price this kernel if its device had no calibration of its own; None where no relative can."""
    device = calibration.device
    others = tuple(c for c in shipped() if c.device != device)
    lent = Calibrations(fleet(device), others, calibration.engine).resolve(calibration.kernel).calibration
    return None if lent.device == ANY_DEVICE else lent


def judge_transferred(device: str, progress: Progress, wanted: Wanted = EVERYTHING) -> Iterator[Judged]:
    """Every fitted kernel of a device priced as if the device had no calibration of its own.

    The lender's transfer errors are taken anew without this device, which its shipped ones have seen.
    """
    others = tuple(c for c in shipped() if c.device != device)
    for calibration in fitted(wanted):
        if calibration.device != device or (lent := lender(calibration)) is None:
            continue
        progress(f"{calibration.id} from {lent.device}")
        found = held_out(calibration)
        judged_anew = with_transfer(_few(lent), [_few(c) for c in _family(lent, others)], without=device)
        predicted = seconds(found.table, calibration.denominators, judged_anew.parameters, Cache.REUSED)
        log_sd = float(np.hypot(judged_anew.transfer_log_sd, judged_anew.transfer_own_log_sd))
        about = _about("transferred", calibration, lent.id, lent)
        yield _judged(about, calibration, found, predicted, np.full_like(predicted, log_sd))


def _family(lender: Calibration, others: Iterable[Calibration]) -> list[Calibration]:
    return [c for c in others if (c.kernel, c.engine) == (lender.kernel, lender.engine) and c.basis is Basis.FITTED]


@lru_cache(maxsize=512)
def _few(calibration: Calibration) -> Fitted:
    """A sample of the held-out rows: enough to see how far a whole device is off."""
    whole = held_out(calibration)
    rows = np.random.default_rng(SEED).permutation(len(whole.seconds))[:TRANSFER_ROWS]
    return Fitted(calibration, whole.table.take(rows), whole.seconds[rows])


def _about(evidence: str, calibration: Calibration, source: str, priced_by: Calibration) -> Case:
    kernel, engine, version = str(calibration.kernel), calibration.engine, calibration.version
    return Case(evidence, calibration.device, kernel, engine, version, source, ALL, NO_ERRORS, priced_by.at_bound)


def _judged(about: Case, calibration: Calibration, found: Fitted, predicted: Array, log_sd: Array) -> Judged:
    d, table = calibration.denominators, found.table
    three = seconds(table, d, calibration.baseline, Cache.REUSED)
    return _by_regime(about, table, d, Rows(found.seconds, predicted, log_sd, pure_roofline(table, d), three))


def _by_regime(about: Case, table: Table, d: Denominators, rows: Rows) -> Judged:
    """The case of all rows, and one for each regime that has enough of them."""
    masks = {name: mask for name, mask in regimes(table, rows.measured_s).items() if mask.sum() >= LEAST_ROWS}
    parts = [about._replace(regime=name, errors=rows.errors(mask)) for name, mask in masks.items()]
    amount, link = work(table), isinstance(table, Collective | Copy)
    points = Points(
        about.name,
        about.device,
        about.kernel,
        rows.predicted_s,
        rows.measured_s,
        amount.flops,
        amount.traffic_bytes,
        0.0 if link else d.peak_flops_per_s,
        0.0 if link else d.bandwidth_bytes_per_s,
    )
    return Judged((about._replace(errors=rows.errors()), *parts), points, rows)


def judge_records(
    path: Path,
    known: Sequence[Calibration],
    evidence: str = "records",
    wanted: Wanted = EVERYTHING,
    progress: Progress = lambda _: None,
) -> Iterator[Judged]:
    """The kernels of a record file, priced by whatever calibration answers for each."""
    found = records.read(path)
    for table, measured, rows in records.tables(found):
        first = found[rows[0]]
        if not wanted.takes(first.device, first.kernel_id, first.engine):
            continue
        progress(f"{path.name}: {first.device}/{first.kernel_id}, {len(rows)} rows")
        versions = {found[row].version for row in rows}
        version = versions.pop() if len(versions) == 1 else SEVERAL
        about = Case(evidence, first.device, first.kernel_id, first.engine, version, "", ALL, NO_ERRORS)
        try:
            on, cache = fleet(first.device, path.parent), Cache(first.cache or Cache.COLD)
            resolved = Calibrations(on, tuple(known), first.engine or "vllm").resolve(table.kernel)
        except InputError as error:
            raise InputError(
                error.problem, file=str(path), key="device", value=first.device, remedy=error.remedy
            ) from None
        except ValueError:
            remedy = f"write {' or '.join(Cache)}, or leave it blank"
            raise InputError(
                "unknown cache state", file=str(path), key="cache", value=first.cache, remedy=remedy
            ) from None
        except LookupError:
            problem = "no calibration prices this kernel in this number format"
            raise InputError(problem, file=str(path), key=first.device, value=first.kernel_id) from None
        if not (np.add(*work(table)) > 0).all():
            problem, remedy = "a row without work: nothing computed, nothing moved", "fill its shape, or drop it"
            raise InputError(problem, file=str(path), key=about.name, remedy=remedy)
        yield _judge_table(about, table, measured, resolved, on, cache)


def _judge_table(about: Case, table: Table, measured: Array, resolved: Resolved, on: Fleet, cache: Cache) -> Judged:
    priced = estimate_with(table, on, resolved, cache)
    d, lent = datasheet(on, table.kernel), resolved.calibration
    three = terms(table, d, lent.baseline, cache).total_s()
    by = f"{lent.id} ({resolved.tier.label}{', reused cache' if cache is Cache.REUSED else ''})"
    about = about._replace(source=by, at_bound=lent.at_bound)
    return _by_regime(about, table, d, Rows(measured, priced.time_s, priced.log_sd, pure_roofline(table, d), three))
