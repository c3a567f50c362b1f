"""The arithmetic of estimates: terms and evidence add up, shared errors add linearly, own errors in quadrature."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roofplan.simulator.estimate import (
    WEAKEST_SHARE,
    Z_80,
    Bound,
    Estimate,
    Terms,
    Tier,
    nothing,
    priced,
    total,
)

RUN = settings(deadline=None, derandomize=True, database=None, max_examples=100)
REL = 1e-12
seconds = st.one_of(st.just(0.0), st.floats(1e-9, 1e3))
log_sds = st.floats(0.0, 0.8)


@st.composite
def estimates(draw, shape: tuple[int, ...] = ()) -> Estimate:
    """An operator's time as the cost models make it: some terms, one tier, a shared and an own relative error."""

    def array(elements: st.SearchStrategy[float], of: tuple[int, ...]) -> np.ndarray:
        return np.array(draw(st.lists(elements, min_size=int(np.prod(of)), max_size=int(np.prod(of))))).reshape(of)

    terms = Terms(*(array(seconds, shape) for _ in range(4)))
    return priced(
        terms,
        tier=draw(st.sampled_from(Tier)),
        shared_log_sd=draw(log_sds),
        own_log_sd=array(log_sds, shape),
        extrapolated=array(st.booleans(), shape),
    )


def fields(e: Estimate) -> list[np.ndarray]:
    return [e.time_s, *e.terms.stack(), e.shared_sd_s, e.own_var_s2, *e.evidence_s, e.extrapolated_s]


def assert_same(a: Estimate, b: Estimate, rel: float = REL) -> None:
    for x, y in zip(fields(a), fields(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=rel, atol=1e-300)


def one(log_shared: float, log_own: float, time: float = 1.0, tier: Tier = Tier.CALIBRATED) -> Estimate:
    return priced(Terms(memory_s=np.asarray(time)), tier=tier, shared_log_sd=log_shared, own_log_sd=log_own)


# ---- addition


@RUN
@given(estimates(), estimates(), estimates())
def test_addition_is_commutative_and_associative(a: Estimate, b: Estimate, c: Estimate) -> None:
    assert_same(a + b, b + a)
    assert_same((a + b) + c, a + (b + c))
    assert_same(total([a, b, c]), a + b + c)


@RUN
@given(estimates())
def test_nothing_is_neutral(a: Estimate) -> None:
    assert_same(a + nothing(), a, rel=0)
    assert_same(nothing() + a, a, rel=0)
    assert_same(total([]), nothing(), rel=0)
    assert float(nothing().time_s) == 0.0
    assert nothing().weakest_tier() is Tier.MEASURED


@RUN
@given(st.lists(estimates(), min_size=1, max_size=6), st.floats(0.01, 100))
def test_terms_and_evidence_add_up_to_the_time(parts: list[Estimate], count: float) -> None:
    whole = total(parts).scaled(count)
    time = float(whole.time_s)
    assert sum(float(t) for t in whole.terms.stack()) == pytest.approx(time, rel=REL)
    assert sum(float(e) for e in whole.evidence_s) == pytest.approx(time, rel=REL)
    assert 0 <= float(whole.extrapolated_s) <= time * (1 + REL)
    if time > 0:
        assert sum(whole.evidence().values()) == pytest.approx(1.0, rel=1e-6)
        assert sum(whole.term_share(b) for b in Bound) == pytest.approx(1.0, rel=REL)
        assert whole.term_share(whole.bound()) == max(whole.term_share(b) for b in Bound)


# ---- errors


@RUN
@given(st.lists(st.tuples(st.floats(1e-6, 10), log_sds, log_sds), min_size=1, max_size=12))
def test_error_of_a_sum_lies_between_quadrature_and_linear(parts: list[tuple[float, float, float]]) -> None:
    whole = total(one(shared, own, time) for time, shared, own in parts)
    time = sum(t for t, _, _ in parts)
    each = [t * np.hypot(shared, own) for t, shared, own in parts]
    quadrature, linear = np.sqrt(np.sum(np.square(each))) / time, np.sum(each) / time
    assert quadrature * (1 - 1e-9) <= float(whole.log_sd) <= linear * (1 + 1e-9)


def test_only_shared_errors_reach_the_linear_end_and_only_own_ones_the_quadrature_end() -> None:
    assert float(total([one(0.1, 0.0)] * 9).log_sd) == pytest.approx(0.1, rel=REL)
    assert float(total([one(0.0, 0.1)] * 9).log_sd) == pytest.approx(0.1 / 3, rel=REL)


@RUN
@given(estimates(), st.integers(1, 200))
def test_scaled_is_n_fold_repetition_for_everything_but_the_own_part(a: Estimate, n: int) -> None:
    scaled, summed = a.scaled(n), total([a] * n)
    for x, y, name in zip(fields(scaled), fields(summed), range(99), strict=False):
        if name != 7:
            np.testing.assert_allclose(x, y, rtol=1e-10)
    np.testing.assert_allclose(scaled.own_var_s2, n * summed.own_var_s2, rtol=1e-10)


def test_eighty_layers_of_one_operator_keep_its_error_eighty_different_operators_do_not() -> None:
    layer = one(0.05, 0.2)
    assert float(layer.scaled(80).log_sd) == pytest.approx(float(layer.log_sd), rel=REL)
    different = total([layer] * 80)
    assert float(different.shared_sd_s / different.time_s) == pytest.approx(0.05, rel=REL)
    assert float(np.sqrt(different.own_var_s2) / different.time_s) == pytest.approx(0.2 / np.sqrt(80), rel=REL)
    assert float(different.log_sd) == pytest.approx(np.hypot(0.05, 0.2 / np.sqrt(80)), rel=REL)


@RUN
@given(estimates(shape=(3,)))
def test_the_interval_encloses_the_time(a: Estimate) -> None:
    assert np.all(a.low_s <= a.time_s) and np.all(a.time_s <= a.high_s)
    np.testing.assert_allclose(np.sqrt(a.low_s * a.high_s), a.time_s, rtol=1e-9)
    wider = a.time_s[a.log_sd > 1e-6] < a.high_s[a.log_sd > 1e-6]
    assert np.all(wider | (a.time_s[a.log_sd > 1e-6] == 0))


def test_the_interval_is_an_80_percent_one() -> None:
    assert float(one(0.3, 0.4).high_s) == pytest.approx(np.exp(Z_80 * 0.5), rel=REL)
    draws = np.random.default_rng(0).normal(0.0, 0.5, 200_000)
    inside = (np.exp(draws) >= float(one(0.3, 0.4).low_s)) & (np.exp(draws) <= float(one(0.3, 0.4).high_s))
    assert inside.mean() == pytest.approx(0.8, abs=0.005)


def test_no_time_has_no_error_and_no_warning() -> None:
    empty = one(0.3, 0.3, time=0.0)
    assert float(empty.log_sd) == 0.0 and float(empty.low_s) == 0.0 and float(empty.high_s) == 0.0
    assert empty.evidence() == {}


# ---- rows and grids


@RUN
@given(estimates(shape=(4, 1, 3)), st.lists(st.floats(0, 100), min_size=4, max_size=4))
def test_weighted_rows_is_the_explicit_sum_of_scaled_rows(table: Estimate, weights: list[float]) -> None:
    together = table.weighted_rows(np.array(weights))
    explicit = total(table.row(i).scaled(w) for i, w in enumerate(weights))
    assert_same(together, explicit, rel=1e-9)
    assert together.time_s.shape == (1, 3)


@RUN
@given(estimates(shape=(1, 2)), st.lists(st.floats(0, 100), min_size=5, max_size=5))
def test_one_row_answers_for_all_rows_of_a_column_it_does_not_vary_in(table: Estimate, weights: list[float]) -> None:
    explicit = total(table.row(i).scaled(w) for i, w in enumerate(weights))
    assert_same(table.weighted_rows(np.array(weights)), explicit, rel=1e-9)


def test_scalar_fields_broadcast_over_rows() -> None:
    rows = Estimate(
        np.array([1.0, 2.0]),
        Terms(memory_s=np.array([1.0, 2.0])),
        np.array([0.1, 0.1]),
        np.asarray(0.04),
        (np.asarray(0.0), np.array([1.0, 2.0]), *(np.asarray(0.0) for _ in range(3))),
        np.asarray(0.0),
    )
    summed = rows.weighted_rows(np.array([3.0, 5.0]))
    assert_same(summed, rows.row(0).scaled(3.0) + rows.row(1).scaled(5.0))
    assert float(summed.time_s) == 13.0 and float(summed.own_var_s2) == pytest.approx(0.04 * 34)


@RUN
@given(estimates(shape=(3, 1)), estimates(shape=(1, 4)))
def test_a_sum_over_a_grid_is_the_sum_at_each_point(a: Estimate, b: Estimate) -> None:
    grid = a + b
    assert grid.time_s.shape == grid.log_sd.shape == grid.high_s.shape == (3, 4)
    for i in range(3):
        for j in range(4):
            point = a.row(i).row(0) + b.row(0).row(j)
            assert float(grid.time_s[i, j]) == pytest.approx(float(point.time_s), rel=REL)
            assert float(grid.log_sd[i, j]) == pytest.approx(float(point.log_sd), rel=1e-9)


def test_scaling_by_a_grid() -> None:
    grid = one(0.1, 0.2).scaled(np.array([[1.0, 2.0], [3.0, 0.0]]))
    np.testing.assert_array_equal(grid.time_s, [[1.0, 2.0], [3.0, 0.0]])
    np.testing.assert_allclose(grid.log_sd, np.hypot(0.1, 0.2) * np.array([[1, 1], [1, 0]]))


# ---- evidence


@RUN
@given(st.floats(0.001, 0.999))
def test_the_weakest_tier_needs_more_than_five_percent_of_the_time(share: float) -> None:
    whole = one(0, 0, 1 - share, Tier.CALIBRATED) + one(0, 0, share, Tier.ASSUMED)
    expected = Tier.ASSUMED if share > WEAKEST_SHARE + 1e-9 else Tier.CALIBRATED
    if abs(share - WEAKEST_SHARE) > 1e-9:
        assert whole.weakest_tier() is expected
    assert whole.evidence()[Tier.ASSUMED] == pytest.approx(share)


def test_five_percent_is_the_published_rule() -> None:
    def mixed(share: float) -> Estimate:
        return one(0, 0, 1 - share, Tier.MEASURED) + one(0, 0, share, Tier.DATASHEET)

    assert mixed(0.04).weakest_tier() is Tier.MEASURED
    assert mixed(0.06).weakest_tier() is Tier.DATASHEET


def test_tiers_and_bounds_have_words() -> None:
    assert [t.label for t in Tier] == ["measured", "calibrated", "transferred", "datasheet", "assumed"]
    assert sorted(Tier) == list(Tier), "best first"
    for bound in Bound:
        field = f"{bound.label}_s"
        e = priced(Terms(**{field: np.asarray(2.0)}), tier=Tier.MEASURED, shared_log_sd=0, own_log_sd=0)
        assert e.bound() is bound and e.term_share(bound) == 1.0
