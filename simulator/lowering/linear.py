"""Linear layers: which kernel runs a weight format on a device, and the GEMM row of a set of tensors."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from ...dtypes import DType
from ...hwspecs.device import Device
from ..estimate import Array
from ..operators import Collective, Column, Elementwise, Gemm, Kernel, KernelName, one_row
from ..scenario import Sharding
from ..workload.formats import WeightFormat
from ..workload.model import Attention, Model, Role, Split, Tensor
from .program import Shard

STORAGE_DTYPE = {4: DType.INT4, 8: DType.INT8}
NARROW_INPUT = (DType.FP8, DType.INT8, DType.FP4)


def rows_per_rank(tensor: Tensor, model: Model, tp: int) -> int:
    """Output rows of the tensor on one rank. KV heads below tp are replicated, the vocabulary is rounded up."""
    if tensor.split is Split.KV and tensor.block is not None:
        block = model.blocks[tensor.block]
        attention = block.crosses if tensor.role in (Role.CROSS_K, Role.CROSS_V) else block.attention
        if isinstance(attention, Attention):
            value = tensor.role in (Role.V, Role.CROSS_V)
            return math.ceil(attention.kv_heads / tp) * (attention.value_width if value else attention.head_dim)
    if tensor.split in (Split.COLUMN, Split.VOCAB):
        return math.ceil(tensor.rows / tp)
    return tensor.rows


def cols_per_rank(tensor: Tensor, tp: int) -> int:
    """Input columns of the tensor on one rank."""
    return math.ceil(tensor.cols / tp) if tensor.split is Split.ROW else tensor.cols


def share_per_rank(tensor: Tensor, model: Model, sharding: Sharding) -> float:
    """Share of the tensor's matrices one rank holds: of routed experts every `ep`-th, each cut over its group."""
    cut, copies = (sharding.expert_cut, 1 / sharding.ep) if tensor.routed else (sharding.tp, 1.0)
    return copies * rows_per_rank(tensor, model, cut) * cols_per_rank(tensor, cut) / (tensor.rows * tensor.cols)


def linear_kernel(stored: WeightFormat, device: Device, activation: DType) -> Kernel:
    """The kernel a linear layer runs: matrix units of the stored format where the device has them, else weight-only.

    Weight-only kernels are named after what they read: 4-bit floats, or whole numbers of 4 or 8 bits.
    """
    if stored.bits_per_weight >= 16:
        wide = stored.compute is DType.FP32 and device.computes(DType.FP32)
        return Kernel(KernelName.GEMM, DType.FP32 if wide else activation)
    if not stored.weight_only and device.computes(stored.compute):
        return Kernel(KernelName.GEMM_BLOCK_SCALED if stored.block_scaled else KernelName.GEMM, stored.compute)
    if stored.compute is DType.FP4:
        return Kernel(KernelName.GEMM_WEIGHT_ONLY, DType.FP4)
    return Kernel(KernelName.GEMM_WEIGHT_ONLY, STORAGE_DTYPE[4 if stored.bits_per_weight < 6 else 8])


def gemm_row(
    shard: Shard, label: str, layer: str, count: Column, tensors: Iterable[Tensor], m: Array, stored: WeightFormat
) -> Gemm:
    """One merged GEMM of tensors that share their input (q, k, v; gate and up), on one rank, for each small batch."""
    model, tp, sharding = shard.scenario.model, shard.tp, shard.scenario.sharding
    group = list(tensors)
    n = sum(rows_per_rank(t, model, tp) for t in group)
    weight_bytes = sum(model.layer_bytes(t, stored) * share_per_rank(t, model, sharding) for t in group)
    kernel = linear_kernel(model.format_of(group[0], stored), shard.scenario.fleet.device, shard.activation)
    if shard.widens(model.format_of(group[0], stored).bits_per_weight):
        kernel, weight_bytes = Kernel(KernelName.GEMM, shard.activation), n * cols_per_rank(group[0], tp) * 2.0
    narrow = kernel.name is not KernelName.GEMM_WEIGHT_ONLY and kernel.dtype in NARROW_INPUT
    batches = shard.scenario.engine.small_batches
    return one_row(
        Gemm,
        label,
        layer,
        np.asarray(count, float) * batches,
        kernel,
        m=m / batches,
        n=n,
        k=cols_per_rank(group[0], tp),
        weight_bytes=weight_bytes,
        activation_bytes=kernel.dtype.bytes if narrow else shard.activation.bytes,
        output_bytes=shard.activation.bytes,
    )


def elementwise_row(
    shard: Shard, label: str, layer: str, count: Column, read_bytes: Array, write_bytes: Array, launches: int = 1
) -> Elementwise:
    """Bytes in, bytes out."""
    kernel = Kernel(KernelName.ELEMENTWISE, shard.activation)
    columns = {"read_bytes": read_bytes, "write_bytes": write_bytes, "launches": np.ones_like(read_bytes) * launches}
    return one_row(Elementwise, label, layer, count, kernel, **columns)


def all_reduce(shard: Shard, label: str, layer: str, count: Column) -> list[Collective]:
    """The all-reduce that follows a row-parallel product; none without tensor parallelism."""
    if shard.tp == 1:
        return []
    message = shard.tokens * shard.scenario.model.hidden * shard.activation.bytes
    kernel = Kernel(KernelName.ALL_REDUCE, shard.activation)
    return [one_row(Collective, label, layer, count, kernel, message_bytes=message, ranks=shard.tp)]


def find(model: Model, block: int | None, *roles: Role) -> list[Tensor]:
    """The tensors of those roles in a block (None: outside the layers)."""
    return [t for t in model.tensors if t.block == block and t.role in roles]
