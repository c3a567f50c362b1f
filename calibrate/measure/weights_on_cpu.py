"""Products of one row with narrower weights on a CPU: how much of the bandwidth torch reaches in each format."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ...dtypes import DType
from ...simulator.operators import Gemm, Kernel, KernelName, Table
from ..timer import Run
from .pool import Pool
from .subject import Subject, table
from .torch_ops import TorchSubject

FIT = ((1024, 1024), (2048, 2048), (4096, 2048), (2048, 4096), (4096, 4096), (8192, 1024))
HELD = ((1536, 1536), (3072, 2048), (2560, 4096))
ROTATED_BYTES = 2**27  # of weights in turn; more would take long to narrow
WIDTHS = {DType.BF16: 2.0, DType.INT8: 1.0}


@dataclass(frozen=True, eq=False)
class NarrowWeights(TorchSubject):
    """y = x W^T for one row, activations in bf16."""

    dtype: DType = DType.BF16

    @property
    def identity(self) -> Kernel:
        """A product in bf16, or one that widens 8-bit weights."""
        name = KernelName.GEMM if self.dtype is DType.BF16 else KernelName.GEMM_WEIGHT_ONLY
        return Kernel(name, self.dtype)

    @property
    def variant(self) -> str:
        """What torch calls it."""
        return "linear, one row" if self.dtype is DType.BF16 else "_weight_int8pack_mm, one row"

    def calibration(self, quick: bool) -> Gemm:
        """Layers of small models."""
        return self._table(FIT)

    def held_out(self, quick: bool) -> Gemm:
        """Others."""
        return self._table(HELD)

    def _table(self, shapes: tuple[tuple[int, int], ...]) -> Gemm:
        count = len(shapes)
        return table(
            Gemm,
            self.identity,
            m=[1.0] * count,
            n=[float(n) for n, _ in shapes],
            k=[float(k) for _, k in shapes],
            weight_bytes=[n * k * WIDTHS[self.dtype] for n, k in shapes],
            activation_bytes=[2.0] * count,
            output_bytes=[2.0] * count,
        )

    def launch(self, case: Table) -> Run:
        """As many copies of the weights as fill the room for them."""
        assert isinstance(case, Gemm)
        torch, n, k = self.torch, int(case.n[0]), int(case.k[0])
        copies = max(2, math.ceil(ROTATED_BYTES / float(case.weight_bytes[0])))
        x = self.pool.take(1, k).to(torch.bfloat16)
        if self.dtype is DType.BF16:
            wide = [self.pool.take(n, k).to(torch.bfloat16) for _ in range(copies)]
            linear = torch.nn.functional.linear
            return lambda i: linear(x, wide[i % copies])
        narrow = [(self.pool.take(n, k) * 127).to(torch.int8) for _ in range(copies)]
        scales = self.pool.take(n).to(torch.bfloat16)
        product = torch.ops.aten._weight_int8pack_mm
        return lambda i: product(x, narrow[i % copies], scales)


def subjects(torch: Any, pool: Pool) -> list[Subject]:
    """One for each format this torch has an operator for."""
    has_int8 = hasattr(torch.ops.aten, "_weight_int8pack_mm")
    return [NarrowWeights(torch, pool, dtype) for dtype in WIDTHS if dtype is not DType.INT8 or has_int8]
