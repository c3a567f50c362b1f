"""Tables of what is listed: hardware files, models, measurements."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape

from ...units import format_bytes, format_count, format_gib
from .. import catalogue as a
from . import validation_text
from .text import table

if TYPE_CHECKING:
    from rich.console import Console


def render(out: Console, answer: a.CatalogueAnswer) -> None:
    """Print a catalogue answer; each kind has its own function below."""
    match answer:
        case a.HardwareList():
            rows = ([r.key, r.kind, str(r.facts), r.name] for r in answer.rows)
            out.print(table(["name", "kind", "numbers", "what it is"], rows, left=4))
        case a.HardwareSheet():
            _sheet(out, answer)
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


def _sheet(out: Console, answer: a.HardwareSheet) -> None:
    out.print(f"{answer.key}: {answer.name}")
    rows = ([f.key, f"{f.value:.6g}", f.unit, f.kind, f"{f.source} ({f.where})"] for f in answer.facts)
    result = table(["number", "value", "unit", "kind", "source"], rows)
    for column in result.columns[2:]:
        column.justify = "left"
    out.print(result)


def _lint(out: Console, answer: a.LintReport) -> None:
    for finding in answer.findings:
        out.print(f"[bold red]{escape(finding.file)}[/]: {escape(f'{finding.key}: {finding.problem}')}")
    out.print(f"{answer.files} file{'s' * (answer.files != 1)} checked, {len(answer.findings)} findings")


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
