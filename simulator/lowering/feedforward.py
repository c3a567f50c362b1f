"""The feed-forward half of a layer: a gated MLP, or a router and its experts. Reads `between`, writes `hidden`."""

from __future__ import annotations

import math

import numpy as np

from ..operators import Experts, Kernel, KernelName, Table, one_row
from ..scenario import Sharding
from ..workload import layers as workload
from ..workload.layers import Role
from ..workload.routing import Routing
from .linear import all_reduce, elementwise_row, find, gemm_row, linear_kernel, share_per_rank
from .program import Node, Shard


def feedforward_operators(shard: Shard, index: int) -> list[Table]:
    """Operators of the feed-forward of the layers of block `index` (none where the layers have none)."""
    model = shard.scenario.model
    block, count = model.blocks[index], shard.layer_count(index)
    match block.ffn:
        case None:
            return []
        case workload.Experts():
            inner = _experts(shard, index, block.ffn)
        case workload.Mlp():
            inner = _feedforward(shard, index, "", block.ffn.intermediate, block.ffn.gated, DENSE)
    hidden_bytes = shard.tokens * model.hidden * shard.activation.bytes
    norm = [elementwise_row(shard, "ffn norm", block.name, count, 2 * hidden_bytes, 2 * hidden_bytes)]
    return [*(norm if block.norms.ffn else []), *inner, *all_reduce(shard, "ffn all-reduce", block.name, count)]


DENSE = (Role.GATE, Role.UP, Role.DOWN)
SHARED = (Role.SHARED_GATE, Role.SHARED_UP, Role.SHARED_DOWN)


def _feedforward(
    shard: Shard, index: int, prefix: str, intermediate: int, gated: bool, roles: tuple[Role, Role, Role]
) -> list[Table]:
    """A feed-forward that every token passes: gate and up as one product (or up alone), activation, down."""
    model, stored = shard.scenario.model, shard.scenario.numerics.weights
    count, layer, tokens = shard.layer_count(index), model.blocks[index].name, shard.tokens
    passed = tokens * math.ceil(intermediate / shard.tp) * shard.activation.bytes
    gate, up, down = roles
    first, activation = ("gate-up", "swiglu") if gated else ("up", "activation")
    return [
        gemm_row(shard, f"{prefix}{first}", layer, count, find(model, index, gate, up), tokens, stored),
        elementwise_row(shard, f"{prefix}{activation}", layer, count, (1 + gated) * passed, passed),
        gemm_row(shard, f"{prefix}down", layer, count, find(model, index, down), tokens, stored),
    ]


def _experts(shard: Shard, index: int, ffn: workload.Experts) -> list[Table]:
    """Router, the experts as one kernel, and the shared experts that every token passes, merged into one.

    `expert_bytes` are those of one expert on one rank. Shared experts are cut over all ranks whatever `ep` is. Products
    into and out of a latent space run whole on every rank.
    """
    scenario, model, sharding = shard.scenario, shard.scenario.model, shard.scenario.sharding
    stored, engine, tokens = scenario.numerics.weights, scenario.engine, shard.tokens
    count, layer = shard.layer_count(index), model.blocks[index].name
    matrices = find(model, index, Role.GATE, Role.UP, Role.DOWN)
    held_bytes = sum(model.layer_bytes(t, stored) * share_per_rank(t, model, sharding) for t in matrices)
    into, back = find(model, index, Role.LATENT_DOWN), find(model, index, Role.LATENT_UP)
    return [
        gemm_row(shard, "router", layer, count, find(model, index, Role.ROUTER), tokens, model.unquantised),
        *(gemm_row(shard, "into latent", layer, count, [t], tokens, stored) for t in into),
        one_row(
            Experts,
            "experts",
            layer,
            count,
            experts_kernel(
                linear_kernel(model.format_of(matrices[0], stored), scenario.fleet.device, shard.activation)
            ),
            tokens=tokens,
            hidden=ffn.latent or model.hidden,
            # The fused kernel is described by three matrices; two of them are as much work as three of 2/3 the width.
            intermediate=width_per_rank(ffn, sharding) * (1.0 if ffn.gated else 2 / 3),
            top_k=ffn.top_k,
            experts=ffn.experts,
            ranks=sharding.ep,
            routing_alpha=engine.routing_alpha if engine.routing is Routing.POWER_LAW else 0.0,
            expert_bytes=held_bytes / (ffn.experts / sharding.ep),
            activation_bytes=shard.activation.bytes,
        ),
        *(gemm_row(shard, "out of latent", layer, count, [t], tokens, stored) for t in back),
        *(_shared(shard, index, ffn) if ffn.shared else []),
    ]


def _shared(shard: Shard, index: int, ffn: workload.Experts) -> list[Table]:
    layer, count = shard.scenario.model.blocks[index].name, shard.layer_count(index)
    model, wide = shard.scenario.model, shard.scenario.model.unquantised
    switch = find(model, index, Role.SHARED_SWITCH)
    product_bytes = shard.tokens * shard.scenario.model.hidden * shard.activation.bytes
    return [
        *_feedforward(shard, index, "shared ", ffn.shared, ffn.gated, SHARED),
        *(gemm_row(shard, "shared switch", layer, count, [t], shard.tokens, wide) for t in switch),
        elementwise_row(shard, "shared add", layer, count, 2 * product_bytes, product_bytes),
    ]


EXPERTS_LIKE = {
    KernelName.GEMM: KernelName.EXPERTS,
    KernelName.GEMM_BLOCK_SCALED: KernelName.EXPERTS_BLOCK_SCALED,
    KernelName.GEMM_WEIGHT_ONLY: KernelName.EXPERTS_WEIGHT_ONLY,
}


def experts_kernel(linear: Kernel) -> Kernel:
    """The fused experts kernel of the same arithmetic as a linear layer's."""
    return Kernel(EXPERTS_LIKE[linear.name], linear.dtype)


def width_per_rank(ffn: workload.Mlp | workload.Experts, sharding: Sharding) -> int:
    """Intermediate width of one rank: of an MLP cut over all of them, of an expert over its group."""
    return math.ceil(ffn.intermediate / (sharding.expert_cut if isinstance(ffn, workload.Experts) else sharding.tp))


def feedforward_nodes(shard: Shard, index: int) -> list[Node]:
    """Dataflow of the feed-forward of one layer: reads `between`, writes `hidden`.

    Callers hold what they passed on: the feed-forward its normed input until it returns, the layer its own input
    `hidden` until the layer returns.
    """
    model = shard.scenario.model
    ffn = model.blocks[index].ffn
    if ffn is None:
        return [Node("add", ("between", "hidden"), (shard.activation_of("hidden", model.hidden),))]
    width = width_per_rank(ffn, shard.scenario.sharding)
    if isinstance(ffn, workload.Experts):
        inner = _expert_nodes(shard, ffn, width)
    else:
        inner = _mlp_nodes(shard, width, ffn.gated)
    return [
        Node("norm", ("between",), (shard.activation_of("ffn input", model.hidden),)),
        *inner,
        Node("return", ("ffn input",)),
        Node("add", ("between", "product", "hidden"), (shard.activation_of("hidden", model.hidden),)),
    ]


def _mlp_nodes(shard: Shard, width: int, gated: bool, product: str = "product") -> list[Node]:
    return [
        Node("gate-up", ("ffn input",), (shard.activation_of("gate and up", (1 + gated) * width),)),
        Node("swiglu", ("gate and up",), (shard.activation_of("gated", width),)),
        Node("down", ("gated",), (shard.activation_of(product, shard.scenario.model.hidden),)),
    ]


def _expert_nodes(shard: Shard, ffn: workload.Experts, width: int) -> list[Node]:
    """Routed experts as one kernel, with room for every assignment on every rank, as vLLM has with `ep` too.

    Shared experts run first, as in vLLM; their product waits for that of the routed ones and is added in place.
    """
    hidden, assigned = shard.scenario.model.hidden, np.asarray(shard.tokens * ffn.top_k)
    inner, source = (ffn.latent, "expert input") if ffn.latent else (hidden, "ffn input")
    routed = [
        Node("router", ("ffn input",), (shard.activation_of("routing", ffn.experts, size=4.0),)),
        *([Node("into latent", ("ffn input",), (shard.activation_of(source, inner),))] if ffn.latent else []),
        Node("gather", (source, "routing"), (shard.activation_of("gathered", inner, assigned),)),
        Node("gate-up", ("gathered",), (shard.activation_of("gate and up", (1 + ffn.gated) * width, assigned),)),
        Node("swiglu", ("gate and up",), (shard.activation_of("gated", width, assigned),)),
        Node("down", ("gated",), (shard.activation_of("expert output", inner, assigned),)),
        Node("combine", ("expert output", "routing", "gathered"), (shard.activation_of("product", hidden),)),
    ]
    if not ffn.shared:
        return routed
    shared = _mlp_nodes(shard, math.ceil(ffn.shared / shard.tp), ffn.gated, "shared product")
    return [*shared, *routed, Node("shared add", ("product", "shared product"))]
