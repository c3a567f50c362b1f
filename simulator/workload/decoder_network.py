"""A decoder that only reads: as the text encoder of a pipeline all its tokens pass once, and nothing is cached."""

from __future__ import annotations

from .layers import Attention, Role
from .model import Model
from .network import Layer, Linear, Mix, Network, Pointwise, repeated, unused


def decoder_as_network(model: Model, tokens: int, *, with_head: bool) -> Network:
    """The body of a decoder over `tokens` tokens; its towers, and its head where loaded, do not run.

    Every product with its weights stands where the decoder has it; four tensors as wide as the hidden state stay alive
    meanwhile. Causal masks are left out.
    """
    layers: list[Layer] = []
    resting: list[Layer] = [layer for tower in model.towers for layer in tower.layers]
    passed = float(tokens * model.hidden)
    for tensor in model.tensors:
        times = model.instances(tensor) * tensor.copies
        if tensor.role is Role.TOWER:
            continue
        if tensor.role is Role.LM_HEAD:
            if with_head:
                resting.append(Linear("lm head", tensor.cols, tensor.rows, 0, tensor.bias, narrowed=False))
            continue
        if tensor.scope is None:
            layers.append(Pointwise(tensor.role.value, tensor.elements // tensor.copies, passed, times))
            continue
        layers.append(Linear(tensor.role.value, tensor.cols, tensor.rows, tokens, tensor.bias, times))
        if tensor.role is Role.UP:
            inner = float(tokens * tensor.rows)
            layers.append(Pointwise("activation", 0, inner, times, held=inner))
        if tensor.role is Role.V and tensor.block is not None:
            layers += repeated(times, _mixed(model, tensor.block, tokens))
    return Network(model.name, (*layers, *unused(resting)), 4 * passed, tokens)


def _mixed(model: Model, block: int, tokens: int) -> tuple[Layer, ...]:
    attention = model.blocks[block].attention
    if not isinstance(attention, Attention):
        return ()
    width = attention.heads * attention.head_dim
    seen = tokens if attention.window is None else min(tokens, attention.window)
    held = 3.0 * tokens * width
    return (Mix("attention", attention.heads, attention.head_dim, tokens, seen, held=held),)
