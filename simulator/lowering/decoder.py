"""Lower a decoder-only transformer: embedding, each distinct block once, head."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from ..operators import Operators, Table
from ..scenario import Scenario, Step
from .attention import attention_nodes, attention_operators
from .feedforward import feedforward_nodes, feedforward_operators
from .head import embedding_nodes, embedding_operators, handover_operators, head_nodes, head_operators
from .network import source_operators
from .program import Node, Shard
from .side import layer_side_operators, model_side_operators
from .unpack import unpacking_operators


@dataclass(frozen=True, eq=False)
class Program:
    """A lowered step on one device of each stage, each view made when it is first asked for.

    `operators` has counts by stage. The dataflow passes over each block once: `body` holds the nodes of embedding
    and layers, `head` those only the last stage runs.
    """

    shard: Shard

    @cached_property
    def operators(self) -> Operators:
        """Tables of operators for the cost models."""
        rows: list[Table] = source_operators(self.shard) + embedding_operators(self.shard)
        for index in range(len(self.shard.scenario.model.blocks)):
            rows += attention_operators(self.shard, index) + feedforward_operators(self.shard, index)
            rows += layer_side_operators(self.shard, index) + unpacking_operators(self.shard, index)
        rows += handover_operators(self.shard) + model_side_operators(self.shard)
        return Operators.of(rows + head_operators(self.shard))

    @cached_property
    def body(self) -> tuple[Node, ...]:
        """Nodes of the embedding and of one layer of each block."""
        nodes = embedding_nodes(self.shard)
        for index in range(len(self.shard.scenario.model.blocks)):
            nodes += attention_nodes(self.shard, index) + feedforward_nodes(self.shard, index)
        return tuple(nodes)

    @cached_property
    def head(self) -> tuple[Node, ...]:
        """Nodes of the final norm, the logits and sampling."""
        return tuple(head_nodes(self.shard))


def lower(scenario: Scenario, step: Step) -> Program:
    """The program of one step."""
    return Program(Shard.of(scenario, step))
