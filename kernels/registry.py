"""Which modules hold kernels; each is imported when its kernels are asked for, torch and triton with it."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

from .microkernel import Microkernel

ALL = (
    "stream",
    "add_rms_norm",
    "softmax",
    "swiglu",
    "rope",
    "dequantise",
    "cross_entropy",
    "adamw",
    "selective_scan",
    "gemm",
    "weight_only_gemv",
    "weight_only_gemm",
    "experts",
    "prefill",
    "decode",
    "convolution",
)


@cache
def load(module: str) -> tuple[Microkernel[Any, Any], ...]:
    """The microkernels of one module."""
    found: tuple[Microkernel[Any, Any], ...] = import_module(f".{module}", __package__).MICROKERNELS
    return found


def everything() -> tuple[Microkernel[Any, Any], ...]:
    """The microkernels of all modules."""
    return tuple(kernel for module in ALL for kernel in load(module))
