"""Pictures can be read: labels stand apart, what does not fit is marked, no curve is drawn where nothing runs."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from roofplan import api, cli, sweeps
from roofplan.simulator.report import sweep_plots, validation, validation_plots
from roofplan.simulator.report.plots import blank, log_ticks
from roofplan.simulator.workload.formats import weight_format
from roofplan.units import format_seconds

HATCH = sweep_plots.REGION["hatch"]


def labels_apart(figure: Figure, least: int = 1) -> None:
    """No label of an axis touches the next, and there are enough to read a value off."""
    figure.draw_without_rendering()
    for axes in figure.axes:
        for axis, side in ((axes.xaxis, "x"), (axes.yaxis, "y")):
            shown = [t for t in (*axis.get_ticklabels(), *axis.get_ticklabels(minor=True)) if t.get_text()]
            shown = [t for t in shown if t.get_visible()]
            boxes = sorted((getattr(t.get_window_extent(), f"interval{side}") for t in shown), key=lambda b: b[0])
            assert all(one[1] < other[0] for one, other in pairwise(boxes)), [t.get_text() for t in shown]
            if axis.get_tick_params().get(f"label{'bottom' if side == 'x' else 'left'}", True):
                assert len(shown) >= least


@settings(max_examples=80)
@given(low=st.floats(-5, 4), decades=st.floats(0.02, 10), seconds=st.booleans())
@example(low=-2.984375, decades=0.9375, seconds=False)
def test_labels_of_a_logarithmic_axis_stand_apart(low: float, decades: float, seconds: bool) -> None:
    figure = blank(6, 5.5)
    axes = figure.add_subplot()
    ends = 10.0 ** np.array([low, low + decades])
    axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
    for axis in (axes.xaxis, axes.yaxis):
        log_ticks(axis, **({"label": format_seconds} if seconds else {}))
    labels_apart(figure, 2)
    assert all(ends[0] * 0.999 <= tick <= ends[1] * 1.001 for tick in axes.get_xticks())
    texts = [t.get_text() for t in axes.get_xticklabels()]
    assert len(set(texts)) == len(texts)


def picture(model: str, gpus: str, **asked: Any) -> tuple[Figure, Any]:
    fleets = [api.load_fleet(name)[0] for name in gpus.split(",")]
    report = sweeps.ask_sweep(sweeps.make_sweep(api.load_model(model), fleets, **asked))
    return sweep_plots.tokens_against_context(report.answer), report.answer


def curves(axes: Any) -> list[Any]:
    return [line for line in axes.get_lines() if line.get_linestyle() in sweep_plots.STYLES]


def regions(axes: Any) -> list[Any]:
    return [patch for patch in axes.patches if patch.get_hatch() == HATCH]


@pytest.mark.parametrize(
    ("model", "gpus", "asked"),
    [
        ("llama-3.1-8b", "rtx-4090,l40s,h200", {}),
        ("llama-3.1-70b", "2xh100-sxm", {"batch": "1:64", "context": "4k:128k:1k"}),
        ("qwen3-30b-a3b", "h200,b200,mi300x,l4", {"batch": 4, "context": "1000:20000:3000"}),
        ("llama-3.1-8b", "l40s", {"batch": [1, 3], "context": [777]}),
        ("llama-3.1-8b", "l40s", {"batch": 2, "context": "60000:60020:1"}),
    ],
)
def test_a_sweep_can_be_read(model: str, gpus: str, asked: dict[str, Any]) -> None:
    figure, answer = picture(model, gpus, **asked)
    assert len(figure.axes) == 2 * len(gpus.split(","))
    labels_apart(figure)
    for axes, of_all in zip(figure.axes, np.repeat([False, True], len(figure.axes) // 2), strict=True):
        drawn = [np.isfinite(line.get_ydata()).sum() for line in curves(axes)]
        name = "tokens_per_s_total" if of_all else "tokens_per_s_user"
        values = np.concatenate([np.asarray(line.get_ydata(), float) for line in curves(axes)])
        assert np.isin(values[np.isfinite(values)], getattr(answer.columns, name)).all()
        assert sum(drawn) > 0


def test_where_curves_end_and_where_nothing_fits_is_marked() -> None:
    formats = [weight_format("bf16")]
    figure, answer = picture("llama-3.1-8b", "rtx-4090,h200", batch=[1, 8], context="1k:128k", weights=formats)
    small, large = figure.axes[:2]
    fits = (answer.columns.verdict.codes != sweep_plots.NO).reshape(2, 2, 8)
    assert fits[0, 0, 3] and not fits[0, :, -1].any() and fits[1].any(axis=0).all()
    [region] = regions(small)
    assert region.get_x() == 1024 * 2 ** int(np.argmin(fits[0].any(axis=0)))
    assert not regions(large)
    crosses = [line.get_xdata() for line in small.get_lines() if line.get_marker() == "X"]
    assert [int(np.ravel(x)[0]) for x in crosses] == [1024 * 2 ** (int(f.sum()) - 1) for f in fits[0]]
    assert len([line for line in large.get_lines() if line.get_marker() == "X"]) == (~fits[1].all(axis=1)).sum()
    nothing, _ = picture("llama-3.1-70b", "rtx-4090", batch=1, context="1k:8k", weights=formats)
    assert all(regions(axes) and "does not fit" in [t.get_text() for t in axes.texts] for axes in nothing.axes)


def test_the_file_is_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "sweep.png"
    words = ["sweep", "llama-3.1-8b", "--gpu", "l40s", "--batch", "1:4", "--context", "1k:8k", "--plot", str(path)]
    assert cli.run(words) == 0
    assert path.read_bytes().startswith(b"\x89PNG") and list(tmp_path.iterdir()) == [path]
    assert "points fit" in capsys.readouterr().out


def test_a_narrow_range_of_measurements_has_labels_apart(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    rows = [f"h200,gemm,bf16,{us},us,{m},4096,4096,9.9,x" for us, m in ((170, 4000), (180, 4096), (190, 4200))]
    path.write_text("\n".join(["device,kernel,dtype,value,unit,m,n,k,version,source", *rows]))
    request = validation.Request(validation.Evidence.RECORDS, validation.wanted((), (), ()), (), False, path, None)
    labels_apart(validation_plots.figure_of(validation.validate(request).points), 2)
