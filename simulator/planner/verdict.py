"""The verdict of a ledger: surely, tight or no, and the room that is left."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import numpy.typing as npt

from ...hwspecs.device import Fleet
from ..estimate import Array
from ..memory import Ledger, ledger
from ..scenario import Engine, Scenario


class Verdict(IntEnum):
    """Whether a scenario fits its devices."""

    NO = 0
    TIGHT = 1
    SURELY = 2

    @property
    def label(self) -> str:
        """The word shown to people."""
        return self.name.lower()


def budget_bytes(scenario: Scenario) -> float:
    """Bytes an engine may claim on one device: its utilisation knob times what is usable there."""
    return scenario.engine.memory_utilization * scenario.fleet.usable_bytes()


def room_bytes(scenario: Scenario, memory: Ledger, level: Verdict) -> Array:
    """Bytes left on the fullest stage's device before the verdict falls below `level`, at each grid point.

    surely: the highest figure of every range must stay within the engine's budget.
    tight:  the lowest figure must stay within the memory that is there (a ninth above the budget by default): it
            depends on driver, version and luck.
    """
    return room(scenario.fleet, scenario.engine.memory_utilization, memory, level)


def room(fleet: Fleet, memory_utilization: float, memory: Ledger, level: Verdict) -> Array:
    """The same of a ledger on a fleet, of whose devices a share may be claimed."""
    usable = fleet.usable_bytes()
    if level is Verdict.SURELY:
        return np.asarray(memory_utilization * usable - np.max(memory.high_bytes(), axis=0))
    most = min(usable, memory_utilization * usable / Engine().memory_utilization)
    return np.asarray(most - np.max(memory.low_bytes(), axis=0))


def verdicts(scenario: Scenario, memory: Ledger) -> npt.NDArray[np.int64]:
    """Verdict at each grid point: no, if there is not even room to be tight."""
    surely, tight = (room_bytes(scenario, memory, level) >= 0 for level in (Verdict.SURELY, Verdict.TIGHT))
    return np.asarray(np.where(surely, Verdict.SURELY, np.where(tight, Verdict.TIGHT, Verdict.NO)))


def verdict(scenario: Scenario, memory: Ledger | None = None) -> Verdict:
    """Verdict of a scalar scenario."""
    return Verdict(int(verdicts(scenario, memory or ledger(scenario))))
