"""What networks of one pass are built from: attention with its projections, feed-forwards, residual blocks.

Each function gives layers in the order eager PyTorch runs them, with what is alive meanwhile: an argument stays until
its function returns, so a normed input lives through the attention it feeds.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from ....errors import InputError
from ..network import Layer, Linear, Mix, Pointwise, holding


class Canvas(NamedTuple):
    """What a denoiser works on: latents of `height` x `width` x `frames`, beside `tokens` of text.

    A latent pixel stands for `factor` pixels of a side; `uneven` is a size in pixels that is no multiple of it. Sizes
    that cannot be cut are told under `key`, in `file` where they were read in one.
    """

    height: int
    width: int
    frames: int = 1
    tokens: int = 0
    factor: int = 1
    uneven: str = ""
    key: str = "--size"
    file: str | None = None

    def cut(self, side: int, side_width: int | None = None) -> tuple[int, int]:
        """Rows and columns of patches of so many latent pixels a side."""
        across = side if side_width is None else side_width
        if self.uneven or self.height % side or self.width % across:
            size = self.uneven or f"{self.width * self.factor}x{self.height * self.factor}"
            problem = f"must be a multiple of {max(side, across) * self.factor}"
            raise InputError(problem, file=self.file, key=self.key, value=size)
        return self.height // side, self.width // across


def residual(elements: float, layers: Iterable[Layer], *, adds: bool = True) -> tuple[Layer, ...]:
    """A block whose input of `elements` stays alive behind its first layer, and is added to its result."""
    first, *rest = layers
    if adds:
        rest.append(Pointwise("add", 0, elements, inputs=2))
    return (first, *holding(elements, rest))


def attention(
    width: int,
    heads: int,
    head_dim: int,
    tokens: float,
    *,
    keys: float | None = None,
    context: int | None = None,
    limit: float | None = None,
    bias: bool = True,
    out_bias: bool = True,
    norms: int = 0,
    rotated: bool = False,
    key_bias: bool | None = None,
    name: str = "attention",
) -> tuple[Layer, ...]:
    """Projections, attention and output of `tokens` tokens, which see themselves or `keys` tokens of width `context`.

    `limit` are the keys one query sees where a window hides the others; `norms` parameters of norms of q and k, which
    `rotated` turns by their position. Keys have a bias where q and v have, unless `key_bias` says otherwise.
    """
    inner = heads * head_dim
    source, seen = width if context is None else context, tokens if keys is None else keys
    q, kv, normed = tokens * inner, seen * inner, tokens * width
    layers: list[Layer] = [
        Linear(f"{name} q", width, inner, tokens, bias),
        Linear(f"{name} k", source, inner, seen, bias if key_bias is None else key_bias, held=q),
        Linear(f"{name} v", source, inner, seen, bias, held=q),
    ]
    if norms:
        layers.append(Pointwise(f"{name} norm", norms, q + kv, held=q + kv))
    if rotated:
        layers += holding(q + 2 * kv, [*rotary(q, f"{name} q"), *rotary(kv, f"{name} k")])
    mixed = Mix(name, heads, head_dim, tokens, seen if limit is None else limit)
    output = Linear(f"{name} out", inner, width, tokens, out_bias, held=q + kv)
    return residual(normed, [*layers, mixed._replace(held=q + kv), output], adds=False)


class Streams(NamedTuple):
    """Image and text that one attention mixes: tokens of each, their width, and its heads."""

    tokens: int
    text: int
    width: int
    heads: int
    head_dim: int

    @property
    def all(self) -> int:
        """Tokens of both."""
        return self.tokens + self.text


def joint_attention(
    s: Streams, *, bias: bool = True, norms: int = 0, rotated: bool = True, text_out: bool = True
) -> tuple[Layer, ...]:
    """Attention of image and text with projections of their own over both together (MMDiT, arXiv 2403.03206).

    `norms` parameters of norms of q and k of both; the text's output is left out where nothing reads it.
    """
    inner = s.heads * s.head_dim
    image, text, whole = float(s.tokens * inner), float(s.text * inner), float(s.all * inner)
    layers: list[Layer] = [
        *(Linear(f"attention {x}", s.width, inner, s.tokens, bias, held=i * image) for i, x in enumerate("qkv")),
        *(
            Linear(f"text attention {x}", s.width, inner, s.text, bias, held=3 * image + i * text)
            for i, x in enumerate("qkv")
        ),
    ]
    if norms:
        layers.append(Pointwise("attention norm", norms, 2 * whole, held=whole))
    layers.append(Pointwise("join image and text", 0, 3 * whole, held=whole))
    if rotated:
        layers += holding(3 * whole + text, [*rotary(whole, "q"), *rotary(whole, "k")])
    layers.append(Mix("attention", s.heads, s.head_dim, s.all, s.all, held=2 * whole + 2 * text))
    layers.append(Linear("attention out", inner, s.width, s.tokens, bias, held=4 * whole + 2 * text))
    if text_out:
        layers.append(Linear("text attention out", inner, s.width, s.text, bias, held=4 * whole + 2 * text))
    return holding(s.all * s.width, layers)


def rotary(elements: float, name: str) -> tuple[Layer, ...]:
    """Turning q or k by its position as diffusers does it: a turned copy, both times their tables in fp32, the sum."""
    return (
        Pointwise(f"{name} turned", 0, elements),
        Pointwise(f"{name} cosines", 0, 2 * elements),
        Pointwise(f"{name} sines", 0, 2 * elements, held=3 * elements),
        Pointwise(f"{name} rotary sum", 0, 2 * elements, inputs=2, held=2 * elements),
        Pointwise(f"{name} rotated", 0, elements),
    )


def feed_forward(
    width: int,
    inner: int,
    tokens: float,
    *,
    out: int | None = None,
    bias: bool = True,
    out_bias: bool | None = None,
    gated: bool = False,
    name: str = "feed-forward",
) -> tuple[Layer, ...]:
    """Up, activation, down; a `gated` one makes gate and up as one product, whose halves live until multiplied."""
    passed, back = tokens * inner, bias if out_bias is None else out_bias
    up = Linear(f"{name} up", width, inner * (2 if gated else 1), tokens, bias)
    down = Linear(f"{name} down", inner, width if out is None else out, tokens, back)
    if not gated:
        layers: list[Layer] = [up, Pointwise(f"{name} activation", 0, passed), down]
    else:
        gate = Pointwise(f"{name} gate", 0, passed)
        layers = [up, gate, Pointwise(f"{name} product", 0, passed, inputs=2, held=2 * passed), down]
    return residual(tokens * width, layers, adds=False)


def norm(width: int, tokens: float, *, vectors: int = 2, name: str = "norm") -> Pointwise:
    """A norm over `tokens` vectors of `width`: a layer norm has two vectors, an RMS norm one."""
    return Pointwise(name, vectors * width, tokens * width)


def rms_norm_in_fp32(width: int, tokens: float, *, vectors: int = 1, name: str = "norm") -> tuple[Layer, ...]:
    """An RMS norm as diffusers computes it, operation by operation: an fp32 copy, its squares, the scaled result."""
    passed = float(tokens * width)
    return (
        Pointwise(f"{name} to fp32", 0, 2 * passed),
        Pointwise(f"{name} squares", 0, 2 * passed, held=passed),
        Pointwise(f"{name} scaling", 0, 2 * passed, held=passed),
        Pointwise(name, vectors * width, passed),
    )


def modulated(
    width: int, tokens: float, *, vectors: int = 0, fp32: bool = False, name: str = "norm"
) -> tuple[Layer, ...]:
    """A norm whose result the timestep scales and shifts (adaLN, arXiv 2212.09748); some do it in fp32."""
    passed = float(tokens * width * (2 if fp32 else 1))
    layers: list[Layer] = [
        Pointwise(name, vectors * width, passed),
        Pointwise(f"{name} scale", 0, passed),
        Pointwise(f"{name} shift", 0, passed),
    ]
    if fp32:
        source = tokens * width
        copied = (Pointwise(f"{name} to fp32", 0, passed), *layers, Pointwise(f"{name} from fp32", 0, passed / 2))
        return (copied[0], *holding(source, copied[1:]))
    return tuple(layers)


def gated(elements: float, layers: Iterable[Layer], *, name: str = "gate") -> tuple[Layer, ...]:
    """A residual block whose result the timestep scales before it is added."""
    return residual(elements, [*layers, Pointwise(name, 0, elements)])


def stacked(elements: float, *halves: Iterable[Layer]) -> tuple[Layer, ...]:
    """A block of residual halves: its caller keeps the block's input, and the block the result of the half before."""
    first, *rest = halves
    return (*first, *(layer for half in rest for layer in holding(2 * elements, half)))


def embedder(
    inputs: int, width: int, name: str, *, bias: bool = True, tokens: float = 1, inner: int | None = None
) -> tuple[Layer, ...]:
    """Two products with an activation between them, as timesteps and captions are embedded."""
    middle = width if inner is None else inner
    return (
        Linear(f"{name} embedding", inputs, middle, tokens, bias),
        Pointwise(f"{name} activation", 0, tokens * middle),
        Linear(f"{name} embedding out", middle, width, tokens, bias),
    )
