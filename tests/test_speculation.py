"""A draft that guesses ahead: what a round yields, what it costs, and when a plan leaves it out."""

from __future__ import annotations

import dataclasses
import json
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from roofplan import api
from roofplan.cli import app
from roofplan.errors import InputError
from roofplan.simulator import engines
from roofplan.simulator.planner.question import Goal, Limits, Pins, Question
from roofplan.simulator.planner.search import GAP, search
from roofplan.simulator.scenario import Extras, Phase, Scenario, Sharding, Step
from roofplan.simulator.serving import Load, serve
from roofplan.simulator.speculation import checking, drafting, tokens_per_round
from roofplan.simulator.workload import zoo

FLEET = api.load_fleet("h100-sxm")[0]
CALIBRATIONS = api.load_calibrations(FLEET)
TARGET, DRAFT = zoo.bundled("llama-3.1-8b"), zoo.bundled("llama-3.2-1b")


def asked(**extras: object) -> Scenario:
    scenario = api.make_scenario(TARGET, FLEET, batch=1, context=2048, prompt=1024, engine=engines.engine("vllm"))
    return scenario.but(extras=Extras(**extras))  # type: ignore[arg-type]


def question(acceptance: float, goal: Goal = Goal.LATENCY, **pins: object) -> Question:
    extras = Extras(draft=DRAFT, acceptance=acceptance)
    engine = engines.engine("vllm")
    return Question(TARGET, FLEET, 1024, 256, goal, Limits(), Pins(**pins), engine, extras=extras)  # type: ignore[arg-type]


@given(st.floats(0, 1), st.integers(0, 16))
def test_a_round_yields_what_guesses_drawn_one_by_one_do(acceptance: float, length: int) -> None:
    """The mean over all outcomes: the first wrong guess comes after i right ones, or none is wrong."""
    mean = sum((i + 1) * acceptance**i * (1 - acceptance) for i in range(length)) + (length + 1) * acceptance**length
    found = tokens_per_round(Extras(draft=DRAFT, draft_length=length, acceptance=acceptance))
    assert found == pytest.approx(mean) and 1 <= found <= length + 1


def test_a_round_simulated() -> None:
    rng, rounds, made = random.Random(0), 20_000, 0
    for _ in range(rounds):
        made += 1
        for _ in range(5):
            if rng.random() > 0.7:
                break
            made += 1
    assert made / rounds == pytest.approx(tokens_per_round(Extras(draft_length=5, acceptance=0.7)), rel=0.02)


def test_checking_reads_the_weights_once() -> None:
    """Five tokens of one sequence cost far less than five steps, and more than one."""
    step = Step(Phase.DECODE, 1, 1, 1024)
    assert checking(step, Extras()) is step
    wide = checking(step, Extras(draft=DRAFT, draft_length=4))
    assert wide.new_tokens == 5 and wide.logits == 5
    alone, checked = (
        float(serve(asked(**more), Load(1, 1024, 256), CALIBRATIONS).decode_step.time_s)
        for more in ({}, {"draft": DRAFT, "draft_length": 4, "acceptance": 0.0})
    )
    guesses = float(drafting(asked(draft=DRAFT, draft_length=4), step, CALIBRATIONS).time_s)
    assert alone + guesses <= checked * 1.001 < 1.3 * alone + guesses


def test_the_draft_takes_its_own_time_for_each_guess() -> None:
    step = Step(Phase.DECODE, 8, 1, 1024)
    one, four = (float(drafting(asked(draft=DRAFT, draft_length=n), step, CALIBRATIONS).time_s) for n in (1, 4))
    assert four == pytest.approx(4 * one)
    assert float(drafting(asked(draft=DRAFT), step, CALIBRATIONS).time_s) == 0.0


def test_guesses_that_are_always_right_pay_and_those_that_never_are_do_not() -> None:
    pace = [
        float(serve(asked(draft=DRAFT, draft_length=n, acceptance=a), Load(1, 1024, 256), CALIBRATIONS)
              .time_per_output_token.time_s)
        for n, a in ((0, 0.0), (4, 1.0), (4, 0.0))
    ]  # fmt: skip
    assert pace[1] < 0.5 * pace[0] < pace[0] < pace[2]


def test_nobody_guesses_in_a_pipeline() -> None:
    pair = api.load_fleet("2xh100-sxm")[0]
    with pytest.raises(InputError, match="pipeline"):
        asked(draft=DRAFT, draft_length=2, acceptance=0.5).but(fleet=pair, sharding=Sharding(1, 2))
    for wrong in ({"draft_length": 2}, {"draft": DRAFT, "draft_length": 65}, {"draft": DRAFT, "acceptance": 1.5}):
        with pytest.raises(InputError):
            asked(**wrong)


@pytest.mark.parametrize("goal", [Goal.LATENCY, Goal.THROUGHPUT])
@pytest.mark.parametrize("acceptance", [0.0, 0.6, 0.9])
def test_the_plan_takes_the_best_number_of_guesses(goal: Goal, acceptance: float) -> None:
    """As good as the best of the plans with the number pinned, none included: the draft's memory is freed with it."""
    pins = {} if goal is Goal.LATENCY else {"clients": 16}
    found = search(question(acceptance, goal, **pins), CALIBRATIONS)
    each = [search(question(acceptance, goal, draft_length=n, **pins), CALIBRATIONS).plans[0] for n in range(9)]
    best = min(each, key=lambda p: p.objective)
    assert found.plans[0].objective <= best.objective * (1 + GAP + 1e-6)
    assert found.bound <= min(p.objective for n, p in enumerate(each) if n != 7) * (1 + 1e-9)
    if acceptance == 0.0:
        assert found.plans[0].scenario.extras.draft is None
    elif acceptance == 0.9 and goal is Goal.LATENCY:
        assert found.plans[0].scenario.extras.draft_length >= 4
    bare = dataclasses.replace(question(acceptance, goal, **pins), extras=Extras())
    assert found.plans[0].objective <= search(bare, CALIBRATIONS).plans[0].objective * (1 + GAP)


def test_the_programs_times_are_the_simulators() -> None:
    """With guesses as without: the program's objective of a resident frame is what the simulator finds."""
    found = search(question(0.8, draft_length=4), CALIBRATIONS)
    assert found.gap < 0.01 and np.isfinite(found.bound)


def test_the_command_line_says_what_becomes_of_the_draft() -> None:
    def run(*words: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["plan", "llama-3.1-8b", "--gpu", "h100-sxm", "--goal", "latency", *words])
        return result.exit_code, result.output + str(result.exception or "")

    draft = ("--draft", "llama-3.2-1b", "--no-why")
    code, said = run(*draft, "--acceptance", "80%", "--json")
    row = json.loads(said)["answer"]["plan"]
    assert code == 0 and row["draft_length"] >= 2
    assert "leave llama-3.2-1b out" in run(*draft, "--acceptance", "0%")[1]
    assert "--acceptance" in run(*draft)[1] and run(*draft)[0] != 0
    assert run("--acceptance", "80%")[0] != 0 and run("--draft-length", "3")[0] != 0
