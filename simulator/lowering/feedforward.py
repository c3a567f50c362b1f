"""The feed-forward half of a layer: a gated MLP, or a router and its experts. Reads `between`, writes `hidden`."""

from __future__ import annotations

import math

import numpy as np

from ...dtypes import DType
from ..costs.experts import touched_experts
from ..operators import Experts, Kernel, KernelName, one_row
from ..workload import model as workload
from ..workload.model import Role
from .attention import all_reduce
from .linear import STORAGE_DTYPE, elementwise_row, find, gemm_row, linear_kernel, share_per_rank
from .program import Node, Piece, Shard


def lower_feedforward(shard: Shard, index: int) -> Piece:
    """Operators and nodes of the feed-forward of one layer of block `index`."""
    ffn = shard.scenario.model.blocks[index].ffn
    return _experts(shard, index, ffn) if isinstance(ffn, workload.Experts) else _mlp(shard, index, ffn)


def _norm(shard: Shard, index: int) -> Piece:
    model = shard.scenario.model
    hidden_bytes = shard.tokens * model.hidden * shard.activation.bytes
    count, layer = shard.layer_count(index), model.blocks[index].name
    row = elementwise_row(shard, "add-norm", layer, count, 2 * hidden_bytes, 2 * hidden_bytes)
    return Piece([row], [Node("norm", ("between",), (shard.activation_of("ffn input", model.hidden),))])


def _close(shard: Shard, product: str) -> list[Node]:
    """The caller holds the feed-forward's input until it returns, then adds the residual."""
    return [
        Node("return", ("ffn input",)),
        Node("add", ("between", product), (shard.activation_of("hidden", shard.scenario.model.hidden),)),
    ]


def _mlp(shard: Shard, index: int, ffn: workload.Mlp) -> Piece:
    model, stored = shard.scenario.model, shard.scenario.numerics.weights
    count, layer, tokens = shard.layer_count(index), model.blocks[index].name, shard.tokens
    width = math.ceil(ffn.intermediate / shard.tp)
    piece = _norm(shard, index)
    piece.rows.append(gemm_row(shard, "gate-up", layer, count, find(model, index, Role.GATE, Role.UP), tokens, stored))
    gated = tokens * width * shard.activation.bytes
    piece.rows.append(elementwise_row(shard, "swiglu", layer, count, 2 * gated, gated))
    piece.rows.append(gemm_row(shard, "down", layer, count, find(model, index, Role.DOWN), tokens, stored))
    piece.rows.extend(all_reduce(shard, "down all-reduce", layer, count))
    piece.nodes.extend([
        Node("gate-up", ("ffn input",), (shard.activation_of("gate and up", 2 * width),)),
        Node("swiglu", ("gate and up",), (shard.activation_of("gated", width),)),
        Node("down", ("gated",), (shard.activation_of("product", model.hidden),)),
        *_close(shard, "product"),
    ])
    return piece


def _experts(shard: Shard, index: int, ffn: workload.Experts) -> Piece:
    scenario, model = shard.scenario, shard.scenario.model
    stored, engine, tokens = scenario.numerics.weights, scenario.engine, shard.tokens
    count, layer = shard.layer_count(index), model.blocks[index].name
    width = math.ceil(ffn.intermediate / shard.tp)
    matrices = find(model, index, Role.GATE, Role.UP, Role.DOWN)
    per_expert = sum(model.layer_bytes(t, stored) * share_per_rank(t, model, shard.tp) for t in matrices) / ffn.count
    kernel = linear_kernel(stored, scenario.fleet.device, shard.activation)
    if kernel.name is KernelName.GEMM_WEIGHT_ONLY:
        kernel = Kernel(KernelName.EXPERTS, STORAGE_DTYPE[4] if kernel.dtype is DType.INT4 else DType.INT8)
    piece = _norm(shard, index)
    router = find(model, index, Role.ROUTER)
    piece.rows.append(gemm_row(shard, "router", layer, count, router, tokens, model.unquantised))
    piece.rows.append(
        one_row(
            Experts,
            "experts",
            layer,
            count,
            Kernel(KernelName.EXPERTS, kernel.dtype),
            tokens=tokens,
            hidden=model.hidden,
            intermediate=width,
            top_k=ffn.top_k,
            touched=touched_experts(tokens, ffn.count, ffn.top_k, engine.routing, engine.routing_alpha),
            expert_bytes=per_expert,
            activation_bytes=shard.activation.bytes,
        )
    )
    piece.rows.extend(all_reduce(shard, "experts all-reduce", layer, count))
    assigned = np.asarray(tokens * ffn.top_k)
    piece.nodes.extend([
        Node("router", ("ffn input",), (shard.activation_of("routing", ffn.count, size=4.0),)),
        Node("gather", ("ffn input", "routing"), (shard.activation_of("gathered", model.hidden, assigned),)),
        Node("gate-up", ("gathered",), (shard.activation_of("gate and up", 2 * width, assigned),)),
        Node("swiglu", ("gate and up",), (shard.activation_of("gated", width, assigned),)),
        Node("down", ("gated",), (shard.activation_of("expert output", model.hidden, assigned),)),
        Node("combine", ("expert output", "routing", "gathered"), (shard.activation_of("product", model.hidden),)),
        *_close(shard, "product"),
    ])
    return piece
