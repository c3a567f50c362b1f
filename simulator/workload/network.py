"""Networks that run as one pass: encoders, vision towers, denoisers, autoencoders; a list of layers with their sizes.

A language model's decoder is a `Model` (it keeps state between steps); everything that takes an input and gives an
output in one pass is a `Network`. Sizes are those of one input (an image, a clip of sound, a sequence); a batch
multiplies them. A layer of size 0 is loaded but does not run: the encoder half of an autoencoder that only decodes.

Every layer may state `held` elements: what other layers need later and therefore stays alive while it runs, beside
its own input and output.
"""

from __future__ import annotations

from collections.abc import Iterable
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
    held: float = 0.0

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
    held: float = 0.0

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
    """`repeat` attentions of `queries` tokens, each of which sees `keys` tokens: all of them, or those of its window.

    Not causal; what a causal mask saves of the few tokens a text encoder reads is left out.
    """

    name: str
    heads: int
    head_dim: int
    queries: float
    keys: float
    repeat: int = 1
    held: float = 0.0

    @property
    def parameters(self) -> int:
        """None: the projections around it are layers of their own."""
        return 0

    @property
    def output_elements(self) -> float:
        """Elements one of them writes for one input."""
        return self.queries * self.heads * self.head_dim


class Pointwise(NamedTuple):
    """`repeat` norms, activations, sums, look-ups: `vectors` parameters and `elements` passed over for one input.

    It writes `elements` and reads `inputs` times as many (a sum of two tensors reads both).
    """

    name: str
    vectors: int
    elements: float
    repeat: int = 1
    inputs: int = 1
    held: float = 0.0

    @property
    def parameters(self) -> int:
        """Scales, shifts, tables of all `repeat` of them."""
        return self.repeat * self.vectors

    @property
    def output_elements(self) -> float:
        """Elements one of them writes for one input."""
        return self.elements


Layer = Linear | Conv | Mix | Pointwise


def holding(elements: float, layers: Iterable[Layer]) -> tuple[Layer, ...]:
    """The layers with so many more elements kept alive while each of them runs (a residual, a skip connection)."""
    return tuple(layer._replace(held=layer.held + elements) for layer in layers)


def repeated(times: int, layers: Iterable[Layer]) -> tuple[Layer, ...]:
    """A block of layers that stands `times` times in a row, written down once."""
    return tuple(layer._replace(repeat=layer.repeat * times) for layer in layers)


def unused(layers: Iterable[Layer]) -> tuple[Layer, ...]:
    """Layers that are loaded with the rest of a network but do not run."""
    return tuple(_at_rest(layer)._replace(held=0.0) for layer in layers)


def _at_rest(layer: Layer) -> Layer:
    match layer:
        case Linear():
            return layer._replace(tokens=0.0)
        case Conv():
            return layer._replace(height=0.0, width=0.0)
        case Mix():
            return layer._replace(queries=0.0)
        case Pointwise():
            return layer._replace(elements=0.0)


@dataclass(frozen=True)
class Network:
    """One network of a model: its layers in order.

    `held_elements` stay alive beside what single layers hold, for one input; `tokens` are the tokens it hands on for
    one input (0: none, as an image). `again` are layers that run too, with weights `layers` count already: the later
    chunks of a video. `buffers` are elements kept with the weights that are no parameters (tables).
    """

    name: str
    layers: tuple[Layer, ...]
    held_elements: float = 0.0
    tokens: int = 0
    again: tuple[Layer, ...] = ()
    buffers: int = 0

    @property
    def running(self) -> tuple[Layer, ...]:
        """All layers that run in one pass."""
        return self.layers + self.again

    @cached_property
    def parameters(self) -> int:
        """All parameters; equals the published class on the meta device to the last one."""
        return sum(layer.parameters for layer in self.layers)

    @cached_property
    def peak_elements(self) -> float:
        """Most activation elements alive at once for one input: a layer's input and output, and what is held meanwhile.

        Inputs are taken to be the outputs of the layer before.
        """
        outputs = [layer.output_elements for layer in self.running]
        pairs = zip([0.0, *outputs], outputs, self.running, strict=False)
        return max((a + b + layer.held for a, b, layer in pairs), default=0.0) + self.held_elements

    def weight_bytes(self, format_: WeightFormat, wide_bytes: float = 2.0) -> float:
        """Bytes of all weights: narrow formats narrow the linear layers, everything else keeps `wide_bytes` each."""
        total = self.buffers * wide_bytes
        for layer in self.layers:
            narrow = isinstance(layer, Linear) and layer.narrowed
            width = format_.bytes_per_weight if narrow or format_.bits_per_weight >= 16 else wide_bytes
            total += layer.parameters * width
        return total


class Stage(NamedTuple):
    """A network of a pipeline: how often it runs for one result, and with how many inputs of that result at once.

    A denoiser runs once a step, or twice where guidance takes a second pass; where guidance doubles the batch it has
    two `inputs`. A `wide` network is kept and runs in fp32 whatever format the others have.
    """

    network: Network
    passes: int = 1
    inputs: int = 1
    wide: bool = False


@dataclass(frozen=True)
class Pipeline:
    """A model of networks that run one after another, some of them many times for one result.

    `result` is what comes out (an image, a clip, an answer for one sequence), `size` how large it is, in words;
    `warnings` what an asker must know of how it was read.
    """

    name: str
    family: str
    stages: tuple[Stage, ...]
    native: WeightFormat
    result: str = "input"
    size: str = ""
    origin: str = "bundled"
    warnings: tuple[str, ...] = ()

    @property
    def networks(self) -> tuple[Network, ...]:
        """The networks in the order they run."""
        return tuple(stage.network for stage in self.stages)

    @cached_property
    def parameters(self) -> int:
        """Parameters of all networks."""
        return sum(network.parameters for network in self.networks)
