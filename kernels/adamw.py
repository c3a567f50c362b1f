"""One step of AdamW over parameters, gradients and both moments in fp32, in one pass.

    m' = b1 m + (1 - b1) g,  v' = b2 v + (1 - b2) g^2,
    p' = p (1 - lr decay) - lr (m' / c1) / (sqrt(v' / c2) + eps),  c = 1 - b^t

Bytes of a parameter: 16 in (p, g, m, v), 12 out. Loshchilov and Hutter, arXiv 1711.05101. It writes beside its inputs
instead of over them, so that every repetition sees the same numbers; the traffic is the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..dtypes import DType
from ..simulator.operators import Elementwise, Kernel, KernelName
from .data import Source
from .elementwise import RowKernel, Traffic
from .microkernel import Call, Microkernel

BLOCK = 2048
RATE, BETA_1, BETA_2, EPSILON, DECAY, STEP = 1e-3, 0.9, 0.95, 1e-8, 0.1, 10


class AdamInputs(NamedTuple):
    """Parameters, gradients and moments, and what becomes of them."""

    p: Tensor
    g: Tensor
    m: Tensor
    v: Tensor
    new_p: Tensor
    new_m: Tensor
    new_v: Tensor


@triton.jit
def _adamw(p, g, m, v, new_p, new_m, new_v, rate, beta_1, beta_2, epsilon, decay, c_1, c_2, BLOCK: tl.constexpr):
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    gradient = tl.load(g + offsets)
    first = beta_1 * tl.load(m + offsets) + (1 - beta_1) * gradient
    second = beta_2 * tl.load(v + offsets) + (1 - beta_2) * gradient * gradient
    step = rate * (first / c_1) / (tl.sqrt(second / c_2) + epsilon)
    tl.store(new_p + offsets, tl.load(p + offsets) * (1 - rate * decay) - step)
    tl.store(new_m + offsets, first)
    tl.store(new_v + offsets, second)


@dataclass(frozen=True)
class AdamW(RowKernel[AdamInputs]):
    """A row is one block of parameters, so that no program is masked."""

    tolerance = 1e-5  # in fp32 throughout

    @property
    def identity(self) -> Kernel:
        """Elementwise in fp32."""
        return Kernel(KernelName.ELEMENTWISE, DType.FP32)

    @property
    def variant(self) -> str:
        """The name."""
        return "adamw"

    @property
    def traffic(self) -> Traffic:
        """Bytes of a block."""
        return Traffic(16 * BLOCK, 12 * BLOCK)

    def make(self, case: Elementwise, device: str, seed: int) -> AdamInputs:
        """Normal random numbers; second moments are positive."""
        size, source = self.rows(case) * BLOCK, Source(device, seed)
        p, g, m = (source.normal(size, dtype=torch.float32) for _ in range(3))
        v = source.uniform(size, low=0.5, high=2.0, dtype=torch.float32)
        return AdamInputs(p, g, m, v, *(source.empty(size, dtype=torch.float32) for _ in range(3)))

    def calls(self, inputs: AdamInputs, capability: int) -> tuple[Call, ...]:
        """One program a block."""
        scalars = {
            "rate": RATE,
            "beta_1": BETA_1,
            "beta_2": BETA_2,
            "epsilon": EPSILON,
            "decay": DECAY,
            "c_1": 1 - BETA_1**STEP,
            "c_2": 1 - BETA_2**STEP,
        }
        return (Call(_adamw, (len(inputs.p) // BLOCK,), inputs._asdict() | scalars, {"BLOCK": BLOCK}),)

    def outputs(self, inputs: AdamInputs) -> tuple[Tensor, ...]:
        """Parameters and moments."""
        return inputs.new_p, inputs.new_m, inputs.new_v

    def reference(self, inputs: AdamInputs) -> tuple[Tensor, ...]:
        """In float64."""
        p, g, m, v = (t.double() for t in inputs[:4])
        first, second = BETA_1 * m + (1 - BETA_1) * g, BETA_2 * v + (1 - BETA_2) * g.square()
        step = RATE * (first / (1 - BETA_1**STEP)) / ((second / (1 - BETA_2**STEP)).sqrt() + EPSILON)
        return p * (1 - RATE * DECAY) - step, first, second


MICROKERNELS: tuple[Microkernel[Elementwise, AdamInputs], ...] = (AdamW(),)
