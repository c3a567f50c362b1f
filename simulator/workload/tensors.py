"""The one list of a model's weight tensors, block by block, from which everything countable derives."""

from __future__ import annotations

from collections.abc import Iterator

from .formats import Scope, WeightFormat
from .layers import Attention, Block, Experts, LatentAttention, Mlp, Recurrent, Role, Split, Tensor


def matrix_bytes(tensor: Tensor, format_: WeightFormat, outside: WeightFormat) -> float:
    """Bytes of one layer's copies of the tensor, matrices in `format_` and biases as everything that stays wide."""
    matrix, bias = tensor.copies * tensor.rows * tensor.cols, tensor.copies * tensor.rows if tensor.bias else 0
    return matrix * format_.bytes_per_weight + bias * outside.bytes_per_weight


def block_tensors(index: int, block: Block, hidden: int) -> Iterator[Tensor]:
    """Weights of one layer of the block, in the order they are used."""
    norms = block.norms
    if norms.mixer * norms.vectors:
        yield Tensor(Role.ATTENTION_NORM, index, norms.vectors, hidden, Split.NONE, copies=norms.mixer)
    match block.attention:
        case LatentAttention():
            yield from _latent_tensors(index, block.attention, hidden)
        case Recurrent():
            yield from _recurrent_tensors(index, block.attention, hidden)
        case Attention():
            yield from _attention_tensors(index, block.attention, hidden, _SELF)
    if block.crosses is not None:
        yield Tensor(Role.CROSS_NORM, index, norms.vectors, hidden, Split.NONE)
        yield from _attention_tensors(index, block.crosses, hidden, _CROSS)
    if norms.ffn * norms.vectors:
        yield Tensor(Role.FFN_NORM, index, norms.vectors, hidden, Split.NONE, copies=norms.ffn)
    match block.ffn:
        case Experts():
            yield from _experts_tensors(index, block.ffn, hidden)
        case Mlp(intermediate, bias, gated):
            yield from _feedforward(index, _DENSE, intermediate, hidden, bias, gated, 1, Scope.FEEDFORWARD)
    for rows, cols in block.side:
        yield Tensor(Role.SIDE, index, rows, cols, Split.NONE, scope=Scope.LINEAR)
    if block.small:
        yield Tensor(Role.SMALL, index, 1, block.small, Split.NONE)


_SELF = (Role.Q, Role.K, Role.V, Role.O)
_CROSS = (Role.CROSS_Q, Role.CROSS_K, Role.CROSS_V, Role.CROSS_O)
_DENSE = (Role.GATE, Role.UP, Role.DOWN)
_SHARED = (Role.SHARED_GATE, Role.SHARED_UP, Role.SHARED_DOWN)


def _attention_tensors(index: int, a: Attention, hidden: int, roles: tuple[Role, Role, Role, Role]) -> Iterator[Tensor]:
    linear, query, keys = Scope.LINEAR, a.heads * a.head_dim, a.kv_heads * a.head_dim
    values, attended = a.kv_heads * a.value_width, a.heads * a.value_width
    q, k, v, o = roles
    yield Tensor(q, index, query * (2 if a.gated else 1), hidden, Split.COLUMN, a.qkv_bias, scope=linear)
    if not a.borrows:
        yield Tensor(k, index, keys, hidden, Split.KV, a.qkv_bias and a.key_bias, scope=linear)
        if not a.no_value:
            yield Tensor(v, index, values, hidden, Split.KV, a.qkv_bias, scope=linear)
    if a.qk_norm:
        yield Tensor(Role.Q_NORM, index, 1, query if a.whole_norm else a.head_dim, Split.NONE)
        if not a.borrows:
            yield Tensor(Role.K_NORM, index, 1, keys if a.whole_norm else a.head_dim, Split.NONE)
    if a.sinks:
        yield Tensor(Role.SINKS, index, 1, a.heads, Split.NONE)
    yield Tensor(o, index, hidden, attended, Split.ROW, a.out_bias, scope=linear)


def _latent_tensors(index: int, a: LatentAttention, hidden: int) -> Iterator[Tensor]:
    linear, query = Scope.LINEAR, a.heads * (a.nope + a.rope)
    if a.query_latent is None:
        yield Tensor(Role.Q, index, query, hidden, Split.COLUMN, scope=linear)
    else:
        yield Tensor(Role.Q_A, index, a.query_latent, hidden, Split.NONE, a.bias, scope=linear)
        yield Tensor(Role.Q_A_NORM, index, 1, a.query_latent, Split.NONE)
        yield Tensor(Role.Q_B, index, query, a.query_latent, Split.COLUMN, scope=linear)
    yield Tensor(Role.KV_A, index, a.latent + a.rope, hidden, Split.NONE, a.bias, scope=linear)
    yield Tensor(Role.KV_A_NORM, index, 1, a.latent, Split.NONE)
    yield Tensor(Role.KV_B, index, a.heads * (a.nope + a.value), a.latent, Split.COLUMN, scope=linear)
    yield Tensor(Role.O, index, hidden, a.heads * a.value, Split.ROW, a.bias, scope=linear)


def _recurrent_tensors(index: int, r: Recurrent, hidden: int) -> Iterator[Tensor]:
    linear = Scope.LINEAR
    yield Tensor(Role.MIX_IN, index, r.inputs, hidden, Split.COLUMN, r.in_bias, scope=linear)
    if r.conv_channels:
        yield Tensor(Role.MIX_CONV, index, r.conv_channels, r.conv_width, Split.COLUMN)
    for rows, cols in r.narrow:
        yield Tensor(Role.MIX_NARROW, index, rows, cols, Split.NONE, scope=linear)
    if r.small:
        yield Tensor(Role.SMALL, index, 1, r.small, Split.NONE)
    yield Tensor(Role.MIX_OUT, index, hidden, r.inner, Split.ROW, r.out_bias, scope=linear)


def _experts_tensors(index: int, ffn: Experts, hidden: int) -> Iterator[Tensor]:
    yield Tensor(Role.ROUTER, index, ffn.experts, hidden, Split.NONE, ffn.bias)
    if ffn.latent:
        yield Tensor(Role.LATENT_DOWN, index, ffn.latent, hidden, Split.NONE, scope=Scope.FEEDFORWARD)
        yield Tensor(Role.LATENT_UP, index, hidden, ffn.latent, Split.NONE, scope=Scope.FEEDFORWARD)
    inner = ffn.latent or hidden
    yield from _feedforward(index, _DENSE, ffn.intermediate, inner, ffn.bias, ffn.gated, ffn.experts, Scope.EXPERTS)
    if ffn.shared:
        yield from _feedforward(index, _SHARED, ffn.shared, hidden, False, ffn.gated, 1, Scope.FEEDFORWARD)
    if ffn.shared_switch:
        yield Tensor(Role.SHARED_SWITCH, index, 1, hidden, Split.NONE)


def _feedforward(
    index: int,
    roles: tuple[Role, Role, Role],
    width: int,
    hidden: int,
    bias: bool,
    gated: bool,
    copies: int,
    scope: Scope,
) -> Iterator[Tensor]:
    """Gate (where there is one), up and down of `copies` feed-forwards."""
    gate, up, down = roles
    if gated:
        yield Tensor(gate, index, width, hidden, Split.COLUMN, bias, copies, scope)
    yield Tensor(up, index, width, hidden, Split.COLUMN, bias, copies, scope)
    yield Tensor(down, index, hidden, width, Split.ROW, bias, copies, scope)
