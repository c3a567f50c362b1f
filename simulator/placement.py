"""What a placement moves off the device: bytes by layer and part, the buffers copies need, what the host holds."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .estimate import Array
from .scenario import Scenario, Sharding, Where
from .tensor_bytes import layer_state_bytes, tensor_bytes

BUFFERS = 2  # one is filled while the other is used


class LayerBytes(NamedTuple):
    """Bytes of each layer, (layers,), the state (layers, *grid): of one device, or of the whole model on the host."""

    shell: Array
    experts: Array
    state: Array


def layer_bytes(scenario: Scenario, sharding: Sharding) -> LayerBytes:
    """Weights of a layer without and of its routed experts, and the state all users keep in it, under that layout."""
    model = scenario.model
    shell, experts = np.zeros(len(model.blocks)), np.zeros(len(model.blocks))
    for tensor in model.tensors:
        if tensor.block is not None:
            (experts if tensor.routed else shell)[tensor.block] += tensor_bytes(scenario, tensor, sharding)
    asked = scenario.but(sharding=sharding)
    state = np.stack(np.broadcast_arrays(*(layer_state_bytes(asked, block) for block in model.blocks)))
    order = np.array(model.pattern)
    return LayerBytes(shell[order], experts[order], state[order])


class Moved(NamedTuple):
    """Bytes a placement takes off each device, and what it needs elsewhere (0: nothing is placed elsewhere)."""

    weights: float = 0.0
    state: Array | float = 0.0
    staging: float = 0.0
    host_weights: float = 0.0
    host_state: Array | float = 0.0
    drive_weights: float = 0.0
    drive_state: Array | float = 0.0


def moved(scenario: Scenario) -> Moved:
    """The bytes of the scenario's placement. Device figures are of one rank, the host holds the whole model's."""
    placement = scenario.placement
    if not placement.stretches:
        return Moved()
    here, whole = layer_bytes(scenario, scenario.sharding), layer_bytes(scenario, Sharding())
    weights = staging = host_weights = 0.0
    state: Array | float = 0.0
    host_state: Array | float = 0.0
    for i, stretch in enumerate(placement.modes(scenario.model.layers)):
        away = 1.0 - stretch.cached
        for part, own, all_ in (("shell", here.shell, whole.shell), ("experts", here.experts, whole.experts)):
            where = getattr(stretch.mode, part)
            share = away if part == "experts" else 1.0
            if where is not Where.DEVICE:
                weights += own[i] * share
                host_weights += all_[i] * share
            if where is Where.STREAMED and not (part == "experts" and stretch.mode.shell is Where.DEVICE):
                staging = max(staging, here.shell[i] + here.experts[i])
        if stretch.mode.kv is not Where.DEVICE:
            state = state + here.state[i]
            host_state = host_state + whole.state[i]
        if stretch.mode.kv is Where.STREAMED:
            staging = max(staging, float(np.max(here.state[i])))
    drive = host_weights * placement.storage_share
    kept = host_state * (1.0 - placement.state_on_drive)
    return Moved(weights, state, BUFFERS * staging, host_weights - drive, kept, drive, host_state - kept)
