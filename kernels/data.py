"""Tensors of microkernels: random on a device, shapes alone on `meta`; and what a launch must know of its device."""

from __future__ import annotations

from functools import cache

import torch
import triton
from torch import Tensor

from ..dtypes import DType
from .microkernel import HOPPER

FP8_LARGEST = 448.0  # of e4m3
FORMATS = {
    DType.FP32: torch.float32,
    DType.BF16: torch.bfloat16,
    DType.FP16: torch.float16,
    DType.FP8: torch.float8_e4m3fn,
    DType.INT8: torch.int8,
}
H200_MULTIPROCESSORS = 132  # what grids are described for where there is no device


class Source:
    """Where the tensors of one input set come from."""

    def __init__(self, device: str, seed: int) -> None:
        self.device = device
        self.generator = None if device == "meta" else torch.Generator(device).manual_seed(seed)

    def empty(self, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        """A tensor nobody has written yet."""
        return torch.empty(shape, dtype=dtype, device=self.device)

    def normal(self, *shape: int, dtype: torch.dtype = torch.bfloat16, scale: float = 1.0) -> Tensor:
        """Normal random numbers; formats without a generator of their own are rounded from float16."""
        if self.device == "meta":
            return self.empty(*shape, dtype=dtype)
        drawn = torch.float16 if dtype.itemsize == 1 else dtype
        values = torch.empty(shape, dtype=drawn, device=self.device).normal_(0.0, scale, generator=self.generator)
        if dtype == torch.int8:
            return values.mul_(32.0).clamp_(-127, 127).to(dtype)
        return values if drawn == dtype else values.to(dtype)

    def uniform(self, *shape: int, low: float, high: float, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        """Uniform random numbers."""
        if self.device == "meta":
            return self.empty(*shape, dtype=dtype)
        return torch.empty(shape, dtype=dtype, device=self.device).uniform_(low, high, generator=self.generator)

    def integers(self, *shape: int, low: int, high: int, dtype: torch.dtype = torch.int32) -> Tensor:
        """Whole numbers from `low` up to but not including `high`."""
        if self.device == "meta":
            return self.empty(*shape, dtype=dtype)
        return torch.randint(low, high, shape, dtype=dtype, device=self.device, generator=self.generator)

    def given(self, values: Tensor) -> Tensor:
        """A tensor that was computed on the CPU."""
        return values.to(self.device)


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter.

    There bf16 is a 16-bit integer to numpy, silently: kernels widen operands of `tl.dot` when it is set
    (Triton issues 11584 and 11604; a test notices when that ends).
    """
    return bool(triton.knobs.runtime.interpret)


@cache
def _multiprocessors(index: int | None) -> int:
    return int(torch.cuda.get_device_properties(index).multi_processor_count)


@cache
def _capability(index: int | None) -> int:
    major, minor = torch.cuda.get_device_capability(index)
    return int(10 * major + minor)


def capability_of(tensor: Tensor) -> int:
    """Ten times the compute capability of the tensor's device; Hopper's, interpreted, where it is on none."""
    return _capability(tensor.device.index) if tensor.is_cuda else HOPPER


def multiprocessors(tensor: Tensor) -> int:
    """Multiprocessors of the tensor's device; an H200's where it is on none."""
    return _multiprocessors(tensor.device.index) if tensor.is_cuda else H200_MULTIPROCESSORS


def blocks(size: int, block: int) -> int:
    """Blocks that cover `size` elements."""
    return -(-size // block)


def power_of_two(size: int) -> int:
    """The smallest power of two that holds `size`."""
    return 1 << max(0, size - 1).bit_length()
