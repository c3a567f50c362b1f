"""Mixture-of-experts feed-forward as one fused kernel: gate, up and down of the experts the tokens touch.

FLOPs follow the active experts (top_k of each token), weight bytes the touched ones: at batch 1 these agree, at
large batch every expert is read though each token uses few. Counting total parameters for either is a classic error.

Time, on the busiest rank: two grouped GEMMs (K = hidden then intermediate), rows padded to blocks of b_m,

    T = t_0 + t_log log2(1 + N) + t_x touched + passes / (0.9 B) + sum over both of (C^3 + M^3 + L^3)^(1/3)
    C = 2 blocks max(b_m, 16) 128 ceil(width / 128) K (waves SMs / tiles) / (e P)
    M = touched weights / (e_m B);  L = waves (K / 64) t_k;  waves = ceil(tiles / SMs)

Widths are 2 intermediate (gate and up) and hidden; tiles = max(1, blocks ceil(width / 128)); rows, touched experts and
blocks are those of `workload.routing.busiest_rank`. Passes are activation_passes times the busiest rank's rows of
2 hidden + 2 intermediate, and global_passes times all N top_k assignments of hidden, in activation bytes.

Source: form and starting values from a study on public tables of fused Triton, CUTLASS and Marlin kernels.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ...dtypes import DType
from ..calibration import Cache, Denominators
from ..estimate import Array, Terms
from ..operators import Experts, KernelName
from ..overlap import norm_of
from ..parameters import GroupedExperts
from ..workload.routing import BALANCED, Load, Routing, busiest_rank, touched_experts

ROW_BLOCKS = (16.0, 64.0, 128.0)  # rows of a block by mean load of a touched expert
MARLIN_ROW_BLOCKS = (8.0, 16.0, 32.0, 64.0)  # of the integer weight-only kernels (vllm, fused_marlin_moe.py)
COLUMN_BLOCK = 128.0
SMALLEST_MULTIPLY = 16.0  # rows a matrix instruction multiplies, full or not
K_BLOCK = 64.0
MEMORY_FRACTION = 0.9  # of the bandwidth that passes over activations reach
NORM = 3.0  # exponent of the overlap of compute, weights and k-loop


def assignments(table: Experts) -> Array:
    """(token, expert) pairs of one rank, ranks alike."""
    return np.asarray(table.tokens * table.top_k / table.ranks)


def _by_kind(table: Experts) -> list[tuple[tuple[int, int, int, float], npt.NDArray[np.int64]]]:
    """Rows that share the shape of their layer: ((experts, top_k, ranks, alpha), row indices)."""
    rows = len(table.label)
    columns = (table.experts, table.top_k, table.ranks, table.routing_alpha)
    kinds = np.stack([np.broadcast_to(np.ravel(c), rows) for c in columns])
    distinct, inverse = np.unique(kinds, axis=1, return_inverse=True)
    inverse = np.ravel(inverse)
    return [
        ((int(e), int(k), int(r), float(a)), np.flatnonzero(inverse == i).astype(np.int64))
        for i, (e, k, r, a) in enumerate(distinct.T)
    ]


def touched(table: Experts) -> Array:
    """Experts of one rank that at least one token chose, so whose weights are read; ranks alike."""
    result = np.empty((len(table.label), *table.tokens.shape[1:]))
    for (experts, top_k, ranks, alpha), rows in _by_kind(table):
        tokens = table.tokens[rows]
        if alpha == BALANCED:
            result[rows] = np.minimum(experts, tokens * top_k) / ranks
        else:
            routing = Routing.POWER_LAW if alpha > 0 else Routing.UNIFORM
            result[rows] = touched_experts(tokens, experts, top_k, routing, alpha) / ranks
    return result


def load(table: Experts) -> Load:
    """The busiest rank's load of every row."""
    shape = (len(table.label), *table.tokens.shape[1:])
    marlin = table.kernel.name is KernelName.EXPERTS_WEIGHT_ONLY and table.kernel.dtype in (DType.INT4, DType.INT8)
    row_blocks = MARLIN_ROW_BLOCKS if marlin else ROW_BLOCKS
    result = Load(*(np.empty(shape) for _ in Load._fields))
    for (experts, top_k, ranks, alpha), rows in _by_kind(table):
        part = busiest_rank(table.tokens[rows], experts, top_k, ranks, alpha, row_blocks)
        for whole, piece in zip(result, part, strict=True):
            whole[rows] = piece
    return result


def flops(table: Experts) -> Array:
    """2 FLOPs for each weight of the three matrices and each (token, expert) assignment."""
    return np.asarray(2.0 * 3.0 * assignments(table) * table.hidden * table.intermediate)


def traffic_bytes(table: Experts) -> Array:
    """Weights of the touched experts; each assignment's input, gated product (written and read) and output."""
    weights = touched(table) * table.expert_bytes
    activations = assignments(table) * (2.0 * table.hidden + 4.0 * table.intermediate) * table.activation_bytes
    return np.asarray(np.where(table.tokens > 0, weights + activations, 0.0))


def grouped(table: Experts, d: Denominators, p: GroupedExperts, cache: Cache) -> Terms:
    """Time of each row by the formula above; no tokens take no time."""
    on = load(table)
    total = Terms()
    weight = table.expert_bytes / (3.0 * table.hidden * table.intermediate)
    for width, depth in ((2.0 * table.intermediate, table.hidden), (table.hidden, table.intermediate)):
        columns = np.ceil(width / COLUMN_BLOCK)
        tiles = np.maximum(on.blocks * columns, 1.0)
        waves = np.ceil(tiles / d.sm_count)
        idle = waves * d.sm_count / tiles
        padded = on.blocks * np.maximum(on.block_rows, SMALLEST_MULTIPLY) * COLUMN_BLOCK * columns
        compute = 2.0 * padded * depth * idle / (p.compute_fraction * d.peak_flops_per_s)
        memory = on.touched * width * depth * weight / (p.read_fraction * d.bandwidth_bytes_per_s)
        k_loop = waves * depth / K_BLOCK * p.k_block_s
        _, (multiplied, loaded, stepped) = norm_of((compute, memory, k_loop), NORM)
        total = total.plus(compute_s=multiplied, memory_s=loaded, latency_s=stepped)
    wide = (2.0 * table.hidden + 2.0 * table.intermediate) * table.activation_bytes
    everywhere = table.tokens * table.top_k * table.hidden * table.activation_bytes
    passes = p.activation_passes * on.rows * wide + p.global_passes * everywhere
    total = total.plus(
        memory_s=passes / (MEMORY_FRACTION * d.bandwidth_bytes_per_s),
        latency_s=p.expert_s * on.touched + p.doubling_s * np.log2(1 + table.tokens),
        floor_s=np.full_like(on.rows, p.floor_s),
    )
    return total.where(table.tokens > 0)
