"""The timer: what it warms up, what it sets aside, when it stops, and how a graph is laid out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roofplan.calibrate import timer
from roofplan.calibrate.timer import Clock, launches_of, on_cpu, on_gpu


class FakeClock:
    """A clock that only calls and pauses move; `steal` says in which calls a core is taken away, and for how long."""

    def __init__(self, call_s: float = 1e-3, steal: tuple[int, ...] = (), stolen_s: float = 0.5) -> None:
        self.now_s, self.had_s, self.switches, self.calls = 0.0, 0.0, 0, 0
        self._call_s, self._steal, self._stolen_s = call_s, steal, stolen_s

    def run(self, index: int) -> None:
        self.calls += 1
        self.now_s += self._call_s
        self.had_s += self._call_s
        if index in self._steal:
            self.now_s += self._stolen_s
            self.switches += 1

    @property
    def clock(self) -> Clock:
        return Clock(lambda: self.now_s, lambda: self.switches, lambda: self.had_s)


def test_median_and_percentiles_are_of_single_calls() -> None:
    fake = FakeClock(2e-3)
    found = on_cpu(fake.run, 0.02, 2, clock=fake.clock)
    assert found[:3] == pytest.approx((2e-3, 2e-3, 2e-3))
    assert (found.samples, found.disturbed) == (10, 0)
    assert fake.calls == timer.WARM_UPS + 10


def test_at_least_five_samples_and_at_most_sixty() -> None:
    slow, fast = FakeClock(1.0), FakeClock(1e-6)
    assert on_cpu(slow.run, 0.1, 2, clock=slow.clock).samples == timer.LEAST_SAMPLES
    assert on_cpu(fast.run, 0.1, 2, clock=fast.clock).samples == timer.MOST_SAMPLES


def test_calls_that_lost_a_core_are_set_aside_with_several_threads() -> None:
    fake = FakeClock(1e-3, steal=(3, 5, 6), stolen_s=2e-3)
    found = on_cpu(fake.run, 8e-3, 2, clock=fake.clock)
    assert found[:3] == pytest.approx((1e-3, 1e-3, 1e-3))
    assert found.disturbed == 3


def test_where_nearly_all_calls_lose_a_core_they_count() -> None:
    fake = FakeClock(1e-3, steal=tuple(range(100)))
    found = on_cpu(fake.run, 8e-3, 2, clock=fake.clock)
    assert found.median_s == pytest.approx(0.501)
    assert found.disturbed == found.samples


def test_one_thread_counts_the_time_it_had_the_core() -> None:
    fake = FakeClock(1e-3, steal=tuple(range(100)))
    found = on_cpu(fake.run, 8e-3, 1, clock=fake.clock)
    assert found.median_s == pytest.approx(1e-3)
    assert found.disturbed == found.samples == timer.LEAST_SAMPLES


def test_what_runs_before_a_call_is_not_timed() -> None:
    fake = FakeClock(1e-3)

    def pause() -> None:
        fake.now_s += 0.25

    assert on_cpu(fake.run, 1.0, 1, pause, fake.clock).p90_s == pytest.approx(1e-3)


@given(st.integers(1, 300), st.floats(1e-7, 1.0))
def test_a_graph_is_whole_rounds_over_all_operands_and_long_enough(sets: int, launch_s: float) -> None:
    launches = launches_of(sets, launch_s)
    assert launches % sets == 0 and launches >= sets
    assert launches * launch_s >= min(timer.GRAPH_S, timer.MOST_LAUNCHES * launch_s) * 0.999
    assert launches <= timer.MOST_LAUNCHES + sets
    assert (launches - sets) * launch_s <= timer.GRAPH_S * 1.001  # and no longer: large shapes run a round


class FakeCuda:
    """As much of torch.cuda as the timer uses: launches take a fixed time, replays repeat what was captured."""

    def __init__(self, launch_s: float) -> None:
        self.now_s, self.launch_s = 0.0, launch_s
        self.capturing: list[int] | None = None
        self.launched: list[int] = []
        self.graphs: list[list[int]] = []
        self.torch: Any = SimpleNamespace(cuda=self)

    def launch(self, index: int) -> None:
        if self.capturing is not None:
            self.capturing.append(index)
            return
        self.launched.append(index)
        self.now_s += self.launch_s

    def Stream(self) -> Any:
        return SimpleNamespace(wait_stream=lambda _: None, synchronize=lambda: None)

    def current_stream(self) -> Any:
        return self.Stream()

    def stream(self, _: Any) -> Any:
        return contextlib.nullcontext()

    def synchronize(self) -> None:
        """Nothing is outstanding."""

    def Event(self, enable_timing: bool) -> Any:
        assert enable_timing
        event = SimpleNamespace(at=0.0, synchronize=lambda: None)
        event.record = lambda: setattr(event, "at", self.now_s)
        event.elapsed_time = lambda end: (end.at - event.at) * 1e3
        return event

    def CUDAGraph(self) -> Any:
        graph = SimpleNamespace(content=[], reset=lambda: None)

        def replay() -> None:
            self.now_s += len(graph.content) * self.launch_s

        graph.replay = replay
        return graph

    @contextlib.contextmanager
    def graph(self, graph: Any) -> Iterator[None]:
        self.capturing = graph.content
        yield
        self.capturing = None
        self.graphs.append(graph.content)


def test_a_gpu_is_timed_by_replaying_rounds_over_all_operands() -> None:
    fake = FakeCuda(5e-6)
    found = on_gpu(fake.torch, fake.launch, 7, 0.05)
    (captured,) = fake.graphs
    assert captured == [i % 7 for i in range(len(captured))] and len(captured) % 7 == 0
    assert set(fake.launched) == set(range(7))  # each set of operands once before the capture: kernels are compiled
    assert found.median_s == pytest.approx(5e-6) and found.apart == pytest.approx(0.0)
    assert found.samples >= timer.PASSES * timer.REPLAYS
    assert found.samples * len(captured) * 5e-6 >= 0.05 * 0.9


def test_a_gpu_that_slows_down_between_passes_shows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCuda(5e-6)
    replayed = timer._replayed

    def slower(*arguments: Any) -> list[float]:
        result = replayed(*arguments)
        fake.launch_s *= 1.1
        return result

    monkeypatch.setattr(timer, "_replayed", slower)
    assert on_gpu(fake.torch, fake.launch, 3, 0.01).apart == pytest.approx(0.1)
