"""FlexGen's published policies against the simulator, and plans for the same questions against the policies."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from roofplan.calibrate import flexgen, store
from roofplan.calibrate.flexgen import Policy, least_seconds, policies, predict, scenario_of
from roofplan.calibrate.transfer import Calibrations
from roofplan.dtypes import DType
from roofplan.hwspecs.load import load_fleet
from roofplan.simulator import engines
from roofplan.simulator.generation import batch_steps, generate
from roofplan.simulator.lowering.decoder import lower
from roofplan.simulator.memory import TensorClass, ledger
from roofplan.simulator.offload import PAGEABLE, StepCosts, drive_bytes, state_drive_bytes, step_time
from roofplan.simulator.placement import moved
from roofplan.simulator.planner.place import HOST_SHARE
from roofplan.simulator.planner.question import Goal, Limits, Pins, Question
from roofplan.simulator.planner.search import Found, Simulated, search
from roofplan.simulator.scenario import KV_HOST, MemoryTier, Phase, Placement, Scenario, Step, Stretch
from roofplan.simulator.workload import zoo
from roofplan.simulator.workload.formats import FORMATS

FLEET = flexgen.fleet()
CALIBRATIONS = Calibrations(FLEET, store.entries(), "flexgen")
GATE = 0.30
by_id = pytest.mark.parametrize("policy", policies(), ids=lambda p: p.id)


def policy(id_: str) -> Policy:
    return next(p for p in policies() if p.id == id_)


# ---- the policies


@by_id
def test_published_throughputs_are_met_within_thirty_percent(policy: Policy) -> None:
    found = predict(policy, CALIBRATIONS)
    assert abs(found.tokens_per_s / policy.tokens_per_s - 1) <= GATE
    assert found.tokens_per_s < found.most_tokens_per_s, "nothing runs above the datasheet rates"


@pytest.mark.parametrize("id_", ["30b-512", "175b-512"])
def test_decoding_alone_is_met_too(id_: str) -> None:
    asked = policy(id_)
    assert abs(predict(asked, CALIBRATIONS).decode_tokens_per_s / asked.decode_tokens_per_s - 1) <= GATE


def test_policies_place_what_they_say() -> None:
    asked = scenario_of(policy("175b-512"))
    away, weights = moved(asked), 2.0 * asked.model.parameters
    assert away.drive_weights == pytest.approx(weights / 2, rel=0.02) and away.host_state == pytest.approx(0.0, abs=1.0)
    per_token = 2 * 2 * asked.model.layers * asked.model.hidden
    assert away.drive_state == pytest.approx(asked.batch * asked.context * per_token)
    on_drive = [e for e in ledger(asked).entries if e.tier is MemoryTier.STORAGE]
    assert {e.tensor_class for e in on_drive} == {TensorClass.WEIGHTS, TensorClass.KV_CACHE}


# ---- what the engine's profile says, one fact at a time


def changed(scenario: Scenario, **facts: object) -> Scenario:
    return scenario.but(engine=dataclasses.replace(scenario.engine, **facts))


def seconds(scenario: Scenario) -> tuple[float, float]:
    made = generate(scenario, 32, CALIBRATIONS)
    return float(made.first.time_s), float(made.decode_step.time_s)


def test_a_block_copies_each_layer_once_for_all_its_prompts() -> None:
    asked = scenario_of(policy("30b-512-4bit"))
    step, times = batch_steps(512, 512, asked.engine)
    assert times == 1 and float(step.tokens) == 512 * 512
    cut, often = batch_steps(512, 512, engines.engine("vllm"))
    assert float(cut.tokens) * often == 512 * 512
    slow = changed(asked, whole_blocks=False, pageable=())
    assert seconds(slow)[0] > seconds(changed(asked, pageable=()))[0], "weights again for every few prompts"


def test_attention_on_the_host_moves_the_cache_as_often_as_said() -> None:
    asked = scenario_of(policy("30b-512"))
    step = Step(Phase.DECODE, 144, 1, np.asarray(528.0))
    one, five = (StepCosts(changed(asked, host_attention_passes=n), step, CALIBRATIONS) for n in (1.0, 5.0))
    assert five.host.seconds[2] == pytest.approx(5 * one.host.seconds[2])
    assert five.host.seconds[:2] == pytest.approx(one.host.seconds[:2])
    extra = float(step_time(five).time.time_s) - float(step_time(one).time.time_s)
    assert 0 < extra <= 4 * one.host.seconds[2].sum() * (1 + 1e-9)


def test_pageable_parts_are_copied_slower() -> None:
    asked = scenario_of(policy("30b-512-4bit"))
    step = Step(Phase.DECODE, 512, 1, np.asarray(528.0))
    pinned, pageable = (StepCosts(changed(asked, pageable=p), step, CALIBRATIONS).link_s_per_byte for p in ((), (2,)))
    assert pageable / pinned == pytest.approx([1.0, 1.0, 1.0 / PAGEABLE])


def test_a_drive_beside_computing_costs_at_most_what_it_costs_behind() -> None:
    asked = scenario_of(policy("175b-512"))
    beside, behind = (seconds(changed(asked, drive_beside=on))[1] for on in (True, False))
    step = Step(Phase.DECODE, 256, 1, np.asarray(528.0))
    read = drive_bytes(asked, step) + state_drive_bytes(asked, step)[0]
    assert FLEET.storage is not None
    drive = read / FLEET.storage.read_bytes_per_s.value
    assert drive <= beside < behind


def test_the_state_on_the_drive_is_written_once_and_read_for_every_token() -> None:
    asked = scenario_of(policy("175b-512"))
    prompts, token = Step(Phase.PREFILL, 256, 512.0, np.zeros(())), Step(Phase.DECODE, 256, 1, np.asarray(512.0))
    read, written = state_drive_bytes(asked, prompts)
    assert read == 0.0
    read_back, one_more = state_drive_bytes(asked, token)
    assert read_back == pytest.approx(written) and one_more == pytest.approx(written / 512)
    half = asked.but(placement=asked.placement._replace(state_on_drive=0.5))
    assert state_drive_bytes(half, token)[0] == pytest.approx(read_back / 2)
    none = asked.but(placement=Placement((Stretch(KV_HOST, 96),)))
    assert state_drive_bytes(none, token) == (0.0, 0.0)


def test_a_power_limit_bounds_what_a_lender_promises() -> None:
    """Large fp16 products on a T4 at the 24 TFLOP/s it sustains, not at a lender's share of its peak."""
    asked = scenario_of(policy("30b-512")).but(placement=Placement())
    step = Step(Phase.PREFILL, 16, 512.0, np.zeros(()))
    run = StepCosts(asked, step, CALIBRATIONS).device.seconds[0].sum()
    reached = 2 * asked.model.active_parameters * float(step.tokens) / run
    assert 0.8 * 24e12 < reached < 24e12 * 1.05
    assert FLEET.device.sustained(DType.BF16) == 24e12, "bf16 runs as fp16 there"
    assert load_fleet("h100-sxm").device.sustained(DType.FP16) is None


# ---- plans for the same questions


def planned(policy: Policy) -> Found:
    pins = Pins() if policy.compressed else Pins(weights=FORMATS["fp16"], kv=DType.FP16)
    limits = Limits(log_ppl=math.log1p(0.03) if policy.compressed else None)
    model, engine = zoo.bundled(policy.model), engines.engine("flexgen")
    question = Question(model, FLEET, policy.prompt, policy.output, Goal.THROUGHPUT, limits, pins, engine)
    return search(question, CALIBRATIONS)


def keeps_host_and_drive(plan: Simulated) -> bool:
    away = moved(plan.scenario)
    held = away.host_weights + float(np.max(away.host_state)) + away.staging
    assert (
        FLEET.host_memory_bytes is not None and FLEET.storage is not None and FLEET.storage.capacity_bytes is not None
    )
    on_drive = away.drive_weights + float(np.max(away.drive_state))
    slack = 1 + 1e-6
    return (
        held <= HOST_SHARE * FLEET.host_memory_bytes * slack and on_drive <= FLEET.storage.capacity_bytes.value * slack
    )


@by_id
def test_the_plan_is_no_worse_than_the_policy_and_below_the_roof(policy: Policy) -> None:
    found = planned(policy)
    best = found.plans[0]
    ours = float(best.of_all.time_s)
    published = float(generate(scenario_of(policy), policy.output, CALIBRATIONS).per_token.time_s) / policy.batch
    assert ours <= published
    assert found.bound <= best.objective and found.gap < 0.02
    block = best.frame.users * policy.output
    assert 1 / ours <= block / least_seconds(best.scenario, policy.output, CALIBRATIONS)
    assert all(keeps_host_and_drive(plan) for plan in found.plans)


@pytest.mark.parametrize("name", ["vllm", "flexgen"])
def test_no_plan_holds_more_than_the_host_has(name: str) -> None:
    """The cache of 1,024 users of OPT-175B is 1.3 TB: it once passed for weights that the drive keeps, for nothing."""
    model = zoo.bundled("opt-175b")
    question = Question(model, FLEET, 512, 32, Goal.THROUGHPUT, Limits(log_ppl=0.03), Pins(), engines.engine(name))
    found = search(question, Calibrations(FLEET, store.entries(), name))
    assert found.plans and all(keeps_host_and_drive(plan) for plan in found.plans)
    assert name == "flexgen" or all(plan.scenario.placement.state_on_drive == 0 for plan in found.plans)


# ---- what its source says of 4 bits and of memory that is not pinned


def test_four_bits_are_widened_for_every_small_batch() -> None:
    """13 bytes move for each number of a layer, for each small batch, and products read what was made of it."""
    asked = scenario_of(policy("175b-512-4bit"))
    step = Step(Phase.DECODE, 144.0, 1, np.asarray(512.0))
    layer = sum(t.rows * t.cols for t in asked.model.tensors if t.block == 0 and min(t.rows, t.cols) > 1)
    rows = [
        (t, t.label.index("widen weights")) for t in lower(asked, step).operators.tables if "widen weights" in t.label
    ]
    moved_bytes = sum(float(np.ravel(t.read_bytes[i] + t.write_bytes[i])[0]) for t, i in rows)
    assert moved_bytes == pytest.approx(3 * 13 * layer, rel=0.01)
    assert not any("widen" in label for label in _labels(scenario_of(policy("175b-512")), step))
    once = asked.but(engine=dataclasses.replace(asked.engine, small_batches=1))
    times = [float(step_time(StepCosts(s, step, CALIBRATIONS)).time.time_s) for s in (once, asked)]
    assert times[0] < times[1]


def _labels(asked: Scenario, step: Step) -> list[str]:
    return [label for table in lower(asked, step).operators.tables for label in table.label]


def test_staging_holds_up_what_would_run_beside() -> None:
    asked = scenario_of(policy("175b-512-4bit"))
    asked = asked.but(engine=dataclasses.replace(asked.engine, pageable=(2,)))  # the cache, as in all its policies
    free = asked.but(engine=dataclasses.replace(asked.engine, staging_blocks=False))
    step = Step(Phase.DECODE, 144.0, 1, np.asarray(512.0))
    held, beside = (float(step_time(StepCosts(s, step, CALIBRATIONS)).time.time_s) for s in (asked, free))
    assert 1.05 * beside < held
    prompts = Step(Phase.PREFILL, 144.0, 512.0, np.zeros(()))
    written = [float(step_time(StepCosts(s, prompts, CALIBRATIONS)).time.time_s) for s in (asked, free)]
    assert written[0] == pytest.approx(written[1]), "threads of its own write the cache of prompts"
