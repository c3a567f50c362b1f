"""Residual add and root-mean-square norm in one pass over rows of `width` elements.

    r' = x + r,   y = r' / sqrt(mean(r'^2) + eps) * w

Bytes of a row: x and r in, r' and y out, 2 each an element; w once. Zhang and Sennrich, arXiv 1910.07467.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from ..simulator.operators import Elementwise
from .data import Source, power_of_two
from .elementwise import RowKernel, Traffic
from .microkernel import Call, Microkernel

EPSILON = 1e-5


class NormInputs(NamedTuple):
    """Two addends (rows, width) and the weight (width); their sum and the normed sum."""

    x: Tensor
    residual: Tensor
    weight: Tensor
    total: Tensor
    normed: Tensor


@triton.jit
def _add_rms_norm(x, residual, weight, total, normed, epsilon, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    offsets = tl.program_id(0).to(tl.int64) * WIDTH + columns
    added = tl.load(x + offsets, inside, 0.0).to(tl.float32) + tl.load(residual + offsets, inside, 0.0).to(tl.float32)
    tl.store(total + offsets, added.to(total.dtype.element_ty), inside)
    scale = tl.rsqrt(tl.sum(added * added, 0) / WIDTH + epsilon)
    scaled = added * scale * tl.load(weight + columns, inside, 0.0).to(tl.float32)
    tl.store(normed + offsets, scaled.to(normed.dtype.element_ty), inside)


@dataclass(frozen=True)
class AddRmsNorm(RowKernel[NormInputs]):
    """Rows of one width, one program each."""

    width: int
    tolerance = 5e-3  # one rounding to bf16 is at most 2^-8 of the value; the norm sees the sum before it is rounded

    @property
    def variant(self) -> str:
        """Name and width."""
        return f"add-rms-norm {self.width}"

    @property
    def traffic(self) -> Traffic:
        """Bytes of a row, and the weight."""
        return Traffic(4 * self.width, 4 * self.width, fixed_read=2 * self.width)

    def make(self, case: Elementwise, device: str, seed: int) -> NormInputs:
        """Normal random numbers."""
        shape, source = (self.rows(case), self.width), Source(device, seed)
        x, residual, weight = source.normal(*shape), source.normal(*shape), source.normal(self.width)
        return NormInputs(x, residual, weight, source.empty(*shape), source.empty(*shape))

    def calls(self, inputs: NormInputs, capability: int) -> tuple[Call, ...]:
        """One program a row."""
        constants = {"WIDTH": self.width, "BLOCK": power_of_two(self.width)}
        arguments = inputs._asdict() | {"epsilon": EPSILON}
        warps = min(16, max(4, power_of_two(self.width) // 1024))
        return (Call(_add_rms_norm, (len(inputs.x),), arguments, constants, warps=warps),)

    def outputs(self, inputs: NormInputs) -> tuple[Tensor, ...]:
        """The sum and the normed sum."""
        return inputs.total, inputs.normed

    def reference(self, inputs: NormInputs) -> tuple[Tensor, ...]:
        """In float64."""
        total = inputs.x.double() + inputs.residual.double()
        scale = (total.square().mean(1, keepdim=True) + EPSILON).rsqrt()
        return total, total * scale * inputs.weight.double()

    def library(self, inputs: NormInputs) -> Tensor:
        """torch has no fused one: an add and `rms_norm`, which move 2 bytes an element more."""
        torch.add(inputs.x, inputs.residual, out=inputs.total)
        return functional.rms_norm(inputs.total, (self.width,), inputs.weight, EPSILON)


MICROKERNELS: tuple[Microkernel[Elementwise, NormInputs], ...] = (AddRmsNorm(4096), AddRmsNorm(5120))
