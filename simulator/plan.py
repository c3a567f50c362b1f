"""A full assignment with the proof that comes with it."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from .scenario import Scenario


class Status(StrEnum):
    """What is known about a plan's optimality."""

    ENUMERATED = "enumerated"  # every candidate of the printed domain was priced
    OPTIMAL = "optimal"
    FEASIBLE = "feasible"
    INFEASIBLE = "infeasible"


class Proof(NamedTuple):
    """Objective (lower is better), the bound no plan of the domain can beat, and how many were looked at."""

    status: Status
    objective: float
    bound: float
    candidates: int

    @property
    def gap(self) -> float:
        """(objective - bound) / objective; 0 proves optimality within the domain."""
        return 0.0 if self.objective == self.bound else (self.objective - self.bound) / abs(self.objective)


class Plan(NamedTuple):
    """A scenario with every choice made, its proof and the constraints that bind."""

    scenario: Scenario
    proof: Proof
    binding: tuple[str, ...]
