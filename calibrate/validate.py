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

from ..errors import InputError
from ..hwspecs.device import Device, Fleet
from ..hwspecs.load import fleet_of
from ..hwspecs.load import load as load_part
from ..simulator.calibration import Basis, Cache, Calibration, Errors, Resolved
from ..simulator.costs import datasheet, estimate_with, terms
from ..simulator.estimate import Array
from ..simulator.operators import Table
from . import records, silicon, store
from .bundle import SEED, TRANSFER_ROWS, Fitted, with_transfer
from .fit import pure_roofline, seconds
from .judge import errors
from .regimes import regimes
from .sample import split_sites
from .transfer import ANY_DEVICE, Calibrations

ALL = "all"
ANCHORS = Path(__file__).parent / "anchors"
PCIE_OR_SWITCH = 8  # devices of the node that collectives were measured in
NO_ERRORS = Errors(0, *([0.0] * 10))
LEAST_ROWS = 10  # of a regime, below which an error says little


class Case(NamedTuple):
    """One line of a validation: a kernel on a device in a regime, on one kind of evidence."""

    evidence: str
    device: str
    kernel: str
    engine: str
    version: str
    source: str
    regime: str
    errors: Errors


class Points(NamedTuple):
    """Predicted and measured seconds of the rows behind a case, for a picture."""

    name: str
    predicted_s: Array
    measured_s: Array


class Judged(NamedTuple):
    """A kernel's cases, all rows first, and the points behind them."""

    cases: tuple[Case, ...]
    points: Points


@lru_cache(maxsize=1)
def shipped() -> tuple[Calibration, ...]:
    """All bundled calibrations."""
    return tuple(c for path in store.bundled_files() for c in store.read(path))


def fleet(device: str) -> Fleet:
    """A node of the device, as the tables were measured in."""
    return fleet_of(load_part(Device, device), PCIE_OR_SWITCH)


def held_out(calibration: Calibration, seed: int = SEED) -> Fitted:
    """The rows of a shipped calibration that its fit never saw."""
    wanted = (calibration.engine, calibration.version, calibration.source, calibration.kernel)
    for series in silicon.catalogue(calibration.device):
        if (series.engine, series.version, series.source, series.kernel) == wanted:
            measured = silicon.load(series)
            _, outside = split_sites(measured.table, measured.site, seed)
            return Fitted(calibration, measured.table.take(outside), measured.seconds[outside])
    raise InputError("the public tables have no such series", file=calibration.file, key=calibration.id)


def judge_held_out(device: str, progress: Callable[[str], None]) -> Iterator[Judged]:
    """Every fitted kernel of a device on its held-out sites."""
    for calibration in shipped():
        if calibration.device == device and calibration.basis is Basis.FITTED:
            progress(calibration.id)
            found = held_out(calibration)
            log_sd = float(np.hypot(calibration.own_log_sd, calibration.shared_log_sd))
            predicted = seconds(found.table, calibration.denominators, calibration.parameters, Cache.REUSED)
            yield _judged("held-out sites", device, calibration, found, predicted, np.full_like(predicted, log_sd))


def judge_transferred(device: str, progress: Callable[[str], None]) -> Iterator[Judged]:
    """Every fitted kernel of a device priced as if the device had no calibration of its own.

    The lender's transfer errors are taken anew without this device, which its shipped ones have seen.
    """
    others = tuple(c for c in shipped() if c.device != device)
    for calibration in shipped():
        if calibration.device != device or calibration.basis is not Basis.FITTED:
            continue
        found = held_out(calibration)
        lent = Calibrations(fleet(device), others, calibration.engine).resolve(calibration.kernel)
        if lent.calibration.device == ANY_DEVICE:
            continue
        progress(f"{calibration.id} from {lent.calibration.device}")
        family = [_few(c) for c in _family(lent.calibration, others)]
        lender = with_transfer(_few(lent.calibration), family, without=device)
        predicted = seconds(found.table, calibration.denominators, lender.parameters, Cache.REUSED)
        log_sd = float(np.hypot(lender.transfer_log_sd, lender.transfer_own_log_sd))
        yield _judged("transferred", device, calibration, found, predicted, np.full_like(predicted, log_sd))


def _family(lender: Calibration, others: Iterable[Calibration]) -> list[Calibration]:
    return [c for c in others if (c.kernel, c.engine) == (lender.kernel, lender.engine) and c.basis is Basis.FITTED]


@lru_cache(maxsize=512)
def _few(calibration: Calibration) -> Fitted:
    """A sample of the held-out rows: enough to see how far a whole device is off."""
    whole = held_out(calibration)
    rows = np.random.default_rng(SEED).permutation(len(whole.seconds))[:TRANSFER_ROWS]
    return Fitted(calibration, whole.table.take(rows), whole.seconds[rows])


def _judged(
    evidence: str, device: str, calibration: Calibration, found: Fitted, predicted: Array, log_sd: Array
) -> Judged:
    d, table = calibration.denominators, found.table
    three = seconds(table, d, calibration.baseline, Cache.REUSED)
    about = Case(
        evidence,
        device,
        str(calibration.kernel),
        calibration.engine,
        calibration.version,
        calibration.source,
        ALL,
        NO_ERRORS,
    )
    return _by_regime(about, table, found.seconds, predicted, log_sd, pure_roofline(table, d), three)


def _by_regime(
    about: Case, table: Table, measured: Array, predicted: Array, log_sd: Array, pure: Array, three: Array
) -> Judged:
    """The case of all rows, and one for each regime that has enough of them."""
    masks = {ALL: np.ones(len(measured), dtype=bool), **regimes(table, measured)}
    cases = [
        about._replace(
            regime=name, errors=errors(predicted[rows], measured[rows], log_sd[rows], pure[rows], three[rows])
        )
        for name, rows in masks.items()
        if name == ALL or rows.sum() >= LEAST_ROWS
    ]
    return Judged(tuple(cases), Points(f"{about.device}/{about.kernel}/{about.engine}", predicted, measured))


def judge_records(path: Path, known: Sequence[Calibration], evidence: str = "records") -> Iterator[Judged]:
    """The kernels of a record file, priced by whatever calibration answers for each."""
    found = records.read(path)
    for table, measured, rows in records.tables(found):
        first = found[rows[0]]
        resolved = Calibrations(fleet(first.device), tuple(known), first.engine or "vllm").resolve(table.kernel)
        yield _judge_table(evidence, first, table, measured, resolved)


def _judge_table(evidence: str, first: records.Record, table: Table, measured: Array, resolved: Resolved) -> Judged:
    on = fleet(first.device)
    cache = Cache(first.cache or Cache.COLD.value)
    priced = estimate_with(table, on, resolved, cache)
    d, lender = datasheet(on, table.kernel), resolved.calibration
    three = terms(table, d, lender.baseline, cache).total_s()
    about = Case(evidence, first.device, str(table.kernel), first.engine, first.version, lender.id, ALL, NO_ERRORS)
    return _by_regime(about, table, measured, priced.time_s, priced.log_sd, pure_roofline(table, d), three)
