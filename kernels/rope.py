"""Rotary position embedding of all query and key heads of a token, halves rotated against each other.

    y_i = x_i cos_i - x_{i+d/2} sin_i,   y_{i+d/2} = x_{i+d/2} cos_i + x_i sin_i,   i < d/2

Bytes of a token: 2 in and 2 out an element of every head, 2 an element of a cosine and a sine of d / 2 each.
Su et al., arXiv 2104.09864, in the half-split order of Llama.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..simulator.operators import Elementwise
from .data import Source, power_of_two
from .elementwise import RowKernel, Traffic
from .microkernel import Call, Microkernel


class RopeInputs(NamedTuple):
    """Heads (tokens, heads, d), cosines and sines (tokens, d / 2), and the rotated heads."""

    x: Tensor
    cosine: Tensor
    sine: Tensor
    out: Tensor


@triton.jit
def _rope(x, cosine, sine, out, HEADS: tl.constexpr, BLOCK: tl.constexpr, HALF: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    heads, columns = tl.arange(0, BLOCK), tl.arange(0, HALF)
    cos = tl.load(cosine + token * HALF + columns).to(tl.float32)[None, :]
    sin = tl.load(sine + token * HALF + columns).to(tl.float32)[None, :]
    offsets = token * HEADS * 2 * HALF + heads[:, None] * 2 * HALF + columns[None, :]
    inside = heads[:, None] < HEADS
    low = tl.load(x + offsets, inside, 0.0).to(tl.float32)
    high = tl.load(x + offsets + HALF, inside, 0.0).to(tl.float32)
    tl.store(out + offsets, (low * cos - high * sin).to(out.dtype.element_ty), inside)
    tl.store(out + offsets + HALF, (high * cos + low * sin).to(out.dtype.element_ty), inside)


@dataclass(frozen=True)
class Rope(RowKernel[RopeInputs]):
    """Tokens with so many heads of a width, one program each."""

    heads: int
    head_dim: int
    tolerance = 5e-3  # one rounding to bf16 is at most 2^-8 of the value

    @property
    def variant(self) -> str:
        """Name and heads."""
        return f"rope {self.heads}x{self.head_dim}"

    @property
    def traffic(self) -> Traffic:
        """Bytes of a token."""
        wide = 2 * self.heads * self.head_dim
        return Traffic(wide + 2 * self.head_dim, wide)

    def make(self, case: Elementwise, device: str, seed: int) -> RopeInputs:
        """Normal heads, cosines and sines of random angles."""
        tokens, source = self.rows(case), Source(device, seed)
        shape = (tokens, self.heads, self.head_dim)
        angle = source.uniform(tokens, self.head_dim // 2, low=-3.14, high=3.14, dtype=torch.float32)
        cosine, sine = angle.cos().to(torch.bfloat16), angle.sin().to(torch.bfloat16)
        return RopeInputs(source.normal(*shape), cosine, sine, source.empty(*shape))

    def calls(self, inputs: RopeInputs, capability: int) -> tuple[Call, ...]:
        """One program a token."""
        constants = {"HEADS": self.heads, "BLOCK": power_of_two(self.heads), "HALF": self.head_dim // 2}
        return (Call(_rope, (len(inputs.x),), inputs._asdict(), constants),)

    def outputs(self, inputs: RopeInputs) -> tuple[Tensor, ...]:
        """The rotated heads."""
        return (inputs.out,)

    def reference(self, inputs: RopeInputs) -> tuple[Tensor, ...]:
        """In float64."""
        low, high = inputs.x.double().chunk(2, 2)
        cos, sin = inputs.cosine.double()[:, None], inputs.sine.double()[:, None]
        return (torch.cat((low * cos - high * sin, high * cos + low * sin), 2),)


MICROKERNELS: tuple[Microkernel[Elementwise, RopeInputs], ...] = (Rope(40, 128),)  # 32 query and 8 key heads
