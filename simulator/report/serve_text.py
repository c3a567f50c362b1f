"""The answer of `serve` as a person reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...units import format_gib
from .. import answers as a
from .text import VERDICT_WORDS, devices, evidence_row, layout, number, show_sources, span, styled, table

if TYPE_CHECKING:
    from rich.console import Console


def render(out: Console, report: a.Report, answer: a.ServeAnswer) -> None:
    """Print the answer."""
    q = report.question
    assert q is not None
    out.print(
        f"{q.model} on {devices(q.device, q.device_count)}: {styled(answer.verdict)}{VERDICT_WORDS[answer.verdict]}  "
        f"({q.weights} weights, {q.kv} KV cache, {layout(q.layout)}, {q.engine}; {q.batch:,} "
        f"client{'s' * (q.batch > 1)}, prompt {q.prompt:,}, output {answer.output:,}"
        f"{', all alike' * answer.alike})"
    )
    out.print(table(["", ""], _rows(report.evidence, answer), left=2))
    show_sources(out, report.evidence)
    out.print(f"\nnext: {answer.next_step}")


def _rows(evidence: a.Evidence | None, answer: a.ServeAnswer) -> list[list[str]]:
    memory = f"{span(answer.needed)} of {format_gib(answer.capacity_bytes)}"
    if answer.verdict == "no":
        short = (answer.needed.low or 0.0) - answer.capacity_bytes
        return [["memory per GPU", f"{memory}, at least {format_gib(short)} too much for one request"]]
    rows = [
        ["memory per GPU", memory],
        ["time per output token", f"{span(answer.time_per_output_token)} in steady use"],
        ["decode step alone", span(answer.decode_step) + _yield(answer)],
        ["output, per user", span(answer.tokens_per_s_user)],
        ["output, all users", span(answer.tokens_per_s_total)],
        ["prompt", f"{span(answer.first_token_service)} time to first token, service only (no queue)"],
        [
            "requests",
            f"{number(answer.running)} decode at a time; {answer.prompt_share:.1%} of the steps carry prompts",
        ],
        ["what limits", _limit(answer)],
        ["what binds", answer.binds],
    ]
    return rows if evidence is None else [*rows, evidence_row("evidence", evidence)]


def _yield(answer: a.ServeAnswer) -> str:
    guessed = answer.tokens_per_step > 1
    return f", the draft's guesses included: {answer.tokens_per_step:.2g} tokens a request" if guessed else ""


def _limit(answer: a.ServeAnswer) -> str:
    if answer.limited_by == "kv cache":
        return f"the KV cache, which holds {answer.in_flight:,.0f} requests: {answer.waiting:,.0f} clients wait"
    if answer.limited_by == "prompts":
        return "every step is full of prompts: requests wait to be taken in"
    return "the clients: all are served at once"
