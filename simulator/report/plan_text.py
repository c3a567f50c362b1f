"""The answer of `plan` as a person reads it: words first, then the plan, its proof, what would change it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...units import format_gib, format_seconds
from .. import answers as a
from .. import plan_answers as p
from .text import devices, evidence_row, layout, number, show_sources, span, styled, table

if TYPE_CHECKING:
    from rich.console import Console


def render(out: Console, report: a.Report, answer: p.PlanAnswer) -> None:
    """Print the answer."""
    q = answer.asked
    nodes = f"{q.nodes} x " if q.nodes > 1 else ""
    limits = "".join(f", {limit}" for limit in q.limits)
    verdict = "the best plan" if answer.plan else styled("no") + " plan"
    out.print(
        f"{q.model} on {nodes}{devices(q.device, q.device_count)}: {verdict}  "
        f"(goal {q.goal}; prompt {q.prompt:,}, output {q.output:,}, {q.engine}{limits})"
    )
    for words in answer.words:
        out.print(f"  {words}")
    if answer.plan:
        out.print(table(["", ""], _rows(report, answer, answer.plan), left=2))
        show_sources(out, report.evidence)
        if len(answer.layers) > 1:
            out.print()
            out.print(table(["layers", "stage", "weights", "where"], _layers(answer), left=4))
        if answer.runners_up:
            out.print()
            out.print(
                table(
                    ["runner-up", "weights", "KV", "tokens/s", "per token", "worse by", "why"], _others(answer), left=3
                )
            )
    if answer.front:
        out.print()
        out.print(table(["users", "layout", "weights", "tokens/s", "per token", "request"], _front(answer), left=3))
    if answer.changes:
        out.print()
        head = "what would change it" if answer.plan else "what alone is enough"
        out.print(table([head, "then", "better by", "ask with"], _changes(answer.changes, 1.0), left=4))
    if answer.without:
        out.print()
        out.print(table(["without", "then", "worse by", "ask with"], _changes(answer.without, -1.0), left=4))
    if answer.emitted:
        out.print("\nrun it:")
    for line in answer.emitted:
        out.print(line, markup=False)
    if answer.refute:
        out.print(f"\nrefute it: {answer.refute}")
    out.print(f"next: {answer.next_step}")


def _rows(report: a.Report, answer: p.PlanAnswer, plan: p.PlanRow) -> list[list[str]]:
    proof = answer.proof
    rows = [
        ["output, all users", span(plan.tokens_per_s_total)],
        ["time per output token", span(plan.time_per_output_token)],
        ["time to first token", f"{span(plan.first_token_service)} service only (no queue)"],
        ["one request", span(plan.request)],
        ["perplexity", f"{plan.ppl_increase:+.1%} (from published figures; they are assumed to add up)"],
    ]
    if plan.money_per_million_tokens is not None:
        rows.append(
            ["cost", f"{plan.money_per_million_tokens:.3g} {answer.asked.currency} for a million output tokens"]
        )
    for limit in answer.limits:
        used, most = (_shown(v, limit.unit) for v in (limit.used, limit.limit))
        rows.append([limit.name, f"{used} of {most}{'  (binds)' if limit.binds else ''}"])
    rows.append(
        [
            "proof",
            f"{proof.status}: no plan of the domain is better by more than {proof.gap:.2%} "
            f"({_many(proof.frames, 'frame')}, {_many(proof.programs, 'program')})",
        ]
    )
    return rows if report.evidence is None else [*rows, evidence_row("evidence", report.evidence)]


def _shown(value: float, unit: str) -> str:
    match unit:
        case "B":
            return format_gib(value)
        case "s":
            return format_seconds(value)
    return number(value)


def _layers(answer: p.PlanAnswer) -> list[list[str]]:
    return [
        [
            f"{row.layers} x {row.block}",
            str(row.stage),
            row.weights if row.experts == row.weights else f"{row.weights}, experts {row.experts}",
            row.where
            + (f", {row.cached_share:.0%} of the experts kept" if row.cached_share else "")
            + (", behind CXL" if row.tier == "cxl" else ""),
        ]
        for row in answer.layers
    ]


def _others(answer: p.PlanAnswer) -> list[list[str]]:
    return [
        [
            _arrangement(row),
            row.weights,
            row.kv,
            number(row.tokens_per_s_total.value or 0.0),
            format_seconds(row.time_per_output_token.value or 0.0),
            f"{row.ratio - 1:.0%}{' (tie)' if row.tie else ''}",
            row.why,
        ]
        for row in answer.runners_up
    ]


def _arrangement(row: p.PlanRow) -> str:
    away = ", host memory" if row.where else ""
    guesses = f", {row.draft_length} guess{'es' * (row.draft_length > 1)}" if row.draft_length else ""
    return f"{_replicas(row)}{layout(row.layout)}, {row.users} user{'s' * (row.users > 1)}{away}{guesses}"


def _front(answer: p.PlanAnswer) -> list[list[str]]:
    return [
        [
            f"{row.replicas * row.users}",
            f"{_replicas(row)}{layout(row.layout)}",
            f"{row.weights} / {row.kv}",
            span(row.tokens_per_s_total),
            span(row.time_per_output_token),
            format_seconds(row.request.value or 0.0),
        ]
        for row in answer.front
    ]


def _changes(changes: Sequence[p.PlanChange], sign: float) -> list[list[str]]:
    def gain(change: p.PlanChange) -> str:
        if change.gain is None:
            return "" if change.goal is not None else "-"
        share = _longer(change.gain) if sign > 0 else sign * change.gain
        if sign > 0 and share < 0:
            return f"{-share:.1%} worse"
        return f"{share:,.0%}" if share >= 1 else f"{share:.1%}" if share >= 0.0005 else "nothing"

    return [[c.change, c.plan, gain(c), c.ask] for c in changes]


def _many(count: int, thing: str) -> str:
    return f"{count:,} {thing}{'s' * (count != 1)}"


def _longer(gain: float) -> float:
    """By how much the present goal is longer than the changed one, as runners-up are told: twice as fast is 100 %."""
    return gain / (1.0 - gain) if 0 < gain < 1 else gain


def _replicas(row: p.PlanRow) -> str:
    return f"{row.replicas} x " if row.replicas > 1 else ""
