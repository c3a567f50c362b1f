"""Sessions: what was measured survives an interrupt, a kill and a second run, and no other machine's records mix in."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from roofplan.calibrate import records, session
from roofplan.calibrate.measure.subject import Subject, key_of, rows_of, shape_of, table
from roofplan.calibrate.session import Item, Sentinel, Session, earlier, items_of
from roofplan.calibrate.timer import Timing
from roofplan.dtypes import DType
from roofplan.errors import InputError, SurroundingsError
from roofplan.simulator.operators import NO_WINDOW, Attention, Gemm, Kernel, KernelName, Table

DEVICE = "some-cpu-2-threads"


class Fake(Subject):
    """Products that take m microseconds; it can be told to fail after so many of them."""

    def __init__(self, stop_after: int = 10**9, version: str = "1", variant: str = "linear") -> None:
        self.timed: list[float] = []
        self.stop_after, self._version, self._variant = stop_after, version, variant

    @property
    def identity(self) -> Kernel:
        return Kernel(KernelName.GEMM, DType.FP32)

    @property
    def engine(self) -> str:
        return "torch"

    @property
    def version(self) -> str:
        return self._version

    @property
    def variant(self) -> str:
        return self._variant

    def calibration(self, quick: bool) -> Gemm:
        m = [float(i) for i in range(1, 46)]
        same = [64.0] * len(m)
        return table(
            Gemm,
            self.identity,
            m=m,
            n=same,
            k=same,
            weight_bytes=[64 * 64 * 4.0] * len(m),
            activation_bytes=[4.0] * len(m),
            output_bytes=[4.0] * len(m),
        )

    def held_out(self, quick: bool) -> None:
        return None

    def time(self, case: Table, budget_s: float) -> Timing:
        assert isinstance(case, Gemm)
        if len(self.timed) >= self.stop_after:
            raise KeyboardInterrupt
        m = float(case.m[0])
        self.timed.append(m)
        return Timing(m * 1e-6, m * 0.9e-6, m * 1.1e-6, 7)


def quiet(done: int, total: int, what: str) -> None:
    """Nobody is told."""


def items(subject: Subject) -> list[Item]:
    return items_of(DEVICE, subject, subject.calibration(True))


@pytest.mark.parametrize("stop", [0, 1, 19, 20, 33])
def test_cut_short_and_gone_on_with_it_is_the_same_set(tmp_path: Path, stop: int) -> None:
    path, first = tmp_path / "records.csv", Fake(stop)
    with pytest.raises(KeyboardInterrupt):
        Session(path).measure(items(first), 0.1, None, quiet)
    kept = earlier(path, [DEVICE], {"torch": "1"}) if path.exists() else ()
    assert len(kept) == stop == len(first.timed)
    second = Fake()
    Session(path, kept).measure(items(second), 0.1, None, quiet)
    assert not set(first.timed) & set(second.timed)
    whole = Session(tmp_path / "whole.csv")
    whole.measure(items(Fake()), 0.1, None, quiet)
    assert set(records.read(path)) == set(whole.records) and len(whole.records) == 45


def test_the_file_is_never_older_than_two_seconds(tmp_path: Path) -> None:
    """A kill leaves no time to save: what it can cost is bounded."""
    ticks = itertools.count(0.0, 0.5)
    path, subject = tmp_path / "records.csv", Fake()
    running = Session(path, now_s=lambda: next(ticks))
    for count, item in enumerate(items(subject)[:20], start=1):
        running.add(item.record(item.subject.time(item.case, 0.1)))
        there = len(records.read(path)) if path.exists() else 0
        assert count - there <= 2 * session.SAVE_S / 0.5 + 1
    assert path.exists()


def test_an_order_of_its_own_every_time_the_same(tmp_path: Path) -> None:
    one, other = Fake(), Fake()
    for name, subject in (("a", one), ("b", other)):
        Session(tmp_path / f"{name}.csv").measure(items(subject), 0.1, None, quiet)
    assert one.timed == other.timed != sorted(one.timed)


def test_records_of_another_device_or_version_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "records.csv"
    Session(path).measure(items(Fake()), 0.1, None, quiet)
    with pytest.raises(InputError, match=r"records of another device.*other-cpu.*got 'some-cpu-2-threads'"):
        earlier(path, ["other-cpu"], {"torch": "1"})
    with pytest.raises(InputError, match="records of torch 1; here it is 2"):
        earlier(path, [DEVICE], {"torch": "2"})
    assert len(earlier(path, [DEVICE], {"gloo": "9"})) == 45


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(SurroundingsError, match="cannot be written"):
        Session(tmp_path / "taken" / "records.csv").measure(items(Fake()), 0.1, None, quiet)


class Drifting(Fake):
    """A sentinel whose times are given."""

    def __init__(self, times: Iterator[float]) -> None:
        super().__init__()
        self.times = times

    def time(self, case: Table, budget_s: float) -> Timing:
        seconds = next(self.times)
        return Timing(seconds, seconds, seconds, 5)


def test_a_block_is_measured_once_more_where_the_sentinel_moved(tmp_path: Path) -> None:
    # The first block: 1.0 before, 1.5 behind it, steady in the second try. Then steady, then never steady.
    sentinel = Drifting(iter([1.0, 1.5, 1.5, 1.5, 1.0, 1.01, 1.0, 2.0, 1.0, 2.0]))
    subject, running = Fake(), Session(tmp_path / "records.csv")
    running.measure(items(subject), 0.1, Sentinel(sentinel, rows_of(sentinel.calibration(True))[0], 0.1), quiet)
    assert len(subject.timed) == 20 + 20 + 20 + 5 + 5
    assert running.drifted == 3
    noted = [r for r in running.records if "sentinel moved 50.0% in the first" in r.note]
    assert len(noted) == 20 and len(running.records) == 45
    assert sum("sentinel moved 100.0%" in r.note for r in running.records) == 5


class Failing(Fake):
    """Fails for the m that it is told."""

    def __init__(self, failing: set[float]) -> None:
        super().__init__()
        self.failing = failing

    def time(self, case: Table, budget_s: float) -> Timing:
        assert isinstance(case, Gemm)
        if float(case.m[0]) in self.failing:
            raise RuntimeError("CUDA out of memory\nand more")
        return super().time(case, budget_s)


def test_a_shape_that_fails_is_named_and_the_others_are_measured(tmp_path: Path) -> None:
    running, subject = Session(tmp_path / "records.csv"), Failing({7.0, 30.0})
    running.measure(items(subject), 0.1, None, quiet)
    assert len(running.records) == 43 == len(running.find(items(subject)))
    assert list(running.failures.values()) == ["RuntimeError: CUDA out of memory"] * 2
    assert any("m=7 " in name for name in running.failures)


def test_a_sick_device_ends_the_run_and_what_was_measured_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "records.csv"
    subject = Failing({float(m) for m in range(1, 41)})
    with pytest.raises(SurroundingsError, match=r"3 shapes in a row failed.*--resume"):
        Session(path).measure(items(subject), 0.1, None, quiet)
    assert not path.exists() or len(records.read(path)) == len(subject.timed)


def test_near_the_end_cases_are_quick_and_no_block_is_tried_twice(tmp_path: Path) -> None:
    """A run that may take a minute takes one on a busy machine too."""

    class Paced(Fake):
        def time(self, case: Table, budget_s: float) -> Timing:
            paces.append(budget_s)
            return super().time(case, budget_s)

    paces: list[float] = []
    ticks = itertools.count(0.0, 1.0)
    subject, sentinel = Paced(), Drifting(itertools.cycle([1.0, 2.0]))
    running = Session(tmp_path / "records.csv", now_s=lambda: next(ticks), until_s=30.0)
    running.measure(items(subject), 0.1, Sentinel(sentinel, rows_of(sentinel.calibration(True))[0], 0.1), quiet)
    assert 0 < paces.index(0.0) < 30 and set(paces[paces.index(0.0) :]) == {0.0}
    assert len(running.records) == 45 and len(paces) < 45 + 20


def test_variants_of_one_shape_are_different_measurements(tmp_path: Path) -> None:
    running = Session(tmp_path / "records.csv")
    one, other = items(Fake())[0], items(Fake(variant="addmm"))[0]
    running.measure([one, other], 0.1, None, quiet)
    assert len(running.records) == 2 and len(running.missing([one, other])) == 0


def test_a_record_is_found_by_the_key_of_its_item_and_reads_back(tmp_path: Path) -> None:
    for item in items(Fake()):
        assert key_of(item.record(Timing(1e-6, 1e-6, 1e-6, 3))) == item.key
    attention = table(
        Attention,
        Kernel(KernelName.ATTENTION_DECODE, DType.FP32),
        sequences=[2.0],
        new_tokens=[1.0],
        kv_tokens=[128.0],
        heads=[8.0],
        kv_heads=[2.0],
        head_dim=[64.0],
        window=[NO_WINDOW],
        kv_bytes=[4.0],
        activation_bytes=[4.0],
    )
    shape = dict(shape_of(rows_of(attention)[0]))
    assert "window" not in shape and "kv_bytes" not in shape and shape["activation_bytes"] == 4
