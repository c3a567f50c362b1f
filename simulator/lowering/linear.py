"""Linear layers: which kernel runs a weight format on a device, and the GEMM row of a set of tensors."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from ...dtypes import DType
from ...hwspecs.device import Device
from ..estimate import Array
from ..operators import Column, Elementwise, Gemm, Kernel, KernelName, one_row
from ..workload.formats import WeightFormat
from ..workload.model import Model, Role, Split, Tensor
from .program import Shard

STORAGE_DTYPE = {4: DType.INT4, 8: DType.INT8}


def rows_per_rank(tensor: Tensor, model: Model, tp: int) -> int:
    """Output rows of the tensor on one rank. KV heads below tp are replicated, the vocabulary is rounded up."""
    if tensor.split is Split.KV and tensor.block is not None:
        attention = model.blocks[tensor.block].attention
        return math.ceil(attention.kv_heads / tp) * attention.head_dim
    if tensor.split in (Split.COLUMN, Split.VOCAB):
        return math.ceil(tensor.rows / tp)
    return tensor.rows


def cols_per_rank(tensor: Tensor, tp: int) -> int:
    """Input columns of the tensor on one rank."""
    return math.ceil(tensor.cols / tp) if tensor.split is Split.ROW else tensor.cols


def share_per_rank(tensor: Tensor, model: Model, tp: int) -> float:
    """Share of the tensor's matrix one rank holds."""
    return rows_per_rank(tensor, model, tp) * cols_per_rank(tensor, tp) / (tensor.rows * tensor.cols)


def linear_kernel(stored: WeightFormat, device: Device, activation: DType) -> Kernel:
    """The kernel a linear layer runs: matrix units of the stored format where the device has them, else weight-only."""
    if stored.bits_per_weight >= 16:
        return Kernel(KernelName.GEMM, activation if stored.compute is not DType.FP32 else DType.FP32)
    if not stored.weight_only and device.computes(stored.compute):
        return Kernel(KernelName.GEMM, stored.compute)
    return Kernel(KernelName.GEMM_WEIGHT_ONLY, STORAGE_DTYPE[4 if stored.bits_per_weight < 6 else 8])


def gemm_row(
    shard: Shard, label: str, layer: str, count: Column, tensors: Iterable[Tensor], m: Array, stored: WeightFormat
) -> Gemm:
    """One merged GEMM of tensors that share their input (q, k, v; gate and up), on one rank."""
    model, tp = shard.scenario.model, shard.tp
    group = list(tensors)
    n = sum(rows_per_rank(t, model, tp) for t in group)
    weight_bytes = sum(model.layer_bytes(t, stored) * share_per_rank(t, model, tp) for t in group)
    narrowed = bool(model.stored) or all(t.quantised for t in group)
    dense = stored if narrowed else model.unquantised
    kernel = linear_kernel(dense, shard.scenario.fleet.device, shard.activation)
    narrow = kernel.name is KernelName.GEMM and kernel.dtype in (DType.FP8, DType.INT8)
    return one_row(
        Gemm,
        label,
        layer,
        count,
        kernel,
        m=m,
        n=n,
        k=cols_per_rank(group[0], tp),
        weight_bytes=weight_bytes,
        activation_bytes=1.0 if narrow else shard.activation.bytes,
        output_bytes=shard.activation.bytes,
    )


def elementwise_row(
    shard: Shard, label: str, layer: str, count: Column, read_bytes: Array, write_bytes: Array, launches: int = 1
) -> Elementwise:
    """Bytes in, bytes out."""
    kernel = Kernel(KernelName.ELEMENTWISE, shard.activation)
    columns = {"read_bytes": read_bytes, "write_bytes": write_bytes, "launches": np.ones_like(read_bytes) * launches}
    return one_row(Elementwise, label, layer, count, kernel, **columns)


def find(model: Model, block: int | None, *roles: Role) -> list[Tensor]:
    """The tensors of those roles in a block (None: outside the layers)."""
    return [t for t in model.tensors if t.block == block and t.role in roles]
