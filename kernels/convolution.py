"""A 2-D convolution as the matrix product it is (implicit GEMM): channels last, stride 1, padded to the same size.

    y_nhwo = sum over i, j, c of x_{n, h+i-p, w+j-q, c} f_oijc,   p, q half the filter, zero outside the image

2 N H W C_out C_in k_h k_w FLOPs; image, filters and result once, 2 bytes an element. A program has 128 pixels and up to
128 output channels and walks filter taps and input channels; pixels outside the image are masked, never stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from ..dtypes import DType
from ..simulator.estimate import Array
from ..simulator.operators import Convolution, Kernel, KernelName
from .data import Source, blocks, interpreted
from .microkernel import Call, Microkernel
from .tables import CALIBRATION, HELD_OUT, SMALL, log_uniform, only, table_of

PIXELS, CHANNELS, DEPTH = 128, 128, 64  # of one tile


class ImageCase(NamedTuple):
    """Images, channels in and out, rows and columns of the output, rows and columns of the filter."""

    images: int
    in_channels: int
    out_channels: int
    height: int
    width: int
    kernel_height: int
    kernel_width: int


class ImageInputs(NamedTuple):
    """Images (N, H, W, C_in), filters (C_out, k_h, k_w, C_in) and result (N, H, W, C_out)."""

    x: Tensor
    filters: Tensor
    out: Tensor


@triton.jit(do_not_specialize=["images", "height", "width"])
def _convolution(
    x,
    filters,
    out,
    images,
    height,
    width,
    in_channels,
    out_channels,
    KH: tl.constexpr,
    KW: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    DEPTH: tl.constexpr,
    UPCAST: tl.constexpr,
):
    pixels = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    channels = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    column, above = pixels % width, pixels // width
    row, image = above % height, above // height
    steps = tl.cdiv(in_channels, DEPTH)
    total = tl.zeros((PIXELS, CHANNELS), tl.float32)
    for step in range(KH * KW * steps):
        tap, depth = step // steps, (step % steps) * DEPTH + tl.arange(0, DEPTH)
        at_row, at_column = row + tap // KW - KH // 2, column + tap % KW - KW // 2
        inside = (at_row >= 0) & (at_row < height) & (at_column >= 0) & (at_column < width) & (image < images)
        at = ((image * height + at_row) * width + at_column).to(tl.int64)
        seen = tl.load(
            x + at[:, None] * in_channels + depth[None, :], inside[:, None] & (depth < in_channels)[None, :], 0.0
        )
        weight_at = (channels[None, :] * KH * KW + tap) * in_channels + depth[:, None]
        weight = tl.load(filters + weight_at, (channels < out_channels)[None, :] & (depth < in_channels)[:, None], 0.0)
        if UPCAST:
            seen, weight = seen.to(tl.float32), weight.to(tl.float32)
        total = tl.dot(seen, weight, total)
    to = out + pixels.to(tl.int64)[:, None] * out_channels + channels[None, :]
    written = (image < images)[:, None] & (channels < out_channels)[None, :]
    tl.store(to, total.to(out.dtype.element_ty), written)


def image_table(kernel: Kernel, cases: Sequence[ImageCase], labels: Sequence[str]) -> Convolution:
    """The operator table of these cases."""
    columns = dict(zip(ImageCase._fields, zip(*cases, strict=True), strict=True))
    arrays = {name: np.array(column, dtype=float) for name, column in columns.items()}
    return table_of(Convolution, kernel, labels, groups=1.0, element_bytes=2.0, **arrays)


def words(case: ImageCase) -> str:
    """`4 x 64 x 64, 320 to 640 channels, 3 x 3`."""
    image = f"{case.images} x {case.height} x {case.width}"
    return f"{image}, {case.in_channels} to {case.out_channels} channels, {case.kernel_height} x {case.kernel_width}"


@dataclass(frozen=True)
class ImplicitGemm(Microkernel[Convolution, ImageInputs]):
    """Convolutions in bf16, without groups."""

    tolerance = 5e-3  # one rounding to bf16 is at most 2^-8 of the value

    @property
    def identity(self) -> Kernel:
        """Convolution in bf16."""
        return Kernel(KernelName.CONVOLUTION, DType.BF16)

    @property
    def variant(self) -> str:
        """How it is computed."""
        return "implicit gemm"

    def calibration(self, quick: bool) -> Convolution:
        """Image sizes, channels, and filters of one and nine taps."""
        cases = [
            *(ImageCase(1, 256, 256, s, s, 3, 3) for s in (8, 32, 128)),
            *(ImageCase(8, c, c, 32, 32, 3, 3) for c in (64, 512, 1024)),
            *(ImageCase(8, 512, 512, 64, 64, k, k) for k in (1, 3)),
        ]
        if not quick:
            cases += [ImageCase(n, 128, 128, 64, 64, 3, 3) for n in (1, 2, 4, 8, 16, 32)]
            cases += [ImageCase(1, 512, 512, s, s, k, k) for s in (16, 64, 256) for k in (1, 3)]
            cases += [ImageCase(4, 256, c, 48, 48, 3, 3) for c in (64, 128, 512)]
            cases += [ImageCase(4, 256, 256, 32, 32, k, k) for k in (5, 7)]
        return image_table(self.identity, cases, [f"{CALIBRATION}: {words(case)}" for case in cases])

    def held_out(self) -> Convolution:
        """Blocks of a Stable Diffusion 1.5 U-Net (320 to 1280 channels at 64 to 8 pixels) and seeded ones."""
        cases = [ImageCase(2, c, c, s, s, 3, 3) for c, s in ((320, 64), (640, 32), (1280, 16), (1280, 8))]
        drawn = zip(log_uniform(21, 6, 8, 100), log_uniform(22, 6, 64, 1024, 16), strict=True)
        cases += [ImageCase(3, c, c, s, s, 3, 3) for s, c in drawn]
        return image_table(self.identity, cases, [f"{HELD_OUT}: {words(case)}" for case in cases])

    def small(self) -> Convolution:
        """Pixels and channels that fill no tile; filters of one row."""
        cases = [
            ImageCase(2, 24, 40, 5, 7, 3, 3),
            ImageCase(1, 72, 16, 12, 12, 1, 1),
            ImageCase(1, 16, 136, 4, 9, 1, 5),
        ]
        return image_table(self.identity, cases, [f"{SMALL}: {words(case)}" for case in cases])

    def make(self, case: Convolution, device: str, seed: int) -> ImageInputs:
        """Normal images and filters that keep their size."""
        c = ImageCase(*(only(getattr(case, name)) for name in ImageCase._fields))
        if only(case.groups) != 1 or c.kernel_height % 2 == 0 or c.kernel_width % 2 == 0:
            raise ValueError(f"{self.name}: it takes one group and odd filters")
        source = Source(device, seed)
        reach = c.in_channels * c.kernel_height * c.kernel_width
        return ImageInputs(
            source.normal(c.images, c.height, c.width, c.in_channels),
            source.normal(c.out_channels, c.kernel_height, c.kernel_width, c.in_channels, scale=reach**-0.5),
            source.empty(c.images, c.height, c.width, c.out_channels),
        )

    def calls(self, inputs: ImageInputs, capability: int) -> tuple[Call, ...]:
        """One program for each block of pixels and of output channels."""
        images, height, width, in_channels = inputs.x.shape
        out_channels, kernel_height, kernel_width, _ = inputs.filters.shape
        channels = CHANNELS if out_channels > CHANNELS // 2 else CHANNELS // 2
        constants = {
            "KH": kernel_height,
            "KW": kernel_width,
            "PIXELS": PIXELS,
            "CHANNELS": channels,
            "DEPTH": DEPTH,
            "UPCAST": interpreted(),
        }
        grid = (blocks(images * height * width, PIXELS), blocks(out_channels, channels))
        arguments = inputs._asdict() | {"images": images, "height": height, "width": width}
        arguments |= {"in_channels": in_channels, "out_channels": out_channels}
        return (Call(_convolution, grid, arguments, constants, warps=8, stages=3),)

    def outputs(self, inputs: ImageInputs) -> tuple[Tensor, ...]:
        """The result."""
        return (inputs.out,)

    def reference(self, inputs: ImageInputs) -> tuple[Tensor, ...]:
        """In float64."""
        x, filters = (t.double().permute(0, 3, 1, 2) for t in (inputs.x, inputs.filters))
        return (functional.conv2d(x, filters, padding="same").permute(0, 2, 3, 1),)

    def library(self, inputs: ImageInputs) -> Tensor:
        """torch's convolution, channels last."""
        return functional.conv2d(inputs.x.permute(0, 3, 1, 2), inputs.filters.permute(0, 3, 1, 2), padding="same")

    def flops(self, table: Convolution) -> Array:
        """2 N H W C_out C_in k_h k_w."""
        reach = table.in_channels * table.kernel_height * table.kernel_width
        return np.asarray(2.0 * table.images * table.height * table.width * table.out_channels * reach)

    def bytes(self, table: Convolution) -> Array:
        """Images, filters and result."""
        pixels = table.images * table.height * table.width * (table.in_channels + table.out_channels)
        filters = table.out_channels * table.in_channels * table.kernel_height * table.kernel_width
        return np.asarray((pixels + filters) * table.element_bytes)


MICROKERNELS: tuple[Microkernel[Convolution, ImageInputs], ...] = (ImplicitGemm(),)
