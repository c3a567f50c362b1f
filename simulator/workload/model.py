"""A decoder-only transformer as plain facts, and the one list of its weight tensors.

Everything countable (parameters, bytes, matrix shapes, shards) derives from `Model.tensors()`, so a family is
described once. Layers of equal shape form a `Block`; `pattern` says which block each layer is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from types import MappingProxyType
from typing import NamedTuple

from ...dtypes import DType
from .formats import WeightFormat


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
    ATTENTION_NORM = "attention_norm"
    FFN_NORM = "ffn_norm"
    GATE = "gate"
    UP = "up"
    DOWN = "down"
    ROUTER = "router"
    EXTRA = "extra"


class Split(StrEnum):
    """How tensor parallelism cuts a tensor: outputs, inputs, KV heads, vocabulary, or not at all."""

    COLUMN = "column"
    ROW = "row"
    KV = "kv"
    VOCAB = "vocab"
    NONE = "none"


class Attention(NamedTuple):
    """Multi-head, grouped-query or multi-query attention; `window` limits the keys a query sees."""

    heads: int
    kv_heads: int
    head_dim: int
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: bool = False
    window: int | None = None


class Mlp(NamedTuple):
    """A gated feed-forward (SwiGLU): gate and up project to `intermediate`, down projects back."""

    intermediate: int
    bias: bool = False


class Experts(NamedTuple):
    """A mixture of gated feed-forwards: a router picks `top_k` of `experts` for each token."""

    experts: int
    top_k: int
    intermediate: int


class Block(NamedTuple):
    """One kind of transformer layer; identical layers share one block."""

    name: str
    attention: Attention
    ffn: Mlp | Experts


class Tensor(NamedTuple):
    """`copies` weight tensors of shape (rows, cols) per layer of `block` (None: outside the layers).

    `bias` adds `rows` elements to each copy. `quantised` tells whether checkpoints in narrow formats
    narrow this tensor: linear layers yes; embeddings, head, norms and routers no.
    """

    role: Role
    block: int | None
    rows: int
    cols: int
    split: Split
    bias: bool = False
    copies: int = 1
    quantised: bool = False

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
            if isinstance(ffn, Experts) and t.copies > 1:
                idle += t.elements // t.copies * (ffn.experts - ffn.top_k) * self.instances(t)
        return self.parameters - idle

    @property
    def unquantised(self) -> WeightFormat:
        """Format of what quantised checkpoints leave wide: embeddings, head, norms, routers."""
        return self.native if self.native.bits_per_weight >= 16 else UNQUANTISED

    def layer_bytes(self, tensor: Tensor, format_: WeightFormat) -> float:
        """Bytes of one layer's copies of the tensor: as the file stores them, else in `format_`."""
        stored = self.stored.get((tensor.role, tensor.block))
        if stored is not None:
            return stored / self.instances(tensor)
        outside = self.unquantised
        weight = format_ if tensor.quantised else outside
        matrix, bias = tensor.copies * tensor.rows * tensor.cols, tensor.copies * tensor.rows if tensor.bias else 0
        return matrix * weight.bytes_per_weight + bias * outside.bytes_per_weight

    def weight_bytes(self, format_: WeightFormat) -> float:
        """Bytes of all weights in `format_` (as stored for GGUF), extras of the file included."""
        extra = self.stored.get((Role.EXTRA, None), 0.0)
        return extra + sum(self.layer_bytes(t, format_) * self.instances(t) for t in self.tensors)


UNQUANTISED = WeightFormat("bf16", 16, DType.BF16)


def _block_tensors(index: int, block: Block, hidden: int) -> Iterator[Tensor]:
    """Weights of one layer of the block, in the order they are used."""
    a = block.attention
    yield Tensor(Role.ATTENTION_NORM, index, 1, hidden, Split.NONE)
    yield Tensor(Role.Q, index, a.heads * a.head_dim, hidden, Split.COLUMN, a.qkv_bias, quantised=True)
    yield Tensor(Role.K, index, a.kv_heads * a.head_dim, hidden, Split.KV, a.qkv_bias, quantised=True)
    yield Tensor(Role.V, index, a.kv_heads * a.head_dim, hidden, Split.KV, a.qkv_bias, quantised=True)
    if a.qk_norm:
        yield Tensor(Role.Q_NORM, index, 1, a.head_dim, Split.NONE)
        yield Tensor(Role.K_NORM, index, 1, a.head_dim, Split.NONE)
    yield Tensor(Role.O, index, hidden, a.heads * a.head_dim, Split.ROW, a.out_bias, quantised=True)
    yield Tensor(Role.FFN_NORM, index, 1, hidden, Split.NONE)
    ffn = block.ffn
    copies, bias = (ffn.experts, False) if isinstance(ffn, Experts) else (1, ffn.bias)
    if isinstance(ffn, Experts):
        yield Tensor(Role.ROUTER, index, ffn.experts, hidden, Split.NONE)
    yield Tensor(Role.GATE, index, ffn.intermediate, hidden, Split.COLUMN, bias, copies, quantised=True)
    yield Tensor(Role.UP, index, ffn.intermediate, hidden, Split.COLUMN, bias, copies, quantised=True)
    yield Tensor(Role.DOWN, index, hidden, ffn.intermediate, Split.ROW, bias, copies, quantised=True)


def blocks_of(per_layer: list[Block]) -> tuple[tuple[Block, ...], tuple[int, ...]]:
    """Group a list with one block per layer into the distinct blocks and the pattern that restores it."""
    distinct = tuple(dict.fromkeys(per_layer))
    index = {block: i for i, block in enumerate(distinct)}
    return distinct, tuple(index[block] for block in per_layer)
