"""The device code of matrix products: explicit tiles, pointers or tensor descriptors, one tile a program or many.

c = scale a b^T with a (m, k) and b (n, k), both contiguous along k, as linear layers store them. Tiles are numbered so
that neighbours in time share rows of b: GROUP rows of tiles are walked column by column (L2 grouping).
The number of rows is not specialised on: one compiled kernel serves every m.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .data import blocks
from .microkernel import Call

REDUCTION_BLOCK = 1024


@triton.jit
def place(tile, m, n, BM: tl.constexpr, BN: tl.constexpr, GROUP: tl.constexpr):
    """Row and column of a tile: columns of GROUP tiles, one after the other."""
    rows, columns = tl.cdiv(m, BM), tl.cdiv(n, BN)
    band = tile // (GROUP * columns)
    first = band * GROUP
    size = tl.minimum(rows - first, GROUP)
    inside = tile % (GROUP * columns)
    return first + inside % size, inside // size


@triton.jit
def tile_product(
    a,
    b,
    row,
    column,
    m,
    n,
    k,
    begin,
    end,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    EVEN_K: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """One tile of a b^T over k from `begin` to `end`, through pointers; rows past the edges repeat the last ones."""
    rows = tl.minimum(tl.arange(0, BM), m - 1 - row * BM)  # offsets inside a tile fit 32 bits
    columns = tl.minimum(tl.arange(0, BN), n - 1 - column * BN)
    depth = tl.arange(0, BK)
    a_tile = a + row.to(tl.int64) * BM * k + begin + rows[:, None] * k + depth[None, :]
    b_tile = b + column.to(tl.int64) * BN * k + begin + columns[None, :] * k + depth[:, None]
    total = tl.zeros((BM, BN), ACCUMULATOR)
    for at in range(begin, end, BK):
        if EVEN_K:
            x, y = tl.load(a_tile), tl.load(b_tile)
        else:
            x = tl.load(a_tile, (at + depth)[None, :] < end, 0.0)
            y = tl.load(b_tile, (at + depth)[:, None] < end, 0.0)
        if UPCAST:
            x, y = x.to(tl.float32), y.to(tl.float32)
        total = tl.dot(x, y, total, out_dtype=ACCUMULATOR)
        a_tile += BK
        b_tile += BK
    return total


@triton.jit(do_not_specialize=["m"])
def pointer_gemm(
    a,
    b,
    c,
    m,
    n,
    k,
    scale,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    GROUP: tl.constexpr,
    EVEN_K: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """One tile a program."""
    row, column = place(tl.program_id(0), m, n, BM, BN, GROUP)
    total = tile_product(a, b, row, column, m, n, k, 0, k, BM, BN, BK, EVEN_K, ACCUMULATOR, UPCAST)
    rows, columns = row * BM + tl.arange(0, BM), column * BN + tl.arange(0, BN)
    out = c + rows.to(tl.int64)[:, None] * n + columns[None, :]
    inside = (rows[:, None] < m) & (columns[None, :] < n)
    tl.store(out, (total.to(tl.float32) * scale).to(c.dtype.element_ty), inside)


@triton.jit(do_not_specialize=["m"])
def split_gemm(
    a,
    b,
    partial,
    m,
    n,
    k,
    reach,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    GROUP: tl.constexpr,
    EVEN_K: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """One tile over one of several ranges of k, `reach` long: fp32 or int32 partial results (splits, m, n)."""
    row, column = place(tl.program_id(0), m, n, BM, BN, GROUP)
    begin = tl.program_id(1) * reach
    end = tl.minimum(begin + reach, k)
    total = tile_product(a, b, row, column, m, n, k, begin, end, BM, BN, BK, EVEN_K, ACCUMULATOR, UPCAST)
    rows, columns = row * BM + tl.arange(0, BM), column * BN + tl.arange(0, BN)
    out = partial + tl.program_id(1).to(tl.int64) * m * n + rows.to(tl.int64)[:, None] * n + columns[None, :]
    tl.store(out, total, (rows[:, None] < m) & (columns[None, :] < n))


@triton.jit
def add_partials(partial, c, size, scale, SPLITS: tl.constexpr, BLOCK: tl.constexpr):
    """c = scale times the sum of (splits, size) partial results."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    total = tl.load(partial + at, inside, 0)
    for split in tl.static_range(1, SPLITS):
        total += tl.load(partial + split * size.to(tl.int64) + at, inside, 0)
    tl.store(c + at, (total.to(tl.float32) * scale).to(c.dtype.element_ty), inside)


def adding(partial: Tensor, c: Tensor, scale: float = 1.0) -> Call:
    """The launch that makes c of its partial results."""
    arguments = {"partial": partial, "c": c, "size": c.numel(), "scale": scale}
    constants = {"SPLITS": len(partial), "BLOCK": REDUCTION_BLOCK}
    return Call(add_partials, (blocks(c.numel(), REDUCTION_BLOCK),), arguments, constants)


@triton.jit
def descriptor_product(
    a,
    b,
    row,
    column,
    k,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """One tile of a b^T, its operands fetched by tensor descriptors; what lies past the edges reads as zero."""
    total = tl.zeros((BM, BN), ACCUMULATOR)
    for at in range(0, k, BK):
        x = a.load([row * BM, at])
        y = b.load([column * BN, at])
        if UPCAST:
            x, y = x.to(tl.float32), y.to(tl.float32)
        total = tl.dot(x, y.T, total, out_dtype=ACCUMULATOR)
    return total


@triton.jit(do_not_specialize=["m"])
def descriptor_gemm(
    a,
    b,
    c,
    m,
    n,
    k,
    scale,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    GROUP: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """One tile a program, operands and result through tensor descriptors; the result is stored in two halves."""
    row, column = place(tl.program_id(0), m, n, BM, BN, GROUP)
    total = descriptor_product(a, b, row, column, k, BM, BN, BK, ACCUMULATOR, UPCAST)
    halves = tl.permute(tl.reshape(total.to(tl.float32) * scale, (BM, 2, BN // 2)), (0, 2, 1))
    left, right = tl.split(halves)
    c.store([row * BM, column * BN], left.to(c.dtype))
    c.store([row * BM, column * BN + BN // 2], right.to(c.dtype))


@triton.jit(do_not_specialize=["m"])
def persistent_gemm(
    a,
    b,
    c,
    m,
    n,
    k,
    scale,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    GROUP: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """As many programs as multiprocessors, each with every such tile: loads of a tile overlap stores before."""
    tiles = tl.cdiv(m, BM) * tl.cdiv(n, BN)
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=True):
        row, column = place(tile, m, n, BM, BN, GROUP)
        total = descriptor_product(a, b, row, column, k, BM, BN, BK, ACCUMULATOR, UPCAST)
        halves = tl.permute(tl.reshape(total.to(tl.float32) * scale, (BM, 2, BN // 2)), (0, 2, 1))
        left, right = tl.split(halves)
        c.store([row * BM, column * BN], left.to(c.dtype))
        c.store([row * BM, column * BN + BN // 2], right.to(c.dtype))
