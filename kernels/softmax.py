"""Softmax over rows of `width` elements, each read once and held in registers.

    y_i = exp(x_i - max x) / sum_j exp(x_j - max x)

Bytes of a row: 2 in and 2 out an element.
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


class SoftmaxInputs(NamedTuple):
    """Logits and probabilities (rows, width)."""

    x: Tensor
    out: Tensor


@triton.jit
def _softmax(x, out, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    offsets = tl.program_id(0).to(tl.int64) * WIDTH + columns
    logits = tl.load(x + offsets, inside, -float("inf")).to(tl.float32)
    exponentials = tl.exp(logits - tl.max(logits, 0))
    tl.store(out + offsets, (exponentials / tl.sum(exponentials, 0)).to(out.dtype.element_ty), inside)


@dataclass(frozen=True)
class Softmax(RowKernel[SoftmaxInputs]):
    """Rows of one width, one program each."""

    width: int
    tolerance = 5e-3  # one rounding to bf16 is at most 2^-8 of the value

    @property
    def variant(self) -> str:
        """Name and width."""
        return f"softmax {self.width}"

    @property
    def traffic(self) -> Traffic:
        """Bytes of a row."""
        return Traffic(2 * self.width, 2 * self.width)

    def make(self, case: Elementwise, device: str, seed: int) -> SoftmaxInputs:
        """Normal random logits."""
        shape, source = (self.rows(case), self.width), Source(device, seed)
        return SoftmaxInputs(source.normal(*shape), source.empty(*shape))

    def calls(self, inputs: SoftmaxInputs, capability: int) -> tuple[Call, ...]:
        """One program a row."""
        block = power_of_two(self.width)
        constants, warps = {"WIDTH": self.width, "BLOCK": block}, min(16, max(4, block // 1024))
        return (Call(_softmax, (len(inputs.x),), inputs._asdict(), constants, warps=warps),)

    def outputs(self, inputs: SoftmaxInputs) -> tuple[Tensor, ...]:
        """The probabilities."""
        return (inputs.out,)

    def reference(self, inputs: SoftmaxInputs) -> tuple[Tensor, ...]:
        """In float64."""
        return (torch.softmax(inputs.x.double(), 1),)

    def library(self, inputs: SoftmaxInputs) -> Tensor:
        """torch's softmax."""
        return torch.softmax(inputs.x, 1)


MICROKERNELS: tuple[Microkernel[Elementwise, SoftmaxInputs], ...] = (Softmax(2048), Softmax(20000))
