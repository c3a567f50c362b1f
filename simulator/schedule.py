"""Put estimates on streams: what runs one after another, and what pipeline stages overlap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .calibration import CalibrationSet
from .costs import estimate
from .estimate import Array, Estimate, total
from .lowering.decoder import Program
from .operators import Table
from .scenario import Scenario


class Priced(NamedTuple):
    """A table of operators with the time of one repetition of each row."""

    table: Table
    times: Estimate


def price(program: Program, scenario: Scenario, calibrations: CalibrationSet) -> tuple[Priced, ...]:
    """Every table of a program with its times."""
    return tuple(Priced(t, estimate(t, scenario.fleet, calibrations)) for t in program.operators.tables)


def stage_times(rows: Sequence[Priced], scenario: Scenario) -> tuple[Estimate, ...]:
    """Serial time of each pipeline stage: the operators of a stage run one after another.

    Stages with equal counts share one evaluation.
    """
    done: dict[tuple[float, ...], Estimate] = {}
    stages = []
    for stage in range(scenario.sharding.pp):
        key = tuple(float(c) for table, _ in rows for c in table.count[:, stage])
        if key not in done:
            done[key] = total(e.weighted_rows(table.count[:, stage]) for table, e in rows)
        stages.append(done[key])
    return tuple(stages)


def pipeline_cycle(stages: Sequence[Estimate], micro_batches: Array) -> Estimate:
    """Time in which every micro-batch passes all stages once, in the steady state.

    max(sum of stages, micro_batches x slowest stage): with fewer micro-batches than stages some stages idle, with
    more they queue at the slowest. The sum carries the error; the queue only stretches it.
    """
    through, share = _through_and_slowest_share(stages)
    return through.scaled(np.maximum(1.0, micro_batches * share))


def pipeline_fill(stages: Sequence[Estimate], chunks: Array) -> Estimate:
    """Time for `chunks` equal pieces of one request to pass all stages: sum of stages + (chunks - 1) x slowest."""
    through, share = _through_and_slowest_share(stages)
    return through.scaled(1.0 + (chunks - 1.0) * share)


def _through_and_slowest_share(stages: Sequence[Estimate]) -> tuple[Estimate, Array]:
    """One pass through all stages, and the slowest stage's share of it."""
    through = total(stages)
    slowest = np.asarray(np.max(np.broadcast_arrays(*(s.time_s for s in stages)), axis=0))
    return through, np.asarray(slowest / np.maximum(through.time_s, 1e-300))
