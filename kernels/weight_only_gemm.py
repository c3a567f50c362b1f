"""Products of many rows with weights of four bits or fp8 and a scale for each group of 128 along k.

    c = a w^T,  w_nk = s_ng (q_nk - 8) or s_ng q_nk rounded to bf16,  g = k // 128;  2 m n k FLOPs on matrix units

Bytes: a and c in 2 bytes an element, weights with their scales once. The tile is computed transposed, w a^T: widened
weights go from registers straight into the matrix unit as its first operand, and few rows are a narrow second one
(8 at least), so that on Hopper even these are wgmma. A nibble q becomes 128 + q by the bits 0x4300 | q of a bf16.
k is split while there are too few tiles; partial results (S, m, n) are fp32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import triton
import triton.language as tl

from ..dtypes import DType
from ..simulator.operators import Gemm
from .data import H200_MULTIPROCESSORS, Source, blocks, interpreted
from .gemm_kernels import adding, place
from .microkernel import Call, Microkernel
from .packing import GROUP, WORDS
from .tables import CALIBRATION, HELD_OUT, SMALL, log_uniform, not_among, only
from .weight_only_gemv import (
    Shape,
    WeightOnly,
    WeightOnlyInputs,
    named_shapes,
    weight_only_table,
)

BAND = 8  # rows of tiles walked together
MOST_SPLITS = 8


class Tile(NamedTuple):
    """Rows of a and rows of the weight of one tile; warps and buffers."""

    m: int
    n: int
    warps: int
    stages: int


TILES = (Tile(16, 128, 4, 4), Tile(32, 128, 4, 4), Tile(64, 128, 8, 4), Tile(128, 128, 8, 3))


@triton.jit(do_not_specialize=["m"])
def _weight_only(
    a,
    stored,
    scales,
    out,
    m,
    n,
    k,
    reach,
    FOUR_BITS: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BAND: tl.constexpr,
    WORDS: tl.constexpr,
    GROUP: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """One tile over `reach` groups of k; (splits, m, n) out."""
    row, column = place(tl.program_id(0), m, n, BM, BN, BAND)
    groups = k // GROUP
    # Offsets inside a tile fit 32 bits; what lies past the edges repeats the last row.
    rows = tl.minimum(tl.arange(0, BM), m - 1 - row * BM)
    columns = tl.minimum(tl.arange(0, BN), n - 1 - column * BN)
    a += row.to(tl.int64) * BM * k
    scales += column.to(tl.int64) * BN * groups
    stored += column.to(tl.int64) * BN * (groups * WORDS if FOUR_BITS else k)
    first = tl.program_id(1) * reach
    last = tl.minimum(first + reach, groups)
    total = tl.zeros((BN, BM), tl.float32)
    for group in range(first, last):
        x = tl.load(a + rows[None, :] * k + (group * GROUP + tl.arange(0, GROUP))[:, None])
        scale = tl.load(scales + columns * groups + group)
        if FOUR_BITS:
            word = tl.load(stored + (columns[:, None] * groups + group) * WORDS + tl.arange(0, WORDS)[None, :])
            shifts = 4 * tl.arange(0, GROUP // WORDS)
            bits = ((word[:, None, :] >> shifts[None, :, None]) & 15) | 0x4300
            nibbles = tl.reshape(bits.to(tl.int16).to(tl.bfloat16, bitcast=True), (BN, GROUP))
            if UPCAST:
                w = (nibbles.to(tl.float32) - 136.0) * scale.to(tl.float32)[:, None]
            else:  # the difference is exact in bf16, the product rounded once
                w = (nibbles - tl.full((1, 1), 136.0, tl.bfloat16)) * scale[:, None]
        else:
            q = tl.load(stored + columns[:, None] * k + (group * GROUP + tl.arange(0, GROUP))[None, :])
            w = q.to(tl.float32) * scale.to(tl.float32)[:, None]
        if UPCAST:
            total = tl.dot(w, x.to(tl.float32), total)
        else:
            total = tl.dot(w.to(tl.bfloat16), x, total)
    rows, columns = row * BM + tl.arange(0, BM), column * BN + tl.arange(0, BN)
    to = tl.program_id(1).to(tl.int64) * m * n + rows.to(tl.int64)[None, :] * n + columns[:, None]
    tl.store(out + to, total.to(out.dtype.element_ty), (rows[None, :] < m) & (columns[:, None] < n))


def tile_of(m: int) -> Tile:
    """The smallest tile that holds all rows, else the largest."""
    return next((tile for tile in TILES if m <= tile.m), TILES[-1])


def splits_of(m: int, n: int, k: int) -> int:
    """The power of two that gives every multiprocessor two programs, while each has four groups or more."""
    tile, splits = tile_of(m), 1
    tiles = blocks(m, tile.m) * blocks(n, tile.n)
    while splits < MOST_SPLITS and tiles * splits < 2 * H200_MULTIPROCESSORS and k >= 8 * splits * GROUP:
        splits *= 2
    return splits


@dataclass(frozen=True)
class WeightOnlyGemm(WeightOnly):
    """One stored format."""

    tolerance = 1e-2  # weights are rounded to bf16 before they are multiplied, results after: 2^-8 each

    @property
    def variant(self) -> str:
        """A matrix product."""
        return "gemm"

    def fitted(self, quick: bool) -> list[Shape]:
        """Rows at one size; widths, depths and cubes."""
        shapes: list[Shape] = [
            (2, 256, 1024),
            *((m, 8192, 8192) for m in (4, 16, 32, 64, 128, 512, 2048)),
            *((16, n, 4096) for n in (1024, 32768)),
            *((32, 4096, k) for k in (1024, 32768)),
            (4096, 4096, 4096),
        ]
        if not quick:
            shapes += [(m, 4096, 4096) for m in (1, 2, 8, 16, 24, 48, 64, 96, 128, 192, 256, 1024)]
            shapes += [(16, n, 4096) for n in (512, 2048, 8192, 16384)]
            shapes += [(1024, n, 2048) for n in (1024, 1152, 2048, 4224, 8192)]
            shapes += [(64, 4096, k) for k in (512, 2048, 8192, 16384)]
        return shapes

    def calibration(self, quick: bool) -> Gemm:
        """Those shapes."""
        shapes = self.fitted(quick)
        return weight_only_table(self.dtype, shapes, [f"{CALIBRATION}: {m} x {n} x {k}" for m, n, k in shapes])

    def held_out(self) -> Gemm:
        """Layers of three models and seeded random shapes."""
        found = named_shapes((3, 24, 100, 700))
        drawn = zip(
            log_uniform(7, 8, 2, 4096),
            log_uniform(8, 8, 512, 16384, 16),
            log_uniform(9, 8, 1024, 16384, GROUP),
            strict=True,
        )
        found += [(f"{m} x {n} x {k}", (m, n, k)) for m, n, k in drawn]
        found = not_among(found, self.fitted(quick=False))
        return weight_only_table(
            self.dtype, [shape for _, shape in found], [f"{HELD_OUT}: {name}" for name, _ in found]
        )

    def small(self) -> Gemm:
        """Rows and columns that fill no tile."""
        shapes = [(3, 40, 256), (20, 136, 1152), (130, 24, 384)]
        return weight_only_table(self.dtype, shapes, [f"{SMALL}: {m} x {n} x {k}" for m, n, k in shapes])

    def make(self, case: Gemm, device: str, seed: int) -> WeightOnlyInputs:
        """Normal inputs, random weights."""
        m, n, k = only(case.m), only(case.n), only(case.k)
        if k % GROUP:
            raise ValueError(f"{self.name}: k = {k}; it takes multiples of {GROUP}")
        return self.filled(m, n, k, splits_of(m, n, k), Source(device, seed))

    def calls(self, inputs: WeightOnlyInputs, capability: int) -> tuple[Call, ...]:
        """One launch, and another that adds up where k is split."""
        a, stored, scales, c, partial = inputs
        (m, k), n = a.shape, len(stored)
        tile, splits = tile_of(m), 1 if partial is None else len(partial)
        reach = blocks(k // GROUP, splits)
        tensors = {"a": a, "stored": stored, "scales": scales, "out": c if partial is None else partial}
        constants = {
            "FOUR_BITS": self.dtype is DType.INT4,
            "BM": tile.m,
            "BN": tile.n,
            "BAND": BAND,
            "WORDS": WORDS,
            "GROUP": GROUP,
            "UPCAST": interpreted(),
        }
        grid = (blocks(m, tile.m) * blocks(n, tile.n), splits)
        arguments = tensors | {"m": m, "n": n, "k": k, "reach": reach}
        first = Call(_weight_only, grid, arguments, constants, tile.warps, tile.stages)
        return (first,) if partial is None else (first, adding(partial, c))


MICROKERNELS: tuple[Microkernel[Gemm, WeightOnlyInputs], ...] = (WeightOnlyGemm(DType.INT4), WeightOnlyGemm(DType.FP8))
