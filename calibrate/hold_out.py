"""The hold-out of the forms: tables that no form was chosen on, looked at once a release, every look logged.

`python -m roofplan.calibrate.hold_out` fits the forms, as they are, to the designed samples of these devices' tables
and judges them on the sites kept apart, exactly as for any other device; the result is added to `hold_out.csv`.
"""

from __future__ import annotations

import csv
import datetime
import io
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from .. import __version__
from ..dtypes import DType
from ..files import write_text
from ..simulator.calibration import Denominators, Errors
from . import silicon
from .bundle import HOST_BOUND, host_bound_floor, try_series

LOG = Path(__file__).parent / "hold_out.csv"


class Sheet(NamedTuple):
    """The rates fractions refer to. Dense rates, bandwidth and link as the tables' own system files state them."""

    peak: Mapping[DType, float]
    bandwidth_bytes_per_s: float
    link_bytes_per_s: float
    sm_count: float
    clock_hz: float
    l2_bytes: float


# Multiprocessors, clock and cache: Blackwell's as in hwspecs/gpus/b200.toml; Arc Pro B60 has 20 Xe cores at 2.4 GHz and
# 18 MB of cache (Intel's product page). They only scale parameters that are fitted here.
SHEETS: Mapping[str, Sheet] = MappingProxyType(
    {
        "b300_sxm": Sheet(
            {DType.BF16: 2250e12, DType.FP8: 4500e12, DType.FP4: 14000e12}, 7.75e12, 900e9, 148, 1.85e9, 132644864
        ),
        "gb200": Sheet(
            {DType.BF16: 2500e12, DType.FP8: 5000e12, DType.FP4: 10000e12}, 8e12, 900e9, 148, 1.85e9, 132644864
        ),
        "gb300": Sheet(
            {DType.BF16: 2500e12, DType.FP8: 5000e12, DType.FP4: 15000e12}, 8e12, 900e9, 148, 1.85e9, 132644864
        ),
        "b60": Sheet({DType.BF16: 98.3e12, DType.INT8: 197e12}, 456e9, 28.4e9, 20, 2.4e9, 18874368),
    }
)


class Look(NamedTuple):
    """One series of a held-out device."""

    series: silicon.Series
    errors: Errors
    note: str


def looks() -> Iterator[Look]:
    """Every series of every held-out device that has a rate for its arithmetic."""
    for folder, sheet in SHEETS.items():
        for series in silicon.catalogue(folder):
            if series.left_out is not None or series.kernel is None:
                continue
            peak = sheet.peak.get(series.kernel.arithmetic, sheet.peak[DType.BF16])
            trial = try_series(series, Denominators(peak, *sheet[1:]))
            slow = host_bound_floor(series.kernel, trial.found.parameters)
            yield Look(series, trial.accuracy, HOST_BOUND if slow else " ".join(trial.found.at_bound))


def log(found: list[Look]) -> None:
    """Add one look to the log."""
    text = LOG.read_text(encoding="utf-8") if LOG.exists() else ""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    if not text:
        writer.writerow(
            ["date", "roofplan", "device", "kernel", "engine", "version", "source", *Errors._fields, "note"]
        )
    for look in found:
        s, e = look.series, look.errors
        key = [s.device, str(s.kernel), s.engine, s.version, s.source]
        figures = [e.n, *(f"{v:.1f}" for v in e[1:])]
        writer.writerow([datetime.date.today().isoformat(), __version__, *key, *figures, look.note])
    write_text(LOG, text + out.getvalue())


def main() -> None:
    """Look once and log it."""
    found = []
    for look in looks():
        print(f"{look.series.name}: {look.errors.mape:.1f} / {look.errors.median:.1f}", file=sys.stderr)
        found.append(look)
    log(found)


if __name__ == "__main__":
    main()
