"""Cross-entropy of each row of logits over a large vocabulary, read once in chunks that fit a program's registers.

    loss = log sum_j exp(x_j) - x_t,   the maximum and the sum carried from chunk to chunk

Bytes of a row: 2 an element and 4 for the target in, 4 out. Online softmax: Milakov and Gimelshein, arXiv 1805.02867.
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
from .data import Source
from .elementwise import RowKernel, Traffic
from .microkernel import Call, Microkernel

CHUNK = 8192


class EntropyInputs(NamedTuple):
    """Logits (rows, vocabulary), targets (rows) and losses (rows)."""

    logits: Tensor
    target: Tensor
    loss: Tensor


@triton.jit
def _cross_entropy(logits, target, loss, VOCABULARY: tl.constexpr, CHUNK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    start = logits + row * VOCABULARY
    # A maximum and a sum of each lane of a chunk: they meet once, behind the loop.
    largest = tl.full((CHUNK,), -1e30, tl.float32)
    total = tl.zeros((CHUNK,), tl.float32)
    for first in range(0, VOCABULARY, CHUNK):
        columns = first + tl.arange(0, CHUNK)
        x = tl.load(start + columns, columns < VOCABULARY, -float("inf")).to(tl.float32)
        above = tl.maximum(largest, x)
        total = total * tl.exp(largest - above) + tl.exp(x - above)
        largest = above
    top = tl.max(largest, 0)
    log_total = tl.log(tl.sum(total * tl.exp(largest - top), 0)) + top
    tl.store(loss + row, log_total - tl.load(start + tl.load(target + row)).to(tl.float32))


@dataclass(frozen=True)
class CrossEntropy(RowKernel[EntropyInputs]):
    """Rows over one vocabulary, one program each."""

    vocabulary: int
    tolerance = 1e-4  # in fp32 throughout

    @property
    def variant(self) -> str:
        """Name and vocabulary."""
        return f"cross-entropy {self.vocabulary}"

    @property
    def traffic(self) -> Traffic:
        """Bytes of a row."""
        return Traffic(2 * self.vocabulary + 4, 4)

    def make(self, case: Elementwise, device: str, seed: int) -> EntropyInputs:
        """Normal logits, uniform targets."""
        rows, source = self.rows(case), Source(device, seed)
        target = source.integers(rows, low=0, high=self.vocabulary)
        return EntropyInputs(source.normal(rows, self.vocabulary), target, source.empty(rows, dtype=torch.float32))

    def calls(self, inputs: EntropyInputs, capability: int) -> tuple[Call, ...]:
        """One program a row."""
        constants = {"VOCABULARY": self.vocabulary, "CHUNK": CHUNK}
        return (Call(_cross_entropy, (len(inputs.loss),), inputs._asdict(), constants, warps=16),)

    def outputs(self, inputs: EntropyInputs) -> tuple[Tensor, ...]:
        """The losses."""
        return (inputs.loss,)

    def reference(self, inputs: EntropyInputs) -> tuple[Tensor, ...]:
        """In float64."""
        return (functional.cross_entropy(inputs.logits.double(), inputs.target.long(), reduction="none"),)


MICROKERNELS: tuple[Microkernel[Elementwise, EntropyInputs], ...] = (CrossEntropy(128256),)
