"""Placement: what leaves the device, in bytes and in time, against brute force and against what must always hold."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roofplan.api import load_calibrations, load_model, make_scenario
from roofplan.dtypes import DType
from roofplan.hwspecs.device import Fleet, Host, Kind
from roofplan.hwspecs.load import host_fleet, load, load_fleet, with_drive
from roofplan.simulator import engines
from roofplan.simulator.layer_parts import layer_times
from roofplan.simulator.memory import TensorClass, ledger
from roofplan.simulator.offload import OVERLAP, StepCosts, drive_bytes, step_time
from roofplan.simulator.placement import layer_bytes, moved
from roofplan.simulator.planner import fit
from roofplan.simulator.planner.place import HOST_SHARE, modes_of, place
from roofplan.simulator.planner.verdict import Verdict, verdict
from roofplan.simulator.scenario import (
    EXPERTS_HOST,
    EXPERTS_STREAMED,
    KV_HOST,
    LAYERS_HOST,
    LAYERS_STREAMED,
    MODES,
    MemoryTier,
    Numerics,
    Placement,
    Scenario,
    Sharding,
    Stretch,
    Where,
)
from roofplan.simulator.steps import decode_step
from roofplan.simulator.workload.formats import FORMATS
from roofplan.simulator.workload.hf import parse_config
from roofplan.simulator.workload.routing import popularity

GIB = 2.0**30


def fleet(gpu: str = "rtx-4090", ram: float = 128e9) -> Fleet:
    return load_fleet(gpu, host_memory_bytes=ram)


def asked(model: str = "llama-3.1-70b", gpu: str = "rtx-4090", ram: float = 128e9, **changes: object) -> Scenario:
    numerics = Numerics(FORMATS["int4"], DType.BF16)
    return make_scenario(load_model(model), fleet(gpu, ram), context=2048, numerics=numerics).but(**changes)


def placed(scenario: Scenario) -> Scenario:
    found = place(scenario, load_calibrations(scenario.fleet)).scenario
    assert found is not None
    return found


# ---- bytes


@pytest.mark.parametrize("mode", MODES, ids=lambda m: m.name)
@pytest.mark.parametrize("model", ["llama-3.1-70b", "mixtral-8x7b", "deepseek-v3"])
def test_what_leaves_the_device_arrives_elsewhere(model: str, mode: object) -> None:
    whole = asked(model)
    layers = whole.model.layers
    away = whole.but(placement=Placement((Stretch(mode, layers // 2),)))  # type: ignore[arg-type]
    before, after, gone = ledger(whole), ledger(away), moved(away)
    freed = float(np.max(before.of(TensorClass.WEIGHTS) - after.of(TensorClass.WEIGHTS)))
    assert freed == pytest.approx(gone.weights) and gone.weights == pytest.approx(gone.host_weights)
    state = float(np.max(before.of(TensorClass.KV_CACHE) - after.of(TensorClass.KV_CACHE)))
    assert state == pytest.approx(float(np.max(gone.state))) == pytest.approx(float(np.max(gone.host_state)))
    held = after.tier_bytes(MemoryTier.HOST)
    assert held == pytest.approx(gone.host_weights + float(np.max(gone.host_state)) + gone.staging)
    assert (gone.staging > 0) == (Where.STREAMED in (mode.shell, mode.kv))  # type: ignore[attr-defined]


def test_layers_are_all_of_the_weights_but_the_outer_ones() -> None:
    scenario = asked("mixtral-8x7b")
    own = layer_bytes(scenario, Sharding())
    outer = sum(
        scenario.model.layer_bytes(t, scenario.numerics.weights) for t in scenario.model.tensors if t.block is None
    )
    assert own.shell.sum() + own.experts.sum() + outer == pytest.approx(
        scenario.model.weight_bytes(scenario.numerics.weights)
    )


def test_a_cached_share_of_experts_stays() -> None:
    def gone(cached: float) -> float:
        stretch = Stretch(EXPERTS_STREAMED, 32, cached)
        return moved(asked("mixtral-8x7b").but(placement=Placement((stretch,)))).weights

    assert gone(0.75) == pytest.approx(gone(0.0) / 4)


def test_weights_beyond_host_memory_are_read_from_the_drive() -> None:
    scenario = asked(ram=16e9).but(fleet=with_drive(fleet(ram=16e9), "7GB/s"))
    found = placed(scenario)
    share = found.placement.storage_share
    assert 0 < share < 1
    assert ledger(found).tier_bytes(MemoryTier.HOST) <= HOST_SHARE * 16e9 * 1.001
    assert drive_bytes(found, decode_step(found)) == pytest.approx(
        share * (moved(found).host_weights + moved(found).drive_weights), rel=1e-6
    )
    assert place(asked(ram=16e9), load_calibrations(fleet(ram=16e9))).scenario is None, (
        "without a drive there is no room"
    )


# ---- time


def test_nothing_placed_is_the_plain_step() -> None:
    scenario = asked("llama-3.1-8b")
    calibrations = load_calibrations(scenario.fleet)
    from roofplan.simulator.inference import decode
    from roofplan.simulator.schedule import COMPOSITION_LOG_SD

    plain = decode(scenario, calibrations)
    here = step_time(StepCosts(scenario, decode_step(scenario), calibrations)).time.displaced(COMPOSITION_LOG_SD)
    assert float(here.time_s) == pytest.approx(float(plain.time_s), rel=1e-9)
    assert float(here.high_s) == pytest.approx(float(plain.high_s), rel=1e-6)


def test_layers_on_the_host_take_what_its_memory_gives() -> None:
    """All layers on the host: at least their bytes over its bandwidth, and less than three times that."""
    scenario = asked()
    away = scenario.but(placement=Placement((Stretch(LAYERS_HOST, 80),)))
    seconds = float(step_time(StepCosts(away, decode_step(away), load_calibrations(away.fleet))).time.time_s)
    least = moved(away).host_weights / host_fleet(away.fleet).device.bandwidth_bytes_per_s.value
    assert least < seconds < 3 * least


def test_streamed_layers_take_what_the_link_gives() -> None:
    scenario = asked()
    away = scenario.but(placement=Placement((Stretch(LAYERS_STREAMED, 80),)))
    seconds = float(step_time(StepCosts(away, decode_step(away), load_calibrations(away.fleet))).time.time_s)
    least = moved(away).host_weights / away.fleet.host_link.bandwidth_bytes_per_s.value
    assert least < seconds < 1.6 * least


def test_copies_hide_behind_computing_and_the_other_way_round() -> None:
    costs = StepCosts(asked(), decode_step(asked()), load_calibrations(fleet()))
    times = layer_times(costs, LAYERS_STREAMED)
    serial = times.computing.sum() + times.prefetched.sum()
    longest = max(times.computing.sum(), times.prefetched.sum())
    together = (times.computing.sum() ** OVERLAP + times.prefetched.sum() ** OVERLAP) ** (1 / OVERLAP)
    assert longest < together < serial


def test_two_sockets_count_once_unless_each_has_its_copy() -> None:
    host = load(Host, "xeon-sapphire-rapids")
    two = load_fleet("rtx-4090", host="xeon-sapphire-rapids")
    assert host.sockets is not None and host.sockets.value == 2
    one, both = (host_fleet(two, copies).device.bandwidth_bytes_per_s.value for copies in (False, True))
    assert both == 2 * one == host.memory_bandwidth_bytes_per_s.value
    assert host_fleet(fleet()).device.bandwidth_bytes_per_s.kind is Kind.ASSUMED


@settings(max_examples=60, deadline=None)
@given(st.floats(0, 1), st.integers(1, 64), st.integers(2, 256), st.booleans())
def test_a_larger_cache_misses_less(share: float, tokens: int, experts: int, skewed: bool) -> None:
    top_k = max(1, experts // 8)
    chosen = popularity(float(tokens), experts, top_k, skewed)
    assert np.all(np.diff(chosen) >= -1e-12) and np.all((chosen >= 0) & (chosen <= 1))
    cold = round(experts * (1 - share))
    missed = chosen[:cold].sum()
    assert missed <= chosen.sum() * (cold / experts) * (1 + 1e-9), "the most popular ones are worth caching most"
    if not skewed:
        assert chosen.sum() == pytest.approx(experts * (1 - (1 - top_k / experts) ** tokens), rel=1e-6)


# ---- the choice


def small() -> Scenario:
    """A model of six layers, the first dense, that does not fit its device."""
    config = {
        "model_type": "deepseek_v3",
        "hidden_size": 4096,
        "intermediate_size": 8192,
        "num_hidden_layers": 6,
        "num_attention_heads": 32,
        "vocab_size": 1000,
        "q_lora_rank": 512,
        "kv_lora_rank": 256,
        "first_k_dense_replace": 2,
        "n_routed_experts": 64,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 8192,
        "n_shared_experts": 1,
    }
    model = parse_config(config, name="small", file="small")
    return make_scenario(model, fleet(ram=400e9), context=4096, numerics=Numerics(FORMATS["bf16"], DType.BF16))


def test_brute_force_finds_nothing_faster() -> None:
    """Every pair of modes at every pair of lengths, priced by the step itself and judged by the ledger alone."""
    scenario = small()
    calibrations = load_calibrations(scenario.fleet)
    found = placed(scenario)
    best = float(step_time(StepCosts(found, decode_step(found), calibrations)).time.time_s)
    fastest = np.inf
    for a, b in itertools.permutations(modes_of(scenario, MODES), 2):
        for first, second in itertools.product(range(7), range(7)):
            if first + second > 6:
                continue
            stretches = tuple(s for s in (Stretch(a, first), Stretch(b, second)) if s.layers)
            option = scenario.but(placement=Placement(stretches))
            if verdict(option) is Verdict.SURELY:
                costs = StepCosts(option, decode_step(option), calibrations)
                fastest = min(fastest, float(step_time(costs).time.time_s))
    assert best <= fastest * (1 + 1e-6)


@pytest.mark.parametrize("model", ["llama-3.1-70b", "mixtral-8x7b", "qwen3-235b-a22b"])
def test_more_memory_is_never_slower(model: str) -> None:
    seconds = []
    for gib in (8, 12, 16, 24, 32):
        grown = dataclasses.replace(fleet(ram=512e9), free_bytes=gib * GIB)
        scenario = asked(model).but(fleet=dataclasses.replace(grown))
        found = place(scenario, load_calibrations(grown)).scenario
        calibrations = load_calibrations(grown)
        seconds.append(
            np.inf
            if found is None
            else float(step_time(StepCosts(found, decode_step(found), calibrations)).time.time_s)
        )
    assert all(later <= earlier * (1 + 1e-9) for earlier, later in itertools.pairwise(seconds))


def test_what_fits_is_not_moved_and_what_cannot_be_is_not() -> None:
    calibrations = load_calibrations(fleet())
    assert not fit.choose(asked("llama-3.1-8b"), fit.Wishes(), calibrations).candidate.scenario.placement.stretches
    never = fit.Wishes(offload=fit.Offload.NEVER)
    assert fit.choose(asked(), never, calibrations).candidate.verdict is Verdict.NO
    only = fit.choose(asked("mixtral-8x7b", ram=256e9), fit.Wishes(offload=fit.Offload.EXPERTS), calibrations)
    assert {s.mode for s in only.candidate.scenario.placement.stretches} <= {EXPERTS_HOST, EXPERTS_STREAMED}


def test_memory_that_is_shared_offloads_nothing() -> None:
    scenario = asked(gpu="dgx-spark").but(fleet=load_fleet("dgx-spark", host_memory_bytes=1e12))
    assert place(scenario, load_calibrations(scenario.fleet)).scenario is None


@pytest.mark.parametrize("name", ["llama.cpp", "ktransformers", "flexgen"])
def test_an_engine_is_asked_for_no_more_than_it_can(name: str) -> None:
    scenario = asked("mixtral-8x7b", ram=256e9).but(engine=engines.engine(name))
    wishes = fit.Wishes(weights=FORMATS["bf16"])
    chosen = fit.choose(scenario, wishes, load_calibrations(scenario.fleet, engine=name)).candidate
    used = {s.mode for s in chosen.scenario.placement.stretches}
    assert used and used <= set(scenario.engine.offloads)


def test_keys_far_from_the_device_are_an_option_of_long_contexts() -> None:
    long = asked("llama-3.1-8b").but(batch=16, context=32768, prompt=1024)
    found = place(long, load_calibrations(long.fleet), (KV_HOST,)).scenario
    assert found is not None and moved(found).host_weights == 0 and float(np.max(moved(found).host_state)) > 0
