"""A sweep as two short tables: how many users fit, and how fast it is at a few points. The rest is columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .. import answers as a
from ..sweep import Codes
from . import text
from .sweep_account import VERDICTS, Values, axes_of, corners

if TYPE_CHECKING:
    from rich.console import Console

MOST_CONTEXTS = 5
NO, TIGHT, SURELY = (VERDICTS.index(name) for name in ("no", "tight", "surely"))


def render(out: Console, answer: a.SweepAnswer) -> None:
    """The tables with what they are about above and where the rest is below."""
    columns = answer.columns
    batches, contexts = axes_of(answer)
    shape = len(answer.series), len(batches), len(contexts)
    verdict = columns.verdict.codes.reshape(shape)
    fits = f"{np.count_nonzero(verdict != NO):,} of {answer.points:,} points fit"
    grid = f"series: {shape[0]:,}, batches: {shape[1]:,}, contexts: {shape[2]:,}"
    out.print(f"{answer.model} with {answer.engine}: {fits}  ({grid})\n")

    shown = _spread(len(contexts))
    users = [
        [*_names(series), _layouts(columns, i, shape), *(_most(verdict[i, :, j], batches) for j in shown)]
        for i, series in enumerate(answer.series)
    ]
    headers = [f"{contexts[j]:,}" for j in shown]
    out.print("most users, of those asked about, that surely fit, by context")
    out.print(text.table(["on", "weights", "KV", "layout", *headers], users, left=4))

    points = corners(batches, contexts)
    places = [(int(np.searchsorted(batches, b)), int(np.searchsorted(contexts, c))) for b, c in points]
    rates = [
        [
            *_names(series),
            *(text.brief(_rate(columns, np.ravel_multi_index((i, *at), shape))) for at in places),
            series.evidence.weakest if series.evidence is not None else "-",
        ]
        for i, series in enumerate(answer.series)
    ]
    headers = [f"{b:,} user{'s' * (b > 1)}, {c:,}" for b, c in points]
    out.print("\ntokens/s of each user, by users and context")
    out.print(text.table(["on", "weights", "KV", *headers, "evidence"], rates, left=3))
    text.show_sources(out, _together(answer.series))
    out.print("\nevery point, with memory, prefill and what binds: --csv FILE, --parquet FILE, --plot FILE or --json")


def _names(series: a.SweepSeries) -> tuple[str, str, str]:
    return text.devices(series.device, series.device_count), series.weights, series.kv


def _spread(length: int) -> list[int]:
    """Places of the first, the last and a few between."""
    return sorted({round(place) for place in np.linspace(0, length - 1, min(length, MOST_CONTEXTS))})


def _most(verdicts: Codes, batches: Values) -> str:
    """The most users that surely fit, else that just may."""
    for level, word in ((SURELY, ""), (TIGHT, " tight")):
        if (verdicts == level).any():
            return f"{batches[verdicts == level][-1]:,}{word}"
    return "-"


def _layouts(columns: a.SweepColumns, series: int, shape: tuple[int, ...]) -> str:
    """The layouts of a series, of those points that fit if any does."""
    rows = slice(series * shape[1] * shape[2], (series + 1) * shape[1] * shape[2])
    fits = columns.verdict.codes[rows] != NO
    degrees = np.stack([column[rows] for column in (columns.tp, columns.pp, columns.ep, columns.cp)], axis=1)
    found = np.unique(degrees[fits] if fits.any() else degrees, axis=0)
    names = [text.layout(a.Layout(int(tp), int(pp), int(ep), int(cp), int(tp * pp))) for tp, pp, ep, cp in found]
    return ", ".join(names) if len(names) < 4 else f"{names[0]} to {names[-1]}"


def _rate(columns: a.SweepColumns, row: np.intp) -> a.Quantity:
    figures = (columns.tokens_per_s_user, columns.tokens_per_s_user_low, columns.tokens_per_s_user_high)
    if columns.verdict.codes[row] == NO:
        return a.Quantity(None, None, None, "tokens/s", "does not fit")
    value, low, high = (float(figure[row]) for figure in figures)
    return a.Quantity(value, low, high, "tokens/s")


def _together(series: tuple[a.SweepSeries, ...]) -> a.Evidence | None:
    """All evidence as one, each calibration once."""
    every = [one.evidence for one in series if one.evidence is not None]
    uses = {use.reason: use for evidence in every for use in evidence.calibrations}
    return every[0]._replace(calibrations=tuple(uses.values())) if every else None
