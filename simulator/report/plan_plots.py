"""A plan as a picture: what is taken of every limit, the timeline of its steps, and the front of two goals."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

from ...errors import InputError
from ...units import format_gib, format_seconds
from .. import plan_answers as p
from .plots import blank, log_ticks
from .text import devices

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#bcbd22", "#e377c2", "#9467bd", "#8c564b", "#7f7f7f", "#17becf")
LANES = ("computing", "copies")
MOST_NAMED = 0.06  # of a step: narrower spans get no name


def plan(answer: p.PlanAnswer) -> Figure:
    """Limits above, steps below; beside them the front, where one was asked for."""
    if answer.plan is None:
        raise InputError("there is no plan to draw", key="--plot")
    figure = blank(13.0 if answer.front else 9.0, 6.2)
    grid = figure.add_gridspec(3, 2 if answer.front else 1, height_ratios=(1.0, 1.0, 1.0))
    _limits(figure.add_subplot(grid[0, 0]), answer)
    for row, step in enumerate(dict.fromkeys(span.step for span in answer.timeline), start=1):
        _timeline(figure.add_subplot(grid[row, 0]), answer, step)
    if answer.front:
        _front(figure.add_subplot(grid[:, 1]), answer)
    q, best = answer.asked, answer.plan
    where = f"{q.nodes} x " if q.nodes > 1 else ""
    title = textwrap.wrap(f"{q.model} on {where}{devices(q.device, q.device_count)}: {answer.words[0]}", 100)
    figure.suptitle("\n".join(title[:2]), fontsize=10)
    users = f"{best.users} user{'s' * (best.users > 1)} of a replica"
    load = f"goal {q.goal}, prompt {q.prompt:,}, output {q.output:,}; {users}"
    figure.supxlabel(load, fontsize=8)
    return figure


def _limits(axes: Any, answer: p.PlanAnswer) -> None:
    rows = [limit for limit in answer.limits if limit.limit > 0]
    for i, limit in enumerate(rows):
        share = limit.used / limit.limit
        axes.barh(i, min(share, 1.2), color="#d62728" if limit.binds else "#1f77b4", alpha=0.7)
        axes.annotate(_amounts(limit), (0.01, i), va="center", fontsize=8)
    axes.axvline(1.0, color="black", lw=1)
    axes.set_yticks(range(len(rows)), [limit.name for limit in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1.05), xlabel="share of the limit (red: binds)")


def _amounts(limit: p.PlanLimit) -> str:
    match limit.unit:
        case "B":
            return f"{format_gib(limit.used)} of {format_gib(limit.limit)}"
        case "s":
            return f"{format_seconds(limit.used)} of {format_seconds(limit.limit)}"
    return f"{limit.used:.3g} of {limit.limit:.3g}"


def _timeline(axes: Any, answer: p.PlanAnswer, step: str) -> None:
    spans = [span for span in answer.timeline if span.step == step]
    names = list(dict.fromkeys(span.name for span in spans))
    end = max(span.start_s + span.seconds for span in spans)
    for span in spans:
        colour = COLOURS[names.index(span.name) % len(COLOURS)]
        lane = LANES.index(span.lane)
        axes.barh(lane, span.seconds * 1e3, left=span.start_s * 1e3, color=colour, alpha=0.75, edgecolor="white")
        if span.seconds > MOST_NAMED * end:
            middle = (span.start_s + span.seconds / 2) * 1e3
            room = max(6, int(110 * span.seconds / end / (1.6 if answer.front else 1.0)))
            text = span.name if len(span.name) <= room else f"{span.name[: room - 2]}.."
            axes.annotate(text, (middle, lane), ha="center", va="center", fontsize=7)
    lanes = [lane for lane in LANES if any(span.lane == lane for span in spans)]
    axes.set_yticks(range(len(lanes)), lanes, fontsize=8)
    axes.invert_yaxis()
    axes.set(xlim=(0, end * 1e3), xlabel=f"{step}: ms (one pass of all layers)")


def _front(axes: Any, answer: p.PlanAnswer) -> None:
    x = [row.tokens_per_s_total.value or 0.0 for row in answer.front]
    y = [(row.time_per_output_token.value or 0.0) * 1e3 for row in answer.front]
    axes.plot(x, y, marker="o", color="#1f77b4", alpha=0.8)
    best = answer.plan
    assert best is not None
    axes.scatter(
        [best.tokens_per_s_total.value or 0.0],
        [(best.time_per_output_token.value or 0.0) * 1e3],
        marker="*",
        s=180,
        color="#d62728",
        zorder=3,
        label="the plan",
    )
    for i, row in enumerate(answer.front):
        if i % max(1, len(answer.front) // 8) == 0:
            users = row.replicas * row.users
            stages = f" pp{row.layout.pp}" if row.layout.pp > 1 else ""
            text = f"{users} user{'s' * (users > 1)}, tp{row.layout.tp}{stages}"
            inner = x[i] * x[i] > min(x) * max(
                x
            )  # on the right half towards the left, above the line: within the frame
            place = {"xytext": (-8, 3), "ha": "right"} if inner else {"xytext": (6, -9), "ha": "left"}
            axes.annotate(text, (x[i], y[i]), textcoords="offset points", fontsize=7, **place)
    axes.set(xscale="log", yscale="log", xlabel="output tokens/s of all users", ylabel="ms per output token of a user")
    axes.legend(fontsize=8)
    axes.grid(True, alpha=0.3)
    log_ticks(axes.xaxis)
    log_ticks(axes.yaxis)
