"""The check before a time counts: outputs are poisoned, the kernel runs, and what it wrote is held to float64.

`python -m roofplan.kernels.check DEVICE [MODULE ...]` checks the small and the quick calibration shapes of kernels.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from ..simulator.operators import Table
from . import registry
from .microkernel import Microkernel
from .tables import cases

if TYPE_CHECKING:
    from torch import Tensor


TRUNCATION = 2.0**-8  # more than rounding: the interpreter cuts fp32 to bf16 off (a test notices when that ends)


class Check(NamedTuple):
    """Largest error of any output by the measure of `Microkernel.tolerance`; infinite where one was not written."""

    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the kernel may be timed."""
        return self.error <= self.tolerance


def verify(kernel: Microkernel[Any, Any], case: Table, device: str, seed: int = 0) -> Check:
    """Run one case on fresh random inputs with poisoned outputs and compare with the float64 reference."""
    import torch

    from .data import interpreted

    (inputs,) = kernel.inputs(case, device, seed)
    poison(kernel.outputs(inputs))
    expected = kernel.reference(inputs)
    written = kernel.run(inputs)
    errors = [deviation(got, wanted) for got, wanted in zip(written, expected, strict=True)]
    truncated = interpreted() and any(tensor.dtype == torch.bfloat16 for tensor in written)
    return Check(max(errors), kernel.tolerance + (TRUNCATION if truncated else 0.0))


def poison(tensors: tuple[Tensor, ...]) -> None:
    """Fill with what no kernel writes: NaN, or the smallest integer there is."""
    import torch

    for tensor in tensors:
        if tensor.dtype.is_floating_point:
            tensor.fill_(float("nan"))
        else:
            tensor.fill_(torch.iinfo(tensor.dtype).min)


def deviation(got: Tensor, wanted: Tensor) -> float:
    """max |got - wanted| / (|wanted| + rms(wanted)); infinite where an element is not finite."""
    import torch

    if got.shape != wanted.shape:
        raise ValueError(f"output of shape {tuple(got.shape)} where the reference has {tuple(wanted.shape)}")
    if wanted.numel() == 0:
        return 0.0
    exact = got.to(torch.float64)
    if not bool(torch.isfinite(exact).all()):
        return float("inf")
    scale = wanted.abs() + wanted.square().mean().sqrt()
    return float(((exact - wanted).abs() / scale.clamp_min(torch.finfo(torch.float64).tiny)).max())


def main() -> int:
    """Check kernels on a device, a line a case; 1 if any failed."""
    device, modules = sys.argv[1], sys.argv[2:] or registry.ALL
    failed = 0
    for kernel in (k for module in modules for k in registry.load(module)):
        tables = [(kernel.miniature(), kernel.miniature().small())]
        if device != "cpu":
            tables.append((kernel, kernel.calibration(quick=True)))
        for checked, table in tables:
            for case in cases(table):
                found = verify(checked, case, device)
                failed += not found.passed
                word = "ok" if found.passed else "FAILED"
                print(
                    f"{word:6} {found.error:.1e} of {found.tolerance:.1e}  {checked.name}: {case.label[0]}", flush=True
                )
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
