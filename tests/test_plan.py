"""The planner against brute force that shares no code with its program, and what must hold of every plan."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import random
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from roofplan import api
from roofplan.calibrate.transfer import Calibrations
from roofplan.hwspecs.device import Fleet, Storage
from roofplan.hwspecs.load import load, with_bandwidth
from roofplan.simulator import engines
from roofplan.simulator.generation import generate
from roofplan.simulator.memory import ledger
from roofplan.simulator.planner import bounds, fit
from roofplan.simulator.planner.fit import Offload
from roofplan.simulator.planner.frames import formats
from roofplan.simulator.planner.program import Frame, build
from roofplan.simulator.planner.question import Goal, Limits, Pins, Question
from roofplan.simulator.planner.search import GAP, Found, search
from roofplan.simulator.planner.solve import Outcome, solve
from roofplan.simulator.planner.verdict import Verdict, budget_bytes, verdict
from roofplan.simulator.quality import Part, increase, kv_increase, layer_shares
from roofplan.simulator.scenario import (
    KV_HOST,
    KV_REMADE,
    KV_STREAMED,
    LAYERS_HOST,
    LAYERS_STREAMED,
    ON_DEVICE,
    Extras,
    MemoryTier,
    Mode,
    Numerics,
    Placement,
    Scenario,
    Sharding,
    Stretch,
    stage_layers,
)
from roofplan.simulator.serving import Load, serve
from roofplan.simulator.workload import zoo
from roofplan.simulator.workload.formats import FORMATS, WeightFormat
from roofplan.simulator.workload.hf import parse_config
from roofplan.simulator.workload.model import Model

SEEDS = int(os.environ.get("ROOFPLAN_PLAN_SEEDS", "200"))  # 2000 in the long run
TILES = 0.03
BF16, FP8, INT4 = FORMATS["bf16"], FORMATS["fp8"], FORMATS["int4"]


def tiny(layers: int, hidden: int = 512, vocab: int = 2048, **more: Any) -> Model:
    config = {
        "model_type": "llama", "hidden_size": hidden, "intermediate_size": 4 * hidden, "num_hidden_layers": layers,
        "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": vocab, "max_position_embeddings": 4096,
        "tie_word_embeddings": True, "torch_dtype": "bfloat16", **more,
    }  # fmt: skip
    return parse_config(config, name="tiny", file="tiny")


def fleet_with(free_bytes: float | None = None, ram: float | None = 64e9, gpu: str = "rtx-4090") -> Fleet:
    fleet, _ = api.load_fleet(gpu, ram_bytes=ram)
    return dataclasses.replace(fleet, free_bytes=free_bytes)


def ask(model: Model, fleet: Fleet, **more: Any) -> Question:
    given: dict[str, Any] = {"prompt": 256, "output": 64, "goal": Goal.THROUGHPUT, "limits": Limits(log_ppl=0.05)}
    return Question(model, fleet, engine=engines.engine("vllm"), **{**given, **more})


def plan(question: Question, **more: Any) -> Found:
    return search(question, api.load_calibrations(question.fleet, None, question.engine.name), **more)


# ---- brute force: explicit plans through the simulator and the ledger


def with_formats(model: Model, each: tuple[WeightFormat, ...]) -> Model:
    """Every layer a block of its own, in its format."""
    blocks = tuple(model.blocks[b]._replace(name=f"layer {i}") for i, b in enumerate(model.pattern))
    formats = {(i, routed): f for i, f in enumerate(each) for routed in (False, True)}
    pattern = tuple(range(model.layers))
    return dataclasses.replace(model, blocks=blocks, pattern=pattern, layer_formats=MappingProxyType(formats))


Kept = tuple[Mode, MemoryTier]


def explicit(
    question: Question,
    users: int,
    each: tuple[tuple[WeightFormat, Kept], ...],
    ahead: int,
    calibrations: Calibrations,
    extras: Extras = Extras(),  # noqa: B008 - a value without state
) -> float:
    """The goal of one explicit plan on one device; infinite where it does not fit or breaks a limit."""
    model, limits = question.model, question.limits
    formats = tuple(f for f, _ in each)
    kv = question.pins.kv
    assert kv is not None
    spent = max(0.0, kv_increase(model, kv).usual)
    for layer, f in enumerate(formats):
        spent += max(0.0, increase(model, f).usual) * layer_shares(model, Part.SHELL)[layer]
    if limits.log_ppl is not None and spent > limits.log_ppl + 1e-9:
        return math.inf
    placement = Placement(tuple(Stretch(mode, 1, tier=tier) for _, (mode, tier) in each), ahead=ahead)
    placed = any(mode is not ON_DEVICE for _, (mode, _) in each)
    scenario = Scenario(
        with_formats(model, formats),
        question.fleet,
        users,
        question.context,
        question.prompt,
        Numerics(formats[0], kv),
        Sharding(),
        placement if placed else Placement(),
        question.engine,
        extras,
    )
    memory = ledger(scenario)
    if float(np.max(memory.high_bytes())) > budget_bytes(scenario):
        return math.inf
    if memory.tier_bytes(MemoryTier.HOST) > 0.95 * (question.fleet.host_memory_bytes or 0.0):
        return math.inf
    room = 0.95 * (question.fleet.cxl.capacity_bytes.value if question.fleet.cxl is not None else 0.0)
    if memory.tier_bytes(MemoryTier.CXL) > room:
        return math.inf
    if not placed:
        load = Load(float(users), float(question.prompt), float(question.output))
        served = serve(scenario, load, calibrations)
        pace, first, of_all = (
            float(t.time_s)
            for t in (served.time_per_output_token, served.first_token_service, served.time_per_token_of_all)
        )
        alone = pace
    else:
        made = generate(scenario, question.output, calibrations)
        pace, first, alone = (float(t.time_s) for t in (made.per_token, made.first, made.alone))
        of_all = pace / users
    if limits.pace_s is not None and pace > limits.pace_s:
        return math.inf
    if limits.first_s is not None and first > limits.first_s:
        return math.inf
    return first + question.output * alone if question.goal is Goal.LATENCY else of_all


# The sets of modes some engine runs together, with what stays on the device.
MODES = {
    Offload.NEVER: ((),),
    Offload.LAYERS: ((LAYERS_HOST,), (LAYERS_STREAMED,)),
    Offload.KV: ((KV_HOST,), (KV_HOST, KV_STREAMED, KV_REMADE)),
}


def brute(question: Question, formats: tuple[WeightFormat, ...], users: int) -> float:
    """The least goal of all explicit plans; layers are alike, so their order does not matter."""
    assert question.pins.offload is not None
    calibrations = api.load_calibrations(question.fleet, None, question.engine.name)
    tiers = [MemoryTier.HOST, *([MemoryTier.CXL] if question.fleet.cxl is not None else [])]
    fewer_inputs = question.model.blocks[0].attention.kv_heads > 4  # type: ignore[union-attr]
    given = question.extras
    beside = [given] if given.draft is None else [
        Extras(), *(given._replace(draft_length=n) for n in (1, 2, 3, 4, 5, 6, 8))
    ]  # fmt: skip
    best = math.inf
    for modes in MODES[question.pins.offload]:
        wanted = [m for m in modes if m is not KV_REMADE or fewer_inputs]
        kept = [(ON_DEVICE, MemoryTier.HOST), *itertools.product(wanted, tiers)]
        for chosen in itertools.combinations_with_replacement(itertools.product(formats, kept), question.model.layers):
            # placed layers come first
            ordered = tuple(sorted(chosen, key=lambda a: (a[1][0] is ON_DEVICE, a[1][0].name, a[1][1])))
            copies = any(mode.copies for _, (mode, _) in ordered)
            for ahead, extras in itertools.product((0, 1, 2, 4) if copies else (1,), beside):
                best = min(best, explicit(question, users, ordered, ahead, calibrations, extras))
    return best


def instance(seed: int) -> tuple[Question, tuple[WeightFormat, ...], int]:
    """A small random question on one device: too little memory as often as not, sometimes limits."""
    rng = random.Random(seed)
    offload = rng.choice((Offload.NEVER, Offload.LAYERS, Offload.KV))
    behind_cxl = offload is not Offload.NEVER and rng.random() < 0.3
    layers = 2 if offload is Offload.KV or behind_cxl else rng.choice((2, 3))
    model = tiny(layers, rng.choice((512, 1024, 2048)), num_key_value_heads=rng.choice((4, 8)))
    users = rng.choice((1, 2, 8, 32) if offload is not Offload.KV else (8, 32, 128))
    goal = rng.choice((Goal.THROUGHPUT, Goal.LATENCY)) if users == 1 else Goal.THROUGHPUT
    numerics = Numerics(BF16, fit.precisions(model)[0].kv)
    whole = Scenario(model, fleet_with(), users, 320, 256, numerics, engine=engines.engine("vllm"))
    needs = float(np.max(ledger(whole).high_bytes())) / 0.9
    fleet = fleet_with(needs * rng.uniform(0.9, 1.05), None if offload is Offload.NEVER else 64e9)
    if rng.random() < 0.6:
        fleet = with_bandwidth(fleet, 2e9)  # what the host computes is slow then
    if behind_cxl:
        module = load(Storage, "cxl-cz120")
        rate = dataclasses.replace(module.read_bytes_per_s, value=rng.choice((5e9, 36e9, 100e9)))
        cxl = dataclasses.replace(module, read_bytes_per_s=rate)
        fleet = dataclasses.replace(fleet, host_memory_bytes=needs * rng.uniform(0.02, 0.3), cxl=cxl)
    limits = Limits(
        pace_s=rng.choice((None, None, None, rng.uniform(5e-4, 5e-2))),
        first_s=rng.choice((None, None, None, rng.uniform(1e-3, 1e-1))),
        log_ppl=rng.choice((0.0, 0.0, 0.005, 0.02)),
    )
    pins = Pins(None, numerics.kv, 1, 1, None, users, 8192, offload)
    guessing = offload is Offload.NEVER and rng.random() < 0.5
    extras = Extras(draft=tiny(1, 256), acceptance=rng.uniform(0.3, 1.0)) if guessing else Extras()
    question = ask(model, fleet, goal=goal, limits=limits, pins=pins, extras=extras)
    return question, (BF16, FP8, INT4), users


@pytest.mark.parametrize("seed", range(SEEDS))
def test_the_plan_is_that_of_brute_force(seed: int) -> None:
    question, formats, users = instance(seed)
    truth = brute(question, formats, users)
    found = plan(question)
    if not math.isfinite(truth):
        assert not found.plans
        return
    assert found.plans, "brute force finds a plan"
    best = found.plans[0].objective
    # The program prices all users decoding, the simulator the few less that do while prompts are taken in. A step of
    # fewer tokens is at most as long, but for tiles: with guesses a step has several tokens of each, and is near one.
    tiles = TILES if question.extras.draft is not None and users > 1 else 0.0
    assert best <= truth * (1 + GAP + 1e-3 + found.gap + tiles)
    assert best >= truth * (1 - 1e-9), "no plan is better than the best of all"
    assert found.bound <= truth * (1 + 1e-9 + tiles), "the bound is below every plan"


# ---- what holds of every plan

QUESTIONS = {
    "resident": lambda: ask(zoo.bundled("llama-3.1-8b"), fleet_with(ram=None), prompt=1024, output=256),
    "layouts": lambda: ask(
        zoo.bundled("qwen3-32b"), api.load_fleet("4xl40s")[0], prompt=1024, output=256, limits=Limits(0.05, None, 0.05)
    ),
    "offloaded": lambda: ask(zoo.bundled("qwen2.5-32b"), fleet_with(ram=96e9), prompt=512, output=64, limits=Limits()),
    "experts": lambda: ask(
        zoo.bundled("qwen3-30b-a3b"), fleet_with(12e9, 96e9), goal=Goal.LATENCY, prompt=512, output=64
    ),
}


@pytest.fixture(scope="module")
def answers() -> dict[str, tuple[Question, Found]]:
    return {name: (question(), plan(question())) for name, question in QUESTIONS.items()}


@pytest.mark.parametrize("name", QUESTIONS)
def test_every_plan_is_feasible_in_the_ledger(name: str, answers: dict[str, tuple[Question, Found]]) -> None:
    question, found = answers[name]
    assert found.plans
    for p in found.plans:
        assert verdict(p.scenario, p.memory) is Verdict.SURELY
        if question.limits.pace_s is not None:
            assert float(p.pace.time_s) <= question.limits.pace_s
        if question.limits.log_ppl is not None:
            assert p.log_ppl <= question.limits.log_ppl + 1e-6
        assert sum(t.layers for t in p.taken) == question.model.layers
        assert p.frame.devices <= question.devices


@pytest.mark.parametrize("name", QUESTIONS)
def test_the_bound_is_below_and_near(name: str, answers: dict[str, tuple[Question, Found]]) -> None:
    _, found = answers[name]
    assert found.bound <= found.plans[0].objective * (1 + 1e-9)
    assert found.gap <= 0.02


@pytest.mark.parametrize("name", QUESTIONS)
def test_first_bounds_are_below_the_programs(name: str, answers: dict[str, tuple[Question, Found]]) -> None:
    question, found = answers[name]
    rng = random.Random(name)
    for family in rng.sample(found.families, min(4, len(found.families))):
        below = bounds.first_bounds(question, family)
        for at in rng.sample(range(family.layout.users), min(3, family.layout.users)):
            answer = solve(question, Frame(family, at))
            if answer.outcome is not Outcome.INFEASIBLE:
                assert below[at] <= answer.objective * (1 + 1e-6)


def test_the_relaxation_bounds_the_program(answers: dict[str, tuple[Question, Found]]) -> None:
    import pulp

    question, found = answers["offloaded"]
    program = build(question, found.plans[0].frame)
    program.problem.solve(pulp.HiGHS(msg=False, mip=False))
    relaxed = pulp.value(program.problem.objective)
    program = build(question, found.plans[0].frame)
    program.problem.solve(pulp.HiGHS(msg=False))
    assert relaxed <= pulp.value(program.problem.objective) * (1 + 1e-9)


@pytest.mark.parametrize("name", QUESTIONS)
@pytest.mark.parametrize("more", ["memory", "budget", "host memory", "pace"])
def test_more_never_hurts(name: str, more: str, answers: dict[str, tuple[Question, Found]]) -> None:
    question, found = answers[name]
    fleet, limits = question.fleet, question.limits
    match more:
        case "memory":
            changed = dataclasses.replace(question, more_bytes=2e9)
        case "budget":
            changed = dataclasses.replace(question, limits=limits._replace(log_ppl=None))
        case "host memory":
            changed = dataclasses.replace(
                question, fleet=dataclasses.replace(fleet, host_memory_bytes=(fleet.host_memory_bytes or 32e9) * 2)
            )
        case _:
            changed = dataclasses.replace(question, limits=limits._replace(pace_s=None))
    larger = plan(changed)
    assert larger.plans[0].objective <= found.plans[0].objective * (1 + GAP + found.gap + 1e-3)


def test_a_faster_link_and_a_further_device_never_hurt(answers: dict[str, tuple[Question, Found]]) -> None:
    question, found = answers["offloaded"]
    rate = question.fleet.host_link.bandwidth_bytes_per_s
    link = dataclasses.replace(
        question.fleet.host_link, bandwidth_bytes_per_s=dataclasses.replace(rate, value=rate.value * 2)
    )
    faster = plan(dataclasses.replace(question, fleet=dataclasses.replace(question.fleet, host_link=link)))
    assert faster.plans[0].objective <= found.plans[0].objective * 1.01
    question, found = answers["layouts"]
    more = plan(dataclasses.replace(question, fleet=question.fleet.sized(8)))
    assert more.plans[0].objective <= found.plans[0].objective * (1 + GAP + 1e-3)


def test_alike_layers_may_change_places() -> None:
    model = zoo.bundled("gemma-2-9b") if "gemma-2-9b" in zoo.names() else zoo.bundled("gpt-oss-20b")
    assert len(model.blocks) > 1
    shuffled = list(model.pattern)
    random.Random(1).shuffle(shuffled)
    other = dataclasses.replace(model, pattern=tuple(shuffled))
    fleet = fleet_with(ram=None, gpu="l40s")
    pair = [plan(ask(m, fleet, prompt=512, output=128)).plans[0].objective for m in (model, other)]
    assert pair[0] == pytest.approx(pair[1], rel=1e-6)


@pytest.mark.parametrize("goal", [Goal.LATENCY, Goal.THROUGHPUT])
def test_fits_never_beats_plan(goal: Goal) -> None:
    """`fits` at the plan's own question, one user, priced like a plan."""
    for gpu, name in (("rtx-4090", "llama-3.1-8b"), ("2xl40s", "qwen3-32b")):
        fleet, _ = api.load_fleet(gpu)
        question = ask(zoo.bundled(name), fleet, goal=goal, prompt=1024, output=256, limits=Limits())
        calibrations = api.load_calibrations(fleet)
        scenario = question.scenario()
        chosen = fit.choose(scenario, fit.Wishes(), calibrations).candidate.scenario
        served = serve(chosen, Load(1.0, 1024.0, 256.0), calibrations)
        theirs = float(served.first_token_service.time_s) + 256 * float(served.time_per_output_token.time_s)
        if goal is Goal.THROUGHPUT:
            theirs = float(served.time_per_token_of_all.time_s)
        assert plan(question).plans[0].objective <= theirs * (1 + GAP)


def test_stages_of_a_pipeline_follow_one_another() -> None:
    """Three dense layers come first: no stage but the first can have them, in the program as in the simulator."""
    fleet, _ = api.load_fleet("8xh200")
    question = ask(zoo.bundled("deepseek-v3"), fleet, prompt=4096, output=1024, pins=Pins(pp=4, clients=256))
    found = plan(question)
    assert found.gap < 0.01
    for p in found.plans:
        told = [[sum(t.layers for t in p.taken if (t.stage, t.block) == (s, b)) for b in (0, 1)] for s in range(4)]
        assert told == [list(stage) for stage in stage_layers(question.model, p.scenario.sharding)]
        assert told[0][0] == 3


def test_rows_of_the_program_carry_the_names_of_their_constraints(answers: dict[str, tuple[Question, Found]]) -> None:
    from roofplan.simulator.planner.constraints import CONSTRAINTS

    question, found = answers["offloaded"]
    question = dataclasses.replace(question, limits=Limits(1.0, 100.0, 0.05))
    names = {row.name for row in build(question, found.plans[0].frame).problem.constraints()}
    known = tuple(c.__name__ for c in CONSTRAINTS)
    assert all(name.startswith((*known, "copies_are_used")) for name in names)
    used = {c for c in known if any(name.startswith(c) for name in names)}
    assert set(known) - used <= {
        "every_stage_has_layers", "stages_follow_one_another", "slowest_stage_sets_the_pace", "copies_have_buffers",
        "remade_state_has_room", "cxl_memory",
    }  # fmt: skip
    assert all(c.__doc__ for c in CONSTRAINTS)


def test_whole_numbers_of_8_bits_are_offered_where_floats_are_not_multiplied() -> None:
    model = zoo.bundled("llama-3.1-8b")
    offered = {
        gpu: {f.name for f in formats(ask(model, api.load_fleet(gpu)[0]))[0]} for gpu in ("a100-80gb", "h200", "b200")
    }
    assert "int8" in offered["a100-80gb"] and "int8" not in offered["h200"] | offered["b200"]
    assert "nvfp4" in offered["b200"] and "nvfp4" not in offered["h200"]


def test_streamed_layers_need_their_buffers() -> None:
    question = ask(
        zoo.bundled("qwen2.5-32b"), fleet_with(14e9, 128e9), prompt=512, output=64, limits=Limits(),
        pins=Pins(weights=BF16, clients=64),
    )  # fmt: skip
    streamed = [p for p in plan(question).plans if any(t.alternative.mode is LAYERS_STREAMED for t in p.taken)]
    for p in streamed:
        assert float(np.max(p.memory.high_bytes())) <= question.budget_bytes()


def test_sensitive_layers_stay_wide(tmp_path: Any) -> None:
    from roofplan.simulator.sensitivities import read_sensitivities, told_apart

    model = tiny(6, 4096)
    lines = [f"{layer},shell,{name},{change}" for layer in range(6) for name, change in (
        ("fp8", 0.0), ("int4", 0.05 if layer in (0, 5) else 0.001),
    )]  # fmt: skip
    path = tmp_path / "mine.csv"
    path.write_text("\n".join(["layer,class,format,delta_log_ppl", *lines]))
    read = read_sensitivities(path)
    apart = told_apart(model, read)
    assert len(apart.blocks) == 2 and apart.parameters == model.parameters
    pins = Pins(None, fit.precisions(model)[0].kv, 1, 1, None, 1, 8192, Offload.NEVER)
    question = ask(apart, fleet_with(ram=None), limits=Limits(log_ppl=0.02), pins=pins, sensitivities=read)
    best = plan(question).plans[0]
    narrow = {apart.blocks[t.block].name for t in best.taken if t.alternative.shell is INT4}
    wide = {apart.blocks[t.block].name for t in best.taken if t.alternative.shell is not INT4}
    assert sum(t.layers for t in best.taken if t.alternative.shell is INT4) == 4 and not narrow & wide
    assert best.log_ppl == pytest.approx(4 * 0.001 + max(0.0, kv_increase(model, pins.kv).usual))
