"""2-D convolutions as the matrix product they are (implicit GEMM)."""

from __future__ import annotations

import numpy as np

from ..estimate import Array
from ..operators import Convolution, Gemm


def as_gemm(table: Convolution) -> Gemm:
    """The product a kernel computes: one row a pixel, one column an output channel, k the receptive field."""
    reach = table.in_channels / table.groups * table.kernel_height * table.kernel_width
    return Gemm(
        table.label,
        table.layer,
        table.count,
        table.kernel,
        m=table.images * table.height * table.width,
        n=table.out_channels,
        k=reach,
        weight_bytes=table.out_channels * reach * table.element_bytes,
        activation_bytes=table.element_bytes,
        output_bytes=table.element_bytes,
    )


def flops(table: Convolution) -> Array:
    """2 N C_out H W (C_in / groups) k_h k_w for an output of N x C_out x H x W."""
    reduction = table.in_channels / table.groups * table.kernel_height * table.kernel_width
    return np.asarray(2.0 * table.images * table.out_channels * table.height * table.width * reduction)


def traffic_bytes(table: Convolution) -> Array:
    """Input (at the output's resolution), filters and output, once each."""
    pixels = table.images * table.height * table.width
    filters = table.out_channels * table.in_channels / table.groups * table.kernel_height * table.kernel_width
    return np.asarray((pixels * (table.in_channels + table.out_channels) + filters) * table.element_bytes)
