"""The start-up log of a vLLM server: how many tokens its KV cache holds.

V1 prints `GPU KV cache size: 1,234,567 tokens`, V0 (and the first V1) `# GPU blocks: 12345` or `# cuda blocks: 12345`,
whose size in tokens only the printed concurrency gives away. Model, layout and formats stand in the line
`Initializing a V1 LLM engine (v0.10.2) with config: ...`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from ...dtypes import DType
from ...errors import InputError
from ..columns import Quantity
from ..records import Record
from .common import Given, Imported, clean, device_of, layout, model_of, notes, shape, source_of

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_CORE = re.compile(r"\((EngineCore[^ )]*)")
_CONFIG = re.compile(r"Initializing an? (?:V[01] )?LLM engine \(v?([^)]{1,80})\) with config: (.*)")
_TOKENS = re.compile(r"GPU KV cache size: ([0-9][0-9,]{0,20}) tokens")
_BLOCKS = re.compile(r"(?:# )?(?:GPU|CUDA|cuda|ROCM|rocm) blocks: ([0-9]{1,12})")
_USERS = re.compile(r"Maximum concurrency for ([0-9][0-9,]{0,15}) tokens per request: ([0-9]{1,9}\.[0-9]{1,6})x")
_MEMORY = re.compile(r"(?:Available KV cache memory: |reserved for KV Cache is )([0-9]{1,9}(?:\.[0-9]{1,9})?) ?GiB")
_SHARE = re.compile(r"gpu_memory_utilization(?:['\"]?[:=] ?| \()([0-9](?:\.[0-9]{1,6})?)")
_EXPERTS = re.compile(r"enable_expert_parallel['\"]?[:=] ?True")
_BLOCK_SIZE = re.compile(r"\bblock_size['\"]?[:=] ?([0-9]{1,5})\b")

BLOCK_SIZES = (16, 32, 64, 128, 256, 8, 1)  # tokens; vLLM's default first
_DTYPES = {"bfloat16": DType.BF16, "float16": DType.FP16, "half": DType.FP16, "float32": DType.FP32}
_WEIGHTS = {"fp8": "fp8", "awq": "int4", "awq_marlin": "int4"}  # others have several widths: --weights says which


@dataclass
class _Run:
    """What the log says about one engine core; grows line by line."""

    core: str
    version: str = ""
    config: str = ""
    tokens: list[int] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    users: tuple[int, float] | None = None
    memory_gib: float | None = None

    def setting(self, name: str) -> str:
        """A value of the config line, blank where it is not there."""
        match = re.search(rf"(?:^|[ ,]){name}=('[^']*'|\"[^\"]*\"|[^, ]*)", self.config)
        value = match[1].strip("'\"") if match else ""
        return "" if value == "None" else value

    def degree(self, name: str) -> float:
        """A degree of parallelism of the config line."""
        value = self.setting(name)
        return float(value) if value.isascii() and value.isdigit() and 0 < len(value) < 5 and int(value) else 1.0


def is_one(text: str) -> bool:
    """Whether a text is such a log."""
    return any(pattern.search(text) for pattern in (_TOKENS, _BLOCKS, _CONFIG))


def records(text: str, file: str, given: Given) -> Imported:
    """The KV cache capacity of every engine in the log; like replicas of one server count once."""
    runs, server = _runs(text)
    found: list[Record] = []
    skipped: list[str] = []
    for run in runs:
        name = run.core or "engine"
        if not run.tokens and not run.blocks:
            skipped.append(f"{name}: stopped before its KV cache was laid out")
            continue
        record = _record(run, server, file, given)
        if record is None:
            skipped.append(f"{name}: no room for a KV cache")
        elif record in found:
            skipped.append(f"{name}: a replica like the one before")
        else:
            found.append(record)
    if not found and not skipped:
        remedy = "give the log from the start of the server, INFO lines included"
        raise InputError("no line about the KV cache", file=file, remedy=remedy)
    return Imported(tuple(found), tuple(skipped))


def _runs(text: str) -> tuple[list[_Run], dict[str, str]]:
    """The engines of a log in order, and what it says once for all of them.

    A config line begins an engine; lines of workers belong to the newest.
    """
    runs: list[_Run] = []
    server = dict[str, str]()
    for raw in text.splitlines():
        line = _COLOUR.sub("", raw)
        core = match[1] if (match := _CORE.search(line)) else ""
        for key, pattern in (("share", _SHARE), ("block_size", _BLOCK_SIZE), ("experts", _EXPERTS)):
            if match := pattern.search(line):
                server[key] = match[match.lastindex or 0]
        if match := _CONFIG.search(line):
            runs.append(_Run(core, clean(match[1]), match[2]))
            continue
        tokens, blocks, users, memory = (p.search(line) for p in (_TOKENS, _BLOCKS, _USERS, _MEMORY))
        if not (tokens or blocks or users or memory):
            continue
        run = next((r for r in reversed(runs) if not core or r.core == core), None)
        if run is None:
            runs.append(run := _Run(core))
        if tokens:
            run.tokens.append(_whole(tokens[1]))
        if blocks:
            run.blocks.append(int(blocks[1]))
        if users:
            run.users = (_whole(users[1]), float(users[2]))
        if memory:
            run.memory_gib = float(memory[1])
    return runs, server


def _whole(text: str) -> int:
    return int(text.replace(",", ""))


def _record(run: _Run, server: dict[str, str], file: str, given: Given) -> Record | None:
    size, guessed = (0, "") if run.tokens else _block_size(run, server, given)
    capacity = min(run.tokens) if run.tokens else min(run.blocks) * size
    if not capacity:
        return None
    tp, replicas = run.degree("tensor_parallel_size"), run.degree("data_parallel_size")
    dtype = given.dtype or _DTYPES.get(run.setting("dtype").removeprefix("torch."), DType.BF16)
    cache, quantised = run.setting("kv_cache_dtype"), run.setting("quantization")
    longest = float(run.users[0]) if run.users else None
    if longest is None and (stated := run.setting("max_seq_len")).isdigit() and len(stated) < 16:
        longest = float(stated)
    ep = tp * replicas if "experts" in server else 1.0
    columns = layout(given, tp, run.degree("pipeline_parallel_size"), ep)
    return Record(
        device=device_of(given, "", file),
        kernel=Quantity.KV_TOKENS.value,
        dtype=dtype,
        value=float(capacity),
        unit="tokens",
        shape=shape({**columns, "context": longest}),
        engine=given.engine or "vllm",
        version=given.version or run.version,
        source=source_of(given, "vLLM log", file),
        date=given.date,
        note=notes(
            given,
            f"memory utilization {server['share']}" if "share" in server else "",
            f"{run.memory_gib:g} GiB for the KV cache" if run.memory_gib is not None else "",
            guessed,
            f"quantization {quantised}" if quantised else "",
            f"data parallel {replicas:.0f}, capacity of one replica" if replicas > 1 else "",
            _doubt(run, capacity),
        ),
        model=model_of(given, run.setting("model"), file),
        weights=given.weights or (_WEIGHTS.get(quantised, "") if quantised else dtype.value if run.config else ""),
        kv=given.kv or ("fp8" if cache.startswith("fp8") else dtype.value if cache == "auto" else cache),
    )


def _block_size(run: _Run, server: dict[str, str], given: Given) -> tuple[int, str]:
    """Tokens of a block and how that is known: option, log, what the printed concurrency needs, or vLLM's default.

    Concurrency = blocks x block size / longest request, printed with two decimals.
    """
    if given.block_size is not None:
        return given.block_size, ""
    if "block_size" in server and int(server["block_size"]):
        return int(server["block_size"]), ""
    if run.users and run.users[0]:
        longest, users = run.users
        for size in BLOCK_SIZES:
            if abs(min(run.blocks) * size / longest - users) <= 0.006:
                return size, f"blocks of {size} tokens by the printed concurrency"
    return BLOCK_SIZES[0], f"blocks of {BLOCK_SIZES[0]} tokens assumed"


def _doubt(run: _Run, capacity: int) -> str:
    """Models with several kinds of layers: the printed capacity is not what requests of the longest kind can use."""
    if not run.users or not run.users[0]:
        return ""
    longest, users = run.users
    if abs(capacity / longest - users) <= max(0.02 * users, 0.006):
        return ""
    return f"the log itself says {users:g} requests of {longest:,} tokens"
