"""TensorRT-LLM's server with its PyTorch backend: `trtllm-serve` and the file of its further settings.

What they take is in `flags.csv`, read from `tensorrt_llm/commands/serve.py` and `tensorrt_llm/llmapi/llm_args.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np

from ....dtypes import DType
from ...memory import TensorClass, ledger
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
    even_stages,
    full,
    is_native,
    kind_of,
    layer_formats,
    no_shared_contexts,
    no_storage,
    on_device,
    replicas,
    runs_on,
    sixteen,
)

NAME = "trtllm"
PORT = 8000
FILE = "extra-llm-api.yaml"
USUAL_GUESSES = 5  # tokens a draft model guesses in a round, where the plan does not say
TORCH_NAMES = {DType.BF16: "bfloat16", DType.FP16: "float16", DType.FP32: "float32"}

MADE_BY: Mapping[Kind, str] = {
    Kind.FP8: "ModelOpt's fp8",
    Kind.FP8_BLOCK: "the publisher's own, or ModelOpt's fp8 of blocks",
    Kind.INT4: "ModelOpt's int4_awq with the plan's group",
    Kind.MXFP4: "gpt-oss as published",
    Kind.NVFP4: "ModelOpt's nvfp4",
}


def _stages(planned: Planned) -> Means:
    return even_stages(planned) or Means(settings=(("pp_partition", list(planned.stages)),))


def _weights(planned: Planned) -> Means:
    weights = planned.scenario.numerics.weights
    kind = kind_of(weights)
    if kind is Kind.PLAIN:
        return Means(settings=(("dtype", TORCH_NAMES[computes_in(planned, NAME)]),), note=checkpoint_note(planned, ""))
    if kind not in MADE_BY or (kind is Kind.MXFP4 and not is_native(planned)):
        raise Refused(f"loads no weights in {weights.name}" + ("" if kind is not Kind.MXFP4 else " but gpt-oss's"))
    return Means(because="the checkpoint's own hf_quant_config.json", note=checkpoint_note(planned, MADE_BY[kind]))


def _activations(planned: Planned) -> Means:
    if kind_of(planned.scenario.numerics.weights) is Kind.PLAIN:
        return Means(because=f"one dtype for weights and activations: {computes_in(planned, NAME)}")
    return Means(settings=(("dtype", TORCH_NAMES[computes_in(planned, NAME)]),))


def _kv(planned: Planned) -> Means:
    kv = planned.scenario.numerics.kv
    if sixteen(planned, NAME):
        return Means(settings=(("kv_cache_config.dtype", "auto"),))
    if kv is DType.FP8:
        return Means(settings=(("kv_cache_config.dtype", "fp8"),))
    raise Refused(f"keeps no cache in {kv}")


def _memory(planned: Planned) -> Means:
    """The cache's share of what is free behind all else: the engine may claim `memory_utilization` of all of it."""
    scenario = planned.scenario
    held, room = ledger(scenario), scenario.fleet.usable_bytes()
    rest = float(np.max(held.total_bytes() - held.of(TensorClass.KV_CACHE)))
    left = scenario.engine.memory_utilization * room - rest
    if left <= 0:
        raise full(f"all but the cache takes {rest / room:.0%} of a device", planned)
    note = f"--kv_cache_free_gpu_memory_fraction is of what all else, {rest / 2**30:.1f} GiB, leaves free"
    return Means(("--kv_cache_free_gpu_memory_fraction", f"{left / (room - rest):.3f}"), note=note)


def _chunks(planned: Planned) -> Means:
    engine = planned.scenario.engine
    if engine.chunks_prefill:
        return Means(("--enable_chunked_prefill",))
    if planned.prompt > engine.max_batched_tokens:
        raise Refused(f"takes whole prompts only up to --max_num_tokens, here {engine.max_batched_tokens}")
    return Means(because="prompts whole unless told otherwise")


def _mixes(planned: Planned) -> Means:
    if not planned.scenario.engine.mixes_prefill:
        raise Refused("always takes prompts along with decode steps (in-flight batching)")
    return Means(because="in-flight batching always does")


def _graphs(planned: Planned) -> Means:
    # An empty mapping is its default configuration, null turns graphs off (llm_args.py, cuda_graph_config).
    if not planned.scenario.engine.graphs:
        return Means(settings=(("cuda_graph_config", None),))
    return Means(settings=(("cuda_graph_config.max_batch_size", planned.users),))


def _flash(planned: Planned) -> Means:
    if not planned.scenario.engine.flash_attention:
        raise Refused("has no attention that keeps its scores")
    return Means(because="its kernels keep no scores")


def _page(planned: Planned) -> Means:
    tokens = planned.scenario.engine.block_tokens
    if tokens & (tokens - 1):
        raise Refused(f"has pages of a power of two tokens, not {tokens}")
    return Means(settings=(("kv_cache_config.tokens_per_block", tokens),))


def _adapters(planned: Planned) -> Means:
    count, rank = planned.scenario.extras.adapters, planned.scenario.extras.adapter_rank
    if not count:
        return Means(because="none")
    settings = (("max_loras", count), ("max_cpu_loras", count), ("max_lora_rank", rank))
    return Means(
        settings=(("enable_lora", True), *((f"lora_config.{key}", value) for key, value in settings)),
        note="requests name their adapter (lora_request)",
    )


def _draft(planned: Planned) -> Means:
    draft = planned.scenario.extras.draft
    if draft is None:
        return Means(because="none")
    guesses = planned.scenario.extras.draft_length or USUAL_GUESSES
    settings = (("decoding_type", "Draft_Target"), ("max_draft_len", guesses), ("speculative_model", "DRAFT"))
    note = f"write the path of {draft.name} for DRAFT in {FILE}"
    return Means(settings=tuple((f"speculative_config.{key}", value) for key, value in settings), note=note)


def _placement(planned: Planned) -> Means:
    on_device(planned, "keeps all weights and the cache of running requests on the device")
    return Means(because="all on the device")


DECIDE: Mapping[Decision, Decide] = {
    Decision.TP: lambda p: Means(("--tp_size", str(p.scenario.sharding.tp))),
    Decision.PP: lambda p: Means(("--pp_size", str(p.scenario.sharding.pp))),
    Decision.STAGES: _stages,
    Decision.EP: lambda p: Means(("--ep_size", str(p.scenario.sharding.ep))),
    Decision.CP: no_shared_contexts,
    Decision.REPLICAS: replicas,
    Decision.USERS: lambda p: Means(("--max_batch_size", str(p.users))),
    Decision.STEP_TOKENS: lambda p: Means(("--max_num_tokens", str(p.scenario.engine.max_batched_tokens))),
    Decision.CHUNKS: _chunks,
    Decision.MIXES: _mixes,
    Decision.CONTEXT: lambda p: Means(("--max_seq_len", str(p.length))),
    Decision.MEMORY: _memory,
    Decision.WEIGHTS: _weights,
    Decision.LAYER_FORMATS: layer_formats(
        frozenset({Kind.PLAIN, Kind.FP8, Kind.NVFP4, Kind.INT4}), "ModelOpt, its quant_algo MIXED_PRECISION"
    ),
    Decision.ACTIVATIONS: _activations,
    Decision.KV: _kv,
    Decision.GRAPHS: _graphs,
    Decision.FLASH: _flash,
    Decision.PAGE: _page,
    Decision.PREFIX: lambda p: Means(
        settings=(("kv_cache_config.enable_block_reuse", p.scenario.extras.shared_prefix > 0),)
    ),
    Decision.ADAPTERS: _adapters,
    Decision.DRAFT: _draft,
    Decision.PLACEMENT: _placement,
    Decision.STORAGE: no_storage,
    **ALIKE,
    Decision.DEVICE: runs_on("amd", "apple", "google", "habana", "intel"),
}


def yaml(settings: Mapping[str, object]) -> str:
    """Settings with dotted keys as YAML of two levels; values are written as JSON, which YAML reads."""
    tops: dict[str, list[str]] = {}
    for key, value in settings.items():
        top, _, below = key.partition(".")
        tops.setdefault(top, []).append(f"  {below}: {json.dumps(value)}" if below else f"{top}: {json.dumps(value)}")
    return "".join(
        "\n".join(lines) + "\n" if not lines[0].startswith(" ") else f"{top}:\n" + "\n".join(lines) + "\n"
        for top, lines in tops.items()
    )


def command(_planned: Planned, means: Mapping[Decision, Means]) -> Command:
    """`trtllm-serve MODEL` and its file."""
    settings = dict(setting for way in means.values() for setting in way.settings)
    head = f'trtllm-serve "$MODEL" --backend pytorch --extra_llm_api_options {FILE}'
    return Command(head, ("--port",), {FILE: yaml(settings)})
