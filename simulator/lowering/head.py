"""Before and after the layers: embedding, final norm, language-model head, fp32 logits and sampling."""

from __future__ import annotations

import math

import numpy as np

from ..operators import Collective, Kernel, KernelName, Table, one_row
from ..workload.model import Role
from .linear import all_reduce, elementwise_row, find, gemm_row
from .program import Node, Shard

OUTER = "model"


def embedding_operators(shard: Shard) -> list[Table]:
    """The embedding look-up, on the first stage."""
    first = shard.on_stage(0)
    out = shard.tokens * shard.scenario.model.hidden * shard.activation.bytes
    lookup = elementwise_row(shard, "embed", OUTER, first, out, out)
    return [lookup, *all_reduce(shard, "embed all-reduce", OUTER, first)]


def embedding_nodes(shard: Shard) -> list[Node]:
    """The embedding's output stays referenced until the body returns.

    The one pass over each block stands for the second layer and later ones, where `hidden` is a tensor of its own.
    """
    model = shard.scenario.model
    return [
        Node("embed", (), (shard.activation_of("embedded", model.hidden),)),
        Node("first layer", ("embedded",), (shard.activation_of("hidden", model.hidden if model.layers > 1 else 0),)),
    ]


def handover_operators(shard: Shard) -> list[Table]:
    """Point-to-point transfer of the hidden state from every stage but the last to the next."""
    stages = len(shard.stages)
    if stages == 1:
        return []
    count = np.ones(stages)
    count[-1] = 0.0
    message = shard.tokens * shard.scenario.model.hidden * shard.activation.bytes
    kernel = Kernel(KernelName.SEND, shard.activation)
    return [one_row(Collective, "stage hand-over", OUTER, count, kernel, message_bytes=message, ranks=2)]


def head_operators(shard: Shard) -> list[Table]:
    """Final norm, logits of the sampled positions only, their fp32 copy, and sampling (a sort and two passes)."""
    scenario, model = shard.scenario, shard.scenario.model
    last, width, n = shard.on_stage(-1), shard.activation.bytes, shard.logit_tokens
    hidden_bytes = shard.tokens * model.hidden * width
    logits = np.asarray(n * model.vocab)
    head = find(model, None, Role.EMBED if model.tied else Role.LM_HEAD)
    rows: list[Table] = [
        elementwise_row(shard, "final norm", OUTER, last, 2 * hidden_bytes, hidden_bytes),
        gemm_row(shard, "lm head", OUTER, last, head, n, scenario.numerics.weights),
        elementwise_row(shard, "logits to fp32", OUTER, last, logits * width, logits * 4.0),
        elementwise_row(shard, "sample", OUTER, last, 2 * logits * 4.0, logits * 4.0, launches=3),
    ]
    if shard.tp > 1:
        gather = Kernel(KernelName.ALL_GATHER, shard.activation)
        message = n * math.ceil(model.vocab / shard.tp) * shard.tp * width
        name = "logits all-gather"
        rows.append(one_row(Collective, name, OUTER, last, gather, message_bytes=message, ranks=shard.tp))
    return rows


def head_nodes(shard: Shard) -> list[Node]:
    """Logits and their fp32 copy live together, then the copy with its sorted values and 64-bit indices.

    An engine that keeps room for every token's logits makes them in fp32 at once and samples on the host.
    """
    model, n = shard.scenario.model, shard.logit_tokens
    if shard.scenario.engine.logits_for_all:
        return [
            Node("final norm", ("hidden",), (shard.activation_of("final", model.hidden),)),
            Node("return", ("embedded", "hidden")),
            Node("lm head", ("final",), (shard.activation_of("logits fp32", model.vocab, shard.tokens, size=4.0),)),
        ]
    return [
        Node("final norm", ("hidden",), (shard.activation_of("final", model.hidden),)),
        Node("return", ("embedded", "hidden")),
        Node("lm head", ("final",), (shard.activation_of("logits", model.vocab, n),)),
        Node("fp32", ("logits", "final"), (shard.activation_of("logits fp32", model.vocab, n, size=4.0),)),
        Node(
            "sample", ("logits fp32",), (shard.activation_of("sorted logits and indices", model.vocab, n, size=12.0),)
        ),
    ]
