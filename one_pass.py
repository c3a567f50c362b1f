"""Models of one pass from Python: encoders, and pipelines that make images and clips; loaded when asked for."""

from __future__ import annotations

from . import api
from .calibrate.transfer import Calibrations
from .hwspecs.device import Device, Fleet
from .hwspecs.load import fleet_of, load, names
from .simulator import answers as a
from .simulator.passing import Passing, can_compute
from .simulator.planner import passes
from .simulator.planner.passes import Wish
from .simulator.planner.verdict import Verdict
from .simulator.report import pass_account
from .simulator.report.account import evidence_of
from .simulator.report.contract import envelope
from .simulator.workload.network import Pipeline


def ask_pass(
    pipeline: Pipeline,
    fleet: Fleet,
    calibrations: Calibrations,
    *,
    batch: int = 1,
    wish: Wish | None = None,
    memory_utilization: float = 0.9,
) -> a.Report:
    """A model of one pass on one device of a fleet: does it fit, what each network holds, how long a batch takes."""
    wish = wish or passes.Wish()
    asked = Passing(pipeline, fleet, pipeline.native, batch, memory_utilization=memory_utilization)
    choice = passes.choose(asked, wish, calibrations)
    answer, passed = pass_account.answer_of(choice, wish, calibrations), choice.passed
    uncut = () if fleet.count == 1 else (f"one of the {fleet.count} devices is used: passes are not cut",)
    notes = (*pipeline.warnings, *uncut)
    if answer.verdict == Verdict.NO.label:
        return envelope(answer, warnings=notes)
    return envelope(answer, None, evidence_of(passed.whole, passed.operators, calibrations), notes)


def ask_pass_devices(
    pipeline: Pipeline,
    *,
    batch: int = 1,
    wish: Wish | None = None,
    memory_utilization: float = 0.9,
    calibration: str | None = None,
) -> a.Report:
    """The same on every bundled device that has a rate for all formats it computes in, smallest first."""
    rows, without = [], []
    for device in sorted((load(Device, n) for n in names(Device)), key=lambda d: d.capacity_bytes.value):
        fleet = fleet_of(device)
        asked = Passing(pipeline, fleet, pipeline.native, batch, memory_utilization=memory_utilization)
        if not can_compute(asked):
            without.append(device.key)
            continue
        choice = passes.choose(asked, wish or passes.Wish(), api.load_calibrations(fleet, calibration))
        rows.append(pass_account.row_of(choice))
    left_out = (f"left out, as no fp32 rate of them is known: {', '.join(without)}",) if without else ()
    return envelope(a.PassList(pipeline.size, tuple(rows)), warnings=(*pipeline.warnings, *left_out))
