"""Pictures where people would rather look: the roofline of a step, the map of a device's memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import InputError, SurroundingsError
from ...files import replacing
from .. import answers as a

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("png", "svg", "pdf")
CLASS_COLOUR = {
    "gemm": "#1f77b4",
    "attention": "#d62728",
    "experts": "#2ca02c",
    "elementwise": "#7f7f7f",
    "collective": "#9467bd",
}
MAP_COLOUR = ("#1f77b4", "#ff7f0e", "#2ca02c", "#bcbd22", "#e377c2", "#9467bd", "#8c564b", "#7f7f7f")
GIB = 2.0**30
POINTS_PER_E, LABEL_POINTS = 38.0, 11.0  # points on paper of a factor of e in speed, and of a line of text


def check_path(path: Path) -> None:
    """Refuse a picture that could not be drawn, before any work is done."""
    if path.suffix.lstrip(".").lower() not in FORMATS:
        raise InputError(f"must end in one of .{', .'.join(FORMATS)}", key="--plot", value=str(path))
    blank(1, 1)


def save(report: a.Report, path: Path) -> None:
    """Draw the answer and write it to `path`, completely or not at all."""
    from ..plan_answers import PlanAnswer

    match report.answer:
        case a.ExplainAnswer():
            figure = roofline(report, report.answer)
        case a.MemoryAnswer():
            figure = memory_map(report, report.answer)
        case a.SweepAnswer():
            from . import sweep_plots

            figure = sweep_plots.tokens_against_context(report.answer)
        case PlanAnswer():
            from . import plan_plots

            figure = plan_plots.plan(report.answer)
        case _:
            raise InputError("there is no picture of this answer", key="--plot")
    write(figure, path)


def write(figure: Figure, path: Path) -> None:
    """Put a figure at `path` completely or not at all."""
    with replacing(path, "--plot") as file:
        figure.savefig(file, format=path.suffix.lstrip(".").lower(), dpi=150)


def blank(width: float, height: float) -> Figure:
    """An empty figure that needs no screen, or the remedy when the extra is missing."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise SurroundingsError("matplotlib is not installed", remedy="pip install 'roofplan[plot]'") from None
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


DIGITS = ((1, 2, 3, 4, 5, 6, 7, 8, 9), (1, 2, 5), (1, 3), (1,))  # of labels in each decade, the most that have room


LABEL_SHARE = 0.1  # of an axis's length that a label takes


def log_ticks(axis: Any, most: int = 7, label: Callable[[float], str] = "{:,g}".format) -> None:
    """At most `most` round labels on a logarithmic axis, whose limits are final.

    Minor ticks get none: where an axis spans a decade or less, matplotlib's own would cover each other.
    """
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter

    low, high = sorted(axis.get_view_interval())
    decades = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    found = (np.outer(decades, digits).ravel() for digits in DIGITS)
    inside = [ticks[(ticks >= low) & (ticks <= high)] for ticks in found]
    every = -(-len(inside[-1]) // most) or 1
    span = np.log10(high / low)
    apart = (t for t in inside if len(t) <= most and np.all(np.diff(np.log10(t)) >= LABEL_SHARE * span))
    ticks = next(apart, inside[-1][::every])
    if len(ticks) < 3:
        ticks = MaxNLocator(most - 2).tick_values(low, high)
    axis.set_major_locator(FixedLocator(ticks[(ticks >= low) & (ticks <= high)]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: label(value)))
    axis.set_minor_formatter(NullFormatter())


def _axes(width: float, height: float) -> tuple[Figure, Any]:
    figure = blank(width, height)
    return figure, figure.add_subplot()


def _subtitle(q: a.Question) -> str:
    users = f"{q.batch} user{'s' * (q.batch > 1)}"
    return f"{q.weights} weights, {q.kv} KV cache, tp{q.layout.tp} pp{q.layout.pp}, {users}, context {q.context:,}"


def roofline(report: a.Report, answer: a.ExplainAnswer) -> Figure:
    """Each operator at its intensity and the speed it is predicted to reach, under the datasheet's roof."""
    q = report.question
    assert q is not None
    figure, axes = _axes(9, 5.5)
    rows = [r for r in answer.rows if r.flops > 0 and r.time.value]
    intensity = np.array([r.flops / r.bytes for r in rows])
    speed = np.array([r.flops / (r.time.value or 1.0) for r in rows])
    peaks = dict(sorted({r.arithmetic: r.peak_flops_per_s for r in rows}.items(), key=lambda item: item[1]))
    ridge = max(peaks.values()) / answer.bandwidth_bytes_per_s
    x = np.geomspace(min(intensity.min(), ridge) / 4, max(intensity.max(), ridge) * 4, 200)
    for name, peak in peaks.items():
        roof = np.minimum(peak, x * answer.bandwidth_bytes_per_s)
        axes.plot(x, roof / 1e12, color="black", lw=1.5)
        axes.annotate(f"{name} datasheet roof", (x[-1], peak / 1e12), ha="right", va="bottom", fontsize=9)
    drawn: set[str] = set()
    for r, i, s in zip(rows, intensity, speed, strict=True):
        label = r.operator_class if r.operator_class not in drawn else None
        drawn.add(r.operator_class)
        size = 30 + 1500 * r.share
        axes.scatter(
            i, s / 1e12, s=size, color=CLASS_COLOUR[r.operator_class], alpha=0.6, label=label, edgecolor="none"
        )
    for r, i, s, dy in zip(rows, intensity, speed, _offsets(np.log(intensity), np.log(speed)), strict=True):
        text = f"{r.operator} {r.share:.0%}"
        axes.annotate(text, (i, s / 1e12), xytext=(8, dy), textcoords="offset points", fontsize=8, va="center")
    axes.set(xscale="log", yscale="log", xlabel="intensity (FLOP per byte of device memory)", ylabel="speed (TFLOP/s)")
    axes.set_title(f"{answer.phase} step of {q.model} on {q.device_count} x {q.device}\n{_subtitle(q)}", fontsize=10)
    axes.grid(True, which="major", alpha=0.3)
    log_ticks(axes.xaxis)
    log_ticks(axes.yaxis)
    rest = 1 - sum(r.share for r in rows)
    axes.annotate(f"not shown, no FLOPs: {rest:.0%} of the step", (0.01, 0.97), xycoords="axes fraction", fontsize=8)
    legend = axes.legend(title="area: share of the step", loc="lower right", fontsize=8, title_fontsize=8)
    for handle in legend.legend_handles:
        handle.set_sizes([40.0])
    return figure


def _offsets(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> list[float]:
    """Vertical label offsets in points so that labels of neighbouring operators do not cover each other."""
    offsets = [0.0] * len(x)
    order = np.argsort(-y)  # from the top down, away from the roof
    for position, i in enumerate(order):
        for j in order[:position]:
            apart = (y[j] - y[i]) * POINTS_PER_E + offsets[j] - offsets[i]
            if abs(x[i] - x[j]) < 0.5 and apart < LABEL_POINTS:
                offsets[i] -= LABEL_POINTS - apart
    return offsets


def memory_map(report: a.Report, answer: a.MemoryAnswer) -> Figure:
    """The ledger as one bar, with the range of the total, the engine's budget and the device's end."""
    q = report.question
    assert q is not None
    figure, axes = _axes(9, 3.6)
    left = 0.0
    for i, r in enumerate(answer.rows):
        width = (r.bytes.value or 0.0) / GIB
        axes.barh(0, width, left=left, color=MAP_COLOUR[i], label=f"{r.tensor_class} {width:.2f}", height=0.6)
        left += width
    low, high = (answer.nvidia_smi.low or 0.0) / GIB, (answer.nvidia_smi.high or 0.0) / GIB
    axes.errorbar(left, 0, xerr=[[left - low], [high - left]], color="black", capsize=5, lw=1.5)
    marks = ((answer.budget_bytes, "engine budget", "--", 0.47), (answer.capacity_bytes, "device", "-", 0.60))
    for value, name, style, height in marks:
        axes.axvline(value / GIB, color="black", ls=style, lw=1.2)
        axes.text(value / GIB, height, f"{name} {value / GIB:.1f} ", ha="right", va="bottom", fontsize=9)
    axes.set(
        xlim=(0, max(high, answer.capacity_bytes / GIB) * 1.04),
        ylim=(-0.45, 0.8),
        yticks=[],
        xlabel="GiB on one device",
    )
    axes.set_title(f"{q.model} on {q.device_count} x {q.device}: {answer.verdict}\n{_subtitle(q)}", fontsize=10)
    figure.legend(loc="outside lower center", ncols=4, fontsize=8, title="GiB")
    return figure
