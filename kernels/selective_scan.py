"""The selective scan of Mamba over a sequence, one state of `STATE` numbers a channel kept in registers.

    h_t = exp(d_t A) h_{t-1} + d_t B_t x_t,   y_t = C_t . h_t + D x_t

Bytes of a sequence of L tokens: 4 in (x, d) and 2 out a token and channel, 4 N a token (B, C); A and D once, in fp32.
Gu and Dao, arXiv 2312.00752. Time is sequential: a launch takes the longer of L steps and its bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..dtypes import DType
from ..simulator.operators import Elementwise, Kernel, KernelName
from .data import Source
from .elementwise import RowKernel, Traffic
from .microkernel import Call, Microkernel
from .tables import CALIBRATION, HELD_OUT, SMALL

STATE = 16
BLOCK = 32  # channels of a program


class ScanInputs(NamedTuple):
    """Inputs and steps (sequences, L, channels), B and C (sequences, L, N), A (channels, N), D (channels); outputs."""

    x: Tensor
    delta: Tensor
    a: Tensor
    b: Tensor
    c: Tensor
    d: Tensor
    out: Tensor


@triton.jit
def _step(h, x, delta, a, b, c):
    h = tl.exp(delta[:, None] * a) * h + (delta * x)[:, None] * b[None, :]
    return h, tl.sum(h * c[None, :], 1)


@triton.jit
def _scan(
    x,
    delta,
    a,
    b,
    c,
    d,
    out,
    LENGTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    STATE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    channels = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    states = tl.arange(0, STATE)
    sequence = tl.program_id(1).to(tl.int64)
    decay = tl.load(a + channels[:, None] * STATE + states[None, :])
    skip = tl.load(d + channels)
    wide, narrow = sequence * LENGTH * CHANNELS + channels, sequence * LENGTH * STATE + states
    h = tl.zeros((BLOCK, STATE), tl.float32)
    for step in range(0, LENGTH, 4):  # the loads of four steps are in flight together
        at, to = wide + step * CHANNELS, narrow + step * STATE
        x_0, x_1 = tl.load(x + at).to(tl.float32), tl.load(x + at + CHANNELS).to(tl.float32)
        x_2, x_3 = tl.load(x + at + 2 * CHANNELS).to(tl.float32), tl.load(x + at + 3 * CHANNELS).to(tl.float32)
        d_0, d_1 = tl.load(delta + at).to(tl.float32), tl.load(delta + at + CHANNELS).to(tl.float32)
        d_2, d_3 = tl.load(delta + at + 2 * CHANNELS).to(tl.float32), tl.load(delta + at + 3 * CHANNELS).to(tl.float32)
        b_0, b_1 = tl.load(b + to).to(tl.float32), tl.load(b + to + STATE).to(tl.float32)
        b_2, b_3 = tl.load(b + to + 2 * STATE).to(tl.float32), tl.load(b + to + 3 * STATE).to(tl.float32)
        c_0, c_1 = tl.load(c + to).to(tl.float32), tl.load(c + to + STATE).to(tl.float32)
        c_2, c_3 = tl.load(c + to + 2 * STATE).to(tl.float32), tl.load(c + to + 3 * STATE).to(tl.float32)
        h, y_0 = _step(h, x_0, d_0, decay, b_0, c_0)
        h, y_1 = _step(h, x_1, d_1, decay, b_1, c_1)
        h, y_2 = _step(h, x_2, d_2, decay, b_2, c_2)
        h, y_3 = _step(h, x_3, d_3, decay, b_3, c_3)
        tl.store(out + at, (y_0 + skip * x_0).to(out.dtype.element_ty))
        tl.store(out + at + CHANNELS, (y_1 + skip * x_1).to(out.dtype.element_ty))
        tl.store(out + at + 2 * CHANNELS, (y_2 + skip * x_2).to(out.dtype.element_ty))
        tl.store(out + at + 3 * CHANNELS, (y_3 + skip * x_3).to(out.dtype.element_ty))


@dataclass(frozen=True)
class SelectiveScan(RowKernel[ScanInputs]):
    """A row is one sequence."""

    length: int = 2048
    channels: int = 4096
    tolerance = 5e-3  # one rounding to bf16 is at most 2^-8 of the value

    @property
    def identity(self) -> Kernel:
        """A scan, in bf16."""
        return Kernel(KernelName.SCAN, DType.BF16)

    @property
    def variant(self) -> str:
        """Length and channels."""
        return f"selective {self.length}x{self.channels}"

    @property
    def traffic(self) -> Traffic:
        """Bytes of a sequence, and A and D."""
        read = self.length * (4 * self.channels + 4 * STATE)
        return Traffic(read, 2 * self.length * self.channels, fixed_read=4 * self.channels * (STATE + 1))

    def calibration(self, quick: bool) -> Elementwise:
        """One sequence to dozens."""
        return self.rows_table([1, 4, 16] if quick else [1, 2, 3, 4, 6, 8, 12, 16, 24, 32], CALIBRATION)

    def held_out(self) -> Elementwise:
        """Numbers of sequences between."""
        return self.rows_table([5, 7, 10, 20], HELD_OUT)

    def miniature(self) -> Self:
        """32 tokens of 64 channels."""
        return replace(self, length=32, channels=64)

    def small(self) -> Elementwise:
        """Two sequences."""
        return self.rows_table([2], SMALL)

    def make(self, case: Elementwise, device: str, seed: int) -> ScanInputs:
        """Normal inputs, positive steps, decays between 1 and `STATE` as Mamba begins with."""
        rows, source = self.rows(case), Source(device, seed)
        wide, narrow = (rows, self.length, self.channels), (rows, self.length, STATE)
        x, delta = source.normal(*wide), source.uniform(*wide, low=0.001, high=0.1)
        a = source.uniform(self.channels, STATE, low=-float(STATE), high=-1.0, dtype=torch.float32)
        b, c = source.normal(*narrow), source.normal(*narrow)
        d = source.normal(self.channels, dtype=torch.float32)
        return ScanInputs(x, delta, a, b, c, d, source.empty(*wide))

    def calls(self, inputs: ScanInputs, capability: int) -> tuple[Call, ...]:
        """One program for each block of channels of each sequence."""
        constants = {"LENGTH": self.length, "CHANNELS": self.channels, "STATE": STATE, "BLOCK": BLOCK}
        grid = (self.channels // BLOCK, len(inputs.x))
        return (Call(_scan, grid, inputs._asdict(), constants, warps=1),)

    def outputs(self, inputs: ScanInputs) -> tuple[Tensor, ...]:
        """The outputs."""
        return (inputs.out,)

    def reference(self, inputs: ScanInputs) -> tuple[Tensor, ...]:
        """In float64, step by step."""
        x, delta, a, b, c, d, _ = (tensor.double() for tensor in inputs)
        h = torch.zeros(len(x), self.channels, STATE, dtype=torch.float64, device=x.device)
        steps = []
        for t in range(self.length):
            h = (delta[:, t, :, None] * a).exp() * h + (delta[:, t] * x[:, t])[..., None] * b[:, t, None]
            steps.append((h * c[:, t, None]).sum(2) + d * x[:, t])
        return (torch.stack(steps, 1),)


MICROKERNELS: tuple[Microkernel[Elementwise, ScanInputs], ...] = (SelectiveScan(),)
