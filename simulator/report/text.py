"""Answers as tables a person reads, in a terminal and in a pipe alike (there nothing is cut or wrapped)."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from ...units import format_bytes, format_flops, format_gib, format_seconds
from .. import answers as a
from ..scenario import Sharding

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

UNLIMITED_WIDTH = 10_000
VERDICT_STYLE = {"surely": "bold green", "tight": "bold yellow", "no": "bold red"}
VERDICT_WORDS = {"surely": " fits", "tight": ", it may just fit", "no": ", it does not fit"}
TIER_NOTE = {
    "measured": "measured",
    "calibrated": "calibrated on this device",
    "transferred": "carried over from another engine or a related device",
    "datasheet": "datasheet and pooled fractions",
    "assumed": "partly assumed",
}


def console() -> Console:
    """A console on stdout that never wraps, shrinks or cuts: a narrow terminal folds long lines by itself.

    NO_COLOR is honoured by rich.
    """
    from rich.console import Console

    return Console(width=UNLIMITED_WIDTH, highlight=False, soft_wrap=True)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> Table:
    """A plain table: the first `left` columns flush left, numbers flush right; no borders to get in the way."""
    from rich.table import Table

    result = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for i, column in enumerate(columns):
        result.add_column(column, justify="left" if i < left else "right", overflow="fold", no_wrap=i < left)
    for row in rows:
        result.add_row(*row)
    return result


def styled(verdict: str) -> str:
    """A verdict in its colour."""
    return f"[{VERDICT_STYLE[verdict]}]{verdict}[/]"


def number(value: float) -> str:
    """Three significant digits without an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def span(q: a.Quantity) -> str:
    """A quantity with its interval: `51.1 tokens/s (33.1 to 79)`."""
    if q.value is None or q.low is None or q.high is None:
        return f"- ({q.reason})"
    if q.unit == "s":
        return f"{format_seconds(q.value)} ({format_seconds(q.low)} to {format_seconds(q.high)})"
    if q.unit == "B":
        return f"{format_gib(q.value)} ({format_gib(q.low)} to {format_gib(q.high)})"
    return f"{number(q.value)} {q.unit} ({number(q.low)} to {number(q.high)})"


def brief(q: a.Quantity) -> str:
    """A quantity with its interval in a narrow column."""
    if q.value is None or q.low is None or q.high is None:
        return "-"
    if q.unit == "s":
        return format_seconds(q.value)
    if q.unit == "B":
        return format_gib(q.value)
    return f"{number(q.value)} ({number(q.low)}-{number(q.high)})"


def layout(value: a.Layout) -> str:
    """`tp2 pp2`."""
    return str(Sharding(value.tp, value.pp, value.ep, cp=value.cp))


def devices(name: str, count: int) -> str:
    """`2xh100-sxm`."""
    return name if count == 1 else f"{count}x{name}"


def show(report: a.Report, notes: Sequence[str] = ()) -> None:
    """Print an answer; each kind has its own function below."""
    out = console()
    with out.capture() as captured:
        _render(out, report)
        for line in (*report.warnings, *notes):
            out.print(f"[yellow]note:[/] {line}")
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))


def _render(out: Console, report: a.Report) -> None:
    match report.answer:
        case a.FitAnswer():
            _fit(out, report, report.answer)
        case a.FitList():
            _fit_list(out, report, report.answer)
        case a.MemoryAnswer():
            _memory(out, report, report.answer)
        case a.ExplainAnswer():
            _explain(out, report, report.answer)
        case a.ServeAnswer():
            from . import serve_text

            serve_text.render(out, report, report.answer)
        case a.SweepAnswer():
            from . import sweep_text

            sweep_text.render(out, report.answer)
        case a.PassAnswer() | a.PassList():
            from . import pass_text

            pass_text.render(out, report, report.answer)
        case _:
            from ..plan_answers import PlanAnswer
            from . import catalogue_text

            if isinstance(report.answer, PlanAnswer):
                from . import plan_text

                plan_text.render(out, report, report.answer)
                return

            catalogue_text.render(out, report.answer)


def _fit(out: Console, report: a.Report, answer: a.FitAnswer) -> None:
    q = report.question
    assert q is not None
    where = devices(q.device, q.device_count)
    out.print(
        f"{q.model} on {where}: {styled(answer.verdict)}"
        f"{VERDICT_WORDS[answer.verdict]}"
        f"  ({q.weights} weights, {q.kv} KV cache, {layout(q.layout)}; {q.batch} user{'s' * (q.batch > 1)}, "
        f"context {q.context:,})"
    )
    out.print(table(["", ""], _fit_rows(q, report.evidence, answer), left=2))
    show_sources(out, report.evidence)
    if len(answer.options) > 1:
        out.print()
        choices = (
            [
                o.weights,
                o.kv,
                layout(o.layout),
                styled(o.verdict),
                brief(o.needed),
                f"{o.max_users:,}" if o.max_users else "-",
                brief(o.tokens_per_s_user),
                o.placement,
            ]
            for o in answer.options
        )
        head = ["weights", "KV", "layout", "fits", "memory/GPU", "max users", "tokens/s"]
        placed = any(o.placement for o in answer.options)
        rows = [row if placed else row[:-1] for row in choices]
        out.print(table([*head, "not on the GPU"] if placed else head, rows, left=4))
    if answer.remedies:
        out.print()
        helps = ([r.change, r.effect, r.flags] for r in answer.remedies)
        out.print(table(["what would help", "then it", "ask with"], helps, left=3))
    elif answer.verdict == "no":
        out.print("nothing in reach helps: not 8 of these devices, nor one of a larger kind that is listed")
    out.print(f"\nnext: {answer.next_step}")


def _fit_rows(q: a.Question, evidence: a.Evidence | None, answer: a.FitAnswer) -> list[list[str]]:
    memory = f"{span(answer.needed)} of {format_gib(answer.capacity_bytes)}"
    if answer.verdict == "no":
        short = (answer.needed.low or 0.0) - answer.capacity_bytes
        return [["memory per GPU", f"{memory}, at least {format_gib(short)} too much"]]
    users = f"{q.batch} user{'s' * (q.batch > 1)}"
    rows = [
        ["memory per GPU", memory],
        ["largest context", _reach(answer.max_context, f"with {users}", answer)],
        ["users at once", _reach(answer.max_users, "of this context", answer)],
    ]
    if answer.swap.value is not None:
        swap = (
            f"{span(answer.swap)} for {format_bytes(answer.swap_bytes)}, as much to bring it back (assumed constants)"
        )
        rows.append(["swap one user out", swap])
    rows += placement_rows(answer.placement)
    rows.append(["prefill", f"{span(answer.prefill)} for {q.prompt:,} tokens, service time only (no queue)"])
    rows.append(["decode, per user", span(answer.tokens_per_s_user)])
    if q.batch > 1:
        rows.append(["decode, all users", span(answer.tokens_per_s_total)])
    rows.append(["what binds", answer.binds])
    if evidence is not None:
        rows.append(evidence_row("evidence (decode)", evidence))
    return rows


def placement_rows(placement: a.Placement) -> list[list[str]]:
    """What is not on the device and how it runs; nothing where everything is there."""
    if not placement.rows:
        return []
    rows = []
    for row in placement.rows:
        last = row.first_layer + row.layers - 1
        cached = f", {row.cached_share:.0%} of them cached on the device" if row.cached_share else ""
        rows.append(["offloaded", f"layers {row.first_layer} to {last}: {row.mode}{cached}"])
    drive = f", {format_gib(placement.drive_bytes)} read from the drive" if placement.drive_bytes else ""
    rows.append(["host memory", f"{format_gib(placement.host_bytes)}{drive} ({placement.host})"])
    rows.append(["run it with", placement.run_with])
    return rows


def show_sources(out: Console, evidence: a.Evidence | None) -> None:
    """Whose calibrations answered where they are not the device's own, and why, one line for each source."""
    kernels: dict[tuple[str, str], list[str]] = {}
    for use in evidence.calibrations if evidence is not None else ():
        if use.tier != "calibrated":
            kernel, _, why = use.reason.partition(": ")
            key = why.removesuffix(f" ({use.id})"), use.id.rpartition("/")[2]
            kernels.setdefault(key, []).append(kernel)
    for (why, version), names in sorted(kernels.items()):
        out.print(f"[dim]evidence: {why} ({version}): {', '.join(sorted(names))}[/]")


def evidence_row(label: str, evidence: a.Evidence) -> list[str]:
    """What the times rest on, as a row of an answer."""
    best = ", ".join(f"{t.share:.0%} {t.tier}" for t in evidence.tiers)
    return [label, f"{TIER_NOTE[evidence.weakest]} ({best}); intervals are 80 %"]


def _reach(most: int, of_what: str, answer: a.FitAnswer) -> str:
    return f"{most:,} {of_what} ({answer.limits_hold})" if most else "none"


def _fit_list(out: Console, report: a.Report, answer: a.FitList) -> None:
    rows = (
        [
            r.model,
            devices(r.device, r.device_count),
            styled(r.verdict),
            f"{r.weights} / {r.kv}",
            layout(r.layout),
            brief(r.needed),
            f"{r.max_context:,}" if r.verdict != "no" else "-",
            f"{r.max_users:,}" if r.verdict != "no" else "-",
            brief(r.prefill),
            brief(r.tokens_per_s_user),
            r.note,
            r.weakest or "-",
        ]
        for r in answer.rows
    )
    columns = ["model", "on", "fits", "weights / KV", "layout", "memory", "max context", "max users", "prefill"]
    out.print(table([*columns, "tokens/s", "binds", "evidence"], rows, left=5))
    show_sources(out, report.evidence)
    loads = {(r.batch, r.context) for r in answer.rows}
    context = f"context {max(c for _, c in loads):,}" + (
        " (less where the model ends earlier)" if len(loads) > 1 else ""
    )
    batch = max(b for b, _ in loads)
    out.print(f"memory, prefill and tokens/s (each user's) are for {batch:,} user{'s' * (batch > 1)}, {context}")


def _memory(out: Console, report: a.Report, answer: a.MemoryAnswer) -> None:
    q = report.question
    assert q is not None
    stage = f", pipeline stage {answer.stage + 1} of {answer.stages}" if answer.stages > 1 else ""
    out.print(
        f"{q.model} on one {q.device} of {q.device_count}{stage}: {styled(answer.verdict)}  ({q.weights} weights, "
        f"{q.kv} KV cache, {layout(q.layout)}; {q.batch} user{'s' * (q.batch > 1)}, context {q.context:,})"
    )
    rows = [
        [r.tensor_class, r.tier, _g(r.bytes.value), _g(r.bytes.low), _g(r.bytes.high), r.basis] for r in answer.rows
    ]
    rows += [
        ["allocated", "", *_ranged(answer.allocated), "torch.cuda.max_memory_allocated"],
        ["reserved", "", *_ranged(answer.reserved), "torch.cuda.max_memory_reserved"],
        ["nvidia-smi", "", *_ranged(answer.nvidia_smi), "the process"],
        ["engine budget", "", _g(answer.budget_bytes), "", "", f"{q.memory_utilization:g} of the device"],
        ["device", "", _g(answer.capacity_bytes), "", "", "usable by a process"],
    ]
    out.print(_with_basis(["class", "tier", "expected", "low", "high", "basis"], rows))
    out.print(
        f"\nactivations peak at '{answer.activation_peak_at}': {', '.join(_live(x) for x in answer.activation_live)}"
    )


def _live(text: str) -> str:
    name, _, size = text.rpartition(": ")
    return f"{name} {format_gib(float(size.split()[0]))}"


def _ranged(q: a.Quantity) -> tuple[str, str, str]:
    return _g(q.value), _g(q.low), _g(q.high)


def _g(value: float | None) -> str:
    return "-" if value is None else format_gib(value)


def _with_basis(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table whose last column is prose, flush left."""
    result = table(columns, rows, left=2)
    result.columns[-1].justify = "left"
    return result


def _explain(out: Console, report: a.Report, answer: a.ExplainAnswer) -> None:
    q = report.question
    assert q is not None
    out.print(
        f"{answer.phase} step of {answer.step_tokens:,.0f} tokens: {q.model} on {devices(q.device, q.device_count)}, "
        f"per device  ({q.weights} weights, "
        f"{q.kv} KV cache, {layout(q.layout)}; {q.batch} user{'s' * (q.batch > 1)}, context {q.context:,})"
    )
    rows = (
        [
            r.operator,
            r.operator_class,
            r.layer,
            f"{r.repetitions:g}",
            format_flops(r.flops) if r.flops else "-",
            format_bytes(r.bytes),
            brief(r.time),
            f"{r.share:.1%}",
            *(format_seconds(t) if t else "-" for t in (r.compute_s, r.memory_s, r.latency_s, r.floor_s, r.link_s)),
            r.bound,
            r.tier,
        ]
        for r in answer.rows
    )
    columns = ["operator", "class", "layers", "times", "FLOPs", "bytes", "time", "share", "compute", "memory"]
    out.print(table([*columns, "latency", "floor", "link", "bound", "evidence"], rows, left=3))
    out.print(f"\ntotal {span(answer.total)}; {answer.binds}")
    show_sources(out, report.evidence)
