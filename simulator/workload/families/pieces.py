"""What networks of one pass are built from: attention with its projections, feed-forwards, residual blocks.

Each function gives layers in the order eager PyTorch runs them, with what is alive meanwhile: an argument stays until
its function returns, so a normed input lives through the attention it feeds.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from ..network import Layer, Linear, Mix, Pointwise, holding


class Canvas(NamedTuple):
    """What a denoiser works on: latents of `height` x `width` x `frames`, beside `tokens` of text."""

    height: int
    width: int
    frames: int = 1
    tokens: int = 0


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
    name: str = "attention",
) -> tuple[Layer, ...]:
    """Projections, attention and output of `tokens` tokens, which see themselves or `keys` tokens of width `context`.

    `limit` are the keys one query sees where a window hides the others; `norms` parameters of norms of q and k.
    """
    inner = heads * head_dim
    source, seen = width if context is None else context, tokens if keys is None else keys
    q, kv, normed = tokens * inner, seen * inner, tokens * width
    projections: list[Layer] = [
        Linear(f"{name} q", width, inner, tokens, bias),
        Linear(f"{name} k", source, inner, seen, bias, held=q if keys is not None else 0.0),
        Linear(f"{name} v", source, inner, seen, bias, held=q),
    ]
    if norms:
        projections.append(Pointwise(f"{name} norm", norms, q + kv, held=q + kv))
    mixed = Mix(name, heads, head_dim, tokens, seen if limit is None else limit)
    output = Linear(f"{name} out", inner, width, tokens, out_bias, held=q + kv)
    return residual(normed, [*projections, mixed._replace(held=q + kv), output], adds=False)


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


def modulated(width: int, tokens: float, name: str = "norm", vectors: int = 0) -> tuple[Layer, ...]:
    """A norm whose result the timestep scales and shifts (adaLN, arXiv 2212.09748)."""
    passed = tokens * width
    return (Pointwise(name, vectors * width, passed), Pointwise(f"{name} modulation", 0, passed))


def embedder(inputs: int, width: int, name: str, *, bias: bool = True, tokens: float = 1) -> tuple[Layer, ...]:
    """Two products with an activation between them, as timesteps and captions are embedded."""
    return (
        Linear(f"{name} embedding", inputs, width, tokens, bias),
        Pointwise(f"{name} activation", 0, tokens * width),
        Linear(f"{name} embedding out", width, width, tokens, bias),
    )
