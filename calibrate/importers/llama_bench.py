"""Results of `llama-bench -o json` (and jsonl): one object a test, fields of ggml-org/llama.cpp tools/llama-bench.

`pp` tests (n_gen 0) time a prompt, `tg` tests (n_prompt 0) one user's tokens behind `n_depth` cached ones. Tokenisation
and sampling are not in the times.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ...dtypes import DType
from ...errors import InputError
from ..columns import Quantity
from ..records import Record
from .common import (
    Given,
    Imported,
    device_of,
    layout,
    model_of,
    notes,
    number,
    required,
    shape,
    source_of,
    word,
)

_STORED = re.compile(
    r"(F32|F16|BF16|I?Q\d\w*|TQ\d\w*|MXFP4|NVFP4)(?: MoE)?(?: - (Small|Medium|Large))?(?: - [0-9.]+ bpw.*)?$"
)
_PLAIN = {"f32": "fp32", "f16": "fp16"}
ENOUGH_SAMPLES = 5  # below, a percentile says nothing; the tool's own default


def is_one(entry: Mapping[str, Any]) -> bool:
    """Whether an object is such a result."""
    return "n_gen" in entry and "n_prompt" in entry


def records(entries: list[dict[str, Any]], file: str, given: Given) -> Imported:
    """Service time of every prompt and time per token of every generation."""
    found: list[Record] = []
    skipped: list[str] = []
    for index, entry in enumerate(entries, 1):
        where = f"test {index}"
        reason = _unfit(entry, file, where)
        if reason:
            skipped.append(f"{where}: {reason}")
        else:
            found.append(_record(entry, file, where, given))
    return Imported(tuple(found), tuple(skipped))


def _unfit(entry: dict[str, Any], file: str, where: str) -> str:
    """Why a test is not a measurement of a device, blank where it is one."""
    prompt, generated = (required(entry, key, file, where) for key in ("n_prompt", "n_gen"))
    if prompt and generated:
        return "prompt and generation in one time; run them apart (-p and -n instead of -pg)"
    if not prompt and not generated:
        return "neither prompt nor generation"
    if entry.get("n_gpu_layers") == 0:
        return "no layer on the GPU"
    if number(entry, "n_cpu_moe", file, where):
        return "experts on the CPU"
    if entry.get("no_kv_offload") is True:
        return "KV cache on the CPU"
    if not required(entry, "avg_ns", file, where):
        return "no time"
    return ""


def _record(entry: dict[str, Any], file: str, where: str, given: Given) -> Record:
    prompt, generated = (required(entry, key, file, where) for key in ("n_prompt", "n_gen"))
    depth = number(entry, "n_depth", file, where) or 0.0
    decodes = generated > 0
    value, p10, p90, which = _timed(entry, file, where)
    per = 1e6 * generated if decodes else 1e6  # ns of the whole test to ms of a token or of the prompt
    cards = [name.strip() for name in word(entry, "gpu_info").split(",") if name.strip()]
    split, count = word(entry, "split_mode"), float(max(1, len(cards)))
    degrees = {"tp": count} if split in ("row", "tensor") else {"pp": count} if split == "layer" else {}
    cached = f"{word(entry, 'type_k')}/{word(entry, 'type_v')}"
    columns = {**layout(given, **degrees), "batch": 1.0}
    if decodes:
        columns |= {"context": float(round(depth + generated / 2)), "prompt": depth, "output": generated}
    else:
        columns |= {"context": depth + prompt, "prompt": prompt}
    layers = entry.get("n_gpu_layers")
    partial = isinstance(layers, int) and 0 < layers < 99
    build = entry.get("build_number")
    return Record(
        device=device_of(given, cards[0] if len(set(cards)) == 1 else "", file),
        kernel=(Quantity.DECODE_STEP if decodes else Quantity.PREFILL).value,
        dtype=given.dtype or DType.FP16,
        value=value / per,
        unit="ms",
        p10=None if p10 is None else p10 / per,
        p90=None if p90 is None else p90 / per,
        shape=shape(columns),
        engine=given.engine or "llama.cpp",
        version=given.version or (f"b{build}" if isinstance(build, int) and build > 0 else ""),
        source=source_of(given, "llama-bench", file),
        date=given.date or word(entry, "test_time")[:10],
        note=notes(
            given,
            which,
            f"at most {layers} layers on the GPU" if partial else "",
            f"split by {split}" if len(cards) > 1 else "",
        ),
        model=model_of(given, word(entry, "model_filename"), file),
        weights=given.weights or _stored(word(entry, "model_type")),
        kv=given.kv or "/".join(dict.fromkeys(_PLAIN.get(t, t) for t in cached.split("/") if t)),
    )


def _stored(model_type: str) -> str:
    """`qwen2 7B Q4_K - Medium` as q4_k_m: the name the file format goes by."""
    match = _STORED.search(model_type.removesuffix(" (guessed)"))
    if match is None:
        return ""
    name = match[1].lower() + (f"_{match[2][0].lower()}" if match[2] else "")
    return _PLAIN.get(name, name)


def _timed(entry: dict[str, Any], file: str, where: str) -> tuple[float, float | None, float | None, str]:
    """Nanoseconds of a test: median, 10th and 90th percentile of its repetitions, else their mean alone."""
    samples = entry.get("samples_ns")
    if not isinstance(samples, list) or not samples:
        return required(entry, "avg_ns", file, where), None, None, "mean of the repetitions"
    times = sorted(required({"samples_ns": s}, "samples_ns", file, where) for s in samples)
    if times[0] == 0:
        raise InputError("must be positive", file=file, key=f"{where}: samples_ns", value=0)
    enough = len(times) >= ENOUGH_SAMPLES
    p10, p90 = (quantile(times, q) if enough else None for q in (0.1, 0.9))
    return quantile(times, 0.5), p10, p90, f"median of {len(times)} repetitions"


def quantile(ordered: Sequence[float], q: float) -> float:
    """Quantile of sorted numbers, linear between neighbours."""
    place = q * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)
