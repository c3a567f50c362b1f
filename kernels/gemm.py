"""Matrix products of linear layers: c (m, n) = scale a (m, k) b (n, k)^T in bf16, fp16, fp8 and int8.

2 m n k FLOPs; a and b once and c, in 2 bytes an element, once. The tile follows from m and the number of tiles alone
(`tile_of`), never from a trial, so that the model knows it:

    plain       one tile a program; operands through tensor descriptors on Hopper where rows are 16-byte aligned
    split-k     k cut into S ranges, fp32 (int8: int32) partial results (S, m, n), added up by a second launch
    persistent  as many programs as multiprocessors, each with every such tile

Tile menu and grouping as in Triton's persistent-matmul tutorial; on Hopper tiles of 64 rows and more become wgmma.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ..dtypes import DType
from ..simulator.estimate import Array
from ..simulator.operators import Gemm, Kernel, KernelName
from .data import FORMATS, H200_MULTIPROCESSORS, Source, blocks, interpreted, multiprocessors
from .gemm_kernels import adding, descriptor_gemm, persistent_gemm, pointer_gemm, split_gemm
from .microkernel import HOPPER, Call, Microkernel
from .shapes import NAMED
from .tables import CALIBRATION, HELD_OUT, SMALL, log_uniform, not_among, only, table_of

GROUP = 8  # rows of tiles walked together
MOST_SPLITS = 16
Shape = tuple[int, int, int]


class Variant(StrEnum):
    """How tiles become programs."""

    PLAIN = "plain"
    SPLIT_K = "split-k"
    PERSISTENT = "persistent"


class Tile(NamedTuple):
    """What one program computes at a time, by how many warps, with how many buffers of operands."""

    m: int
    n: int
    k: int
    warps: int
    stages: int


LARGE = Tile(128, 256, 64, 8, 3)
MIDDLE = Tile(128, 128, 64, 8, 4)
SMALL_TILES = (Tile(16, 64, 128, 4, 5), Tile(32, 64, 64, 4, 6), Tile(64, 64, 64, 4, 5), Tile(64, 128, 64, 4, 4))


def tile_of(m: int, n: int, element_bytes: int, multiprocessor_count: int = H200_MULTIPROCESSORS) -> Tile:
    """The largest tile of which every multiprocessor gets one; for few rows one that is not much taller than they are.

    A step along k is as many bytes in every format, so one-byte formats have twice the elements.
    """
    tile = next((t for t in SMALL_TILES if m <= t.m), SMALL_TILES[-1])
    if m > 64:
        for candidate in (LARGE, MIDDLE):
            if blocks(m, candidate.m) * blocks(n, candidate.n) >= multiprocessor_count:
                tile = candidate
                break
    return tile._replace(k=tile.k * 2 // element_bytes)


def splits_of(m: int, n: int, k: int, tile: Tile, multiprocessor_count: int = H200_MULTIPROCESSORS) -> int:
    """The power of two that gives every multiprocessor two programs, while each has four steps along k or more."""
    tiles, splits = blocks(m, tile.m) * blocks(n, tile.n), 2
    while splits < MOST_SPLITS and tiles * splits < 2 * multiprocessor_count and k >= 8 * splits * tile.k:
        splits *= 2
    return splits


class GemmInputs(NamedTuple):
    """Operands, result and, for split k, partial results. `scale` multiplies the accumulated sum."""

    a: Tensor
    b: Tensor
    c: Tensor
    scale: float
    partial: Tensor | None


@dataclass(frozen=True)
class MatrixProduct(Microkernel[Gemm, GemmInputs]):
    """One format and one way to cut the work."""

    dtype: DType
    form: Variant

    @property
    def tolerance(self) -> float:  # type: ignore[override]
        """One rounding to bf16 is at most 2^-8 of the value, to fp16 2^-11.

        fp8 sums on Hopper keep about 14 bits: nearly 2 % at k = 4096 (DeepSeek-V3, arXiv 2412.19437, section 3.5.2).
        """
        return {DType.FP8: 3e-2, DType.FP16: 2e-3}.get(self.dtype, 5e-3)

    @property
    def identity(self) -> Kernel:
        """A product in this format."""
        return Kernel(KernelName.GEMM, self.dtype)

    @property
    def variant(self) -> str:
        """How tiles become programs."""
        return self.form

    @property
    def least_capability(self) -> int:
        """8.9 for fp8; 9.0 for persistent programs, whose point is what tensor descriptors overlap."""
        return HOPPER if self.form is Variant.PERSISTENT else 89 if self.dtype is DType.FP8 else 80

    def table(self, shapes: Sequence[Shape], label: str | Sequence[str]) -> Gemm:
        """Cases of these (m, n, k)."""
        m, n, k = (np.array(column, dtype=float) for column in zip(*shapes, strict=True))
        element = self.dtype.bytes
        return table_of(
            Gemm,
            self.identity,
            label,
            m=m,
            n=n,
            k=k,
            weight_bytes=n * k * element,
            activation_bytes=element,
            output_bytes=2.0,
        )

    def calibration(self, quick: bool) -> Gemm:
        """Shapes that isolate one term each: floor, rows, depth, width, waves and peak."""
        match self.form:
            case Variant.PLAIN:
                shapes = PLAIN_QUICK if quick else PLAIN_FULL
            case Variant.SPLIT_K:
                shapes = SPLIT_QUICK if quick else SPLIT_FULL
            case Variant.PERSISTENT:
                shapes = PERSISTENT_QUICK if quick else PERSISTENT_FULL
        return self.table(shapes, [f"{CALIBRATION}: {m} x {n} x {k}" for m, n, k in shapes])

    def held_out(self) -> Gemm:
        """Layers of three models, a tile more and less than there are multiprocessors, and seeded random shapes."""
        shapes, labels = held_out_shapes(self.form)
        return self.table(shapes, [f"{HELD_OUT}: {label}" for label in labels])

    def small(self) -> Gemm:
        """Ragged in every direction, as far as descriptors allow."""
        match self.form:
            case Variant.PLAIN:
                shapes = [(7, 80, 144), (70, 144, 256), (33, 65, 77)]
            case Variant.SPLIT_K:
                shapes = [(5, 80, 1024), (20, 72, 528)]
            case Variant.PERSISTENT:
                shapes = [(130, 272, 144)]
        return self.table(shapes, SMALL)

    def tile(self, m: int, n: int) -> Tile:
        """The tile of a case: persistent programs always have the largest, split k one of a few rows."""
        if self.form is Variant.PERSISTENT:
            return LARGE._replace(k=LARGE.k * 2 // int(self.dtype.bytes))
        return tile_of(m, n, int(self.dtype.bytes))

    def make(self, case: Gemm, device: str, seed: int) -> GemmInputs:
        """Normal random operands; the scale brings the result to about 1."""
        m, n, k = only(case.m), only(case.n), only(case.k)
        source, dtype = Source(device, seed), FORMATS[self.dtype]
        a, b = source.normal(m, k, dtype=dtype), source.normal(n, k, dtype=dtype)
        c = source.empty(m, n, dtype=torch.float16 if self.dtype is DType.FP16 else torch.bfloat16)
        partial = None
        if self.form is Variant.SPLIT_K:
            whole = torch.int32 if self.dtype is DType.INT8 else torch.float32
            partial = source.empty(splits_of(m, n, k, self.tile(m, n)), m, n, dtype=whole)
        unit = 32.0**2 if self.dtype is DType.INT8 else 1.0
        return GemmInputs(a, b, c, float(k) ** -0.5 / unit, partial)

    def calls(self, inputs: GemmInputs, capability: int) -> tuple[Call, ...]:
        """One launch, and for split k another that adds up."""
        a, b, c, scale, partial = inputs
        (m, k), n = a.shape, len(b)
        tile = self.tile(m, n)
        arguments = {"m": m, "n": n, "k": k}
        constants = {
            "BM": tile.m,
            "BN": tile.n,
            "BK": tile.k,
            "GROUP": GROUP,
            "ACCUMULATOR": tl.int32 if self.dtype is DType.INT8 else tl.float32,
            "UPCAST": interpreted() and self.dtype is not DType.INT8,
        }
        tiles = blocks(m, tile.m) * blocks(n, tile.n)
        if partial is not None:
            reach = blocks(blocks(k, len(partial)), tile.k) * tile.k
            even = {"EVEN_K": k % tile.k == 0}
            pointers = {"a": a, "b": b, "partial": partial, "reach": reach}
            launch = {"warps": tile.warps, "stages": tile.stages}
            grid = (tiles, len(partial))
            return (
                Call(split_gemm, grid, pointers | arguments, constants | even, **launch),
                adding(partial, c, scale),
            )
        if capability < HOPPER or not descriptors_fit(inputs, tile):
            even, pointers = {"EVEN_K": k % tile.k == 0}, {"a": a, "b": b, "c": c, "scale": scale}
            return (Call(pointer_gemm, (tiles,), pointers | arguments, constants | even, tile.warps, tile.stages),)
        described = {
            "a": TensorDescriptor.from_tensor(a, [tile.m, tile.k]),
            "b": TensorDescriptor.from_tensor(b, [tile.n, tile.k]),
            "c": TensorDescriptor.from_tensor(c, [tile.m, tile.n // 2]),
            "scale": scale,
        }
        if self.form is Variant.PLAIN:
            return (Call(descriptor_gemm, (tiles,), described | arguments, constants, tile.warps, tile.stages),)
        programs = min(tiles, multiprocessors(a))
        return (Call(persistent_gemm, (programs,), described | arguments, constants, tile.warps, tile.stages),)

    def outputs(self, inputs: GemmInputs) -> tuple[Tensor, ...]:
        """The product."""
        return (inputs.c,)

    def reference(self, inputs: GemmInputs) -> tuple[Tensor, ...]:
        """In float64."""
        return (inputs.a.double() @ inputs.b.double().T * inputs.scale,)

    def library(self, inputs: GemmInputs) -> Tensor | None:
        """torch's own product of the format, without the scale where it has none; None for shapes it does not take."""
        a, b, c, _, _ = inputs
        (m, k), n = a.shape, len(b)
        if self.dtype in (DType.BF16, DType.FP16):
            return torch.mm(a, b.T, out=c)
        if k % 16 or n % 16 or (self.dtype is DType.INT8 and m <= 16):
            return None
        if self.dtype is DType.INT8:
            return torch._int_mm(a, b.T)
        one = unit_scale(a.device)
        return torch._scaled_mm(a, b.T, one, one, out_dtype=torch.bfloat16, use_fast_accum=True)

    def flops(self, table: Gemm) -> Array:
        """2 m n k."""
        return np.asarray(2.0 * table.m * table.n * table.k)

    def bytes(self, table: Gemm) -> Array:
        """Both operands and the result."""
        return np.asarray(
            table.m * table.k * table.activation_bytes + table.weight_bytes + table.m * table.n * table.output_bytes
        )


@cache
def unit_scale(device: torch.device) -> Tensor:
    """A scale of one, made once: making it again would be timed with the product."""
    return torch.ones((), device=device)


def descriptors_fit(inputs: GemmInputs, tile: Tile) -> bool:
    """Whether rows are whole multiples of 16 bytes, as tensor descriptors need; few rows gain nothing by them."""
    a, b, c = inputs[:3]
    aligned = all(t.shape[1] * t.element_size() % 16 == 0 for t in (a, b, c))
    return aligned and tile.m >= 64


# Calibration: the floor; rows at one width; depth of one wave; width; waves around 132 multiprocessors; cubes.
PLAIN_QUICK: tuple[Shape, ...] = (
    (16, 128, 128),
    *((m, 8192, 8192) for m in (1, 16, 64, 256, 1024)),
    *((128, 132 * 128, k) for k in (512, 16384)),
    *((2048, n, 4608) for n in (1024, 6144)),
    *((128 * t, 3072, 2048) for t in (11, 12, 22)),
    *((s, s, s) for s in (2048, 4096, 8192)),
)
PLAIN_FULL: tuple[Shape, ...] = (
    *PLAIN_QUICK,
    *((m, 8192, 8192) for m in (8, 32, 48, 65, 128, 129, 192, 512, 2048, 4096, 16384)),
    *((m, 2048, 2048) for m in (1, 16, 64, 128, 256, 512, 1024, 4096)),
    *((128, 132 * 128, k) for k in (256, 1024, 4096, 65536)),
    *((2048, n, 4608) for n in (256, 512, 2048, 4096, 16384, 65536)),
    *((128 * t, 3072, 2048) for t in (1, 2, 4, 8, 10, 13, 16, 33, 44, 66)),
    *((s, s, s) for s in (512, 1024, 3072, 6144, 16384)),
    *((1024, 4096, k) for k in (4093, 4094, 4088)),
)
SPLIT_QUICK: tuple[Shape, ...] = (
    *((m, 2048, 2048) for m in (1, 64)),
    *((16, n, 8192) for n in (1024, 4096, 16384)),
    *((16, 2048, k) for k in (1024, 4096, 32768)),
    *((m, 4096, 8192) for m in (1, 32, 128)),
)
SPLIT_FULL: tuple[Shape, ...] = (
    *SPLIT_QUICK,
    *((m, 8192, 8192) for m in (1, 4, 16, 32, 64, 128)),
    *((16, n, 8192) for n in (256, 512, 2048, 8192, 32768)),
    *((16, 2048, k) for k in (2048, 8192, 16384, 65536)),
    *((m, 512, 16384) for m in (1, 16, 64, 128, 256)),
)
PERSISTENT_QUICK: tuple[Shape, ...] = (
    (512, 2048, 1024),
    *((2048, n, 4608) for n in (4096, 16384)),
    *((128 * t, 3072, 2048) for t in (11, 12, 22)),
    *((4096, 4096, k) for k in (512, 16384)),
    *((s, s, s) for s in (4096, 8192)),
)
PERSISTENT_FULL: tuple[Shape, ...] = (
    *PERSISTENT_QUICK,
    *((2048, n, 4608) for n in (1024, 2048, 8192, 32768, 65536)),
    *((128 * t, 3072, 2048) for t in (1, 4, 8, 16, 33, 44, 66)),
    *((4096, 4096, k) for k in (1024, 2048, 8192, 65536)),
    *((s, s, s) for s in (2048, 6144, 12288, 16384)),
)


def held_out_shapes(form: Variant) -> tuple[list[Shape], list[str]]:
    """Shapes and names: rows that decode or prefill would have, at the widths of named models."""
    rows = {Variant.PLAIN: (3, 48, 700), Variant.SPLIT_K: (3, 48), Variant.PERSISTENT: (700, 3000)}[form]
    named = [
        (f"{layers.label} {name}, {m} rows", (m, n, k))
        for i, layers in enumerate(NAMED)
        for j, (name, n, k) in enumerate(layers.linear)
        for m in (rows[(i + j) % len(rows)],)
    ]
    low, high = {Variant.PLAIN: (1, 8192), Variant.SPLIT_K: (1, 128), Variant.PERSISTENT: (512, 8192)}[form]
    drawn = zip(
        log_uniform(1, 8, low, high),
        log_uniform(2, 8, 512, 16384, 16),
        log_uniform(3, 8, 512, 16384, 16),
        strict=True,
    )
    edges = [] if form is Variant.SPLIT_K else [(128 * 131, 256, 3328), (128 * 133, 256, 3328)]
    found = named + [(f"{m} x {n} x {k}", (m, n, k)) for m, n, k in (*edges, *drawn)]
    fitted = {Variant.PLAIN: PLAIN_FULL, Variant.SPLIT_K: SPLIT_FULL, Variant.PERSISTENT: PERSISTENT_FULL}[form]
    kept = not_among(found, fitted)
    return [shape for _, shape in kept], [name for name, _ in kept]


MICROKERNELS: tuple[Microkernel[Gemm, GemmInputs], ...] = tuple(
    MatrixProduct(dtype, form) for dtype in (DType.BF16, DType.FP16, DType.FP8, DType.INT8) for form in Variant
)
