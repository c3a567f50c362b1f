"""Streaming through memory: read (a sum), copy, write and scale-add, the patterns whose bandwidths differ.

read       s_b = sum of block b of x           2 bytes in an element, 4 out a block
copy       y = x                               2 in, 2 out
write      y = c                               2 out
scale-add  y = a + c b                         4 in, 2 out
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..simulator.operators import Elementwise
from .data import Source
from .elementwise import MIB, RowKernel, Traffic
from .microkernel import Call, Microkernel
from .tables import CALIBRATION

BLOCK = 16384  # elements of one program: 64 of each of 256 threads, eight loads of 16 bytes in flight
SCALE = 1.5


class Pattern(StrEnum):
    """What is streamed where."""

    READ = "read"
    COPY = "copy"
    WRITE = "write"
    SCALE_ADD = "scale-add"


class StreamInputs(NamedTuple):
    """`a` and `b` are read where the pattern reads; `out` is written."""

    a: Tensor | None
    b: Tensor | None
    out: Tensor


@triton.jit
def _read(a, out, BLOCK: tl.constexpr):
    program = tl.program_id(0)
    offsets = program.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + program, tl.sum(tl.load(a + offsets).to(tl.float32), 0))


@triton.jit
def _copy(a, out, BLOCK: tl.constexpr):
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + offsets, tl.load(a + offsets))


@triton.jit
def _write(out, scale, BLOCK: tl.constexpr):
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + offsets, (tl.zeros((BLOCK,), tl.float32) + scale).to(out.dtype.element_ty))


@triton.jit
def _scale_add(a, b, out, scale, BLOCK: tl.constexpr):
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.load(a + offsets).to(tl.float32) + scale * tl.load(b + offsets).to(tl.float32)
    tl.store(out + offsets, total.to(out.dtype.element_ty))


@dataclass(frozen=True)
class Stream(RowKernel[StreamInputs]):
    """One pattern; a row is one block of elements, so that no program is masked."""

    pattern: Pattern
    tolerance = 5e-3  # one rounding to bf16 is at most 2^-8 of the value

    @property
    def variant(self) -> str:
        """The pattern."""
        return self.pattern

    @property
    def traffic(self) -> Traffic:
        """Bytes of a block."""
        match self.pattern:
            case Pattern.READ:
                return Traffic(2 * BLOCK, 4)
            case Pattern.COPY:
                return Traffic(2 * BLOCK, 2 * BLOCK)
            case Pattern.WRITE:
                return Traffic(0, 2 * BLOCK)
            case Pattern.SCALE_ADD:
                return Traffic(4 * BLOCK, 2 * BLOCK)

    def calibration(self, quick: bool) -> Elementwise:
        """1 MiB to 4 GiB; the full set has every power of two, and programs around the number of multiprocessors."""
        if quick:
            sizes = (MIB, 16 * MIB, 64 * MIB, 256 * MIB, 2048 * MIB)
            return self.rows_table(self.rows_of(sizes), CALIBRATION)
        programs = [1, 8, 33, 66, 99, 132, 133, 264]
        sizes = tuple(2**n for n in range(20, 33))
        return self.rows_table(sorted({*programs, *self.rows_of(sizes)}), CALIBRATION)

    def make(self, case: Elementwise, device: str, seed: int) -> StreamInputs:
        """Normal random numbers."""
        rows, source = self.rows(case), Source(device, seed)
        reads = {Pattern.WRITE: 0, Pattern.SCALE_ADD: 2}.get(self.pattern, 1)
        a = source.normal(rows * BLOCK) if reads > 0 else None
        b = source.normal(rows * BLOCK) if reads > 1 else None
        read = self.pattern is Pattern.READ
        out = source.empty(rows, dtype=torch.float32) if read else source.empty(rows * BLOCK)
        return StreamInputs(a, b, out)

    def calls(self, inputs: StreamInputs, capability: int) -> tuple[Call, ...]:
        """One program a block."""
        out, block = inputs.out, {"BLOCK": BLOCK}
        grid = (out.numel() if self.pattern is Pattern.READ else out.numel() // BLOCK,)
        match self.pattern:
            case Pattern.READ:
                return (Call(_read, grid, {"a": inputs.a, "out": out}, block, warps=8),)
            case Pattern.COPY:
                return (Call(_copy, grid, {"a": inputs.a, "out": out}, block, warps=8),)
            case Pattern.WRITE:
                return (Call(_write, grid, {"out": out, "scale": SCALE}, block, warps=8),)
            case Pattern.SCALE_ADD:
                arguments = {"a": inputs.a, "b": inputs.b, "out": out, "scale": SCALE}
                return (Call(_scale_add, grid, arguments, block, warps=8),)

    def outputs(self, inputs: StreamInputs) -> tuple[Tensor, ...]:
        """The stream written, or the sums."""
        return (inputs.out,)

    def reference(self, inputs: StreamInputs) -> tuple[Tensor, ...]:
        """In float64."""
        match self.pattern, inputs:
            case Pattern.READ, StreamInputs(Tensor() as a):
                return (a.double().view(-1, BLOCK).sum(1),)
            case Pattern.COPY, StreamInputs(Tensor() as a):
                return (a.double(),)
            case Pattern.SCALE_ADD, StreamInputs(Tensor() as a, Tensor() as b):
                return (a.double() + SCALE * b.double(),)
        return (torch.full_like(inputs.out, SCALE, dtype=torch.float64),)

    def library(self, inputs: StreamInputs) -> Tensor:
        """torch's copy, fill, sum and add."""
        match self.pattern, inputs:
            case Pattern.READ, StreamInputs(Tensor() as a):
                return a.sum(dtype=torch.float32)
            case Pattern.COPY, StreamInputs(Tensor() as a):
                return inputs.out.copy_(a)
            case Pattern.SCALE_ADD, StreamInputs(Tensor() as a, Tensor() as b):
                return torch.add(a, b, alpha=SCALE, out=inputs.out)
        return inputs.out.fill_(SCALE)


MICROKERNELS: tuple[Microkernel[Elementwise, StreamInputs], ...] = tuple(Stream(pattern) for pattern in Pattern)
