"""What would change a plan for unlike devices: solved again from nothing, asked as questions of their own, pinned."""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
from pathlib import Path
from typing import Any, NamedTuple

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roofplan import cli
from roofplan.api import load_calibrations
from roofplan.errors import ExitCode
from roofplan.plan_command import limits_of
from roofplan.simulator import engines
from roofplan.simulator.planner import unlike_changes
from roofplan.simulator.planner.changes import Change, Tried, less_asked, more_quality
from roofplan.simulator.planner.nodes import MOST_PLACES, Node, parse_nodes, resized, text_of, with_memory
from roofplan.simulator.planner.question import Goal, Limits, Pins, Question
from roofplan.simulator.planner.solve import RELATIVE_GAP
from roofplan.simulator.planner.unlike import GAP, FoundUnlike, _frames, plan_unlike
from roofplan.simulator.planner.unlike_bounds import least
from roofplan.simulator.planner.unlike_changes import Asked, Weighed, contributions, purchases, relaxations, rivals
from roofplan.simulator.planner.unlike_program import Wanted, solve_unlike
from roofplan.simulator.workload import zoo
from roofplan.simulator.workload.formats import weight_format

SCHEMA = json.loads((Path(cli.__file__).parent / "simulator" / "report" / "schema.json").read_text())
SLACK = GAP + RELATIVE_GAP + 1e-9  # what a search and its solver leave unproved


def ask(text: str, model: str, goal: Goal = Goal.LATENCY, engine: str = "llama.cpp", **changes: Any) -> Asked:
    """A question over the machines, and what is found."""
    nodes = parse_nodes(text, link="pcie4x8", network="wifi-5")
    fleet = next(fleet for node in nodes for fleet in node.fleets)
    given: dict[str, Any] = {"limits": Limits(log_ppl=math.log1p(0.03)), "pins": Pins()} | changes
    question = Question(zoo.bundled(model), fleet, 256, 64, goal, engine=engines.engine(engine), **given)
    calibrations = load_calibrations(fleet, None, engine)
    return Asked(question, nodes, calibrations, plan_unlike(question, nodes, calibrations), lambda _: None)


def goal_of(found: FoundUnlike) -> float:
    return found.plans[0].objective if found.plans else math.inf


def from_nothing(asked: Asked, change: Change) -> float:
    """The changed question's goal without anything that was known before."""
    nodes = change.nodes or asked.nodes
    question = dataclasses.replace(change.question, fleet=next(f for node in nodes for f in node.fleets))
    return goal_of(plan_unlike(question, nodes, load_calibrations(question.fleet, None, question.engine.name)))


FOUR = Pins(clients=4)
CASES: dict[str, dict[str, Any]] = {
    "cards": {"text": "2xrtx-3090,rtx-4090", "model": "llama-3.1-70b"},
    "experts on a host": {"text": "rtx-3060,rtx-4070@desktop-ddr4", "model": "qwen3-30b-a3b"},
    "machines": {"text": "rtx-3060@desktop-ddr4/16GB; rtx-4070", "model": "qwen3-32b"},
    "many users": {"text": "2xrtx-3060,rtx-4070", "model": "qwen3-32b", "goal": Goal.THROUGHPUT, "pins": FOUR},
    "groups": {
        "text": "2xrtx-4090,rtx-3090", "model": "qwen3-32b", "engine": "vllm", "goal": Goal.THROUGHPUT, "pins": FOUR,
    },
}  # fmt: skip


class Weighing(NamedTuple):
    asked: Asked
    more: list[Tried[FoundUnlike]]
    less: list[Tried[FoundUnlike]]


@pytest.fixture(scope="module", params=CASES, ids=str)
def weighing(request: pytest.FixtureRequest) -> Weighing:
    asked = ask(**CASES[request.param])
    assert asked.found.plans
    return Weighing(asked, purchases(asked), contributions(asked))


def test_what_is_bought_is_what_is_found_from_nothing_and_never_hurts(weighing: Weighing) -> None:
    asked, more, _ = weighing
    present = goal_of(asked.found)
    assert len(more) >= 3 and any(goal_of(t.found) < present * 0.99 for t in more), "something must be worth buying"
    for change, found in more:
        again = from_nothing(asked, change)
        assert again <= present * (1 + SLACK), change.words
        assert goal_of(found) == pytest.approx(again, rel=SLACK), change.words


def test_what_a_device_is_worth_is_what_is_lost_without_it(weighing: Weighing) -> None:
    asked, _, less = weighing
    present = goal_of(asked.found)
    assert sum(len(node.fleets) for node in asked.nodes) <= len(less)
    assert any(goal_of(t.found) > present * 1.1 for t in less), "some device must matter"
    for change, found in less:
        if (change.nodes or asked.nodes)[0].fleets:
            again = from_nothing(asked, change)
            assert goal_of(found) == pytest.approx(again, rel=SLACK) or (math.isinf(again) and not found.plans)
            assert again >= present * (1 - SLACK), change.words


@pytest.mark.parametrize("name", ["cards", "experts on a host", "groups"])
def test_runners_up_are_what_is_planned_when_pinned_there(name: str) -> None:
    asked = ask(**CASES[name])
    others = rivals(asked)
    kinds = [plan.frame.kind for plan in (asked.found.plans[0], *others)]
    assert len(others) >= 2 and len(set(kinds)) == len(kinds)
    for plan in others:
        assert plan.objective >= asked.found.bound
        frame = plan.frame
        weights = frame.formats[0] if len(frame.formats) == 1 else None
        tp = max(place.tp for place in frame.places)
        pinned = dataclasses.replace(
            asked.question, pins=asked.question.pins._replace(kv=frame.kv, weights=weights, tp=tp)
        )
        found = plan_unlike(pinned, asked.nodes, asked.calibrations)
        assert plan.objective == pytest.approx(goal_of(found), rel=SLACK), frame.kind


def test_changes_are_what_their_words_say() -> None:
    asked = ask("rtx-3060,rtx-4070@desktop-ddr4/64GB; rtx-3060", "qwen3-235b-a22b", limits=Limits())
    changes = {t.change.words: t.change for t in purchases(asked)}
    (link,) = (changes.pop(words) for words in list(changes) if "links" in words)
    for node, faster in zip(asked.nodes, link.nodes, strict=True):
        for fleet, changed in zip(node.fleets, faster.fleets, strict=True):
            for name in ("host_link", "interconnect"):
                now, then = (getattr(f, name).bandwidth_bytes_per_s.value for f in (fleet, changed))
                assert then == now + 10e9
    network = changes.pop("ethernet-1g between the machines instead of wifi-5")
    assert {node.network.key for node in network.nodes} == {"ethernet-1g"}
    memory = changes.pop("80 GB of host memory instead of 64")
    assert [node.memory_bytes() for node in memory.nodes] == [80e9, 0.0]
    device = changes.pop("3 rtx-3060 instead of 2")
    assert [node.devices for node in device.nodes] == [3, 1]
    assert changes.pop("1 GiB more on each device").question.more_bytes == 2**30
    assert not changes


def test_an_unused_device_is_worth_nothing_and_its_plan_stands() -> None:
    asked = ask("rtx-4090; cpu@mate-40-pro", "llama-3.1-8b")
    assert {part.place.node for part in asked.found.plans[0].parts} == {0}
    ethernet = next(t for t in purchases(asked) if "ethernet" in t.change.words)
    assert ethernet.found.plans[0] is asked.found.plans[0]
    asked = ask("2xrtx-4090,rtx-3060", "llama-3.1-70b", limits=Limits(devices=2, log_ppl=math.log1p(0.03)))
    spare = {t.change.words: any(plan is asked.found.plans[0] for plan in t.found.plans) for t in contributions(asked)}
    assert spare == {"one of 2 rtx-4090": False, "the rtx-3060": True}


def test_like_cards_named_apart_are_both_used() -> None:
    asked = ask("rtx-3060,rtx-4070,rtx-3060", "qwen3-32b", pins=Pins(weights=weight_format("Q6_K")))
    assert len(asked.found.plans[0].parts) == 3
    for change, found in contributions(asked):
        assert not found.plans and math.isinf(from_nothing(asked, change)), "all three are needed"


def test_several_slow_cards_are_also_left_out_together() -> None:
    asked = ask("3xrtx-3060,rtx-4090", "qwen3-32b")
    words = {t.change.words: t.change.flags for t in contributions(asked)}
    assert words["all 3 rtx-3060"] == "--gpus rtx-4090" and words["one of 3 rtx-3060"] == "--gpus 2xrtx-3060,rtx-4090"


def test_hosts_are_weighed_where_they_take_part() -> None:
    asked = ask("rtx-3060@desktop-ddr4", "qwen3-30b-a3b")
    hosts = next(t for t in contributions(asked) if t.change.flags == "--offload never")
    assert not hosts.found.plans or hosts.found.plans[0].objective > goal_of(asked.found)
    assert any("host memory" in t.change.words for t in purchases(asked))
    resident = ask("rtx-4090@desktop-ddr4", "llama-3.1-8b")
    assert not any("host" in t.change.words for t in (*contributions(resident), *purchases(resident)))


def test_questions_asked_again_end_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ask("2xrtx-3090,rtx-4090", "llama-3.1-70b")
    monkeypatch.setattr(unlike_changes, "SECONDS", -1.0)
    for t in purchases(asked):
        assert t.found.plans == asked.found.plans[:1] and t.found.solved == 0
        assert t.found.timed_out or t.found.bound >= goal_of(asked.found) * (1 - GAP)
    for t in contributions(asked):
        assert not t.found.plans and (t.found.timed_out or t.found.bound == math.inf)


# ---- where nothing fits


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, Any]:
    code = cli.run([*words, "--json"])
    out, err = capsys.readouterr()
    assert err == "" and code in (ExitCode.YES, ExitCode.NO), err
    report = json.loads(out)
    jsonschema.validate(report, SCHEMA)
    return code, report["answer"]


def with_flags(words: tuple[str, ...], flags: str) -> list[str]:
    """The command with some options in place of its own."""
    given, added = list(words), shlex.split(flags)
    for key, value in zip(added[::2], added[1::2], strict=True):
        if key in given:
            given[given.index(key) + 1] = value
        else:
            given += [key, value]
    return given


CARDS = ("qwen3-32b", "--gpus", "2xrtx-3090,rtx-4090")
LITTLE = ("llama-3.1-70b", "--gpus", "rtx-3060@desktop-ddr5/16GB")
PERPLEXITY = {"quality": "1%"}
INFEASIBLE = {
    "memory": (("llama-3.1-70b", "--gpus", "rtx-3060,rtx-3070"), {"--host", "--gpus"}),
    "quality": (("qwen3-32b", "--gpus", "rtx-3060,rtx-4070"), {"--max-ppl-increase", "--host", "--gpus"}),
    "pace": ((*CARDS, "--tpot-ms", "25"), {"--tpot-ms", "--max-ppl-increase"}),
    "first token": ((*CARDS, "--ttft-service-ms", "150"), {"--ttft-service-ms", "--prompt"}),
    "host memory": ((*LITTLE, "--tpot-ms", "900"), {"--gpus", "--tpot-ms"}),
}


@pytest.mark.parametrize("name", INFEASIBLE)
def test_each_relaxation_is_enough_when_asked(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    question, expected = INFEASIBLE[name]
    tail = ("--goal", "latency", "--prompt", "512", "--output", "64", "--max-ppl-increase", PERPLEXITY.get(name, "3%"))
    words = ("plan", *question, "--link", "pcie4x8", *tail)
    code, answer = run(capsys, *words)
    assert code == ExitCode.NO and answer["plan"] is None
    assert {change["ask"].split()[0] for change in answer["changes"]} >= expected
    for change in answer["changes"]:
        assert change["goal"] > 0 and change["gain"] is None
        code, relaxed = run(capsys, *with_flags(words, change["ask"]), "--no-why")
        assert code == ExitCode.YES, change["change"]
        assert relaxed["plan"]["goal"] <= change["goal"] * (1 + SLACK)


def test_relaxations_are_the_first_steps_that_are_enough() -> None:
    asked = ask("rtx-3060,rtx-3070", "llama-3.1-70b")
    devices = next(t for t in relaxations(asked) if "instead of" in t.change.words)
    (larger,) = devices.change.nodes
    fewer = resized(larger, 0, larger.fleets[0].count - 1)
    assert not plan_unlike(asked.question, (fewer,), asked.calibrations).plans
    held = next(t for t in relaxations(asked) if "host" in t.change.words)
    assert sum(held.found.plans[0].drive_bytes) == 0, "the first of the hosts holds everything"


def test_nothing_is_offered_that_an_engine_cannot_do_or_a_program_cannot_hold() -> None:
    served = ask("rtx-3060,rtx-3070", "llama-3.1-70b", engine="vllm")
    assert not any("host" in t.change.words for t in relaxations(served))
    full = ask("8xrtx-3060,8xrtx-3070", "llama-3.1-405b")
    assert sum(node.devices for node in full.nodes) == MOST_PLACES and not full.found.plans
    assert not any("--gpus" in t.change.flags or "--host" in t.change.flags for t in relaxations(full))
    crowded = ask("8xrtx-3060,rtx-3070", "llama-3.1-405b")
    assert not any("--gpus" in t.change.flags for t in relaxations(crowded)), "a machine of nine cannot be asked about"


def test_no_single_change_is_called_that(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("plan", "llama-3.1-70b", "--gpus", "2xrtx-3090,rtx-4090", "--link", "pcie4x8", "--goal", "latency")
    _, answer = run(capsys, *words, "--tpot-ms", "5", "--ttft-service-ms", "100")
    assert answer["changes"] == [] and "no single change of those looked at is enough" in answer["words"]
    _, unasked = run(capsys, *words, "--tpot-ms", "5", "--ttft-service-ms", "100", "--no-why")
    assert "no single change of those looked at is enough" not in unasked["words"]


# ---- answers


def test_the_answer_says_what_would_change_it(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("plan", "qwen3-32b", "--gpus", "2xrtx-3060,rtx-4090", "--link", "pcie4x8", "--goal", "latency")
    _, answer = run(capsys, *words)
    assert answer["changes"] and answer["without"] and answer["runners_up"] and answer["domain"]
    assert all(change["gain"] >= 0 for change in answer["changes"])
    assert all(change["gain"] is None or change["gain"] <= 0 for change in answer["without"])
    for row in answer["runners_up"]:
        assert row["ratio"] >= 1 and row["why"] and row["tie"] == (row["ratio"] < 1.09)
    for change in answer["without"]:
        _, again = run(capsys, *with_flags(words, change["ask"]), "--no-why")
        assert again["plan"]["goal"] == pytest.approx(change["goal"], rel=SLACK)
    _, plain = run(capsys, *words, "--no-why")
    assert not plain["changes"] and not plain["without"] and not plain["runners_up"]
    assert plain["plan"]["goal"] == answer["plan"]["goal"]
    cli.run(list(words))
    out = capsys.readouterr().out
    for said in ("what would change it", "without", "runner-up", "1 GiB more on each device", "--gpus"):
        assert said in out


def test_what_is_being_done_is_said() -> None:
    said: list[str] = []
    asked = ask("rtx-3060,rtx-4070", "qwen3-14b")._replace(progress=said.append)
    weighed = unlike_changes.weigh(asked)
    tried = [f"solving again: {t.change.words}" for t in (*weighed.changes, *weighed.without)]
    assert isinstance(weighed, Weighed) and said[: len(tried)] == tried
    assert all(words.startswith("looking at what came close: ") for words in said[len(tried) :])


# ---- flags and texts


@pytest.mark.parametrize(
    "limits", [Limits(0.0333, 0.777, math.log1p(0.03)), Limits(0.01, 2.0, math.log1p(0.0123)), Limits(log_ppl=0.0)]
)
def test_flags_ask_exactly_what_was_tried(limits: Limits) -> None:
    question = dataclasses.replace(ask("rtx-4090", "llama-3.1-8b").question, limits=limits)
    changes = [*(change for ladder in less_asked(question) for change in ladder), *more_quality(question, 1.0)]
    checked = 0
    for change in changes:
        key, value = change.flags.split()[:2]
        stated = {"--tpot-ms": None, "--ttft-service-ms": None, "--max-ppl-increase": "any"} | {key: value}
        pace, first, ppl = stated["--tpot-ms"], stated["--ttft-service-ms"], stated["--max-ppl-increase"]
        read = limits_of(
            None if pace is None else float(pace), None if first is None else float(first), str(ppl), None, None, None
        )
        for name in ("pace_s", "first_s", "log_ppl"):
            said = getattr(read, name)
            if said is not None:
                assert said == pytest.approx(getattr(change.question.limits, name), rel=1e-12), change.flags
                assert said > (getattr(limits, name) or 0.0), "a relaxation asks for less"
                checked += 1
    assert checked >= 5


@settings(max_examples=30, deadline=None)
@given(
    groups=st.lists(st.sampled_from(["rtx-3090", "2xrtx-4090", "3xrtx-3060"]), min_size=1, max_size=3),
    host=st.sampled_from(["", "@desktop-ddr5", "@desktop-ddr4/48GB"]),
    which=st.integers(0, 2),
    count=st.integers(0, 3),
    gb=st.integers(8, 300),
)
def test_texts_of_changed_machines_are_read_back(groups: list[str], host: str, which: int, count: int, gb: int) -> None:
    (node,) = parse_nodes(",".join(groups) + host, link="pcie4x8")
    which %= len(groups)
    if count or len(groups) > 1 or host:
        assert shape(resized(node, which, count)) == shape(
            parse_nodes(resized(node, which, count).name, link="pcie4x8")[0]
        )
    if host:
        larger = with_memory(node, gb * 1e9)
        assert shape(larger) == shape(parse_nodes(text_of((larger,)), link="pcie4x8")[0])


def shape(node: Node) -> tuple[object, ...]:
    fleets = tuple((f.device.key, f.count, f.usable_bytes(), f.host_link.key) for f in node.fleets)
    return fleets, None if node.host is None else node.host.key, node.memory_bytes(), node.name


def test_machines_sold_with_their_memory_keep_it() -> None:
    (node,) = parse_nodes("2xm2-max-64gb")
    (again,) = parse_nodes(resized(node, 0, 3).name)
    assert again.fleets[0].count == 3 and again.fleets[0].usable_bytes() == node.fleets[0].usable_bytes()
    (cluster,) = parse_nodes("8xh200")
    assert parse_nodes(resized(cluster, 0, 7).name)[0].fleets[0].count == 7


# ---- bounds that are cut by


MANY = {"goal": Goal.THROUGHPUT, "pins": Pins(clients=8)}
BOUNDED: dict[str, dict[str, Any]] = {
    "experts, a host and its drive": {"text": "rtx-3060,rtx-4070@desktop-ddr4/12GB", "model": "qwen3-30b-a3b", **MANY},
    "machines and drives": {"text": "rtx-3060@desktop-ddr4/8GB; rtx-4070@desktop-ddr5/8GB", "model": "qwen3-32b"},
    "mixed formats": {"text": "2xrtx-4090,rtx-3090", "model": "qwen3-32b", "engine": "vllm", **MANY},
    "cards": {"text": "2xrtx-3060,rtx-4090", "model": "qwen3-32b", **MANY},
}


@pytest.mark.parametrize("name", BOUNDED)
def test_first_bounds_are_below_programs_and_near_some(name: str) -> None:
    asked = ask(**BOUNDED[name])
    shares = []
    for frame in _frames(asked.question, asked.nodes, asked.calibrations, Wanted()):
        below, program = least(frame), solve_unlike(frame).objective
        assert below <= program * (1 + 1e-9), frame.label
        if math.isfinite(program):
            shares.append(below / program)
    assert shares and max(shares) > 0.75, "a bound far below everything cuts nothing"


def test_places_priced_for_all_loads_cost_what_they_do_alone() -> None:
    asked = ask("rtx-3060,rtx-4070@desktop-ddr4", "qwen3-30b-a3b", Goal.THROUGHPUT)
    frames = list(_frames(asked.question, asked.nodes, asked.calibrations, Wanted()))
    for users in (1, 12, 96):
        pinned = dataclasses.replace(asked.question, pins=Pins(clients=users))
        alone = list(_frames(pinned, asked.nodes, asked.calibrations, Wanted()))
        together = [f for f in frames if f.load.users == users]
        assert len(alone) == len(together) > 0
        for one, many in zip(alone, together, strict=True):
            assert one.label == many.label
            for c, d in zip(one.costs, many.costs, strict=True):
                for kind in (0, 1):
                    assert c.seconds(kind)[0] == pytest.approx(d.seconds(kind)[0], rel=1e-9)
                    assert c.ends_s(kind) == pytest.approx(d.ends_s(kind), rel=1e-9)
                    assert float(c.handovers[kind].time_s) == pytest.approx(float(d.handovers[kind].time_s), rel=1e-9)
                assert c.device_bytes == pytest.approx(d.device_bytes) and c.host_bytes == pytest.approx(d.host_bytes)
                assert tuple(c.fixed) == pytest.approx(tuple(d.fixed))
