"""Keys and values made again from a layer's inputs, instead of fetched: less to copy, more to compute.

Of each cached token a layer with attention over `kv` elements keeps the `hidden` numbers that went into it. Where a key
and a value of every head are cached (no grouped queries) those are half the bytes; the product with the weights of K
and V, and the rotation of K, come back for every token of the past.
"""

from __future__ import annotations

import numpy as np

from .calibration import CalibrationSet
from .estimate import Array
from .lowering.linear import elementwise_row, find, gemm_row
from .lowering.program import Shard
from .operators import Operators, Table
from .scenario import Scenario, Step
from .schedule import Priced, price_operators
from .workload.formats import kv_element_bytes
from .workload.layers import Attention, Role
from .workload.model import Block


def inputs_share(scenario: Scenario, block: Block) -> float:
    """Bytes of a token's input over those of its keys and values in a layer of the block, on one rank.

    Infinite where a layer keeps anything else: a latent, a recurrence, a source's keys, another layer's.
    """
    a = block.attention
    if not isinstance(a, Attention) or a.borrows or a.cross or block.crosses is not None:
        return np.inf
    cached = a.cached_elements(scenario.sharding.tp) * kv_element_bytes(scenario.numerics.kv)
    return scenario.model.hidden * scenario.numerics.activations.bytes / cached


def remakes(scenario: Scenario) -> bool:
    """Whether inputs take fewer bytes than keys and values in every layer: else fetching is never worse."""
    return all(inputs_share(scenario, block) < 1.0 for block in scenario.model.blocks)


def remaking(scenario: Scenario, step: Step, calibrations: CalibrationSet) -> tuple[Priced, ...]:
    """The operators that make the past of a step's sequences again, in the layers of each block."""
    shard, model = Shard.of(scenario, step), scenario.model
    rows: list[Table] = []
    for index, block in enumerate(model.blocks):
        a = block.attention
        assert isinstance(a, Attention)
        past = np.asarray(step.past_tokens, float) if a.window is None else np.minimum(step.past_tokens, a.window)
        tokens = np.asarray(np.asarray(step.sequences, float) * past)
        if not np.any(tokens > 0):
            continue
        tensors = [*find(model, index, Role.K), *find(model, index, Role.V)]
        keys = tokens * a.cached_elements(shard.tp) / 2 * shard.activation.bytes
        count = shard.layer_count(index)
        rows += [
            gemm_row(shard, "make K and V again", block.name, count, tensors, tokens, scenario.numerics.weights),
            elementwise_row(shard, "rotate K again", block.name, count, keys, keys),
        ]
    return price_operators(Operators.of(rows), scenario.fleet, calibrations) if rows else ()


def seconds_by_block(scenario: Scenario, priced: tuple[Priced, ...]) -> Array:
    """Seconds of one layer of each block, (blocks, *grid)."""
    found = [np.zeros(())] * len(scenario.model.blocks)
    names = [block.name for block in scenario.model.blocks]
    for p in priced:
        for row, name in enumerate(p.table.layer):
            at = names.index(name)
            found[at] = np.asarray(found[at] + p.times.time_s[row])
    return np.stack(np.broadcast_arrays(*found))
