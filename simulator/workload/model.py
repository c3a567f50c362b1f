"""A decoder as plain facts. Everything countable (parameters, bytes, matrix shapes, shards) derives from its one list
of weight tensors, so a family is described once. `pattern` says which block each layer is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING

from ...dtypes import DType
from .formats import Scope, WeightFormat
from .layers import (
    Attention,
    Block,
    Experts,
    LatentAttention,
    Mixer,
    Mlp,
    Norms,
    Recurrent,
    Role,
    Split,
    Tensor,
    blocks_of,
)
from .network import Network
from .tensors import block_tensors, matrix_bytes

if TYPE_CHECKING:
    from .mixture import Mixed

__all__ = [
    "UNQUANTISED",
    "Attention",
    "Block",
    "Experts",
    "LatentAttention",
    "Mixer",
    "Mlp",
    "Model",
    "Norms",
    "Recurrent",
    "Role",
    "Scope",
    "Split",
    "Tensor",
    "blocks_of",
]

UNQUANTISED = WeightFormat("bf16", 16, DType.BF16)


@dataclass(frozen=True)
class Model:
    """A decoder: what is run token by token. `stored` fixes bytes per (role, block) where a file states them (GGUF).

    `positions` rows of learned positions, `norm_vectors` of the final norm, a norm behind the embedding and a bias of
    the head where a family has them. `towers` run before it, once for an image, a clip or a source text of
    `encoder_tokens` tokens each, which join the context (or are what cross-attention reads). `generic`: read by the
    usual field names of a family nobody described here. Outside the layers `small` counts parameters of no matrix,
    `lookups` are further tables (rows, cols) that a token picks a row of, `side` further products (rows, cols).
    `notes` is what else its files showed that a reader of an answer must know. `layer_formats` are formats a plan chose
    for the layers of a block, (block, whether of its routed experts), in place of the one a question is asked with.
    """

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
    positions: int = 0
    norm_vectors: int = 1
    embed_norm_vectors: int = 0
    head_bias: bool = False
    small: int = 0
    lookups: tuple[tuple[int, int], ...] = ()
    side: tuple[tuple[int, int], ...] = ()
    towers: tuple[Network, ...] = ()
    encoder_tokens: int = 0
    generic: bool = False
    notes: tuple[str, ...] = ()
    stored: Mapping[tuple[Role, int | None], float] = field(default_factory=lambda: MappingProxyType({}))
    layer_formats: Mapping[tuple[int | None, bool], WeightFormat] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def layers(self) -> int:
        """Number of transformer layers."""
        return len(self.pattern)

    @property
    def has_experts(self) -> bool:
        """Whether any layer routes its tokens to experts."""
        return any(isinstance(block.ffn, Experts) for block in self.blocks)

    @property
    def reads_source(self) -> bool:
        """Whether every layer attends to what an encoder made of a source, which each sequence has one of."""
        return bool(self.towers) and any(block.crosses is not None for block in self.blocks)

    def cache_copies(self, tp: int) -> int:
        """How many of `tp` ranks keep the same KV cache in every layer, so that they could share its tokens out."""
        mixers = (part for block in self.blocks for part in (block.attention, block.crosses) if part is not None)
        return math.gcd(*(mixer.cache_copies(tp) for mixer in mixers)) or 1

    def layer_counts(self) -> tuple[int, ...]:
        """How many layers each block stands for."""
        return tuple(self.pattern.count(i) for i in range(len(self.blocks)))

    @cached_property
    def tensors(self) -> tuple[Tensor, ...]:
        """Every distinct weight tensor; the source of all counts."""
        return tuple(self._outer()) + tuple(
            tensor for index, block in enumerate(self.blocks) for tensor in block_tensors(index, block, self.hidden)
        )

    def _outer(self) -> Iterator[Tensor]:
        yield Tensor(Role.EMBED, None, self.vocab, self.hidden, Split.VOCAB)
        if self.positions:
            yield Tensor(Role.POSITIONS, None, self.positions, self.hidden, Split.NONE)
        if self.embed_norm_vectors:
            yield Tensor(Role.EMBED_NORM, None, self.embed_norm_vectors, self.hidden, Split.NONE)
        if self.norm_vectors:
            yield Tensor(Role.FINAL_NORM, None, self.norm_vectors, self.hidden, Split.NONE)
        if not self.tied:
            yield Tensor(Role.LM_HEAD, None, self.vocab, self.hidden, Split.VOCAB, self.head_bias)
        for rows, cols in self.lookups:
            yield Tensor(Role.LOOKUP, None, rows, cols, Split.VOCAB)
        for rows, cols in self.side:
            yield Tensor(Role.SIDE, None, rows, cols, Split.NONE, scope=Scope.LINEAR)
        if self.small:
            yield Tensor(Role.SMALL, None, 1, self.small, Split.NONE)
        for tower in self.towers:
            yield Tensor(Role.TOWER, None, 1, tower.parameters, Split.NONE)

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
        """How a checkpoint in `format_` stores the tensor's matrix, in most of its layers."""
        format_ = self.layer_formats.get((tensor.block, tensor.routed), format_)
        if format_.exceptions:
            return self._mixture(format_)[tensor].format
        narrowed = tensor.scope is not None or (format_.whole and tensor.role in (Role.EMBED, Role.LM_HEAD))
        return format_ if narrowed else self.unquantised

    def layer_bytes(self, tensor: Tensor, format_: WeightFormat) -> float:
        """Bytes of one layer's copies of the tensor: as the file stores them, else in `format_` (a layer's average)."""
        stored = self.stored.get((tensor.role, tensor.block))
        if stored is not None:
            share = tensor.elements / self._place_elements[tensor.role, tensor.block]
            return stored * share / self.instances(tensor)
        format_ = self.layer_formats.get((tensor.block, tensor.routed), format_)
        if format_.exceptions or format_.whole:
            return self._mixture(format_)[tensor].bytes
        return matrix_bytes(tensor, self.format_of(tensor, format_), self.unquantised)

    @cached_property
    def _place_elements(self) -> Mapping[tuple[Role, int | None], int]:
        """Elements of all tensors of a role in a block, which share what a file stores for them."""
        total: dict[tuple[Role, int | None], int] = {}
        for t in self.tensors:
            total[t.role, t.block] = total.get((t.role, t.block), 0) + t.elements
        return total

    @cached_property
    def _mixtures(self) -> dict[int, tuple[WeightFormat, Mapping[Tensor, Mixed]]]:
        return {}

    def _mixture(self, format_: WeightFormat) -> Mapping[Tensor, Mixed]:
        """Bytes of every tensor where layers of one block differ; worked out once for each format object.

        Found by identity: a format with hundreds of exceptions takes long to hash.
        """
        if id(format_) not in self._mixtures:
            from .mixture import mixture

            self._mixtures[id(format_)] = format_, mixture(self, format_)
        return self._mixtures[id(format_)][1]

    @property
    def warnings(self) -> tuple[str, ...]:
        """What every answer about the model must say."""
        guessed = f"family {self.family} is not known: read by its usual fields"
        return (*self.notes, *((guessed,) if self.generic else ()))

    def weight_bytes(self, format_: WeightFormat) -> float:
        """Bytes of all weights in `format_` (as stored for GGUF), extras of the file included."""
        extra = self.stored.get((Role.EXTRA, None), 0.0)
        return extra + sum(self.layer_bytes(t, format_) * self.instances(t) for t in self.tensors)
