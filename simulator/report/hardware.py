"""Hardware files as answers: lists, sheets, comparisons."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ...hwspecs.device import Cluster, Device, Host, Link, Part, Storage, attributes
from ...hwspecs.lint import facts_of, lint, notes
from ...hwspecs.load import load, names
from .. import catalogue as a

PARTS: tuple[type[Part], ...] = (Device, Host, Storage, Link, Cluster)


def list_all() -> a.HardwareList:
    """Every bundled file of every kind."""
    rows = []
    for part in PARTS:
        for name in names(part):
            loaded = load(part, name)
            rows.append(a.HardwareRow(name, part.__name__.lower(), loaded.name, sum(1 for _ in facts_of(loaded))))
    return a.HardwareList(tuple(rows))


def find(name: str) -> Part:
    """The part of that name, whatever its kind; a path to a TOML file is read as a device, `4xNAME` as one of it."""
    for part in PARTS[1:]:
        if name.lower() in names(part) and name.lower() not in names(Device):
            return load(part, name)
    return load(Device, re.sub(r"^\d+x", "", name))


def units(part: Part) -> dict[str, str]:
    """Unit of every number of the part's schema."""
    return {attribute.name: attribute.unit for attribute in attributes(type(part))}


def sheet(part: Part) -> a.HardwareSheet:
    """A part number by number, with where each is printed."""
    unit = units(part)
    rows = []
    for key, fact in facts_of(part):
        source = part.sources[fact.source]
        title = f"{source.publisher}, {source.title}"
        rows.append(a.FactRow(key, fact.value, unit[key.split(".")[0]], fact.kind.value, title, source.where))
    return a.HardwareSheet(part.key, part.name, tuple(rows))


def lint_all(parts: Sequence[Part]) -> a.LintReport:
    """Findings over some parts."""
    found, noted = ([f for part in parts for f in check(part)] for check in (lint, notes))
    findings, told = (tuple(a.LintFinding(*finding) for finding in list_) for list_ in (found, noted))
    return a.LintReport(len(parts), findings, told)


def bundled_parts() -> list[Part]:
    """Every bundled part."""
    return [load(part, name) for part in PARTS for name in names(part)]


def compare(devices: Sequence[Device]) -> a.Comparison:
    """Devices side by side, each number as a multiple of the first device's."""
    tables = [dict(facts_of(device)) for device in devices]
    unit = units(devices[0])
    keys = list(dict.fromkeys(key for facts in tables for key in facts))
    rows = []
    for key in keys:
        values = tuple(facts[key].value if key in facts else None for facts in tables)
        first = values[0]
        ratios = tuple(None if first is None or v is None else v / first for v in values)
        rows.append(a.CompareRow(key, unit[key.split(".")[0]], values, (None, *ratios[1:])))
    return a.Comparison(tuple(d.key for d in devices), tuple(rows))
