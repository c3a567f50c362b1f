"""SGLang's server. What it takes is in `flags.csv`, read from its `docs/advanced_features/server_arguments.md`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ....dtypes import DType
from ...memory import TensorClass, ledger
from ...placement import moved
from ...scenario import LAYERS_STREAMED, ContextParallel
from .planned import (
    ALIKE,
    Command,
    Decide,
    Decision,
    Kind,
    Loaded,
    Means,
    Planned,
    Refused,
    even_stages,
    full,
    layer_formats,
    no_storage,
    on_device,
    replicas,
    runs_on,
    sixteen,
)

NAME = "sglang"
PORT = 30000
USUAL_GUESSES = 5  # tokens a draft model guesses in a round, where the plan does not say
TORCH_NAMES = {DType.BF16: "bfloat16", DType.FP16: "half", DType.FP32: "float32"}
STATIC = (TensorClass.WEIGHTS, TensorClass.KV_CACHE, TensorClass.ADAPTERS, TensorClass.DRAFT)

MADE_BY: Mapping[Kind, str] = {
    Kind.FP8: "llm-compressor's FP8 or ModelOpt's fp8",
    Kind.FP8_BLOCK: "the publisher's own, or llm-compressor's FP8_BLOCK",
    Kind.INT8: "llm-compressor's W8A8 of whole numbers",
    Kind.INT4: "AWQ or GPTQ with the plan's group, whose method config.json names",
    Kind.MXFP4: "gpt-oss as published",
    Kind.NVFP4: "ModelOpt's nvfp4",
    Kind.GGUF: "one GGUF file",
    Kind.BITSANDBYTES: "of 4 bits",
}
_WORDS: Mapping[Kind, tuple[str, ...]] = {
    Kind.INT8: ("--quantization", "w8a8_int8"),
    Kind.MXFP4: ("--quantization", "mxfp4"),
    Kind.NVFP4: ("--quantization", "modelopt_fp4"),
    Kind.GGUF: ("--quantization", "gguf", "--load-format", "gguf"),
    Kind.BITSANDBYTES: ("--quantization", "bitsandbytes", "--load-format", "bitsandbytes"),
}
LOADED = Loaded(NAME, TORCH_NAMES, MADE_BY, _WORDS)


def _stages(planned: Planned) -> Means:
    # Engines spread what is left over differently, so they are told unless the stages are even.
    told = Means(environment="SGLANG_PP_LAYER_PARTITION=" + ",".join(map(str, planned.stages)))
    return even_stages(planned) or told


def _kv(planned: Planned) -> Means:
    kv = planned.scenario.numerics.kv
    if sixteen(planned, NAME):
        return Means(("--kv-cache-dtype", "auto"))
    if kv is DType.FP8:
        return Means(("--kv-cache-dtype", "fp8_e4m3"))
    raise Refused(f"keeps no cache in {kv}")


def _cp(planned: Planned) -> Means:
    scenario = planned.scenario
    if scenario.sharding.cp == 1:
        return Means(because="every rank keeps whole contexts")
    if not ContextParallel.LATENT.covers(scenario.model):
        raise Refused("deals contexts of latent attention out over ranks, no others")
    if not scenario.engine.flash_attention:
        raise Refused("deals no contexts out with the attention backend that keeps scores")
    # The backend of the pull request that brought it (14194); not all others return what their parts are merged by.
    return Means(("--dcp-size", str(scenario.sharding.cp), "--attention-backend", "flashinfer"))


def _memory(planned: Planned) -> Means:
    """The share for weights and cache: what the engine may claim less what else the ledger counts on the device."""
    scenario = planned.scenario
    held = ledger(scenario)
    rest = float(np.max(held.total_bytes() - held.total_bytes(STATIC))) / scenario.fleet.usable_bytes()
    share = scenario.engine.memory_utilization - rest
    if share <= 0:
        raise full(f"all but weights and cache takes {rest:.0%} of a device", planned)
    whole = scenario.engine.memory_utilization
    note = f"--mem-fraction-static is the share of weights and cache: {whole:g} less {rest:.3f} of all else"
    return Means(("--mem-fraction-static", f"{share:.3f}"), note=note)


def _chunks(planned: Planned) -> Means:
    engine = planned.scenario.engine
    return Means(("--chunked-prefill-size", str(engine.max_batched_tokens if engine.chunks_prefill else -1)))


def _mixes(planned: Planned) -> Means:
    if not planned.scenario.engine.mixes_prefill:
        return Means(because="prompts have steps of their own unless told otherwise")
    if not planned.scenario.engine.chunks_prefill:
        raise Refused("takes prompts along with decode steps only in chunks")
    return Means(("--enable-mixed-chunk",))


def _flash(planned: Planned) -> Means:
    if planned.scenario.engine.flash_attention:
        return Means(because="its usual kernels keep no scores")
    return Means(("--attention-backend", "torch_native"))


def _prefix(planned: Planned) -> Means:
    if planned.scenario.extras.shared_prefix:
        return Means(because="its radix cache keeps shared prefixes unless told not to")
    return Means(because="nothing shared")


def _adapters(planned: Planned) -> Means:
    count, rank = str(planned.scenario.extras.adapters), str(planned.scenario.extras.adapter_rank)
    if count == "0":
        return Means(because="none")
    flags = ("--enable-lora", "--max-loras-per-batch", count, "--max-loaded-loras", count, "--max-lora-rank", rank)
    return Means(flags, note="name the adapters with --lora-paths NAME=PATH")


def _draft(planned: Planned) -> Means:
    draft = planned.scenario.extras.draft
    if draft is None:
        return Means(because="none")
    guesses = planned.scenario.extras.draft_length or USUAL_GUESSES
    sizes = ("--speculative-num-steps", str(guesses), "--speculative-eagle-topk", "1")
    model = ("--speculative-algorithm", "STANDALONE", "--speculative-draft-model-path", '"$DRAFT"')
    note = f"DRAFT is {draft.name}"
    return Means((*model, *sizes, "--speculative-num-draft-tokens", str(guesses + 1)), note=note)


def _placement(planned: Planned) -> Means:
    if not planned.modes:
        return Means(because="all on the device")
    if set(planned.modes) != {LAYERS_STREAMED}:
        on_device(planned, "moves nothing but whole layers' weights to the host, which it copies over for each step")
    if planned.scenario.sharding.pp > 1:
        raise Refused("moves the same bytes off every device, not the first layers of several stages")
    return Means(
        ("--cpu-offload-gb", str(-int(-moved(planned.scenario).weights // 2**30))), note="in whole GiB a device"
    )


def _graphs(planned: Planned) -> Means:
    if planned.scenario.engine.graphs:
        return Means(because="captured unless told not to")
    return Means(("--disable-cuda-graph",))


DECIDE: Mapping[Decision, Decide] = {
    Decision.TP: lambda p: Means(("--tensor-parallel-size", str(p.scenario.sharding.tp))),
    Decision.PP: lambda p: Means(("--pipeline-parallel-size", str(p.scenario.sharding.pp))),
    Decision.STAGES: _stages,
    Decision.EP: lambda p: Means(("--expert-parallel-size", str(p.scenario.sharding.ep))),
    Decision.CP: _cp,
    Decision.REPLICAS: replicas,
    Decision.USERS: lambda p: Means(("--max-running-requests", str(p.users))),
    Decision.STEP_TOKENS: lambda p: Means(("--max-prefill-tokens", str(p.scenario.engine.max_batched_tokens))),
    Decision.CHUNKS: _chunks,
    Decision.MIXES: _mixes,
    Decision.CONTEXT: lambda p: Means(("--context-length", str(p.length))),
    Decision.MEMORY: _memory,
    Decision.WEIGHTS: LOADED.weights,
    Decision.LAYER_FORMATS: layer_formats(
        frozenset({Kind.PLAIN, Kind.FP8, Kind.INT8, Kind.INT4}), "llm-compressor, a group of its recipe for each format"
    ),
    Decision.ACTIVATIONS: LOADED.activations,
    Decision.KV: _kv,
    Decision.GRAPHS: _graphs,
    Decision.FLASH: _flash,
    Decision.PAGE: lambda p: Means(("--page-size", str(p.scenario.engine.block_tokens))),
    Decision.PREFIX: _prefix,
    Decision.ADAPTERS: _adapters,
    Decision.DRAFT: _draft,
    Decision.PLACEMENT: _placement,
    Decision.STORAGE: no_storage,
    **ALIKE,
    Decision.DEVICE: runs_on("apple", "google"),
}


def command(_planned: Planned, _means: Mapping[Decision, Means]) -> Command:
    """`python -m sglang.launch_server`."""
    return Command('python -m sglang.launch_server --model-path "$MODEL"', ("--port",))
