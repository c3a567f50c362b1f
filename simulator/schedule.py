"""Put estimates on streams: what runs one after another, and what pipeline stages overlap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..hwspecs.device import Fleet
from .calibration import CalibrationSet
from .costs import estimate
from .estimate import Array, Estimate, total
from .lowering.decoder import Program
from .operators import Operators, Table
from .scenario import Scenario

COMPOSITION_LOG_SD = 0.106
"""What a step's operators leave out (host work, other engine versions, fusions), as a shared relative error.

With it 80 % of 1,185 public serving measurements lie in their intervals; fitted without a model's rows it covers 79 %
of them (`roofplan validate --from serving`).
"""


class Priced(NamedTuple):
    """A table of operators with the time of one repetition of each row."""

    table: Table
    times: Estimate
    on: CalibrationSet | None = None  # the calibrations behind it, where not those the question came with


def price(program: Program, scenario: Scenario, calibrations: CalibrationSet) -> tuple[Priced, ...]:
    """Every table of a program with its times."""
    return price_operators(program.operators, scenario.fleet, calibrations)


def price_operators(operators: Operators, fleet: Fleet, calibrations: CalibrationSet) -> tuple[Priced, ...]:
    """Every table with its times."""
    return tuple(Priced(t, estimate(t, fleet, calibrations)) for t in operators.tables)


class Stages(NamedTuple):
    """One pass through all pipeline stages, and the slowest stage's share of it.

    The pass is summed row by row over all stages: the same operator on two stages has the same error, so a pipeline
    makes no estimate more certain.
    """

    through: Estimate
    slowest_share: Array


def stages_of(rows: Sequence[Priced]) -> Stages:
    """Operators of a stage run one after another; how long each stage takes follows from its counts."""
    through = total(p.times.weighted_rows(p.table.count.sum(axis=1)) for p in rows)
    depth = rows[0].table.count.shape[1]
    if depth == 1:
        return Stages(through, np.ones(()))
    slowest = np.zeros(())
    for column in {
        tuple(float(c) for p in rows for c in p.table.count[:, stage]): stage for stage in range(depth)
    }.values():
        parts = [_stage_seconds(p.times.time_s, p.table.count[:, column]) for p in rows]
        slowest = np.maximum(slowest, sum(parts[1:], start=parts[0]))
    return Stages(through, np.asarray(slowest / np.maximum(through.time_s, 1e-300)))


def _stage_seconds(time_s: Array, count: Array) -> Array:
    return np.asarray((time_s * count.reshape(-1, *([1] * (time_s.ndim - 1)))).sum(axis=0))


def pipeline_cycle(stages: Stages, micro_batches: Array) -> Estimate:
    """Time in which every micro-batch passes all stages once, in the steady state.

    max(sum of stages, micro_batches x slowest stage): with fewer micro-batches than stages some stages idle, with
    more they queue at the slowest.
    """
    return stages.through.scaled(np.maximum(1.0, micro_batches * stages.slowest_share))


def pipeline_fill(stages: Stages, chunks: Array) -> Estimate:
    """Time for `chunks` equal pieces of one request to pass all stages: sum of stages + (chunks - 1) x slowest."""
    return stages.through.scaled(1.0 + (chunks - 1.0) * stages.slowest_share)


def pipeline_tail(stages: Stages) -> Estimate:
    """Time one more piece adds behind pieces that fill the pipeline already: its slowest stage."""
    return stages.through.scaled(stages.slowest_share)
