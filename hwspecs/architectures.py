"""What architectures can compute in, and what a multiprocessor does per clock: facts of generations, not of cards."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from ..dtypes import DType


def _formats(*names: str) -> frozenset[DType]:
    return frozenset(DType(name) for name in ("fp64", *names))


# Number formats that instructions multiply in, by the word of `architecture` in a device file. An architecture that is
# not here is not checked.
FORMATS: Mapping[str, frozenset[DType]] = MappingProxyType(
    {
        # CUDA C++ Programming Guide, warp matrix functions, and PTX ISA, mma and tcgen05.mma: types by target. Pascal
        # has no matrix instructions: half2 (6.0) and dp4a (6.1).
        "pascal": _formats("fp32", "fp16", "int8"),
        "volta": _formats("fp32", "fp16"),
        "turing": _formats("fp32", "fp16", "int8", "int4"),
        "ampere": _formats("fp32", "tf32", "fp16", "bf16", "int8", "int4"),
        "ada": _formats("fp32", "tf32", "fp16", "bf16", "fp8", "int8", "int4"),
        "hopper": _formats("fp32", "tf32", "fp16", "bf16", "fp8", "int8"),
        "blackwell": _formats("fp32", "tf32", "fp16", "bf16", "fp8", "int8", "fp4"),
        # AMD instruction set guides (Vega 7 nm, RDNA 2 to 4, CDNA 1 to 4): dot products, WMMA and MFMA opcodes. CDNA 4
        # dropped xf32.
        "gcn5.1": _formats("fp32", "fp16", "int8", "int4"),
        "rdna2": _formats("fp32", "fp16", "int8", "int4"),
        "rdna3": _formats("fp32", "fp16", "bf16", "int8", "int4"),
        "rdna3.5": _formats("fp32", "fp16", "bf16", "int8", "int4"),
        "rdna4": _formats("fp32", "fp16", "bf16", "fp8", "int8", "int4"),
        "cdna": _formats("fp32", "fp16", "bf16", "int8"),
        "cdna2": _formats("fp32", "fp16", "bf16", "int8"),
        "cdna3": _formats("fp32", "tf32", "fp16", "bf16", "fp8", "int8"),
        "cdna4": _formats("fp32", "fp16", "bf16", "fp8", "int8", "fp4"),
        # Intel oneAPI, joint_matrix: supported combinations by device. Gaudi: Habana's graph compiler, matrix types.
        "xe-hpg": _formats("fp32", "fp16", "bf16", "int8", "int4"),
        "xe2-hpg": _formats("fp32", "fp16", "bf16", "int8", "int4"),
        "xe-hpc": _formats("fp32", "tf32", "fp16", "bf16", "int8"),
        "gaudi2": _formats("fp32", "tf32", "fp16", "bf16", "fp8"),
        "gaudi3": _formats("fp32", "tf32", "fp16", "bf16", "fp8"),
        # Apple, Metal feature set tables; bfloat arithmetic from family 8 on, matrix units for int8 from family 10 on.
        "apple7": _formats("fp32", "fp16"),
        "apple8": _formats("fp32", "fp16", "bf16"),
        "apple9": _formats("fp32", "fp16", "bf16"),
        "apple10": _formats("fp32", "fp16", "bf16", "int8"),
        # Google Cloud TPU documentation, peak compute per chip.
        "tpu-v4": _formats("bf16", "int8"),
        "tpu-v5e": _formats("bf16", "int8", "int4"),
        "tpu-v5p": _formats("bf16", "int8", "int4"),
        "tpu-v6e": _formats("bf16", "int8", "int4"),
    }
)


class Generation(NamedTuple):
    """An NVIDIA multiprocessor: dense fp16 FLOPs per clock with fp32 accumulation (0: none to speak of), CUDA cores."""

    architecture: str
    architecture_class: str
    fp16_flops: int
    cores: int


# By compute capability (CUDA C++ Programming Guide, throughput of native arithmetic instructions; for tensor cores the
# whitepapers' dense rates over SMs and clock).
GENERATIONS: Mapping[tuple[int, int], Generation] = MappingProxyType(
    {
        (6, 0): Generation("pascal", "simt", 256, 64),
        (6, 1): Generation("pascal", "simt", 0, 128),
        (7, 0): Generation("volta", "mma.sync", 1024, 64),
        (7, 5): Generation("turing", "mma.sync", 1024, 64),
        (8, 0): Generation("ampere", "mma.sync", 2048, 64),
        (8, 6): Generation("ampere", "mma.sync", 1024, 128),
        (8, 7): Generation("ampere", "mma.sync", 2048, 128),
        (8, 9): Generation("ada", "mma.sync", 1024, 128),
        (9, 0): Generation("hopper", "wgmma", 4096, 128),
        (10, 0): Generation("blackwell", "tcgen05", 8192, 128),
        (10, 3): Generation("blackwell", "tcgen05", 8192, 128),
        (11, 0): Generation("blackwell", "tcgen05", 8192, 128),
        (12, 0): Generation("blackwell", "mma.sync", 1024, 128),
        (12, 1): Generation("blackwell", "mma.sync", 1024, 128),
    }
)

HALVED_LINES = ("GeForce",)  # accumulate 16-bit and fp8 products in fp32 at half rate; TITAN and RTX do not


def halves(name: str) -> bool:
    """Whether cards of that printed name accumulate in fp32 at half rate."""
    return any(line in name for line in HALVED_LINES)


def flops_per_clock(generation: Generation, name: str) -> dict[DType, float]:
    """Dense operations per clock and multiprocessor by format, as far as they follow from the generation.

    fp8 halves with fp32 accumulation where fp16 does, int8 and fp4 do not. fp4 of B300 and int8 of B300 and Thor do not
    follow from fp16 and are left out; so is int4, which fewer and fewer can.
    """
    full = generation.fp16_flops
    matrix = full / 2 if halves(name) else full
    rates = {
        DType.FP32: 2 * generation.cores,
        DType.TF32: matrix / 2,
        DType.FP16: matrix,
        DType.BF16: matrix,
        DType.FP8: 2 * matrix,
        DType.INT8: 2 * full,
        DType.FP4: 4 * full,
    }
    doubtful = {DType.INT8, DType.FP4} if generation.architecture_class == "tcgen05" else set()
    known = FORMATS[generation.architecture] - doubtful
    if generation.architecture_class == "simt":  # dp4a multiplies four pairs for every core where fp16 is missing
        rates[DType.INT8] = 0 if full else 8 * generation.cores
    return {dtype: float(rate) for dtype, rate in rates.items() if dtype in known and rate}
