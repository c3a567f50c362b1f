"""Models of one pass as tables a person reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...units import format_count, format_gib
from .. import answers as a
from .text import VERDICT_WORDS, brief, devices, evidence_row, show_sources, span, styled, table

if TYPE_CHECKING:
    from rich.console import Console

WHERE = {"all": "all networks on the device", "one at a time": "one network on the device at a time"}


def render(out: Console, report: a.Report, answer: a.PassAnswer | a.PassList) -> None:
    """Print an answer about a model of one pass."""
    if isinstance(answer, a.PassList):
        _list(out, answer)
        return
    q = answer.asked
    many = f"{q.batch} {_plural(q.result, q.batch)}"
    alone = len(answer.networks) == 1
    where = "" if alone else f", {WHERE[q.residency]}"
    out.print(
        f"{q.model} on {devices(q.device, 1)}: {styled(answer.verdict)}{VERDICT_WORDS[answer.verdict]}"
        f"  ({q.weights} weights{where}; {many} of {q.size})"
    )
    out.print(table(["", ""], _facts(report, answer, many), left=2))
    show_sources(out, report.evidence)
    out.print()
    out.print(table(["network", "parameters", "passes", "weights", "activations", "time", "share"], _networks(answer)))
    if len(answer.options) > 1:
        out.print()
        columns = ["weights", "on the device", "fits", "memory", "at once", f"time for {many}"]
        out.print(table(columns, map(_option, answer.options), left=3))
    out.print(f"\nnext: {answer.next_step}")


def _plural(result: str, count: int) -> str:
    return result if count == 1 else f"{result}s"


def _facts(report: a.Report, answer: a.PassAnswer, many: str) -> list[list[str]]:
    q = answer.asked
    memory = f"{span(answer.needed)} of {format_gib(answer.capacity_bytes)}"
    if answer.verdict == "no":
        short = (answer.needed.low or 0.0) - answer.capacity_bytes
        return [["memory", f"{memory}, at least {format_gib(short)} too much"]]
    rows = [
        ["memory", memory],
        ["at once", f"{answer.max_batch:,} {_plural(q.result, answer.max_batch)} ({answer.verdict})"],
        ["time", f"{span(answer.time)} for {many}, kernels only"],
        ["in all", span(answer.results_per_s)],
    ]
    if q.residency != "all":
        rows.append(["of it copying weights", f"{span(answer.copying)} over the host link"])
    rows.append(["what binds", answer.binds])
    if report.evidence is not None:
        rows.append(evidence_row("evidence", report.evidence))
    return rows


def _networks(answer: a.PassAnswer) -> list[list[str]]:
    return [
        [
            n.name + (" (fp32)" if n.fp32 else ""),
            format_count(n.parameters),
            f"{n.passes}" + (f" x {n.inputs} inputs" if n.inputs > 1 else ""),
            format_gib(n.weight_bytes),
            format_gib(n.activations.value or 0.0),
            brief(n.time),
            f"{n.share:.0%}" if answer.verdict != "no" else "-",
        ]
        for n in answer.networks
    ]


def _option(o: a.PassOption) -> list[str]:
    most = f"{o.max_batch:,}" if o.max_batch else "-"
    return [o.weights, o.residency, styled(o.verdict), brief(o.needed), most, brief(o.time)]


def _list(out: Console, answer: a.PassList) -> None:
    rows = (
        [
            r.model,
            r.device,
            styled(r.verdict),
            r.weights,
            r.residency,
            brief(r.needed),
            f"{r.max_batch:,}" if r.max_batch else "-",
            brief(r.time),
            r.weakest or "-",
        ]
        for r in answer.rows
    )
    columns = ["model", "on", "fits", "weights", "on the device", "memory", "at once", "time", "evidence"]
    out.print(table(columns, rows, left=5))
    batch = max(r.batch for r in answer.rows)
    out.print(f"memory and time are for {batch:,} of {answer.size}")
