"""Decisions beside measurements: what a choice loses, and how often the layout chosen by price is the best one."""

from __future__ import annotations

import json
import re

import jsonschema
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roofplan import cli
from roofplan.calibrate import choices, serving_rows
from roofplan.calibrate.choices import Baseline, Half, Point, Question, Rule, choose, gates, judged, without_model
from roofplan.calibrate.serving_rows import ServingRow, Source
from roofplan.dtypes import DType
from roofplan.simulator.catalogue import ChoiceReport
from roofplan.simulator.estimate import Terms, Tier, priced
from roofplan.simulator.report.contract import SCHEMA_FILE

ISSUE = re.compile(r"issue gate (\d+)")


def point(tp: int, clients: int, tpot_s: float, predicted_s: float | None = None, log_sd: float = 0.1) -> Point:
    """A point whose price is what was measured, or another time."""
    row = ServingRow(
        id=f"{tp}-{clients}",
        device="h200",
        engine="vllm",
        version="0.18.0",
        model="gpt-oss-120b",
        weights="mxfp4",
        kv=DType.BF16,
        tp=tp,
        ep=1,
        attention_dp=1,
        pp=1,
        concurrency=clients,
        isl=1024,
        osl=1024,
        mean_length=1.0,
        ttft_s=0.0,
        tpot_s=tpot_s,
        date="",
        source=Source.INFERENCEX,
    )
    seconds = tpot_s if predicted_s is None else predicted_s
    time = priced(Terms(link_s=np.asarray(seconds)), tier=Tier.ASSUMED, shared_log_sd=log_sd, own_log_sd=0.0)
    return Point(row, time, clients / seconds / tp)


def ask(*points: Point, limit_s: float = 0.02) -> Question:
    return Question(points, limit_s, Half.ALL)


def test_a_broken_limit_is_told_in_three_ways() -> None:
    late = point(2, 32, 0.021, predicted_s=0.019)
    asked = ask(point(2, 8, 0.010), point(2, 16, 0.015), late, point(4, 32, 0.015))
    found = judged(asked, choose(asked, Rule.MEDIAN))
    assert found.chosen is late and found.broken and found.best_layout
    assert found.regrets.strict == 1.0 and found.regrets.fewer == found.regrets.layout == 0.0
    wrong = judged(asked, point(4, 64, 0.03))
    assert wrong.regrets.strict == 1.0 and not wrong.best_layout
    assert wrong.regrets.fewer == wrong.regrets.layout == pytest.approx(1 - asked.possible[-1].rate / asked.best.rate)


def test_the_rules_differ_in_how_near_the_limit_they_go() -> None:
    near, safe = point(2, 32, 0.0199), point(4, 16, 0.010)
    asked = ask(near, safe, point(8, 16, 0.009))
    assert choose(asked, Rule.MEDIAN) is near
    assert choose(asked, Rule.UPPER) is safe, "the 80 % interval of the other reaches beyond"
    assert choose(asked, Rule.EXPECTED) is near, "half the chance of four times the tokens"
    assert choose(ask(point(2, 32, 0.0199), point(4, 48, 0.010)), Rule.EXPECTED).row.tp == 4
    assert choose(ask(point(2, 32, 0.03), point(4, 16, 0.021)), Rule.MEDIAN).row.tp == 4, (
        "nothing keeps it: the fastest"
    )


def test_baselines_are_told_how_many_users_keep_the_limit() -> None:
    asked = ask(point(2, 8, 0.010), point(2, 16, 0.015), point(2, 32, 0.03), point(8, 16, 0.005), point(8, 32, 0.006))
    (fewest,), (most,) = without_model(asked, Baseline.FEWEST), without_model(asked, Baseline.MOST)
    assert (fewest.chosen.label, most.chosen.label) == ("tp2, 16 clients", "tp8, 32 clients")
    assert [one.chosen for one in without_model(asked, Baseline.RANDOM)] == asked.possible


@given(
    st.lists(
        st.tuples(st.sampled_from((1, 2, 4, 8)), st.sampled_from((4, 16, 64)), st.floats(0.005, 0.04)),
        min_size=2,
        unique_by=lambda p: p[:2],
    )
)
def test_exact_prices_choose_what_is_best(points: list[tuple[int, int, float]]) -> None:
    asked = ask(*(point(*p) for p in points))
    if asked.possible:
        found = judged(asked, choose(asked, Rule.MEDIAN))
        assert found.regrets.strict == pytest.approx(0.0, abs=1e-3) and not found.broken
        assert choices.summary("exact", Half.ALL, [[found]]).broken_percent == 0.0


def test_repeated_points_count_once_and_other_loads_are_other_runs() -> None:
    a = point(2, 8, 0.01).row
    assert choices.run_of(a) == choices.run_of(a._replace(tp=4, ep=4, concurrency=64, date="2026-01-01", id="b"))
    assert choices.run_of(a) != choices.run_of(a._replace(isl=2048))
    rows = [a._replace(date="2026-01-02"), a._replace(date="2026-01-01", tpot_s=0.02)]
    ((only,),) = choices.priced(rows, choices.validate.shipped(), lambda _: None).values()
    assert only.row.date == "2026-01-02"


def test_the_command_prints_and_refuses(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    runs: dict[object, list[ServingRow]] = {}
    for row in serving_rows.load():
        if row.exclusion is None and row.tpot_s < min(choices.LIMITS_S):
            runs.setdefault(choices.run_of(row), []).append(row)
    few = min((run for run in runs.values() if len({r.tp for r in run}) > 1), key=len)
    monkeypatch.setattr(serving_rows, "load", lambda: few)
    assert cli.run(["validate", "--from", "choices", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    jsonschema.validate(report, json.loads(SCHEMA_FILE.read_text(encoding="utf-8")))
    assert report["answer"]["rows"] and report["answer"]["preferred"] in set(Rule)
    assert cli.run(["validate", "--from", "choices"]) == 0
    assert "with fewer users" in capsys.readouterr().out
    assert cli.run(["validate", "--from", "choices", "--device", "h200"]) == 2
    assert "drop --device" in capsys.readouterr().err
    monkeypatch.setattr(serving_rows, "load", lambda: few[:1])
    assert cli.run(["validate", "--from", "choices"]) == 2
    assert "no question with two layouts" in capsys.readouterr().err


# ---- the public rows


@pytest.fixture(scope="module")
def found() -> ChoiceReport:
    return choices.report(serving_rows.load(), lambda _: None)


def test_the_gates_hold_and_missed_ones_say_by_how_much(found: ChoiceReport) -> None:
    assert {g.figure for g in gates() if g.rule == Rule.MEDIAN} >= {"best_layout_percent", "layout.p90_percent"}
    for gate in found.gates:
        assert gate.kept, gate
    for gate in gates():
        wished = ISSUE.search(gate.source)
        assert gate.missed == (wished is not None and gate.limit != float(wished[1])), gate


def test_layouts_are_chosen_better_than_without_a_model(found: ChoiceReport) -> None:
    every = {s.rule: s for s in found.summaries if s.half == Half.ALL}
    ours = every[Rule.MEDIAN]
    assert ours.questions == len(found.rows) >= 250
    for baseline in Baseline:
        assert ours.best_layout_percent > every[baseline].best_layout_percent + 20
        assert ours.layout.p90_percent < every[baseline].layout.p90_percent / 2


def test_the_rule_found_on_one_half_loses_least_on_the_other(found: ChoiceReport) -> None:
    held_out = [s for s in found.summaries if s.half == Half.HELD_OUT]
    assert len(held_out) == len(Rule)
    assert found.preferred == Rule.EXPECTED == min(held_out, key=lambda s: s.strict.mean_percent).rule
