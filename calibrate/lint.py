"""Checks of record files: the mistakes measurements really bring, each one a named function.

A check yields findings and never changes a number. Speeds are held to the datasheet by the same FLOPs and bytes that
price a question (`simulator/costs`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import InputError
from ..hwspecs.device import Device, Link
from ..hwspecs.lint import Finding
from ..hwspecs.load import load, names
from ..simulator.costs import work
from ..simulator.estimate import Array
from ..simulator.operators import Collective, Copy, Elementwise, KernelName
from ..units import format_seconds
from .columns import FRACTIONS, TEXTS, filled
from .records import Measurements, Record, closest, read_text, rows, tables

BEATS = 1.05  # datasheet clocks and bandwidths are met to a few percent, never beaten by more
SLOWER, SLOWER_FLOOR_S = 100.0, 100e-6  # seconds given as milliseconds are a thousand times too slow
DISAGREE = 1.1
CHUNK = 4096  # rows priced at once: routing needs tokens x experts of memory


class Row(NamedTuple):
    """A record with the line it stands on."""

    line: int
    record: Record


Check = Callable[[str, Sequence[Row]], Iterator[Finding]]


def at(row: Row, column: str) -> str:
    """Where a finding is, in the words of the reader's complaints."""
    return f"line {row.line}: {column}"


def device_is_listed(file: str, data: Sequence[Row]) -> Iterator[Finding]:
    """A path means nothing on another machine, and a name nobody listed has no datasheet to be held to.

    A hardware file that lies beside the records goes with them.
    """
    known = names(Device)
    for row in data:
        name = row.record.device
        if name.endswith(".toml") or "/" in name:
            yield Finding(file, at(row, "device"), f"{name} is a path; name a device of `roofplan hw list`")
        elif name not in known and not Path(file).with_name(f"{name}.toml").is_file():
            hint = closest(name, known) + "`roofplan hw list` lists them all"
            yield Finding(file, at(row, "device"), f"unknown device {name}; {hint}")


def shapes_are_whole(file: str, data: Sequence[Row]) -> Iterator[Finding]:
    """Counts and bytes of a buffer are whole numbers; a fraction was an average or a column moved by one."""
    for row in data:
        for column, value in row.record.shape:
            if column not in FRACTIONS and not value.is_integer():
                yield Finding(file, at(row, column), f"{value:g} is not a whole number")


def shapes_are_possible(file: str, data: Sequence[Row]) -> Iterator[Finding]:
    """Grouped queries share their keys evenly, tokens pass experts there are, and new tokens are among the keys."""
    for row in data:
        given = dict(row.record.shape)
        heads, kv_heads = given.get("heads"), given.get("kv_heads")
        if heads is not None and kv_heads is not None and heads % kv_heads:
            yield Finding(file, at(row, "heads"), f"{heads:g} heads are not a multiple of {kv_heads:g} KV heads")
        for column, least in (("experts", "top_k"), ("kv_tokens", "new_tokens"), ("context", "prompt")):
            if column in given and given[column] < given.get(least, 0.0):
                problem = f"{given[column]:g} is less than {least} {given[least]:g}"
                yield Finding(file, at(row, column), problem)


def percentiles_hold_the_value(file: str, data: Sequence[Row]) -> Iterator[Finding]:
    """p10 <= value <= p90, all in the unit of the value."""
    for row in data:
        r = row.record
        if r.p10 is not None and r.p10 > r.value:
            yield Finding(
                file, at(row, "p10"), f"{r.p10:g} {r.unit} is above the value {r.value:g}: swapped, or its unit"
            )
        if r.p90 is not None and r.p90 < r.value:
            yield Finding(
                file, at(row, "p90"), f"{r.p90:g} {r.unit} is below the value {r.value:g}: swapped, or its unit"
            )


def origin_is_stated(file: str, data: Sequence[Row]) -> Iterator[Finding]:
    """A number that cannot be traced cannot be doubted; one finding for all rows that lack it."""
    for column in ("version", "source"):
        missing = [row for row in data if not getattr(row.record, column)]
        if missing:
            more = f" and {len(missing) - 1} more" * (len(missing) > 1)
            yield Finding(file, at(missing[0], column), f"no {column} on this row{more}")


def repeats_agree(file: str, data: Sequence[Row]) -> Iterator[Finding]:
    """One configuration measured twice: a copied row, or two answers more than 10 % apart.

    Bytes alone do not tell one elementwise operator from another: of those only rows of one source are compared.
    """
    first: dict[object, Row] = {}
    for row in data:
        r = row.record
        shape = tuple(filled(dict(r.shape), r.identity).items()) if r.is_kernel else r.shape
        apart = ("date", "note") if r.kernel == KernelName.ELEMENTWISE else ("source", "date", "note")
        texts = tuple(getattr(r, name) for name in TEXTS if name not in apart)
        before = first.setdefault((r.device, r.kernel, r.dtype, shape, texts), row)
        if before is row:
            continue
        if before.record == r:
            yield Finding(file, at(row, "value"), f"the same row as line {before.line}")
        elif not 1 / DISAGREE <= (ratio := r.si() / before.record.si()) <= DISAGREE:
            problem = f"{ratio:.3g} times line {before.line}, which has the same shape: say in `version` what differs"
            yield Finding(file, at(row, "value"), problem)


def speed_is_possible(file: str, data: Sequence[Row]) -> Iterator[Finding]:
    """A kernel neither beats the datasheet (unless its data lies in the cache) nor takes a hundred times as long."""
    known = frozenset(names(Device))
    odd = {f.key.partition(":")[0] for check in (shapes_are_whole, shapes_are_possible) for f in check(file, data)}
    priceable = [
        row for row in data if row.record.is_kernel and row.record.device in known and f"line {row.line}" not in odd
    ]
    for start in range(0, len(priceable), CHUNK):
        chunk = priceable[start : start + CHUNK]
        for measured in tables([row.record for row in chunk]):
            device = load(Device, chunk[measured.rows[0]].record.device)
            limits = _limits(measured, device)
            if limits is None:
                continue
            for index, seconds, whole, best, launches in zip(measured.rows, measured.seconds, *limits, strict=True):
                if best > seconds * BEATS:
                    problem = (
                        f"{format_seconds(seconds)} beats the datasheet of {device.key} ({format_seconds(best)}): "
                        "bytes miscounted, a sparse rate, data left in the cache, or the wrong unit"
                    )
                    yield Finding(file, at(chunk[index], "value"), problem)
                elif seconds > SLOWER * whole + SLOWER_FLOOR_S * launches:
                    problem = (
                        f"{format_seconds(seconds)} where the datasheet of {device.key} says {format_seconds(whole)}"
                    )
                    yield Finding(file, at(chunk[index], "value"), f"{problem}: wrong unit (seconds given as ms)?")


def _limits(measured: Measurements, device: Device) -> tuple[Array, Array, Array] | None:
    """Seconds of the datasheet roofline, the part of it no cache can beat, and launches; None where none is known."""
    table = measured.table
    try:
        amount = work(table)
        peak = device.peak_flops_per_s(table.kernel.arithmetic).value
    except (InputError, KeyError, TypeError):  # no rate of that format, or no cost model of that kernel yet
        return None
    ones = np.ones_like(measured.seconds)
    if isinstance(table, Collective | Copy):
        link = load(Link, device.host_link if isinstance(table, Copy) else device.interconnect)
        seconds = amount.traffic_bytes / link.bandwidth_bytes_per_s.value
        return seconds, seconds, ones
    compute, memory = amount.flops / peak, amount.traffic_bytes / device.bandwidth_bytes_per_s.value
    whole = np.maximum(compute, memory)
    cache_bytes = 0.0 if device.l2_bytes is None else device.l2_bytes.value
    launches = table.launches if isinstance(table, Elementwise) else ones
    return whole, np.where(amount.traffic_bytes <= cache_bytes, compute, whole), launches


CHECKS: tuple[Check, ...] = (
    device_is_listed,
    shapes_are_whole,
    shapes_are_possible,
    percentiles_hold_the_value,
    origin_is_stated,
    repeats_agree,
    speed_is_possible,
)


def lint(path: Path) -> list[Finding]:
    """All findings about one file: rows that cannot be read first, then what the checks say about the others."""
    file = str(path)
    findings, data = [], []
    for line, row in rows(read_text(path), file):
        if isinstance(row, Record):
            data.append(Row(line, row))
        else:
            shown = InputError(row.problem, value=row.value, remedy=row.remedy).line()
            findings.append(Finding(file, row.key or f"line {line}", shown))
    if not data and not findings:
        findings.append(Finding(file, "*", "no measurements in it"))
    return findings + [finding for check in CHECKS for finding in check(file, data)]
