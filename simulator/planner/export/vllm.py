"""vLLM's server: `vllm serve`. What it takes is in `flags.csv`, read from its `vllm/engine/arg_utils.py`."""

from __future__ import annotations

from collections.abc import Mapping

from ....dtypes import DType
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
    layer_formats,
    no_storage,
    on_device,
    replicas,
    runs_on,
    sixteen,
)

NAME = "vllm"
PORT = 8000
PAGES = (1, 8, 16, 32, 64, 128)  # arg_utils.py, BlockSize
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # vllm/config/lora.py, possible_max_ranks
TORCH_NAMES = {DType.BF16: "bfloat16", DType.FP16: "float16", DType.FP32: "float32"}

# What has to have written a checkpoint, and the words that say so where config.json does not.
MADE_BY: Mapping[Kind, str] = {
    Kind.FP8: "llm-compressor's FP8 or ModelOpt's fp8",
    Kind.FP8_BLOCK: "the publisher's own, or llm-compressor's FP8_BLOCK",
    Kind.INT8: "llm-compressor's W8A8 of whole numbers",
    Kind.INT4: "AWQ or GPTQ with the plan's group, whose method config.json names",
    Kind.MXFP4: "gpt-oss as published, or AMD Quark's",
    Kind.NVFP4: "ModelOpt's nvfp4 or llm-compressor's NVFP4",
    Kind.GGUF: "one GGUF file; vLLM calls its reader experimental, give --tokenizer the original model's",
    Kind.BITSANDBYTES: "of 4 bits",
}
_WORDS: Mapping[Kind, tuple[str, ...]] = {
    Kind.GGUF: ("--quantization", "gguf", "--load-format", "gguf"),
    Kind.BITSANDBYTES: ("--quantization", "bitsandbytes"),
}
LOADED = Loaded(NAME, TORCH_NAMES, MADE_BY, _WORDS)


def _stages(planned: Planned) -> Means:
    # Engines spread what is left over differently, so they are told unless the stages are even.
    told = Means(environment="VLLM_PP_LAYER_PARTITION=" + ",".join(map(str, planned.stages)))
    return even_stages(planned) or told


def _kv(planned: Planned) -> Means:
    kv = planned.scenario.numerics.kv
    if sixteen(planned, NAME):
        return Means(("--kv-cache-dtype", "auto"))
    if kv is DType.FP8:
        return Means(("--kv-cache-dtype", "fp8"))
    raise Refused(f"keeps no cache in {kv}")


def _ep(planned: Planned) -> Means:
    tp, ep = planned.scenario.sharding.tp, planned.scenario.sharding.ep
    if ep == 1:
        return Means(because="experts are cut like all else")
    if ep != tp:
        raise Refused(f"deals whole experts to all ranks or none (asked for {ep} groups of {tp} ranks)")
    return Means(("--enable-expert-parallel",))


def _cp(planned: Planned) -> Means:
    cp, kv = planned.scenario.sharding.cp, planned.scenario.numerics.kv
    if cp == 1:
        return Means(because="every rank keeps whole contexts")
    if kv is DType.FP8 and ContextParallel.LATENT.covers(planned.scenario.model):
        raise Refused("0.11 deals no fp8 latents out over ranks (later versions do: its pull request 44044)")
    return Means(("--decode-context-parallel-size", str(cp)))


def _chunks(planned: Planned) -> Means:
    engine = planned.scenario.engine
    if engine.chunks_prefill:
        return Means(("--enable-chunked-prefill",))
    if not planned.length <= engine.max_batched_tokens:
        raise Refused(f"takes whole prompts only up to --max-num-batched-tokens, here {engine.max_batched_tokens}")
    return Means(("--no-enable-chunked-prefill",))


def _mixes(planned: Planned) -> Means:
    if not planned.scenario.engine.mixes_prefill:
        raise Refused("always takes prompts along with decode steps")
    return Means(because="its scheduler always does")


def _flash(planned: Planned) -> Means:
    if not planned.scenario.engine.flash_attention:
        raise Refused("has no attention that keeps its scores")
    return Means(because="its kernels keep no scores")


def _page(planned: Planned) -> Means:
    tokens = planned.scenario.engine.block_tokens
    if tokens not in PAGES:
        raise Refused(f"has pages of {', '.join(map(str, PAGES))} tokens, not {tokens}")
    return Means(("--block-size", str(tokens)))


def _adapters(planned: Planned) -> Means:
    count, rank = planned.scenario.extras.adapters, planned.scenario.extras.adapter_rank
    if not count:
        return Means(because="none")
    room = next((r for r in RANKS if r >= rank), None)
    if room is None:
        raise Refused(f"takes adapters up to rank {RANKS[-1]}, not {rank}")
    note = "name the adapters with --lora-modules NAME=PATH"
    note += f"; rank {rank} takes the room of {room}" if room != rank else ""
    return Means(("--enable-lora", "--max-loras", str(count), "--max-lora-rank", str(room)), note=note)


def _draft(planned: Planned) -> Means:
    if planned.scenario.extras.draft is not None:
        raise Refused("speculates with no model of its own right (its 0.11 refuses the method draft_model)")
    return Means(because="none")


def _placement(planned: Planned) -> Means:
    if not planned.modes:
        return Means(because="all on the device")
    if set(planned.modes) != {LAYERS_STREAMED}:
        on_device(planned, "moves nothing but whole layers' weights to the host, which it copies over for each step")
    if planned.scenario.sharding.pp > 1:
        raise Refused("moves the same bytes off every device, not the first layers of several stages")
    gib = moved(planned.scenario).weights / 2**30
    note = "vLLM takes weights off the device in the order of layers until --cpu-offload-gb (GiB a device) is reached"
    return Means(("--cpu-offload-gb", f"{gib:.2f}"), note=note)


def _prefix(planned: Planned) -> Means:
    shared = planned.scenario.extras.shared_prefix
    return Means(("--enable-prefix-caching",)) if shared else Means(because="nothing shared")


def _graphs(planned: Planned) -> Means:
    return (
        Means(because="captured unless told not to") if planned.scenario.engine.graphs else Means(("--enforce-eager",))
    )


DECIDE: Mapping[Decision, Decide] = {
    Decision.TP: lambda p: Means(("--tensor-parallel-size", str(p.scenario.sharding.tp))),
    Decision.PP: lambda p: Means(("--pipeline-parallel-size", str(p.scenario.sharding.pp))),
    Decision.STAGES: _stages,
    Decision.EP: _ep,
    Decision.CP: _cp,
    Decision.REPLICAS: replicas,
    Decision.USERS: lambda p: Means(("--max-num-seqs", str(p.users))),
    Decision.STEP_TOKENS: lambda p: Means(("--max-num-batched-tokens", str(p.scenario.engine.max_batched_tokens))),
    Decision.CHUNKS: _chunks,
    Decision.MIXES: _mixes,
    Decision.CONTEXT: lambda p: Means(("--max-model-len", str(p.length))),
    Decision.MEMORY: lambda p: Means(("--gpu-memory-utilization", f"{p.scenario.engine.memory_utilization:g}")),
    Decision.WEIGHTS: LOADED.weights,
    Decision.LAYER_FORMATS: layer_formats(
        frozenset({Kind.PLAIN, Kind.FP8, Kind.FP8_BLOCK, Kind.INT8, Kind.INT4, Kind.NVFP4}),
        "llm-compressor, a group of its recipe for each format",
    ),
    Decision.ACTIVATIONS: LOADED.activations,
    Decision.KV: _kv,
    Decision.GRAPHS: _graphs,
    Decision.FLASH: _flash,
    Decision.PAGE: _page,
    Decision.PREFIX: _prefix,
    Decision.ADAPTERS: _adapters,
    Decision.DRAFT: _draft,
    Decision.PLACEMENT: _placement,
    Decision.STORAGE: no_storage,
    **ALIKE,
    Decision.DEVICE: runs_on("apple"),
}


def command(_planned: Planned, _means: Mapping[Decision, Means]) -> Command:
    """`vllm serve MODEL`."""
    return Command('vllm serve "$MODEL"', ("--port",))
