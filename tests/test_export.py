"""Exports: every word is one the engine takes, every decision shows or is refused, files can be read."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from roofplan.api import load_model
from roofplan.calibrate.importers import import_file
from roofplan.calibrate.importers.common import Given
from roofplan.dtypes import DType
from roofplan.errors import InputError, UnknownNameError
from roofplan.hwspecs.load import load_fleet
from roofplan.simulator import engines
from roofplan.simulator.memory import TensorClass, ledger
from roofplan.simulator.placement import moved
from roofplan.simulator.planner import export
from roofplan.simulator.planner.export import ENGINES, Decision, Exported, Planned, accelerate, emit, flags, refusals
from roofplan.simulator.scenario import (
    EXPERTS_HOST,
    EXPERTS_STREAMED,
    KV_HOST,
    KV_STREAMED,
    LAYERS_HOST,
    LAYERS_STREAMED,
    MODES,
    Extras,
    Numerics,
    Placement,
    Scenario,
    Sharding,
    Stretch,
)
from roofplan.simulator.workload.formats import FORMATS, KV_FORMATS, weight_format
from roofplan.simulator.workload.model import Model

MODEL = load_model("mixtral-8x7b")
DENSE = load_model("llama-3.1-8b")
SMALL = load_model("opt-125m")
FLEET = load_fleet("8xh200", host_memory_bytes=1e12)
WEIGHTS = (*FORMATS, "Q4_K_M", "Q8_0", "IQ2_XS")
# One plan each engine runs: the others' tests start from it.
HOST = Placement((Stretch(EXPERTS_HOST, 32),))


def mixed(first: str, other: str) -> Model:
    """The model with its first five layers in one format, the others in another."""
    block = MODEL.blocks[0]
    formats = {(b, routed): weight_format(w) for b, w in ((0, first), (1, other)) for routed in (False, True)}
    pattern = (0,) * 5 + (1,) * 27
    return dataclasses.replace(MODEL, blocks=(block, block), pattern=pattern, layer_formats=MappingProxyType(formats))


def plan(engine: str, **changes: object) -> Planned:
    """A plan the engine can run; `changes` are fields of the plan or of its scenario."""
    placement = HOST if engine == "ktransformers" else Placement()
    weights = weight_format("Q4_K_M" if engine == "llama.cpp" else "bf16")
    profile = engines.engine(engine)
    scenario = Scenario(
        MODEL, FLEET, 4, 2048, 1024, Numerics(weights, DType.BF16), Sharding(), placement=placement, engine=profile
    )
    own = {key: changes.pop(key) for key in ("replicas", "output", "clients") if key in changes}
    knobs = {f.name for f in dataclasses.fields(profile)} & changes.keys()
    changes["engine"] = dataclasses.replace(profile, **{key: changes.pop(key) for key in knobs})
    return Planned(scenario.but(**changes), **{"replicas": 2, "output": 256, "clients": 8} | own)


def module(engine: str):
    return importlib.import_module(f"{export.__name__}.{engine.replace('.', '_')}")


def words(exported: Exported) -> set[str]:
    """Every option a shell would see, and every setting of a YAML file with a dotted key."""
    found = {w for line in exported.lines for w in line.split() if w.startswith("-")} - {"-m", "-1"}
    # What shows a process its own devices is the vendor's, not the engine's.
    told = {w for line in exported.lines for w in re.findall(r"(?:^| )([A-Z_]+)=", line)}
    found |= told - {"CUDA_VISIBLE_DEVICES"}
    return found | {
        f"{top}.{key}" if isinstance(below, dict) else top
        for text in (text for name, text in exported.files.items() if name.endswith(".yaml"))
        for top, below in yaml.safe_load(text).items()
        for key in (below if isinstance(below, dict) else [""])
    }


def known(engine: str) -> set[str]:
    return {flag.flag for flag in flags() if flag.engine == engine}


def hold_words(engine: str, exported: Exported) -> None:
    assert words(exported) <= known(engine), words(exported) - known(engine)
    if engine != "accelerate":
        tool = "llama-bench" if exported.benchmark.startswith("llama-bench") else "vllm bench serve"
        used = {w for w in exported.benchmark.removeprefix(tool).split() if re.match(r"--?[a-z]", w)}
        assert used <= known(tool), used - known(tool)


def test_flags_have_versions_and_sources() -> None:
    assert len(flags()) > 150
    assert all(f.version and f.flag and f.source for f in flags())
    assert len({(f.engine, f.flag) for f in flags()}) == len(flags())
    assert {f.engine for f in flags()} == {*ENGINES, "llama-bench", "vllm bench serve"}


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_decides_everything(engine: str) -> None:
    assert list(module(engine).DECIDE) and set(module(engine).DECIDE) == set(Decision)
    exported = emit(engine, plan(engine))
    assert set(exported.decided) == set(Decision) and all(exported.decided.values())
    assert len(exported.lines) == 2 and exported.benchmark
    assert any(note.startswith(f"flags of {engine} ") for note in exported.notes)
    hold_words(engine, exported)


LLAMA_CPP = (
    'llama-server --model "$MODEL" --split-mode none --parallel 4 --batch-size 512 --ubatch-size 512 --cont-batching '
    "--ctx-size 8192 --fit off --cache-type-k bf16 --cache-type-v bf16 --flash-attn on"
)


def test_lines_in_full() -> None:
    vllm = emit("vllm", plan("vllm", sharding=Sharding(4, 1, 4), graphs=False))
    assert vllm.lines == tuple(
        f'CUDA_VISIBLE_DEVICES={devices} vllm serve "$MODEL" --tensor-parallel-size 4 --pipeline-parallel-size 1 '
        "--enable-expert-parallel --max-num-seqs 4 --max-num-batched-tokens 8192 --enable-chunked-prefill "
        "--max-model-len 2048 --gpu-memory-utilization 0.9 --dtype bfloat16 --kv-cache-dtype auto --enforce-eager "
        f"--block-size 16 --port {port}"
        for devices, port in (("0,1,2,3", 8000), ("4,5,6,7", 8001))
    )
    first = Placement((Stretch(LAYERS_HOST, 3), Stretch(EXPERTS_HOST, 5)))
    llama = emit("llama.cpp", plan("llama.cpp", replicas=1, placement=first, fleet=FLEET.sized(1)))
    # Layers are counted from the last, the head with them: 32 - 3 + 1; experts from the first.
    assert llama.lines == (f"{LLAMA_CPP} --n-gpu-layers 30 --n-cpu-moe 8 --port 8080",)


def test_llama_cpp_places_what_it_can() -> None:
    def placed(*stretches: Stretch) -> str:
        return emit("llama.cpp", plan("llama.cpp", placement=Placement(stretches))).lines[0]

    # All layers of this model are alike, so those wholly on the host may come first.
    assert "--n-gpu-layers 30 --n-cpu-moe 8 " in placed(Stretch(EXPERTS_HOST, 5), Stretch(LAYERS_HOST, 3))
    assert "--n-gpu-layers 999 --no-kv-offload " in placed(Stretch(KV_HOST, 32))
    assert "--n-gpu-layers 30 --no-kv-offload " in placed(Stretch(LAYERS_HOST, 3), Stretch(KV_HOST, 29))
    for wrong, why in (
        ((Stretch(KV_HOST, 5),), "the cache of all layers"),
        ((Stretch(EXPERTS_HOST, 5, 0.5),), "experts together"),
        ((Stretch(EXPERTS_STREAMED, 5),), "copies nothing over"),
    ):
        with pytest.raises(InputError, match=why):
            placed(*wrong)


def test_llama_cpp_measures_one_user_with_its_own_tool() -> None:
    one = emit("llama.cpp", plan("llama.cpp", batch=1, replicas=1, clients=1))
    assert one.benchmark == (
        'llama-bench -m "$MODEL" -p 1024 -n 256 -d 0,1024 -r 5 -ngl 999 -sm none -b 512 -ub 512 -ctk bf16 -ctv bf16 '
        "-fa on -o json > result.json"
    )
    hold_words("llama.cpp", one)
    # The importer leaves out runs with experts on the host, so those are measured at the server.
    assert emit("llama.cpp", plan("llama.cpp", batch=1, clients=2, placement=HOST)).benchmark.startswith("vllm bench")


def test_vllm_moves_the_bytes_of_the_placement() -> None:
    asked = plan("vllm", placement=Placement((Stretch(LAYERS_STREAMED, 7),), ahead=0), sharding=Sharding(2))
    gib = float(re.search(r"--cpu-offload-gb (\S+)", emit("vllm", asked).lines[0])[1])  # type: ignore[index]
    assert gib == pytest.approx(moved(asked.scenario).weights / 2**30, abs=0.005) and gib > 5


def test_memory_shares_say_what_an_engine_may_claim() -> None:
    for tp, share in ((2, 0.9), (8, 0.7)):
        asked = plan("trtllm", sharding=Sharding(tp), memory_utilization=share, replicas=1, chunks_prefill=True)
        held, room = ledger(asked.scenario), FLEET.usable_bytes()
        cache = float(held.of(TensorClass.KV_CACHE).max())
        rest = float(held.total_bytes().max()) - cache
        fraction = float(re.search(r"memory_fraction (\S+)", emit("trtllm", asked).lines[0])[1])  # type: ignore[index]
        assert rest + fraction * (room - rest) == pytest.approx(share * room, rel=2e-3)
        static = float(re.search(r"fraction-static (\S+)", emit("sglang", asked).lines[0])[1])  # type: ignore[index]
        weights = float(held.of(TensorClass.WEIGHTS).max())
        assert static * room + (rest - weights) == pytest.approx(share * room, rel=2e-3)


def test_trtllm_settings() -> None:
    asked = plan("trtllm", numerics=Numerics(FORMATS["fp8"], DType.FP8), graphs=False, sharding=Sharding(2))
    asked = dataclasses.replace(asked, scenario=asked.scenario.but(extras=Extras(100, 3, 32, SMALL)))
    assert yaml.safe_load(emit("trtllm", asked).files["extra-llm-api.yaml"]) == {
        "dtype": "bfloat16",
        "kv_cache_config": {"dtype": "fp8", "tokens_per_block": 16, "enable_block_reuse": True},
        "cuda_graph_config": None,
        "enable_lora": True,
        "lora_config": {"max_loras": 3, "max_cpu_loras": 3, "max_lora_rank": 32},
        "speculative_config": {"decoding_type": "Draft_Target", "max_draft_len": 5, "speculative_model": "DRAFT"},
    }


@pytest.mark.parametrize(
    ("engine", "changes", "why"),
    [
        ("vllm", {"extras": Extras(draft=SMALL)}, "draft model: .*; sglang, trtllm, llama.cpp can"),
        ("vllm", {"sharding": Sharding(4, 1, 2)}, "expert parallelism: .*2 groups of 4.*; sglang, trtllm, ktransf"),
        ("vllm", {"numerics": Numerics(FORMATS["bf16"], DType.INT4)}, "KV cache: .*int4; llama.cpp can"),
        ("vllm", {"flash_attention": False}, "flash attention: .*; sglang, llama.cpp, ktransformers, accelerate can"),
        ("vllm", {"placement": Placement((Stretch(KV_STREAMED, 32),))}, "placement: .*32 x KV cache.*; accelerate can"),
        ("vllm", {"placement": Placement((Stretch(EXPERTS_STREAMED, 9, 0.5),))}, "no engine here can"),
        ("sglang", {"placement": HOST}, "placement: .*32 x experts on the host; llama.cpp, ktransformers can"),
        ("trtllm", {"placement": Placement((Stretch(LAYERS_STREAMED, 9),))}, "; vllm, sglang, accelerate can"),
        ("trtllm", {"numerics": Numerics(FORMATS["int8"], DType.BF16)}, "weights: .*int8; vllm, sglang, accelerate"),
        ("llama.cpp", {"numerics": Numerics(FORMATS["nvfp4"], DType.BF16)}, "weights: .*; vllm, sglang, trtllm can"),
        ("ktransformers", {"placement": Placement((Stretch(EXPERTS_HOST, 9),))}, "placement: .*alike.*; llama.cpp can"),
        (
            "ktransformers",
            {"numerics": Numerics(weight_format("Q4_K_M"), DType.BF16)},
            "weights: .*; vllm, sglang, lla",
        ),
        ("accelerate", {"sharding": Sharding(2)}, "tensor parallelism: .*; vllm, sglang, trtllm, llama.cpp, ktr"),
        ("accelerate", {"graphs": True}, "graphs: .*; vllm, sglang, trtllm, ktransformers can"),
    ],
)
def test_refusals_name_who_can(engine: str, changes: dict[str, object], why: str) -> None:
    with pytest.raises(InputError, match=why) as caught:
        emit(engine, plan(engine, **changes))
    assert "\n" not in str(caught.value)


def test_all_refusals_at_once() -> None:
    asked = plan("vllm", flash_attention=False, numerics=Numerics(FORMATS["bf16"], DType.INT8))
    assert set(refusals("vllm", asked)) == {Decision.FLASH, Decision.KV}
    assert not refusals("vllm", plan("vllm"))
    assert set(refusals("trtllm", plan("trtllm", placement=HOST))) == {Decision.PLACEMENT}
    assert set(refusals("trtllm", plan("trtllm", fleet=load_fleet("8xl4")))) == {Decision.MEMORY}


def test_bad_plans() -> None:
    with pytest.raises(UnknownNameError, match="vllm"):
        emit("vlm", plan("vllm"))
    with pytest.raises(InputError, match="replicas"):
        plan("vllm", replicas=0)
    with pytest.raises(InputError, match="shows a process some"):
        emit("vllm", plan("vllm", fleet=load_fleet("2xtpu-v5e"), clients=2, sharding=Sharding(1)))


def test_replicas_fill_nodes() -> None:
    exported = emit("vllm", plan("vllm", replicas=5, sharding=Sharding(3), clients=7))
    assert [line[: line.index(" ")] for line in exported.lines] == [
        f"CUDA_VISIBLE_DEVICES={ids}" for ids in ("0,1,2", "3,4,5", "0,1,2", "3,4,5", "0,1,2")
    ]
    assert [line.split()[-1] for line in exported.lines] == ["8000", "8001", "8000", "8001", "8000"]
    assert any(note.startswith("3 nodes: 2 lines on each") for note in exported.notes)
    assert "--max-concurrency 2 " in exported.benchmark
    alone = emit("vllm", plan("vllm", replicas=1, sharding=Sharding(8)))
    assert alone.lines[0].startswith("vllm serve")


# What a plan may decide otherwise, as changes of `plan`. Where an engine's words stay the same, it is listed below.
OTHERWISE: dict[str, dict[str, object]] = {
    "tp": {"sharding": Sharding(2)},
    "pp": {"sharding": Sharding(1, 2)},
    "ep": {"sharding": Sharding(2, 1, 2)},
    "stages": {"sharding": Sharding(1, 2, 1, (15, 17))},
    "formats of layers": {"model": mixed("fp8", "bf16")},
    "GGUF types of layers": {"model": mixed("Q4_K_M", "Q8_0")},
    "replicas": {"replicas": 3},
    "users": {"batch": 5},
    "step tokens": {"max_batched_tokens": 8192 + 4096},
    "chunks": {"chunks_prefill": None},
    "mixes": {"mixes_prefill": None},
    "context": {"context": 4096},
    "memory": {"memory_utilization": 0.8},
    "weights": {"numerics": Numerics(FORMATS["fp16"], DType.FP16)},
    "kv": {"numerics": Numerics(FORMATS["bf16"], DType.FP8)},
    "kv of whole numbers": {"numerics": Numerics(weight_format("Q4_K_M"), DType.INT8)},
    "graphs": {"graphs": None},
    "flash": {"flash_attention": False},
    "page": {"block_tokens": 64},
    "prefix": {"extras": Extras(shared_prefix=512)},
    "adapters": {"extras": Extras(adapters=2)},
    "rank": {"extras": Extras(adapters=2, adapter_rank=64)},
    "draft": {"extras": Extras(draft=SMALL)},
    **{mode.name: {"placement": Placement((Stretch(mode, 3),))} for mode in MODES},
    "cache of all layers streamed": {"placement": Placement((Stretch(KV_STREAMED, 32),))},
    "experts cached": {"placement": Placement((Stretch(EXPERTS_HOST, 32, 0.5),))},
    "storage": {"placement": Placement((Stretch(LAYERS_STREAMED, 3),), 0.5)},
    "output": {"output": 300},
    "prompt": {"prompt": 1100},
    "clients": {"clients": 20},
}
SAME_WORDS = {
    # It allocates what it is told, in no pages; prompts always come in chunks of a step.
    *(("llama.cpp", what) for what in ("memory", "page", "chunks")),
    # It holds what the map says, its cache grows to what is generated; its batch is the planned users.
    *(("accelerate", what) for what in ("memory", "page", "context")),
}


@pytest.mark.parametrize("what", OTHERWISE)
@pytest.mark.parametrize("engine", ENGINES)
def test_no_decision_is_dropped(engine: str, what: str) -> None:
    """A plan that differs in one decision has other words, or is refused."""
    base = plan(engine)
    changes = dict(OTHERWISE[what])
    for key, value in changes.items():
        if value is None:  # the other one
            changes[key] = not getattr(base.scenario.engine, key)
    try:
        other = emit(engine, plan(engine, **changes))
    except InputError as error:
        assert re.search(r"; [\w., ]+ can$|; no engine here can", str(error))
        return
    hold_words(engine, other)
    first = emit(engine, base)
    differs = (other.lines, other.files, other.benchmark) != (first.lines, first.files, first.benchmark)
    # What no option says (a checkpoint's kind, an adapter file's rank) is a note.
    assert (differs or set(other.notes) - set(first.notes) != set()) == ((engine, what) not in SAME_WORDS)


@st.composite
def plans(draw: Callable, engine: str) -> Planned:
    """A plan the engine can run, with some decisions made anew: whatever the values, one or several at a time."""
    base = plan(engine).scenario

    def other(usual: object, *others: object) -> object:
        return draw(st.sampled_from([usual, usual, usual, *others]))

    mode = st.sampled_from(MODES)
    tp = draw(st.sampled_from([1, 1, 2, 4, 8]))
    sharding = Sharding(tp, other(1, 8 // tp), other(1, tp))
    first, second = draw(st.integers(1, 32)), draw(st.integers(1, 32))
    one = Placement((Stretch(draw(mode), first, other(0.0, 0.5)),), other(0.0, 0.3))
    two = Placement((*one.stretches, Stretch(draw(mode), min(second, 32 - first)))[: 1 + (first < 32)])
    layers = Placement((Stretch(LAYERS_HOST if engine == "llama.cpp" else LAYERS_STREAMED, first),), one.storage_share)
    knobs = {name: other(getattr(base.engine, name), draw(st.booleans())) for name in ("graphs", "mixes_prefill")}
    knobs |= {"chunks_prefill": other(True, False), "flash_attention": other(True, False), "memory_utilization": 0.95}
    knobs |= {"block_tokens": other(16, 64, 100), "max_batched_tokens": other(base.engine.max_batched_tokens, 3000)}
    formats = st.builds(Numerics, st.sampled_from(WEIGHTS).map(weight_format), st.sampled_from(KV_FORMATS))
    prompt = draw(st.sampled_from([16, 1000, 20000]))
    scenario = base.but(
        model=other(MODEL, DENSE) if sharding.ep == 1 else MODEL,
        batch=draw(st.integers(1, 300)),
        context=draw(st.integers(prompt, 30000)),
        prompt=prompt,
        numerics=other(base.numerics, draw(formats)),
        sharding=sharding,
        placement=other(base.placement, layers, one, two),
        engine=dataclasses.replace(base.engine, **knobs),
        extras=Extras(other(0, 512), other(0, 2), 16, other(None, SMALL)),
    )
    return Planned(scenario, draw(st.integers(1, 20)), draw(st.integers(1, 2000)), draw(st.integers(1, 999)))


def shown(engine: str, asked: Planned) -> list[str]:
    """Texts that must stand in an export, written down apart from the code that makes them."""
    s, e = asked.scenario, asked.scenario.engine
    length = max(int(s.context), asked.prompt + asked.output)
    tp, pp, ep, *_ = s.sharding
    uneven = len(set(asked.stages)) > 1
    if engine == "vllm":
        found = [f"-tensor-parallel-size {tp} ", f"-pipeline-parallel-size {pp} ", f"-max-num-seqs {s.batch} "]
        found += [f"-max-num-batched-tokens {e.max_batched_tokens} ", f"-max-model-len {length} "]
        found += [f"VLLM_PP_LAYER_PARTITION={','.join(map(str, asked.stages))} "] * uneven
        found += ["-enable-expert-parallel "] * (ep > 1) + ["-enforce-eager "] * (not e.graphs)
    elif engine in ("sglang", "ktransformers"):
        found = [f"-tensor-parallel-size {tp} ", f"-expert-parallel-size {ep} ", f"-max-running-requests {s.batch} "]
        found += [f"-pipeline-parallel-size {pp} "] * (engine == "sglang") + [f"-context-length {length} "]
        found += ["-enable-mixed-chunk "] * e.mixes_prefill + ["-disable-cuda-graph "] * (not e.graphs)
        found += ["-speculative-draft-model-path "] * (s.extras.draft is not None)
    elif engine == "trtllm":
        found = [f"-tp_size {tp} ", f"-pp_size {pp} ", f"-ep_size {ep} ", f"-max_batch_size {s.batch} "]
        found += [f"-max_seq_len {length} ", f"tokens_per_block: {e.block_tokens}\n"]
        found += [f"pp_partition: {list(asked.stages)}\n"] * uneven
        found += ["cuda_graph_config: null\n"] * (not e.graphs)
    elif engine == "llama.cpp":
        found = [f"-parallel {s.batch} ", f"-ctx-size {s.batch * length} ", f"-ubatch-size {e.max_batched_tokens} "]
        found += [f"-tensor-split {','.join(map(str, asked.stages[:-1]))},{asked.stages[-1] + 1} "] * (pp > 1)
    else:
        found = [f"USERS, PROMPT, OUTPUT, ROUNDS = {s.batch}, {asked.prompt}, {asked.output}, 3\n"]
        return [*found, *(f'"model.layers.{i}": ' for i in range(s.model.layers))]
    if s.numerics.kv is DType.FP8:
        found.append("dtype fp8" if engine != "trtllm" else 'dtype: "fp8"')
    if s.extras.adapters:
        found.append({"llama.cpp": "$ADAPTER_2", "trtllm": "max_loras: 2"}.get(engine, "-max-loras"))
    return found


@pytest.mark.parametrize("engine", ENGINES)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_all_plans_are_shown_or_refused(engine: str, data: st.DataObject) -> None:
    asked = data.draw(plans(engine))
    try:
        exported = emit(engine, asked)
    except InputError as error:
        assert "\n" not in str(error)
        return
    hold_words(engine, exported)
    assert len(exported.lines) == asked.replicas
    text = exported.lines[0] + " " + "".join(exported.files.values())
    missing = [part for part in shown(engine, asked) if part not in text]
    assert not missing
    if not exported.benchmark.startswith("llama-bench") and engine != "accelerate":
        together = -(-asked.clients // asked.replicas)
        assert f"--random-output-len {asked.output} " in exported.benchmark
        assert f"--max-concurrency {together} " in exported.benchmark
    assert any(asked.scenario.numerics.weights.name.lower() in note.lower() for note in exported.notes)


# --- accelerate itself -------------------------------------------------------------------------------------------


def tiny(family: str):
    """A model of the family as transformers makes it, two layers, on no device."""
    torch = pytest.importorskip("torch")
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(family)
    config.num_hidden_layers = 2
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "family", ["llama", "qwen3_moe", "mixtral", "gemma2", "phi3", "opt", "gpt2", "bloom", "gpt_neox"]
)
def test_accelerate_takes_the_device_map(family: str) -> None:
    modeling = pytest.importorskip("accelerate.utils.modeling")
    asked = plan("accelerate", placement=Placement((Stretch(LAYERS_STREAMED, 1),)))
    pattern = dataclasses.replace(MODEL, family=family, pattern=MODEL.pattern[:2])
    where = accelerate.device_map(dataclasses.replace(asked, scenario=asked.scenario.but(model=pattern)))
    model = tiny(family)
    modeling.check_device_map(model, where)
    names = {name for name, _ in model.named_modules()}
    # Names an older or newer class lacks only lead to a warning.
    assert {name for name in where if name not in names} <= {"model.rotary_emb", "gpt_neox.rotary_emb"}
    assert list(where.values()).count("cpu") == 1


def test_formats_of_layers_are_a_file_for_who_makes_the_checkpoint() -> None:
    exported = emit("vllm", plan("vllm", model=mixed("fp8", "bf16"), numerics=Numerics(FORMATS["fp8"], DType.BF16)))
    rows = exported.files["layer_formats.csv"].splitlines()
    assert rows == ["layer,weights,experts"] + [f"{i},{w},{w}" for i in range(32) for w in ["fp8" if i < 5 else "bf16"]]
    assert "--quantization" not in exported.lines[0]  # it would narrow every layer
    with pytest.raises(InputError, match=r"formats of layers: .*; vllm, trtllm can"):
        emit("sglang", plan("sglang", model=mixed("nvfp4", "bf16")))


def test_stages_are_told_where_engines_cut_otherwise() -> None:
    uneven = {"sharding": Sharding(1, 3), "model": DENSE, "replicas": 1}
    assert "VLLM_PP_LAYER_PARTITION=11,11,10 vllm serve" in emit("vllm", plan("vllm", **uneven)).lines[0]
    assert "pp_partition: [11, 11, 10]\n" in emit("trtllm", plan("trtllm", **uneven)).files["extra-llm-api.yaml"]
    # 33 places with the head; a device has those below its share, so the counts themselves cut exactly.
    assert "--split-mode layer --tensor-split 11,11,11 " in emit("llama.cpp", plan("llama.cpp", **uneven)).lines[0]
    two = {"sharding": Sharding(1, 2), "model": DENSE, "replicas": 1}
    assert "LAYER_PARTITION" not in emit("sglang", plan("sglang", **two)).lines[0]


def test_device_map_of_stages_and_drives() -> None:
    stages = accelerate.device_map(plan("accelerate", sharding=Sharding(1, 3), model=DENSE))
    homes = [stages[f"model.layers.{i}"] for i in range(32)]
    assert homes == [0] * 11 + [1] * 11 + [2] * 10 and stages["lm_head"] == 2 and stages["model.embed_tokens"] == 0
    drives = accelerate.device_map(plan("accelerate", placement=Placement((Stretch(LAYERS_STREAMED, 8),), 0.3)))
    assert [drives[f"model.layers.{i}"] for i in range(10)] == ["cpu"] * 5 + ["disk"] * 3 + [0, 0]


@pytest.mark.slow
def test_the_script_runs_and_its_result_is_read(tmp_path: Path) -> None:
    """On a tiny model with everything on the host: what `run.py` writes is two records of the planned load."""
    pytest.importorskip("torch")
    pytest.importorskip("accelerate")
    asked = plan("accelerate", batch=1, prompt=12, context=24, output=6, replicas=1, clients=1)
    exported = emit("accelerate", asked)
    sizes = "vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=32, num_attention_heads=2"
    make = (
        "import sys; from transformers import LlamaConfig, LlamaForCausalLM; "
        f"LlamaForCausalLM(LlamaConfig(num_key_value_heads=2, {sizes})).save_pretrained(sys.argv[1])"
    )
    subprocess.run([sys.executable, "-c", make, str(tmp_path / "model")], check=True, capture_output=True)
    where = json.loads(exported.files["device_map.json"])
    (tmp_path / "device_map.json").write_text(json.dumps(dict.fromkeys(where, "cpu")))
    (tmp_path / "run.py").write_text(exported.files["run.py"])
    env = {"MODEL": str(tmp_path / "model"), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "run.py"], cwd=tmp_path, env=env, check=True, capture_output=True)
    read = import_file(tmp_path / "result.json", None, Given(device="h200", model="mixtral-8x7b", engine="accelerate"))
    assert {r.kernel for r in read.records} == {"decode-step", "prefill"} and not read.skipped
    for record in read.records:
        shape = dict(record.shape)
        assert shape["batch"] == 1 and shape["prompt"] == 12 and record.value > 0
