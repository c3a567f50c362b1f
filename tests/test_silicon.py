"""The public kernel tables: every one has a verdict, fitted series load in our units, held-out ones stay shut."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from roofplan.calibrate import bundle, forms, silicon, store
from roofplan.calibrate.sample import designed, points, split_sites
from roofplan.calibrate.silicon import FOLDERS, HELD_OUT_FOLDERS, Series, load
from roofplan.hwspecs.device import Device
from roofplan.hwspecs.load import fleet_of
from roofplan.hwspecs.load import load as load_part
from roofplan.simulator.calibration import Cache
from roofplan.simulator.costs import datasheet, terms, work
from roofplan.simulator.operators import NO_WINDOW, Attention, Collective, Elementwise, Experts, Gemm, LatentAttention
from roofplan.simulator.parameters import ThreeConstants

each_device = pytest.mark.parametrize("device", FOLDERS)


@lru_cache(maxsize=len(FOLDERS))
def catalogue(device: str) -> list[Series]:
    return silicon.catalogue(device)


def fitted(device: str) -> list[Series]:
    return [s for s in catalogue(device) if s.left_out is None]


# ---- the catalogue


@each_device
def test_every_table_has_a_verdict(device: str) -> None:
    """Wherever a table lies below the device's folder: none is passed over in silence."""
    folder = silicon.root() / FOLDERS[device]
    tables = {str(p.relative_to(silicon.root())) for p in folder.rglob("*.parquet")}
    series = catalogue(device)
    assert tables and {s.file for s in series} == tables
    for s in series:
        assert s.device == device and s.engine and s.version
        assert s.left_out is None or len(s.left_out) > 10, s.name
        assert s.left_out is not None or (s.kernel is not None and s.rows > 0), s.name


@each_device
def test_rows_of_a_table_are_counted_once(device: str) -> None:
    """The series of a table hold all rows that have a time; a seventh of the tables shows it."""
    for file in sorted({s.file for s in catalogue(device)})[::7]:
        frame = pd.read_parquet(silicon.root() / file)
        timed = int((frame["latency"] > 0).sum()) if "latency" in frame else len(frame)
        assert sum(s.rows for s in catalogue(device) if s.file == file) == timed, file


@each_device
def test_one_fitted_series_a_kernel_and_engine_and_the_newest(device: str) -> None:
    series = catalogue(device)
    main = {(s.engine, s.kernel): s for s in series if s.left_out is None}
    assert len(main) == len(fitted(device)) > 20
    for s in series:
        if s.left_out and s.left_out.startswith(("older than", "another kernel")):
            kept = main[s.engine, s.kernel]
            assert silicon._order(s.version) <= silicon._order(kept.version), s.name
            assert kept.version in s.left_out or kept.source in s.left_out
            assert s.version != kept.version or s.rows <= kept.rows


def test_versions_are_ordered_as_numbers() -> None:
    names = ["0.9.2", "0.14.0", "0.5.6.post2", "0.5.10", "1.2.0rc5", "1.3.0rc10", "1.3.0rc9", "0.5.6"]
    expected = ["0.5.6", "0.5.6.post2", "0.5.10", "0.9.2", "0.14.0", "1.2.0rc5", "1.3.0rc9", "1.3.0rc10"]
    assert sorted(names, key=silicon._order) == expected


@each_device
def test_no_release_stands_beside_its_own_candidates(device: str) -> None:
    """A candidate would count as newer than the release: nothing tells them apart but the tables at hand."""
    versions = {(s.engine, s.version) for s in catalogue(device)}
    for engine, version in versions:
        assert "rc" not in version or (engine, version.partition("rc")[0]) not in versions


@each_device
def test_what_is_bundled_was_fitted_from_what_the_catalogue_says(device: str) -> None:
    known = {(s.engine, s.kernel): s for s in fitted(device)}
    for c in store.read(store.BUNDLED / f"{device}.json"):
        s = known[c.engine, c.kernel]
        assert (c.version, c.source, c.provenance.table) == (s.version, s.source, s.file)


# ---- the loaders

LOADED = [s for device in ("h100-sxm", "l40s") for s in fitted(device)]
POSITIVE = {
    Gemm: ("m", "n", "k", "weight_bytes", "activation_bytes", "output_bytes"),
    Attention: ("sequences", "new_tokens", "kv_tokens", "heads", "kv_heads", "head_dim", "window", "kv_bytes"),
    LatentAttention: ("sequences", "new_tokens", "kv_tokens", "heads", "latent", "rope", "nope", "value", "kv_bytes"),
    Experts: ("tokens", "hidden", "intermediate", "experts", "top_k", "ranks", "expert_bytes"),
    Collective: ("message_bytes", "ranks"),
    Elementwise: ("read_bytes", "write_bytes", "launches"),
}


@pytest.mark.parametrize("series", LOADED, ids=lambda s: s.name)
def test_a_series_loads_in_our_units(series: Series) -> None:
    measured = load(series)
    t, n = measured.table, len(measured.seconds)
    assert n == min(series.rows, silicon.MAX_ROWS) == len(t.label) == len(measured.site) and t.kernel == series.kernel
    assert np.all(np.isfinite(measured.seconds)) and measured.seconds.min() > 1e-6 and measured.seconds.max() < 100
    for column in POSITIVE[type(t)]:
        values = getattr(t, column)
        assert values.shape == (n,) and np.all(np.isfinite(values)) and np.all(values > 0), column
    if isinstance(t, Attention):
        assert np.all(t.kv_tokens >= t.new_tokens) and np.all(t.heads >= t.kv_heads)
        assert np.all((t.window == NO_WINDOW) | (t.window < 1e6))
    if isinstance(t, Experts):
        assert np.all(np.isin(t.routing_alpha, (-1.0, 1.01, 1.2)))
        assert np.all(t.top_k <= t.experts) and np.all(t.experts % t.ranks == 0)
    if isinstance(t, Collective):
        assert np.all(t.ranks >= 2)
    sites = np.unique(measured.site)
    assert np.array_equal(sites, np.arange(len(sites))) and len(sites) > 1, "nothing would be left to judge by"


@pytest.mark.parametrize("series", LOADED, ids=lambda s: s.name)
def test_a_series_can_be_priced_and_is_not_faster_than_its_device(series: Series) -> None:
    """No more than a few rows beat the datasheet's FLOP/s: units of a thousand either way would show in all of them."""
    assert series.kernel is not None
    measured, d = load(series), datasheet(fleet_of(load_part(Device, series.device)), series.kernel)
    amount = work(measured.table)
    rate = d.link_bytes_per_s if isinstance(measured.table, Collective) else d.peak_flops_per_s
    done = amount.traffic_bytes if isinstance(measured.table, Collective) else amount.flops
    assert np.mean(done / measured.seconds > 1.1 * rate) < 0.02
    form = forms.form_of(series.kernel, series.engine)
    start = forms.build(form, np.array([r.start for r in forms.ranges(form).values()]))
    few = measured.table.take(np.arange(0, len(measured.seconds), max(1, len(measured.seconds) // 200)))
    ratio = terms(few, d, start, Cache.REUSED).total_s() / measured.seconds[:: max(1, len(measured.seconds) // 200)]
    assert np.all(np.isfinite(ratio)) and 0.1 < np.median(ratio) < 10


def test_sites_are_shapes_and_the_seed_is_fixed() -> None:
    """Rows of one weight shape share a site, those of two never do; loading twice is the same."""
    series = next(s for s in LOADED if str(s.kernel) == "gemm/bf16" and s.engine == "vllm")
    one, two = load(series), load(series)
    assert isinstance(one.table, Gemm)
    np.testing.assert_array_equal(one.seconds, two.seconds)
    shapes = set(zip(one.table.n, one.table.k, strict=True))
    assert len(np.unique(one.site)) == len(shapes) == len(set(zip(one.site, one.table.n, one.table.k, strict=True)))


@pytest.mark.parametrize("series", LOADED[::6], ids=lambda s: s.name)
def test_fitting_and_judging_share_no_site(series: Series) -> None:
    measured = load(series)
    inside, outside = split_sites(measured.table, measured.site, bundle.SEED)
    assert not set(measured.site[inside]) & set(measured.site[outside]) and len(outside) > 0
    assert series.kernel is not None
    candidates = measured.table.take(inside)
    chosen = designed(candidates, measured.seconds[inside], points(series.kernel.name), bundle.SEED)
    assert len(forms.ranges(forms.form_of(series.kernel, series.engine))) + 5 < len(chosen.rows)


# ---- held out


class Inline:
    """A pool of processes that is none."""

    def __init__(self, workers: int) -> None: ...

    def __enter__(self) -> "Inline":
        return self

    def __exit__(self, *_: object) -> None: ...

    def map(self, function: Any, items: Any) -> Any:
        return map(function, items)


def test_calibrating_never_reads_what_is_held_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the catalogues of all devices or the fits of two open is a table of a device to be calibrated."""
    opened: list[Path] = []
    read = pd.read_parquet

    def spy(path: Path, *args: Any, **kwargs: Any) -> Any:
        opened.append(Path(path))
        return read(path, *args, **kwargs)

    bundled = {c.id: c for path in store.bundled_files() for c in store.read(path)}
    stand_in = next(c for c in bundled.values() if isinstance(c.baseline, ThreeConstants))

    def known(series: Series) -> bundle.Fitted:
        """What the bundle says, with a few of the rows: minutes of fitting change no path."""
        measured, key = load(series), f"{series.device}/{series.kernel}/{series.engine}-{series.version}"
        assert series.kernel is not None
        found = bundled.get(key) or stand_in._replace(
            device=series.device, kernel=series.kernel, parameters=stand_in.baseline
        )
        return bundle.Fitted(found, measured.table.take(np.arange(3)), measured.seconds[:3])

    monkeypatch.setattr(pd, "read_parquet", spy)
    monkeypatch.setattr(bundle, "ProcessPoolExecutor", Inline)
    monkeypatch.setattr(bundle, "fit_series", known)
    silicon._frame.cache_clear()
    silicon.catalogue.cache_clear()
    for device in FOLDERS:
        silicon.catalogue(device)
    written = bundle.build(tmp_path, ["a100-80gb", "l40s"], lambda line: None)
    assert [path.stem for path in written] == ["a100-80gb", "l40s", "any"]
    folders = {path.relative_to(silicon.root()).parts[0] for path in opened}
    assert folders == set(FOLDERS.values())
    assert not any(folder.startswith(HELD_OUT_FOLDERS) for folder in folders)


def test_there_is_something_held_out() -> None:
    """Every device with tables is calibrated or held out: a new one needs a decision."""
    there = {p.name for p in silicon.root().iterdir() if any(p.glob("*/*/*/*.parquet"))}
    held = {name for name in there if name.startswith(HELD_OUT_FOLDERS)}
    assert there == held | set(FOLDERS.values()) and not held & set(FOLDERS.values())
    assert {h for h in HELD_OUT_FOLDERS if any(name.startswith(h) for name in held)} == set(HELD_OUT_FOLDERS)
    for path in store.bundled_files():
        assert not any(c.provenance.table.startswith(HELD_OUT_FOLDERS) for c in store.read(path))


def test_a_fit_of_a_real_series_end_to_end() -> None:
    """The quickest one there is: errors, hull, weights and provenance of a calibration made from a table."""
    series = next(s for s in LOADED if s.kernel is not None and s.kernel.name.value == "all-gather")
    found = bundle.fit_series(series)
    c = found.calibration
    assert c.accuracy is not None and c.accuracy.n == c.provenance.held_out_rows > 0
    assert c.provenance.fit_rows <= points(series.kernel.name)  # type: ignore[union-attr]
    assert c.accuracy.median < c.accuracy.pure_median and 0 < c.accuracy.coverage <= 100
    assert c.kernel == series.kernel and c.denominators == datasheet(fleet_of(load_part(Device, c.device)), c.kernel)
    predicted = terms(found.table, c.denominators, c.parameters, Cache.REUSED).total_s()
    assert np.median(np.abs(predicted / found.seconds - 1)) * 100 == pytest.approx(c.accuracy.median, rel=0.3)
    bundled = next(b for b in store.read(store.BUNDLED / f"{c.device}.json") if b.id == c.id)
    np.testing.assert_allclose(forms.values_of(c.parameters), forms.values_of(bundled.parameters), rtol=0.02)
