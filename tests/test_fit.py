"""Fitting: what went into synthetic measurements comes out again; samples, splits, quantiles and errors by hand."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roofplan.calibrate import forms
from roofplan.calibrate.fit import (
    FIRST,
    Fit,
    baseline,
    earned,
    fit,
    pure_roofline,
    seconds,
    spread,
    weighted_quantiles,
)
from roofplan.calibrate.judge import errors
from roofplan.calibrate.sample import GRID_96, designed, grid_rows, points, split_sites, strata
from roofplan.dtypes import DType
from roofplan.simulator.calibration import Cache, Denominators, Parameters
from roofplan.simulator.costs import work
from roofplan.simulator.estimate import Z_80
from roofplan.simulator.operators import (
    NO_WINDOW,
    Attention,
    Collective,
    Elementwise,
    Gemm,
    Kernel,
    KernelName,
    Table,
)
from roofplan.simulator.parameters import (
    FlashPrefill,
    LatencyBandwidth,
    Ring,
    SplitKGemm,
    SplitKvDecode,
    Streaming,
    ThreeConstants,
)

RUN = settings(deadline=None, derandomize=True, database=None, max_examples=60)
H100 = Denominators(9.89e14, 3.35e12, 4.5e11, 132.0, 1.83e9, 5e7)
NOISE = 0.03
Rng = np.random.Generator


def spaced(rng: Rng, low: float, high: float, n: int) -> np.ndarray:
    return np.floor(np.exp(rng.uniform(math.log(low), math.log(high + 1), n)))


def table(cls: type[Any], name: KernelName, **columns: Any) -> Any:
    n = len(next(iter(columns.values())))
    return cls(("t",) * n, ("t",) * n, np.ones((n, 1)), Kernel(name, DType.BF16), **columns)


def gemms(rng: Rng, n: int) -> Gemm:
    m, columns, k = spaced(rng, 1, 16384, n), 64 * spaced(rng, 1, 256, n), 64 * spaced(rng, 2, 256, n)
    two = np.full(n, 2.0)
    return table(
        Gemm,
        KernelName.GEMM,
        m=m,
        n=columns,
        k=k,
        weight_bytes=2 * columns * k,
        activation_bytes=two,
        output_bytes=two,
    )


def attentions(rng: Rng, n: int, decode: bool) -> Attention:
    new, kv_heads = np.ones(n) if decode else spaced(rng, 16, 8192, n), spaced(rng, 1, 8, n)
    return table(
        Attention,
        KernelName.ATTENTION_DECODE if decode else KernelName.ATTENTION_PREFILL,
        sequences=spaced(rng, 1, 256 if decode else 8, n),
        new_tokens=new,
        kv_tokens=new + (spaced(rng, 1, 32768, n) if decode else 0.0),
        heads=kv_heads * rng.choice([1.0, 4.0, 8.0], n),
        kv_heads=kv_heads,
        head_dim=rng.choice([64.0, 128.0], n),
        window=np.full(n, NO_WINDOW),
        kv_bytes=np.full(n, 2.0),
        activation_bytes=np.full(n, 2.0),
    )


def collectives(rng: Rng, n: int) -> Collective:
    ranks = rng.choice([2.0, 4.0, 8.0], n)
    return table(Collective, KernelName.ALL_GATHER, message_bytes=spaced(rng, 256, 1e9, n), ranks=ranks)


def streams(rng: Rng, n: int) -> Elementwise:
    read = spaced(rng, 1e3, 1e9, n)
    return table(Elementwise, KernelName.ELEMENTWISE, read_bytes=read, write_bytes=read / 2, launches=np.ones(n))


TRUTHS: dict[str, tuple[Any, Parameters]] = {
    "gemm": (
        gemms,
        SplitKGemm(3e-6, 0.75, 0.9, 0.6, 14.0, 30.0, 0.4, 300.0, 4e-7, 3e-6, 2.0, 0.15, 5e-4, 0.5, 32.0),
    ),
    "prefill": (lambda r, n: attentions(r, n, False), FlashPrefill(8e-6, 2e-6, 0.7, 0.5, 1.5, 4.0, 1.0)),
    "decode": (
        lambda r, n: attentions(r, n, True),
        SplitKvDecode(6e-6, 1e-6, 2e-6, 0.8, 3.0, 0.6, 5e-7, 2e-7),
    ),
    "ring": (collectives, Ring(8e-6, 3e-6, 0.7, 3e6, 0.3)),
    "stream": (streams, Streaming(3e-6, 0.9, 30.0, 0.5)),
}


def measured(t: Table, p: Parameters, seed: int, noise: float = NOISE) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return seconds(t, H100, p, Cache.REUSED) * np.exp(rng.normal(0, noise, len(t.label)))


def fitted(name: str, points: int = 200, form: type[Any] | None = None) -> Fit:
    make, truth = TRUTHS[name]
    rows = make(np.random.default_rng(1), points)
    return fit(form or type(truth), rows, measured(rows, truth, 2), np.ones(points), H100, Cache.REUSED)


# ---- what went in comes out


@pytest.mark.parametrize("name", TRUTHS)
def test_a_fit_predicts_fresh_points_of_the_same_truth(name: str) -> None:
    make, truth = TRUTHS[name]
    found, fresh = fitted(name), make(np.random.default_rng(77), 400)
    ratio = seconds(fresh, H100, found.parameters, Cache.REUSED) / seconds(fresh, H100, truth, Cache.REUSED)
    assert np.median(np.abs(ratio - 1)) < NOISE
    assert np.quantile(np.abs(ratio - 1), 0.9) < 3 * NOISE
    assert abs(np.median(ratio) - 1) < 0.01
    middle = found.residual_quantiles[1]
    assert abs(middle) < 0.015 and spread(found.residual_quantiles) == pytest.approx(NOISE, rel=0.3)


def test_well_determined_parameters_come_back() -> None:
    """Those that the points hold: the floor, and the rate at which the largest ones run."""
    for name, close in {"ring": ("floor_s", "link_fraction"), "stream": ("floor_s", "memory_fraction")}.items():
        found, truth = fitted(name), TRUTHS[name][1]
        for parameter in close:
            at = found.parameters._fields.index(parameter)
            off = abs(math.log(getattr(found.parameters, parameter) / getattr(truth, parameter)))
            assert off < 0.05 and off < 4 * found.log_sd[at] < 0.5, (name, parameter)


def test_noiseless_measurements_are_met_exactly() -> None:
    make, truth = TRUTHS["ring"]
    rows = make(np.random.default_rng(1), 100)
    found = fit(Ring, rows, measured(rows, truth, 2, 0.0), np.ones(100), H100, Cache.REUSED)
    np.testing.assert_allclose(forms.values_of(found.parameters), forms.values_of(truth), rtol=1e-3)


@pytest.mark.parametrize("splits", [1.0, 32.0])
def test_whether_a_library_splits_k_is_found_out(splits: float) -> None:
    make, truth = TRUTHS["gemm"]
    rows = make(np.random.default_rng(1), 200)
    known = measured(rows, truth._replace(most_splits=splits), 2)
    assert fit(SplitKGemm, rows, known, np.ones(200), H100, Cache.REUSED).parameters.most_splits == splits


@pytest.mark.parametrize("packs", [1.0, 0.0])
def test_whether_heads_share_a_tile_is_found_out(packs: float) -> None:
    make, truth = TRUTHS["prefill"]
    rows = make(np.random.default_rng(1), 200)
    known = measured(rows, truth._replace(packs_heads=packs), 2)
    assert fit(FlashPrefill, rows, known, np.ones(200), H100, Cache.REUSED).parameters.packs_heads == packs


def test_structural_choices_have_no_uncertainty_and_no_bound() -> None:
    found = fitted("prefill")
    at = found.parameters._fields.index("packs_heads")
    assert found.log_sd[at] == 0 and "packs_heads" not in found.at_bound
    assert all(found.correlation[at][i] == (i == at) for i in range(len(found.log_sd)))


def test_three_constants_are_kept_where_the_data_come_from_them() -> None:
    """A richer form has to earn its place, by more than the freedom it has."""
    rows, truth = gemms(np.random.default_rng(1), 80), ThreeConstants(2e-5, 0.45, 0.6)
    found = earned(SplitKGemm, rows, measured(rows, truth, 2), np.ones(80), H100, Cache.REUSED)
    assert isinstance(found.parameters, ThreeConstants)
    np.testing.assert_allclose(found.parameters, truth, rtol=0.05)


@pytest.mark.parametrize("name", ["gemm", "decode", "ring"])
def test_richer_forms_earn_their_place_on_their_own_data(name: str) -> None:
    make, truth = TRUTHS[name]
    rows = make(np.random.default_rng(1), 150)
    found = earned(type(truth), rows, measured(rows, truth, 2), np.ones(150), H100, Cache.REUSED)
    assert type(found.parameters) is type(truth)


def test_links_have_a_baseline_of_their_own() -> None:
    rows = collectives(np.random.default_rng(1), 60)
    truth = LatencyBandwidth(5e-6, 2e-6, 0.7)
    found = baseline(rows, measured(rows, truth, 3), np.ones(60), H100)
    assert isinstance(found.parameters, LatencyBandwidth)
    np.testing.assert_allclose(found.parameters, truth, rtol=0.05)


# ---- weights, bounds, outliers


def test_weights_decide_where_two_truths_are_mixed() -> None:
    """Half of the points are twice as slow: the heavier half is met."""
    rows = streams(np.random.default_rng(1), 100)
    slow = np.arange(100) % 2 == 1
    known = measured(rows, ThreeConstants(4e-6, 0.8, 0.8), 2) * np.where(slow, 2.0, 1.0)
    for heavy, expected in ((slow, 2.0), (~slow, 1.0)):
        weights = np.where(heavy, 1.98, 0.02)
        found = fit(Streaming, rows, known, weights, H100, Cache.REUSED)
        ratio = seconds(rows, H100, found.parameters, Cache.REUSED) / seconds(
            rows, H100, ThreeConstants(4e-6, 0.8, 0.8), Cache.REUSED
        )
        assert np.median(ratio) == pytest.approx(expected, rel=0.08)


def test_a_weight_is_as_good_as_a_repetition() -> None:
    """Among residuals that count squared; a wild point counts by the root of its weight."""
    rows = streams(np.random.default_rng(1), 100)
    known = measured(rows, ThreeConstants(4e-6, 0.8, 0.8), 2, 0.005)
    known[::5] *= 1.02
    twice = np.array([*range(100), *[i for i in range(0, 100, 5) for _ in range(4)]])
    weights = np.where(np.arange(100) % 5 == 0, 5.0, 1.0)
    weighted = fit(ThreeConstants, rows, known, weights, H100, Cache.COLD)
    repeated = fit(ThreeConstants, rows.take(twice), known[twice], np.ones(len(twice)), H100, Cache.COLD)
    alike = fit(ThreeConstants, rows, known, np.ones(100), H100, Cache.COLD)
    for name in ("floor_s", "memory_fraction"):
        one, two, plain = (getattr(f.parameters, name) for f in (weighted, repeated, alike))
        assert one == pytest.approx(two, rel=0.005)
        assert abs(one / two - 1) < 0.4 * abs(plain / two - 1)


def test_a_few_wild_points_do_not_move_a_fit() -> None:
    make, truth = TRUTHS["ring"]
    rows = make(np.random.default_rng(1), 200)
    known = measured(rows, truth, 2)
    known[::25] *= 8
    found = fit(Ring, rows, known, np.ones(200), H100, Cache.REUSED)
    ratio = seconds(rows, H100, found.parameters, Cache.REUSED) / seconds(rows, H100, truth, Cache.REUSED)
    assert np.median(np.abs(ratio - 1)) < NOISE


def test_parameters_stay_inside_their_ranges_and_name_those_at_the_bound() -> None:
    """Measurements ten times faster than the datasheet allows: the fraction ends at 1, and says so."""
    rows = streams(np.random.default_rng(1), 60)
    known = measured(rows, ThreeConstants(3e-6, 1.0, 1.0), 2) / 10
    found = fit(ThreeConstants, rows, known, np.ones(60), H100, Cache.COLD)
    for (name, r), value in zip(forms.ranges(ThreeConstants).items(), found.parameters, strict=True):
        assert r.low <= value <= r.high, name
    assert "memory_fraction" in found.at_bound and found.parameters.memory_fraction == pytest.approx(1.0, rel=0.02)
    assert fitted("stream").at_bound == ()


@pytest.mark.parametrize("name", TRUTHS)
def test_the_covariance_is_positive_definite_and_knows_what_it_does_not_know(name: str) -> None:
    """Never wider than the order of magnitude known before; the correlation is one of numbers that can be drawn."""
    found = fitted(name, 60)
    sds, matrix = np.array(found.log_sd), np.array(found.correlation)
    free = sds > 0
    assert free.sum() >= len(sds) - 1 and np.all(sds <= 1.0 + 1e-9)
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-12)
    assert np.all(np.diag(matrix) == 1) and np.all(np.abs(matrix) <= 1)
    covariance = matrix * np.outer(sds, sds)
    assert np.linalg.eigvalsh(covariance[np.ix_(free, free)]).min() > 0


def test_more_points_leave_less_uncertainty() -> None:
    few, many = fitted("ring", 40), fitted("ring", 640)
    at = Ring._fields.index("link_fraction")
    assert many.log_sd[at] < 0.5 * few.log_sd[at]


def test_few_points_widen_the_residuals_by_the_freedom_of_the_fit() -> None:
    """As many parameters as a fit has, as much do its residuals hide: 5 of 20 points are 15 % more of spread."""
    make, truth = TRUTHS["ring"]
    rows = make(np.random.default_rng(1), 20)
    known = measured(rows, truth, 2)
    found = fit(Ring, rows, known, np.ones(20), H100, Cache.REUSED)
    left = np.log(known / seconds(rows, H100, found.parameters, Cache.REUSED))
    plain = weighted_quantiles(left, np.ones(20), (0.1, 0.9))
    assert found.residual_quantiles[2] - found.residual_quantiles[0] == pytest.approx(
        (plain[1] - plain[0]) * math.sqrt(20 / 15)
    )


def test_what_moves_first_is_there_in_every_form() -> None:
    for form in forms.NAMES.values():
        names = list(forms.ranges(form))
        assert any(n.rpartition(".")[2].endswith(FIRST) for n in names)
        assert names[0].rpartition(".")[2] == "floor_s", "the start of a fit takes the first to be the launch"


@pytest.mark.parametrize("form", forms.NAMES.values(), ids=lambda f: f.__name__)
def test_vectors_and_parameters_are_inverse_and_starts_lie_inside(form: type[Any]) -> None:
    ranges = forms.ranges(form)
    values = np.linspace(1.0, 2.0, len(ranges))
    np.testing.assert_array_equal(forms.values_of(forms.build(form, values)), values)
    for name, r in ranges.items():
        assert 0 < r.low <= r.start <= r.high, name
    built = forms.build(form, values)
    for name, value in zip(ranges, values, strict=True):
        inside: Any = built
        for step in name.split("."):
            inside = getattr(inside, step)
        assert inside == value


# ---- arithmetic


def test_the_datasheet_alone() -> None:
    rows = gemms(np.random.default_rng(1), 20)
    expected = [max(f / 9.89e14, b / 3.35e12) for f, b in zip(*work(rows), strict=True)]
    np.testing.assert_allclose(pure_roofline(rows, H100), expected, rtol=1e-12)
    links = collectives(np.random.default_rng(1), 20)
    sent = (links.ranks - 1) / links.ranks * links.message_bytes
    np.testing.assert_allclose(pure_roofline(links, H100), sent / 4.5e11, rtol=1e-12)


values = st.lists(st.floats(-5, 5), min_size=1, max_size=40)


@RUN
@given(values, st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_quantiles_of_equal_weights_are_those_of_hazen(numbers: list[float], at: tuple[float, float]) -> None:
    mine = weighted_quantiles(np.array(numbers), np.full(len(numbers), 3.7), at)
    np.testing.assert_allclose(mine, np.quantile(numbers, at, method="hazen"), atol=1e-9)


@RUN
@given(st.integers(0, 10**6), st.floats(0.02, 0.98))
def test_weights_are_repetitions(seed: int, at: float) -> None:
    """A value of weight w is w copies of it: quantiles agree but for the way from one value to its neighbour."""
    rng = np.random.default_rng(seed)
    numbers, weights = np.sort(rng.normal(size=60)), rng.integers(1, 6, 60).astype(float)
    many = np.repeat(numbers, weights.astype(int))
    mine = float(weighted_quantiles(numbers[::-1], weights[::-1], (at,))[0])
    index = np.searchsorted(numbers, np.quantile(many, at, method="inverted_cdf"))
    assert numbers[max(index - 1, 0)] <= mine <= numbers[min(index + 1, 59)]


def test_repeated_values_are_one_value() -> None:
    assert weighted_quantiles(np.full(7, 2.5), np.arange(1.0, 8.0), (0.1, 0.5, 0.9)).tolist() == [2.5] * 3
    halves = np.array([1.0] * 50 + [3.0] * 50)
    assert weighted_quantiles(halves, np.ones(100), (0.1, 0.25, 0.75, 0.9)).tolist() == [1.0, 1.0, 3.0, 3.0]
    assert weighted_quantiles(np.array([1.0, 3.0]), np.array([1.0, 9.0]), (0.5,))[0] > 2.5


def test_the_spread_is_the_standard_deviation_of_a_normal() -> None:
    """80 % of a normal lie within 1.28 deviations of its middle; where that is does not matter."""
    assert spread((-Z_80 * 0.2, 0.0, Z_80 * 0.2)) == pytest.approx(0.2)
    assert spread((1 - Z_80 * 0.2, 1.0, 1 + Z_80 * 0.2)) == pytest.approx(0.2)
    drawn = np.random.default_rng(0).normal(0.1, 0.07, 20_000)
    low, middle, high = weighted_quantiles(drawn, np.ones(20_000), (0.1, 0.5, 0.9))
    assert spread((low, middle, high)) == pytest.approx(0.07, rel=0.02)


def test_errors_by_hand() -> None:
    """Predicted 10 % high, 20 % low, right and twice the truth."""
    truth = np.array([1.0, 10.0, 100.0, 1000.0])
    predicted = np.array([1.1, 8.0, 100.0, 2000.0])
    got = errors(predicted, truth, 0.15, truth * 0.5, truth * 1.3)
    assert got.n == 4
    assert got.mape == pytest.approx((10 + 20 + 0 + 100) / 4)
    assert got.median == pytest.approx(15.0)
    assert got.p90 == pytest.approx(20 + 0.7 * 80)  # 0.9 of the way along 3 gaps
    assert got.bias == pytest.approx(5.0)  # between 0 and +10
    assert got.coverage == pytest.approx(50.0)  # |log| of 0.095, 0.223, 0, 0.693 against 1.28 * 0.15 = 0.192
    assert got.width == pytest.approx(100 * (math.exp(Z_80 * 0.15) - math.exp(-Z_80 * 0.15)))
    assert (got.pure_mape, got.pure_median) == pytest.approx((50.0, 50.0))
    assert (got.three_mape, got.three_median) == pytest.approx((30.0, 30.0))
    each = errors(predicted, truth, np.array([0.01, 0.2, 0.01, 0.01]), truth, truth)
    assert each.coverage == pytest.approx(50.0) and each.pure_mape == 0.0


# ---- samples


@RUN
@given(st.integers(0, 10**6), st.integers(1, 400), st.integers(1, 300))
def test_a_designed_sample(seed: int, rows: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    t = gemms(rng, rows)
    times = measured(t, ThreeConstants(4e-6, 0.8, 0.8), seed)
    chosen = designed(t, times, size, seed)
    assert 0 < len(chosen.rows) <= min(size, rows)
    assert len(set(chosen.rows.tolist())) == len(chosen.rows) and chosen.rows.min() >= 0 and chosen.rows.max() < rows
    assert chosen.weights.mean() == pytest.approx(1.0) and np.all(chosen.weights > 0)
    again = designed(t, times, size, seed)
    np.testing.assert_array_equal(chosen.rows, again.rows)
    np.testing.assert_array_equal(chosen.weights, again.weights)
    cells = strata(t, times)
    drawn, weight = cells[chosen.rows], chosen.weights
    inside = np.isin(cells, drawn).sum()
    for cell in np.unique(drawn):  # of the rows that the drawn strata have, each has its share of the weight again
        assert weight[drawn == cell].sum() / weight.sum() == pytest.approx((cells == cell).sum() / inside)


def test_a_sample_sees_the_rare_and_another_seed_sees_others() -> None:
    rng = np.random.default_rng(0)
    t = gemms(rng, 3000)
    times = measured(t, ThreeConstants(4e-6, 0.8, 0.8), 0)
    one, two = designed(t, times, 300, 0), designed(t, times, 300, 1)
    assert set(one.rows.tolist()) != set(two.rows.tolist())
    cells = strata(t, times)
    assert len(set(cells[one.rows])) > 0.7 * len(set(cells.tolist())) and len(one.rows) > 250
    whole_mean, sample_mean = np.log(times).mean(), np.average(np.log(times[one.rows]), weights=one.weights)
    assert sample_mean == pytest.approx(whole_mean, abs=0.1)


@RUN
@given(st.integers(0, 10**6), st.integers(2, 40))
def test_sites_are_split_whole_and_none_is_lost(seed: int, sites: int) -> None:
    rng = np.random.default_rng(seed)
    site = np.concatenate([np.arange(sites), rng.integers(0, sites, 200)]).astype(float)
    for t in (gemms(rng, len(site)), collectives(rng, len(site))):
        inside, outside = split_sites(t, site, seed)
        assert sorted([*inside, *outside]) == list(range(len(site)))
        assert not set(site[inside]) & set(site[outside])
        assert abs(len(set(site[inside])) - sites / 2) <= 0.5 and len(outside) > 0
        again = split_sites(t, site, seed)
        assert all(np.array_equal(a, b) for a, b in zip((inside, outside), again, strict=True))


def test_message_sizes_alternate() -> None:
    rows = collectives(np.random.default_rng(0), 40)
    inside, outside = split_sites(rows, rows.message_bytes, 0)
    order = np.unique(rows.message_bytes)
    assert set(rows.message_bytes[inside]) == set(order[::2]) and set(rows.message_bytes[outside]) == set(order[1::2])


def test_the_grid_is_its_96_points() -> None:
    m, n, k = (np.ravel(a) for a in np.meshgrid(*GRID_96.values()))
    assert len(m) == 96
    two = np.full(97, 2.0)
    columns = {"m": [*m, 5.0], "n": [*n, 128.0], "k": [*k, 128.0]}
    arrays = {name: np.array(c) for name, c in columns.items()}
    rows = table(
        Gemm,
        KernelName.GEMM,
        **arrays,
        weight_bytes=2 * arrays["n"] * arrays["k"],
        activation_bytes=two,
        output_bytes=two,
    )
    assert grid_rows(rows).tolist() == list(range(96))
    assert points(KernelName.GEMM) == 300 and points(KernelName.ALL_REDUCE) == 60
