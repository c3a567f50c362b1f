"""Serving engines by name: how they batch prompts and what they spend around a step, each fact with its source.

Overheads belong to an engine version. No vendor states one, and those below come from the very rows that judge whole
steps: they apply only where a version is named, and no figure that is called untuned contains them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

from ..errors import UnknownNameError
from ..hwspecs.device import Device
from .scenario import (
    EXPERTS_HOST,
    KV_HOST,
    KV_STREAMED,
    LAYERS_HOST,
    LAYERS_KV_STREAMED,
    LAYERS_STREAMED,
    STREAMED_KV_HOST,
    ContextParallel,
    Engine,
)

PROFILES: Mapping[str, Engine] = MappingProxyType(
    {
        # vLLM V1 always chunks prompts and mixes the chunks into decode steps; servers on devices of 70 GiB and more
        # take 8192 tokens a step (vllm/engine/arg_utils.py, get_batch_defaults).
        # --decode-context-parallel-size deals KV caches out where heads are replicated, but none with a sliding window
        # and none of hybrid models (docs/serving/context_parallel_deployment.md; assertions in
        # vllm/v1/core/single_type_kv_cache_manager.py and kv_cache_coordinator.py).
        # Its Marlin kernels pad MXFP4 experts to multiples of 256 and 128 (layers/quantization/mxfp4.py).
        "vllm": Engine(
            name="vllm",
            max_batched_tokens=8192,
            mixes_prefill=True,
            chunks_prefill=True,
            fp4_expert_multiples=(256, 128),
            context_parallel=ContextParallel.ANY,
        ),
        # SGLang runs prefill steps of their own: enable_mixed_chunk=False, chunked_prefill_size=8192 below 160 GB
        # (python/sglang/srt/server_args.py).
        # --dcp-size deals latents out (python/sglang/srt/layers/dcp; that of other heads was closed: pull 14982).
        "sglang": Engine(
            name="sglang",
            max_batched_tokens=8192,
            mixes_prefill=False,
            chunks_prefill=True,
            context_parallel=ContextParallel.LATENT,
        ),
        # TensorRT-LLM mixes context and generation requests (in-flight batching), prompts whole unless chunked context
        # is enabled (enable_chunked_prefill=False).
        "trtllm": Engine(name="trtllm", max_batched_tokens=8192, mixes_prefill=True, chunks_prefill=False),
        # llama.cpp computes 512 tokens at a time (-ub), keeps the token table on the host and room for the logits of
        # all of them, pads the cache to 256 tokens; -ngl, --n-cpu-moe and --no-kv-offload leave layers, experts, KV on
        # the host. Its own --fit leaves 1 GiB free. Devices copy from each other, without communicators.
        "llama.cpp": Engine(
            name="llama.cpp",
            memory_utilization=0.95,
            max_batched_tokens=512,
            block_tokens=256,
            graphs=False,
            embeds_on_host=True,
            logits_for_all=True,
            offloads=(LAYERS_HOST, EXPERTS_HOST, KV_HOST),
            communicators=False,
        ),
        # KTransformers computes the routed experts on the host, everything else on the device; with USE_NUMA each of
        # two sockets has a copy of them (its README).
        "ktransformers": Engine(name="ktransformers", graphs=True, offloads=(EXPERTS_HOST,), copies_by_socket=True),
        # FlexGen (arXiv 2303.06865) streams layers and may attend on the host beside the KV cache it keeps there. Its
        # block schedule (section 4.1) takes many batches through a layer for one copy of its weights; threads of its
        # own read the drive (section 6, "multiple CUDA streams and CPU threads"). pytorch_backend.py widens keys and
        # values to fp32 before attention on the host: 2 bytes read, 4 written, 4 read for each 2 of the cache; and
        # leaves its cache unpinned ("disable pin_memory due to high memory overhead"). A policy's percentages hold for
        # every layer, and one layer is loaded ahead (flex_opt.py, `generation_loop_overlap_*`); the loop pins what is
        # not (`general_copy`) before it launches a layer. 4-bit groups are widened by PyTorch before each use.
        "flexgen": Engine(
            name="flexgen",
            graphs=False,
            mixes_prefill=False,
            offloads=(LAYERS_STREAMED, STREAMED_KV_HOST, LAYERS_KV_STREAMED, KV_HOST, KV_STREAMED),
            whole_blocks=True,
            drive_beside=True,
            host_attention_passes=5.0,
            pageable=(2,),
            prefetch_depths=(1,),
            cuts_layers=True,
            staging_blocks=True,
            unpacks_in_memory=True,
        ),
        # Accelerate's hooks copy a layer when it is called and drop it behind (hooks.py, AlignDevicesHook): nothing is
        # begun ahead, a batch's prompts pass each layer together, transformers' offloaded cache waits on the host.
        "accelerate": Engine(
            name="accelerate",
            graphs=False,
            mixes_prefill=False,
            offloads=(LAYERS_STREAMED, KV_STREAMED),
            whole_blocks=True,
            prefetch_depths=(0,),
        ),
    }
)


# Seconds a step takes beside its kernels, by engine version, from every second public serving row of the version that
# is comparable (calibrate.serving.step_overheads); the median error on the others falls as stated. 0: nothing missing.
STEP_OVERHEADS_S: Mapping[str, float] = MappingProxyType(
    {
        "vllm-0.12.0": 2.70e-3,  # 90 rows: 15.3 to 7.6 %
        "vllm-0.16.0": 0.0,  # 44 rows: 7.9 %
        "vllm-0.18.0": 0.0,  # 159 rows: 8.1 %
        "sglang-0.5.1.post1": 1.70e-3,  # 78 rows: 8.7 to 5.3 %
        "trtllm-1.0.0rc3": 0.62e-3,  # 479 rows: 6.9 to 6.2 %
    }
)


def usual(device: Device, is_gguf: bool = False) -> str:
    """The engine people run on a device, or with files only one engine reads, where none is named."""
    server = device.vendor in ("nvidia", "unknown", "google", "habana") or device.architecture_class in (
        "mfma",
        "systolic",
    )
    return "llama.cpp" if is_gguf or not server else "vllm"


def engine(name: str) -> Engine:
    """The profile of a name such as `vllm`, or `vllm-0.12.0` with that version's overhead a step."""
    if name in STEP_OVERHEADS_S:
        family, _, version = name.partition("-")
        return dataclasses.replace(PROFILES[family], version=version, step_overhead_s=STEP_OVERHEADS_S[name])
    if name not in PROFILES:
        raise UnknownNameError("engine", name, (*PROFILES, *STEP_OVERHEADS_S), listing="roofplan serve --help")
    return PROFILES[name]
