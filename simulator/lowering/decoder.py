"""Lower a decoder-only transformer: embedding, each distinct block once, head."""

from __future__ import annotations

from ..operators import Operators
from ..scenario import Scenario, Step
from .attention import lower_attention
from .feedforward import lower_feedforward
from .head import lower_embedding, lower_handover, lower_head
from .program import Piece, Program, Shard


def lower(scenario: Scenario, step: Step) -> Program:
    """Operators (with counts by pipeline stage) and dataflow of one step on one device of each stage."""
    shard = Shard.of(scenario, step)
    piece = Piece()
    piece.extend(lower_embedding(shard))
    for index in range(len(scenario.model.blocks)):
        piece.extend(lower_attention(shard, index))
        piece.extend(lower_feedforward(shard, index))
    piece.extend(lower_handover(shard))
    head = lower_head(shard)
    return Program(Operators.of(piece.rows + head.rows), tuple(piece.nodes), tuple(head.nodes))
