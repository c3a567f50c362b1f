"""What a placement moves off the device: bytes by layer and part, the buffers copies need, what the host holds."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .estimate import Array
from .remake import inputs_share
from .scenario import MemoryTier, Mode, Scenario, Sharding, Where
from .tensor_bytes import layer_state_bytes, tensor_bytes


class LayerBytes(NamedTuple):
    """Bytes of each layer, (layers,), the state (layers, *grid): of one device, or of the whole model on the host.

    `inputs` are those of the tokens whose keys and values are the state, where a layer keeps nothing else.
    """

    shell: Array
    experts: Array
    state: Array
    inputs: Array


def layer_bytes(scenario: Scenario, sharding: Sharding) -> LayerBytes:
    """Weights of a layer without and of its routed experts, and the state all users keep in it, under that layout."""
    model = scenario.model
    shell, experts = np.zeros(len(model.blocks)), np.zeros(len(model.blocks))
    for tensor in model.tensors:
        if tensor.block is not None:
            (experts if tensor.routed else shell)[tensor.block] += tensor_bytes(scenario, tensor, sharding)
    asked = scenario.but(sharding=sharding)
    states = [layer_state_bytes(asked, block) for block in model.blocks]
    shares = [inputs_share(asked, block) for block in model.blocks]
    inputs = [state * (share if np.isfinite(share) else 1.0) for state, share in zip(states, shares, strict=True)]
    state, kept = (np.stack(np.broadcast_arrays(*each)) for each in (states, inputs))
    order = np.array(model.pattern)
    return LayerBytes(shell[order], experts[order], state[order], kept[order])


class Moved(NamedTuple):
    """Bytes a placement takes off each device, and what it needs elsewhere (0: nothing is placed elsewhere).

    What the host holds is split over its memory, memory behind CXL and the drive.
    """

    weights: float = 0.0
    state: Array | float = 0.0
    staging: float = 0.0
    host_weights: float = 0.0
    host_state: Array | float = 0.0
    cxl_weights: float = 0.0
    cxl_state: Array | float = 0.0
    drive_weights: float = 0.0
    drive_state: Array | float = 0.0


class Away(NamedTuple):
    """Bytes that layers in a mode take elsewhere, (layers, *grid): off a device; weights and state on the host."""

    freed_weights: Array
    freed_state: Array
    weights: Array
    state: Array
    buffer: Array  # of one copied layer
    made: Array  # keys and values made again, held while the layer runs


def away(mode: Mode, cached: float, here: LayerBytes, whole: LayerBytes) -> Away:
    """What every layer would take elsewhere in the mode; `here` is of one rank, `whole` of the model on the host."""
    share, remade = 1.0 - cached, mode.kv is Where.REMADE
    shell, experts, kv = (float(where is not Where.DEVICE) for where in (mode.shell, mode.experts, mode.kv))
    copied = (here.shell + here.experts) * float(mode.shell is Where.STREAMED)
    buffer = np.broadcast_to(copied.reshape(-1, *([1] * (here.state.ndim - 1))), here.state.shape)
    if mode.kv in (Where.STREAMED, Where.REMADE):
        buffer = np.maximum(buffer, here.inputs if remade else here.state)
    return Away(
        shell * here.shell + experts * share * here.experts,
        kv * here.state,
        shell * whole.shell + experts * share * whole.experts,
        kv * (whole.inputs if remade else whole.state),
        buffer,
        float(remade) * here.state,
    )


def staging_bytes(buffer: Array, made: Array, ahead: int) -> Array:
    """Buffers of the largest copy, one more than copies are begun ahead; the largest layer made again beside them."""
    return np.asarray((ahead + 1) * buffer.max(axis=0) + made.max(axis=0))


def moved(scenario: Scenario) -> Moved:
    """The bytes of the scenario's placement. Device figures are of one rank, the host holds the whole model's."""
    placement = scenario.placement
    if not placement.stretches:
        return Moved()
    here, whole = layer_bytes(scenario, scenario.sharding), layer_bytes(scenario, Sharding())
    none = np.zeros_like(here.state[0])
    held = {MemoryTier.HOST: (0.0, none), MemoryTier.CXL: (0.0, none)}
    weights, state, first = 0.0, none, 0
    buffers, made = [], []
    for stretch in placement.stretches:
        span = slice(first, min(scenario.model.layers, first + stretch.layers))
        first = span.stop
        taken = Away(*(column[span] for column in away(stretch.mode, stretch.cached, here, whole)))
        weights += float(taken.freed_weights.sum())
        state = state + taken.freed_state.sum(axis=0)
        kept_weights, kept_state = held[stretch.tier]
        held[stretch.tier] = kept_weights + float(taken.weights.sum()), kept_state + taken.state.sum(axis=0)
        buffers.append(taken.buffer)
        made.append(taken.made)
    staging = float(np.max(staging_bytes(np.concatenate(buffers), np.concatenate(made), placement.ahead)))
    in_memory, in_memory_state = held[MemoryTier.HOST]
    drive, stays = in_memory * placement.storage_share, in_memory_state * (1.0 - placement.state_on_drive)
    return Moved(
        weights, state, staging, in_memory - drive, stays, *held[MemoryTier.CXL], drive, in_memory_state - stays
    )
