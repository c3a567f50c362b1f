"""Fit what was measured on this device: records to calibrations, by the fit that made the bundled ones."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..hwspecs.device import Fleet
from ..simulator.calibration import Cache, Calibration, Denominators, Errors, Provenance
from ..simulator.costs import datasheet
from ..simulator.estimate import Array
from ..simulator.operators import Collective, Copy, Elementwise, Table, concatenate
from ..simulator.parameters import SoftRoofline
from . import forms
from .bundle import SHARED_FLOOR, Origin, calibration_of
from .fit import baseline, fit, pure_roofline, seconds, spread
from .judge import errors
from .records import Record, tables

ROWS_PER_PARAMETER = 1.5  # below which a form is not tried: the three constants are all that so few rows hold
SOURCE = "measured on this device by roofplan calibrate"


class Group(NamedTuple):
    """Rows of one kernel of one engine, whatever the cache held where the model does not ask."""

    table: Table
    seconds: Array
    cache: Cache
    engine: str
    version: str
    source: str


def groups_of(found: Sequence[Record]) -> list[Group]:
    """Kernel records as operator tables, one for each kernel, number format and engine, in order of first use."""
    merged: dict[tuple[str, str, str], list[Group]] = {}
    for table, measured, rows in tables(found):
        first = found[rows[0]]
        cache = Cache(first.cache or Cache.COLD)
        apart = "" if isinstance(table, Elementwise) else cache.value
        group = Group(table, measured, cache, first.engine, first.version, first.source)
        merged.setdefault((first.kernel_id, first.engine, apart), []).append(group)
    return [_joined(groups) for groups in merged.values()]


def _joined(groups: list[Group]) -> Group:
    if len(groups) == 1:
        return groups[0]
    return groups[-1]._replace(
        table=concatenate([g.table for g in groups]), seconds=np.concatenate([g.seconds for g in groups])
    )


def fit_group(group: Group, fleet: Fleet) -> Calibration:
    """The calibration of a group on a device; its accuracy is not known yet."""
    device, kernel = fleet.device, group.table.kernel
    d = datasheet(fleet, kernel)
    weights = np.ones(len(group.seconds))
    plain = baseline(group.table, group.seconds, weights, d)
    tried = [
        fit(form, group.table, group.seconds, weights, d, group.cache)
        for form in candidates(device.vendor, group)
        if len(group.seconds) >= ROWS_PER_PARAMETER * len(forms.ranges(form))
    ]
    found = min((plain, *tried), key=lambda one: spread(one.residual_quantiles))  # each by its freedom
    own, shared = spread(found.residual_quantiles), max(SHARED_FLOOR, abs(found.residual_quantiles[1]))
    origin = Origin(group.engine, group.version, group.source)
    provenance = Provenance(SOURCE, "records.csv", datetime.date.today().isoformat(), len(group.seconds), 0)
    return calibration_of(device, origin, found, plain.parameters, own, shared, d, group.table, provenance)


def candidates(vendor: str, group: Group) -> tuple[type[Any], ...]:
    """Forms a kernel may have: its own, and where arithmetic and traffic meet the roofline that lets them overlap."""
    own = forms.form_on(vendor, group.table.kernel, group.engine)
    link = isinstance(group.table, Collective | Copy | Elementwise)
    return (own,) if link or own is SoftRoofline else (own, SoftRoofline)


def fit_all(found: Sequence[Record], fleet: Fleet, told: Callable[[str], None]) -> list[Calibration]:
    """A calibration for every kernel and engine of some records."""
    result = []
    for group in groups_of(found):
        told(f"fitting {group.table.kernel} of {group.engine}, {len(group.seconds)} rows")
        result.append(fit_group(group, fleet))
    return result


def judged(calibration: Calibration, group: Group) -> Errors:
    """How a calibration meets rows it never saw, beside its baselines on them."""
    d: Denominators = calibration.denominators
    return errors(
        seconds(group.table, d, calibration.parameters, group.cache),
        group.seconds,
        float(np.hypot(calibration.own_log_sd, calibration.shared_log_sd)),
        pure_roofline(group.table, d),
        seconds(group.table, d, calibration.baseline, group.cache),
    )


def with_accuracy(calibration: Calibration, found: Errors) -> Calibration:
    """The calibration with what became of its predictions."""
    return calibration._replace(accuracy=found, provenance=calibration.provenance._replace(held_out_rows=found.n))
