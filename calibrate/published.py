"""Published figures beside what is predicted for them, as an answer: speeds of whole runs, and memory out of logs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..simulator import catalogue as a
from ..simulator.planner.verdict import Verdict
from . import clusters, memories, speeds

Progress = Callable[[str], None]


def speed_figures(progress: Progress, use: str = "judged") -> a.FigureReport:
    """The judged speeds (or those the constants were fitted on), beside the rule of thumb."""
    found = []
    for row in speeds.rows():
        if row.use == use:
            progress(f"predicting {row.id}")
            p = speeds.predict(row)
            inside = p.low <= row.tokens_per_s <= p.high
            what = f"{row.model} {row.weights} on {row.devices}x {row.gpu}, {row.engine}, {row.phase}"
            found.append(
                a.FigureRow(
                    row.id,
                    f"speed, {row.phase}",
                    what,
                    "tokens/s",
                    row.tokens_per_s,
                    p.tokens_per_s,
                    p.low,
                    p.high,
                    100 * (p.tokens_per_s / row.tokens_per_s - 1),
                    inside,
                    p.rule_of_thumb or None,
                    row.source,
                    row.note,
                )
            )
    return a.FigureReport(tuple(found), (_summary("speed", found), _rule(found)))


def cluster_figures(progress: Progress) -> a.FigureReport:
    """The judged speeds of unlike devices; the note names what the predicted time mostly goes to.

    Where no plan surely fits, nothing is predicted: that counts as a speed of nought.
    """
    found = []
    for row in clusters.rows():
        if row.use != "judged" or row.tokens_per_s is None:
            continue
        progress(f"planning {row.id}")
        p = clusters.predict(row)
        speed, low, high = (0.0, None, None) if p is None else (p.tokens_per_s, p.low, p.high)
        found.append(
            a.FigureRow(
                row.id,
                "cluster",
                f"{row.model} {row.weights} on {row.cluster}, {row.system}",
                "tokens/s",
                row.tokens_per_s,
                speed,
                low,
                high,
                100 * (speed / row.tokens_per_s - 1),
                p is not None and p.low <= row.tokens_per_s <= p.high,
                None,
                row.source,
                "no plan surely fits" if p is None else f"mostly {p.deciding}. {row.reason}".strip(),
            )
        )
    met = sum(abs(f.error_percent or 0.0) <= 100 * clusters.MET for f in found)
    summary = _summary("cluster", found)
    return a.FigureReport(tuple(found), (summary._replace(note=f"{met} of {len(found)} within {clusters.MET:.0%}"),))


def memory_figures(progress: Progress) -> a.FigureReport:
    """The memory figures, in kinds: exact sums of tensors, compute buffers, what is left for the cache, verdicts."""
    found = []
    for row in memories.rows():
        progress(f"predicting {row.id}")
        p = memories.predict(row)
        verdict = row.quantity == "fits"
        what = f"{row.model} {row.weights} on {row.tp}x {row.gpu}, {row.engine}"
        found.append(
            a.FigureRow(
                row.id,
                _kind(row.quantity),
                what,
                row.quantity,
                row.value,
                p.value,
                None,
                None,
                None if verdict else 100 * p.error,
                not memories.said_to_fit(p),
                None,
                row.source,
                row.note if verdict else f"{100 * p.of_device:+.1f} % of the device. {row.note}".strip(),
            )
        )
    kinds = dict.fromkeys(f.kind for f in found if f.error_percent is not None)
    wrong = [f.id for f in found if f.unit == "fits" and f.published == 0 and f.predicted == Verdict.SURELY]
    summaries = [_summary(kind, [f for f in found if f.kind == kind]) for kind in kinds]
    fits = [f for f in found if f.unit == "fits"]
    said = f"surely of what did not fit: {', '.join(wrong) or 'none'}"
    return a.FigureReport(
        tuple(found), (*summaries, a.FigureSummary("verdict", len(fits), None, None, None, None, said))
    )


def _kind(quantity: str) -> str:
    if quantity in memories.EXACT:
        return "weights and cache"
    return "left for the cache" if quantity in memories.LEFT else "verdict" if quantity == "fits" else "compute buffer"


def _summary(kind: str, rows: Sequence[a.FigureRow]) -> a.FigureSummary:
    errors = np.abs([r.error_percent for r in rows if r.error_percent is not None])
    covered = [r.inside for r in rows if r.low is not None]
    coverage = 100 * float(np.mean(covered)) if covered else None
    return a.FigureSummary(
        kind, len(errors), float(np.median(errors)), float(np.mean(errors)), float(errors.max()), coverage, ""
    )


def _rule(rows: Sequence[a.FigureRow]) -> a.FigureSummary:
    """How the rule of thumb does on the rows it says something about."""
    said = [(r.rule_of_thumb, r.published) for r in rows if r.rule_of_thumb is not None]
    errors = np.array([100 * abs(rule / published - 1) for rule, published in said])
    what = f"{speeds.RULE} x bandwidth / bytes of the active weights"
    return a.FigureSummary(
        "rule of thumb", len(errors), float(np.median(errors)), float(np.mean(errors)), float(errors.max()), None, what
    )
