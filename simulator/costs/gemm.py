"""Matrix products: 2 m n k FLOPs; and a model of the libraries that compute them.

The library chooses a work quantum (b_m x b_n: 16 x 128 or 64 x 64) and a split S of k (a power of two up to 32); the
model prices twelve such choices and takes a soft minimum, the mean weighted by T^-50. For one of them, with
x = ceil(m / b_m) ceil(n / b_n) S / SMs blocks for each multiprocessor, K = k_b ceil(k / (S k_b)) the k of one block and
f the clock (a split that leaves a block without any of k is no choice):

    T = t_0 + G (1 + droop G / (G + tau))                    sustained clock of long kernels
    G = (C^p + L^p + M^p)^(1/p) + e W + D + [S > 1] R        imperfect overlap; exposed write; cold DRAM; reduction
    C = ceil(x) 2 b_m b_n K / (compute_fraction P / SMs)     matrix units
    L = ceil(x / occupancy) (K / k_b) k_block_cycles / f     k-loop latency; k_b is 128 bytes along k
    M = cold operands / (read_fraction B) + (1 - e) W + (warm operands + re-reads) / L2 rate
    e = phi + (1 - phi) / max(1, x)                          the last wave's result is written after everything
    R = split_s + 8 S m n / L2 rate                          4-byte partial results, written and read

L2 rates are bytes per clock and multiprocessor, times f and SMs. Occupancy is min(4, accumulators / (b_m b_n)) blocks.
Of buffers of B bytes the share miss(B) = 1 / (1 + (c / B)^10), c = l2_fraction L2, is cold. In a model's step weights
are cold wholly, inputs and result by miss(both); in a benchmark's loop weights by miss(five copies of them, inputs and
result), inputs and result by miss(all three). W takes the result's cold share at write_fraction B, the rest at the L2
rate of writes; D is dram_latency by the weights' cold share. Re-reads are what a wave of blocks, taken as one square,
reads beyond once; they count while the operands fit the cache, with a the bytes of an element of both together:

    re-reads = max(0, m n k a / sqrt(min(SMs, tiles) b_m b_n) - operands) / (1 + (operands / c)^2)

Source: form and starting values from a study on public GEMM tables (see the README on accuracy); split k, k-loop
latency and exposed writes carry it, tile menus and wave quantisation do not.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from ..calibration import Cache, Denominators
from ..estimate import Array, Terms
from ..operators import Gemm
from ..overlap import norm_of
from ..parameters import Quantise, ScaledGemm, SplitKGemm

QUANTA = ((16, 128), (64, 64))  # work quanta, not real tiles: many small ones stand for any tile and stream-k
SPLITS = (1, 2, 4, 8, 16, 32)
K_BLOCK_BYTES = 128  # one step along k: 64 elements of 2 bytes, 128 of 1
ACCUMULATORS = 32768  # fp32 accumulators that blocks on one multiprocessor may hold together
BENCHMARK_COPIES = 5  # copies of the weights the public collection rotates through, read off its L2 transition
SOFTNESS = 0.02  # exponent of the soft minimum over choices: a library picks nearly the best
NEVER_S = 1e9  # the time of a choice no library makes
RESIDENCY_EXPONENT = 10  # how sharply a buffer falls out of the cache as it outgrows it


def flops(table: Gemm) -> Array:
    """2 m n k: a multiply-add is two operations (the language-model head included)."""
    return np.asarray(2.0 * table.m * table.n * table.k)


def traffic_bytes(table: Gemm) -> Array:
    """m k a + weights + m n o. No rows, no traffic: weights are not read for m = 0."""
    moved = table.m * table.k * table.activation_bytes + table.weight_bytes + table.m * table.n * table.output_bytes
    return np.asarray(np.where(table.m > 0, moved, 0.0))


def miss(buffers_bytes: Array, cache_bytes: float) -> Array:
    """Share of the accesses that miss: 0 well below the cache's size, 1 well above."""
    return np.asarray(1.0 / (1.0 + (cache_bytes / np.maximum(buffers_bytes, 1.0)) ** RESIDENCY_EXPONENT))


class Buffers(NamedTuple):
    """Bytes of the operands and the result, and the shares of them that are not in the cache."""

    inputs: Array
    weights: Array
    result: Array
    weights_miss: Array
    others_miss: Array


def buffers(table: Gemm, cache_bytes: float, cache: Cache) -> Buffers:
    """What a row moves, and from where.

    In a model's step weights come from memory and the activations before them from the cache, whatever a benchmark's
    loop would have left there.
    """
    inputs, result = table.m * table.k * table.activation_bytes, table.m * table.n * table.output_bytes
    weights = table.weight_bytes
    if cache is Cache.COLD:
        return Buffers(inputs, weights, result, np.ones_like(weights), miss(inputs + result, cache_bytes))
    all_copies = miss(BENCHMARK_COPIES * weights + inputs + result, cache_bytes)
    return Buffers(inputs, weights, result, all_copies, miss(weights + inputs + result, cache_bytes))


def rereads(table: Gemm, held: Buffers, tiles: Array, area: Array, sm_count: float, cache_bytes: float) -> Array:
    """Bytes that a wave of blocks, taken as one square, reads beyond once; the last axis is that of the choices."""
    m, n, k = (np.maximum(column, 1.0)[..., None] for column in (table.m, table.n, table.k))
    element = table.activation_bytes + held.weights / np.maximum(table.n * table.k, 1.0)
    side = np.sqrt(np.minimum(sm_count, tiles) * area)
    once = (held.inputs + held.weights)[..., None]
    again = np.maximum(0.0, m * n * k * element[..., None] / side - once)
    return np.asarray(again * (1 - 1.0 / (1.0 + (cache_bytes / np.maximum(once, 1.0)) ** 2)))


def split_k(table: Gemm, d: Denominators, p: SplitKGemm, cache: Cache) -> Terms:
    """Time of each row by the formula above; rows without work take no time. The choices are one more, last axis."""
    m, n, k = (np.maximum(column, 1.0)[..., None] for column in (table.m, table.n, table.k))
    l2 = p.l2_fraction * d.l2_bytes
    held = buffers(table, l2, cache)
    l2_read, l2_write = (
        rate * d.clock_hz * d.sm_count for rate in (p.l2_read_bytes_per_clock_per_sm, p.l2_write_bytes_per_clock_per_sm)
    )
    choices = [(bm, bn, s) for s in SPLITS if s <= p.most_splits for bm, bn in QUANTA]
    b_m, b_n, split = (np.array(c, dtype=float) for c in zip(*choices, strict=True))
    k_block = K_BLOCK_BYTES / np.maximum(table.activation_bytes, 2**-1)[..., None]
    reach = k_block * np.ceil(k / (split * k_block))  # k of one block
    tiles = np.ceil(m / b_m) * np.ceil(n / b_n)
    per_sm = tiles * split / d.sm_count

    of_peak = 2 * b_m * b_n / (p.compute_fraction * d.peak_flops_per_s) * d.sm_count
    compute = np.maximum(1.0, np.ceil(per_sm)) * reach * of_peak
    occupancy = np.clip(np.floor(ACCUMULATORS / (b_m * b_n)), 1, 4)
    k_loop = np.maximum(1.0, np.ceil(per_sm / occupancy)) * (reach / k_block) * (p.k_block_cycles / d.clock_hz)
    cold = held.others_miss * held.inputs + held.weights_miss * held.weights
    warm = held.inputs + held.weights - cold
    written = held.others_miss * held.result
    write = written / (p.write_fraction * d.bandwidth_bytes_per_s) + (held.result - written) / l2_write
    exposed = p.exposed_write + (1 - p.exposed_write) / np.maximum(1.0, per_sm)
    tail = exposed * write[..., None]
    again = rereads(table, held, tiles, b_m * b_n, d.sm_count, l2)
    loaded = cold / (p.read_fraction * d.bandwidth_bytes_per_s) + warm / l2_read
    memory = loaded[..., None] + write[..., None] - tail + again / l2_read

    overlapped, shares = norm_of((compute, k_loop, memory), p.overlap)
    reduction = np.where(split > 1, p.split_s + 8.0 * split * m * n / l2_read, 0.0)
    busy = overlapped + tail + (p.dram_latency_s * held.weights_miss)[..., None] + reduction
    busy = np.where((split > 1) & (reach * (split - 1) >= k), NEVER_S, busy)  # a split that leaves blocks without work
    stretch = 1 + p.droop * busy / (busy + p.droop_s)  # the droop, shared by all parts
    times = p.floor_s + busy * stretch
    odds = (times / times.min(axis=-1, keepdims=True)) ** (-1 / SOFTNESS)
    odds = odds / odds.sum(axis=-1, keepdims=True)

    def mean(values: Array) -> Array:
        return np.asarray(np.where(table.m > 0, (values * odds).sum(axis=-1), 0.0))

    compute_s, memory_s = mean(shares[0] * stretch), mean((shares[2] + tail) * stretch)
    floor_s = np.where(table.m > 0, p.floor_s, 0.0)
    rest = np.maximum(mean(times) - compute_s - memory_s - floor_s, 0.0)  # rounding may leave less than nothing
    return Terms(compute_s, memory_s, floor_s, latency_s=np.asarray(rest))


def quantise_s(table: Gemm, d: Denominators, p: Quantise) -> Array:
    """Scaling and narrowing activations (2 bytes in, 1 out), and repacking weights where m is no multiple of 4."""
    narrowed = table.m * p.row_s + 3.0 * table.m * table.k / (p.quantise_fraction * d.bandwidth_bytes_per_s)
    whole = table.m == np.floor(table.m)  # a mean over steps is no number of rows: three in four are not aligned
    odd = np.where(whole, np.mod(table.m, 4) != 0, 0.75)
    repacked = np.minimum(1.0, table.m / 256) * table.n * table.k / (p.misaligned_fraction * d.bandwidth_bytes_per_s)
    return np.asarray(narrowed + odd * repacked)


def scaled(table: Gemm, d: Denominators, p: ScaledGemm, cache: Cache) -> Terms:
    """A narrow GEMM: its own time plus the quantisation of its activations, which is memory traffic."""
    own = split_k(table, d, p.gemm, cache)
    return dataclasses.replace(own, memory_s=np.asarray(own.memory_s + quantise_s(table, d, p.quantise)))
