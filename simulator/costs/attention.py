"""Flash attention: no S x S matrix ever reaches memory, and grouped queries share their keys and values.

Dao et al., "FlashAttention" (arXiv 2205.14135). Per head, (query, key) pairs cost 4 head_dim FLOPs (scores and
values). Causal masking keeps q (p + (q + 1) / 2) of the q (p + q) pairs for q queries behind p past tokens.

Prefill, many queries (kernels with tiles of 128 x 128; `packs_heads` packs the G heads that share keys into one tile):

    T = t_0 + max((pairs t_pair + tiles t_tile) / SMs,  128 longest t_pair + t_tile) + passes / (0.9 B)
    t_pair = 2 (d_qk + d_v) / (e P / SMs) + c / (16 f)
    passes = (query_passes heads + kv_passes KV heads) (d_qk + d_v) sequences queries, in activation bytes,
             and the keys and values of earlier chunks once (public tables have no such rows)

Work is spread over multiprocessors or hangs on the longest tile; memory traffic adds up instead of hiding behind it.
A tile holds R = 128 queries of one head, or 128 / G of G packed ones. The i-th of a sequence multiplies min(past + i R,
longest) keys, all of them together at least 128 a tile; longest is all keys in whole blocks of 128, or window + R + 64
where that is less. Heads are packed where a head's queries alone would fill less than 0.9 of what packed ones fill of
their tiles. Bidirectional attention has no mask: every tile multiplies all keys in whole blocks of 128 (the public
tables hold none of it).

Decode, one query a sequence, n = sequences x KV heads x ceil(G / 64) blocks:

    T = t_0 + c_log log2(1 + L / 64) + sqrt(T_memory^2 + T_block^2 + T_step^2)
    T_block = (t_b + t_d D / 128) n / SMs;  T_step = n ceil(L / 128) t_s (D / 128) / SMs
    T_memory = (queries and outputs + KV (miss + (1 - miss) / l2_speed)) / (e B)

L is the keys read, a window's at most; several queries a sequence count as so many heads of a group G. In a model's
step miss is 1, in a benchmark's loop x / (1 + x), x = (KV bytes / (l2_fraction L2))^4.

Source: forms and starting values from a study on public tables of FlashAttention 2 and 3, FlashInfer and TensorRT-LLM.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..calibration import Cache, Denominators
from ..estimate import Array, Terms
from ..operators import Attention, Bidirectional
from ..overlap import norm_of
from ..parameters import FlashPrefill, SplitKvDecode

TILE = 128  # queries, and keys, of one tile
EXPONENTIALS_PER_CLOCK = (
    16  # of one multiprocessor's special-function units, Ampere to Blackwell (CUDA guide, table of throughputs)
)
MEMORY_FRACTION = 0.9  # of the bandwidth that prefill's passes over queries, outputs and keys reach
HEADS_PER_BLOCK = 64  # grouped query heads that one decode block serves
L2_EXPONENT = 4  # how sharply a benchmark's KV cache falls out of L2


def pairs(table: Attention) -> Array:
    """(query, key) pairs of one head of one sequence that causal masking and the window keep.

    Query i (1-based) sees min(past + i, window) keys; all of them where attention is bidirectional.
    """
    if isinstance(table, Bidirectional):
        return np.asarray(table.new_tokens * table.kv_tokens)
    q, past, window = table.new_tokens, table.kv_tokens - table.new_tokens, table.window
    growing = np.clip(window - past, 0.0, q)  # queries that still see everything before them
    return np.asarray(growing * past + growing * (growing + 1) / 2 + (q - growing) * np.minimum(window, past + q))


def causal_factor(new_tokens: Array, kv_tokens: Array) -> Array:
    """Kept pairs over all pairs; (S + 1) / (2 S) for a prompt. Divide by it to compare with non-causal counters."""
    past = kv_tokens - new_tokens
    return np.asarray((past + (new_tokens + 1) / 2) / kv_tokens)


def keys_read(table: Attention) -> Array:
    """Keys of one sequence that any query sees, so that must be read."""
    if isinstance(table, Bidirectional):
        return table.kv_tokens
    return np.asarray(np.minimum(table.kv_tokens, table.window + table.new_tokens - 1))


def flops(table: Attention) -> Array:
    """4 head_dim FLOPs for each pair and query head."""
    return np.asarray(4.0 * table.head_dim * table.heads * table.sequences * pairs(table))


def traffic_bytes(table: Attention) -> Array:
    """Queries in, outputs out (per query head); keys and values in (per KV head: grouped queries share them)."""
    query_output = 2.0 * table.new_tokens * table.heads * table.head_dim * table.activation_bytes
    keys_values = 2.0 * keys_read(table) * table.kv_heads * table.head_dim * table.kv_bytes
    return np.asarray(np.where(table.new_tokens > 0, table.sequences * (query_output + keys_values), 0.0))


class Tiling(NamedTuple):
    """How queries are cut into tiles: per sequence `tiles` of `heads` each, and the keys they multiply."""

    heads: Array
    tiles: Array
    pairs: Array
    longest: Array


def tiling(table: Attention, packs_heads: bool) -> Tiling:
    """Tiles of 128 rows of queries against keys in blocks of 128; `pairs` and `longest` count whole tiles.

    Packing (FlashAttention 3, `PackGQA`) puts the G heads of a group into the rows of one tile where a prompt alone
    would leave more of it empty.
    """
    group = table.heads / table.kv_heads
    new, total = np.maximum(table.new_tokens, 1.0), np.maximum(table.kv_tokens, 1.0)

    def whole(rows: Array) -> Array:
        return np.asarray(TILE * np.ceil(rows / TILE))

    packed = packs_heads & (new / whole(new) < 0.9 * new * group / whole(new * group))
    shared = np.where(packed, group, 1.0)
    rows, tiles = TILE / shared, np.ceil(new * shared / TILE)
    if isinstance(table, Bidirectional):
        return Tiling(table.heads / shared, tiles, TILE * tiles * whole(total), whole(total))
    limit = np.minimum(whole(total), table.window + rows + TILE / 2)
    growing = np.clip(np.floor((limit - (total - new)) / rows), 0.0, tiles)
    keys = growing * (total - new) + rows * growing * (growing + 1) / 2 + (tiles - growing) * limit
    return Tiling(table.heads / shared, tiles, TILE * np.maximum(keys, tiles * TILE), limit)


def prefill(table: Attention, d: Denominators, p: FlashPrefill, cache: Cache) -> Terms:
    """Time of each row by the prefill formula; rows without queries take no time."""
    return flash(table, table.head_dim, table.head_dim, d, p)


def flash(table: Attention, key_dim: Array, value_dim: Array, d: Denominators, p: FlashPrefill) -> Terms:
    """The prefill formula for heads whose keys and values may differ in width."""
    cut = tiling(table, bool(p.packs_heads))
    units = table.sequences * cut.heads
    product = 2.0 * (key_dim + value_dim) * d.sm_count / (p.compute_fraction * d.peak_flops_per_s)
    pair = product + p.exponential_share / (EXPONENTIALS_PER_CLOCK * d.clock_hz)
    spread = units * (cut.pairs * pair + cut.tiles * p.tile_s) / d.sm_count
    longest = TILE * cut.longest * pair + p.tile_s
    compute = units * cut.pairs * product / d.sm_count
    wide = (key_dim + value_dim) * table.sequences * table.new_tokens
    passes = p.query_passes * wide * table.heads * table.activation_bytes
    passes = passes + p.kv_passes * wide * table.kv_heads * table.activation_bytes
    before = np.maximum(keys_read(table) - table.new_tokens, 0.0)  # keys of earlier chunks must be read once
    passes = passes + (key_dim + value_dim) * table.sequences * before * table.kv_heads * table.kv_bytes
    passes = np.where(table.new_tokens > 0, passes, 0.0)
    busy = table.new_tokens > 0
    work = np.where(busy, np.maximum(spread, longest), 0.0)
    compute = np.minimum(np.where(busy, compute, 0.0), work)
    return Terms(
        compute_s=np.asarray(compute),
        memory_s=np.asarray(passes / (MEMORY_FRACTION * d.bandwidth_bytes_per_s)),
        floor_s=np.asarray(np.where(busy, p.floor_s, 0.0)),
        latency_s=np.asarray(work - compute),
    )


def decode(table: Attention, d: Denominators, p: SplitKvDecode, cache: Cache) -> Terms:
    """Time of each row by the decode formula; several queries a sequence count as so many heads of a group."""
    keys = keys_read(table)
    group = table.heads / table.kv_heads * table.new_tokens
    blocks = table.sequences * table.kv_heads * np.ceil(group / HEADS_PER_BLOCK)
    kv = table.sequences * table.kv_heads * keys * table.head_dim * 2.0 * table.kv_bytes
    missed = np.ones_like(kv)
    if cache is Cache.REUSED:
        x = (kv / (p.l2_fraction * d.l2_bytes)) ** L2_EXPONENT
        missed = x / (1 + x)
    read = kv * (missed + (1 - missed) / p.l2_speed)
    read = read + 2.0 * table.activation_bytes * table.sequences * table.new_tokens * table.heads * table.head_dim
    memory = read / (p.read_fraction * d.bandwidth_bytes_per_s)
    wide = table.head_dim / 128.0
    block = (p.block_s + p.block_dim_s * wide) * blocks / d.sm_count
    step = blocks * np.ceil(keys / TILE) * p.step_s * wide / d.sm_count
    _, (loaded, started, stepped) = norm_of((memory, block, step), 2.0)
    log = p.doubling_s * np.log2(1 + keys / 64.0)
    floor = np.full_like(log, p.floor_s)
    spent = Terms(memory_s=loaded, floor_s=floor, latency_s=np.asarray(started + stepped + log))
    return spent.where(table.new_tokens > 0)
