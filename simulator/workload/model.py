"""A decoder-only transformer as plain facts, and the one list of its weight tensors.

Everything countable (parameters, bytes, matrix shapes, shards) derives from `Model.tensors()`, so a family is
described once. Layers of equal shape form a `Block`; `pattern` says which block each layer is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from types import MappingProxyType
from typing import NamedTuple

from ...dtypes import DType
from .formats import Scope, WeightFormat


class Role(StrEnum):
    """What a weight tensor is for. Matrices map `cols` inputs to `rows` outputs."""

    EMBED = "embed"
    LM_HEAD = "lm_head"
    FINAL_NORM = "final_norm"
    Q = "q"
    K = "k"
    V = "v"
    O = "o"  # noqa: E741 - the field's name for the attention output projection
    Q_NORM = "q_norm"
    K_NORM = "k_norm"
    SINKS = "sinks"
    Q_A = "q_a"
    Q_A_NORM = "q_a_norm"
    Q_B = "q_b"
    KV_A = "kv_a"
    KV_A_NORM = "kv_a_norm"
    KV_B = "kv_b"
    ATTENTION_NORM = "attention_norm"
    FFN_NORM = "ffn_norm"
    GATE = "gate"
    UP = "up"
    DOWN = "down"
    ROUTER = "router"
    SHARED_GATE = "shared_gate"
    SHARED_UP = "shared_up"
    SHARED_DOWN = "shared_down"
    EXTRA = "extra"


class Split(StrEnum):
    """How tensor parallelism cuts a tensor: outputs, inputs, KV heads, vocabulary, or not at all."""

    COLUMN = "column"
    ROW = "row"
    KV = "kv"
    VOCAB = "vocab"
    NONE = "none"


class Attention(NamedTuple):
    """Multi-head, grouped-query or multi-query attention; `window` limits the keys a query sees.

    `qk_norm` norms each head of q and k, with `whole_norm` all heads together. `sinks` are one learned logit a head,
    which takes part in the softmax: parameters, but no work worth counting.
    """

    heads: int
    kv_heads: int
    head_dim: int
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: bool = False
    window: int | None = None
    whole_norm: bool = False
    sinks: bool = False

    def cached_elements(self, tp: int) -> int:
        """Elements of the KV cache for one token and layer on one of `tp` ranks: keys and values of its KV heads."""
        return 2 * math.ceil(self.kv_heads / tp) * self.head_dim


class LatentAttention(NamedTuple):
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1).

    A token's keys and values are kept as one `latent` vector and one rotary key of `rope` elements, which all heads
    share. Per head `kv_b` expands the latent to a key of `nope` and a value of `value` elements; the query has
    `nope` + `rope` elements and comes through a bottleneck of `query_latent` (None: straight from the hidden state).
    """

    heads: int
    query_latent: int | None
    latent: int
    rope: int
    nope: int
    value: int
    bias: bool = False

    @property
    def kv_heads(self) -> int:
        """One latent for all heads: it cannot be cut, every rank keeps it."""
        return 1

    @property
    def window(self) -> int | None:
        """No model limits the keys of latent attention to a window."""
        return None

    def cached_elements(self, tp: int) -> int:
        """Elements of the KV cache for one token and layer: latent and rotary key, on every rank alike."""
        return self.latent + self.rope


class Mlp(NamedTuple):
    """A gated feed-forward (SwiGLU): gate and up project to `intermediate`, down projects back."""

    intermediate: int
    bias: bool = False


class Experts(NamedTuple):
    """A mixture of gated feed-forwards: a router picks `top_k` of `experts` for each token.

    Every token also passes the shared experts, one feed-forward of width `shared` (0: there are none). `bias` is that
    of router and experts.
    """

    experts: int
    top_k: int
    intermediate: int
    shared: int = 0
    bias: bool = False


class Block(NamedTuple):
    """One kind of transformer layer; identical layers share one block."""

    name: str
    attention: Attention | LatentAttention
    ffn: Mlp | Experts


class Tensor(NamedTuple):
    """`copies` weight tensors of shape (rows, cols) per layer of `block` (None: outside the layers).

    `bias` adds `rows` elements to each copy. `scope` is the narrowest scope of a narrow checkpoint that takes this
    tensor in; none does for embeddings, head, norms and routers (None).
    """

    role: Role
    block: int | None
    rows: int
    cols: int
    split: Split
    bias: bool = False
    copies: int = 1
    scope: Scope | None = None

    @property
    def routed(self) -> bool:
        """Whether it belongs to the experts a router picks from, which expert parallelism deals out whole."""
        return self.scope is Scope.EXPERTS

    @property
    def elements(self) -> int:
        """Parameters of one layer's copies, bias included."""
        return self.copies * (self.rows * self.cols + (self.rows if self.bias else 0))


@dataclass(frozen=True)
class Model:
    """A decoder-only transformer. `stored` fixes bytes per (role, block) where a file states them (GGUF)."""

    name: str
    family: str
    hidden: int
    vocab: int
    blocks: tuple[Block, ...]
    pattern: tuple[int, ...]
    tied: bool
    max_context: int
    native: WeightFormat
    activation: DType = DType.BF16
    origin: str = "bundled"
    stored: Mapping[tuple[Role, int | None], float] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def layers(self) -> int:
        """Number of transformer layers."""
        return len(self.pattern)

    @property
    def has_experts(self) -> bool:
        """Whether any layer routes its tokens to experts."""
        return any(isinstance(block.ffn, Experts) for block in self.blocks)

    def layer_counts(self) -> tuple[int, ...]:
        """How many layers each block stands for."""
        return tuple(self.pattern.count(i) for i in range(len(self.blocks)))

    @cached_property
    def tensors(self) -> tuple[Tensor, ...]:
        """Every distinct weight tensor; the source of all counts."""
        return tuple(self._outer()) + tuple(
            tensor for index, block in enumerate(self.blocks) for tensor in _block_tensors(index, block, self.hidden)
        )

    def _outer(self) -> Iterator[Tensor]:
        yield Tensor(Role.EMBED, None, self.vocab, self.hidden, Split.VOCAB)
        yield Tensor(Role.FINAL_NORM, None, 1, self.hidden, Split.NONE)
        if not self.tied:
            yield Tensor(Role.LM_HEAD, None, self.vocab, self.hidden, Split.VOCAB)

    def instances(self, tensor: Tensor) -> int:
        """How many layers carry the tensor (1 outside the layers)."""
        return 1 if tensor.block is None else self.layer_counts()[tensor.block]

    @cached_property
    def parameters(self) -> int:
        """All parameters, shared ones once; equals `transformers` on the meta device to the last one."""
        return sum(t.elements * self.instances(t) for t in self.tensors)

    @cached_property
    def active_parameters(self) -> int:
        """Parameters of the path of one token, as publishers count them: `top_k` of the experts, all the rest."""
        idle = 0
        for t in self.tensors:
            ffn = None if t.block is None else self.blocks[t.block].ffn
            if isinstance(ffn, Experts) and t.routed:
                idle += t.elements // t.copies * (ffn.experts - ffn.top_k) * self.instances(t)
        return self.parameters - idle

    @property
    def unquantised(self) -> WeightFormat:
        """Format of what quantised checkpoints leave wide: embeddings, head, norms, routers."""
        return self.native if self.native.bits_per_weight >= 16 else UNQUANTISED

    def format_of(self, tensor: Tensor, format_: WeightFormat) -> WeightFormat:
        """How a checkpoint in `format_` stores the tensor's matrix."""
        narrowed = tensor.scope is not None and tensor.scope <= format_.scope
        return format_ if narrowed else self.unquantised

    def layer_bytes(self, tensor: Tensor, format_: WeightFormat) -> float:
        """Bytes of one layer's copies of the tensor: as the file stores them, else in `format_`."""
        stored = self.stored.get((tensor.role, tensor.block))
        if stored is not None:
            return stored / self.instances(tensor)
        weight, outside = self.format_of(tensor, format_), self.unquantised
        matrix, bias = tensor.copies * tensor.rows * tensor.cols, tensor.copies * tensor.rows if tensor.bias else 0
        return matrix * weight.bytes_per_weight + bias * outside.bytes_per_weight

    def weight_bytes(self, format_: WeightFormat) -> float:
        """Bytes of all weights in `format_` (as stored for GGUF), extras of the file included."""
        extra = self.stored.get((Role.EXTRA, None), 0.0)
        return extra + sum(self.layer_bytes(t, format_) * self.instances(t) for t in self.tensors)


UNQUANTISED = WeightFormat("bf16", 16, DType.BF16)


def _block_tensors(index: int, block: Block, hidden: int) -> Iterator[Tensor]:
    """Weights of one layer of the block, in the order they are used."""
    yield Tensor(Role.ATTENTION_NORM, index, 1, hidden, Split.NONE)
    if isinstance(block.attention, LatentAttention):
        yield from _latent_tensors(index, block.attention, hidden)
    else:
        yield from _attention_tensors(index, block.attention, hidden)
    yield Tensor(Role.FFN_NORM, index, 1, hidden, Split.NONE)
    ffn = block.ffn
    if isinstance(ffn, Experts):
        yield Tensor(Role.ROUTER, index, ffn.experts, hidden, Split.NONE, ffn.bias)
        routed = Role.GATE, Role.UP, Role.DOWN
        yield from _gated(index, routed, ffn.intermediate, hidden, ffn.bias, ffn.experts, Scope.EXPERTS)
        if ffn.shared:
            shared = Role.SHARED_GATE, Role.SHARED_UP, Role.SHARED_DOWN
            yield from _gated(index, shared, ffn.shared, hidden, False, 1, Scope.FEEDFORWARD)
    else:
        dense = Role.GATE, Role.UP, Role.DOWN
        yield from _gated(index, dense, ffn.intermediate, hidden, ffn.bias, 1, Scope.FEEDFORWARD)


def _attention_tensors(index: int, a: Attention, hidden: int) -> Iterator[Tensor]:
    linear, query, keys = Scope.LINEAR, a.heads * a.head_dim, a.kv_heads * a.head_dim
    yield Tensor(Role.Q, index, query, hidden, Split.COLUMN, a.qkv_bias, scope=linear)
    yield Tensor(Role.K, index, keys, hidden, Split.KV, a.qkv_bias, scope=linear)
    yield Tensor(Role.V, index, keys, hidden, Split.KV, a.qkv_bias, scope=linear)
    if a.qk_norm:
        yield Tensor(Role.Q_NORM, index, 1, query if a.whole_norm else a.head_dim, Split.NONE)
        yield Tensor(Role.K_NORM, index, 1, keys if a.whole_norm else a.head_dim, Split.NONE)
    if a.sinks:
        yield Tensor(Role.SINKS, index, 1, a.heads, Split.NONE)
    yield Tensor(Role.O, index, hidden, query, Split.ROW, a.out_bias, scope=linear)


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


def _gated(
    index: int, roles: tuple[Role, Role, Role], width: int, hidden: int, bias: bool, copies: int, scope: Scope
) -> Iterator[Tensor]:
    """Gate, up and down of `copies` gated feed-forwards."""
    gate, up, down = roles
    yield Tensor(gate, index, width, hidden, Split.COLUMN, bias, copies, scope)
    yield Tensor(up, index, width, hidden, Split.COLUMN, bias, copies, scope)
    yield Tensor(down, index, hidden, width, Split.ROW, bias, copies, scope)


def blocks_of(per_layer: list[Block]) -> tuple[tuple[Block, ...], tuple[int, ...]]:
    """Group a list with one block per layer into the distinct blocks and the pattern that restores it."""
    distinct = tuple(dict.fromkeys(per_layer))
    index = {block: i for i, block in enumerate(distinct)}
    return distinct, tuple(index[block] for block in per_layer)
