"""The recurrent half of a layer: norm, product in, short convolution, scan, product out.

A decode step reads and writes each sequence's whole state; a prompt is scanned in chunks of `CHUNK_TOKENS`, at whose
ends the state passes through memory once. Costed as the bytes that must move; the products inside a chunk are not
(they run on matrix units, well below the projections around them).
"""

from __future__ import annotations

import math

import numpy as np

from ..estimate import Array
from ..operators import Table
from ..scenario import Phase, Step
from ..workload.layers import Recurrent, Role
from .linear import all_reduce, elementwise_row, find, gemm_row
from .program import Node, Shard

CHUNK_TOKENS = 256  # chunk of the Mamba-2 and gated-delta kernels (`chunk_size` of their configs: 64 to 256)


def recurrent_operators(shard: Shard, index: int, r: Recurrent) -> list[Table]:
    """Operators of the recurrence of the layers of block `index`."""
    scenario = shard.scenario
    model, layer, count = scenario.model, scenario.model.blocks[index].name, shard.layer_count(index)
    stored, tokens, width = scenario.numerics.weights, shard.tokens, shard.activation.bytes
    hidden_bytes = tokens * model.hidden * width
    inner_bytes = tokens * (math.ceil((r.inputs + r.inner) / shard.tp) * width)
    state = sum((_state_bytes(shard, r, part) for part in shard.step.parts), start=np.zeros(()))
    return [
        elementwise_row(shard, "mixer norm", layer, count, 2 * hidden_bytes, 2 * hidden_bytes),
        gemm_row(shard, "mixer in", layer, count, find(model, index, Role.MIX_IN), tokens, stored),
        *(
            gemm_row(shard, "mixer narrow", layer, count, [t], tokens, stored)
            for t in find(model, index, Role.MIX_NARROW)
        ),
        elementwise_row(shard, "convolution, scan", layer, count, inner_bytes + state, inner_bytes + state, launches=3),
        gemm_row(shard, "mixer out", layer, count, find(model, index, Role.MIX_OUT), tokens, stored),
        *all_reduce(shard, "mixer all-reduce", layer, count),
    ]


def _state_bytes(shard: Shard, r: Recurrent, part: Step) -> Array:
    """Bytes of state one part of a step reads (and writes as much)."""
    sequences, new_tokens = np.asarray(part.sequences, float), np.asarray(part.new_tokens, float)
    passes = sequences if part.phase is Phase.DECODE else sequences * np.ceil(new_tokens / CHUNK_TOKENS)
    kept = r.state_elements(shard.tp) * r.state_bytes + r.conv_elements(shard.tp) * shard.activation.bytes
    return np.asarray(passes * kept)


def recurrent_nodes(shard: Shard, index: int, r: Recurrent) -> list[Node]:
    """Dataflow of the recurrence of one layer: reads `hidden`, writes `between`."""
    model = shard.scenario.model
    inputs, inner = math.ceil(r.inputs / shard.tp), math.ceil(r.inner / shard.tp)
    return [
        Node("norm", ("hidden",), (shard.activation_of("normed", model.hidden),)),
        Node("mixer in", ("normed",), (shard.activation_of("mixed", inputs),)),
        Node("convolution", ("mixed",), (shard.activation_of("convolved", inputs),)),
        Node("scan", ("mixed", "convolved"), (shard.activation_of("scanned", inner),)),
        Node("mixer out", ("scanned",), (shard.activation_of("projected", model.hidden),)),
        Node("return", ("normed", "mixed")),
        Node("add", ("hidden", "projected"), (shard.activation_of("between", model.hidden),)),
    ]
