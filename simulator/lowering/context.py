"""Context parallelism: what attention needs beside itself where ranks share out the tokens of a KV cache.

As vLLM 0.11 does it (`--decode-context-parallel-size`; vllm/attention/ops/common.py, vllm/v1/attention/backends/
flash_attn.py and mla/common.py). Token i is kept by rank i mod `cp`. Queries are gathered, so that each rank attends
with the heads of all `cp` to the tokens it keeps; the logarithms of the sums of exponentials are gathered, each rank
scales its partial outputs by its share of the sum, and a reduce-scatter adds them up and leaves each rank its own
heads. Gathers and scatters are along heads, which are not the first axis: each copies its buffer into the other order
(GroupCoordinator.all_gather, .reduce_scatter).

Not modelled: the memory of a second communicator, attention left out of captured graphs, the queries of fp8 caches that
later versions gather in 8 bits, SGLang's scatter in 32 bits, one all-to-all in place of the three (arXiv 2507.07120).
"""

from __future__ import annotations

import numpy as np

from ..estimate import Array
from ..operators import Collective, Kernel, KernelName, Table, one_row
from .linear import elementwise_row
from .program import Buffer, Node, Shard

SUM_BYTES = 4.0  # the logarithm of a sum of exponentials, of one query and head


def kept_tokens(tokens: Array, cp: int) -> Array:
    """Of so many tokens in a row those of the rank that keeps most."""
    return np.asarray(np.ceil(np.asarray(tokens, float) / cp))


def gathered_queries(shard: Shard, index: int, tokens: Array, elements: int) -> list[Table]:
    """Queries of all ranks of a group on each of them; `elements` of one rank for a token."""
    message = tokens * elements * shard.cp * shard.activation.bytes
    return [
        _collective(shard, "gather queries", index, KernelName.ALL_GATHER, message),
        _copy(shard, "order queries", index, message),
    ]


def combined_outputs(shard: Shard, index: int, tokens: Array, heads: int, width: int) -> list[Table]:
    """A rank's own outputs out of the partial ones of all ranks; a rank has `heads` of that width."""
    message = tokens * heads * shard.cp * width * shard.activation.bytes
    sums = tokens * heads * shard.cp * shard.cp * SUM_BYTES
    layer, count = shard.scenario.model.blocks[index].name, shard.layer_count(index)
    return [
        _collective(shard, "gather sums of exponentials", index, KernelName.ALL_GATHER, sums),
        elementwise_row(shard, "scale partial outputs", layer, count, message + sums, message),
        _copy(shard, "order partial outputs", index, message),
        _collective(shard, "scatter outputs", index, KernelName.REDUCE_SCATTER, message),
        _copy(shard, "order outputs", index, message / shard.cp),
    ]


def gathered_past(shard: Shard, index: int, tokens: Array, elements: int) -> list[Table]:
    """Earlier tokens of all ranks on each of them, for a prompt's next piece to expand: copied out, put in order."""
    message = tokens * elements * shard.activation.bytes
    return [
        _collective(shard, "gather earlier latents", index, KernelName.ALL_GATHER, message),
        _copy(shard, "order earlier latents", index, message, times=2),
    ]


def gathered_nodes(shard: Shard, query: Buffer, output: Buffer, source: tuple[str, ...] = ()) -> list[Node]:
    """Dataflow of attention with gathered queries; `query` and `output` are a rank's own, the latter is written."""

    def of_all(name: str, own: Buffer) -> Buffer:
        return Buffer(name, own.bytes * shard.cp)

    return [
        Node("gather queries", source, (of_all("queries by rank", query),)),
        Node("order queries", ("queries by rank",), (of_all("queries of all", query),)),
        Node("partial attention", ("queries of all",), (of_all("partial outputs", output),)),
        Node("order partial outputs", ("partial outputs",), (of_all("outputs by rank", output),)),
        Node("scatter outputs", ("outputs by rank",), (output,)),
    ]


def _collective(shard: Shard, label: str, index: int, name: KernelName, message: Array) -> Table:
    kernel, layer = Kernel(name, shard.activation), shard.scenario.model.blocks[index].name
    count = shard.layer_count(index)
    return one_row(Collective, label, layer, count, kernel, message_bytes=message, ranks=shard.cp)


def _copy(shard: Shard, label: str, index: int, size: Array, times: int = 1) -> Table:
    layer, count = shard.scenario.model.blocks[index].name, shard.layer_count(index)
    return elementwise_row(shard, label, layer, count, times * size, times * size, launches=times)
