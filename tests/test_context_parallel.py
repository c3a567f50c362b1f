"""Context parallelism: what ranks keep, compute and send where they share out a KV cache, who may, what plans do."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roofplan import api, cli
from roofplan.dtypes import DType
from roofplan.errors import ExitCode, InputError
from roofplan.hwspecs.device import Fleet
from roofplan.hwspecs.load import load_fleet
from roofplan.simulator import engines
from roofplan.simulator.costs import attention, latent_attention
from roofplan.simulator.inference import decode_in_detail
from roofplan.simulator.liveness import peak
from roofplan.simulator.lowering.decoder import lower
from roofplan.simulator.memory import TensorClass, ledger
from roofplan.simulator.operators import Attention, Collective, Elementwise, LatentAttention, Table
from roofplan.simulator.planner.domain import context_degrees, layouts
from roofplan.simulator.planner.export import ENGINES, Decision, Planned, emit, refusals
from roofplan.simulator.planner.fit import Wishes, max_context, max_users
from roofplan.simulator.planner.frames import families
from roofplan.simulator.planner.question import Goal, Pins, Question
from roofplan.simulator.planner.search import GAP, refine, search
from roofplan.simulator.scenario import (
    KV_HOST,
    LAYERS_STREAMED,
    Numerics,
    Phase,
    Placement,
    Scenario,
    Sharding,
    Step,
    Stretch,
)
from roofplan.simulator.serving import Load, running_limit, serve
from roofplan.simulator.tensor_bytes import kv_cache_bytes
from roofplan.simulator.workload import zoo

EIGHT = load_fleet("8xh200")
LATENT, GROUPED, DENSE, WINDOWS = "deepseek-v3", "qwen3-235b-a22b", "llama-3.1-70b", "gpt-oss-120b"


def cut(name: str, cp: int, tp: int = 8, engine: str = "vllm", fleet: Fleet = EIGHT, **changes: Any) -> Scenario:
    """A bundled model in its own format over `tp` ranks, 16 users with 4096 tokens each."""
    model = zoo.bundled(name)
    load = {"batch": 16, "context": 4096, "prompt": 1024} | changes
    numerics = load.pop("numerics", Numerics(model.native, DType.BF16))
    return Scenario(
        model, fleet, **load, numerics=numerics, sharding=Sharding(tp, cp=cp), engine=engines.engine(engine)
    )


def rows(scenario: Scenario, step: Step, *kinds: type[Table]) -> dict[str, tuple[Any, int]]:
    """(table, row) by label, of the model's last block."""
    layer, found = scenario.model.blocks[-1].name, {}
    for table in lower(scenario, step).operators.tables:
        if isinstance(table, kinds):
            found |= {
                w: (table, i) for i, (w, own) in enumerate(zip(table.label, table.layer, strict=True)) if own == layer
            }
    return found


# ---- what a rank keeps


@pytest.mark.parametrize(("name", "tp", "cp"), [(LATENT, 8, 8), (LATENT, 8, 4), (GROUPED, 8, 2), ("qwen2.5-3b", 8, 4)])
@pytest.mark.parametrize("kv", [DType.BF16, DType.FP8])
def test_ranks_share_out_what_each_would_keep(name: str, tp: int, cp: int, kv: DType) -> None:
    model = zoo.bundled(name)
    load = {"context": 16 * 8 * 100, "numerics": Numerics(model.native, kv)}
    whole, shared = (cut(name, degree, tp, **load) for degree in (1, cp))
    assert kv_cache_bytes(shared) == pytest.approx(kv_cache_bytes(whole) / cp, rel=1e-12)
    kept = [ledger(s).of(TensorClass.KV_CACHE) for s in (whole, shared)]
    assert kept[1] == pytest.approx(kept[0] / cp, rel=1e-12)
    assert ledger(shared).of(TensorClass.WEIGHTS) == ledger(whole).of(TensorClass.WEIGHTS)


def test_pages_are_taken_on_all_ranks_together() -> None:
    """61 layers of 576 elements; 8 ranks with pages of 16 hold 128 tokens a page, and what is shared in whole pages."""
    page = 61 * 576 * 2 * 16.0
    for context, pages in ((1, 1), (128, 1), (129, 2), (1000, 8), (1025, 9)):
        assert kv_cache_bytes(cut(LATENT, 8, batch=1, context=context, prompt=1)) == pages * page
    shared = cut(LATENT, 8, batch=3, context=1000)
    shared = shared.but(extras=shared.extras._replace(shared_prefix=300))
    assert kv_cache_bytes(shared) == (3 * (8 - 2) + 2) * page


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from([LATENT, "deepseek-v2-lite", GROUPED, "qwen2.5-7b"]),
    tp=st.sampled_from([2, 4, 8]),
    context=st.integers(2048, 32768),
    kv=st.sampled_from([DType.BF16, DType.FP8]),
)
def test_sharing_out_never_costs_a_user(name: str, tp: int, context: int, kv: DType) -> None:
    model = zoo.bundled(name)
    fleet = load_fleet(f"{tp}xh200")
    load = {"batch": 1, "context": context, "prompt": context, "numerics": Numerics(model.native, kv)}
    asked = [cut(name, cp, tp, fleet=fleet, **load) for cp in context_degrees(model, engines.engine("vllm"), tp)]
    users = [max_users(s) for s in asked]
    assert users == sorted(users)
    assert [max_context(s) for s in asked] == sorted(max_context(s) for s in asked)


def test_an_engine_holds_as_many_times_the_tokens() -> None:
    """`kvcache token budget always increased by dcp times` (vLLM's pull request 23734), less what its buffers take."""
    load = Load(4096.0, 2048.0, 1024.0)
    alone, shared = (running_limit(cut(LATENT, cp), load) for cp in (1, 8))
    assert 7.8 < shared / alone <= 8.1


# ---- what a rank computes and sends


@pytest.mark.parametrize(("name", "cp"), [(LATENT, 2), (LATENT, 8), (GROUPED, 2)])
@pytest.mark.parametrize("step", [Step(Phase.DECODE, 16, 1, 4096 - 1), Step(Phase.DECODE, 3, 1, 64000 - 1)])
def test_decoding_computes_as_much_over_all_ranks(name: str, cp: int, step: Step) -> None:
    def flops(degree: int) -> float:
        total = 0.0
        for table, i in rows(cut(name, degree), step, Attention, LatentAttention).values():
            work = attention if isinstance(table, Attention) else latent_attention
            total += float(work.flops(table)[i])
        return total

    past = int(np.asarray(step.past_tokens)) + (name == LATENT)  # a latent cache is read with the token's own in it
    own = 0 if past % cp == 0 else 1  # the rank that keeps one token more
    assert flops(cp) == pytest.approx(flops(1), rel=own * cp / past + 1e-12)


@pytest.mark.parametrize("past", [0, 4096, 16384])
def test_prompts_compute_as_much_over_all_ranks(past: int) -> None:
    step = Step(Phase.PREFILL, 2, 1024, past)
    found = [rows(cut(GROUPED, cp), step, Attention).values() for cp in (1, 2)]
    whole, shared = (sum(float(attention.flops(table)[i]) for table, i in each) for each in found)
    assert shared == pytest.approx(whole, rel=1e-12)


def test_gathers_and_scatters_by_hand() -> None:
    """16 users of deepseek-v3: 128 heads, latents of 512 + 64; sums of 4 bytes from 8 ranks."""
    found = rows(cut(LATENT, 8), Step(Phase.DECODE, 16, 1, 4095), Collective)
    sizes = {label: (float(t.message_bytes[i]), float(t.ranks[i])) for label, (t, i) in found.items()}
    assert sizes["gather queries"] == (16 * 128 * 576 * 2, 8)
    assert sizes["gather sums of exponentials"] == (8 * 16 * 128 * 4, 8)
    assert sizes["scatter outputs"] == (16 * 128 * 512 * 2, 8)
    table, i = rows(cut(LATENT, 8), Step(Phase.DECODE, 16, 1, 4095), LatentAttention)["attention"]
    assert (float(table.heads[i]), float(table.kv_tokens[i])) == (128, 512)
    grouped = rows(cut(GROUPED, 2), Step(Phase.DECODE, 16, 1, 4095), Collective)
    table, i = grouped["gather queries"]
    assert (float(table.message_bytes[i]), float(table.ranks[i])) == (16 * 2 * 8 * 128 * 2, 2)


def test_a_step_that_takes_prompts_in_gathers_the_queries_of_both_once() -> None:
    """vLLM 0.11, FlashAttention: one call for all tokens of the step; latents of prompts are gathered instead."""
    mixed = Step(Phase.DECODE, 16, 1, 4095, riding=Step(Phase.PREFILL, 1, 512, 512))
    table, i = rows(cut(GROUPED, 2), mixed, Collective)["gather queries"]
    assert float(table.message_bytes[i]) == (16 + 512) * 2 * 8 * 128 * 2
    found = rows(cut(LATENT, 8), mixed, Collective)
    assert float(found["gather queries"][0].message_bytes[found["gather queries"][1]]) == 16 * 128 * 576 * 2
    table, i = found["gather earlier latents"]
    assert float(table.message_bytes[i]) == 512 * 576 * 2


def test_a_first_piece_has_no_past_to_gather() -> None:
    fresh = rows(cut(LATENT, 8), Step(Phase.PREFILL, 2, 1024, 0), Collective)
    table, i = fresh["gather earlier latents"]
    assert float(table.message_bytes[i]) == 0
    asked = rows(cut(GROUPED, 2), Step(Phase.PREFILL, 2, 1024, np.array([0.0, 4096.0])), Attention)
    table, i = asked["attention to the past"]
    assert table.new_tokens[i].tolist() == [0, 1024] and table.kv_tokens[i].tolist() == [0, 2048]


@pytest.mark.parametrize("name", [LATENT, GROUPED, DENSE])
def test_whole_contexts_need_nothing_else(name: str) -> None:
    steps = Step(Phase.DECODE, 16, 1, 4095), Step(Phase.PREFILL, 2, 1024, 3072)
    labels = {label for step in steps for label in rows(cut(name, 1), step, Table)}
    assert not [label for label in labels if "gather" in label or "order" in label or "scatter" in label]


def test_buffers_of_all_ranks_heads_are_alive_together() -> None:
    """Queries of a full step of 8192 tokens come by rank and are put in order: 2 ranks of 8 heads of 128 each."""
    step = Step(Phase.PREFILL, 1, 8192, 0)
    held = [float(peak(lower(cut(GROUPED, cp), step)).bytes) for cp in (1, 2)]
    assert held[1] >= held[0]
    body = lower(cut(GROUPED, 2), step).body
    buffers = {b.name: float(b.bytes) for node in body for b in node.writes}
    assert buffers["queries by rank"] == buffers["queries of all"] == 8192 * 2 * 8 * 128 * 2
    of_users = {b.name: float(b.bytes) for node in lower(cut(LATENT, 8), step).body for b in node.writes}
    assert of_users["queries of all"] == 16 * 128 * 576 * 2, "decoding's, of the users there are"
    assert of_users["earlier latent"] == 65536 * (2 + 1 / 8) * 576 * 2


# ---- how fast that is


def decode_s(name: str, cp: int, **changes: Any) -> float:
    scenario = cut(name, cp, **changes)
    return float(decode_in_detail(scenario, api.load_calibrations(scenario.fleet, None, "vllm")).step.time_s)


def test_long_contexts_are_faster_shared_out_and_short_ones_slower() -> None:
    long, short = ({"context": context, "batch": 16} for context in (163840, 1024))
    assert decode_s(LATENT, 8, **long) < decode_s(LATENT, 4, **long) < decode_s(LATENT, 1, **long) / 1.5
    assert decode_s(LATENT, 8, **short) > decode_s(LATENT, 2, **short) > decode_s(LATENT, 1, **short)


def test_a_lone_user_gains_less_than_many() -> None:
    gains = [
        decode_s(LATENT, 1, batch=b, context=65536) / decode_s(LATENT, 8, batch=b, context=65536) for b in (1, 16, 256)
    ]
    assert gains == sorted(gains) and gains[0] < 1 < gains[1]


# ---- who may


@pytest.mark.parametrize(
    ("name", "tp", "cp", "engine", "says"),
    [
        (LATENT, 8, 3, "vllm", "divisor of 8"),
        (LATENT, 8, 16, "vllm", "divisor of 8"),
        (LATENT, 8, 0, "vllm", "divisor of 8"),
        (GROUPED, 8, 4, "vllm", "does not divide the 2 of 8 ranks"),
        (GROUPED, 4, 2, "vllm", "no two of 4 ranks"),
        (DENSE, 8, 2, "vllm", "a larger --tp"),
        (WINDOWS, 8, 2, "vllm", "of whole contexts"),
        ("qwen3-next-80b-a3b", 8, 2, "vllm", "of whole contexts"),
        (LATENT, 8, 8, "trtllm", "trtllm has no context parallelism"),
        (GROUPED, 8, 2, "sglang", "latent attention only"),
    ],
)
def test_what_cannot_be_shared_out_is_refused(name: str, tp: int, cp: int, engine: str, says: str) -> None:
    with pytest.raises(InputError, match="cp") as error:
        cut(name, cp, tp, engine)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_a_cache_on_the_host_is_not_shared_out() -> None:
    model = zoo.bundled(LATENT)
    fleet = load_fleet("8xh200", host_memory_bytes=2e12)
    with pytest.raises(InputError, match="host memory"):
        cut(LATENT, 8, fleet=fleet).but(placement=Placement((Stretch(KV_HOST, model.layers),)))
    cut(LATENT, 8, fleet=fleet).but(placement=Placement((Stretch(LAYERS_STREAMED, 3),)))


def test_layouts_share_out_only_if_asked() -> None:
    model = zoo.bundled(LATENT)
    assert {s.cp for s in layouts(model, 8)} == {1}
    assert {str(s) for s in layouts(model, 8, cp=8)} == {"tp8 cp8"}
    assert {str(s) for s in layouts(zoo.bundled(GROUPED), 8, cp=2)} == {"tp8 cp2"}
    assert layouts(zoo.bundled(WINDOWS), 8, cp=2) == ()
    assert str(Sharding(8, 2, 8, cp=4)) == "tp8 pp2 ep8 cp4"


# ---- plans


def ask(name: str, fleet: Fleet = EIGHT, engine: str = "vllm", pins: Pins = Pins(), **more: Any) -> Question:  # noqa: B008
    load = {"prompt": 4096, "output": 1024, "goal": Goal.THROUGHPUT} | more
    return Question(zoo.bundled(name), fleet, pins=pins, engine=engines.engine(engine), **load)


def degrees(question: Question) -> set[int]:
    calibrations = api.load_calibrations(question.fleet, None, question.engine.name)
    return {f.layout.base.sharding.cp for f in families(question, calibrations)}


@pytest.mark.parametrize(
    ("name", "engine", "expected"),
    [
        (LATENT, "vllm", {1, 2, 4, 8}),
        (LATENT, "sglang", {1, 2, 4, 8}),
        (LATENT, "trtllm", {1}),
        (GROUPED, "vllm", {1, 2}),
        (GROUPED, "sglang", {1}),
        (DENSE, "vllm", {1}),
        (WINDOWS, "vllm", {1}),
    ],
)
def test_plans_look_at_it_where_it_saves_bytes_and_the_engine_has_it(
    name: str, engine: str, expected: set[int]
) -> None:
    assert degrees(ask(name, engine=engine)) == expected


def test_a_pinned_degree_is_kept_and_an_impossible_one_refused() -> None:
    assert degrees(ask(LATENT, pins=Pins(cp=4))) == {4}
    assert degrees(ask(LATENT, pins=Pins(cp=1))) == {1}
    for name, engine in ((DENSE, "vllm"), (LATENT, "trtllm"), (GROUPED, "sglang")):
        with pytest.raises(InputError, match="--cp"):
            ask(name, engine=engine, pins=Pins(cp=2))


def test_nothing_is_placed_beside_a_shared_cache() -> None:
    question = ask(LATENT, load_fleet("8xh200", host_memory_bytes=2e12), pins=Pins(tp=8))
    calibrations = api.load_calibrations(question.fleet, None, "vllm")
    placed = {f.layout.base.sharding.cp for f in families(question, calibrations) if f.placed}
    assert placed <= {1}


def test_a_plan_shares_out_where_caches_fill_the_devices() -> None:
    question = ask(LATENT, output=32768)
    calibrations = api.load_calibrations(question.fleet, None, "vllm")
    best = refine(question, search(question, calibrations), calibrations).plans[0]
    assert best.scenario.sharding.cp == 8
    whole = ask(LATENT, output=32768, pins=Pins(cp=1))
    assert best.objective < 0.6 * search(whole, calibrations).plans[0].objective


def test_a_plan_is_as_good_as_any_of_its_frames() -> None:
    """Every layout, degree and number of users served one by one: nothing the search shares out is better."""
    fleet, model = load_fleet("4xl40s"), zoo.bundled("deepseek-v2-lite")
    users = (1.0, 4.0, 16.0, 64.0, 128.0, 256.0)
    pins = Pins(model.native, DType.BF16, chunk=8192)
    question = ask("deepseek-v2-lite", fleet, pins=pins, prompt=2048, output=4096, users=users)
    calibrations = api.load_calibrations(fleet, None, "vllm")
    best, where = np.inf, ""
    for tp, pp, ep, cp in ((t, p, e, c) for t in (1, 2, 4) for p in (1, 2, 4) for e in {1, t} for c in (1, 2, 4)):
        if tp * pp > 4 or tp % cp:
            continue
        for number in users:
            asked = question.scenario(sharding=Sharding(tp, pp, ep, cp=cp), batch=number)
            if float(np.max(ledger(asked).high_bytes())) > question.budget_bytes():
                continue
            served = serve(asked, Load(number, 2048.0, 4096.0), calibrations)
            value = float(served.time_per_token_of_all.time_s) / (4 // (tp * pp))
            best, where = min((best, where), (value, str(asked.sharding)))
    found = search(question, calibrations).plans[0]
    assert "cp" in where, "the question is one where sharing out is best"
    assert found.objective <= best * (1 + GAP)


# ---- exports


def planned(name: str, cp: int, engine: str = "vllm", kv: DType = DType.BF16) -> Planned:
    model = zoo.bundled(name)
    return Planned(cut(name, cp, engine=engine, numerics=Numerics(model.native, kv)))


def test_flags_of_the_engines_that_have_it() -> None:
    vllm = emit("vllm", planned(LATENT, 8))
    assert "--decode-context-parallel-size 8 " in vllm.lines[0]
    assert any("no column for context parallelism" in note for note in vllm.notes)
    assert "--decode-context-parallel-size 2 " in emit("vllm", planned(GROUPED, 2, kv=DType.FP8)).lines[0]
    assert "--dcp-size 4 --attention-backend flashinfer " in emit("sglang", planned(LATENT, 4, "sglang")).lines[0]
    assert "context" not in emit("vllm", planned(LATENT, 1)).lines[0].replace("--context", "")


def test_what_an_engine_does_not_share_out_is_refused() -> None:
    able = {engine for engine in ENGINES if Decision.CP not in refusals(engine, planned(LATENT, 8))}
    assert able == {"vllm", "sglang"}
    assert "44044" in refusals("vllm", planned(LATENT, 8, kv=DType.FP8))[Decision.CP]
    assert "latent attention" in refusals("sglang", planned(GROUPED, 2))[Decision.CP]
    assert not any(Decision.CP in refusals(engine, planned(LATENT, 1)) for engine in ENGINES)


# ---- the command line


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = cli.run(list(words))
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize(
    "words",
    [
        ("fits", LATENT, "--context", "64k"),
        ("memory", LATENT, "--context", "64k"),
        ("explain", LATENT, "--context", "64k"),
        ("serve", LATENT, "--clients", "4", "--prompt", "4k", "--output", "256"),
    ],
)
def test_every_question_takes_a_degree(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, *words, "--gpu", "8xh200", "--tp", "8", "--cp", "8", "--json")
    report = json.loads(out)
    assert code == 0 and report["question"]["layout"] == {"tp": 8, "pp": 1, "ep": 1, "cp": 8, "devices": 8}
    assert "cp" in report["question"]["pinned"]
    text = run(capsys, *words, "--gpu", "8xh200", "--tp", "8", "--cp", "8")[1]
    assert "tp8 cp8" in text and ("next: " not in text or "--cp 8" in text)


def test_sweeps_and_plans_take_one_too(capsys: pytest.CaptureFixture[str]) -> None:
    report = json.loads(run(capsys, "sweep", LATENT, "--gpu", "8xh200", "--batch", "1,8", "--cp", "4", "--json")[1])
    assert set(report["answer"]["columns"]["cp"]) == {4}
    words = ("plan", LATENT, "--gpu", "8xh200", "--output", "8k", "--cp", "8", "--no-why")
    code, out, _ = run(capsys, *words)
    assert code == 0 and "KV cache shared out over 8 ranks" in out
    follow = next(line for line in out.splitlines() if line.startswith("next: "))
    assert "--cp 8" in follow
    again = run(capsys, *follow.removeprefix("next: roofplan ").split("   (")[0].split())
    assert again[0] == 0 and "cp8" in again[1]


@pytest.mark.parametrize(
    ("words", "teaches"),
    [
        (("fits", DENSE, "--gpu", "8xh200", "--cp", "2"), "--tp"),
        (("fits", LATENT, "--gpu", "8xh200", "--tp", "8", "--cp", "3"), "divisor of 8"),
        (("fits", LATENT, "--gpu", "8xh200", "--cp", "2", "--engine", "trtllm"), "--engine vllm"),
        (("plan", DENSE, "--gpu", "8xh200", "--cp", "2"), "--tp"),
        (("plan", LATENT, "--gpus", "2xh200,h100-sxm", "--engine", "vllm", "--cp", "2"), "leave it out"),
        (("fits", "sdxl", "--gpu", "rtx-3060", "--cp", "2"), "drop it"),
    ],
)
def test_an_impossible_degree_gets_one_clear_line(
    words: tuple[str, ...], teaches: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, *words)
    assert code == ExitCode.BAD_INPUT and out == "" and err.count("\n") == 1
    assert "--cp" in err and teaches in err


def test_a_wish_is_no_degree_of_its_own() -> None:
    """`fits` shares nothing out unless asked: the layouts of a plain wish are those of before."""
    scenario = cut(LATENT, 1)
    from roofplan.simulator.planner.fit import layouts_of

    assert {s.cp for s in layouts_of(scenario, Wishes())} == {1}
    assert {(s.tp, s.cp) for s in layouts_of(scenario, Wishes(cp=2))} == {(2, 2), (4, 2), (8, 2)}


def test_copies_into_another_order_are_counted() -> None:
    """All-gather and reduce-scatter along heads copy: queries once, outputs before, and a rank's own behind."""
    found = rows(cut(LATENT, 8), Step(Phase.DECODE, 16, 1, 4095), Elementwise)
    sizes = {label: float(t.read_bytes[i]) for label, (t, i) in found.items()}
    assert sizes["order queries"] == 16 * 128 * 576 * 2
    assert sizes["order partial outputs"] == 8 * sizes["order outputs"] == 16 * 128 * 512 * 2


def test_a_draft_is_not_priced_beside_a_shared_cache() -> None:
    draft = zoo.bundled("deepseek-v2-lite")
    asked = cut(LATENT, 1)
    with pytest.raises(InputError, match="--draft"):
        cut(LATENT, 8).but(extras=asked.extras._replace(draft=draft))
    question = dataclasses.replace(
        ask(LATENT, pins=Pins(tp=8, pp=1)),
        extras=asked.extras._replace(draft=draft, acceptance=0.7),
    )
    calibrations = api.load_calibrations(question.fleet, None, "vllm")
    found = {(f.layout.base.sharding.cp, f.layout.base.extras.draft_length) for f in families(question, calibrations)}
    assert (8, 0) in found and (1, 3) in found and not any(cp > 1 and length for cp, length in found)
