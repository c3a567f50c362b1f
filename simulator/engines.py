"""Serving engines by name: how they batch prompts and what they spend around a step, each fact with its source.

Overheads belong to an engine version. None is stated by a vendor and none is fitted on the rows that judge us, so the
default is zero; `calibrate.serving` can fit one for a version.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from ..errors import UnknownNameError
from .scenario import Engine

PROFILES: Mapping[str, Engine] = MappingProxyType(
    {
        # vLLM V1 always chunks prompts and mixes the chunks into decode steps; servers on devices of 70 GiB and more
        # take 8192 tokens a step (vllm/engine/arg_utils.py, get_batch_defaults).
        "vllm": Engine(name="vllm", max_batched_tokens=8192, mixes_prefill=True, chunks_prefill=True),
        # SGLang runs prefill steps of their own: enable_mixed_chunk=False, chunked_prefill_size=8192 below 160 GB
        # (python/sglang/srt/server_args.py).
        "sglang": Engine(name="sglang", max_batched_tokens=8192, mixes_prefill=False, chunks_prefill=True),
        # TensorRT-LLM mixes context and generation requests (in-flight batching), prompts whole unless chunked context
        # is enabled (enable_chunked_prefill=False).
        "trtllm": Engine(name="trtllm", max_batched_tokens=8192, mixes_prefill=True, chunks_prefill=False),
    }
)


def engine(name: str) -> Engine:
    """The profile of that name."""
    if name not in PROFILES:
        raise UnknownNameError("engine", name, PROFILES, listing="roofplan serve --help")
    return PROFILES[name]
