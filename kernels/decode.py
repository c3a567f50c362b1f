"""Flash attention of one new token of each sequence against a paged cache, keys split over programs.

    o = softmax(q k^T / sqrt(d)) v over all keys; 4 d FLOPs a key and head

Queries and outputs once, keys and values once. A program has the query heads of one key head, padded to 16 rows, and a
range of pages of one sequence; it leaves its output, running maximum and sum in fp32, which a second launch merges
(split KV: Dao et al., "Flash-Decoding", 2023). A page is 64 tokens; a table gives each sequence's pages in any order.
Caches of one byte an element (fp8 e4m3, int8) have one scale each for keys and values and are widened to bf16 exactly.
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
from triton.tools.tensor_descriptor import TensorDescriptor

from ..dtypes import DType
from ..simulator.estimate import Array
from ..simulator.operators import NO_WINDOW, Attention, Kernel, KernelName
from .data import FORMATS, H200_MULTIPROCESSORS, Source, blocks, interpreted, power_of_two
from .microkernel import HOPPER, Call, Microkernel
from .shapes import NAMED
from .tables import CALIBRATION, HELD_OUT, SMALL, log_uniform, only, table_of

PAGE = 64  # tokens
LEAST_ROWS = 16  # of a matrix instruction
PROGRAMS_WANTED = 4  # on each multiprocessor
MOST_SPLITS = 128
LOG2_E = 1.4426950408889634
INT8_UNIT = 32.0  # one standard deviation of random int8 data


class DecodeCase(NamedTuple):
    """Sequences, keys of each, query and key heads, elements of a head."""

    sequences: int
    kv_tokens: int
    heads: int
    kv_heads: int
    head_dim: int


class DecodeInputs(NamedTuple):
    """Queries and outputs (sequences, heads, d), pages (pages, PAGE, kv heads, d), the page table (sequences, pages).

    `scale` is that of keys and of values. Partial results: outputs (sequences, heads, splits, d), maxima and sums
    (sequences, heads, splits, 2).
    """

    q: Tensor
    k: Tensor
    v: Tensor
    pages: Tensor
    out: Tensor
    partial: Tensor
    weight: Tensor
    kv_tokens: int
    scale: float


@triton.jit
def _page(source, page, column, PAGE: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr, DESCRIBED: tl.constexpr):
    """The keys or values of one head in one page."""
    if DESCRIBED:
        block = source.load([page * PAGE, column])
    else:
        start = source + page.to(tl.int64) * PAGE * WIDTH + column
        block = tl.load(start + tl.arange(0, PAGE)[:, None] * WIDTH + tl.arange(0, DIM)[None, :])
    return block


@triton.jit(do_not_specialize=["kv_tokens", "pages_of_sequence", "reach"])
def _decode(
    q,
    k,
    v,
    pages,
    partial,
    weight,
    scale,
    kv_tokens,
    pages_of_sequence,
    reach,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
    PAGE: tl.constexpr,
    DESCRIBED: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """`reach` pages of one sequence for the query heads of one key head."""
    GROUP: tl.constexpr = HEADS // KV_HEADS
    split, kv_head, sequence = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    rows, dims = tl.arange(0, ROWS), tl.arange(0, DIM)
    heads = sequence.to(tl.int64) * HEADS + kv_head * GROUP + rows
    inside = rows < GROUP
    query = tl.load(q + heads[:, None] * DIM + dims[None, :], inside[:, None], 0.0)
    total = tl.zeros((ROWS, DIM), tl.float32)
    largest = tl.full((ROWS,), -1e30, tl.float32)
    summed = tl.zeros((ROWS,), tl.float32)
    first = split * reach
    last = tl.minimum(first + reach, pages_of_sequence)
    table = pages + sequence.to(tl.int64) * pages_of_sequence
    for at in range(first, last):
        page = tl.load(table + at)
        key = _page(k, page, kv_head * DIM, PAGE, DIM, KV_HEADS * DIM, DESCRIBED)
        value = _page(v, page, kv_head * DIM, PAGE, DIM, KV_HEADS * DIM, DESCRIBED)
        if UPCAST:
            scores = tl.dot(query.to(tl.float32), key.to(tl.float32).T)
        else:
            scores = tl.dot(query, key.to(query.dtype).T)
        seen = at * PAGE + tl.arange(0, PAGE) < kv_tokens
        scores = tl.where(seen[None, :], scores, -1e30)
        above = tl.maximum(largest, tl.max(scores, 1))
        p = tl.exp2((scores - above[:, None]) * scale)
        shrunk = tl.exp2((largest - above) * scale)
        summed = summed * shrunk + tl.sum(p, 1)
        total = total * shrunk[:, None]
        if UPCAST:
            total = tl.dot(p, value.to(tl.float32), total)
        else:
            total = tl.dot(p.to(query.dtype), value.to(query.dtype), total)
        largest = above
    to = heads * tl.num_programs(0) + split
    tl.store(partial + to[:, None] * DIM + dims[None, :], total, inside[:, None])
    tl.store(weight + to * 2, largest * scale, inside)
    tl.store(weight + to * 2 + 1, summed, inside)


@triton.jit(do_not_specialize=["splits"])
def _merge(partial, weight, out, scale, splits, DIM: tl.constexpr, SPLITS: tl.constexpr):
    """The splits of one head, each by its share of the whole sum."""
    head = tl.program_id(0).to(tl.int64)
    split, dims = tl.arange(0, SPLITS), tl.arange(0, DIM)
    at, inside = head * splits + split, split < splits
    largest = tl.load(weight + at * 2, inside, -1e30)
    share = tl.exp2(largest - tl.max(largest, 0))
    summed = tl.sum(tl.load(weight + at * 2 + 1, inside, 0.0) * share, 0)
    part = tl.load(partial + at[:, None] * DIM + dims[None, :], inside[:, None], 0.0)
    result = tl.sum(part * share[:, None], 0) * (scale / summed)
    tl.store(out + head * DIM + dims, result.to(out.dtype.element_ty))


def splits_of(case: DecodeCase) -> int:
    """Ranges of pages of a sequence: enough programs for every multiprocessor, and two pages at least in each."""
    programs = case.sequences * case.kv_heads
    wanted = blocks(PROGRAMS_WANTED * H200_MULTIPROCESSORS, programs)
    pages = blocks(case.kv_tokens, PAGE)
    splits = max(1, min(wanted, MOST_SPLITS, pages // 2))
    return blocks(pages, blocks(pages, splits))  # no range is empty


def decode_table(kernel: Kernel, cases: Sequence[DecodeCase], labels: Sequence[str]) -> Attention:
    """The operator table of these cases."""
    columns = dict(zip(DecodeCase._fields, zip(*cases, strict=True), strict=True))
    arrays = {name: np.array(column, dtype=float) for name, column in columns.items()}
    return table_of(
        Attention,
        kernel,
        labels,
        new_tokens=1.0,
        window=NO_WINDOW,
        kv_bytes=kernel.dtype.bytes,
        activation_bytes=2.0,
        **arrays,
    )


def words(case: DecodeCase) -> str:
    """`64 x 4096, 32/8 heads of 128`."""
    return f"{case.sequences} x {case.kv_tokens}, {case.heads}/{case.kv_heads} heads of {case.head_dim}"


@dataclass(frozen=True)
class Decode(Microkernel[Attention, DecodeInputs]):
    """One format of the cache."""

    dtype: DType
    tolerance = 1e-2  # the weights and the result are rounded to bf16: at most 2^-8 each

    @property
    def identity(self) -> Kernel:
        """Decode attention with this cache."""
        return Kernel(KernelName.ATTENTION_DECODE, self.dtype)

    @property
    def variant(self) -> str:
        """How the work is cut."""
        return "split-kv paged"

    @property
    def least_capability(self) -> int:
        """8.9 for fp8."""
        return 89 if self.dtype is DType.FP8 else 80

    def calibration(self, quick: bool) -> Attention:
        """Contexts at one and many sequences, with 1 and 8 key heads; many short sequences."""
        cases = QUICK if quick else FULL
        return decode_table(self.identity, cases, [f"{CALIBRATION}: {words(case)}" for case in cases])

    def held_out(self) -> Attention:
        """Heads of three models with seeded contexts and batches."""
        contexts, batches = log_uniform(13, 15, 200, 60000), log_uniform(14, 15, 1, 128)
        cases = []
        for row, (context, batch) in enumerate(zip(contexts, batches, strict=True)):
            layers = NAMED[row % len(NAMED)]
            heads, kv_heads = layers.heads // layers.tp, layers.kv_heads // layers.tp
            fitting = max(1, min(batch, 1_000_000 // context))
            cases.append(DecodeCase(fitting, context, heads, kv_heads, layers.head_dim))
        return decode_table(self.identity, cases, [f"{HELD_OUT}: {words(case)}" for case in cases])

    def small(self) -> Attention:
        """Contexts that fill no page, one split and several, groups of 1, 4 and 20 heads."""
        cases = [DecodeCase(2, 200, 8, 2, 32), DecodeCase(1, 33, 2, 2, 64), DecodeCase(1, 700, 20, 1, 16)]
        return decode_table(self.identity, cases, [f"{SMALL}: {words(case)}" for case in cases])

    def make(self, case: Attention, device: str, seed: int) -> DecodeInputs:
        """Normal random heads; the pages of all sequences shuffled."""
        if only(case.new_tokens) != 1 or case.window[0] < NO_WINDOW:
            raise ValueError(f"{self.name}: it takes one new token and no window")
        shape = DecodeCase(*(only(getattr(case, name)) for name in DecodeCase._fields))
        source, each, splits = Source(device, seed), blocks(shape.kv_tokens, PAGE), splits_of(shape)
        count, dtype = shape.sequences * each, FORMATS[self.dtype]
        k, v = (source.normal(count, PAGE, shape.kv_heads, shape.head_dim, dtype=dtype) for _ in range(2))
        order = np.random.default_rng(seed).permutation(count).astype(np.int32).reshape(shape.sequences, each)
        heads = (shape.sequences, shape.heads)
        return DecodeInputs(
            source.normal(*heads, shape.head_dim),
            k,
            v,
            source.given(torch.from_numpy(order)),
            source.empty(*heads, shape.head_dim),
            source.empty(*heads, splits, shape.head_dim, dtype=torch.float32),
            source.empty(*heads, splits, 2, dtype=torch.float32),
            shape.kv_tokens,
            1.0 / INT8_UNIT if self.dtype is DType.INT8 else 1.0,
        )

    def calls(self, inputs: DecodeInputs, capability: int) -> tuple[Call, ...]:
        """One program for each split of each key head of each sequence; then one for each head."""
        q, k, v, pages, out, partial, weight, kv_tokens, scale = inputs
        (sequences, heads, dim), kv_heads, splits = q.shape, k.shape[2], partial.shape[2]
        flat, described = (len(k) * PAGE, kv_heads * dim), capability >= HOPPER
        keys, values = (
            TensorDescriptor.from_tensor(t.view(flat), [PAGE, dim]) if described else t.view(flat) for t in (k, v)
        )
        constants = {
            "HEADS": heads,
            "KV_HEADS": kv_heads,
            "DIM": dim,
            "ROWS": max(LEAST_ROWS, power_of_two(heads // kv_heads)),
            "PAGE": PAGE,
            "DESCRIBED": described,
            "UPCAST": interpreted(),
        }
        arguments = {"q": q, "k": keys, "v": values, "pages": pages, "partial": partial, "weight": weight}
        arguments |= {"scale": LOG2_E * dim**-0.5 * scale, "kv_tokens": kv_tokens}
        arguments |= {"pages_of_sequence": pages.shape[1], "reach": blocks(pages.shape[1], splits)}
        merged = {"partial": partial, "weight": weight, "out": out, "scale": scale, "splits": splits}
        merging = {"DIM": dim, "SPLITS": power_of_two(splits)}
        return (
            Call(_decode, (splits, kv_heads, sequences), arguments, constants, warps=4, stages=3),
            Call(_merge, (sequences * heads,), merged, merging),
        )

    def outputs(self, inputs: DecodeInputs) -> tuple[Tensor, ...]:
        """The outputs of every head."""
        return (inputs.out,)

    def reference(self, inputs: DecodeInputs) -> tuple[Tensor, ...]:
        """In float64, one sequence at a time."""
        group = inputs.q.shape[1] // inputs.k.shape[2]
        result = torch.empty(inputs.out.shape, dtype=torch.float64, device=inputs.out.device)
        for sequence, query in enumerate(inputs.q.double()):
            own = inputs.pages[sequence].long()
            key, value = (
                t[own].double().flatten(0, 1)[: inputs.kv_tokens].mul_(inputs.scale).repeat_interleave(group, 1)
                for t in (inputs.k, inputs.v)
            )
            scores = torch.einsum("hd,thd->ht", query, key) * query.shape[1] ** -0.5
            result[sequence] = torch.einsum("ht,thd->hd", scores.softmax(1), value)
        return (result,)

    def flops(self, table: Attention) -> Array:
        """4 d FLOPs for each key and query head."""
        return np.asarray(4.0 * table.head_dim * table.heads * table.sequences * table.kv_tokens)

    def bytes(self, table: Attention) -> Array:
        """Queries and outputs, keys and values; no page table, no partial results."""
        keys = 2.0 * table.kv_tokens * table.kv_heads * table.kv_bytes
        return np.asarray(table.sequences * table.head_dim * (2.0 * table.heads * table.activation_bytes + keys))


QUICK = (
    DecodeCase(1, 128, 24, 8, 128),
    *(DecodeCase(1, c, 24, 8, 128) for c in (1024, 8192, 65536)),
    *(DecodeCase(16, c, 24, 8, 128) for c in (512, 4096, 32768)),
    *(DecodeCase(128, c, 24, 8, 128) for c in (128, 1024, 8192)),
    *(DecodeCase(512, c, 24, 8, 128) for c in (128, 1024)),
    *(DecodeCase(b, 4096, 8, 1, 128) for b in (1, 64, 256)),
    *(DecodeCase(16, c, 32, 32, 64) for c in (1024, 4096)),
)
FULL = (
    *QUICK,
    *(DecodeCase(1, c, 24, 8, 128) for c in (64, 256, 512, 2048, 4096, 16384, 32768)),
    *(DecodeCase(16, c, 24, 8, 128) for c in (128, 256, 1024, 2048, 8192, 16384)),
    *(DecodeCase(64, c, 24, 8, 128) for c in (128, 1024, 4096, 16384)),
    *(DecodeCase(b, 2048, 24, 8, 128) for b in (2, 4, 8, 32, 256)),
    *(DecodeCase(b, 8192, 8, 1, 128) for b in (1, 8, 32, 128)),
    *(DecodeCase(b, 1024, 32, 32, 64) for b in (1, 4, 64)),
    *(DecodeCase(b, 1000, 48, 8, 128) for b in (1, 16, 33, 66)),
)

MICROKERNELS: tuple[Microkernel[Attention, DecodeInputs], ...] = tuple(
    Decode(dtype) for dtype in (DType.BF16, DType.FP8, DType.INT8)
)
