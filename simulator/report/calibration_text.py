"""A calibration, and what the doctor found, as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.markup import escape

from ...units import format_flops, format_rate, format_seconds
from .. import catalogue as a
from .text import table

if TYPE_CHECKING:
    from rich.console import Console

STATE_STYLE = {"ok": "green", "limited": "yellow", "missing": "red"}


def render(out: Console, answer: a.CalibrationReport) -> None:
    """Print a calibration: what the machine reaches, how well it is predicted, what to do with the files."""
    kept = answer.records - answer.measured_now
    again = f", {kept} of an earlier run" if kept > 0 else ""
    drifted = f", {answer.drifted_blocks} blocks measured twice" if answer.drifted_blocks else ""
    out.print(f"{escape(answer.name)} as [bold]{answer.device}[/]  ({escape(answer.software)})")
    out.print(f"{answer.records} records{again}{drifted}; {answer.seconds:.0f} s", "")
    if answer.facts:
        out.print(table(["measured", "rate", "how"], ([f.name, _fact(f), escape(f.how)] for f in answer.facts), left=2))
        out.print()
    _judged(out, "operators, on shapes no fit saw", answer.kernels)
    _judged(out, "steps of a transformer in torch", answer.steps)
    _judged(out, "the library's kernels, predicted from ours", answer.library)
    for left in answer.left_out:
        out.print(f"[yellow]left out:[/] {escape(left.name)}: {escape(left.reason)}")
    out.print(f"predictions were written {answer.predictions_written}, before what they speak of was measured")
    out.print(f"sha256 {answer.predictions_sha256}", "")
    for gate in answer.gates:
        goal = "" if gate.goal_percent is None else f", goal {gate.goal_percent:g}"
        style, word = ("green", "held") if gate.held else ("bold red", "MISSED")
        out.print(f"[{style}]{word}[/] {gate.name}: {gate.value_percent:.1f} % (gate {gate.limit_percent:g}{goal})")
    out.print()
    for file in answer.files:
        out.print(f"wrote {escape(file)}")
    asked = f"--gpu {answer.gpu} --calibration {answer.calibrations}"
    out.print(f"next: roofplan fits {escape(asked)}, or validate --records {escape(answer.files[0])} --calibration ...")


def _fact(fact: a.MachineFact) -> str:
    match fact.unit:
        case "FLOP/s":
            return f"{format_flops(fact.value)}/s"
        case "B/s":
            return format_rate(fact.value)
    return f"{100 * fact.value:+.1f} % {fact.unit.removeprefix('share ')}"


def _judged(out: Console, title: str, rows: Sequence[a.JudgedRow]) -> None:
    if not rows:
        return
    columns = [
        title,
        "engine",
        "fitted",
        "judged",
        "mean %",
        "median %",
        "p90 %",
        "in 80 %",
        "three",
        "roofline",
        "held by no row",
    ]
    cells = (
        [
            r.kernel,
            r.engine,
            str(r.fitted_rows or ""),
            str(r.held_out_rows),
            *(f"{v:.1f}" for v in (r.mape_percent, r.median_percent, r.p90_percent)),
            f"{r.coverage_percent:.0f}",
            *(f"{v:.1f}" for v in (r.three_constants_median_percent, r.pure_roofline_median_percent)),
            " ".join(r.at_bound),
        ]
        for r in rows
    )
    out.print(table(columns, cells, left=2), "")


def steps_table(answer: a.CalibrationReport) -> list[list[str]]:
    """Every step of the transformer: predicted with its interval, and measured."""
    return [
        [
            s.step,
            s.shape,
            f"{format_seconds(s.predicted_s)} ({format_seconds(s.low_s)} to {format_seconds(s.high_s)})",
            format_seconds(s.measured_s),
            f"{100 * (s.predicted_s / s.measured_s - 1):+.0f} %",
        ]
        for s in answer.timed_steps
    ]


def render_doctor(out: Console, answer: a.DoctorReport) -> None:
    """One line a thing: its state, what was found, what it is for, and the remedy where it is not there."""
    rows = (
        [
            f"[{STATE_STYLE[r.state]}]{r.state}[/]",
            r.what,
            escape(r.found),
            escape(r.enables),
            escape(r.remedy),
        ]
        for r in answer.rows
    )
    out.print(table(["", "what", "found", "for", "remedy"], rows, left=5))
