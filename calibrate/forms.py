"""Which form each kernel is fitted with, where the search starts, and the bounds physics puts on every parameter."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from ..dtypes import DType
from ..simulator.calibration import Parameters
from ..simulator.estimate import Array
from ..simulator.operators import Kernel, KernelName
from ..simulator.parameters import (
    FlashPrefill,
    GroupedExperts,
    LatencyBandwidth,
    LatentDecode,
    OneOrTwoShot,
    PackedGemm,
    Quantise,
    Ring,
    ScaledGemm,
    SoftRoofline,
    SplitKGemm,
    SplitKvDecode,
    Streaming,
    ThreeConstants,
)


class Range(NamedTuple):
    """Where a parameter starts and may go. Structural ones, which are not fitted, have no room."""

    start: float
    low: float
    high: float


def _fixed(value: float) -> Range:
    return Range(value, value, value)


def _fraction(start: float, low: float = 0.05, high: float = 1.0) -> Range:
    return Range(start, low, high)


RANGES: Mapping[type[Any], Mapping[str, Range]] = MappingProxyType(
    {
        ThreeConstants: {
            "floor_s": Range(3e-6, 1e-7, 1e-3),
            "compute_fraction": _fraction(0.7),
            "memory_fraction": _fraction(0.7),
        },
        SoftRoofline: {
            "floor_s": Range(3e-6, 1e-7, 1e-3),  # fractions above 1 where the two terms add more than linearly
            "compute_fraction": _fraction(0.7, 0.005, 2.0),
            "memory_fraction": _fraction(0.7, 0.005, 20.0),
            "overlap": Range(1.0, 0.4, 12.0),
        },
        PackedGemm: {
            "floor_s": Range(3e-6, 1e-7, 1e-3),
            "compute_fraction": _fraction(0.9, 0.05, 2.0),
            "memory_fraction": _fraction(0.9, 0.05, 2.0),
            "packing_passes": Range(1.0, 0.02, 10.0),
            "packing_rows": Range(3.5, 1.2, 64.0),
        },
        LatencyBandwidth: {
            "floor_s": Range(5e-6, 1e-7, 1e-3),
            "hop_s": Range(1e-6, 1e-8, 1e-3),
            "link_fraction": _fraction(0.6, 0.02),
        },
        SplitKGemm: {
            "floor_s": Range(2.5e-6, 2e-7, 1e-3),
            "compute_fraction": _fraction(0.88, 0.2),
            "read_fraction": _fraction(0.86, 0.2),
            "write_fraction": _fraction(0.75, 0.1, 1.1),
            "l2_write_bytes_per_clock_per_sm": Range(10.0, 0.5, 128.0),
            "l2_read_bytes_per_clock_per_sm": Range(40.0, 2.0, 128.0),
            "exposed_write": _fraction(0.5, 0.02),
            "k_block_cycles": Range(200.0, 20.0, 3000.0),
            "dram_latency_s": Range(3e-7, 1e-9, 5e-6),
            "split_s": Range(2e-6, 1e-7, 2e-5),
            "overlap": Range(2.7, 1.2, 12.0),
            "droop": Range(0.1, 1e-3, 0.6),
            "droop_s": Range(1e-3, 1e-5, 5e-2),
            "l2_fraction": _fraction(0.6, 0.1),
            "most_splits": _fixed(32.0),
        },
        Quantise: {
            "row_s": Range(1e-9, 1e-11, 1e-7),
            "quantise_fraction": _fraction(0.4, 0.02),
            "misaligned_fraction": Range(0.6, 0.05, 100.0),
        },
        FlashPrefill: {
            "floor_s": Range(1e-5, 2e-7, 1e-3),
            "tile_s": Range(1.4e-6, 1e-8, 2e-5),
            "compute_fraction": _fraction(0.8, 0.05),
            "exponential_share": Range(0.7, 1e-3, 5.0),
            "query_passes": Range(1.0, 0.05, 20.0),
            "kv_passes": Range(3.0, 0.05, 40.0),
            "packs_heads": _fixed(1.0),
        },
        SplitKvDecode: {
            "floor_s": Range(1e-5, 2e-7, 1e-3),
            "block_s": Range(1.5e-6, 1e-8, 3e-5),
            "block_dim_s": Range(1.5e-6, 1e-8, 3e-5),
            "read_fraction": _fraction(0.85, 0.1),
            "l2_speed": Range(2.0, 0.5, 20.0),
            "l2_fraction": Range(0.8, 0.02, 1.5),
            "doubling_s": Range(7e-7, 1e-9, 1e-5),
            "step_s": Range(1e-7, 1e-9, 1e-5),
        },
        LatentDecode: {
            "floor_s": Range(1e-5, 2e-7, 1e-3),
            "compute_fraction": _fraction(0.6, 0.02),
            "read_fraction": _fraction(0.8, 0.05),
            "block_s": Range(5e-6, 1e-8, 1e-4),
            "doubling_s": Range(8e-7, 1e-9, 1e-5),
        },
        GroupedExperts: {
            "floor_s": Range(2e-5, 2e-7, 1e-3),
            "compute_fraction": _fraction(0.7, 0.2),
            "read_fraction": _fraction(0.85, 0.5),
            "activation_passes": Range(5.0, 0.05, 40.0),
            "k_block_s": Range(2e-7, 2e-9, 5e-6),
            "expert_s": Range(1e-7, 1e-10, 3e-6),
            "global_passes": Range(2.0, 0.02, 20.0),
            "doubling_s": Range(1e-6, 1e-8, 2e-5),
        },
        Streaming: {
            "floor_s": Range(2e-6, 2e-7, 1e-3),
            "memory_fraction": _fraction(0.8, 0.1),
            "l2_bytes_per_clock_per_sm": Range(20.0, 1.0, 128.0),
            "l2_fraction": _fraction(0.6, 0.05, 1.2),
        },
        Ring: {
            "floor_s": Range(3e-6, 1e-7, 1e-3),
            "hop_s": Range(2e-6, 1e-8, 1e-3),
            "link_fraction": _fraction(0.8, 0.02),
            "half_bytes": Range(1e6, 1e2, 1e8),
            "sharing": Range(0.1, 1e-3, 2.0),
        },
        OneOrTwoShot: {
            "floor_s": Range(3e-6, 1e-7, 1e-3),
            "rank_s": Range(1e-7, 1e-9, 1e-4),
            "one_shot_fraction": _fraction(0.6, 0.02),
            "two_shot_s": Range(4e-6, 1e-8, 1e-3),
            "two_shot_fraction": _fraction(0.8, 0.02),
            "sharing": Range(0.1, 1e-3, 2.0),
        },
    }
)

NAMES: Mapping[str, type[Any]] = MappingProxyType(
    {
        "three-constants": ThreeConstants,
        "soft-roofline": SoftRoofline,
        "packed-gemm": PackedGemm,
        "latency-bandwidth": LatencyBandwidth,
        "split-k-gemm": SplitKGemm,
        "scaled-gemm": ScaledGemm,
        "flash-prefill": FlashPrefill,
        "split-kv-decode": SplitKvDecode,
        "latent-decode": LatentDecode,
        "grouped-experts": GroupedExperts,
        "streaming": Streaming,
        "ring": Ring,
        "one-or-two-shot": OneOrTwoShot,
    }
)
_PARTS: Mapping[type[Any], Mapping[str, type[Any]]] = {ScaledGemm: {"gemm": SplitKGemm, "quantise": Quantise}}


def ranges(form: type[Any]) -> dict[str, Range]:
    """The range of every parameter of a form, those of its parts under `part.name`."""
    if form in _PARTS:
        return {f"{part}.{k}": r for part, cls in _PARTS[form].items() for k, r in RANGES[cls].items()}
    return dict(RANGES[form])


def values_of(parameters: Parameters) -> Array:
    """All parameters as one vector, in the order of `ranges`."""
    flat: list[float] = []
    for value in parameters:
        flat += list(value) if isinstance(value, tuple) else [value]
    return np.array(flat, dtype=float)


def build(form: type[Any], values: Array) -> Parameters:
    """The inverse of `values_of`."""
    if form not in _PARTS:
        return form(*(float(v) for v in values))  # type: ignore[no-any-return]
    parts, start = [], 0
    for cls in _PARTS[form].values():
        width = len(RANGES[cls])
        parts.append(cls(*(float(v) for v in values[start : start + width])))
        start += width
    return form(*parts)  # type: ignore[no-any-return]


WIDE = (DType.BF16, DType.FP16, DType.TF32, DType.FP32, DType.FP64)  # products that narrow no activations first


def form_of(kernel: Kernel, engine: str) -> type[Any]:
    """The form a kernel's measurements are fitted with."""
    match kernel.name:
        case KernelName.GEMM | KernelName.GEMM_BLOCK_SCALED:
            return SplitKGemm if kernel.dtype in WIDE else ScaledGemm
        case KernelName.GEMM_WEIGHT_ONLY:
            return SplitKGemm
        case KernelName.ATTENTION_PREFILL | KernelName.MLA_PREFILL:
            return FlashPrefill
        case KernelName.ATTENTION_DECODE:
            return SplitKvDecode
        case KernelName.MLA_DECODE:
            return LatentDecode
        case KernelName.EXPERTS | KernelName.EXPERTS_BLOCK_SCALED | KernelName.EXPERTS_WEIGHT_ONLY:
            return GroupedExperts
        case KernelName.ALL_REDUCE if engine != "nccl":
            return OneOrTwoShot
        case KernelName.ALL_REDUCE | KernelName.ALL_GATHER | KernelName.REDUCE_SCATTER | KernelName.ALL_TO_ALL:
            return Ring
        case KernelName.ELEMENTWISE:
            return Streaming
    return ThreeConstants


def form_on(vendor: str, kernel: Kernel, engine: str) -> type[Any]:
    """The same for a device of this vendor: GPU forms mean nothing on a CPU, and a copy crosses a link."""
    if kernel.name is KernelName.HOST_COPY:
        return LatencyBandwidth
    if engine == "gloo":
        return Ring
    if vendor != "cpu" or kernel.name is KernelName.ELEMENTWISE:
        return form_of(kernel, engine)
    return PackedGemm if kernel == Kernel(KernelName.GEMM, DType.FP32) else SoftRoofline
