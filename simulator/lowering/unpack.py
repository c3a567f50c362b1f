"""4-bit numbers widened to 16 bits in device memory before they are used, by engines whose kernels do not do it inside.

FlexGen's `flexgen/compression.py` widens in six PyTorch kernels: a shift and a mask of the packed bytes, each stored
and then copied into every other 16-bit number, a division and an addition in place. For each number that reads
4 x 0.5 + 2 + 2 = 6 bytes and writes 2 x (0.5 + 1) + 2 + 2 = 7. Packing takes the least and the largest of a group,
subtracts, scales, clamps, rounds, converts, shifts and joins: 15.5 bytes read and 10 written.
"""

from __future__ import annotations

import numpy as np

from ..estimate import Array
from ..operators import Table
from ..scenario import Phase
from ..workload import layers as workload
from .linear import elementwise_row, share_per_rank
from .program import Shard

UNPACK_READ, UNPACK_WRITE, UNPACK_KERNELS = 6.0, 7.0, 6
PACK_READ, PACK_WRITE, PACK_KERNELS = 15.5, 10.0, 9


def unpacking_operators(shard: Shard, index: int) -> list[Table]:
    """Widening a layer's weights once for every small batch, and its cache; packing what a step adds to the cache."""
    scenario = shard.scenario
    if not scenario.engine.unpacks_in_memory:
        return []
    model, block = scenario.model, scenario.model.blocks[index]
    rows: list[Table] = []
    stored = scenario.numerics.weights
    narrow = [t for t in model.tensors if t.block == index and shard.widens(model.format_of(t, stored).bits_per_weight)]
    held = sum(t.rows * t.cols * t.copies * share_per_rank(t, model, scenario.sharding) for t in narrow)
    if held:
        numbers = np.asarray(held * scenario.engine.small_batches)
        rows.append(_row(shard, index, "widen weights", numbers, UNPACK_READ, UNPACK_WRITE, UNPACK_KERNELS))
    a = block.attention
    if not shard.widens(scenario.numerics.kv.bits) or not isinstance(a, workload.Attention):
        return rows
    each = a.cached_elements(shard.tp)
    for part in shard.step.parts:
        made = part.tokens * each
        rows.append(_row(shard, index, "pack KV", made, PACK_READ, PACK_WRITE, PACK_KERNELS))
        if part.phase is Phase.DECODE:
            held_kv = np.asarray(part.sequences, float) * part.kv_tokens * each
            rows.append(_row(shard, index, "widen KV", held_kv, UNPACK_READ, UNPACK_WRITE, UNPACK_KERNELS))
    return rows


def _row(shard: Shard, index: int, label: str, numbers: Array, read: float, written: float, kernels: int) -> Table:
    block, count = shard.scenario.model.blocks[index].name, shard.layer_count(index)
    return elementwise_row(shard, label, block, count, numbers * read, numbers * written, kernels)
