"""The mixing half of a layer: norm, merged qkv projection, (norm and) rotary embedding, attention, output.

Layers with latent attention or a recurrence have files of their own; a layer may mix nothing at all.
"""

from __future__ import annotations

import math

import numpy as np

from ..estimate import Array
from ..operators import NO_WINDOW, Attention, Bidirectional, Collective, Kernel, KernelName, Table, one_row
from ..scenario import Phase, Step
from ..workload import layers as workload
from ..workload.formats import kv_element_bytes
from ..workload.layers import Role
from .context import combined_outputs, gathered_nodes, gathered_queries, kept_tokens
from .latent import latent_nodes, latent_operators
from .linear import all_reduce, elementwise_row, find, gemm_row
from .program import Buffer, Node, Shard
from .recurrent import recurrent_nodes, recurrent_operators


def attention_operators(shard: Shard, index: int) -> list[Table]:
    """Operators that mix the tokens in the layers of block `index`, cross-attention included."""
    block = shard.scenario.model.blocks[index]
    match block.attention:
        case workload.LatentAttention():
            rows = latent_operators(shard, index, block.attention)
        case workload.Recurrent():
            rows = recurrent_operators(shard, index, block.attention)
        case workload.Attention():
            rows = _attending(shard, index, block.attention, SELF)
        case None:
            rows = []
    return rows if block.crosses is None else rows + _attending(shard, index, block.crosses, CROSS)


SELF = (Role.Q, Role.K, Role.V, Role.O)
CROSS = (Role.CROSS_Q, Role.CROSS_K, Role.CROSS_V, Role.CROSS_O)


def _attending(shard: Shard, index: int, a: workload.Attention, roles: tuple[Role, ...]) -> list[Table]:
    """Operators of one attention. Keys of cross-attention are made once, by the first prompt step.

    In a parallel layer the feed-forward's all-reduce carries this half's result too.
    """
    scenario, step = shard.scenario, shard.step
    model, block = scenario.model, scenario.model.blocks[index]
    count, layer, width = shard.layer_count(index), block.name, shard.activation.bytes
    heads, kv_heads = heads_per_rank(a, shard.tp)
    made = 0 if a.borrows else kv_heads * (a.head_dim + a.value_width)
    stored, tokens, prefix = scenario.numerics.weights, shard.tokens, "cross " if a.cross else ""
    hidden_bytes = tokens * model.hidden * width
    query, keys, values, output = (find(model, index, role) for role in roles)
    rows: list[Table] = [
        elementwise_row(shard, f"{prefix}attention norm", layer, count, 2 * hidden_bytes, 2 * hidden_bytes)
    ]
    if a.cross:
        rows.append(gemm_row(shard, "cross q", layer, count, query, tokens, stored))
        source = sum((_source_tokens(shard, part) for part in step.parts), start=np.zeros(()))
        if np.any(source > 0):
            rows.append(gemm_row(shard, "cross kv", layer, count, [*keys, *values], source, stored))
    else:
        rotated = tokens * (heads * a.head_dim + made) * width
        cached = tokens * made * kv_element_bytes(scenario.numerics.kv) / shard.cp
        launches = 2 + a.qk_norm  # rotary embedding, KV append, and the norms of q and k where there are any
        rows += [
            gemm_row(shard, "qkv", layer, count, [*query, *keys, *values], tokens, stored),
            *_whole_norm_all_reduce(shard, index, a),
            elementwise_row(shard, "rope, KV append", layer, count, rotated, rotated + cached, launches),
        ]
    rows += _shared_rows(shard, index, a) if shard.cp > 1 else [_attention_row(shard, index, a, p) for p in step.parts]
    rows.append(gemm_row(shard, f"{prefix}out", layer, count, output, tokens, stored))
    if not (block.parallel and block.ffn is not None):
        rows += all_reduce(shard, f"{prefix}out all-reduce", layer, count)
    return rows


def _source_tokens(shard: Shard, part: Step) -> Array:
    """Tokens of the encoder whose keys and values a part of the step makes: all with its first tokens."""
    return np.asarray(part.first_sequences * shard.scenario.model.encoder_tokens)


def _attention_row(shard: Shard, index: int, a: workload.Attention, part: Step) -> Attention:
    if a.cross:
        seen = np.asarray(shard.scenario.model.encoder_tokens, float)
        return _attention_to(Bidirectional, "attention", shard, index, a, part, seen)
    return _attention_to(Attention, "attention", shard, index, a, part, part.kv_tokens)


def _shared_rows(shard: Shard, index: int, a: workload.Attention) -> list[Table]:
    """Attention to a KV cache that ranks share out: to the past with the queries of all of them, to the step's own
    tokens with a rank's own, and one merge of both. Queries of all parts are gathered and outputs scattered at once,
    whether there is a past or not (`_forward_with_dcp` in vllm/v1/attention/backends/flash_attn.py).
    """
    heads, _ = heads_per_rank(a, shard.tp)
    own = shard.tokens * heads * a.value_width * shard.activation.bytes
    rows = gathered_queries(shard, index, shard.tokens, heads * a.head_dim)
    for part in shard.step.parts:
        past = kept_tokens(np.asarray(part.past_tokens), shard.cp)
        asked = part._replace(new_tokens=np.where(past > 0, part.new_tokens, 0.0))
        label = "attention to the past"
        rows.append(_attention_to(Bidirectional, label, shard, index, a, asked, past, shard.cp))
    rows += combined_outputs(shard, index, shard.tokens, heads, a.value_width)
    for part in shard.step.parts:
        new = np.asarray(part.new_tokens, float)
        rows.append(_attention_to(Attention, "attention", shard, index, a, part, new))
    layer, count = shard.scenario.model.blocks[index].name, shard.layer_count(index)
    return [*rows, elementwise_row(shard, "merge outputs", layer, count, 2 * own, own)]


def _attention_to(
    kind: type[Attention],
    label: str,
    shard: Shard,
    index: int,
    a: workload.Attention,
    part: Step,
    keys: Array,
    ranks: int = 1,
) -> Attention:
    """A part's queries, with the heads of so many ranks, against that many keys."""
    stored = shard.scenario.numerics.kv
    kv = shard.activation if shard.widens(stored.bits) else stored
    heads, kv_heads = heads_per_rank(a, shard.tp)
    name = KernelName.ATTENTION_DECODE if part.phase is Phase.DECODE else KernelName.ATTENTION_PREFILL
    return one_row(
        kind,
        label,
        shard.scenario.model.blocks[index].name,
        shard.layer_count(index),
        Kernel(name, kv),
        sequences=part.sequences,
        new_tokens=part.new_tokens,
        kv_tokens=keys,
        heads=heads * ranks,
        kv_heads=kv_heads,
        # Work and traffic are linear in the widths of a key and of a value: the mean of both stands for each.
        head_dim=(a.head_dim + a.value_width) / 2,
        window=NO_WINDOW if a.window is None else a.window,
        kv_bytes=kv_element_bytes(kv),
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


def _scores(shard: Shard, a: workload.Attention, heads: int) -> Buffer:
    """Scores of every query against the whole cache in 32 bits, as llama.cpp makes them without flash attention."""
    seen = np.asarray(shard.scenario.context, float)
    seen = seen if a.window is None else np.minimum(seen, a.window)
    return shard.activation_of("scores", heads, shard.tokens * seen, 4.0)


def attention_nodes(shard: Shard, index: int) -> list[Node]:
    """Dataflow of the mixing of one layer: reads `hidden`, writes `between`."""
    model = shard.scenario.model
    a = model.blocks[index].attention
    match a:
        case workload.LatentAttention():
            return latent_nodes(shard, index, a)
        case workload.Recurrent():
            return recurrent_nodes(shard, index, a)
        case None:
            return [Node("pass on", ("hidden",), (shard.activation_of("between", 0),))]
    heads, kv_heads = heads_per_rank(a, shard.tp)
    q, k, v, attended = heads * a.head_dim, kv_heads * a.head_dim, kv_heads * a.value_width, heads * a.value_width
    scores = () if shard.scenario.engine.flash_attention else (_scores(shard, a, heads),)
    return [
        Node("norm", ("hidden",), (shard.activation_of("normed", model.hidden),)),
        Node("qkv", ("normed",), tuple(shard.activation_of(n, w) for n, w in (("q", q), ("k", k), ("v", v)))),
        Node("rope", ("q", "k"), (shard.activation_of("q rotated", q), shard.activation_of("k rotated", k))),
        *(_shared_nodes(shard, q, attended) if shard.cp > 1 else []),
        Node("attention", ("q rotated", "k rotated", "v"), (shard.activation_of("attended", attended), *scores)),
        *([Node("merge", ("from the past",))] if shard.cp > 1 else []),
        Node("out", ("attended",), (shard.activation_of("projected", model.hidden),)),
        Node("return", ("normed", "q rotated", "k rotated", "v")),
        Node("add", ("hidden", "projected"), (shard.activation_of("between", model.hidden),)),
    ]


def _shared_nodes(shard: Shard, query: int, output: int) -> list[Node]:
    """Dataflow of attention to the past that ranks share out."""
    own = shard.activation_of("from the past", output)
    return gathered_nodes(shard, shard.activation_of("q rotated", query), own, ("q rotated",))


def heads_per_rank(attention: workload.Attention, tp: int) -> tuple[int, int]:
    """Query and KV heads of one rank; fewer KV heads than ranks are replicated."""
    return math.ceil(attention.heads / tp), math.ceil(attention.kv_heads / tp)
