"""What a transformer's layers are made of, as plain facts: mixers of tokens, feed-forwards, norms, and their tensors.

A layer is a `Block`: something that mixes tokens (attention, latent attention, a recurrence) and a feed-forward, each
with its norms; either may be missing. Layers of equal shape share one block.
"""

from __future__ import annotations

import math
from enum import StrEnum
from typing import NamedTuple

from .formats import Scope


class Role(StrEnum):
    """What a weight tensor is for. Matrices map `cols` inputs to `rows` outputs."""

    EMBED = "embed"
    POSITIONS = "positions"
    EMBED_NORM = "embed_norm"
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
    CROSS_Q = "cross_q"
    CROSS_K = "cross_k"
    CROSS_V = "cross_v"
    CROSS_O = "cross_o"
    CROSS_NORM = "cross_norm"
    MIX_IN = "mix_in"
    MIX_NARROW = "mix_narrow"
    MIX_CONV = "mix_conv"
    MIX_OUT = "mix_out"
    ATTENTION_NORM = "attention_norm"
    FFN_NORM = "ffn_norm"
    GATE = "gate"
    UP = "up"
    DOWN = "down"
    ROUTER = "router"
    SHARED_GATE = "shared_gate"
    SHARED_UP = "shared_up"
    SHARED_DOWN = "shared_down"
    SHARED_SWITCH = "shared_switch"
    LATENT_DOWN = "latent_down"
    LATENT_UP = "latent_up"
    SIDE = "side"
    LOOKUP = "lookup"
    SMALL = "small"
    TOWER = "tower"
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
    which takes part in the softmax: parameters, but no work worth counting. A `gated` query projection yields a gate
    beside every query element. `borrows` takes keys and values an earlier layer has cached; with `no_value` the key
    projection makes the values too (both are cached: keys are normed and rotated, values are not). `cross` attends to
    an encoder's (or an image's) tokens instead of the context. `value_dim` is the width of a value where it is not
    that of a key. `key_bias` is false where of q, k and v only the keys have no bias.
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
    gated: bool = False
    borrows: bool = False
    no_value: bool = False
    cross: bool = False
    value_dim: int | None = None
    key_bias: bool = True

    @property
    def value_width(self) -> int:
        """Elements of one head's value."""
        return self.head_dim if self.value_dim is None else self.value_dim

    def cached_elements(self, tp: int) -> int:
        """Elements of the KV cache for one token and layer on one of `tp` ranks: keys and values of its KV heads."""
        return 0 if self.borrows else math.ceil(self.kv_heads / tp) * (self.head_dim + self.value_width)

    def state_elements(self, tp: int) -> int:
        """Nothing is kept that does not grow with the context."""
        return 0

    def cut_by(self, tp: int) -> bool:
        """Whether `tp` ranks share it evenly: heads divide, KV heads divide or are replicated evenly."""
        return self.heads % tp == 0 and (self.kv_heads % tp == 0 or tp % self.kv_heads == 0)

    def cache_copies(self, tp: int) -> int:
        """How many of `tp` ranks keep the same KV heads of a whole context; a window's or an encoder's count as one."""
        keeps_context = self.window is None and not self.cross and not self.borrows
        return max(1, tp // self.kv_heads) if keeps_context else 1


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

    @property
    def cross(self) -> bool:
        """It attends to its own context."""
        return False

    def cached_elements(self, tp: int) -> int:
        """Elements of the KV cache for one token and layer: latent and rotary key, on every rank alike."""
        return self.latent + self.rope

    def state_elements(self, tp: int) -> int:
        """Nothing is kept that does not grow with the context."""
        return 0

    def cut_by(self, tp: int) -> bool:
        """Whether `tp` ranks share its heads evenly."""
        return self.heads % tp == 0

    def cache_copies(self, tp: int) -> int:
        """How many of `tp` ranks keep the same latents: all."""
        return tp


class Recurrent(NamedTuple):
    """A mixer whose memory does not grow: state-space layers, gated delta rule, linear attention, short convolutions.

    A product from the hidden state to `inputs` columns, a causal convolution of `conv_width` over `conv_channels`,
    `narrow` further matrices (rows, cols), a recurrence that keeps `state` elements a sequence, and a product of
    `inner` inputs back to the hidden state. `small` counts parameters that are no matrix. `state_bytes` is the width
    of one element of the state; the convolution keeps its last `conv_width` - 1 inputs in the activations' format.
    """

    kind: str
    heads: int
    inputs: int
    inner: int
    state: int
    conv_channels: int = 0
    conv_width: int = 1
    narrow: tuple[tuple[int, int], ...] = ()
    small: int = 0
    in_bias: bool = False
    out_bias: bool = False
    state_bytes: float = 4.0

    @property
    def kv_heads(self) -> int:
        """There are no keys to share out."""
        return 1

    @property
    def window(self) -> int | None:
        """There is no window: the state holds what it holds."""
        return None

    @property
    def cross(self) -> bool:
        """It reads its own sequence."""
        return False

    def cached_elements(self, tp: int) -> int:
        """Nothing is kept for each token."""
        return 0

    def state_elements(self, tp: int) -> int:
        """Elements of the recurrence kept for one sequence and layer on one of `tp` ranks."""
        return math.ceil(self.state / tp)

    def conv_elements(self, tp: int) -> int:
        """Inputs of the convolution kept for one sequence and layer on one of `tp` ranks."""
        return math.ceil(self.conv_channels / tp) * (self.conv_width - 1)

    def cut_by(self, tp: int) -> bool:
        """Whether `tp` ranks share its heads evenly."""
        return self.heads % tp == 0 and self.inner % tp == 0

    def cache_copies(self, tp: int) -> int:
        """A state has no tokens that ranks could share out."""
        return 1


Mixer = Attention | LatentAttention | Recurrent


class Mlp(NamedTuple):
    """A feed-forward: gate and up (SwiGLU), or up alone, project to `intermediate`, down projects back."""

    intermediate: int
    bias: bool = False
    gated: bool = True

    def cut_by(self, tp: int, ep: int) -> bool:
        """Whether `tp` ranks share its width evenly."""
        return self.intermediate % tp == 0


class Experts(NamedTuple):
    """A mixture of feed-forwards: a router picks `top_k` of `experts` for each token.

    Every token also passes the shared experts, one feed-forward of width `shared` (0: there are none), whose result a
    `shared_switch` may scale. `bias` is that of router and experts. Experts may work in a `latent` space (0: in the
    model's own): one product leads into it before they run, one back behind their sum; router and shared experts stay
    outside.
    """

    experts: int
    top_k: int
    intermediate: int
    shared: int = 0
    bias: bool = False
    gated: bool = True
    shared_switch: bool = False
    latent: int = 0

    def cut_by(self, tp: int, ep: int) -> bool:
        """Whether `ep` groups share out whole experts evenly, each cut evenly within its group."""
        return self.experts % ep == 0 and self.intermediate % (tp // ep) == 0


class Norms(NamedTuple):
    """Norms of a layer: how many stand around the mixer and the feed-forward, and the vectors of each.

    An RMS norm has one vector, a layer norm a scale and a shift, a norm without parameters none.
    """

    mixer: int = 1
    ffn: int = 1
    vectors: int = 1


class Block(NamedTuple):
    """One kind of transformer layer; identical layers share one block.

    In a `parallel` layer mixer and feed-forward read the same input, and one sum takes both results. `crosses` is an
    attention to an encoder's tokens between the two halves. `small` counts parameters that belong to no matrix, `side`
    lists products (rows, cols) that every token passes beside the two halves; no rank has less than all of them.
    """

    name: str
    attention: Mixer | None
    ffn: Mlp | Experts | None
    norms: Norms = Norms()
    parallel: bool = False
    crosses: Attention | None = None
    small: int = 0
    side: tuple[tuple[int, int], ...] = ()

    def cut_by(self, tp: int, ep: int) -> bool:
        """Whether a tensor-parallel group of `tp` ranks, `ep` groups of experts in it, shares the layer evenly."""
        whole = (part for part in (self.attention, self.crosses) if part is not None)
        return all(part.cut_by(tp) for part in whole) and (self.ffn is None or self.ffn.cut_by(tp, ep))


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


def blocks_of(per_layer: list[Block]) -> tuple[tuple[Block, ...], tuple[int, ...]]:
    """Group a list with one block per layer into the distinct blocks and the pattern that restores it."""
    distinct = tuple(dict.fromkeys(per_layer))
    index = {block: i for i, block in enumerate(distinct)}
    return distinct, tuple(index[block] for block in per_layer)
