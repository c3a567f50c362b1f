"""Products of one row with weights of four bits or fp8 and a scale for each group of 128 along k: decode of one user.

    c_n = sum over groups g of s_ng sum over k in g of a_k q_nk,   2 n k FLOPs on ordinary units

Bytes: a and c in 2 bytes an element, weights with their scales once. Every thread loads 16 bytes of weights at a time;
a nibble q becomes 128 + q by the bits 0x43000000 | q << 16 of an fp32, and 136 times the sum of the inputs of a group
is taken off its sum, so that a weight costs a shift, a mask and a multiply-add (magic numbers as in Kim et al.,
arXiv 2211.10017). k is split so that every multiprocessor has several programs; partial results (S, n) are fp32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from ..dtypes import DType
from ..simulator.estimate import Array
from ..simulator.operators import Gemm, Kernel, KernelName
from .data import H200_MULTIPROCESSORS, Source, blocks
from .gemm_kernels import adding
from .microkernel import Call, Microkernel
from .packing import GROUP, NIBBLES, WORDS, unpack, widen
from .shapes import NAMED
from .tables import CALIBRATION, HELD_OUT, SMALL, log_uniform, not_among, only, table_of

GROUPS = 8  # of one step along k: 1024 weights
PROGRAMS_WANTED = 4  # of 8 warps each, on each multiprocessor
MOST_SPLITS = 16
SCALE = 0.02
Shape = tuple[int, int, int]


class WeightOnlyInputs(NamedTuple):
    """a (m, k), stored weights, scales (n, k / 128), result (m, n) and partial results (S, m, n) where k is split."""

    a: Tensor
    stored: Tensor
    scales: Tensor
    c: Tensor
    partial: Tensor | None


@triton.jit
def _four_bits(
    a,
    stored,
    scales,
    out,
    n,
    k,
    reach,
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
    WORDS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """`reach` groups of k for ROWS rows of the weight; (splits, n) out.

    Tiles of fewer elements than threads (inputs, scales) are loaded where they are used, without a layout conversion.
    """
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    at_rows = tl.minimum(rows, n - 1).to(tl.int64)
    groups, words = tl.arange(0, GROUPS), tl.arange(0, WORDS)
    first, groups_all = tl.program_id(1) * reach, k // GROUP
    last = tl.minimum(first + reach, groups_all)
    total = tl.zeros((ROWS, GROUPS, WORDS), tl.float32)
    for group in tl.range(first, last, GROUPS, loop_unroll_factor=2):
        at = group + groups
        inside = at < last
        word_at = (at_rows[:, None, None] * groups_all + at[None, :, None]) * WORDS + words[None, None, :]
        word = tl.load(stored + word_at, inside[None, :, None], 0)
        scale = tl.load(scales + at_rows[:, None] * groups_all + at[None, :], inside[None, :], 0.0).to(tl.float32)
        product = tl.zeros((ROWS, GROUPS, WORDS), tl.float32)
        inputs = tl.zeros((GROUPS, WORDS), tl.float32)
        for nibble in tl.static_range(GROUP // WORDS):
            x_at = at[:, None] * GROUP + nibble * WORDS + words[None, :]
            x = tl.load(a + x_at, inside[:, None], 0.0).to(tl.float32)
            bits = (((word >> (4 * nibble)) & 15) << 16) | 0x43000000
            product += x[None, :, :] * bits.to(tl.float32, bitcast=True)
            inputs += x
        total += (product - 136.0 * inputs[None, :, :]) * scale[:, :, None]
    result = tl.sum(tl.sum(total, 2), 1)
    tl.store(out + tl.program_id(1) * n.to(tl.int64) + rows, result.to(out.dtype.element_ty), rows < n)


@triton.jit
def _eight_bits(
    a,
    stored,
    scales,
    out,
    n,
    k,
    reach,
    ROWS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """The same with weights of one byte, one group at a time."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    at_rows = tl.minimum(rows, n - 1).to(tl.int64)
    lanes = tl.arange(0, GROUP)
    first, groups_all = tl.program_id(1) * reach, k // GROUP
    last = tl.minimum(first + reach, groups_all)
    total = tl.zeros((ROWS, GROUP), tl.float32)
    for group in tl.range(first, last, loop_unroll_factor=2):
        weight = tl.load(stored + at_rows[:, None] * k + group * GROUP + lanes[None, :]).to(tl.float32)
        scale = tl.load(scales + at_rows * groups_all + group).to(tl.float32)
        x = tl.load(a + group * GROUP + lanes).to(tl.float32)
        total += weight * x[None, :] * scale[:, None]
    result = tl.sum(total, 1)
    tl.store(out + tl.program_id(1) * n.to(tl.int64) + rows, result.to(out.dtype.element_ty), rows < n)


def rows_of(dtype: DType) -> int:
    """Rows of the weight that a program multiplies: 32 bytes of weights a thread and step."""
    return 16 if dtype is DType.INT4 else 64


def splits_of(dtype: DType, n: int, k: int) -> int:
    """The power of two that gives every multiprocessor its programs, while each has a whole step along k."""
    splits = 1
    while (
        splits < MOST_SPLITS
        and blocks(n, rows_of(dtype)) * splits < PROGRAMS_WANTED * H200_MULTIPROCESSORS
        and k >= 2 * splits * GROUPS * GROUP
    ):
        splits *= 2
    return splits


def weight_only_table(dtype: DType, shapes: list[Shape], labels: list[str]) -> Gemm:
    """Cases of these (m, n, k) with a bf16 scale for each group."""
    m, n, k = (np.array(column, dtype=float) for column in zip(*shapes, strict=True))
    return table_of(
        Gemm,
        Kernel(KernelName.GEMM_WEIGHT_ONLY, dtype),
        labels,
        m=m,
        n=n,
        k=k,
        weight_bytes=n * k * (dtype.bytes + 2.0 / GROUP),
        activation_bytes=2.0,
        output_bytes=2.0,
    )


def named_shapes(rows: tuple[int, ...]) -> list[tuple[str, Shape]]:
    """The linear layers of the named models, with one of these numbers of rows each."""
    return [
        (f"{layers.label} {name}, {m} rows", (m, n, k))
        for i, layers in enumerate(NAMED)
        for j, (name, n, k) in enumerate(layers.linear)
        for m in (rows[(i + j) % len(rows)],)
    ]


def stored_weight(dtype: DType, n: int, k: int, source: Source) -> tuple[Tensor, Tensor]:
    """Random weights as stored and positive scales."""
    if dtype is DType.INT4:
        stored = source.integers(n, k // NIBBLES, low=-(2**31), high=2**31)
    else:
        stored = source.normal(n, k, dtype=torch.float8_e4m3fn)
    return stored, source.uniform(n, k // GROUP, low=SCALE / 2, high=SCALE)


@dataclass(frozen=True)
class WeightOnly(Microkernel[Gemm, WeightOnlyInputs]):
    """What both products have in common; `dtype` is the stored format."""

    dtype: DType

    @property
    def identity(self) -> Kernel:
        """A weight-only product."""
        return Kernel(KernelName.GEMM_WEIGHT_ONLY, self.dtype)

    @property
    def least_capability(self) -> int:
        """8.9 for fp8."""
        return 89 if self.dtype is DType.FP8 else 80

    def outputs(self, inputs: WeightOnlyInputs) -> tuple[Tensor, ...]:
        """The product."""
        return (inputs.c,)

    def reference(self, inputs: WeightOnlyInputs) -> tuple[Tensor, ...]:
        """In float64, from weights that were never rounded."""
        weight = (unpack if self.dtype is DType.INT4 else widen)(inputs.stored, inputs.scales)
        return (inputs.a.double() @ weight.T,)

    def flops(self, table: Gemm) -> Array:
        """2 m n k."""
        return np.asarray(2.0 * table.m * table.n * table.k)

    def bytes(self, table: Gemm) -> Array:
        """Inputs, weights with scales, result."""
        return np.asarray(
            table.m * table.k * table.activation_bytes + table.weight_bytes + table.m * table.n * table.output_bytes
        )

    def filled(self, m: int, n: int, k: int, splits: int, source: Source) -> WeightOnlyInputs:
        """Normal inputs, random weights, and room for partial results where k is split."""
        stored, scales = stored_weight(self.dtype, n, k, source)
        partial = source.empty(splits, m, n, dtype=torch.float32) if splits > 1 else None
        return WeightOnlyInputs(source.normal(m, k), stored, scales, source.empty(m, n), partial)


@dataclass(frozen=True)
class WeightOnlyGemv(WeightOnly):
    """One stored format."""

    tolerance = 5e-3  # one rounding to bf16 is at most 2^-8 of the value; sums in fp32

    @property
    def variant(self) -> str:
        """A matrix-vector product."""
        return "gemv"

    def fitted(self, quick: bool) -> list[Shape]:
        """Widths and depths."""
        shapes: list[Shape] = [
            (1, 256, 1024),
            *((1, n, 8192) for n in (1024, 4096, 16384, 65536)),
            *((1, 8192, k) for k in (1024, 4096, 32768)),
            (1, 8192, 8192),
        ]
        if not quick:
            shapes += [(1, n, 4096) for n in (512, 2048, 8192, 12288, 32768)]
            shapes += [(1, 2048, k) for k in (2048, 8192, 16384, 65536)]
            shapes += [(1, s, s) for s in (1024, 2048, 4096, 16384)]
        return shapes

    def calibration(self, quick: bool) -> Gemm:
        """Those shapes."""
        shapes = self.fitted(quick)
        return weight_only_table(self.dtype, shapes, [f"{CALIBRATION}: {m} x {n} x {k}" for m, n, k in shapes])

    def held_out(self) -> Gemm:
        """Layers of three models and seeded random shapes."""
        found = named_shapes((1,))
        drawn = zip(log_uniform(5, 8, 512, 40000, 16), log_uniform(6, 8, 1024, 20000, GROUP), strict=True)
        found += [(f"1 x {n} x {k}", (1, n, k)) for n, k in drawn]
        found = not_among(found, self.fitted(quick=False))
        return weight_only_table(
            self.dtype, [shape for _, shape in found], [f"{HELD_OUT}: {name}" for name, _ in found]
        )

    def small(self) -> Gemm:
        """Rows of the weight that fill no program, groups that fill no step."""
        shapes = [(1, 24, 1152), (1, 72, 2048), (1, 8, 384)]
        return weight_only_table(self.dtype, shapes, [f"{SMALL}: {m} x {n} x {k}" for m, n, k in shapes])

    def make(self, case: Gemm, device: str, seed: int) -> WeightOnlyInputs:
        """Normal inputs, random weights."""
        m, n, k = only(case.m), only(case.n), only(case.k)
        if m != 1 or k % GROUP:
            raise ValueError(f"{self.name}: {m} rows and k = {k}; it takes one row and multiples of {GROUP}")
        return self.filled(m, n, k, splits_of(self.dtype, n, k), Source(device, seed))

    def calls(self, inputs: WeightOnlyInputs, capability: int) -> tuple[Call, ...]:
        """One launch, and another that adds up where k is split."""
        a, stored, scales, c, partial = inputs
        k, n = a.shape[1], len(stored)
        splits = 1 if partial is None else len(partial)
        reach = blocks(blocks(k // GROUP, splits), GROUPS) * GROUPS
        tensors = {"a": a, "stored": stored, "scales": scales, "out": c if partial is None else partial}
        rows = rows_of(self.dtype)
        constants = {"ROWS": rows, "GROUP": GROUP}
        four_bits = {"GROUPS": GROUPS, "WORDS": WORDS} if self.dtype is DType.INT4 else {}
        kernel = _four_bits if self.dtype is DType.INT4 else _eight_bits
        arguments = tensors | {"n": n, "k": k, "reach": reach}
        first = Call(kernel, (blocks(n, rows), splits), arguments, constants | four_bits, warps=8)
        return (first,) if partial is None else (first, adding(partial, c))


MICROKERNELS: tuple[Microkernel[Gemm, WeightOnlyInputs], ...] = (WeightOnlyGemv(DType.INT4), WeightOnlyGemv(DType.FP8))
