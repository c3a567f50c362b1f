"""Networks that run as one pass: encoders, vision towers, denoisers, autoencoders; a list of layers with their sizes.

A language model's decoder is a `Model` (it keeps state between steps); everything that takes an input and gives an
output in one pass is a `Network`. Sizes are those of one input (an image, a clip of sound, a sequence) at the
resolution or length the network was made for; a batch multiplies them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from .formats import WeightFormat


class Linear(NamedTuple):
    """`repeat` products of `tokens` rows: k inputs to n outputs. `narrowed`: quantised checkpoints narrow it."""

    name: str
    k: int
    n: int
    tokens: float
    bias: bool = True
    repeat: int = 1
    narrowed: bool = True

    @property
    def parameters(self) -> int:
        """Weights and bias of all `repeat` of them."""
        return self.repeat * (self.k * self.n + (self.n if self.bias else 0))

    @property
    def output_elements(self) -> float:
        """Elements one of them writes for one input."""
        return self.tokens * self.n


class Conv(NamedTuple):
    """`repeat` convolutions to `height` x `width` (times `depth` frames), kernel `side` x `side` x `span`."""

    name: str
    in_channels: int
    out_channels: int
    side: int
    height: float
    width: float
    groups: int = 1
    bias: bool = True
    repeat: int = 1
    span: int = 1
    depth: float = 1.0
    side_width: int | None = None

    @property
    def taps(self) -> int:
        """Positions of the kernel."""
        return self.side * (self.side if self.side_width is None else self.side_width) * self.span

    @property
    def parameters(self) -> int:
        """Weights and bias of all `repeat` of them."""
        one = self.in_channels // self.groups * self.out_channels * self.taps
        return self.repeat * (one + (self.out_channels if self.bias else 0))

    @property
    def output_elements(self) -> float:
        """Elements one of them writes for one input."""
        return self.out_channels * self.height * self.width * self.depth


class Mix(NamedTuple):
    """`repeat` attentions of `queries` tokens to `keys` tokens, all of them (not causal)."""

    name: str
    heads: int
    head_dim: int
    queries: float
    keys: float
    repeat: int = 1

    @property
    def parameters(self) -> int:
        """None: the projections around it are layers of their own."""
        return 0

    @property
    def output_elements(self) -> float:
        """Elements one of them writes for one input."""
        return self.queries * self.heads * self.head_dim


class Pointwise(NamedTuple):
    """`repeat` norms, activations, sums, look-ups: `vectors` parameters and `elements` passed over for one input."""

    name: str
    vectors: int
    elements: float
    repeat: int = 1

    @property
    def parameters(self) -> int:
        """Scales, shifts, tables of all `repeat` of them."""
        return self.repeat * self.vectors

    @property
    def output_elements(self) -> float:
        """Elements one of them writes for one input."""
        return self.elements


Layer = Linear | Conv | Mix | Pointwise


@dataclass(frozen=True)
class Network:
    """One network of a model: its layers in order, and how many elements of earlier layers it holds on to meanwhile.

    `held_elements` are what skip connections keep alive at the worst moment, for one input; `tokens` the tokens it
    hands on for one input (0: none, as an image).
    """

    name: str
    layers: tuple[Layer, ...]
    held_elements: float = 0.0
    tokens: int = 0

    @cached_property
    def parameters(self) -> int:
        """All parameters; equals the published class on the meta device to the last one."""
        return sum(layer.parameters for layer in self.layers)

    @cached_property
    def peak_elements(self) -> float:
        """Most activation elements alive at once for one input: the widest layer's input and output, and what is held.

        Inputs are taken to be the outputs of the layer before.
        """
        outputs = [layer.output_elements for layer in self.layers]
        pairs = (a + b for a, b in zip([0.0, *outputs], outputs, strict=False))
        return max(pairs, default=0.0) + self.held_elements

    def weight_bytes(self, format_: WeightFormat, wide_bytes: float = 2.0) -> float:
        """Bytes of all weights: narrow formats narrow the linear layers, everything else keeps `wide_bytes` each."""
        total = 0.0
        for layer in self.layers:
            narrow = isinstance(layer, Linear) and layer.narrowed
            width = format_.bytes_per_weight if narrow or format_.bits_per_weight >= 16 else wide_bytes
            total += layer.parameters * width
        return total


@dataclass(frozen=True)
class Pipeline:
    """A model of several networks that run one after another, some of them many times for one result.

    `passes` says how often each network runs for one result (denoising steps times guidance for a denoiser).
    """

    name: str
    family: str
    networks: tuple[Network, ...]
    passes: Mapping[str, int]
    native: WeightFormat
    result: str = "input"
    origin: str = "bundled"

    @cached_property
    def parameters(self) -> int:
        """Parameters of all networks."""
        return sum(network.parameters for network in self.networks)
