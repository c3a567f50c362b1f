"""How long one launch takes: warmed up, on operands that rotate, as a median with its 10th and 90th percentile.

On a CPU each call is timed by itself. A call during which the system took a core away from this process is no
measurement of the operator. With one thread it counts the time it had the core; with several, which wait for each
other, it is set aside as long as enough others are left. Either way it is counted as disturbed. On a GPU a CUDA
graph of many launches over rotating operands is replayed between two events, so that neither the host's gaps nor the
timer's resolution enter; clocks, power, temperature and throttling are read beside it and never set (`sensors.py`).
Whether operands are cold (they rotate through more than the last-level cache) or reused is the caller's choice and
stands in the record.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

Run = Callable[[int], object]
"""Launch once on the n-th set of operands."""

LEAST_SAMPLES = 5
MOST_SAMPLES = 60
LEAST_UNDISTURBED = 3  # samples, below which the disturbed ones count too
PATIENCE = 3  # times the budget, while a busy machine leaves too few undisturbed samples
WARM_UPS = 2
REPLAYS, PASSES = 10, 2
GRAPH_S = 2e-3  # time a graph should take: events resolve half a microsecond, and its first launch starts late
MOST_LAUNCHES = 2000


class Timing(NamedTuple):
    """Seconds of one launch. `disturbed` samples lost a core; `apart` is how far two passes differ, as a share."""

    median_s: float
    p10_s: float
    p90_s: float
    samples: int
    disturbed: int = 0
    apart: float = 0.0


class Clock(NamedTuple):
    """Time of day, how often the system has taken a core away from this process, and the time this thread had one."""

    now_s: Callable[[], float]
    switches: Callable[[], int]
    had_core_s: Callable[[], float]


def _switches() -> int:
    """Involuntary context switches of all threads so far; 0 where the system does not count them."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


SYSTEM_CLOCK = Clock(time.perf_counter, _switches, time.thread_time)


def summary(samples: Sequence[float], disturbed: int = 0) -> Timing:
    """Median and percentiles of samples of one launch."""
    low, middle, high = np.quantile(np.asarray(samples, float), [0.1, 0.5, 0.9])
    return Timing(float(middle), float(low), float(high), len(samples), disturbed)


def on_cpu(
    run: Run,
    budget_s: float,
    threads: int,
    before: Callable[[], object] | None = None,
    clock: Clock = SYSTEM_CLOCK,
) -> Timing:
    """Time single calls until the budget is spent: at least five undisturbed ones, sixty at most.

    `before` runs ahead of each call and is not timed.
    """
    for i in range(WARM_UPS):
        run(i)
    clean: list[float] = []
    disturbed: list[float] = []
    lost = 0
    began = clock.now_s()
    while len(clean) + len(disturbed) < MOST_SAMPLES:
        if before is not None:
            before()
        switches, had_s, start_s = clock.switches(), clock.had_core_s(), clock.now_s()
        run(WARM_UPS + len(clean) + len(disturbed))
        took, had_s = clock.now_s() - start_s, clock.had_core_s() - had_s
        if clock.switches() == switches:
            clean.append(took)
        else:
            lost += 1
            (clean if threads == 1 else disturbed).append(had_s if threads == 1 else took)
        spent = clock.now_s() - began
        if len(clean) >= LEAST_SAMPLES and spent >= budget_s:
            break
        if len(clean) + len(disturbed) >= LEAST_SAMPLES and spent >= PATIENCE * budget_s:
            break
    if len(clean) >= LEAST_UNDISTURBED:
        return summary(clean, lost)
    return summary(clean + disturbed, lost)


def launches_of(sets: int, launch_s: float) -> int:
    """Launches of a graph: whole rounds over all sets of operands, and enough of them to be timed well."""
    wanted = min(math.ceil(GRAPH_S / max(launch_s, 1e-9)), MOST_LAUNCHES)
    return sets * max(1, math.ceil(wanted / sets))


def on_gpu(torch: Any, run: Run, sets: int, busy_s: float) -> Timing:
    """Replay a graph of launches over `sets` sets of operands, `busy_s` in all, in two independent passes."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # compiles kernels and makes workspaces, which a capture must not
        for i in range(max(sets, WARM_UPS)):
            run(i % sets)
        stream.synchronize()
        start, end = _events(torch)
        start.record()
        for i in range(sets):
            run(i)
        end.record()
        end.synchronize()
    rough_s = max(start.elapsed_time(end) * 1e-3 / sets, 1e-7)
    torch.cuda.current_stream().wait_stream(stream)
    launches = launches_of(sets, rough_s)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(launches):
            run(i % sets)
    replays = max(REPLAYS, math.ceil(busy_s / PASSES / (launches * rough_s)))
    passes = [_replayed(torch, graph, min(replays, 10 * REPLAYS), launches) for _ in range(PASSES)]
    graph.reset()
    middles = [float(np.median(p)) for p in passes]
    whole = summary([s for p in passes for s in p])
    return whole._replace(apart=max(middles) / min(middles) - 1)


def _events(torch: Any) -> tuple[Any, Any]:
    return torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)


def _replayed(torch: Any, graph: Any, replays: int, launches: int) -> list[float]:
    """Seconds of one launch in each replay; the first two replays warm up."""
    pairs = []
    for _ in range(WARM_UPS):
        graph.replay()
    for _ in range(replays):
        start, end = _events(torch)
        start.record()
        graph.replay()
        end.record()
        pairs.append((start, end))
    torch.cuda.synchronize()
    return [start.elapsed_time(end) * 1e-3 / launches for start, end in pairs]
