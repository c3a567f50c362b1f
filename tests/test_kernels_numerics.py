"""Every microkernel in Triton's interpreter against float64, outputs poisoned; and what the interpreter gets wrong."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

pytest.importorskip("triton", reason="Triton exists for Linux alone")

import torch
import triton
import triton.language as tl

from roofplan.kernels import check, registry
from roofplan.kernels.microkernel import Call, Microkernel
from roofplan.kernels.stream import Pattern, Stream, StreamInputs
from roofplan.kernels.tables import cases

KERNELS = [kernel.miniature() for kernel in registry.everything()]


@pytest.mark.parametrize("kernel", KERNELS, ids=[k.name.replace(" ", "-") for k in KERNELS])
def test_what_it_writes_is_the_reference(kernel: Microkernel[Any, Any]) -> None:
    for seed, case in enumerate(cases(kernel.small())):
        found = check.verify(kernel, case, "cpu", seed)
        assert found.passed, (case.label, found)
        assert found.error > 0 or kernel.variant in (Pattern.COPY, Pattern.WRITE), "compared with itself?"


@dataclasses.dataclass(frozen=True)
class Forgetful(Stream):
    """A copy whose last program is never started."""

    def calls(self, inputs: StreamInputs, capability: int) -> tuple[Call, ...]:
        (call,) = super().calls(inputs, capability)
        return (dataclasses.replace(call, grid=(call.grid[0] - 1,)),)


def test_an_element_left_unwritten_is_caught() -> None:
    honest, forgetful = Stream(Pattern.COPY), Forgetful(Pattern.COPY)
    case = cases(honest.small())[-1]
    assert check.verify(honest, case, "cpu").passed
    assert check.verify(forgetful, case, "cpu").error == float("inf")


def test_integers_are_poisoned_too() -> None:
    tensors = torch.zeros(3, dtype=torch.int32), torch.zeros(3)
    check.poison(tensors)
    assert (tensors[0] == -(2**31)).all() and tensors[1].isnan().all()


def test_deviation_is_relative_to_the_element_and_the_whole() -> None:
    wanted = torch.tensor([1.0, -7.0], dtype=torch.float64)
    got = torch.tensor([1.0, -6.0])
    assert check.deviation(got, wanted) == pytest.approx(1 / (7 + 5))
    assert check.deviation(torch.tensor([float("nan"), -7.0]), wanted) == float("inf")
    with pytest.raises(ValueError, match="shape"):
        check.deviation(torch.zeros(3), wanted)


def test_input_sets_differ_and_are_never_zero() -> None:
    for kernel in KERNELS:
        first, second = kernel.inputs(cases(kernel.small())[0], "cpu", 0, copies=2)
        written = {id(t) for sets in (first, second) for t in kernel.outputs(sets)}
        # What routing tables and targets hold may agree; matrices and streams must not.
        pairs = [
            (a, b)
            for a, b in zip(first, second, strict=True)
            if isinstance(a, torch.Tensor) and id(a) not in written and a.dtype.is_floating_point and a.numel() > 64
        ]
        for a, b in pairs:
            if a.dtype.itemsize == 1 or "partial" not in first._fields or a is not first.partial:
                assert float((a.double() != 0).double().mean()) > 0.9 or _scratch(kernel, first, a), kernel.name
                assert not torch.equal(a.double(), b.double()) or _scratch(kernel, first, a), kernel.name


def _scratch(kernel: Microkernel[Any, Any], inputs: Any, tensor: torch.Tensor) -> bool:
    """Partial results and unpoisoned intermediates, which hold whatever memory held."""
    names = {"partial", "weight", "gated", "expanded"}
    return any(value is tensor and name in names for name, value in inputs._asdict().items())


@triton.jit
def _dot(a, b, c):
    at = tl.arange(0, 16)[:, None] * 16 + tl.arange(0, 16)[None, :]
    tl.store(c + at, tl.dot(tl.load(a + at), tl.load(b + at)))


@triton.jit
def _narrow(a, c):
    at = tl.arange(0, 256)
    tl.store(c + at, tl.load(a + at).to(tl.bfloat16))


def test_bf16_products_are_still_wrong_in_the_interpreter() -> None:
    """When this fails, `UPCAST` and `data.interpreted` can go from the kernels."""
    a, b = (torch.randn(16, 16, generator=torch.Generator().manual_seed(s)).bfloat16() for s in (0, 1))
    c = torch.empty(16, 16)
    with np.errstate(all="ignore"):
        _dot[(1,)](a, b, c)
    assert check.deviation(c, a.double() @ b.double()) > 1


def test_fp32_is_still_cut_off_to_bf16_in_the_interpreter() -> None:
    """When this fails, `check.TRUNCATION` can go."""
    a, c = torch.rand(256, generator=torch.Generator().manual_seed(0)) + 1, torch.empty(256, dtype=torch.bfloat16)
    _narrow[(1,)](a, c)
    assert (c.float() <= a).all()
    assert not torch.equal(c, a.bfloat16())
