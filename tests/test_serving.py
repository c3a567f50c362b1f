"""Serving in steady use: laws it must obey, and a simulation of single requests that shares nothing but step times."""

from __future__ import annotations

import dataclasses
from collections import deque
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st

import roofplan
from roofplan import api
from roofplan.calibrate.transfer import Calibrations
from roofplan.errors import InputError
from roofplan.simulator import engines
from roofplan.simulator.costs import work
from roofplan.simulator.lowering.decoder import lower
from roofplan.simulator.memory import TensorClass, ledger
from roofplan.simulator.operators import Attention, Elementwise, Gemm, LatentAttention
from roofplan.simulator.planner.domain import precisions
from roofplan.simulator.scenario import Phase, Scenario, Sharding, Step
from roofplan.simulator.schedule import price, stages_of
from roofplan.simulator.serving import Load, Served, running_limit, serve

KNOWN = api.load_calibrations(api.load_fleet("h100-sxm")[0]).known
SPREAD = 0.8, 1.0  # lengths of unlike requests, as shares of the longest


def asked(
    engine: str = "vllm",
    model: str = "llama-3.1-8b",
    gpu: str = "h100-sxm",
    tp: int = 1,
    pp: int = 1,
    fp8: bool = False,
) -> tuple[Scenario, Calibrations]:
    fleet, loaded = api.load_fleet(gpu)[0], api.load_model(model)
    numerics = precisions(loaded)[2 if fp8 else 0]
    scenario = api.make_scenario(
        loaded, fleet, engine=engines.engine(engine), sharding=Sharding(tp, pp), numerics=numerics
    )
    return scenario, Calibrations(fleet, KNOWN, engine)


def served(load: Load, **of: Any) -> Served:
    scenario, calibrations = asked(**of)
    return serve(scenario, load, calibrations)


# The oracle: single requests, one step after another.


class StepTimes:
    """Seconds of a step with `decoding` requests and `taken` prompt tokens, from tables of the lowered steps."""

    def __init__(self, scenario: Scenario, calibrations: Calibrations, prompt: int, output: int, most: int) -> None:
        def seconds(step: Step, attention: bool | None = None) -> Any:
            chosen = [
                priced
                for priced in price(lower(scenario, step), scenario, calibrations)
                if attention is None or isinstance(priced.table, Attention) is attention
            ]
            return stages_of(chosen).through.time_s

        decoding, context = np.arange(1.0, most + 1), np.asarray(prompt + output / 2)
        captured = np.array([1, 2, 4, *range(8, most + 8, 8)], dtype=float)
        padded = captured[np.searchsorted(captured, decoding)]
        products, attention = Step(Phase.DECODE, padded, 1, context), Step(Phase.DECODE, decoding, 1, context)
        self.alone = [0.0, *(seconds(products, False) + seconds(attention, True)).tolist()]
        longest = max(scenario.engine.max_batched_tokens, prompt)
        self.tokens = np.unique(2 * np.floor(np.geomspace(1, longest, 40) / 2) + 1)  # odd, as most sums of lengths are
        piece = np.minimum(self.tokens, prompt)
        taking = Step(Phase.PREFILL, self.tokens / piece, piece, (prompt - piece) / 2)
        beside = Step(Phase.DECODE, decoding[:, None], 1, context, None, taking)
        self.taking = [seconds(taking), *seconds(beside)]

    def __call__(self, decoding: int, taken: int) -> float:
        return float(np.interp(taken, self.tokens, self.taking[decoding])) if taken else self.alone[decoding]


@dataclasses.dataclass
class Request:
    prompt: int
    output: int
    left: int
    started: float | None = None
    first: float = 0.0


class Seen(NamedTuple):
    time_per_output_token: float
    tokens_per_s: float
    running: float
    prompt_share: float
    service: float


def simulate(scenario: Scenario, times: StepTimes, load: Load, room_tokens: float, lives: int = 40) -> Seen:
    """A closed loop, first come first served: prompts are taken in as far as a step's tokens and the cache allow."""
    engine, rng = scenario.engine, np.random.default_rng(0)
    low, high = (1.0, 1.0) if load.alike else SPREAD

    def new() -> Request:
        prompt, output = (int(rng.integers(round(n * low), round(n * high) + 1)) for n in (load.prompt, load.output))
        return Request(prompt, output, prompt)

    clients = int(load.clients)
    waiting, ends = deque(new() for _ in range(clients)), dict[int, list[Request]]()
    now = used = begun = 0.0
    running = decoded = finished = 0
    ended, steps = list[tuple[float, int, float]](), list[tuple[float, int, bool]]()
    while finished < lives * clients:
        room, taken, ready = engine.max_batched_tokens - engine.mixes_prefill * running, 0, list[Request]()
        while waiting and room > 0:
            request = waiting[0]
            if request.started is None:
                if used + request.prompt + request.output > room_tokens:
                    break
                if not engine.chunks_prefill and taken and request.left > room:
                    break
                request.started, used = now, used + request.prompt + request.output
            piece = min(request.left, room) if engine.chunks_prefill else request.left
            request.left, room, taken = request.left - piece, room - piece, taken + piece
            if not request.left:
                ready.append(waiting.popleft())
        decoding = running if engine.mixes_prefill or not taken else 0
        took = times(decoding, taken)
        now, settled = now + took, finished >= lives // 4 * clients
        if settled:
            begun = begun or now - took
            steps.append((took, running, taken > 0))
        if decoding:
            decoded += 1
            for request in ends.pop(decoded, []):
                running, finished, used = running - 1, finished + 1, used - request.prompt - request.output
                waiting.append(new())
                if settled:
                    per_token = (now - request.first) / (request.output - 1)
                    ended.append((per_token, request.output, request.first - (request.started or 0.0)))
        for request in ready:
            request.first, running = now, running + 1
            ends.setdefault(decoded + request.output - 1, []).append(request)
    per_tokens, outputs, services = zip(*ended, strict=True)
    seconds, held, prompts = (np.array(column, dtype=float) for column in zip(*steps, strict=True))
    return Seen(
        float(np.mean(per_tokens)),
        sum(outputs) / (now - begun),
        float(held @ seconds / seconds.sum()),
        float(prompts.mean()),
        float(np.mean(services)),
    )


def both(load: Load, **of: Any) -> tuple[Served, Seen]:
    """What the formulas say of a load and what the simulation sees; `load` has the longest lengths."""
    scenario, calibrations = asked(**of)
    share = 1.0 if load.alike else sum(SPREAD) / 2
    mean = load._replace(prompt=round(load.prompt * share), output=round(load.output * share))
    most = running_limit(scenario, mean)
    times = StepTimes(
        scenario, calibrations, round(mean.prompt), round(mean.output), int(min(mean.clients, 1.25 * most))
    )
    room = most * (mean.prompt + mean.output)
    return serve(scenario, mean, calibrations), simulate(scenario, times, load, room)


LOADS = [  # clients, prompt, output: from lonely over mixed to full of prompts, and two that the KV cache limits
    (1, 1024, 512),
    (8, 1024, 1024),
    (32, 1024, 512),
    (64, 1024, 1024),
    (128, 1024, 512),
    (256, 512, 512),
    (16, 8192, 1024),
    (32, 8192, 128),
    (64, 2048, 128),
    (128, 1024, 128),
    (256, 1024, 64),
    (64, 8192, 1024),
    (16, 32768, 512),
]


@pytest.mark.parametrize("engine", ["vllm", "sglang", "trtllm"])
@pytest.mark.parametrize("load", LOADS, ids=str)
def test_unlike_requests_one_by_one_take_the_same_time(load: tuple[int, int, int], engine: str) -> None:
    ours, seen = both(Load(*load), engine=engine)
    assert float(ours.time_per_output_token.time_s) == pytest.approx(seen.time_per_output_token, rel=0.035)
    assert 1 / float(ours.time_per_token_of_all.time_s) == pytest.approx(seen.tokens_per_s, rel=0.04)
    assert ours.running == pytest.approx(seen.running, rel=0.04)
    assert ours.prompt_share == pytest.approx(seen.prompt_share, abs=0.05)
    whole = 0.12 if engine == "trtllm" else 0.1  # prompts of 8k that are never cut meet in steps of very unlike sizes
    assert float(ours.first_token_service.time_s) == pytest.approx(seen.service, rel=whole)


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
@pytest.mark.parametrize("load", LOADS[1:10], ids=str)
def test_alike_requests_one_by_one_take_the_same_time(load: tuple[int, int, int], engine: str) -> None:
    ours, seen = both(Load(*load, alike=True), engine=engine)
    assert float(ours.time_per_output_token.time_s) == pytest.approx(seen.time_per_output_token, rel=0.03)
    assert 1 / float(ours.time_per_token_of_all.time_s) == pytest.approx(seen.tokens_per_s, rel=0.04)


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_narrow_weights_over_two_devices_too(engine: str) -> None:
    ours, seen = both(Load(64, 1024, 512), engine=engine, model="llama-3.1-70b", gpu="2xh100-sxm", tp=2, fp8=True)
    assert float(ours.time_per_output_token.time_s) == pytest.approx(seen.time_per_output_token, rel=0.06)


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_prompts_of_many_steps_queue_which_is_not_modelled(engine: str) -> None:
    """The README says how far off that is: tokens are promised that the queue takes away."""
    ours, seen = both(Load(8, 100_000, 256), engine=engine)
    assert -0.1 < float(ours.time_per_output_token.time_s) / seen.time_per_output_token - 1 < -0.05
    assert 0.2 < 1 / float(ours.time_per_token_of_all.time_s) / seen.tokens_per_s - 1 < 0.23


def test_where_prompts_fill_every_step_no_more_requests_run() -> None:
    ours, seen = both(Load(40, 8192, 32))
    assert ours.prompt_limited and seen.prompt_share > 0.99
    assert ours.running == pytest.approx(seen.running, rel=0.15)
    assert float(ours.time_per_output_token.time_s) == pytest.approx(seen.time_per_output_token, rel=0.05)


# Laws.

ENGINES = st.sampled_from(["vllm", "sglang", "trtllm"])
CLIENTS = st.integers(1, 200)
LENGTHS = st.integers(64, 4096)


@limits(max_examples=60)
@given(ENGINES, CLIENTS, LENGTHS, LENGTHS)
def test_the_fixed_point_is_littles_law(engine: str, clients: int, prompt: int, output: int) -> None:
    ours = served(Load(clients, prompt, output), engine=engine)
    answer, service = output * float(ours.time_per_output_token.time_s), float(ours.first_token_service.time_s)
    if ours.prompt_limited:
        return
    assert ours.cache_limited == (ours.in_flight < clients)
    assert ours.running == pytest.approx(ours.in_flight * answer / (answer + service), rel=0.01, abs=0.05)


@limits(max_examples=60)
@given(ENGINES, CLIENTS, CLIENTS, LENGTHS, LENGTHS)
def test_more_clients_never_make_a_token_faster(engine: str, one: int, other: int, prompt: int, output: int) -> None:
    few, many = (served(Load(c, prompt, output), engine=engine) for c in sorted((one, other)))
    times = [float(s.time_per_output_token.time_s) for s in (few, many)]
    assert times[0] <= times[1] * 1.002
    for result, time_s in zip((few, many), times, strict=True):
        assert time_s >= float(result.decode_step.time_s) * (1 - 1e-9)
        assert 0 <= result.prompt_share <= 1 and 1 <= result.running <= result.in_flight


@pytest.mark.parametrize("engine", engines.PROFILES)
def test_one_client_waits_for_nobody(engine: str) -> None:
    ours = served(Load(1, 2048, 64), engine=engine)
    assert ours.running == 1
    assert float(ours.time_per_output_token.time_s) == pytest.approx(float(ours.decode_step.time_s), rel=1e-6)


@pytest.mark.parametrize("engine", engines.PROFILES)
def test_of_long_answers_prompts_are_nothing(engine: str) -> None:
    ours = served(Load(8, 256, 30_000), engine=engine)
    assert ours.running == pytest.approx(8, rel=1e-3)
    assert float(ours.time_per_output_token.time_s) == pytest.approx(float(ours.decode_step.time_s), rel=0.005)


def test_a_pipeline_takes_a_prompt_in_while_others_decode() -> None:
    """A prompt holds up a cycle of two stages by one stage's time: half of what it costs where one stage does all."""
    load = Load(16, 2048, 512)
    extra = []
    for pp, gpu in ((1, "h200"), (2, "2xh200")):
        ours = served(load, model="llama-3.1-70b", gpu=gpu, tp=1, pp=pp, fp8=True, engine="sglang")
        extra.append(float(ours.time_per_output_token.time_s - ours.decode_step.time_s) / ours.running)
    assert extra[1] / extra[0] == pytest.approx(0.5, rel=0.1)


def test_the_cache_holds_what_the_ledger_says() -> None:
    scenario, _ = asked()
    for load in (Load(1, 1024, 512), Load(1, 8192, 1024), Load(1, 100, 2000)):
        most = running_limit(scenario, load)
        budget = scenario.engine.memory_utilization * scenario.fleet.usable_bytes()

        def held(batch: float, load: Load = load) -> float:
            full = scenario.but(batch=int(batch), context=int(load.prompt + load.output), prompt=int(load.prompt))
            classes = tuple(
                c for c in TensorClass if c is not TensorClass.ALLOCATOR
            )  # its slack is no part of the cache
            return float(ledger(full).total_bytes(classes).max())

        assert held(most) <= budget < held(most * 1.02 + 1)


def test_intervals_are_wider_where_the_evidence_is_another_devices() -> None:
    def width(gpu: str) -> float:
        time = served(Load(8, 512, 256), gpu=gpu).time_per_output_token
        return float(time.high_s / time.low_s)

    assert width("rtx-4090") > 1.05 * width("h100-sxm")


def test_an_engine_without_measurements_of_its_own_is_told_so() -> None:
    time = served(Load(8, 512, 256), engine="sglang").time_per_output_token
    assert time.weakest_tier().label == "transferred"


# The mixed step.


@pytest.mark.parametrize("model", ["llama-3.1-8b", "qwen3-30b-a3b", "deepseek-v3", "gpt-oss-20b"])
@given(st.integers(1, 64), st.integers(16, 4096), st.integers(16, 4096))
@limits(max_examples=15)
def test_a_mixed_step_computes_what_two_steps_do_in_fewer_launches(
    model: str, batch: int, context: int, chunk: int
) -> None:
    fleet = api.load_fleet("8xh200")[0]
    scenario = api.make_scenario(api.load_model(model), fleet, sharding=Sharding(8 if model == "deepseek-v3" else 1))
    decode, prefill = Step(Phase.DECODE, batch, 1, context), Step(Phase.PREFILL, 1, chunk, 0)
    alone, apart, mixed = (
        lower(scenario, step).operators.tables for step in (decode, prefill, decode._replace(riding=prefill))
    )

    def flops(tables: tuple[Any, ...]) -> dict[str, float]:
        result = dict[str, float]()
        for table in tables:
            name = type(table).__name__
            result[name] = result.get(name, 0.0) + float(
                (work(table).flops.reshape(len(table.label), -1) * table.count).sum()
            )
        return result

    def launches(tables: tuple[Any, ...], *kinds: type) -> float:
        return sum(
            float((getattr(table, "launches", np.ones(1)).reshape(-1, 1) * table.count).sum())
            for table in tables
            if isinstance(table, kinds)
        )

    one, two = flops(alone), flops(apart)
    assert flops(mixed) == pytest.approx({name: one[name] + two[name] for name in one})
    for kind in (Gemm, Elementwise):
        each, together = (launches(alone, kind), launches(apart, kind)), launches(mixed, kind)
        if model == "deepseek-v3":  # latents are expanded for prompts and absorbed in decoding: products of their own
            assert max(each) <= together < 1.2 * max(each)
        else:
            assert together == each[0] == each[1]
    kinds = Attention, LatentAttention
    assert launches(mixed, *kinds) == launches(alone, *kinds) + launches(apart, *kinds)


# The answer.


def test_the_answer_adds_up() -> None:
    fleet = api.load_fleet("2xh100-sxm")[0]
    scenario = api.make_scenario(api.load_model("llama-3.1-70b"), fleet, batch=32, prompt=1024, context=1536)
    report = roofplan.ask_serve(scenario, api.load_calibrations(fleet))
    answer: Any = report.answer
    assert answer.tokens_per_s_user.value == pytest.approx(1 / answer.time_per_output_token.value)
    assert answer.tokens_per_s_total.value == pytest.approx(answer.running * answer.tokens_per_s_user.value)
    assert answer.prefill_share == pytest.approx(1 - answer.decode_step.value / answer.time_per_output_token.value)
    assert (answer.limited_by, answer.waiting, report.question and report.question.engine) == ("clients", 0, "vllm")
    assert report.evidence and sum(t.share for t in report.evidence.tiers) == pytest.approx(1)
    assert {"attention-prefill", "attention-decode"} <= {c.reason.split("/")[0] for c in report.evidence.calibrations}
    crowd: Any = api.ask_serve(scenario.but(batch=2000), api.load_calibrations(fleet)).answer
    assert crowd.limited_by == "kv cache" and crowd.waiting == 2000 - crowd.in_flight > 0
    for changes in ({"batch": 70_000}, {"context": 1024}):
        with pytest.raises(InputError):
            api.ask_serve(scenario.but(**changes), api.load_calibrations(fleet))
