"""The latent attention (MLA) half of a layer: bottleneck projections, then expanded heads or the latent itself.

Prefill expands the latents of all tokens, past ones too, and multiplies full heads. Decode never expands: the query
is taken into the latent space and the attended latent out of it, each head by its half of `kv_b` (DeepSeek-V2,
arXiv 2405.04434, section 2.1.2). Heads are cut over ranks; the bottlenecks and the latent cache are not.

Where ranks share out the latents (`context.py`), decoding gathers queries in the latent space, and a prompt's next
piece the latents of the earlier ones.

Not modelled: the fp8 quantisation kernels before projections, two streams of an engine that overlap the bottleneck
norms, and attention cut by users instead of heads (data-parallel attention).
"""

from __future__ import annotations

import math

import numpy as np

from ..operators import Gemm, Kernel, KernelName, LatentAttention, Table, one_row
from ..scenario import Phase, Step
from ..workload import layers as workload
from ..workload.formats import kv_element_bytes
from ..workload.layers import Role
from .context import combined_outputs, gathered_nodes, gathered_past, gathered_queries, kept_tokens
from .linear import all_reduce, elementwise_row, find, gemm_row
from .program import Buffer, Node, Shard

# vLLM expands the cached latents of earlier chunks this many tokens at a time, and sets that memory aside in its
# profiling run: min(max(8 max_model_len, ...), 64k), vllm/v1/attention/backends/mla/common.py.
CONTEXT_CHUNK_TOKENS = 65536


def latent_operators(shard: Shard, index: int, a: workload.LatentAttention) -> list[Table]:
    """Operators of the latent attention of the layers of block `index`."""
    scenario, step = shard.scenario, shard.step
    model, layer, count = scenario.model, scenario.model.blocks[index].name, shard.layer_count(index)
    stored, kv, tokens, width = scenario.numerics.weights, scenario.numerics.kv, shard.tokens, shard.activation.bytes
    heads = math.ceil(a.heads / shard.tp)
    hidden_bytes = tokens * model.hidden * width
    rotated = tokens * (heads + 1) * a.rope * width
    latents = tokens * (a.latent + a.rope)
    read_bytes, write_bytes = rotated + latents * width, rotated + latents * kv_element_bytes(kv) / shard.cp
    return [
        elementwise_row(shard, "attention norm", layer, count, 2 * hidden_bytes, 2 * hidden_bytes),
        *_query_rows(shard, index, a),
        elementwise_row(shard, "rope, KV append", layer, count, read_bytes, write_bytes, launches=2),
        *(row for part in step.parts for row in _inner_rows(shard, index, a, part)),
        gemm_row(shard, "out", layer, count, find(model, index, Role.O), tokens, stored),
        *all_reduce(shard, "out all-reduce", layer, count),
    ]


def _inner_rows(shard: Shard, index: int, a: workload.LatentAttention, part: Step) -> list[Table]:
    """Attention of one part of the step: decoding in the latent space, or a prompt's expanded heads."""
    model, layer, count = shard.scenario.model, shard.scenario.model.blocks[index].name, shard.layer_count(index)
    stored, kv, width = shard.scenario.numerics.weights, shard.scenario.numerics.kv, shard.activation.bytes
    heads, decode = math.ceil(a.heads / shard.tp), part.phase is Phase.DECODE
    shared = decode and shard.cp > 1
    keys = np.asarray(np.asarray(part.sequences, float) * part.kv_tokens)
    attention = one_row(
        LatentAttention,
        "attention",
        layer,
        count,
        Kernel(KernelName.MLA_DECODE if decode else KernelName.MLA_PREFILL, kv),
        sequences=part.sequences,
        new_tokens=part.new_tokens,
        kv_tokens=kept_tokens(part.kv_tokens, shard.cp) if shared else part.kv_tokens,
        heads=heads * shard.cp if shared else heads,
        latent=a.latent,
        rope=a.rope,
        nope=a.nope,
        value=a.value,
        kv_bytes=kv_element_bytes(kv),
        activation_bytes=width,
    )
    if decode:
        queries = part.tokens * heads * (a.latent + a.rope) * width
        return [
            _absorbed_row(shard, part, "query into latent", index, heads, a.nope, a.latent),
            elementwise_row(shard, "assemble queries", layer, count, queries, queries),
            *(gathered_queries(shard, index, part.tokens, heads * (a.latent + a.rope)) if shared else []),
            attention,
            *(combined_outputs(shard, index, part.tokens, heads, a.latent) if shared else []),
            _absorbed_row(shard, part, "output from latent", index, heads, a.latent, a.value),
        ]
    parts, assembled = keys * (heads * a.nope + a.rope) * width, keys * heads * (a.nope + a.rope) * width
    earlier = np.asarray(np.asarray(part.sequences, float) * np.asarray(part.past_tokens, float))
    return [
        *(gathered_past(shard, index, earlier, a.latent + a.rope) if shard.cp > 1 else []),
        gemm_row(shard, "kv_b", layer, count, find(model, index, Role.KV_B), keys, stored),
        elementwise_row(shard, "assemble keys", layer, count, parts, assembled),
        attention,
    ]


def _query_rows(shard: Shard, index: int, a: workload.LatentAttention) -> list[Table]:
    """Projections down to the latents with their norms, and the queries: up from their bottleneck if there is one."""
    model, stored, tokens = shard.scenario.model, shard.scenario.numerics.weights, shard.tokens
    layer, count = model.blocks[index].name, shard.layer_count(index)
    normed = tokens * (a.latent + (a.query_latent or 0)) * shard.activation.bytes

    def product(label: str, *roles: Role) -> Gemm:
        return gemm_row(shard, label, layer, count, find(model, index, *roles), tokens, stored)

    if a.query_latent is None:
        norm = elementwise_row(shard, "kv_a norm", layer, count, normed, normed)
        return [product("q", Role.Q), product("kv_a", Role.KV_A), norm]
    norms = elementwise_row(shard, "q_a and kv_a norms", layer, count, normed, normed, launches=2)
    return [product("q_a, kv_a", Role.Q_A, Role.KV_A), norms, product("q_b", Role.Q_B)]


def _absorbed_row(shard: Shard, part: Step, label: str, index: int, heads: int, k: int, n: int) -> Gemm:
    """A product of each token and head with that head's half of `kv_b`.

    Written as one GEMM of tokens x heads rows: FLOPs and bytes are exact, `weight_bytes` those of all heads' halves.
    vLLM keeps the halves in the activations' format whatever the checkpoint (`process_weights_after_loading`).
    """
    width = shard.activation.bytes
    return one_row(
        Gemm,
        label,
        shard.scenario.model.blocks[index].name,
        shard.layer_count(index),
        Kernel(KernelName.GEMM, shard.activation),
        m=part.tokens * heads,
        n=n,
        k=k,
        weight_bytes=heads * n * k * width,
        activation_bytes=width,
        output_bytes=width,
    )


def latent_nodes(shard: Shard, index: int, a: workload.LatentAttention) -> list[Node]:
    """Dataflow of the latent attention of one layer: reads `hidden`, writes `between`.

    As in a prefill, which needs more than decoding. An engine's memory for expanding earlier chunks counts in full
    (`CONTEXT_CHUNK_TOKENS`); what only other engines set aside does not. Where ranks share out the latents, room for a
    rank's own part of a chunk and for the chunk in order comes to it, and what decoding gathers for all users.
    """
    model, heads = shard.scenario.model, math.ceil(a.heads / shard.tp)
    query, expanded = heads * (a.nope + a.rope), heads * (a.nope + a.value)

    def chunk(name: str, elements: int, times: float = 1.0) -> Buffer:
        return shard.activation_of(name, elements, np.asarray(CONTEXT_CHUNK_TOKENS * times))

    earlier = chunk("earlier latent", a.latent + a.rope), chunk("earlier expanded", expanded)
    decoding: list[Node] = []
    if shard.cp > 1:
        earlier = chunk("earlier latent", a.latent + a.rope, 2 + 1 / shard.cp), earlier[1]
        users = np.asarray(shard.scenario.batch, float)
        asking = shard.activation_of("latent queries", heads * (a.latent + a.rope), users)
        decoding = gathered_nodes(shard, asking, shard.activation_of("latent outputs", heads * a.latent, users))

    bottleneck = [
        Node("q_a", ("normed",), (shard.activation_of("q latent", a.query_latent or 0),)),
        Node("q_a norm", ("q latent",), (shard.activation_of("q latent normed", a.query_latent or 0),)),
    ]
    return [
        Node("norm", ("hidden",), (shard.activation_of("normed", model.hidden),)),
        *(bottleneck if a.query_latent else []),
        Node("q", ("normed", "q latent normed"), (shard.activation_of("q", query),)),
        Node("kv_a", ("normed",), (shard.activation_of("latent", a.latent + a.rope),)),
        Node("kv_a norm", ("latent",), (shard.activation_of("latent normed", a.latent),)),
        Node("rope", ("latent", "q"), (shard.activation_of("rotated", (heads + 1) * a.rope),)),
        Node("assemble queries", ("q", "rotated"), (shard.activation_of("queries", query),)),
        Node("kv_b", ("latent normed",), (shard.activation_of("expanded", expanded),)),
        Node("assemble keys", ("expanded", "rotated"), (shard.activation_of("keys", query),)),
        Node("earlier chunks", (), earlier),
        Node(
            "attention",
            ("queries", "keys", "expanded", "earlier latent", "earlier expanded"),
            (shard.activation_of("attended", heads * a.value),),
        ),
        *decoding,
        Node("out", ("attended",), (shard.activation_of("projected", model.hidden),)),
        Node("return", ("normed", "latent", "latent normed", "q", "rotated", "queries", "keys", "expanded")),
        Node("add", ("hidden", "projected"), (shard.activation_of("between", model.hidden),)),
    ]
