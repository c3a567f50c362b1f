"""Gated activation of a feed-forward: the gate and up halves of one row, multiplied.

    y = g / (1 + exp(-g)) u,   (g, u) the halves of a row of 2 `width`

Bytes of a row: 4 in and 2 out an element of y. Shazeer, arXiv 2002.05202.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from ..simulator.operators import Elementwise
from .data import Source, blocks
from .elementwise import RowKernel, Traffic
from .microkernel import Call, Microkernel

BLOCK = 2048


class SwigluInputs(NamedTuple):
    """Gate beside up (rows, 2 width), and the product (rows, width)."""

    x: Tensor
    out: Tensor


@triton.jit
def _swiglu(x, out, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < WIDTH
    gate = tl.load(x + row * 2 * WIDTH + columns, inside, 0.0).to(tl.float32)
    up = tl.load(x + row * 2 * WIDTH + WIDTH + columns, inside, 0.0).to(tl.float32)
    tl.store(out + row * WIDTH + columns, (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty), inside)


@dataclass(frozen=True)
class Swiglu(RowKernel[SwigluInputs]):
    """Rows of one width, a few programs each."""

    width: int
    tolerance = 5e-3  # one rounding to bf16 is at most 2^-8 of the value

    @property
    def variant(self) -> str:
        """Name and width."""
        return f"swiglu {self.width}"

    @property
    def traffic(self) -> Traffic:
        """Bytes of a row."""
        return Traffic(4 * self.width, 2 * self.width)

    def make(self, case: Elementwise, device: str, seed: int) -> SwigluInputs:
        """Normal random numbers."""
        rows, source = self.rows(case), Source(device, seed)
        return SwigluInputs(source.normal(rows, 2 * self.width), source.empty(rows, self.width))

    def calls(self, inputs: SwigluInputs, capability: int) -> tuple[Call, ...]:
        """Programs of `BLOCK` elements of a row."""
        grid = (len(inputs.out), blocks(self.width, BLOCK))
        return (Call(_swiglu, grid, inputs._asdict(), {"WIDTH": self.width, "BLOCK": BLOCK}),)

    def outputs(self, inputs: SwigluInputs) -> tuple[Tensor, ...]:
        """The product."""
        return (inputs.out,)

    def reference(self, inputs: SwigluInputs) -> tuple[Tensor, ...]:
        """In float64."""
        gate, up = inputs.x.double().chunk(2, 1)
        return (functional.silu(gate) * up,)


MICROKERNELS: tuple[Microkernel[Elementwise, SwigluInputs], ...] = (Swiglu(14336),)
