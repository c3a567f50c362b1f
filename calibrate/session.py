"""A run of measurements that can be cut short and gone on with: what is measured is in the file within seconds.

Cases run in a seeded random order, so that drift does not look like an effect of size, in blocks between two timings of
a sentinel shape. A block during which the sentinel moved by more than the device allows is measured once more; the
second stands, with the drift in its notes.
"""

from __future__ import annotations

import datetime
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import InputError, RoofplanError, SurroundingsError
from ..simulator.operators import Table
from . import records
from .measure.subject import Key, Subject, key_of, rows_of, shape_of
from .records import Record
from .timer import Timing

BLOCK = 20  # cases between two sentinels
SICK = 3  # failures in a row
SAVE_S = 2.0  # what an abrupt end may cost
MICROSECONDS = 1e6
SOURCE = "roofplan calibrate"
Told = Callable[[int, int, str], None]
"""Called with how many cases are done, of how many, and what is being timed."""


class Item(NamedTuple):
    """One case of one subject on one device."""

    device: str
    subject: Subject
    case: Table

    def record(self, timing: Timing, note: str = "") -> Record:
        """What the timing is written down as."""
        s = self.subject
        notes = [f"{timing.samples} samples"]
        if timing.disturbed:
            notes.append(f"{timing.disturbed} lost a core")
        if timing.apart:
            notes.append(f"passes {timing.apart:.1%} apart")
        return Record(
            device=self.device,
            kernel=s.identity.name.value,
            dtype=s.identity.dtype,
            value=_short(timing.median_s),
            unit="us",
            shape=shape_of(self.case),
            p10=_short(timing.p10_s),
            p90=_short(timing.p90_s),
            engine=s.engine,
            version=s.version,
            cache=s.cache.value,
            source=source_of(s),
            date=datetime.date.today().isoformat(),
            note="; ".join(part for part in (*notes, note) if part)[: records.MAX_TEXT],
        )

    @property
    def key(self) -> Key:
        """What its record is found by."""
        s = self.subject
        return str(s.identity), s.engine, s.cache.value, source_of(s), shape_of(self.case)


def source_of(subject: Subject) -> str:
    """What a record says it comes from, the variant of the kernel included."""
    return f"{SOURCE}, {subject.variant}"


def _short(seconds: float) -> float:
    return float(f"{seconds * MICROSECONDS:.6g}")


class Sentinel(NamedTuple):
    """A shape timed between blocks, and by how much it may move (as a share) before they count as drifted."""

    subject: Subject
    case: Table
    limit: float


class Session:
    """The records of one folder: those of an earlier run, and those added now.

    Behind `until_s` (of `now_s`) cases get the fewest samples and no block a second try: the end comes near.
    """

    def __init__(
        self,
        path: Path,
        known: Sequence[Record] = (),
        sense: Callable[[], str] = lambda: "",
        now_s: Callable[[], float] = time.monotonic,
        until_s: float = math.inf,
    ) -> None:
        self._path, self._sense, self._now_s = path, sense, now_s
        self._records: dict[tuple[str, Key], Record] = {(r.device, key_of(r)): r for r in known}
        self._saved_s, self._unsaved, self._until_s = now_s(), False, until_s
        self.measured = 0
        self.drifted = 0
        self.failures: dict[str, str] = {}
        self._failed_in_a_row = 0

    @property
    def records(self) -> tuple[Record, ...]:
        """Everything so far, in the order it was measured."""
        return tuple(self._records.values())

    def find(self, items: Sequence[Item]) -> list[Record]:
        """The records of these items, those that failed left out."""
        return [record for item in items if (record := self.get(item)) is not None]

    def get(self, item: Item) -> Record | None:
        """The record of an item, if it was measured."""
        return self._records.get((item.device, item.key))

    def missing(self, items: Sequence[Item]) -> list[Item]:
        """Items nobody has measured yet, each once."""
        found = {(item.device, item.key): item for item in items}
        return [item for key, item in found.items() if key not in self._records]

    def add(self, record: Record) -> None:
        """Keep a record; it is in the file soon."""
        self._records[record.device, key_of(record)] = record
        self._unsaved = True
        self.measured += 1
        if self._now_s() - self._saved_s > SAVE_S:
            self.save()

    def save(self) -> None:
        """Put everything so far into the file, completely or not at all."""
        if self._unsaved:
            records.write(self._path, self.records)
            self._unsaved = False
        self._saved_s = self._now_s()

    def forget(self, items: Sequence[Item]) -> None:
        """Drop the records of these items: they are measured anew."""
        for item in items:
            if self._records.pop((item.device, item.key), None) is not None:
                self._unsaved = True

    def measure(
        self, items: Sequence[Item], case_s: float, sentinel: Sentinel | None, told: Told, seed: int = 0
    ) -> None:
        """Time what is missing of these items; whatever happens, what was timed is kept."""
        waiting = self.missing(items)
        order = [waiting[i] for i in np.random.default_rng(seed).permutation(len(waiting))]
        total, done = len(items), len(items) - len(order)
        try:
            for start in range(0, len(order), BLOCK):
                block = order[start : start + BLOCK]
                self._block(block, case_s, sentinel, lambda n, what, d=done: told(d + n, total, what))  # type: ignore[misc]
                done += len(block)
                told(done, total, "")
        finally:
            self.save()

    def _block(
        self, block: Sequence[Item], case_s: float, sentinel: Sentinel | None, told: Callable[[int, str], None]
    ) -> None:
        """Time a block, once more where the sentinel moved meanwhile."""
        moved = 0.0
        for again in (False, True):
            before = _look(sentinel, case_s)
            sensed = self._sense()
            for n, item in enumerate(block):
                pace_s = 0.0 if self._late() else case_s
                told(n, item.subject.name)
                drift = f"second try, sentinel moved {moved:.1%} in the first" if again else ""
                timing = self._time(item, pace_s)
                if timing is not None:
                    self.add(item.record(timing, "; ".join(part for part in (sensed, drift) if part)))
            moved = abs(_look(sentinel, case_s) / before - 1)
            if sentinel is None or moved <= sentinel.limit:
                return
            self.drifted += 1
            if self._late():
                return

    def _time(self, item: Item, pace_s: float) -> Timing | None:
        """Time a case. One that fails (memory, a compiler) is named and left out; three in a row mean a sick device."""
        try:
            timing = item.subject.time(item.case, pace_s)
        except RoofplanError:
            raise
        except Exception as error:
            name = f"{item.subject.name} {' '.join(f'{k}={v:g}' for k, v in item.key[-1])}"
            self.failures[name] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            self._failed_in_a_row += 1
            if self._failed_in_a_row >= SICK:
                problem = f"{SICK} shapes in a row failed, the last with {self.failures[name]}"
                remedy = "what was measured is kept: go on with --resume in a fresh process"
                raise SurroundingsError(problem, key=name, remedy=remedy) from error
            return None
        self._failed_in_a_row = 0
        return timing

    def _late(self) -> bool:
        return self._now_s() > self._until_s


def _look(sentinel: Sentinel | None, case_s: float) -> float:
    return 1.0 if sentinel is None else sentinel.subject.time(sentinel.case, case_s).median_s


def items_of(device: str, subject: Subject, shapes: Table | None) -> list[Item]:
    """The cases of a table as items."""
    return [] if shapes is None else [Item(device, subject, case) for case in rows_of(shapes)]


def earlier(path: Path, devices: Sequence[str], versions: dict[str, str]) -> tuple[Record, ...]:
    """The records of an earlier run, refused where they are another machine's or another version's."""
    found = records.read(path)
    for record in found:
        if record.device not in devices:
            remedy = "records of several machines do not mix: start anew without --resume, or on that machine"
            problem = f"records of another device; here: {', '.join(devices)}"
            raise InputError(problem, file=str(path), key="--resume", value=record.device, remedy=remedy)
        here = versions.get(record.engine)
        if here is not None and record.version != here:
            problem = f"records of {record.engine} {record.version}; here it is {here}"
            remedy = "start anew without --resume, or with that version"
            raise InputError(problem, file=str(path), key="--resume", remedy=remedy)
    return found
