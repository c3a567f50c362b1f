"""Weights with a scale for each group of 128 along k, widened to bf16: rows of `k` elements.

    y = (q - 8) s  of four-bit weights (`packing.py`),   y = q s  of fp8 e4m3

Bytes of a row: k / 2 or k, and 2 k / 128 of scales in; 2 k out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..dtypes import DType
from ..simulator.operators import Elementwise
from .data import Source
from .elementwise import RowKernel, Traffic
from .microkernel import Call, Microkernel
from .packing import GROUP, NIBBLES, WORDS, unpack, widen

GROUPS = 16  # of one program
SCALE = 0.02


class DequantiseInputs(NamedTuple):
    """Stored weights, scales (rows, k / 128) and weights in bf16 (rows, k)."""

    stored: Tensor
    scales: Tensor
    out: Tensor


@triton.jit
def _dequantise(
    stored, scales, out, FOUR_BITS: tl.constexpr, GROUPS: tl.constexpr, WORDS: tl.constexpr, GROUP: tl.constexpr
):
    groups = tl.program_id(0).to(tl.int64) * GROUPS + tl.arange(0, GROUPS)
    scale = tl.load(scales + groups).to(tl.float32)[:, None]
    if FOUR_BITS:
        lanes = tl.arange(0, WORDS)
        words = tl.load(stored + groups[:, None] * WORDS + lanes[None, :])
        for nibble in tl.static_range(GROUP // WORDS):
            value = (((words >> (4 * nibble)) & 15) - 8).to(tl.float32) * scale
            offsets = groups[:, None] * GROUP + nibble * WORDS + lanes[None, :]
            tl.store(out + offsets, value.to(out.dtype.element_ty))
    else:
        offsets = groups[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
        value = tl.load(stored + offsets).to(tl.float32) * scale
        tl.store(out + offsets, value.to(out.dtype.element_ty))


@dataclass(frozen=True)
class Dequantise(RowKernel[DequantiseInputs]):
    """Rows of one width in one stored format."""

    stored: DType
    k: int = 4096
    tolerance = 5e-3  # one rounding to bf16 is at most 2^-8 of the value

    @property
    def variant(self) -> str:
        """Name and stored format."""
        return f"dequantise {self.stored}"

    @property
    def least_capability(self) -> int:
        """8.9 for fp8."""
        return 89 if self.stored is DType.FP8 else 80

    @property
    def traffic(self) -> Traffic:
        """Bytes of a row."""
        return Traffic(self.k * self.stored.bits // 8 + 2 * self.k // GROUP, 2 * self.k)

    def make(self, case: Elementwise, device: str, seed: int) -> DequantiseInputs:
        """Random bits, or normal numbers rounded to fp8; positive scales."""
        rows, source = self.rows(case), Source(device, seed)
        if self.stored is DType.INT4:
            stored = source.integers(rows, self.k // NIBBLES, low=-(2**31), high=2**31)
        else:
            stored = source.normal(rows, self.k, dtype=torch.float8_e4m3fn)
        scales = source.uniform(rows, self.k // GROUP, low=SCALE / 2, high=SCALE)
        return DequantiseInputs(stored, scales, source.empty(rows, self.k))

    def calls(self, inputs: DequantiseInputs, capability: int) -> tuple[Call, ...]:
        """Programs of `GROUPS` groups."""
        constants = {"FOUR_BITS": self.stored is DType.INT4, "GROUPS": GROUPS, "WORDS": WORDS, "GROUP": GROUP}
        grid = (inputs.scales.numel() // GROUPS,)
        return (Call(_dequantise, grid, inputs._asdict(), constants),)

    def outputs(self, inputs: DequantiseInputs) -> tuple[Tensor, ...]:
        """The widened weights."""
        return (inputs.out,)

    def reference(self, inputs: DequantiseInputs) -> tuple[Tensor, ...]:
        """In float64."""
        return ((unpack if self.stored is DType.INT4 else widen)(inputs.stored, inputs.scales),)


MICROKERNELS: tuple[Microkernel[Elementwise, DequantiseInputs], ...] = (Dequantise(DType.INT4), Dequantise(DType.FP8))
