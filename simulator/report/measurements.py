"""Files of measurements as answers: findings, columns, what an importer brought in."""

from __future__ import annotations

import os.path
from collections.abc import Sequence
from pathlib import Path

from ...calibrate import records as r
from ...calibrate.columns import COLUMNS, REQUIRED, allowed, needed
from ...calibrate.importers import Given, Kind, import_file
from ...calibrate.lint import lint
from ...errors import InputError
from ...hwspecs.device import Device
from ...hwspecs.load import path_of
from .. import catalogue as a


def lint_all(files: Sequence[Path]) -> a.LintReport:
    """Findings over some files."""
    findings = [a.LintFinding(f.file, f.key, f.problem) for file in files for f in lint(file)]
    return a.LintReport(len(files), tuple(findings))


def schema() -> a.RecordSchema:
    """The columns of a record file with the rows that need them."""
    rows = []
    for c in COLUMNS:
        by = tuple(str(kernel) for kernel in r.KERNELS if c.name in needed(kernel))
        may = tuple(str(kernel) for kernel in r.KERNELS if c.name in allowed(kernel))
        rows.append(a.ColumnRow(c.name, c.unit, c.name in REQUIRED, by, may, c.meaning))
    return a.RecordSchema(tuple(rows))


def device_key(name: str) -> str:
    """The key a record names a device by: short spellings become the listed name, a hardware file its own."""
    return path_of(Device, name).stem if name else ""


def bring_in(file: Path, kind: Kind | None, given: Given, out: Path, append: bool) -> a.ImportReport:
    """Import a file into a record file; what that holds already is not written twice."""
    exists = os.path.lexists(out)
    if exists and not append:
        remedy = "add to it with --append, or give another name"
        raise InputError("exists already", file=str(out), key="--out", remedy=remedy)
    held = r.read(out) if exists else ()
    found = import_file(file, kind, given._replace(device=device_key(given.device)))
    if not found.records:
        remedy = f"left out: {'; '.join(found.skipped)}" if found.skipped else "is it the right file?"
        raise InputError("no measurement to bring in", file=str(file), remedy=remedy)
    known = set(held)
    fresh = tuple(record for record in dict.fromkeys(found.records) if record not in known)
    skipped = found.skipped
    if repeated := len(found.records) - len(fresh):
        skipped += (f"{repeated} of {len(found.records)} measurements: already there",)
    if fresh:
        r.write(out, (*held, *fresh))
    rows = tuple(a.ImportedRow(f.device, f.kernel, f.model, f.value, f.unit, f.note) for f in fresh)
    return a.ImportReport(str(file), str(out), rows, skipped, len(held) + len(fresh))
