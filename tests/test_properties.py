"""What must hold for every model: work adds up, grids equal their points, the ledger grows with what it holds."""

import dataclasses
import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from roofplan.calibrate import store
from roofplan.calibrate.transfer import Calibrations
from roofplan.dtypes import DType
from roofplan.errors import InputError
from roofplan.hwspecs.device import Fact, Fleet, Kind
from roofplan.hwspecs.load import load_fleet
from roofplan.simulator.costs import work
from roofplan.simulator.estimate import Estimate
from roofplan.simulator.inference import decode, prefill, swap_out
from roofplan.simulator.lowering.decoder import lower
from roofplan.simulator.memory import Ledger, TensorClass, ledger
from roofplan.simulator.planner.domain import largest
from roofplan.simulator.planner.fit import MAX_USERS, Verdict, max_context, max_users, verdict
from roofplan.simulator.scenario import Engine, Numerics, Phase, Routing, Scenario, Sharding, Step, stage_layers
from roofplan.simulator.steps import decode_step
from roofplan.simulator.tensor_bytes import kv_cache_bytes, stage_weight_bytes
from roofplan.simulator.workload import zoo
from roofplan.simulator.workload.formats import FORMATS
from roofplan.simulator.workload.hf import parse_config
from roofplan.simulator.workload.model import Experts, LatentAttention, Mixer, Model, Recurrent, Role
from roofplan.simulator.workload.routing import touched_experts

RUN = settings(deadline=None, derandomize=True, database=None, max_examples=60)
MODELS = zoo.names()
KNOWN = tuple(c for path in store.bundled_files() for c in store.read(path))


@lru_cache(maxsize=32)
def fleet(name: str = "8xh200") -> tuple[Fleet, Calibrations]:
    found = load_fleet(name)
    return found, Calibrations(found, KNOWN)


def scenario(model: Model, on: str = "8xh200", **changes: object) -> Scenario:
    base: dict[str, object] = {"batch": 8, "context": 4096, "prompt": 1024}
    numerics = Numerics(FORMATS["bf16"], DType.BF16, DType.BF16)
    return Scenario(model, fleet(on)[0], **(base | {"numerics": numerics} | changes))  # type: ignore[arg-type]


@st.composite
def small_models(draw) -> Model:
    """A random config.json of a known family, small enough to price thousands of."""
    older = ["llama", "mistral", "mixtral", "qwen2", "qwen3"]
    family = draw(st.sampled_from([*older, "qwen3_moe", "deepseek_v3", "gpt_oss", "minimax_m2"]))
    kv, group = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    head_dim = draw(st.sampled_from([8, 32, 128]))
    config = {
        "model_type": family,
        "hidden_size": kv * group * head_dim,
        "intermediate_size": draw(st.integers(1, 512)),
        "num_hidden_layers": draw(st.integers(1, 9)),
        "num_attention_heads": kv * group,
        "num_key_value_heads": kv,
        "head_dim": head_dim,
        "vocab_size": draw(st.integers(1, 4000)),
        "max_position_embeddings": draw(st.integers(64, 100_000)),
        "tie_word_embeddings": draw(st.booleans()),
        "sliding_window": draw(st.one_of(st.none(), st.integers(1, 5000))),
    }
    if family.startswith("qwen"):
        config |= {"use_sliding_window": draw(st.booleans()), "max_window_layers": draw(st.integers(0, 9))}
    if family in ("mixtral", "qwen3_moe", "deepseek_v3", "gpt_oss", "minimax_m2"):
        experts = draw(st.integers(1, 32))
        keys = ("num_experts", "num_local_experts", "n_routed_experts")
        config |= {**dict.fromkeys(keys, experts), "moe_intermediate_size": 64}
        config["num_experts_per_tok"] = draw(st.integers(1, experts))
    if family == "qwen3_moe":
        config |= {"decoder_sparse_step": draw(st.integers(1, 3)), "mlp_only_layers": draw(st.sampled_from([[], [0]]))}
    if family == "deepseek_v3":
        config |= {"q_lora_rank": draw(st.sampled_from([None, 48])), "kv_lora_rank": 32, "first_k_dense_replace": 1}
        config |= {"qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": draw(st.sampled_from([16, 24]))}
        config |= {"n_shared_experts": draw(st.integers(0, 2))}
    return parse_config(config, name="random", file="random")


layouts_of_8 = st.sampled_from([Sharding(t, p) for t in (1, 2, 4, 8) for p in (1, 2, 3, 5, 8) if t * p <= 8])
loads = st.tuples(st.integers(1, 300), st.integers(1, 40_000), st.integers(1, 40_000))


def cut(sharding: Sharding, model: Model) -> Sharding:
    return Sharding(sharding.tp, min(sharding.pp, model.layers))


# ---- work


@RUN
@given(small_models(), layouts_of_8, loads, st.sampled_from(Phase))
def test_work_of_stages_and_rows_adds_up_to_the_unsharded_pass(model, sharding, load, phase) -> None:
    """FLOPs do not depend on the cut: where everything divides, all devices together compute what one would."""
    batch, context, _ = load
    step = Step(phase, batch, 1 if phase is Phase.DECODE else 7, context)

    def flops(layout: Sharding) -> float:
        asked = scenario(model, sharding=layout)
        amounts = [(work(t).flops, t.count) for t in lower(asked, step).operators.tables]
        return sum(float(np.sum(f.reshape(len(f), -1).sum(axis=1) @ c)) for f, c in amounts)

    whole, pipelined = flops(Sharding()), flops(cut(Sharding(1, sharding.pp), model))
    assert pipelined == pytest.approx(whole, rel=1e-12)
    b = model.blocks
    even = all(x.attention.kv_heads % sharding.tp == 0 and x.ffn.intermediate % sharding.tp == 0 for x in b)
    shared = flops(Sharding(sharding.tp, 1)) * sharding.tp
    assert shared >= whole * (1 - 1e-12)
    replicated = any(t.role is Role.ROUTER for t in model.tensors)
    if even and model.vocab % sharding.tp == 0 and not replicated:
        assert shared == pytest.approx(whole, rel=1e-12)


UNMULTIPLIED = (Role.SINKS, Role.POSITIONS, Role.LOOKUP, Role.SMALL, Role.MIX_CONV, Role.TOWER)


def flops_of_a_key(attention: Mixer | None) -> int:
    """What a decoded token spends on one key: 2 FLOPs for each element of the key and of the value, for each head."""
    if attention is None or isinstance(attention, Recurrent):
        return 0
    if isinstance(attention, LatentAttention):
        return 2 * attention.heads * (attention.latent + attention.rope + attention.latent)
    return 2 * attention.heads * (attention.head_dim + attention.value_width)


def crosses(mixer: Mixer | None) -> bool:
    return mixer is not None and mixer.cross


@pytest.mark.parametrize("name", MODELS)
def test_decode_flops_are_two_per_active_weight_and_attention(name: str) -> None:
    """The trap of total parameters for active experts: compute follows `top_k`, not the experts in memory."""
    model = zoo.bundled(name)
    asked = scenario(model, batch=1, context=100, prompt=1)
    flops = sum(float(work(t).flops @ t.count[:, 0]) for t in lower(asked, decode_step(asked)).operators.tables)
    weights = [t for t in model.tensors if t.role is not Role.EMBED or model.tied]
    active = sum(
        t.rows * t.cols * (getattr(model.blocks[t.block].ffn, "top_k", 1) if t.copies > 1 else 1) * model.instances(t)
        for t in weights
        if "norm" not in t.role and t.role not in UNMULTIPLIED and t.role not in (Role.CROSS_K, Role.CROSS_V)
        # The keys and values of an image or a source are made once, with the prompt.
        if t.block is None or t.role not in (Role.K, Role.V) or not crosses(model.blocks[t.block].attention)
    )
    mixers = [m for i in model.pattern for m in (model.blocks[i].attention, model.blocks[i].crosses)]
    attention = sum((model.encoder_tokens if crosses(m) else 100) * flops_of_a_key(m) for m in mixers)
    assert flops == pytest.approx(2 * active + attention, rel=1e-12)
    if any(isinstance(b.ffn, Experts) for b in model.blocks):
        assert flops < 0.7 * 2 * model.parameters
        assert model.active_parameters < 0.5 * model.parameters


@RUN
@given(small_models(), layouts_of_8)
def test_merging_rows_into_tables_loses_nothing(model, sharding) -> None:
    """Row by row (batch 3 and 5 apart) or in one grid: every operator's work is the same number."""
    sharding = cut(sharding, model)
    grid = scenario(model, batch=np.array([3.0, 5.0]), sharding=sharding)
    together = lower(grid, decode_step(grid)).operators.tables
    for i, batch in enumerate((3, 5)):
        alone = scenario(model, batch=batch, sharding=sharding)
        for a, b in zip(together, lower(alone, decode_step(alone)).operators.tables, strict=True):
            assert a.label == b.label and a.kernel == b.kernel
            for amount in ("flops", "traffic_bytes"):
                x, y = getattr(work(a), amount), getattr(work(b), amount)
                x = x[:, i] if x.ndim == 2 and x.shape[1] == 2 else x.reshape(len(x))
                np.testing.assert_allclose(x, y.reshape(len(y)), rtol=1e-12)


# ---- grids

LEDGER = ("low_bytes", "total_bytes", "high_bytes")
BATCHES, CONTEXTS, PROMPTS = (1, 3, 64, 700), (1, 17, 4000, 100_000), (1, 512, 8192, 20_000)


def assert_grid(function: Callable, build: Callable, shape: tuple[int, ...], **axes: np.ndarray) -> None:
    """The figures `function` returns on broadcastable axes equal themselves at each point."""
    whole = [np.broadcast_to(figure, shape) for figure in function(build(**axes))]
    spread = {name: np.broadcast_to(values, shape) for name, values in axes.items()}
    for point in np.ndindex(shape):
        alone = function(build(**{k: int(v[point]) for k, v in spread.items()}))
        expected = [float(np.asarray(figure).squeeze()) for figure in alone]
        np.testing.assert_allclose([figure[point] for figure in whole], expected, rtol=1e-12, err_msg=f"{point} {axes}")


def times(estimate: Estimate) -> list[np.ndarray]:
    return [estimate.time_s, estimate.log_sd, estimate.extrapolated_s, estimate.high_s, *estimate.terms.stack()]


def figures(memory: Ledger) -> list[np.ndarray]:
    """Every figure of every stage."""
    return [stage for name in LEDGER for stage in getattr(memory, name)()]


@pytest.mark.parametrize("sharding", [Sharding(), Sharding(2, 1), Sharding(1, 3), Sharding(2, 4)], ids=str)
@pytest.mark.parametrize("name", ["llama-3.1-8b", "qwen3-30b-a3b"])
def test_a_grid_equals_its_points(name: str, sharding: Sharding) -> None:
    model, (_, calibrations) = zoo.bundled(name), fleet()
    batch, context, prompt = np.array(BATCHES)[:, None], np.array(CONTEXTS)[None, :], np.array(PROMPTS)

    def build(**load: object) -> Scenario:
        return scenario(model, sharding=sharding, **load)

    assert_grid(lambda s: times(decode(s, calibrations)), build, (4, 4), batch=batch, context=context)
    assert_grid(lambda s: times(prefill(s, calibrations)), build, (4,), prompt=prompt)
    assert_grid(lambda s: times(swap_out(s, calibrations)), build, (4,), context=context[0])
    assert_grid(lambda s: figures(ledger(s)), build, (4, 4), batch=batch, context=context)


@pytest.mark.parametrize("sharding", [Sharding(), Sharding(1, 2), Sharding(2, 4)], ids=str)
@pytest.mark.parametrize("axis", ["batch", "context", "prompt"])
def test_a_ledger_over_one_axis_equals_its_points(sharding: Sharding, axis: str) -> None:
    """Four points and four stages: a stage axis that lines up with a grid axis would not show in the shape."""
    model, points = zoo.bundled("llama-3.1-8b"), np.array([1.0, 300.0, 5000.0, 20_000.0])
    by = {axis: points}
    assert_grid(lambda s: figures(ledger(s)), lambda **a: scenario(model, sharding=sharding, **a), (4,), **by)


@RUN
@given(small_models(), layouts_of_8, loads, loads)
def test_any_grid_of_any_model_equals_its_points(model, sharding, one, two) -> None:
    sharding, (_, calibrations) = cut(sharding, model), fleet()
    axes = {"batch": np.array([one[0], two[0]])[:, None], "context": np.array([one[1], two[1]])[None, :]}

    def build(**load: object) -> Scenario:
        return scenario(model, sharding=sharding, prompt=one[2], **load)

    assert_grid(lambda s: times(decode(s, calibrations)), build, (2, 2), **axes)
    assert_grid(lambda s: figures(ledger(s)), build, (2, 2), **axes)


# ---- the ledger


@RUN
@given(small_models(), layouts_of_8, loads, loads)
def test_the_ledger_never_shrinks_with_batch_context_prompt_or_kv_width(model, sharding, one, two) -> None:
    sharding = cut(sharding, model)
    less = [min(a, b) for a, b in zip(one, two, strict=True)]
    more = [max(a, b) for a, b in zip(one, two, strict=True)]
    small = scenario(model, sharding=sharding, batch=less[0], context=less[1], prompt=less[2])
    before = np.array(figures(ledger(small)))
    for key, value in zip(("batch", "context", "prompt"), more, strict=True):
        assert np.all(np.array(figures(ledger(small.but(**{key: value})))) >= before * (1 - 1e-12)), key
    wide = ledger(scenario(model, sharding=sharding))
    fp8 = ledger(scenario(model, sharding=sharding, numerics=Numerics(FORMATS["bf16"], DType.FP8)))
    np.testing.assert_allclose(fp8.of(TensorClass.KV_CACHE) * 2, wide.of(TensorClass.KV_CACHE), rtol=1e-12)
    assert np.all(fp8.low_bytes() <= fp8.total_bytes()) and np.all(fp8.total_bytes() <= fp8.high_bytes())


@RUN
@given(small_models(), st.sampled_from([1, 2, 3, 4, 8]))
def test_ranks_together_hold_at_least_the_model(model, tp) -> None:
    ranks = tp * float(stage_weight_bytes(scenario(model, sharding=Sharding(tp))).sum())
    whole = float(model.weight_bytes(FORMATS["bf16"]))
    assert ranks >= whole * (1 - 1e-12)
    even = all(b.attention.kv_heads % tp == 0 and b.ffn.intermediate % tp == 0 for b in model.blocks)
    if even and model.vocab % tp == 0:
        copied = sum(
            model.layer_bytes(t, FORMATS["bf16"]) * model.instances(t) for t in model.tensors if t.split == "none"
        )
        assert ranks == pytest.approx(whole + (tp - 1) * copied, rel=1e-12)


@pytest.mark.parametrize("name", ["llama-3.1-70b", "qwen3-30b-a3b", "qwen2.5-7b"])
def test_kv_heads_below_tp_are_replicated(name: str) -> None:
    """The trap: KV bytes per device stop shrinking at tp = kv_heads."""
    model = zoo.bundled(name)
    heads = model.blocks[0].attention.kv_heads
    per_device = {tp: float(kv_cache_bytes(scenario(model, sharding=Sharding(tp)))[0]) for tp in (1, 2, 4, 8)}
    for tp, held in per_device.items():
        assert held == pytest.approx(per_device[1] * max(1, math.ceil(heads / tp)) / heads)
    if heads < 8:
        assert per_device[8] == per_device[4] > per_device[1] / 8


@RUN
@given(small_models(), st.integers(1, 8))
def test_stages_hold_every_layer_once_and_tied_embeddings_on_both_ends(model, pp) -> None:
    pp = min(pp, model.layers)
    stages = stage_layers(model, Sharding(1, pp))
    sizes = [sum(layers) for layers in stages]
    assert sum(sizes) == model.layers and max(sizes) - min(sizes) <= 1 and sizes == sorted(sizes, reverse=True)
    assert [sum(column) for column in zip(*stages, strict=True)] == list(model.layer_counts())
    held = float(stage_weight_bytes(scenario(model, sharding=Sharding(1, pp))).sum())
    table = 2.0 * model.vocab * model.hidden
    twice = table if model.tied and pp > 1 else 0.0
    assert held == pytest.approx(2.0 * model.parameters + twice, rel=1e-12)


@RUN
@given(small_models(), loads)
def test_a_sliding_window_caps_the_kv_cache(model, load) -> None:
    window = max((b.attention.window or 0) for b in model.blocks)
    assume(all(b.attention.window for b in model.blocks))
    page = Engine().block_tokens
    at_window = kv_cache_bytes(scenario(model, context=(math.ceil(window / page) + 1) * page, batch=load[0]))
    far = kv_cache_bytes(scenario(model, context=load[1] + 100_000, batch=load[0]))
    np.testing.assert_allclose(far, at_window, rtol=1e-12)


GEMMA = {
    "model_type": "gemma4_text", "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "global_head_dim": 32, "vocab_size": 300, "sliding_window": 40,
    "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 100,
}  # fmt: skip


@RUN
@given(st.integers(2, 12), st.data(), loads, st.sampled_from([1, 2]))
def test_layers_that_borrow_keys_and_values_cache_none(layers, data, load, tp) -> None:
    """The cache is that of the layers before them, and the more of them the less is held in all."""
    own = data.draw(st.integers(1, layers))
    kinds = data.draw(st.lists(st.sampled_from(["full_attention", "sliding_attention"]), min_size=own, max_size=own))
    kinds += ["full_attention"] * (layers - own)
    kinds[own - 1] = "full_attention"  # the class makes the last layer one

    def cache(count: int, shared: int) -> np.ndarray:
        config = GEMMA | {"num_hidden_layers": count, "num_kv_shared_layers": shared, "layer_types": kinds[:count]}
        model = parse_config(config, name="random", file="random")
        return kv_cache_bytes(scenario(model, batch=load[0], context=load[1], sharding=Sharding(tp)))

    np.testing.assert_allclose(cache(layers, layers - own), cache(own, 0), rtol=1e-12)
    if own < layers:
        assert np.all(cache(layers, layers - own) < cache(layers, 0))


@RUN
@given(loads, st.sampled_from([1, 4]))
def test_layers_that_attend_to_an_image_cache_its_tokens_and_no_context(load, tp) -> None:
    batch, context, _ = load
    model = zoo.bundled("llama-3.2-11b-vision")
    asked = scenario(model, batch=batch, context=context, sharding=Sharding(tp))
    blind = scenario(dataclasses.replace(model, encoder_tokens=0), batch=batch, context=context, sharding=Sharding(tp))
    an_image = batch * 8 * model.encoder_tokens * 2 * 8 / tp * 128 * 2.0  # 8 layers, 8 KV heads of 128, 16 bits
    np.testing.assert_allclose(kv_cache_bytes(asked) - kv_cache_bytes(blind), an_image, rtol=1e-9)
    assert model.encoder_tokens == 4 * 1601  # four tiles


@pytest.mark.parametrize("name", ["qwen2.5-vl-7b", "gemma-4-e2b", "llama-4-scout"])
def test_towers_stand_whole_on_the_first_stage(name: str) -> None:
    model, layout = zoo.bundled(name), Sharding(2, 2)
    blind = dataclasses.replace(model, towers=())
    held = stage_weight_bytes(scenario(model, sharding=layout)) - stage_weight_bytes(scenario(blind, sharding=layout))
    towers = 2.0 * sum(tower.parameters for tower in model.towers)
    np.testing.assert_allclose(held, [towers, 0], rtol=1e-12)


# ---- experts


@settings(RUN, max_examples=300)
@given(st.integers(1, 256), st.data(), st.sampled_from(Routing), st.floats(0.2, 3.0))
def test_touched_experts_stay_in_bounds_and_grow(experts, data, routing, alpha) -> None:
    top_k = data.draw(st.integers(1, experts))
    tokens = np.unique(np.geomspace(1, 1e5, 60).round())
    touched = touched_experts(tokens, experts, top_k, routing, alpha)
    assert np.all(touched >= top_k * (1 - 1e-12)) and np.all(touched <= np.minimum(experts, tokens * top_k) + 1e-9)
    assert touched[0] == pytest.approx(top_k)
    assert np.all(np.diff(touched) >= -1e-9 * experts)
    assert float(touched_experts(np.zeros(1), experts, top_k, routing, alpha)[0]) == 0.0


@RUN
@given(st.integers(1, 256), st.data())
def test_uniform_routing_is_the_closed_form(experts, data) -> None:
    top_k, n = data.draw(st.integers(1, experts)), data.draw(st.integers(1, 3000))
    closed = experts * (1 - (1 - top_k / experts) ** n)
    got = float(touched_experts(np.asarray(float(n)), experts, top_k, Routing.UNIFORM, 1.0))
    assert got == pytest.approx(min(max(closed, top_k), experts), rel=1e-9)


@RUN
@given(st.integers(2, 256), st.data(), st.floats(0.5, 2.0))
def test_skewed_routing_touches_no_more_experts_than_uniform(experts, data, alpha) -> None:
    top_k, n = data.draw(st.integers(1, experts)), np.asarray(float(data.draw(st.integers(1, 5000))))
    uniform = touched_experts(n, experts, top_k, Routing.UNIFORM, alpha)
    assert touched_experts(n, experts, top_k, Routing.POWER_LAW, alpha) <= uniform + 1e-9 * experts


# ---- time


def faster(base: Fleet, by: float, *fields: str) -> Fleet:
    def up(value: Fact) -> Fact:
        return Fact(value.value * by, value.source, Kind.ASSUMED)

    changes = {f: up(getattr(base.device, f)) for f in fields if f != "peak_dense_flops_per_s"}
    if "peak_dense_flops_per_s" in fields:
        changes["peak_dense_flops_per_s"] = {k: up(v) for k, v in base.device.peak_dense_flops_per_s.items()}  # type: ignore
    return dataclasses.replace(base, device=dataclasses.replace(base.device, **changes))


@RUN
@given(small_models(), layouts_of_8, loads, st.floats(1.0, 10.0))
def test_a_faster_device_is_never_slower(model, sharding, load, by) -> None:
    sharding = cut(sharding, model)
    base, calibrations = fleet()
    asked = scenario(model, sharding=sharding, batch=load[0], context=load[1], prompt=load[2])
    link = base.interconnect
    wider = dataclasses.replace(
        link, bandwidth_bytes_per_s=Fact(link.bandwidth_bytes_per_s.value * by, "x", Kind.ASSUMED)
    )
    for better in (
        faster(base, by, "bandwidth_bytes_per_s"),
        faster(base, by, "peak_dense_flops_per_s"),
        dataclasses.replace(base, interconnect=wider),
    ):
        for time in (decode, prefill):
            slow = float(time(asked, calibrations).time_s)
            assert 0 < float(time(asked.but(fleet=better), calibrations).time_s) <= slow * (1 + 1e-12)


@RUN
@given(small_models(), layouts_of_8, loads, loads)
def test_decoding_never_gets_faster_with_context_nor_prefill_with_the_prompt(model, sharding, one, two) -> None:
    sharding, (_, calibrations) = cut(sharding, model), fleet()
    low, high = sorted((one[1], two[1]))
    asked = scenario(model, sharding=sharding, batch=one[0])
    short, long = (float(decode(asked.but(context=c), calibrations).time_s) for c in (low, high))
    assert 0 < short <= long * (1 + 1e-12)
    short, long = (float(prefill(asked.but(prompt=p), calibrations).time_s) for p in sorted((one[2], two[2])))
    assert 0 < short <= long * (1 + 1e-12)


# ---- refusals and the search


@pytest.mark.parametrize("key", ["batch", "context", "prompt"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0, -1, 0.5, 2**41, np.array([1.0, math.nan])])
def test_a_scenario_refuses_loads_that_are_none(key: str, value: object) -> None:
    with pytest.raises(InputError) as caught:
        scenario(zoo.bundled("llama-3.1-8b"), **{key: value})
    assert key in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_a_scenario_refuses_layouts_without_devices() -> None:
    with pytest.raises(InputError, match="needs 16 devices"):
        scenario(zoo.bundled("llama-3.1-8b"), sharding=Sharding(4, 4))


@settings(RUN, max_examples=500)
@given(st.integers(1, 300_000), st.data())
def test_largest_finds_the_threshold(limit: int, data) -> None:
    threshold = data.draw(st.one_of(st.integers(0, limit), st.integers(0, min(limit, 200)), st.just(limit)))
    page, bend = data.draw(st.sampled_from([1, 16])), data.draw(st.floats(0.2, 3.0))
    asked = []

    def room(points: np.ndarray) -> np.ndarray:  # falls in steps of a page, bent: never a straight line
        asked.append(points)
        inside = (threshold // page + 1) * page - 1
        steps = np.sign(inside - points) * np.ceil(np.abs(inside - points) / page) ** bend
        return np.where(points <= inside, np.maximum(steps, 0.0), np.minimum(steps, -1e-9))

    expected = min((threshold // page + 1) * page - 1, limit)
    assert largest(room, limit) == expected
    assert len(asked) <= 20 and all(np.all((p >= 1) & (p <= limit) & (p == p.round())) for p in asked)


GROWN = [("h200", Sharding()), ("8xh200", Sharding(2, 2)), ("rtx-4090", Sharding())]


@pytest.mark.parametrize("name", ["llama-3.1-8b", "qwen3-30b-a3b", "mistral-7b-v0.3"])
@pytest.mark.parametrize(("on", "sharding"), GROWN)
def test_growth_limits_are_maximal(name: str, on: str, sharding: Sharding) -> None:
    asked = scenario(zoo.bundled(name), on, sharding=sharding, batch=4, context=3000, prompt=2000)

    def surely(**load: int) -> bool:
        return verdict(asked.but(**load)) is Verdict.SURELY

    users, context = max_users(asked), max_context(asked)
    assert users == 0 or surely(batch=users)
    assert users == MAX_USERS or not surely(batch=users + 1)
    assert context == 0 or surely(context=context, prompt=min(context, 2000))
    assert context == asked.model.max_context or not surely(context=context + 1, prompt=min(context + 1, 2000))
    assert users > 0 or on == "rtx-4090"
