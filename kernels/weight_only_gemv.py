"""Products of a few rows with weights of four bits or fp8 and a scale for each group of 128 along k: decode's products.

    c_mn = sum over groups g of s_ng sum over k in g of a_mk q_nk,   2 m n k FLOPs on ordinary units

Bytes: a and c in 2 bytes an element, weights with their scales once. Every thread loads 16 bytes of weights at a time;
a nibble q becomes 128 + q by the bits 0x43000000 | q << 16 of an fp32, and 136 times the sum of the inputs of a group
is taken off its sum, so that a weight costs a shift, a mask and a multiply-add (magic numbers as in Kim et al.,
arXiv 2211.10017). k is split so that every multiprocessor has several programs; partial results (S, m, n) are fp32.
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
from .gemm_kernels import add_partials
from .microkernel import Call, Microkernel
from .packing import GROUP, NIBBLES, WORDS, unpack, widen
from .shapes import NAMED
from .tables import CALIBRATION, HELD_OUT, SMALL, log_uniform, only, table_of

ROWS = 16  # columns of the result, rows of the weight, that a program computes
MOST_GROUPS = 8  # groups of one step along k: 1024 weights
PROGRAMS_WANTED = 8  # on each multiprocessor
MOST_SPLITS = 16
MOST_ROWS = 4  # of a, a power of two
REDUCTION_BLOCK = 1024
SCALE = 0.02
Shape = tuple[int, int, int]


class WeightOnlyInputs(NamedTuple):
    """a (m, k), stored weights, scales (n, k / 128), result (m, n) and partial results where k is split."""

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
    M: tl.constexpr,
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
    WORDS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """`reach` groups of k for ROWS rows of the weight and M rows of a; (splits, M, n) out."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    at_rows = tl.minimum(rows, n - 1).to(tl.int64)
    groups, words = tl.arange(0, GROUPS), tl.arange(0, WORDS)
    m = tl.arange(0, M)
    first = tl.program_id(1) * reach
    groups_all = k // GROUP
    last = tl.minimum(first + reach, groups_all)
    total = tl.zeros((M, ROWS, GROUPS), tl.float32)
    for group in range(first, last, GROUPS):
        at = group + groups
        inside = at < last
        word = tl.load(
            stored + (at_rows[:, None, None] * groups_all + at[None, :, None]) * WORDS + words[None, None, :],
            inside[None, :, None],
            0,
        )
        scale = tl.load(scales + at_rows[:, None] * groups_all + at[None, :], inside[None, :], 0.0).to(tl.float32)
        product = tl.zeros((M, ROWS, GROUPS, WORDS), tl.float32)
        inputs = tl.zeros((M, GROUPS, WORDS), tl.float32)
        for nibble in tl.static_range(GROUP // WORDS):
            x = tl.load(
                a + m[:, None, None] * k + at[None, :, None] * GROUP + nibble * WORDS + words[None, None, :],
                inside[None, :, None],
                0.0,
            ).to(tl.float32)
            bits = (((word >> (4 * nibble)) & 15) << 16) | 0x43000000
            product += x[:, None, :, :] * bits.to(tl.float32, bitcast=True)[None, :, :, :]
            inputs += x
        total += (tl.sum(product, 3) - 136.0 * tl.sum(inputs, 2)[:, None, :]) * scale[None, :, :]
    to = (tl.program_id(1) * M + m)[:, None] * n.to(tl.int64) + rows[None, :]
    tl.store(out + to, tl.sum(total, 2).to(out.dtype.element_ty), rows[None, :] < n)


@triton.jit
def _eight_bits(
    a,
    stored,
    scales,
    out,
    n,
    k,
    reach,
    M: tl.constexpr,
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
    WORDS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """The same with weights of one byte; WORDS is not used."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    at_rows = tl.minimum(rows, n - 1).to(tl.int64)
    groups, lanes = tl.arange(0, GROUPS), tl.arange(0, GROUP)
    m = tl.arange(0, M)
    first = tl.program_id(1) * reach
    groups_all = k // GROUP
    last = tl.minimum(first + reach, groups_all)
    total = tl.zeros((M, ROWS, GROUPS), tl.float32)
    for group in range(first, last, GROUPS):
        at = group + groups
        inside = at < last
        weight = tl.load(
            stored + at_rows[:, None, None] * k + at[None, :, None] * GROUP + lanes[None, None, :],
            inside[None, :, None],
            0.0,
        ).to(tl.float32)
        scale = tl.load(scales + at_rows[:, None] * groups_all + at[None, :], inside[None, :], 0.0).to(tl.float32)
        x = tl.load(
            a + m[:, None, None] * k + at[None, :, None] * GROUP + lanes[None, None, :], inside[None, :, None], 0.0
        ).to(tl.float32)
        total += tl.sum(x[:, None, :, :] * weight[None, :, :, :], 3) * scale[None, :, :]
    to = (tl.program_id(1) * M + m)[:, None] * n.to(tl.int64) + rows[None, :]
    tl.store(out + to, tl.sum(total, 2).to(out.dtype.element_ty), rows[None, :] < n)


def groups_of(dtype: DType, m: int) -> int:
    """Groups of one step along k: what the registers of 128 threads hold of weights and products."""
    return MOST_GROUPS if dtype is DType.INT4 else 4 if m == 1 else 2


def splits_of(n: int, k: int) -> int:
    """The power of two that gives every multiprocessor its programs, while each has a whole step along k."""
    splits = 1
    while (
        splits < MOST_SPLITS
        and blocks(n, ROWS) * splits < PROGRAMS_WANTED * H200_MULTIPROCESSORS
        and k >= 2 * splits * MOST_GROUPS * GROUP
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
class WeightOnlyGemv(Microkernel[Gemm, WeightOnlyInputs]):
    """One stored format."""

    dtype: DType
    tolerance = 5e-3  # one rounding to bf16 is at most 2^-8 of the value; sums in fp32

    @property
    def identity(self) -> Kernel:
        """A weight-only product."""
        return Kernel(KernelName.GEMM_WEIGHT_ONLY, self.dtype)

    @property
    def variant(self) -> str:
        """A matrix-vector product."""
        return "gemv"

    @property
    def least_capability(self) -> int:
        """8.9 for fp8."""
        return 89 if self.dtype is DType.FP8 else 80

    def calibration(self, quick: bool) -> Gemm:
        """Sizes at one row, and rows at one size."""
        shapes: list[Shape] = [
            (1, 256, 1024),
            *((1, n, 8192) for n in (1024, 4096, 16384, 65536)),
            *((1, 8192, k) for k in (1024, 4096, 32768)),
            *((m, 8192, 8192) for m in (1, 2, 4)),
        ]
        if not quick:
            shapes += [(m, n, 4096) for m in (1, 4) for n in (512, 2048, 8192, 12288, 32768)]
            shapes += [(1, 2048, k) for k in (2048, 8192, 16384, 65536)]
            shapes += [(1, s, s) for s in (1024, 2048, 4096, 16384)]
        return weight_only_table(self.dtype, shapes, [f"{CALIBRATION}: {m} x {n} x {k}" for m, n, k in shapes])

    def held_out(self) -> Gemm:
        """Layers of three models and seeded random shapes."""
        found = named_shapes((1, 2, 4))
        drawn = zip(log_uniform(5, 8, 512, 40000, 8), log_uniform(6, 8, 1024, 20000, GROUP), strict=True)
        found += [(f"1 x {n} x {k}", (1, n, k)) for n, k in drawn]
        return weight_only_table(self.dtype, [shape for _, shape in found], [f"{HELD_OUT}: {name}" for name, _ in found])

    def small(self) -> Gemm:
        """Rows of the weight that fill no program, groups that fill no step."""
        shapes = [(1, 24, 1152), (2, 40, 2048), (4, 16, 384)]
        return weight_only_table(self.dtype, shapes, [f"{SMALL}: {m} x {n} x {k}" for m, n, k in shapes])

    def make(self, case: Gemm, device: str, seed: int) -> WeightOnlyInputs:
        """Normal inputs, random weights."""
        m, n, k = only(case.m), only(case.n), only(case.k)
        if m > MOST_ROWS or m & (m - 1) or k % GROUP:
            raise ValueError(f"{self.name}: {m} rows and k = {k}; it takes 1, 2 or 4 and multiples of {GROUP}")
        source, splits = Source(device, seed), splits_of(n, k)
        stored, scales = stored_weight(self.dtype, n, k, source)
        partial = source.empty(splits, m, n, dtype=torch.float32) if splits > 1 else None
        return WeightOnlyInputs(source.normal(m, k), stored, scales, source.empty(m, n), partial)

    def calls(self, inputs: WeightOnlyInputs) -> tuple[Call, ...]:
        """One launch, and another that adds up where k is split."""
        a, stored, scales, c, partial = inputs
        (m, k), n = a.shape, len(stored)
        splits = 1 if partial is None else len(partial)
        reach = blocks(blocks(k // GROUP, splits), MOST_GROUPS) * MOST_GROUPS
        tensors = {"a": a, "stored": stored, "scales": scales, "out": c if partial is None else partial}
        constants = {"M": m, "ROWS": ROWS, "GROUPS": groups_of(self.dtype, m), "WORDS": WORDS, "GROUP": GROUP}
        kernel = _four_bits if self.dtype is DType.INT4 else _eight_bits
        first = Call(kernel, (blocks(n, ROWS), splits), tensors | {"n": n, "k": k, "reach": reach}, constants)
        if partial is None:
            return (first,)
        adding = {"partial": partial, "c": c, "size": m * n, "scale": 1.0}
        reduction = {"SPLITS": splits, "BLOCK": REDUCTION_BLOCK}
        return first, Call(add_partials, (blocks(m * n, REDUCTION_BLOCK),), adding, reduction)

    def outputs(self, inputs: WeightOnlyInputs) -> tuple[Tensor, ...]:
        """The product."""
        return (inputs.c,)

    def reference(self, inputs: WeightOnlyInputs) -> tuple[Tensor, ...]:
        """In float64."""
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


MICROKERNELS: tuple[Microkernel[Gemm, WeightOnlyInputs], ...] = (WeightOnlyGemv(DType.INT4), WeightOnlyGemv(DType.FP8))
