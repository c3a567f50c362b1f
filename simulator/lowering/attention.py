"""The attention half of a layer: norm, merged qkv projection, (norm and) rotary embedding, attention, output."""

from __future__ import annotations

import math

from ..operators import NO_WINDOW, Attention, Collective, Kernel, KernelName, Table, one_row
from ..scenario import Phase, Step
from ..workload import model as workload
from ..workload.model import Role
from .latent import latent_nodes, latent_operators
from .linear import all_reduce, elementwise_row, find, gemm_row
from .program import Node, Shard


def attention_operators(shard: Shard, index: int) -> list[Table]:
    """Operators of the attention of the layers of block `index`."""
    scenario, step = shard.scenario, shard.step
    model, block = scenario.model, scenario.model.blocks[index]
    if isinstance(block.attention, workload.LatentAttention):
        return latent_operators(shard, index, block.attention)
    a, count, layer, width = block.attention, shard.layer_count(index), block.name, shard.activation.bytes
    heads, kv_heads = heads_per_rank(a, shard.tp)
    stored, tokens = scenario.numerics.weights, shard.tokens
    hidden_bytes = tokens * model.hidden * width
    rotated = tokens * (heads + 2 * kv_heads) * a.head_dim * width
    cached = tokens * 2 * kv_heads * a.head_dim * scenario.numerics.kv.bytes
    launches = 2 + a.qk_norm  # rotary embedding, KV append, and the norms of q and k where there are any
    return [
        elementwise_row(shard, "attention norm", layer, count, 2 * hidden_bytes, 2 * hidden_bytes),
        gemm_row(shard, "qkv", layer, count, find(model, index, Role.Q, Role.K, Role.V), tokens, stored),
        *_whole_norm_all_reduce(shard, index, a),
        elementwise_row(shard, "rope, KV append", layer, count, rotated, rotated + cached, launches),
        *(_attention_row(shard, index, a, part) for part in step.parts),
        gemm_row(shard, "out", layer, count, find(model, index, Role.O), tokens, stored),
        *all_reduce(shard, "out all-reduce", layer, count),
    ]


def _attention_row(shard: Shard, index: int, a: workload.Attention, part: Step) -> Attention:
    kv = shard.scenario.numerics.kv
    heads, kv_heads = heads_per_rank(a, shard.tp)
    name = KernelName.ATTENTION_DECODE if part.phase is Phase.DECODE else KernelName.ATTENTION_PREFILL
    return one_row(
        Attention,
        "attention",
        shard.scenario.model.blocks[index].name,
        shard.layer_count(index),
        Kernel(name, kv),
        sequences=part.sequences,
        new_tokens=part.new_tokens,
        kv_tokens=part.kv_tokens,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=a.head_dim,
        window=NO_WINDOW if a.window is None else a.window,
        kv_bytes=kv.bytes,
        activation_bytes=shard.activation.bytes,
    )


def _whole_norm_all_reduce(shard: Shard, index: int, a: workload.Attention) -> list[Collective]:
    """A norm over all heads needs the mean squares of q and k of all ranks: two fp32 numbers a token.

    vLLM's `MiniMaxText01RMSNormTP` sends them as one message.
    """
    if not a.whole_norm or shard.tp == 1:
        return []
    layer, kernel = shard.scenario.model.blocks[index].name, Kernel(KernelName.ALL_REDUCE, shard.activation)
    count, message = shard.layer_count(index), shard.tokens * 2 * 4.0
    return [one_row(Collective, "qk norm all-reduce", layer, count, kernel, message_bytes=message, ranks=shard.tp)]


def attention_nodes(shard: Shard, index: int) -> list[Node]:
    """Dataflow of the attention of one layer: reads `hidden`, writes `between`."""
    model = shard.scenario.model
    a = model.blocks[index].attention
    if isinstance(a, workload.LatentAttention):
        return latent_nodes(shard, index, a)
    heads, kv_heads = heads_per_rank(a, shard.tp)
    q, kv = heads * a.head_dim, kv_heads * a.head_dim
    return [
        Node("norm", ("hidden",), (shard.activation_of("normed", model.hidden),)),
        Node("qkv", ("normed",), tuple(shard.activation_of(n, w) for n, w in (("q", q), ("k", kv), ("v", kv)))),
        Node("rope", ("q", "k"), (shard.activation_of("q rotated", q), shard.activation_of("k rotated", kv))),
        Node("attention", ("q rotated", "k rotated", "v"), (shard.activation_of("attended", q),)),
        Node("out", ("attended",), (shard.activation_of("projected", model.hidden),)),
        Node("return", ("normed", "q rotated", "k rotated", "v")),
        Node("add", ("hidden", "projected"), (shard.activation_of("between", model.hidden),)),
    ]


def heads_per_rank(attention: workload.Attention, tp: int) -> tuple[int, int]:
    """Query and KV heads of one rank; fewer KV heads than ranks are replicated."""
    return math.ceil(attention.heads / tp), math.ceil(attention.kv_heads / tp)
