"""Published figures chosen before predicting: the lists are whole, and what is claimed of them in the README holds."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from roofplan.calibrate import memories, published, runtimes, speeds
from roofplan.simulator.planner.verdict import Verdict


def quiet(_: str) -> None:
    """Progress nobody sees."""


def test_every_judged_speed_was_chosen_before_and_none_else() -> None:
    with (speeds.REALITY / "speeds.csv").open(encoding="utf-8", newline="") as file:
        listed = {r["id"]: r for r in csv.DictReader(file)}
    judged = {r.id for r in speeds.rows() if r.use == "judged"}
    assert judged == {id_ for id_, r in listed.items() if r["chosen"] == "1"} and len(judged) >= 30
    assert all(listed[r.id]["source"] and r.tokens_per_s > 0 for r in speeds.rows())


def test_the_judged_speeds_cover_what_they_must() -> None:
    judged = [r for r in speeds.rows() if r.use == "judged"]
    consumer = {r.gpu for r in judged if r.gpu.startswith(("rtx-", "rx-", "m2", "m3", "m4", "arc-", "ryzen", "dgx-"))}
    from roofplan.simulator.workload import zoo

    assert len(consumer) >= 10
    assert sum(zoo.bundled(r.model).has_experts for r in judged) >= 6
    assert sum(bool(r.mode) or r.gpu == "cpu" for r in judged) >= 5
    assert sum(r.batch > 32 for r in judged) >= 1 and sum(r.batch == 1 for r in judged) >= 1
    assert {"llama.cpp", "vllm"} <= {r.engine for r in judged}


def test_no_constant_was_fitted_on_a_judged_row() -> None:
    development = [r for r in speeds.rows() if r.use == "development"]
    for group in runtimes.GROUPS:
        assert any(group.holds(r) for r in development), group
    assert {r.use for r in speeds.rows()} == {"judged", "development"}
    assert not {r.id for r in development} & {r.id for r in speeds.rows() if r.use == "judged"}


def test_speeds_are_told_better_than_by_the_rule_of_thumb() -> None:
    report = published.speed_figures(quiet)
    ours, rule = report.summaries
    assert ours.rows == len(report.rows) >= 30
    assert ours.median_percent is not None and rule.median_percent is not None and ours.mean_percent is not None
    assert ours.median_percent < rule.median_percent and ours.mean_percent < rule.mean_percent
    assert ours.coverage_percent is not None and 70 <= ours.coverage_percent <= 95
    for row in report.rows:
        assert row.low is not None and row.high is not None and row.low < row.predicted < row.high


def test_exact_memory_is_exact() -> None:
    errors = [abs(p.error) for p in map(memories.predict, memories.rows()) if p.row.quantity in memories.EXACT]
    assert len(errors) >= 25 and np.median(errors) <= 0.03


# A TensorRT-LLM of 2023 without pages, whose workspaces nobody publishes: 31 GiB of weights and cache on 44 GiB.
KNOWN_WRONG = {"m090"}


def test_fits_surely_is_never_said_of_what_did_not_fit() -> None:
    found = [memories.predict(row) for row in memories.rows() if row.quantity == "fits"]
    assert len(found) >= 15
    assert {p.row.id for p in found if memories.said_to_fit(p)} <= KNOWN_WRONG
    assert all(p.value > Verdict.NO for p in found if p.row.value == 1), "what fitted is not refused"


@pytest.mark.parametrize("row", [r for r in memories.rows() if r.quantity in memories.LEFT], ids=lambda r: r.id)
def test_what_is_left_for_the_cache_is_a_figure(row: memories.Row) -> None:
    assert np.isfinite(memories.predict(row).value)


def test_scores_are_kept_without_flash_attention() -> None:
    row = next(r for r in memories.rows() if r.id == "m030")
    with_scores, without = (memories.predict(row._replace(flash_attention=f)).value for f in (False, True))
    scores = 512 * 8192 * 28 * 4.0  # tokens of a step, context, heads, bytes
    assert without < scores < with_scores < scores * 1.1
