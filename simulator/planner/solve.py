"""HiGHS through PuLP: a typed result with the bound the solver proved, never `LpStatus` alone."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from .program import GIB, Assignment, Frame, Program, Taken, Tightened, build, objective_unit
from .question import Question

RELATIVE_GAP = 1e-3
SECONDS = 20.0


class Outcome(StrEnum):
    """What the solver knows about a frame."""

    OPTIMAL = "optimal"
    FEASIBLE = "feasible"  # stopped at the time limit: the bound is lower than the objective
    INFEASIBLE = "infeasible"


class Solved(NamedTuple):
    """The program's answer: the goal's value of the layers taken, and the value no layers can go below."""

    outcome: Outcome
    objective: float
    bound: float
    assignment: Assignment


def solve(
    question: Question,
    frame: Frame,
    tightened: Tightened = Tightened(),  # noqa: B008 - a value without state
    below: float = float("inf"),
    ahead: int | None = None,
    gap: float = RELATIVE_GAP,
) -> Solved:
    """Solve a frame's program. Where no plan is `below` that value of the goal the frame counts as infeasible."""
    import pulp

    program = build(question, frame, tightened, below, ahead)
    solver = pulp.HiGHS(msg=False, gapRel=gap, timeLimit=SECONDS, threads=1)
    program.problem.solve(solver)
    status = program.problem.sol_status
    if status not in (pulp.LpSolutionOptimal, pulp.LpSolutionIntegerFeasible):
        return Solved(Outcome.INFEASIBLE, float("inf"), float("inf"), Assignment(()))
    info = program.problem.solverModel.getInfo()
    unit = objective_unit(question, frame)
    objective = float(pulp.value(program.problem.objective)) * unit
    bound = min(objective, float(info.mip_dual_bound) * unit)
    outcome = Outcome.OPTIMAL if status == pulp.LpSolutionOptimal else Outcome.FEASIBLE
    waits = program.waits if isinstance(program.waits, float) else float(program.waits.value() or 0.0)
    drive, state = _bytes(program.from_drive), _bytes(program.state_on_drive)
    return Solved(
        outcome, objective, bound, Assignment(_taken(program), drive, state, 0 if waits > 0.5 else program.ahead)
    )


def _bytes(gib: object) -> float:
    return 0.0 if isinstance(gib, float) else float(gib.value() or 0.0) * GIB  # type: ignore[attr-defined]


def _taken(program: Program) -> tuple[Taken, ...]:
    found = []
    for (s, b, a), variable in program.layers.items():
        layers = round(variable.value() or 0.0)
        if layers:
            found.append(Taken(s, b, program.frame.alternatives[a], layers))
    return tuple(found)
