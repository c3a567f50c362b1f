"""Hardware files as answers: lists, sheets, comparisons."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ...dtypes import DType
from ...errors import UnknownNameError
from ...hwspecs.device import Cluster, Device, Host, Link, Part, Storage, attributes
from ...hwspecs.lint import facts_of, lint, notes
from ...hwspecs.load import cluster_of, load, load_fleet, names, path_of, read_toml
from .. import catalogue as a

PARTS: tuple[type[Part], ...] = (Device, Host, Storage, Link, Cluster)


KINDS = {"gpu": Device, "host": Host, "storage": Storage, "link": Link, "cluster": Cluster}
FINDING_ORDER = (Device, Cluster, Host, Storage, Link)  # a name that several kinds share means the first of these


def list_all(kind: str | None = None, word: str = "") -> a.HardwareList:
    """Bundled files of one kind or all that have the word in their names, vendor or architecture."""
    found = [
        row
        for part in ([KINDS[kind]] if kind else PARTS)
        for name in names(part)
        if (row := _row(load(part, name), word.lower())) is not None
    ]
    if not found:
        known = [name for part in PARTS for name in names(part)]
        raise UnknownNameError("hardware", word, known, listing="roofplan hw list")
    return a.HardwareList(tuple(found))


def _row(part: Part, word: str) -> a.HardwareRow | None:
    """A line of the list, or nothing where the word does not occur in what describes the part."""
    made_of = f"{part.device_count.value:.0f} x {part.device}, {part.host}" if isinstance(part, Cluster) else ""
    described = [part.key, part.name, made_of, *(getattr(part, key, "") for key in ("vendor", "architecture"))]
    if word and word not in " ".join(described).lower():
        return None
    rates = getattr(part, "peak_dense_flops_per_s", {})
    dtype = next((d for d in (DType.BF16, DType.FP16, *rates) if d in rates), None)
    memory, bandwidth = (_first(part, *keys) for keys in (MEMORY, BANDWIDTH))
    return a.HardwareRow(
        key=part.key,
        kind=type(part).__name__.lower(),
        name=part.name,
        facts=sum(1 for _ in facts_of(part)),
        memory_bytes=memory,
        bandwidth_bytes_per_s=bandwidth,
        flops_per_s=rates[dtype].value if dtype else None,
        dtype=dtype.value if dtype else "",
        made_of=made_of,
    )


MEMORY = ("capacity_bytes", "memory_bytes")
BANDWIDTH = ("bandwidth_bytes_per_s", "memory_bandwidth_bytes_per_s", "read_bytes_per_s")


def _first(part: Part, *keys: str) -> float | None:
    """The first of these numbers that the part has."""
    found = (getattr(part, key, None) for key in keys)
    return next((fact.value for fact in found if fact is not None), None)


def find(name: str, kind: str | None = None) -> tuple[Part, tuple[str, ...]]:
    """The part of that name, whatever its kind unless it is stated, and what else has the name.

    A path to a TOML file is of the kind whose keys it has; `4xNAME` is one of it, `m2-max-64gb` and `p5.48xlarge` are
    understood as in questions.
    """
    if name.endswith(".toml"):
        return load(KINDS[kind] if kind else _kind_of(name), name), ()
    if kind == "cluster" and (node := cluster_of(name)) is not None:
        return node, ()
    if kind:
        return load(KINDS[kind], name), ()
    kinds = [part for part in FINDING_ORDER if name.lower() in names(part)]
    if kinds:
        others = [word for word, part in KINDS.items() if part in kinds[1:]]
        told = f"there is a {' and a '.join(others)} of that name too: --kind {others[0]}" if others else ""
        return load(kinds[0], name.lower()), (told,) if told else ()
    node = cluster_of(name)
    return (node, ()) if node is not None else (device(name), ())


def _kind_of(file: str) -> type[Part]:
    """The kind of hardware whose keys a file has most of."""
    keys = set(read_toml(path_of(Device, file)))
    return max(FINDING_ORDER, key=lambda part: len(keys & {row.name for row in attributes(part)}))


def device(name: str) -> Device:
    """The device of that name, or of the fleet or node of that name."""
    try:
        return load(Device, re.sub(r"^\d+x", "", name))
    except UnknownNameError:
        return load_fleet(name).device


def units(part: Part) -> dict[str, str]:
    """Unit of every number of the part's schema."""
    return {attribute.name: attribute.unit for attribute in attributes(type(part))}


def sheet(part: Part) -> a.HardwareSheet:
    """A part word by word and number by number, with where each is printed."""
    unit = units(part)
    rows = []
    for key, fact in facts_of(part):
        source = part.sources[fact.source]
        title = f"{source.publisher}, {source.title}"
        rows.append(a.FactRow(key, fact.value, unit[key.split(".")[0]], fact.kind.value, title, source.where))
    words = tuple(
        a.WordRow(row.name, str(value).lower() if row.type == "flag" else value)
        for row in attributes(type(part))
        if row.type in ("text", "flag") and row.name != "name" and (value := getattr(part, row.name))
    )
    return a.HardwareSheet(part.key, type(part).__name__.lower(), part.name, words, tuple(rows))


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
    order = [*unit, *DType]  # as in the schema; formats of one table from wide to narrow
    keys = sorted({key for facts in tables for key in facts}, key=lambda key: [order.index(k) for k in key.split(".")])
    rows = []
    for key in keys:
        values = tuple(facts[key].value if key in facts else None for facts in tables)
        first = values[0]
        ratios = tuple(None if first is None or v is None else v / first for v in values)
        rows.append(a.CompareRow(key, unit[key.split(".")[0]], values, (None, *ratios[1:])))
    return a.Comparison(tuple(d.key for d in devices), tuple(rows))


def start(name: str, like: str | None, out: Path | None, *, force: bool = False) -> a.HardwareDraft:
    """Write a new file: a copy of the part `like`, else a draft from the NVIDIA driver of this machine."""
    from ...hwspecs import new

    path = out or Path(f"{new.check_name(name)}.toml")
    if like is None:
        content, whence = new.from_nvml(), "the NVIDIA driver of this machine"
    else:
        part, _ = find(like)
        content, whence = new.like(name, part), part.key
    new.save(path, content, force=force)
    report = lint_all([find(str(path))[0]])
    return a.HardwareDraft(str(path), whence, report.findings, report.notes)
