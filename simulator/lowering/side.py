"""What stands beside the layers' two halves: products every token passes (per-layer embeddings, learned residuals).

They are small and no rank has less than all of them, so nothing is reduced behind them.
"""

from __future__ import annotations

from ..operators import Column, Table
from ..workload.model import Role
from .head import OUTER
from .linear import elementwise_row, find, gemm_row
from .program import Shard


def layer_side_operators(shard: Shard, index: int) -> list[Table]:
    """The products beside the two halves of the layers of block `index`."""
    return _products(shard, index, shard.scenario.model.blocks[index].name, shard.layer_count(index))


def model_side_operators(shard: Shard) -> list[Table]:
    """The products beside all layers, on the last stage, though some of them stand before the first layer."""
    return _products(shard, None, OUTER, shard.on_stage(-1))


def _products(shard: Shard, index: int | None, layer: str, count: Column) -> list[Table]:
    """The products, then one pass over the hidden state that adds what they gave."""
    model, tokens, stored = shard.scenario.model, shard.tokens, shard.scenario.numerics.weights
    products: list[Table] = [
        gemm_row(shard, "side product", layer, count, [t], tokens, stored) for t in find(model, index, Role.SIDE)
    ]
    if not products:
        return []
    hidden_bytes = tokens * model.hidden * shard.activation.bytes
    return [*products, elementwise_row(shard, "side sum", layer, count, 2 * hidden_bytes, hidden_bytes)]
