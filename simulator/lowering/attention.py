"""The attention half of a layer: norm, merged qkv projection, (norm and) rotary embedding, attention, output."""

from __future__ import annotations

import math

import numpy as np

from ..operators import Attention, Collective, Kernel, KernelName, one_row
from ..scenario import Phase
from ..workload.model import Role
from .linear import elementwise_row, find, gemm_row
from .program import Node, Piece, Shard

NO_WINDOW = 2.0**50


def lower_attention(shard: Shard, index: int) -> Piece:
    """Operators and nodes of the attention of one layer of block `index`; reads `hidden`, writes `hidden`."""
    scenario, step = shard.scenario, shard.step
    model, block = scenario.model, scenario.model.blocks[index]
    a, count, layer, width = block.attention, shard.layer_count(index), block.name, shard.activation.bytes
    heads, kv_heads = math.ceil(a.heads / shard.tp), math.ceil(a.kv_heads / shard.tp)
    q, kv = heads * a.head_dim, kv_heads * a.head_dim
    stored, tokens = scenario.numerics.weights, shard.tokens
    hidden_bytes = tokens * model.hidden * width

    piece = Piece()
    piece.rows.append(elementwise_row(shard, "add-norm", layer, count, 2 * hidden_bytes, 2 * hidden_bytes))
    qkv = find(model, index, Role.Q, Role.K, Role.V)
    piece.rows.append(gemm_row(shard, "qkv", layer, count, qkv, tokens, stored))
    rotated = tokens * (q + 2 * kv) * width
    cached = tokens * 2 * kv * scenario.numerics.kv.bytes
    launches = 2 + a.qk_norm  # rotary embedding, KV append, and the norms of q and k where there are any
    piece.rows.append(elementwise_row(shard, "rope-append", layer, count, rotated, rotated + cached, launches))
    name = KernelName.ATTENTION_DECODE if step.phase is Phase.DECODE else KernelName.ATTENTION_PREFILL
    piece.rows.append(
        one_row(
            Attention,
            "attention",
            layer,
            count,
            Kernel(name, scenario.numerics.kv),
            sequences=step.sequences,
            new_tokens=step.new_tokens,
            kv_tokens=np.asarray(step.past_tokens, float) + np.asarray(step.new_tokens, float),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=a.head_dim,
            window=NO_WINDOW if a.window is None else a.window,
            kv_bytes=scenario.numerics.kv.bytes,
            activation_bytes=width,
        )
    )
    piece.rows.append(gemm_row(shard, "out", layer, count, find(model, index, Role.O), tokens, stored))
    piece.rows.extend(all_reduce(shard, "out all-reduce", layer, count))

    piece.nodes.extend([
        Node("norm", ("hidden",), (shard.activation_of("normed", model.hidden),)),
        Node("qkv", ("normed",), tuple(shard.activation_of(n, w) for n, w in (("q", q), ("k", kv), ("v", kv)))),
        Node("rope", ("q", "k"), (shard.activation_of("q rotated", q), shard.activation_of("k rotated", kv))),
        Node("attention", ("q rotated", "k rotated", "v"), (shard.activation_of("attended", q),)),
        Node("out", ("attended",), (shard.activation_of("projected", model.hidden),)),
        Node("return", ("normed", "q rotated", "k rotated", "v")),
        Node("add", ("hidden", "projected"), (shard.activation_of("between", model.hidden),)),
    ])
    return piece


def all_reduce(shard: Shard, label: str, layer: str, count: object) -> list[Collective]:
    """The all-reduce that follows a row-parallel product; none without tensor parallelism."""
    if shard.tp == 1:
        return []
    message = shard.tokens * shard.scenario.model.hidden * shard.activation.bytes
    kernel = Kernel(KernelName.ALL_REDUCE, shard.activation)
    return [one_row(Collective, label, layer, count, kernel, message_bytes=message, ranks=shard.tp)]  # type: ignore[arg-type]
