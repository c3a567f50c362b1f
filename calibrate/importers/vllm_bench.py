"""Results of `vllm bench serve --save-result` (and of benchmarks/benchmark_serving.py before it, and of its copies).

One JSON object a run: fields of vllm-project/vllm, vllm/benchmarks/serve.py. Times are those a client sees, so the time
to the first token is a service time only where one user was alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ...dtypes import DType
from ...errors import InputError
from ..columns import Quantity
from ..records import Record
from .common import (
    Given,
    Imported,
    clean,
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

OTHER_ENGINES = ("sglang", "tgi", "tensorrt-llm", "lmdeploy", "llama.cpp", "deepspeed-mii", "scalellm")


def is_one(entry: Mapping[str, Any]) -> bool:
    """Whether an object is such a result."""
    return "total_output_tokens" in entry and ("mean_ttft_ms" in entry or "mean_tpot_ms" in entry)


def records(entries: list[dict[str, Any]], file: str, given: Given) -> Imported:
    """Time per output token of every run, and time to first token of those with one user."""
    found: list[Record] = []
    skipped: list[str] = []
    for index, entry in enumerate(entries, 1):
        where = f"run {index}"
        if not required(entry, "completed", file, where):
            skipped.append(f"{where}: no request was completed")
        elif any(entry.get(key) for key in entry if key.startswith("spec_decode_")):
            skipped.append(f"{where}: speculative decoding, where a token is not a step")
        else:
            _run(entry, file, where, given, found, skipped)
    return Imported(tuple(found), tuple(skipped))


def _run(entry: dict[str, Any], file: str, where: str, given: Given, found: list[Record], skipped: list[str]) -> None:
    completed = required(entry, "completed", file, where)
    prompt = required(entry, "total_input_tokens", file, where) / completed
    output = required(entry, "total_output_tokens", file, where) / completed
    batch, how = _batch(entry, file, where, given, completed)
    closed = "closed loop" if entry.get("max_concurrency") else "all sent at once"
    arrivals = f"open loop, {required(entry, 'request_rate', file, where):g} requests/s" if _open(entry) else closed
    lost = (number(entry, "num_prompts", file, where) or completed) - completed
    remarks = (arrivals, how, f"{lost:.0f} requests failed" if lost > 0 else "")
    backend = word(entry, "backend") or word(entry, "endpoint_type")
    degrees = {"tp": _degree(entry, "tensor_parallel_size", "tp"), "pp": _degree(entry, "pipeline_parallel_size", "pp")}
    columns = {**layout(given, **degrees), "batch": batch, "output": float(round(output))}
    base = Record(
        device=device_of(given, "", file),
        kernel=Quantity.DECODE_STEP.value,
        dtype=given.dtype or DType.BF16,
        value=0.0,
        unit="ms",
        model=model_of(given, word(entry, "model_id"), file),
        weights=given.weights,
        kv=given.kv,
        engine=given.engine or (backend if backend in OTHER_ENGINES else "vllm"),
        version=given.version or word(entry, "vllm_version") or word(entry, "version"),
        source=source_of(given, "vllm bench serve", file),
        date=given.date or _date(word(entry, "date")),
    )
    if output < 2:
        skipped.append(f"{where}: one token for each request, so no time per output token")
    elif timed := _timed(entry, "tpot", file, where):
        value, p10, p90, which = timed
        mean = {"prompt": float(round(prompt)), "context": float(round(prompt + output / 2))}
        text = notes(given, which, *remarks)
        found.append(base._replace(value=value, p10=p10, p90=p90, shape=shape(columns | mean), note=text))
    else:
        skipped.append(f"{where}: no time per output token")
    if batch > 1 or not _closed(entry):
        skipped.append(
            f"{where}: time to first token holds waiting for other users; bring one with --max-concurrency 1"
        )
    elif timed := _timed(entry, "ttft", file, where):
        value, p10, p90, which = timed
        prompted = {"prompt": float(round(prompt)), "context": float(round(prompt))}
        first = base._replace(kernel=Quantity.PREFILL.value, value=value, p10=p10, p90=p90)
        found.append(first._replace(shape=shape(columns | prompted), note=notes(given, which, *remarks)))
    else:
        skipped.append(f"{where}: no time to first token")


def _open(entry: Mapping[str, Any]) -> bool:
    """Whether requests arrived by the clock, not when others were done."""
    return entry.get("request_rate") not in ("inf", None, math.inf)


def _closed(entry: Mapping[str, Any]) -> bool:
    """Whether a fixed number of users each sent the next request when the last was answered."""
    return bool(entry.get("max_concurrency")) and not _open(entry)


def _batch(entry: dict[str, Any], file: str, where: str, given: Given, completed: float) -> tuple[float, str]:
    """Users decoding at once and how that is known: options, the client's limit, or Little's law.

    Little: users in decode = output tokens per second x seconds per output token.
    """
    if given.batch is not None:
        return float(given.batch), ""
    if _closed(entry):
        return min(required(entry, "max_concurrency", file, where), completed), ""
    rate, step = (number(entry, key, file, where) for key in ("output_throughput", "mean_tpot_ms"))
    if not rate or not step:
        remedy = "say how many users it served with --batch"
        raise InputError("the run has no limit of users", file=file, key=f"{where}: max_concurrency", remedy=remedy)
    return float(max(1, round(rate * step * 1e-3))), "batch from output throughput x time per token"


def _timed(
    entry: dict[str, Any], metric: str, file: str, where: str
) -> tuple[float, float | None, float | None, str] | None:
    """Median (else mean) of a metric in ms with its 10th and 90th percentile where the run asked for them."""
    p10, p90 = (number(entry, f"{p}_{metric}_ms", file, where) or None for p in ("p10", "p90"))
    for kind in ("median", "mean"):
        if value := number(entry, f"{kind}_{metric}_ms", file, where):
            return value, p10, p90, f"{kind} of the requests"
    return None


def _degree(entry: Mapping[str, Any], *keys: str) -> float:
    """A degree of parallelism from the run's --metadata, which are texts; 1 where it says nothing."""
    for key in keys:
        text = str(entry.get(key, ""))
        if text.isascii() and text.isdigit() and 0 < len(text) < 4 and int(text):
            return float(text)
    return 1.0


def _date(text: str) -> str:
    """`20251005-122334` as 2025-10-05."""
    day = clean(text)[:8]
    return f"{day[:4]}-{day[4:6]}-{day[6:]}" if len(day) == 8 and day.isascii() and day.isdigit() else ""
