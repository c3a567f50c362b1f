"""What a layer costs in a mode: copies begun ahead, keys and values made again, memory behind CXL."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from roofplan import api
from roofplan.cli import app
from roofplan.hwspecs.device import Fleet
from roofplan.hwspecs.load import with_cxl
from roofplan.simulator import engines
from roofplan.simulator.layer_parts import layer_times
from roofplan.simulator.memory import TensorClass, ledger
from roofplan.simulator.offload import StepCosts, step_time
from roofplan.simulator.overlap import prefetched
from roofplan.simulator.placement import layer_bytes, moved
from roofplan.simulator.planner.frames import families
from roofplan.simulator.planner.question import Goal, Limits, Pins, Question
from roofplan.simulator.planner.search import search
from roofplan.simulator.remake import inputs_share, remakes
from roofplan.simulator.scenario import (
    KV_HOST,
    KV_REMADE,
    KV_STREAMED,
    LAYERS_HOST,
    LAYERS_STREAMED,
    MemoryTier,
    Placement,
    Scenario,
    Sharding,
    Stretch,
)
from roofplan.simulator.steps import decode_step
from roofplan.simulator.workload import zoo
from roofplan.simulator.workload.formats import FORMATS

OPT, LLAMA = zoo.bundled("opt-6.7b"), zoo.bundled("llama-3.1-8b")


def asked(model: str = "opt-6.7b", *stretches: Stretch, batch: int = 32, ahead: int = 1, cxl: str = "") -> Scenario:
    fleet = with_cxl(api.load_fleet("rtx-4090", ram_bytes=512e9)[0], cxl or None)
    scenario = api.make_scenario(zoo.bundled(model), fleet, batch=batch, context=2048, prompt=1024)
    return scenario.but(placement=Placement(stretches, ahead=ahead))


def seconds(scenario: Scenario) -> float:
    calibrations = api.load_calibrations(scenario.fleet)
    return float(step_time(StepCosts(scenario, decode_step(scenario), calibrations)).time.time_s)


# ---- copies begun ahead

layers = st.lists(st.tuples(st.floats(0.001, 1), st.floats(0, 1), st.integers(0, 2)), min_size=1, max_size=30)


@settings(max_examples=100, deadline=None)
@given(layers, st.integers(0, 8))
def test_a_pass_lies_between_its_longer_part_and_both_together(
    each: list[tuple[float, float, int]], ahead: int
) -> None:
    computing, copies = (np.array([layer[i] for layer in each]) for i in (0, 1))
    kinds = np.array([layer[2] for layer in each])
    found = prefetched(computing, copies, kinds, ahead)
    assert max(computing.sum(), copies.sum()) * (1 - 1e-9) <= found <= (computing.sum() + copies.sum()) * (1 + 1e-9)
    assert prefetched(computing, copies, kinds, ahead + 1) <= found * (1 + 1e-9), "more buffers never hurt"
    if ahead == 0:
        assert found == pytest.approx(computing.sum() + copies.sum())


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.floats(0.01, 1), st.floats(0.01, 1))
def test_like_layers_need_one_copy_ahead(count: int, computing: float, copying: float) -> None:
    found = prefetched(np.full(count, computing), np.full(count, copying), np.zeros(count, dtype=int), 1)
    assert found == pytest.approx(count * max(computing, copying))


def test_unlike_layers_gain_by_more() -> None:
    """A long copy among layers that compute much and copy little: one buffer more is not enough to begin it in time."""
    computing, copies = np.tile([1.0, 5.0, 5.0, 5.0], 4), np.tile([12.0, 0.5, 0.5, 0.5], 4)
    kinds = np.tile([0, 1, 1, 1], 4)
    one, four = (prefetched(computing, copies, kinds, ahead) for ahead in (1, 4))
    assert one > 1.2 * computing.sum() and four == pytest.approx(computing.sum(), rel=0.05)


def test_buffers_follow_the_depth() -> None:
    held = [
        float(ledger(asked("opt-6.7b", Stretch(LAYERS_STREAMED, 8), ahead=n)).of(TensorClass.STAGING).max())
        for n in (0, 1, 4)
    ]
    largest = float(layer_bytes(asked(), Sharding()).shell.max())
    assert held == pytest.approx([largest, 2 * largest, 5 * largest])
    waiting, ahead = (seconds(asked("opt-6.7b", Stretch(LAYERS_STREAMED, 8), ahead=n)) for n in (0, 1))
    assert waiting > ahead


# ---- keys and values made again


def test_inputs_are_half_of_keys_and_values_without_grouped_queries() -> None:
    assert all(inputs_share(asked(), block) == pytest.approx(0.5) for block in OPT.blocks)
    assert remakes(asked()) and not remakes(asked("llama-3.1-8b"))
    assert not remakes(asked("deepseek-v2-lite")) and not remakes(asked("mamba-2.8b"))


def test_what_is_copied_halves_and_is_computed_again() -> None:
    scenario = asked()
    costs = StepCosts(scenario, decode_step(scenario), api.load_calibrations(scenario.fleet))
    fetched, remade = (layer_times(costs, mode) for mode in (KV_STREAMED, KV_REMADE))
    assert remade.prefetched.sum() == pytest.approx(fetched.prefetched.sum() / 2)
    past = decode_step(scenario)
    flops = 2.0 * 2 * OPT.hidden**2 * float(past.sequences) * float(np.ravel(past.past_tokens)[0]) * OPT.layers
    rate = 165e12  # of bf16 with fp32 accumulation, as the device file says
    more = float(remade.computing.sum() - fetched.computing.sum())
    assert flops / rate < more < 4 * flops / rate, "products with the weights of K and V over the whole past"
    share = [moved(asked("opt-6.7b", Stretch(mode, OPT.layers))) for mode in (KV_STREAMED, KV_REMADE)]
    assert float(np.max(share[1].host_state)) == pytest.approx(float(np.max(share[0].host_state)) / 2)
    assert share[1].staging > share[0].staging * 0.9, "a layer's keys and values stand beside its inputs"


def plan_of(model: str, fleet: Fleet, **pins: object) -> Question:
    given = Pins(weights=FORMATS["fp16"], kv=zoo.bundled(model).activation, tp=1, **pins)  # type: ignore[arg-type]
    engine = engines.engine("vllm")
    return Question(zoo.bundled(model), fleet, 512, 64, Goal.THROUGHPUT, Limits(), given, engine)


def test_a_slow_link_makes_remaking_pay_and_a_fast_one_does_not() -> None:
    fleet = dataclasses.replace(api.load_fleet("rtx-4090", ram_bytes=512e9, ram_bytes_per_s=2e9)[0])
    link = fleet.host_link
    found = {}
    for rate in (4e9, 400e9):
        slower = dataclasses.replace(
            link, bandwidth_bytes_per_s=dataclasses.replace(link.bandwidth_bytes_per_s, value=rate)
        )
        question = plan_of("opt-6.7b", dataclasses.replace(fleet, host_link=slower), clients=64, chunk=8192)
        best = search(question, api.load_calibrations(question.fleet)).plans[0]
        found[rate] = {t.alternative.mode for t in best.taken}
    assert KV_REMADE in found[4e9] and KV_REMADE not in found[400e9]


# ---- memory behind CXL


def test_memory_behind_cxl_is_as_fast_as_the_slower_of_link_and_module() -> None:
    """As host memory where the link to the device is slower, and its own rate where that is."""
    near = seconds(asked("opt-6.7b", Stretch(LAYERS_STREAMED, 32)))
    fast, slow = (
        seconds(asked("opt-6.7b", Stretch(LAYERS_STREAMED, 32, tier=MemoryTier.CXL), cxl=f"512GB@{rate}GB/s"))
        for rate in (200, 5)
    )
    assert fast == pytest.approx(near) and slow > 2 * near
    scenario = asked("opt-6.7b", Stretch(LAYERS_HOST, 32, tier=MemoryTier.CXL), cxl="512GB@5GB/s", batch=1)
    least = (moved(scenario).cxl_weights + float(np.max(moved(scenario).cxl_state)) / 2) / 5e9
    assert least * 0.9 < seconds(scenario) < 1.5 * least


def test_the_ledger_knows_what_lies_where() -> None:
    scenario = asked("opt-6.7b", Stretch(LAYERS_HOST, 3), Stretch(KV_HOST, 2, tier=MemoryTier.CXL), cxl="64GB")
    memory, whole = ledger(scenario), layer_bytes(scenario, Sharding())
    assert memory.tier_bytes(MemoryTier.CXL) == pytest.approx(2 * float(whole.state[0]))
    assert memory.tier_bytes(MemoryTier.HOST) == pytest.approx(3 * float(whole.shell[0] + whole.state[0]), rel=1e-6)


def test_more_memory_behind_cxl_never_hurts_and_host_memory_is_filled_first() -> None:
    fleet = api.load_fleet("rtx-4090", ram_bytes=8e9)[0]
    goals = []
    for size in (None, "8GB", "64GB"):
        question = plan_of("qwen2.5-14b", with_cxl(fleet, size), clients=4, chunk=8192)
        question = dataclasses.replace(question, pins=question.pins._replace(weights=FORMATS["bf16"]))
        found = search(question, api.load_calibrations(fleet)).plans
        goals.append(found[0].objective if found else np.inf)
        if size == "64GB":
            memory = found[0].memory
            assert memory.tier_bytes(MemoryTier.HOST) > 6e9 and memory.tier_bytes(MemoryTier.CXL) > 0
    assert goals == sorted(goals, reverse=True) and np.isinf(goals[0])


def test_alternatives_double_behind_cxl() -> None:
    fleet = api.load_fleet("rtx-4090", ram_bytes=64e9)[0]
    without, within = (
        [len(f.layout.alternatives) for f in families(plan_of("opt-6.7b", each), api.load_calibrations(each))]
        for each in (fleet, with_cxl(fleet, "64GB"))
    )
    assert sum(within) > sum(without) and len(within) == len(without)


def test_the_command_line_takes_memory_behind_cxl() -> None:
    def run(*words: str) -> tuple[int, str]:
        asked = ["plan", "qwen2.5-14b", "--gpu", "rtx-4090", "--ram", "8GB", "--weights", "bf16", "--no-why", *words]
        result = CliRunner().invoke(app, asked)
        return result.exit_code, result.output + str(result.exception or "")

    code, said = run("--cxl", "64GB@36GB/s", "--clients", "4", "--json")
    answer = json.loads(said)["answer"]
    assert code == 0 and {"cxl"} <= {layer["tier"] for layer in answer["layers"]}
    assert any(limit["name"] == "memory behind CXL" and limit["used"] > 0 for limit in answer["limits"])
    assert "behind CXL" in run("--cxl", "64GB", "--clients", "4")[1]
    for wrong in ("64", "64GB@", "64GB@36GB", "0GB", "many"):
        code, said = run("--cxl", wrong)
        assert code != 0 and "--cxl" in said, wrong
