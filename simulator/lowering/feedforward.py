"""The feed-forward half of a layer: a gated MLP, or a router and its experts. Reads `between`, writes `hidden`."""

from __future__ import annotations

import math

import numpy as np

from ..operators import Experts, Kernel, KernelName, Table, one_row
from ..workload import model as workload
from ..workload.model import Role
from ..workload.routing import Routing
from .attention import all_reduce
from .linear import elementwise_row, find, gemm_row, linear_kernel, share_per_rank
from .program import Node, Shard


def feedforward_operators(shard: Shard, index: int) -> list[Table]:
    """Operators of the feed-forward of the layers of block `index`."""
    model = shard.scenario.model
    block, count = model.blocks[index], shard.layer_count(index)
    hidden_bytes = shard.tokens * model.hidden * shard.activation.bytes
    norm = elementwise_row(shard, "ffn norm", block.name, count, 2 * hidden_bytes, 2 * hidden_bytes)
    inner = (
        _experts(shard, index, block.ffn) if isinstance(block.ffn, workload.Experts) else _mlp(shard, index, block.ffn)
    )
    return [norm, *inner, *all_reduce(shard, "ffn all-reduce", block.name, count)]


def _mlp(shard: Shard, index: int, ffn: workload.Mlp) -> list[Table]:
    model, stored = shard.scenario.model, shard.scenario.numerics.weights
    count, layer, tokens = shard.layer_count(index), model.blocks[index].name, shard.tokens
    gated = tokens * width_per_rank(ffn, shard.tp) * shard.activation.bytes
    return [
        gemm_row(shard, "gate-up", layer, count, find(model, index, Role.GATE, Role.UP), tokens, stored),
        elementwise_row(shard, "swiglu", layer, count, 2 * gated, gated),
        gemm_row(shard, "down", layer, count, find(model, index, Role.DOWN), tokens, stored),
    ]


def _experts(shard: Shard, index: int, ffn: workload.Experts) -> list[Table]:
    scenario, model = shard.scenario, shard.scenario.model
    stored, engine, tokens = scenario.numerics.weights, scenario.engine, shard.tokens
    count, layer = shard.layer_count(index), model.blocks[index].name
    matrices = find(model, index, Role.GATE, Role.UP, Role.DOWN)
    per_expert = sum(model.layer_bytes(t, stored) * share_per_rank(t, model, shard.tp) for t in matrices) / ffn.experts
    linear = linear_kernel(stored, scenario.fleet.device, shard.activation)
    weight_only = linear.name is KernelName.GEMM_WEIGHT_ONLY
    kernel = Kernel(KernelName.EXPERTS_WEIGHT_ONLY if weight_only else KernelName.EXPERTS, linear.dtype)
    return [
        gemm_row(shard, "router", layer, count, find(model, index, Role.ROUTER), tokens, model.unquantised),
        one_row(
            Experts,
            "experts",
            layer,
            count,
            kernel,
            tokens=tokens,
            hidden=model.hidden,
            intermediate=width_per_rank(ffn, shard.tp),
            top_k=ffn.top_k,
            experts=ffn.experts,
            ranks=1,
            routing_alpha=engine.routing_alpha if engine.routing is Routing.POWER_LAW else 0.0,
            expert_bytes=per_expert,
            activation_bytes=shard.activation.bytes,
        ),
    ]


def width_per_rank(ffn: workload.Mlp | workload.Experts, tp: int) -> int:
    """Intermediate width of one rank."""
    return math.ceil(ffn.intermediate / tp)


def feedforward_nodes(shard: Shard, index: int) -> list[Node]:
    """Dataflow of the feed-forward of one layer: reads `between`, writes `hidden`.

    Callers hold what they passed on: the feed-forward its normed input until it returns, the layer its own input
    `hidden` until the layer returns.
    """
    model = shard.scenario.model
    ffn = model.blocks[index].ffn
    width = width_per_rank(ffn, shard.tp)
    inner = _expert_nodes(shard, ffn, width) if isinstance(ffn, workload.Experts) else _mlp_nodes(shard, width)
    return [
        Node("norm", ("between",), (shard.activation_of("ffn input", model.hidden),)),
        *inner,
        Node("return", ("ffn input",)),
        Node("add", ("between", "product", "hidden"), (shard.activation_of("hidden", model.hidden),)),
    ]


def _mlp_nodes(shard: Shard, width: int) -> list[Node]:
    return [
        Node("gate-up", ("ffn input",), (shard.activation_of("gate and up", 2 * width),)),
        Node("swiglu", ("gate and up",), (shard.activation_of("gated", width),)),
        Node("down", ("gated",), (shard.activation_of("product", shard.scenario.model.hidden),)),
    ]


def _expert_nodes(shard: Shard, ffn: workload.Experts, width: int) -> list[Node]:
    hidden, assigned = shard.scenario.model.hidden, np.asarray(shard.tokens * ffn.top_k)
    return [
        Node("router", ("ffn input",), (shard.activation_of("routing", ffn.experts, size=4.0),)),
        Node("gather", ("ffn input", "routing"), (shard.activation_of("gathered", hidden, assigned),)),
        Node("gate-up", ("gathered",), (shard.activation_of("gate and up", 2 * width, assigned),)),
        Node("swiglu", ("gate and up",), (shard.activation_of("gated", width, assigned),)),
        Node("down", ("gated",), (shard.activation_of("expert output", hidden, assigned),)),
        Node("combine", ("expert output", "routing", "gathered"), (shard.activation_of("product", hidden),)),
    ]
