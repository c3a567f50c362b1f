"""A sweep as a picture: tokens/s against context by device and format, and where it stops to fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ...errors import InputError
from .. import answers as a
from .plots import blank, log_ticks
from .sweep_account import VERDICTS, Values, axes_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_DEVICES, MOST_FORMATS, MOST_TICKS, MOST_MARKS = 4, 8, 7, 16
MARGIN = 1.1  # of the contexts at both ends
REGION: dict[str, Any] = {"fc": "none", "ec": "#b0b0b0", "hatch": "///", "lw": 0}
COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#17becf")
STYLES = ("-", "--", ":")
NO, TIGHT = VERDICTS.index("no"), VERDICTS.index("tight")
TOKENS_PER_K = 1024


class _Line(NamedTuple):
    """One curve: a series at one number of users, over the contexts."""

    users: int
    colour: str
    style: str
    verdict: npt.NDArray[np.int8]
    moved: npt.NDArray[np.bool_]
    user: Values
    total: Values
    user_range: tuple[Values, Values]
    total_range: tuple[Values, Values]


def check(question_devices: int, formats: int) -> None:
    """Refuse what no picture can show, before any work is done."""
    for count, most, key, what in (
        (question_devices, MOST_DEVICES, "--gpu", "devices"),
        (formats, MOST_FORMATS, "--weights/--kv", "formats"),
    ):
        if count > most:
            remedy = "draw several pictures, or take --csv"
            raise InputError(f"a picture shows at most {most} {what}", key=key, value=count, remedy=remedy)


def tokens_against_context(answer: a.SweepAnswer) -> Figure:
    """A column of panels a device: above the tokens/s of each user, below those of all; a colour a format."""
    batches, contexts = axes_of(answer)
    devices = list(dict.fromkeys((s.device, s.device_count) for s in answer.series))
    formats = list(dict.fromkeys((s.weights, s.kv) for s in answer.series))
    shown = sorted({0, len(batches) // 2, len(batches) - 1})
    figure = blank(max(9.0, 1.2 + 4.0 * len(devices)), 7.2)
    panels = figure.subplots(2, len(devices), sharex=True, sharey="row", squeeze=False)
    for column, device in enumerate(devices):
        lines = [
            _line(answer, index, batch, len(batches), COLOURS[formats.index((series.weights, series.kv))], style)
            for index, series in enumerate(answer.series)
            if (series.device, series.device_count) == device
            for batch, style in zip(shown, STYLES, strict=False)
        ]
        for axes, of_all in zip(panels[:, column], (False, True), strict=True):
            _draw(axes, contexts, lines, of_all)
        name, count = device
        panels[0, column].set_title(name if count == 1 else f"{count} x {name}", fontsize=10)
        panels[1, column].set_xlabel("context of each user (tokens)")
    panels[0, 0].set_ylabel("tokens/s of each user")
    panels[1, 0].set_ylabel("tokens/s of all users")
    for row in panels:
        log_ticks(row[0].yaxis)
    _context_ticks(panels[0, 0].xaxis, contexts)
    figure.suptitle(f"{answer.model} with {answer.engine}: decoding", fontsize=11)
    _legend(figure, formats, [int(batches[i]) for i in shown])
    return figure


def _line(answer: a.SweepAnswer, series: int, batch: int, batches: int, colour: str, style: str) -> _Line:
    """The rows of a series at its `batch`-th number of users."""
    c = answer.columns
    length = answer.points // len(answer.series) // batches
    rows = slice((series * batches + batch) * length, (series * batches + batch + 1) * length)
    layouts = np.stack([column[rows] for column in (c.tp, c.pp, c.ep, c.cp)])
    return _Line(
        int(c.batch[rows][0]),
        colour,
        style,
        c.verdict.codes[rows],
        np.append(False, (layouts[:, 1:] != layouts[:, :-1]).any(axis=0)),
        c.tokens_per_s_user[rows],
        c.tokens_per_s_total[rows],
        (c.tokens_per_s_user_low[rows], c.tokens_per_s_user_high[rows]),
        (c.tokens_per_s_total_low[rows], c.tokens_per_s_total_high[rows]),
    )


def _draw(axes: Any, contexts: Values, lines: Sequence[_Line], of_all: bool) -> None:
    """Curves end in a cross at the last context that fits; where none fits any more the panel is hatched."""
    axes.set(xscale="log", yscale="log")
    few = min((line.users for line in lines), default=1)
    for line in lines:
        speed, (low, high) = (line.total, line.total_range) if of_all else (line.user, line.user_range)
        fits, tight = line.verdict != NO, np.flatnonzero(line.verdict == TIGHT)
        axes.plot(contexts, speed, color=line.colour, ls=line.style, lw=1.5, marker="." if len(contexts) < 20 else "")
        if line.users == few:
            axes.fill_between(contexts, low, high, color=line.colour, alpha=0.13, lw=0)
        some, moved = tight[:: -(-len(contexts) // MOST_MARKS)], line.moved & fits
        axes.plot(contexts[some], speed[some], ls="", marker="o", mfc="white", mec=line.colour, ms=5)
        axes.plot(contexts[moved], speed[moved], ls="", marker="|", color=line.colour, ms=14, mew=1.5)
        if fits.any() and not fits.all():
            last = np.flatnonzero(fits)[-1]
            axes.plot(contexts[last], speed[last], marker="X", color=line.colour, mec="white", ms=9, zorder=3)
    none = np.logical_and.reduce([line.verdict == NO for line in lines])
    if none.any():
        start = contexts[np.argmax(none)] / (MARGIN if none[0] else 1.0)
        axes.axvspan(start, contexts[-1] * MARGIN, **REGION)
    if none.all():
        axes.text(0.5, 0.5, "does not fit", transform=axes.transAxes, ha="center", va="center", backgroundcolor="white")
    axes.set_xlim(contexts[0] / MARGIN, contexts[-1] * MARGIN)
    axes.grid(True, which="major", alpha=0.3)


def _context_ticks(axis: Any, contexts: Values) -> None:
    """Contexts of the sweep as labels (1k is 1024), powers of two of many, so far apart that none touches another."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    powers = 2.0 ** np.arange(np.ceil(np.log2(contexts[0])), np.floor(np.log2(contexts[-1])) + 1)
    gap = (MARGIN**2 * contexts[-1] / contexts[0]) ** (1 / MOST_TICKS)
    ticks: list[float] = []
    for value in (powers if len(contexts) > 2 * MOST_TICKS and len(powers) > 1 else contexts)[::-1]:
        if not ticks or ticks[-1] / value >= gap:
            ticks.append(float(value))
    axis.set_major_locator(FixedLocator(ticks[::-1]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: _tokens(value)))


def _tokens(value: float) -> str:
    return f"{value / TOKENS_PER_K:,g}k" if value % TOKENS_PER_K == 0 else f"{value:,.0f}"


def _legend(figure: Figure, formats: Sequence[tuple[str, str]], users: Sequence[int]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [
        Line2D([], [], color=colour, lw=3, label=f"{weights} weights, {kv} KV")
        for (weights, kv), colour in zip(formats, COLOURS, strict=False)
    ]
    handles += [
        Line2D([], [], color="black", ls=style, label=f"{count:,} user{'s' * (count > 1)}")
        for count, style in zip(users, STYLES, strict=False)
    ]
    black: dict[str, Any] = {"color": "black", "ls": ""}
    handles += [
        Patch(color="black", alpha=0.13, lw=0, label=f"80 % interval, {users[0]:,} user{'s' * (users[0] > 1)}"),
        Line2D([], [], marker="o", mfc="white", label="tight", **black),
        Line2D([], [], marker="X", ms=9, mec="white", label="last context that fits", **black),
        Line2D([], [], marker="|", ms=14, mew=1.5, label="another layout from here", **black),
        Patch(label="nothing drawn fits", **REGION),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8)
