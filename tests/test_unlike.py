"""Pipelines over unlike devices: against brute force, against what like devices get, against what must always hold."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roofplan.api import load_calibrations
from roofplan.dtypes import DType
from roofplan.errors import InputError, UnknownNameError
from roofplan.hwspecs.device import Fact, Kind, Link, Storage
from roofplan.hwspecs.load import load
from roofplan.simulator import engines
from roofplan.simulator.inference import decode
from roofplan.simulator.planner.nodes import MOST_PLACES, Node, link_of, parse_nodes
from roofplan.simulator.planner.place import HOST_SHARE
from roofplan.simulator.planner.question import Goal, Limits, Pins, Question
from roofplan.simulator.planner.solve import RELATIVE_GAP, Outcome
from roofplan.simulator.planner.unlike import GAP, FoundUnlike, _frames, look_at_unlike, plan_unlike
from roofplan.simulator.planner.unlike_bounds import least
from roofplan.simulator.planner.unlike_program import On, UnlikeFrame, UnlikeSolved, Wanted, solve_unlike
from roofplan.simulator.planner.unlike_simulated import UnlikePlan, simulate_unlike
from roofplan.simulator.workload import zoo
from roofplan.simulator.workload.formats import FORMATS, weight_format
from roofplan.simulator.workload.hf import parse_config
from roofplan.simulator.workload.model import Model

GIB = 2.0**30
SLACK = GAP + RELATIVE_GAP + 1e-9  # what the search and its solver leave unproved


def tiny(**changes: object) -> Model:
    """Four layers of about 0.4 GiB in 16 bits, a small vocabulary."""
    config = {
        "model_type": "llama",
        "hidden_size": 4096,
        "num_hidden_layers": 4,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14336,
        "vocab_size": 32000,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }
    return parse_config(config | changes, name="tiny", file="tiny")


def sparse() -> Model:
    """One dense layer, then three of experts: two kinds of block."""
    config = {
        "model_type": "deepseek_v3",
        "hidden_size": 2048,
        "num_hidden_layers": 4,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "q_lora_rank": 512,
        "kv_lora_rank": 256,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "intermediate_size": 8192,
        "moe_intermediate_size": 2048,
        "n_routed_experts": 32,
        "num_experts_per_tok": 4,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
        "vocab_size": 32000,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }
    return parse_config(config, name="sparse", file="sparse")


def with_free(nodes: tuple[Node, ...], *gib: float) -> tuple[Node, ...]:
    """The nodes with that much free memory on the devices of their groups, in order."""
    left = iter(gib)
    return tuple(
        dataclasses.replace(
            node, fleets=tuple(dataclasses.replace(f, free_bytes=next(left) * GIB) for f in node.fleets)
        )
        for node in nodes
    )


def asked(
    nodes: tuple[Node, ...],
    model: Model | str = "llama-3.1-8b",
    goal: Goal = Goal.LATENCY,
    engine: str = "llama.cpp",
    weights: str | None = "bf16",
    limits: Limits = Limits(),  # noqa: B008 - a value without state
    clients: int | None = None,
    output: int = 128,
) -> Question:
    model = zoo.bundled(model) if isinstance(model, str) else model
    fleet = next((node.fleets[0] for node in nodes if node.fleets), None) or nodes[0].fleet_of_host()
    pins = Pins(weights=None if weights is None else weight_format(weights), kv=DType.BF16, clients=clients)
    return Question(model, fleet, 256, output, goal, limits, pins, engines.engine(engine))


def planned(nodes: tuple[Node, ...], wanted: Wanted = Wanted(), **question: object) -> FoundUnlike:  # noqa: B008
    q = asked(nodes, **question)  # type: ignore[arg-type]
    return plan_unlike(q, nodes, load_calibrations(q.fleet, engine=q.engine.name), wanted)


def goal_of(found: FoundUnlike) -> float:
    return found.plans[0].objective if found.plans else float("inf")


def only_frame(q: Question, nodes: tuple[Node, ...]) -> UnlikeFrame:
    (frame,) = _frames(q, nodes, load_calibrations(q.fleet, engine=q.engine.name), Wanted())
    return frame


# ---- brute force


def assignments(frame: UnlikeFrame) -> Iterator[tuple[tuple[int, int], ...]]:
    """Every way to give layers places in order, each with an index into its place's alternatives."""
    layers = frame.question.model.layers
    for places in itertools.combinations_with_replacement(range(len(frame.places)), layers):
        choices = [range(len(frame.costs[p].alternatives)) for p in places]
        for alternatives in itertools.product(*choices):
            yield tuple(zip(places, alternatives, strict=True))


def by_hand(frame: UnlikeFrame, chosen: tuple[tuple[int, int], ...]) -> UnlikePlan:
    """The assignment, simulated; hosts read from their drives what they have no memory for."""
    pattern = frame.question.model.pattern
    counts: dict[tuple[int, int, int], int] = {}
    for (p, a), b in zip(chosen, pattern, strict=True):
        counts[p, b, a] = counts.get((p, b, a), 0) + 1
    taken = tuple(On(p, b, frame.costs[p].alternatives[a], n) for (p, b, a), n in counts.items())
    drives = []
    for i, node in enumerate(frame.nodes):
        held = weights = 0.0
        used = sorted({p for p, _ in chosen})
        for p in (p for p in used if frame.places[p].node == i):
            c = frame.costs[p]
            mine = [(b, a, n) for (q, b, a), n in counts.items() if q == p]
            held += sum(n * c.host_bytes[a, b] for b, a, n in mine)
            weights += sum(n * c.host_weights[a, b] for b, a, n in mine)
            if frame.places[p].on_host:
                held += c.fixed.here + c.fixed.first * (p == used[0]) + c.fixed.last * (p == used[-1])
        over = max(0.0, held - HOST_SHARE * node.memory_bytes())
        drives.append(0.0 if node.storage is None or not over else over if node.reads_ahead else weights)
    return simulate_unlike(frame, UnlikeSolved(Outcome.OPTIMAL, 1.0, 1.0, taken, tuple(drives)))


def holds(plan: UnlikePlan) -> bool:
    """Whether every place's ledger stays within what it may take."""
    return all(part.high_bytes <= part.budget_bytes * (1 + 1e-9) for part in plan.parts)


CASES = {
    "three cards, none holds all": (with_free(parse_nodes("rtx-3090,rtx-4090,rtx-3060"), 2.6, 2.2, 2.9), tiny()),
    "a card and its host": (with_free(parse_nodes("rtx-3090@desktop-ddr5"), 2.6), tiny()),
    "two machines": (with_free(parse_nodes("rtx-3090@desktop-ddr5; rtx-4090", network="wifi-5"), 2.0, 2.2), tiny()),
    "experts on the host": (with_free(parse_nodes("rtx-3090@desktop-ddr5"), 3.2), sparse()),
    "two kinds of block": (with_free(parse_nodes("rtx-3060,rtx-4090,rtx-3090"), 3.6, 2.9, 3.6), sparse()),
}


@pytest.mark.parametrize("name", CASES)
def test_brute_force_finds_nothing_faster(name: str) -> None:
    nodes, model = CASES[name]
    frame = only_frame(asked(nodes, model), nodes)
    plans = [by_hand(frame, chosen) for chosen in assignments(frame)]
    possible = [p.objective for p in plans if holds(p)]
    assert 0 < len(possible) < len(plans), "memory must decide something"
    found = planned(nodes, model=model)
    assert goal_of(found) == pytest.approx(min(possible), rel=SLACK)
    assert found.bound <= min(possible) * (1 + 1e-9)


@pytest.mark.parametrize("reads_ahead", [True, False])
def test_brute_force_over_a_drive_finds_nothing_faster(reads_ahead: bool) -> None:
    nodes = with_free(parse_nodes("rtx-3090@desktop-ddr5/0.9GiB"), 2.0)
    nodes = tuple(dataclasses.replace(node, reads_ahead=reads_ahead) for node in nodes)
    frame = only_frame(asked(nodes, tiny()), nodes)
    plans = [by_hand(frame, chosen) for chosen in assignments(frame)]
    best = min((p for p in plans if holds(p)), key=lambda p: p.objective)
    assert best.drive_bytes[0] > 0
    found = planned(nodes, model=tiny())
    assert found.plans[0].objective == pytest.approx(best.objective, rel=SLACK)


@pytest.mark.parametrize("users", [2, 6])
def test_brute_force_finds_no_more_tokens(users: int) -> None:
    nodes = with_free(parse_nodes("rtx-3060,rtx-4090,rtx-3090"), 2.6, 2.4, 2.9)
    q = asked(nodes, tiny(), Goal.THROUGHPUT, clients=users)
    frames = list(_frames(q, nodes, load_calibrations(q.fleet, engine="llama.cpp"), Wanted()))
    assert len(frames) > 1
    plans = [by_hand(frame, chosen) for frame in frames for chosen in assignments(frame)]
    best = min(p.objective for p in plans if holds(p))
    found = plan_unlike(q, nodes, load_calibrations(q.fleet, engine="llama.cpp"))
    assert goal_of(found) == pytest.approx(best, rel=SLACK)
    assert float(found.plans[0].of_all.time_s) == pytest.approx(goal_of(found))


# ---- what must always hold

TEXTS = {
    "unlike cards": "4xrtx-3090,1xrtx-4090",
    "cards and a host": "rtx-3060,rtx-3070@desktop-ddr4",
    "machines": "rtx-3090@desktop-ddr5; m1-max-64gb; cpu@mate-40-pro",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize(
    ("model", "weights"), [("llama-3.1-70b", "Q4_K_M"), ("gemma-3-27b", "Q4_K_M"), ("qwen3-30b-a3b", "Q8_0")]
)
def test_every_plan_is_whole_and_in_its_ledgers(text: str, model: str, weights: str) -> None:
    nodes = parse_nodes(text, network="wifi-6")
    found = planned(nodes, model=model, weights=weights)
    assert found.plans or (model, text) == ("llama-3.1-70b", TEXTS["cards and a host"]), "64 GB and 20 GB hold 43 GB"
    for plan in found.plans:
        assert sum(part.layers for part in plan.parts) == zoo.bundled(model).layers
        starts = [part.start for part in plan.parts]
        assert starts == sorted(starts) and starts[0] == 0
        assert all(a.start + a.layers == b.start for a, b in itertools.pairwise(plan.parts))
        assert holds(plan)
        assert plan.objective == pytest.approx(plan.program, rel=1e-6), "the program is exact but for drives of experts"
        assert sum(plan.spent) == pytest.approx(float(plan.pace.time_s))
        assert found.bound <= plan.objective


def test_one_device_takes_what_inference_says() -> None:
    nodes = parse_nodes("rtx-4090")
    q = asked(nodes)
    scenario = q.scenario(numerics=q.scenario().numerics._replace(kv=DType.BF16), context=256 + 128 // 2 + 1)
    plan = planned(nodes).plans[0]
    alone = decode(scenario, load_calibrations(q.fleet, engine="llama.cpp"))
    assert float(plan.pace.time_s) == pytest.approx(float(alone.time_s), rel=1e-9)
    assert float(plan.pace.low_s) == pytest.approx(float(alone.low_s), rel=1e-6)


@settings(max_examples=12)
@given(free=st.floats(2.2, 4.0), more=st.floats(0.0, 4.0), which=st.integers(0, 1))
def test_more_memory_never_hurts(free: float, more: float, which: int) -> None:
    nodes = parse_nodes("rtx-3060,rtx-4090@desktop-ddr4")
    sizes = [free, free]
    less = planned(with_free(nodes, *sizes), model=tiny())
    sizes[which] += more
    assert goal_of(planned(with_free(nodes, *sizes), model=tiny())) <= goal_of(less) * (1 + SLACK)


@pytest.mark.parametrize(
    ("slow", "fast"), [("wifi-5", "wifi-6"), ("ethernet-1g", "ethernet-10g"), ("wifi-5", "ethernet-1g")]
)
def test_a_faster_network_never_hurts(slow: str, fast: str) -> None:
    text = "rtx-3090@desktop-ddr5; m1-max-64gb"
    slowly, quickly = (
        planned(parse_nodes(text, network=n), model="llama-3.1-70b", weights="Q4_K_M") for n in (slow, fast)
    )
    assert goal_of(quickly) < goal_of(slowly)


@pytest.mark.parametrize(("slow", "fast"), [("pcie4x1", "pcie4x8"), ("pcie4x8", "pcie5x16")])
def test_a_faster_link_never_hurts(slow: str, fast: str) -> None:
    slowly, quickly = (planned(parse_nodes("4xrtx-3060,1xrtx-4090", link=n), model="qwen3-14b") for n in (slow, fast))
    assert goal_of(quickly) < goal_of(slowly)


@pytest.mark.parametrize("goal", [Goal.LATENCY, Goal.THROUGHPUT])
@pytest.mark.parametrize("added", ["rtx-4090", "rtx-3060"])
def test_one_more_device_never_hurts(goal: Goal, added: str) -> None:
    few, more = (
        parse_nodes(text, link="pcie4x8")
        for text in ("rtx-3060,rtx-4070@desktop-ddr4", f"rtx-3060,rtx-4070,{added}@desktop-ddr4")
    )
    clients = None if goal is Goal.LATENCY else 8
    less, best = (goal_of(planned(n, goal=goal, clients=clients)) for n in (few, more))
    assert best <= less * (1 + SLACK)


@pytest.mark.parametrize("goal", [Goal.LATENCY, Goal.THROUGHPUT])
def test_first_bounds_lie_below_what_programs_prove(goal: Goal) -> None:
    nodes = parse_nodes("rtx-3060,rtx-4070@desktop-ddr4")
    q = asked(nodes, goal=goal, clients=None if goal is Goal.LATENCY else 8)
    for frame in _frames(q, nodes, load_calibrations(q.fleet, engine="llama.cpp"), Wanted()):
        assert least(frame) <= solve_unlike(frame).objective


def test_a_weak_device_is_left_out_unless_it_has_to_take_part() -> None:
    nodes = parse_nodes("rtx-4090@desktop-ddr5; cpu@mate-40-pro", network="wifi-5")
    free, forced = (planned(nodes, w, weights="Q4_K_M") for w in (Wanted(), Wanted(every_node=True)))
    assert [p.place.node for p in free.plans[0].parts] == [0]
    assert {p.place.node for p in forced.plans[0].parts} == {0, 1}
    assert goal_of(free) < goal_of(forced)
    stated = planned(nodes, Wanted(layers=(30, 2)), weights="Q4_K_M").plans[0]
    assert sum(p.layers for p in stated.parts if p.place.node == 1) == 2


def test_the_pace_of_many_is_set_by_the_slowest_place() -> None:
    nodes = with_free(parse_nodes("rtx-3060,rtx-4060-ti-16gb"), 11.0, 14.0)
    q = asked(nodes, goal=Goal.THROUGHPUT, clients=16)
    queued = []
    for frame in _frames(q, nodes, load_calibrations(q.fleet, engine="llama.cpp"), Wanted()):
        plan, _ = look_at_unlike(frame, np.inf)
        assert plan is not None and len(plan.parts) == 2
        slowest = frame.load.micro_batches * max(float(p.decode.time_s) for p in plan.parts)
        through = sum(float(p.decode.time_s) for p in plan.parts) + plan.spent.handovers
        assert float(plan.pace.time_s) == pytest.approx(max(through, slowest), rel=1e-9)
        queued.append(slowest > through)
    assert queued == [False, True]


def test_experts_go_to_the_host_where_cards_are_small() -> None:
    nodes = parse_nodes("rtx-3060,rtx-4090@desktop-ddr5/128GiB")
    plan = planned(nodes, model="qwen3-235b-a22b", weights="Q3_K_M").plans[0]
    modes = {a.mode.name for part in plan.parts for a in part.alternatives}
    assert "experts on the host" in modes and plan.spent.hosts > 0


def test_like_devices_may_share_layers() -> None:
    nodes = parse_nodes("4xrtx-3090,1xrtx-4090", link="pcie4x16")
    plan = planned(nodes, engine="vllm", goal=Goal.THROUGHPUT, clients=32).plans
    assert plan and all(holds(p) for p in plan)
    assert {p.place.tp for each in plan for p in each.parts} - {1}, "groups were looked at"
    alone = {p.place.tp for p in planned(nodes, weights="Q8_0").plans[0].parts}
    assert alone == {1}, "llama.cpp cuts no layer"


def test_limits_hold() -> None:
    nodes = parse_nodes("4xrtx-3060", link="pcie4x8")
    three = planned(nodes, limits=Limits(devices=3), weights="Q8_0").plans[0]
    assert sum(p.place.devices for p in three.parts) <= 3
    pace = float(three.pace.time_s)
    assert not planned(nodes, limits=Limits(pace_s=pace / 10), weights="Q8_0").plans
    faithful = planned(nodes, weights=None, limits=Limits(log_ppl=0.01)).plans[0]
    assert faithful.log_ppl <= 0.01 + 1e-9
    smaller = planned(nodes, weights=None).plans[0]
    assert smaller.objective <= faithful.objective and smaller.log_ppl >= faithful.log_ppl
    watts = nodes[0].fleets[0].device.power_w
    assert watts is not None
    two = planned(nodes, weights="Q4_K_M", limits=Limits(power_w=2 * watts.value)).plans[0]
    assert sum(p.place.devices for p in two.parts) <= 2


def test_a_drive_that_reads_ahead_is_never_slower() -> None:
    nodes = parse_nodes("rtx-3060@desktop-ddr4/8GiB")
    mapped = tuple(dataclasses.replace(node, reads_ahead=False) for node in nodes)
    ahead, waiting = (planned(n, model="qwen3-32b", weights="Q4_K_M").plans[0] for n in (nodes, mapped))
    assert 0 < ahead.drive_bytes[0] < waiting.drive_bytes[0]
    assert ahead.objective < waiting.objective and waiting.spent.deciding == "drives"
    slow = load(Storage, "hdd")
    assert (
        goal_of(
            planned(tuple(dataclasses.replace(n, storage=slow) for n in nodes), model="qwen3-32b", weights="Q4_K_M")
        )
        > ahead.objective
    )


# ---- what is typed


def test_nodes_are_read_as_written() -> None:
    (node,) = parse_nodes("4xrtx-3090,1xrtx-4090", link="pcie4x8")
    assert [(f.device.key, f.count) for f in node.fleets] == [("rtx-3090", 4), ("rtx-4090", 1)]
    assert node.link.key == "pcie4-x8" and {f.host_link.key for f in node.fleets} == {"pcie4-x8"}
    assert not node.computes and node.devices == 5
    home = parse_nodes("rtx-4090@desktop-ddr5/64GiB; m1-max-64gb; cpu@mate-40-pro", network="wifi6")
    assert [n.memory_bytes() for n in home] == [64 * GIB, 0.0, 8e9]
    assert [n.computes for n in home] == [True, False, True]
    assert {n.network.key for n in home} == {"wifi-6"} and home[0].storage is not None
    assert parse_nodes("rtx-4090", host="desktop-ddr4", ram_bytes=1e10)[0].memory_bytes() == 1e10


@pytest.mark.parametrize(
    ("text", "words", "said"),
    [
        ("4xrtx-309", {}, "rtx-3090"),
        ("0xrtx-3090", {}, "at least 1"),
        ("", {}, "names no devices"),
        ("rtx-3090,,rtx-4090", {}, "between its commas"),
        ("rtx-3090;", {}, "names no devices"),
        ("rtx-3090", {"link": "pcie9x8"}, "pcie"),
        ("rtx-3090", {"network": "wifi-55"}, "wifi-5"),
        ("rtx-3090@desktop-ddr9", {}, "desktop-ddr5"),
        ("rtx-3090@desktop-ddr5/lots", {}, "--gpus"),
        ("cpu", {}, "needs a host"),
        ("8xrtx-3090,8xrtx-4090,rtx-3060", {}, str(MOST_PLACES)),
    ],
)
def test_bad_nodes_are_refused_in_one_line(text: str, words: dict[str, str], said: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_nodes(text, **words)
    assert said in caught.value.line() and "\n" not in caught.value.line()


def test_names_that_nobody_knows_come_with_near_ones() -> None:
    with pytest.raises(UnknownNameError, match="rtx-4090"):
        parse_nodes("rtx-4009")
    assert link_of("PCIE4X8").key == link_of("pcie4-x8").key == "pcie4-x8"


def test_what_is_not_planned_is_refused() -> None:
    nodes = parse_nodes("rtx-3090,rtx-4090")
    q = asked(nodes)
    calibrations = load_calibrations(q.fleet)
    for refused, said in (
        (dataclasses.replace(q, goal=Goal.COST, price_per_hour=1.0), "--goal"),
        (dataclasses.replace(q, pins=q.pins._replace(pp=2)), "--pp"),
        (dataclasses.replace(q, limits=Limits(money_per_hour=1.0), price_per_hour=1.0), "--max-cost"),
    ):
        with pytest.raises(InputError, match=said):
            plan_unlike(refused, nodes, calibrations)
    with pytest.raises(InputError, match="32 layers"):
        plan_unlike(q, nodes, calibrations, Wanted(layers=(3,)))
    host = parse_nodes("cpu@desktop-ddr5")
    with pytest.raises(InputError, match="computes no layers on a host"):
        plan_unlike(asked(host, engine="vllm"), host, calibrations)


def test_nothing_is_planned_where_nothing_fits() -> None:
    found = planned(parse_nodes("rtx-3060,rtx-3070"), model="llama-3.1-70b", weights="Q8_0")
    assert found.plans == () and found.gap == 0.0


def test_a_link_of_stated_latency_is_what_hops_cost() -> None:
    wifi = load(Link, "wifi-5")
    late = dataclasses.replace(wifi, latency_s=Fact(0.02, next(iter(wifi.sources)), Kind.MEASURED))
    nodes = with_free(parse_nodes("rtx-3090; rtx-4090", network="wifi-5"), 12.0, 12.0)
    slow = tuple(dataclasses.replace(n, network=late) for n in nodes)
    near, far = (planned(n).plans[0] for n in (nodes, slow))
    assert len(near.parts) == len(far.parts) == 2
    before = 5e-5 if wifi.latency_s is None else wifi.latency_s.value
    assert float(far.pace.time_s) - float(near.pace.time_s) == pytest.approx(2 * (0.02 - before), rel=1e-6)


def test_mixed_formats_keep_the_quality_asked_for() -> None:
    nodes = with_free(parse_nodes("rtx-3090,rtx-4090"), 4.2, 4.2)
    q = dataclasses.replace(asked(nodes, weights=None, engine="vllm"), limits=Limits(log_ppl=0.05))
    found = plan_unlike(q, nodes, load_calibrations(q.fleet, engine="vllm"))
    for plan in found.plans:
        assert plan.log_ppl <= 0.05 + 1e-9 and holds(plan)
        assert np.isfinite(plan.objective)
    assert FORMATS["bf16"] in {f for p in found.plans for f in p.frame.formats} or not found.plans
