"""transformers with accelerate's device map: layers in order over devices, weights copied from the host or a drive.

There is no server: `run.py` loads the model by `device_map.json`, generates for all planned users at once and writes
what `roofplan records import` reads. `cpu` and `disk` in a map mean that a module's weights are copied over each time
it runs (Accelerate documentation, "Big Model Inference"), so nothing is computed by the host.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from ....dtypes import DType
from ...placement import layer_bytes
from ...scenario import KV_STREAMED, LAYERS_STREAMED, Sharding
from .planned import (
    ALIKE,
    Command,
    Decide,
    Decision,
    Kind,
    Means,
    Planned,
    Refused,
    checkpoint_note,
    computes_in,
    kind_of,
    layer_formats,
    no_shared_contexts,
    on_device,
    replicas,
    runs_on,
    sixteen,
)

NAME = "accelerate"
PORT = 0  # no endpoint
MAP, RUN = "device_map.json", "run.py"
TORCH_NAMES = {DType.BF16: "bfloat16", DType.FP16: "float16", DType.FP32: "float32"}
MADE_BY: Mapping[Kind, str] = {
    Kind.FP8_BLOCK: "the publisher's own",
    Kind.FP8: "llm-compressor's FP8",
    Kind.INT8: "llm-compressor's W8A8 of whole numbers",
    Kind.INT4: "AWQ or GPTQ with the plan's group, whose method config.json names",
    Kind.MXFP4: "gpt-oss as published",
    Kind.BITSANDBYTES: "of 4 bits",
}

# Modules of transformers' classes by model type: the layers, those before them and those behind. A map with a name that
# is missing in the model, or without one that is there, is refused by accelerate itself (check_device_map).
USUAL = ("model.layers", ("model.embed_tokens", "model.rotary_emb"), ("model.norm", "lm_head"))
MODULES: Mapping[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    **dict.fromkeys(
        (
            *("llama", "mistral", "ministral3", "qwen2", "qwen3", "qwen2_moe", "qwen3_moe", "mixtral", "phi3", "gemma"),
            *("gemma2", "cohere", "cohere2", "olmo", "olmo2", "olmo3", "olmoe", "starcoder2", "stablelm", "granite"),
            *(
                "granitemoe",
                "glm",
                "glm4",
                "glm4_moe",
                "deepseek_v2",
                "deepseek_v3",
                "minimax_m2",
                "gpt_oss",
                "smollm3",
            ),
            *("seed_oss", "exaone4", "nemotron", "ernie4_5_moe"),
        ),
        USUAL,
    ),
    "opt": (
        "model.decoder.layers",
        ("model.decoder.embed_tokens", "model.decoder.embed_positions"),
        ("model.decoder.final_layer_norm", "lm_head"),
    ),
    "gpt2": ("transformer.h", ("transformer.wte", "transformer.wpe"), ("transformer.ln_f", "lm_head")),
    "bloom": (
        "transformer.h",
        ("transformer.word_embeddings", "transformer.word_embeddings_layernorm"),
        ("transformer.ln_f", "lm_head"),
    ),
    "gpt_neox": (
        "gpt_neox.layers",
        ("gpt_neox.embed_in", "gpt_neox.rotary_emb"),
        ("gpt_neox.final_layer_norm", "lm_head"),
    ),
}


def _tp(planned: Planned) -> Means:
    if planned.scenario.sharding.tp > 1:
        raise Refused(f"gives whole modules to devices, no parts of tensors (tp{planned.scenario.sharding.tp})")
    return Means(because="whole modules on a device")


def _pp(planned: Planned) -> Means:
    pp = planned.scenario.sharding.pp
    if pp == 1:
        return Means(because="one device")
    note = "accelerate runs one device after another: no two batches are under way at once"
    return Means(because=f"{pp} devices in {MAP}", note=note)


def _ep(planned: Planned) -> Means:
    if planned.scenario.sharding.ep > 1:
        raise Refused("deals no experts out to devices")
    return Means(because="experts stay together")


def _stages(planned: Planned) -> Means:
    return Means(because=f"{', '.join(map(str, planned.stages))} layers in {MAP}")


def _weights(planned: Planned) -> Means:
    weights = planned.scenario.numerics.weights
    kind = kind_of(weights)
    settings = (("dtype", TORCH_NAMES[computes_in(planned, NAME)]),)
    if kind is Kind.PLAIN:
        return Means(settings=settings, note=checkpoint_note(planned, ""))
    if kind not in MADE_BY:
        raise Refused(f"loads no weights in {weights.name} as they are")
    if planned.modes:
        raise Refused(f"copies no weights in {weights.name} over from the host, only plain ones")
    return Means(settings=settings, note=checkpoint_note(planned, MADE_BY[kind]))


def _kv(planned: Planned) -> Means:
    if not sixteen(planned, NAME):
        raise Refused(f"keeps its cache in the format it computes in, not in {planned.scenario.numerics.kv}")
    return Means(because=f"the cache has the model's format, {planned.scenario.numerics.kv}")


def _step_tokens(planned: Planned) -> Means:
    most = planned.scenario.engine.max_batched_tokens
    if planned.scenario.engine.chunks_prefill:
        if planned.users > most:
            raise Refused(f"takes a token of each of {planned.users} users in a step, more than {most}")
        return Means(settings=(("prefill_chunk_size", most // planned.users),))
    if planned.users * planned.prompt > most:
        raise Refused(f"takes the whole prompts of all {planned.users} users in one step, more than {most} tokens")
    return Means(because="all prompts fit one step")


def _chunks(planned: Planned) -> Means:
    return Means(because="prefill_chunk_size" if planned.scenario.engine.chunks_prefill else "prompts whole")


def _mixes(planned: Planned) -> Means:
    if planned.scenario.engine.mixes_prefill:
        raise Refused("takes no prompts along with decode steps")
    return Means(because="all users start together")


def _graphs(planned: Planned) -> Means:
    if planned.scenario.engine.graphs:
        raise Refused("captures no graphs")
    return Means(because="none")


def _prefix(planned: Planned) -> Means:
    if planned.scenario.extras.shared_prefix:
        raise Refused("keeps no prefix once for all users")
    return Means(because="nothing shared")


def _adapters(planned: Planned) -> Means:
    if planned.scenario.extras.adapters:
        raise Refused("serves no adapters side by side")
    return Means(because="none")


def _draft(planned: Planned) -> Means:
    if planned.scenario.extras.draft is not None:
        if planned.users > 1:
            raise Refused("speculates for one user only")
        raise Refused("has no place for a draft model in this device map")
    return Means(because="none")


def _placement(planned: Planned) -> Means:
    scenario = planned.scenario
    if not planned.modes:
        return Means(because=f"all on the device in {MAP}")
    if scenario.sharding.pp > 1:
        raise Refused("has a placement here for one device only")
    if planned.modes == {KV_STREAMED: scenario.model.layers}:
        return Means(settings=(("cache_implementation", "offloaded"),))
    if set(planned.modes) != {LAYERS_STREAMED}:
        on_device(planned, "copies weights of whole layers, or the cache of all layers, over for each step")
    return Means(because=f"{planned.modes[LAYERS_STREAMED]} layers on cpu or disk in {MAP}")


def _on_disk(planned: Planned) -> int:
    """How many of the streamed layers come from the drive: as few as hold the planned share of the host's bytes."""
    bytes_ = layer_bytes(planned.scenario, Sharding())
    streamed = [
        i
        for i, s in enumerate(planned.scenario.placement.modes(planned.scenario.model.layers))
        if s.mode == LAYERS_STREAMED
    ]
    sizes = [float(bytes_.shell[i] + bytes_.experts[i]) for i in streamed]
    wanted, count = planned.scenario.placement.storage_share * sum(sizes), 0
    while count < len(sizes) and sum(sizes[len(sizes) - count :]) < wanted * (1 - 1e-9):
        count += 1
    return count


def _storage(planned: Planned) -> Means:
    share = planned.scenario.placement.storage_share
    if share <= 0:
        return Means(because="nothing is read from a drive")
    if set(planned.modes) != {LAYERS_STREAMED}:
        raise Refused("reads only streamed layers from a drive")
    layers = _on_disk(planned)
    return Means(
        settings=(("offload_folder", "offload"),), note=f"whole layers: {layers} of them hold {share:.0%} or more"
    )


def _flash(planned: Planned) -> Means:
    return Means(settings=(("attn_implementation", "sdpa" if planned.scenario.engine.flash_attention else "eager"),))


def device_map(planned: Planned) -> dict[str, int | str]:
    """Where every module goes."""
    model, scenario = planned.scenario.model, planned.scenario
    layers, before, behind = MODULES[model.family]
    pp = scenario.sharding.pp
    homes: list[int | str] = [stage for stage, size in enumerate(planned.stages) for _ in range(size)]
    streamed = [i for i, s in enumerate(scenario.placement.modes(model.layers)) if s.mode == LAYERS_STREAMED]
    on_disk = _on_disk(planned) if scenario.placement.storage_share > 0 else 0
    for place, i in enumerate(streamed):
        homes[i] = "disk" if place >= len(streamed) - on_disk else "cpu"
    return {
        **dict.fromkeys(before, 0),
        **{f"{layers}.{i}": home for i, home in enumerate(homes)},
        **dict.fromkeys(behind, 0 if model.tied else pp - 1),
    }


def _no_pages(_planned: Planned) -> Means:
    return Means(because="a cache without pages, which takes no more than one with")


def _context(planned: Planned) -> Means:
    return Means(because=f"the cache grows to prompt and output, {planned.prompt + planned.output} tokens")


DECIDE: Mapping[Decision, Decide] = {
    Decision.TP: _tp,
    Decision.PP: _pp,
    Decision.STAGES: _stages,
    Decision.EP: _ep,
    Decision.CP: no_shared_contexts,
    Decision.REPLICAS: replicas,
    Decision.USERS: lambda p: Means(settings=(("users", p.users),)),
    Decision.STEP_TOKENS: _step_tokens,
    Decision.CHUNKS: _chunks,
    Decision.MIXES: _mixes,
    Decision.CONTEXT: _context,
    Decision.MEMORY: lambda _: Means(because=f"{MAP} says what a device holds, no share of it"),
    Decision.WEIGHTS: _weights,
    Decision.LAYER_FORMATS: layer_formats(
        frozenset({Kind.PLAIN, Kind.FP8, Kind.INT8, Kind.INT4}), "llm-compressor, a group of its recipe for each format"
    ),
    Decision.ACTIVATIONS: lambda p: Means(because=f"one dtype for all: {computes_in(p, NAME)}"),
    Decision.KV: _kv,
    Decision.GRAPHS: _graphs,
    Decision.FLASH: _flash,
    Decision.PAGE: _no_pages,
    Decision.PREFIX: _prefix,
    Decision.ADAPTERS: _adapters,
    Decision.DRAFT: _draft,
    Decision.PLACEMENT: _placement,
    Decision.STORAGE: _storage,
    **ALIKE,
    Decision.DEVICE: runs_on("google"),
}

_SCRIPT = '''"""Loads MODEL by device_map.json, generates for all users at once, writes a result roofplan can import."""

import json
import os
import statistics
import time

import torch
from transformers import AutoModelForCausalLM

LOAD = {load}
GENERATE = {generate}
USERS, PROMPT, OUTPUT, ROUNDS = {users}, {prompt}, {output}, 3


with open("device_map.json") as f:
    where = json.load(f)
model = AutoModelForCausalLM.from_pretrained(os.environ["MODEL"], device_map=where, **LOAD).eval()
device = model.get_input_embeddings().weight.device
device = torch.device("cuda", 0) if device.type == "meta" else device
torch.manual_seed(0)
first, each, spent = [], [], 0.0
for turn in range(ROUNDS + 1):
    prompts = torch.randint(1, model.get_input_embeddings().num_embeddings, (USERS, PROMPT), device=device)
    seen = []
    start = time.perf_counter()
    # A streamer takes one user's tokens only, so a step is seen by its logits.
    model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        max_new_tokens=OUTPUT,
        min_new_tokens=OUTPUT,
        do_sample=False,
        pad_token_id=0,
        logits_processor=[lambda ids, scores: (seen.append(time.perf_counter()), scores)[1]],
        **GENERATE,
    )
    done = time.perf_counter()
    if turn:  # the first round warms up
        first.append(1e3 * (seen[0] - start))
        each.append(1e3 * (done - seen[0]) / max(OUTPUT - 1, 1))
        spent += done - start
served = USERS * ROUNDS
result = {{
    "backend": "accelerate",
    "date": time.strftime("%Y%m%d-%H%M%S"),
    "num_prompts": served,
    "completed": served,
    "max_concurrency": USERS,
    "request_rate": "inf",
    "total_input_tokens": served * PROMPT,
    "total_output_tokens": served * OUTPUT,
    "output_throughput": served * OUTPUT / spent,
    "median_ttft_ms": statistics.median(first),
    "mean_ttft_ms": statistics.mean(first),
    "median_tpot_ms": statistics.median(each),
    "mean_tpot_ms": statistics.mean(each),
    "pipeline_parallel_size": "{pp}",
}}
with open("result.json", "w") as f:
    json.dump(result, f)
print(json.dumps(result))
'''
_OF_GENERATION = ("prefill_chunk_size", "cache_implementation")


def command(planned: Planned, means: Mapping[Decision, Means]) -> Command:
    """`python run.py` and its two files."""
    family = planned.scenario.model.family
    if family not in MODULES:
        raise Refused(f"knows no names of the modules of {family}")
    settings = dict(setting for way in means.values() for setting in way.settings)
    users = settings.pop("users")
    script = _SCRIPT.format(
        load={key: value for key, value in settings.items() if key not in _OF_GENERATION},
        generate={key: value for key, value in settings.items() if key in _OF_GENERATION},
        users=users,
        prompt=planned.prompt,
        output=planned.output,
        pp=planned.scenario.sharding.pp,
    )
    return Command(f"python {RUN}", (), {MAP: json.dumps(device_map(planned), indent=1) + "\n", RUN: script})
