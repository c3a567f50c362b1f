"""A full assignment with the proof that comes with it."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from .scenario import Scenario


class Status(StrEnum):
    """What is known about a plan's optimality."""

    ENUMERATED = "enumerated"  # every candidate of the printed domain was priced
    INFEASIBLE = "infeasible"  # no candidate fits; the one that comes closest is shown


class Proof(NamedTuple):
    """Objective (lower is better), the bound no plan of the domain can beat, and how many candidates were looked at.

    Enumeration prices every candidate, so there the bound is the objective of the best.
    """

    status: Status
    objective: float
    bound: float
    candidates: int


class Plan(NamedTuple):
    """A scenario with every choice made, its proof, and the constraints that keep a better one from fitting."""

    scenario: Scenario
    proof: Proof
    binding: tuple[str, ...]
