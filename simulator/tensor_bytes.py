"""What tensors and state occupy: bytes of weights and of what users keep, by layer and by pipeline stage."""

from __future__ import annotations

import math

import numpy as np

from ..dtypes import DType
from .estimate import Array
from .lowering.linear import share_per_rank
from .scenario import Scenario, Sharding, stage_layers
from .workload.formats import kv_element_bytes
from .workload.model import Block, Recurrent, Role, Tensor

FIRST_STAGE = (Role.EMBED, Role.POSITIONS, Role.EMBED_NORM, Role.LOOKUP, Role.TOWER)


def tensor_bytes(scenario: Scenario, tensor: Tensor, sharding: Sharding) -> float:
    """Bytes of one layer's copies of a tensor on one device of the layout.

    Of a `kv_b` stored narrow, engines keep a copy in the activations' format beside it, which decoding multiplies.
    """
    model = scenario.model
    layer_bytes = model.layer_bytes(tensor, scenario.numerics.weights)
    copy_bytes = tensor.rows * tensor.cols * scenario.numerics.activations.bytes
    if tensor.role is Role.KV_B and copy_bytes > layer_bytes:
        layer_bytes += copy_bytes
    return layer_bytes * share_per_rank(tensor, model, sharding) * _padding(scenario, tensor, sharding)


def _padding(scenario: Scenario, tensor: Tensor, sharding: Sharding) -> float:
    """How much larger an engine stores 4-bit float experts: both widths of a rank's part rounded up to multiples."""
    weights, model = scenario.numerics.weights, scenario.model
    if not tensor.routed or weights.compute is not DType.FP4 or tensor.block is None:
        return 1.0
    ffn = model.blocks[tensor.block].ffn
    assert ffn is not None
    factor = 1.0
    widths = model.hidden, ffn.intermediate / sharding.expert_cut
    for width, multiple in zip(widths, scenario.engine.fp4_expert_multiples, strict=True):
        factor *= math.ceil(width / multiple) * multiple / width
    return factor


def stage_weight_bytes(scenario: Scenario) -> Array:
    """Bytes of weights on one device of each stage, (stages,), were all of them there.

    Tied embeddings count on both end stages; an engine that looks tokens up on the host keeps the table there.
    """
    model, sharding = scenario.model, scenario.sharding
    stages = stage_layers(model, sharding)
    result = np.zeros(len(stages))
    for tensor in model.tensors:
        per_device = tensor_bytes(scenario, tensor, sharding)
        if tensor.role is Role.EMBED and scenario.engine.embeds_on_host and not scenario.fleet.device.unified_memory:
            per_device = per_device if model.tied else 0.0  # a tied table is needed on the device as the head
        if tensor.block is not None:
            result += [layers[tensor.block] * per_device for layers in stages]
        elif tensor.role in FIRST_STAGE:
            result[0] += per_device
            if tensor.role is Role.EMBED and model.tied and len(stages) > 1:
                result[-1] += per_device
        else:
            result[-1] += per_device
    result[-1] += model.stored.get((Role.EXTRA, None), 0.0)
    return result


def layer_state_bytes(scenario: Scenario, block: Block) -> Array:
    """State all users keep in one layer of the block on one device, (*grid), contexts rounded up to whole pages.

    A full layer keeps every token, a sliding window its own length and one more page, cross-attention the encoder's
    tokens, a recurrence a state of fixed size. What all users share (`shared_prefix`, in whole pages) is kept once.
    With context parallelism a rank keeps every `cp`-th token, and pages are taken on all `cp` ranks together (virtual
    blocks in vllm/v1/worker/block_table.py).
    """
    page, tp, cp = scenario.engine.block_tokens, scenario.sharding.tp, scenario.sharding.cp
    context, batch = np.asarray(scenario.context, float), np.asarray(scenario.batch, float)
    pages = np.ceil(context / (page * cp))
    shared = np.minimum(scenario.extras.shared_prefix // (page * cp), pages)
    held_pages = batch * (pages - shared) + shared
    total = np.zeros(np.broadcast_shapes(context.shape, batch.shape))
    for mixer in (block.attention, block.crosses):
        if mixer is None:
            continue
        token_bytes = mixer.cached_elements(tp) * kv_element_bytes(scenario.numerics.kv)
        if mixer.cross:
            total = total + batch * token_bytes * scenario.model.encoder_tokens
        elif mixer.window is None:
            total = total + held_pages * page * token_bytes
        else:
            window_pages = np.minimum(pages, math.ceil(mixer.window / page) + 1)
            total = total + batch * window_pages * page * token_bytes
        if isinstance(mixer, Recurrent):
            total = total + batch * _state_bytes(scenario, mixer)
    return np.asarray(total)


def kv_cache_bytes(scenario: Scenario) -> Array:
    """State all users keep on one device of each stage, (stages, *grid), wherever it is kept."""
    per_layer = [layer_state_bytes(scenario, block) for block in scenario.model.blocks]
    stages = stage_layers(scenario.model, scenario.sharding)
    return np.stack([np.asarray(sum(n * b for n, b in zip(layers, per_layer, strict=True))) for layers in stages])


def _state_bytes(scenario: Scenario, mixer: Recurrent) -> float:
    """Bytes of one sequence's state in one recurrent layer on one rank: the recurrence and the convolution's tail."""
    tp = scenario.sharding.tp
    return mixer.state_elements(tp) * mixer.state_bytes + mixer.conv_elements(tp) * scenario.numerics.activations.bytes
