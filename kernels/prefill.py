"""Flash attention of a prompt: causal, grouped queries, optional sliding window, keys of earlier tokens in front.

    o = softmax(q k^T / sqrt(d)) v over the keys j <= i + past and j > i + past - window,  i = 0 ... new - 1

4 d FLOPs a pair and head; queries and outputs once, the keys and values any query sees once. One program has a block of
queries of one head and walks its keys twice: blocks at the edges with a mask, those between without. Keys and values
come through tensor descriptors, before Hopper through pointers. Dao, arXiv 2307.08691; exponentials to base 2. The
longest programs start first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional
from triton.tools.tensor_descriptor import TensorDescriptor

from ..dtypes import DType
from ..simulator.estimate import Array
from ..simulator.operators import NO_WINDOW, Attention, Kernel, KernelName
from .data import Source, blocks, interpreted
from .microkernel import HOPPER, Call, Microkernel
from .shapes import NAMED
from .tables import CALIBRATION, HELD_OUT, SMALL, log_uniform, only, table_of

QUERIES = 128  # of one block
LOG2_E = 1.4426950408889634


class PrefillCase(NamedTuple):
    """Sequences, new tokens, keys of each, query and key heads, elements of a head, window (0: none)."""

    sequences: int
    new_tokens: int
    kv_tokens: int
    heads: int
    kv_heads: int
    head_dim: int
    window: int = 0


class PrefillInputs(NamedTuple):
    """Queries and outputs (sequences, new, heads, d); keys and values (sequences, kv tokens, kv heads, d)."""

    q: Tensor
    k: Tensor
    v: Tensor
    out: Tensor
    window: int


@triton.jit
def _block(
    source,
    row,
    at,
    column,
    kv_tokens,
    ROWS: tl.constexpr,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    DESCRIBED: tl.constexpr,
):
    """ROWS keys or values of one head."""
    if DESCRIBED:
        block = source.load([row + at, column])
    else:
        rows = at + tl.arange(0, ROWS)
        start = source + row.to(tl.int64) * WIDTH + column
        inside = (rows < kv_tokens)[:, None]
        block = tl.load(start + rows[:, None] * WIDTH + tl.arange(0, DIM)[None, :], inside, 0.0)
    return block


@triton.jit
def _walk(
    total,
    largest,
    weight,
    q,
    k,
    v,
    row,
    column,
    begin,
    end,
    positions,
    kv_tokens,
    window,
    scale,
    KEYS: tl.constexpr,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    DESCRIBED: tl.constexpr,
    UPCAST: tl.constexpr,
    MASKED: tl.constexpr,
    WINDOWED: tl.constexpr,
):
    """Keys from `begin` to `end`: output, running maximum and sum of weights of a block of queries."""
    for at in range(begin, end, KEYS):
        key = _block(k, row, at, column, kv_tokens, KEYS, DIM, WIDTH, DESCRIBED)
        if UPCAST:
            scores = tl.dot(q.to(tl.float32), key.to(tl.float32).T)
        else:
            scores = tl.dot(q, key.T)
        if MASKED:
            keys = at + tl.arange(0, KEYS)
            seen = (keys[None, :] <= positions[:, None]) & (keys[None, :] < kv_tokens)
            if WINDOWED:
                seen = seen & (keys[None, :] > positions[:, None] - window)
            scores = tl.where(seen, scores, -1e30)
        above = tl.maximum(largest, tl.max(scores, 1))
        p = tl.exp2(scores * scale - (above * scale)[:, None])
        shrunk = tl.exp2((largest - above) * scale)
        weight = weight * shrunk + tl.sum(p, 1)
        total = total * shrunk[:, None]
        value = _block(v, row, at, column, kv_tokens, KEYS, DIM, WIDTH, DESCRIBED)
        if UPCAST:
            total = tl.dot(p, value.to(tl.float32), total)
        else:
            total = tl.dot(p.to(value.dtype), value, total)
        largest = above
    return total, largest, weight


@triton.jit(do_not_specialize=["new_tokens", "kv_tokens", "window"])
def _prefill(
    q,
    k,
    v,
    out,
    scale,
    new_tokens,
    kv_tokens,
    window,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    DESCRIBED: tl.constexpr,
    UPCAST: tl.constexpr,
    WINDOWED: tl.constexpr,
):
    block = tl.num_programs(0) - 1 - tl.program_id(0)
    head, sequence = tl.program_id(1), tl.program_id(2)
    past = kv_tokens - new_tokens
    queries, dims = block * QUERIES + tl.arange(0, QUERIES), tl.arange(0, DIM)
    first = past + block * QUERIES
    positions = past + queries
    at = (sequence.to(tl.int64) * new_tokens + block * QUERIES) * HEADS * DIM + head * DIM
    offsets = tl.arange(0, QUERIES)[:, None] * (HEADS * DIM) + dims[None, :]
    inside = (queries < new_tokens)[:, None]
    query = tl.load(q + at + offsets, inside, 0.0)
    row, column = sequence * kv_tokens, (head // (HEADS // KV_HEADS)) * DIM

    end = tl.minimum(first + QUERIES, kv_tokens)
    whole_end = (first + 1) // KEYS * KEYS  # blocks before it are seen by every query, as far as causality goes
    begin, whole_begin = 0, 0
    if WINDOWED:
        begin = tl.maximum(first - window + 1, 0) // KEYS * KEYS
        seen_by_last = tl.maximum(first + QUERIES - window, 0)
        whole_begin = tl.minimum((seen_by_last + KEYS - 1) // KEYS * KEYS, tl.maximum(whole_end, begin))
    whole_end = tl.maximum(whole_end, whole_begin)

    total = tl.zeros((QUERIES, DIM), tl.float32)
    largest = tl.full((QUERIES,), -1e30, tl.float32)
    weight = tl.zeros((QUERIES,), tl.float32)
    if WINDOWED:
        total, largest, weight = _walk(
            total, largest, weight, query, k, v, row, column, begin, whole_begin, positions, kv_tokens, window, scale,
            KEYS, DIM, KV_HEADS * DIM, DESCRIBED, UPCAST, True, True,
        )  # fmt: skip
    total, largest, weight = _walk(
        total, largest, weight, query, k, v, row, column, whole_begin, whole_end, positions, kv_tokens, window, scale,
        KEYS, DIM, KV_HEADS * DIM, DESCRIBED, UPCAST, False, False,
    )  # fmt: skip
    total, largest, weight = _walk(
        total, largest, weight, query, k, v, row, column, whole_end, end, positions, kv_tokens, window, scale,
        KEYS, DIM, KV_HEADS * DIM, DESCRIBED, UPCAST, True, WINDOWED,
    )  # fmt: skip
    tl.store(out + at + offsets, (total / weight[:, None]).to(out.dtype.element_ty), inside)


def keys_of(capability: int) -> int:
    """Keys of one block: two buffers of keys and values, and the scores, beside the queries."""
    return 128 if capability >= HOPPER else 64


def prefill_table(kernel: Kernel, cases: Sequence[PrefillCase], labels: Sequence[str]) -> Attention:
    """The operator table of these cases."""
    columns = {
        name: np.array(column, dtype=float)
        for name, column in zip(PrefillCase._fields, zip(*cases, strict=True), strict=True)
    }
    columns["window"] = np.where(columns["window"] > 0, columns["window"], NO_WINDOW)
    return table_of(Attention, kernel, labels, **columns, kv_bytes=kernel.dtype.bytes, activation_bytes=2.0)


def words(case: PrefillCase) -> str:
    """`4 x 1024 of 2048, 32/8 heads of 128`."""
    window = f", window {case.window}" if case.window else ""
    tokens = f"{case.sequences} x {case.new_tokens} of {case.kv_tokens}"
    return f"{tokens}, {case.heads}/{case.kv_heads} heads of {case.head_dim}{window}"


@dataclass(frozen=True)
class Prefill(Microkernel[Attention, PrefillInputs]):
    """Attention of prompts in bf16, with or without a window."""

    windowed: bool
    tolerance = 1e-2  # the weights and the result are rounded to bf16: at most 2^-8 each

    @property
    def identity(self) -> Kernel:
        """Prefill attention in bf16."""
        return Kernel(KernelName.ATTENTION_PREFILL, DType.BF16)

    @property
    def variant(self) -> str:
        """With or without a window."""
        return "window" if self.windowed else "causal"

    def calibration(self, quick: bool) -> Attention:
        """Lengths at few, some and many heads; short prompts; earlier tokens; widths of heads; windows."""
        cases = (WINDOW_QUICK if quick else WINDOW_FULL) if self.windowed else (CAUSAL_QUICK if quick else CAUSAL_FULL)
        return prefill_table(self.identity, cases, [f"{CALIBRATION}: {words(case)}" for case in cases])

    def held_out(self) -> Attention:
        """Heads of three models at lengths no calibration holds."""
        lengths = log_uniform(11, 5 * len(NAMED), 200, 16000)
        cases = []
        for i, layers in enumerate(NAMED):
            for j, tokens in enumerate(lengths[5 * i : 5 * i + 5]):
                past = (0, 0, tokens, 0, 3000)[j]
                heads, kv_heads = layers.heads // layers.tp, layers.kv_heads // layers.tp
                window = (1000, 3000)[j % 2] if self.windowed else 0
                sequences = (1, 3)[j % 2] if tokens < 6000 else 1
                cases.append(PrefillCase(sequences, tokens, tokens + past, heads, kv_heads, layers.head_dim, window))
        return prefill_table(self.identity, cases, [f"{HELD_OUT}: {words(case)}" for case in cases])

    def small(self) -> Attention:
        """Prompts that fill no block, with and without earlier tokens."""
        window = 50 if self.windowed else 0
        cases = [
            PrefillCase(2, 70, 70, 4, 2, 32, window),
            PrefillCase(1, 150, 300, 2, 1, 64, 4 * window),
            PrefillCase(1, 257, 257, 1, 1, 16, window),
        ]
        return prefill_table(self.identity, cases, [f"{SMALL}: {words(case)}" for case in cases])

    def make(self, case: Attention, device: str, seed: int) -> PrefillInputs:
        """Normal random heads."""
        sequences, new, total = only(case.sequences), only(case.new_tokens), only(case.kv_tokens)
        heads, kv_heads, dim, source = only(case.heads), only(case.kv_heads), only(case.head_dim), Source(device, seed)
        window = only(case.window) if case.window[0] < NO_WINDOW else 0
        q, k, v = (
            source.normal(sequences, tokens, count, dim)
            for tokens, count in ((new, heads), (total, kv_heads), (total, kv_heads))
        )
        return PrefillInputs(q, k, v, source.empty(sequences, new, heads, dim), window)

    def calls(self, inputs: PrefillInputs, capability: int) -> tuple[Call, ...]:
        """One program for each block of queries of each head of each sequence."""
        q, k, v, out, window = inputs
        (sequences, new, heads, dim), (_, total, kv_heads, _) = q.shape, k.shape
        rows = (sequences * total, kv_heads * dim)
        described, block = capability >= HOPPER, keys_of(capability)
        keys, values = (
            TensorDescriptor.from_tensor(t.view(rows), [block, dim]) if described else t.view(rows) for t in (k, v)
        )
        arguments = {"q": q, "k": keys, "v": values, "out": out, "scale": LOG2_E * dim**-0.5}
        arguments |= {"new_tokens": new, "kv_tokens": total, "window": window}
        constants = {
            "HEADS": heads,
            "KV_HEADS": kv_heads,
            "DIM": dim,
            "QUERIES": QUERIES,
            "KEYS": block,
            "DESCRIBED": described,
            "WINDOWED": bool(window),
            "UPCAST": interpreted(),
        }
        return (Call(_prefill, (blocks(new, QUERIES), heads, sequences), arguments, constants, warps=8, stages=2),)

    def outputs(self, inputs: PrefillInputs) -> tuple[Tensor, ...]:
        """The outputs of every head."""
        return (inputs.out,)

    def reference(self, inputs: PrefillInputs) -> tuple[Tensor, ...]:
        """In float64, one head at a time."""
        q, k, v, out, window = inputs
        new, total, group = q.shape[1], k.shape[1], q.shape[2] // k.shape[2]
        i = torch.arange(new, device=q.device)[:, None] + total - new
        j = torch.arange(total, device=q.device)[None, :]
        seen = (j <= i) & (j > i - (window or total))
        result = torch.empty(out.shape, dtype=torch.float64, device=out.device)
        for sequence in range(len(q)):
            for head in range(q.shape[2]):
                key, value = k[sequence, :, head // group].double(), v[sequence, :, head // group].double()
                scores = q[sequence, :, head].double() @ key.T * q.shape[3] ** -0.5
                result[sequence, :, head] = scores.masked_fill_(~seen, -torch.inf).softmax(1) @ value
        return (result,)

    def library(self, inputs: PrefillInputs) -> Tensor | None:
        """torch's attention, which has no window and sees earlier tokens only through a mask: whole prompts alone."""
        q, k, v, _, window = inputs
        if window or q.shape[1] != k.shape[1]:
            return None
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        return functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    def flops(self, table: Attention) -> Array:
        """4 d FLOPs for each (query, key) pair that is not masked, and query head."""
        past = table.kv_tokens - table.new_tokens
        # Query i sees min(past + i + 1, window) keys: those before the window is full, and those after.
        growing = np.clip(table.window - past, 0.0, table.new_tokens)
        pairs = growing * past + growing * (growing + 1) / 2 + (table.new_tokens - growing) * table.window
        return np.asarray(4.0 * table.head_dim * table.heads * table.sequences * pairs)

    def bytes(self, table: Attention) -> Array:
        """Queries and outputs; keys and values that any query sees."""
        seen = np.minimum(table.kv_tokens, table.window + table.new_tokens - 1)
        queries = 2.0 * table.activation_bytes * table.new_tokens * table.heads
        keys = 2.0 * table.kv_bytes * seen * table.kv_heads
        return np.asarray(table.sequences * table.head_dim * (queries + keys))


CAUSAL_QUICK = (
    PrefillCase(1, 64, 64, 8, 8, 128),
    PrefillCase(64, 64, 64, 8, 8, 128),
    *(PrefillCase(1, s, s, 8, 8, 128) for s in (128, 1024, 8192)),
    *(PrefillCase(1, s, s, 24, 8, 128) for s in (512, 2048, 4096, 16384)),
    *(PrefillCase(8, s, s, 48, 8, 128) for s in (256, 2048)),
    *(PrefillCase(1, n, 8192, 24, 8, 128) for n in (128, 1024)),
    PrefillCase(2, 4096, 4096, 32, 32, 64),
)
CAUSAL_FULL = (
    *CAUSAL_QUICK,
    *(PrefillCase(1, s, s, 8, 8, 128) for s in (256, 512, 2048, 4096, 16384, 32768)),
    *(PrefillCase(1, s, s, 24, 8, 128) for s in (128, 129, 256, 1024, 8192)),
    *(PrefillCase(16, s, s, 24, 8, 128) for s in (32, 128, 512, 1024)),
    *(PrefillCase(1, n, 32768, 24, 8, 128) for n in (16, 256, 2048)),
    *(PrefillCase(b, 1024, 1024, 33, 33, 128) for b in (1, 2, 4)),
    *(PrefillCase(2, s, s, 32, 32, 64) for s in (512, 1024, 2048, 8192)),
)
WINDOW_QUICK = (
    PrefillCase(1, 2048, 2048, 24, 8, 128, 512),
    *(PrefillCase(1, 8192, 8192, 24, 8, 128, w) for w in (128, 1024, 4096)),
)
WINDOW_FULL = (
    *WINDOW_QUICK,
    *(PrefillCase(1, 16384, 16384, 24, 8, 128, w) for w in (128, 1024, 4096)),
    *(PrefillCase(4, 4096, 4096, 48, 8, 64, w) for w in (128, 512, 2048)),
    *(PrefillCase(1, n, 16384, 24, 8, 128, 1024) for n in (256, 2048)),
)


MICROKERNELS: tuple[Microkernel[Attention, PrefillInputs], ...] = (Prefill(windowed=False), Prefill(windowed=True))
