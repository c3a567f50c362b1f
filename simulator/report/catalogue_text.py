"""Tables of what is listed: hardware files, models, measurements."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape

from ...units import format_bytes, format_count, format_flops, format_gib, format_rate
from .. import catalogue as a
from . import calibration_text, validation_text
from .text import table

if TYPE_CHECKING:
    from rich.console import Console


def render(out: Console, answer: a.CatalogueAnswer) -> None:
    """Print a catalogue answer; each kind has its own function below."""
    match answer:
        case a.HardwareList():
            _hardware(out, answer)
        case a.HardwareSheet():
            _sheet(out, answer)
        case a.HardwareDraft():
            _draft(out, answer)
        case a.LintReport():
            _lint(out, answer)
        case a.Comparison():
            _comparison(out, answer)
        case a.ModelList():
            out.print(table(_MODEL_COLUMNS, map(_model_row, answer.rows)))
        case a.ModelSheet():
            _model(out, answer)
        case a.RecordSchema():
            _columns(out, answer)
        case a.ImportReport():
            _imported(out, answer)
        case a.Validation():
            validation_text.render(out, answer)
        case a.KernelList():
            validation_text.render_kernels(out, answer)
        case a.FigureReport():
            _figures(out, answer)
        case a.CalibrationReport():
            calibration_text.render(out, answer)
        case a.DoctorReport():
            calibration_text.render_doctor(out, answer)
        case a.ChoiceReport():
            _choices(out, answer)


def _figures(out: Console, answer: a.FigureReport) -> None:
    def shown(value: float | None, digits: int = 4) -> str:
        return "-" if value is None else f"{value:.{digits}g}"

    rows = (
        [
            r.id,
            r.what,
            r.unit,
            shown(r.published),
            shown(r.predicted) + (f" ({shown(r.low, 3)}-{shown(r.high, 3)})" if r.low is not None else ""),
            "-" if r.error_percent is None else f"{r.error_percent:+.1f} %",
            "" if r.inside else "outside" if r.low is not None else "WRONG",
            shown(r.rule_of_thumb, 3),
        ]
        for r in answer.rows
    )
    head = ["figure", "what", "unit", "published", "predicted", "error", "", "rule of thumb"]
    out.print(table(head, rows, left=3))
    out.print()

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{value:.1f} %"

    sums = (
        [
            s.kind,
            str(s.rows),
            *map(percent, (s.median_percent, s.mean_percent, s.worst_percent, s.coverage_percent)),
            s.note,
        ]
        for s in answer.summaries
    )
    out.print(table(["kind", "rows", "median", "mean", "worst", "in 80 % interval", ""], sums))


def _choices(out: Console, answer: a.ChoiceReport) -> None:
    """The worst choices, the rules, the gates; every choice is in the JSON."""

    def three(regret: a.RegretSummary) -> str:
        return " / ".join(f"{value:.1f}" for value in regret)

    worst = sorted(answer.rows, key=lambda r: (-r.fewer_percent, r.question))[:_WORST]
    rows = (
        [
            r.question,
            f"{1e3 * r.limit_s:g} ms",
            r.best,
            f"{r.best_tokens_per_s:.4g}",
            r.chosen,
            f"{r.chosen_tokens_per_s:.4g} ({r.predicted_tokens_per_s:.4g})",
            f"{1e3 * r.measured_s:.3g} ({1e3 * r.predicted_s:.3g}) ms",
            f"{r.fewer_percent:.0f} %",
        ]
        for r in worst
    )
    head = [
        "worst choices",
        "limit",
        "best",
        "tokens/s/device",
        "chosen",
        "tokens/s (predicted)",
        "time (predicted)",
        "",
    ]
    out.print(table(head, rows))
    out.print()
    sums = (
        [
            s.rule,
            s.half,
            str(s.questions),
            f"{s.best_layout_percent:.1f} %",
            f"{s.broken_percent:.1f} %",
            *map(three, (s.layout, s.fewer, s.strict)),
        ]
        for s in answer.summaries
    )
    head = ["rule", "runs", "questions", "best layout", "limit broken", "lost by layout", "with fewer users", "strict"]
    out.print(table(head, sums))
    out.print("lost: median / 90th percentile / mean, percent of the best measured rate")
    out.print(f"least lost on the half it was looked for on: {answer.preferred}")
    out.print()
    bounds = (
        [g.rule, g.figure, f"{g.limit:g}", f"{g.value:.1f}", "" if g.kept else "BROKEN", g.source] for g in answer.gates
    )
    out.print(table(["gate", "figure", "limit", "found", "", "source"], bounds))


_WORST = 12  # choices shown


# Heading of a kind, what its memory and its bandwidth are.
_KINDS = {
    "device": ("GPUs and other accelerators", "memory", "bandwidth"),
    "host": ("hosts", "memory", "bandwidth"),
    "storage": ("drives", "usual size", "read"),
    "link": ("links", "", "one direction"),
    "cluster": ("nodes and instances", "", ""),
}


def _hardware(out: Console, answer: a.HardwareList) -> None:
    """A table a kind; columns that no row of the kind fills are left out."""
    for kind, (heading, memory, bandwidth) in _KINDS.items():
        rows = [r for r in answer.rows if r.kind == kind]
        if not rows:
            continue
        columns = [("name", [r.key for r in rows])]
        if kind == "cluster":
            columns.append(("made of", [r.made_of for r in rows]))
        else:
            columns += [
                (memory, [format_gib(r.memory_bytes) if r.memory_bytes else "" for r in rows]),
                (bandwidth, [format_rate(r.bandwidth_bytes_per_s) if r.bandwidth_bytes_per_s else "" for r in rows]),
                ("dense rate", [f"{format_flops(r.flops_per_s)}/s {r.dtype}" if r.flops_per_s else "" for r in rows]),
            ]
        columns = [c for c in [*columns, ("what it is", [r.name for r in rows])] if any(c[1])]
        listed = table([title for title, _ in columns], zip(*(cells for _, cells in columns), strict=True))
        for column, (title, _) in zip(listed.columns, columns, strict=True):
            column.justify = "left" if title in ("name", "made of", "what it is") else "right"
        out.print(f"[bold]{len(rows)} {heading}[/]" if len(rows) > 1 else f"[bold]{heading}[/]")
        out.print(listed, "")


def _draft(out: Console, answer: a.HardwareDraft) -> None:
    out.print(f"wrote {escape(answer.file)}, started from {escape(answer.started_from)}")
    for finding in answer.findings:
        out.print(f"[yellow]still:[/] {escape(f'{finding.key}: {finding.problem}')}")
    for note in answer.notes:
        out.print(f"[yellow]note:[/] {escape(f'{note.key}: {note.problem}')}")
    out.print(f"next: edit it, then `roofplan hw lint {escape(answer.file)}` and --gpu {escape(answer.file)}")


def print_schema() -> None:
    """Print the keys a hardware file of each kind may have."""
    from ...hwspecs.device import attributes
    from .hardware import PARTS
    from .text import console

    out = console()
    for part in PARTS:
        rows = ([r.name, r.type, r.unit, "yes" if r.required else "", r.meaning] for r in attributes(part))
        out.print(f"\n[bold]{part.__name__.lower()}[/]")
        out.print(table(["key", "type", "unit", "required", "meaning"], rows, left=5))


def _sheet(out: Console, answer: a.HardwareSheet) -> None:
    out.print(f"{answer.key}: {answer.name} ({answer.kind})")
    out.print(", ".join(f"{w.key} {w.value}" for w in answer.words))
    rows = ([f.key, f"{f.value:.6g}", f.unit, f.kind, f"{f.source} ({f.where})"] for f in answer.facts)
    result = table(["number", "value", "unit", "kind", "source"], rows)
    for column in result.columns[2:]:
        column.justify = "left"
    out.print(result)


def _lint(out: Console, answer: a.LintReport) -> None:
    for finding in answer.findings:
        out.print(f"[bold red]{escape(finding.file)}[/]: {escape(f'{finding.key}: {finding.problem}')}")
    if answer.files == 1:  # of many files the number is enough
        for note in answer.notes:
            out.print(f"[yellow]note:[/] {escape(f'{note.file}: {note.key}: {note.problem}')}")
    noted = f", {len(answer.notes)} notes" if answer.notes else ""
    out.print(f"{answer.files} file{'s' * (answer.files != 1)} checked, {len(answer.findings)} findings{noted}")


def _columns(out: Console, answer: a.RecordSchema) -> None:
    rows = ([c.name, c.unit, "every row" if c.required else ", ".join(c.needed_by), c.meaning] for c in answer.columns)
    out.print(table(["column", "unit", "needed by", "meaning"], rows, left=4))
    out.print("\nany order; one row a measurement; leave blank what does not apply")


def _imported(out: Console, answer: a.ImportReport) -> None:
    rows = ([escape(t) for t in (r.kernel, r.device, r.model, f"{r.value:.6g} {r.unit}", r.note)] for r in answer.rows)
    if answer.rows:
        out.print(table(["measured", "on", "model", "value", "note"], rows, left=5))
    for reason in answer.skipped:
        out.print(f"[yellow]left out:[/] {escape(reason)}")
    out.print(f"{len(answer.rows)} new in {escape(answer.out)}, which holds {answer.records_in_file}")


def _comparison(out: Console, answer: a.Comparison) -> None:
    def cell(value: float | None, ratio: float | None) -> str:
        return "-" if value is None else f"{value:.5g}" + ("" if ratio is None else f" ({ratio:.2f}x)")

    rows = ([r.key, r.unit, *(cell(v, x) for v, x in zip(r.values, r.ratios, strict=True))] for r in answer.rows)
    out.print(table(["number", "unit", *answer.devices], rows, left=2))


_MODEL_COLUMNS = [
    "model",
    "family",
    "parameters",
    "active",
    "layers",
    "context",
    "weights",
    "KV per token",
    "counted by",
]


def _model_row(m: a.ModelRow) -> list[str]:
    return [
        m.name,
        m.family,
        format_count(m.parameters),
        format_count(m.active_parameters),
        str(m.layers),
        f"{m.max_context:,}" if m.max_context else "-",
        format_gib(m.weight_bytes),
        format_bytes(m.kv_bytes_per_token) if m.kv_bytes_per_token else "-",
        m.oracle or "-",
    ]


def _model(out: Console, answer: a.ModelSheet) -> None:
    out.print(table(_MODEL_COLUMNS, [_model_row(answer.model)]))
    out.print(f"read from {answer.model.origin}\n")
    rows = (
        [
            t.role,
            t.block,
            str(t.layers),
            str(t.copies),
            f"{t.rows:,} x {t.cols:,}" + (" + bias" if t.bias else ""),
            f"{t.parameters:,}",
            format_gib(t.bytes),
        ]
        for t in answer.tensors
    )
    out.print(table(["tensor", "layer class", "layers", "copies", "shape", "parameters", "bytes"], rows, left=2))
