"""A validation as a picture: predicted against measured, and the measured speeds under their device's roof."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ...calibrate.validate import Points
from ...units import format_flops, format_seconds
from ..estimate import Array
from .plots import CLASS_COLOUR, blank, log_ticks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_POINTS = 4000  # of a kernel class; a seeded sample beyond
BANDS = ((0.20, 0.10), (0.10, 0.18))  # relative error and how dark it is drawn
COLOUR = {
    **CLASS_COLOUR,
    "mla": "#ff7f0e",
    "copy": "#8c564b",
    "convolution": "#e377c2",
    "serving": "#17becf",
}


def class_of(kernel: str) -> str:
    """The class a kernel is coloured by."""
    name = kernel.split("/")[0]
    if name == "host-copy":
        return "copy"
    first = name.split("-")[0]
    return first if first in COLOUR else "collective"


def figure_of(points: Sequence[Points]) -> Figure:
    """One panel where no row has arithmetic, else two."""
    roofed = _most(points)
    figure = blank(12 if roofed else 6.5, 5.5)
    axes = figure.subplots(1, 2 if roofed else 1, squeeze=False)[0]
    _agreement(axes[0], points)
    if roofed:
        _roofline(axes[1], roofed)
    return figure


def _groups(points: Sequence[Points]) -> dict[str, list[Points]]:
    groups: dict[str, list[Points]] = {}
    for one in points:
        groups.setdefault(class_of(one.kernel), []).append(one)
    return groups


def _sample(*columns: Array) -> tuple[Array, ...]:
    """At most as many points as a picture can show, the same ones every time."""
    if len(columns[0]) <= MOST_POINTS:
        return columns
    rows = np.random.default_rng(0).permutation(len(columns[0]))[:MOST_POINTS]
    return tuple(column[rows] for column in columns)


def _agreement(axes: Any, points: Sequence[Points]) -> None:
    """Predicted over measured seconds with the bands of 10 and 20 % about equality."""
    every = np.concatenate([np.concatenate([p.measured_s, p.predicted_s]) for p in points])
    line = np.array([every.min() / 1.5, every.max() * 1.5])
    for error, dark in BANDS:
        axes.fill_between(
            line, line * (1 - error), line * (1 + error), color="black", alpha=dark, lw=0, label=f"within {error:.0%}"
        )
    axes.plot(line, line, color="black", lw=1)
    for name, group in _groups(points).items():
        _dots(axes, name, [(p.measured_s, p.predicted_s) for p in group])
    axes.set(xscale="log", yscale="log", xlim=line, ylim=line, xlabel="measured", ylabel="predicted")
    for axis in (axes.xaxis, axes.yaxis):
        log_ticks(axis, label=format_seconds)
    axes.set_title(f"{len(points)} kernel{'s' * (len(points) > 1)}, {len(every) // 2:,} rows", fontsize=10)
    axes.grid(True, which="major", alpha=0.3)
    _legend(axes, "upper left")


def _dots(axes: Any, name: str, columns: Sequence[tuple[Array, Array]]) -> Array:
    """Points of a kernel class; small ones where there are many. Returns where they lie along x."""
    x, y = _sample(*(np.concatenate(column) for column in zip(*columns, strict=True)))
    size = 24.0 if len(x) < 200 else 4.0
    axes.scatter(x, y, s=size, color=COLOUR[name], alpha=0.6, lw=0, label=name, rasterized=True)
    return x


def _legend(axes: Any, where: str) -> None:
    """A legend whose dots can be seen."""
    for handle in axes.legend(loc=where, fontsize=8).legend_handles:
        if hasattr(handle, "set_sizes"):
            handle.set_sizes([30.0])


def _most(points: Sequence[Points]) -> list[Points]:
    """The points under a roof, of the device that has most of them."""
    roofed = [p for p in points if p.peak_flops_per_s > 0 and (p.flops > 0).any()]
    rows: dict[str, int] = {}
    for one in roofed:
        rows[one.device] = rows.get(one.device, 0) + len(one.flops)
    most = max(rows, key=rows.__getitem__, default="")
    return [p for p in roofed if p.device == most]


def _roofline(axes: Any, points: Sequence[Points]) -> None:
    """Measured speed over intensity, under the roof of each number format's peak."""
    drawn = []
    for name, group in _groups(points).items():
        columns = [(p.flops / p.traffic_bytes, p.flops / p.measured_s / 1e12) for p in group]
        drawn.append(_dots(axes, name, columns))
    bandwidth = points[0].bandwidth_bytes_per_s
    peaks = sorted({p.peak_flops_per_s for p in points})
    every = np.concatenate([*drawn, np.array(peaks) / bandwidth])
    x = np.geomspace(every.min() / 2, every.max() * 2, 200)
    for peak in peaks:
        axes.plot(x, np.minimum(peak, x * bandwidth) / 1e12, color="black", lw=1.5)
        axes.annotate(f"{format_flops(peak)}/s", (x[-1], peak / 1e12), ha="right", va="bottom", fontsize=8)
    axes.set(xscale="log", yscale="log", xlabel="intensity (FLOP per byte of device memory)", ylabel="measured TFLOP/s")
    log_ticks(axes.xaxis)
    log_ticks(axes.yaxis)
    axes.set_title(f"measured speed under the roof of\n{points[0].device}", fontsize=10)
    axes.grid(True, which="major", alpha=0.3)
    _legend(axes, "lower right")
