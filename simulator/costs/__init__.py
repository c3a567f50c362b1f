"""Cost models: operators x device x calibration -> estimates. One file per operator class, one entry point."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ...hwspecs.device import Fleet
from ..calibration import CalibrationSet, LatencyBandwidth, ThreeConstants
from ..estimate import Array, Estimate
from ..operators import (
    Attention,
    Collective,
    Convolution,
    Copy,
    Elementwise,
    Experts,
    Gemm,
    LatentAttention,
    Table,
)
from . import attention, collective, convolution, copy, elementwise, experts, gemm, latent_attention
from .alpha_beta import latency_bandwidth
from .roofline import three_constants


class Work(NamedTuple):
    """FLOPs computed and bytes moved by each row of a table: what a roofline needs to know."""

    flops: Array
    traffic_bytes: Array


def work(table: Table) -> Work:
    """Exact FLOPs and bytes of each row; for links the bytes that cross one of them."""
    match table:
        case Gemm():
            return Work(gemm.flops(table), gemm.traffic_bytes(table))
        case Attention():
            return Work(attention.flops(table), attention.traffic_bytes(table))
        case LatentAttention():
            return Work(latent_attention.flops(table), latent_attention.traffic_bytes(table))
        case Experts():
            return Work(experts.flops(table), experts.traffic_bytes(table))
        case Elementwise():
            return Work(np.zeros_like(table.launches), elementwise.traffic_bytes(table))
        case Convolution():
            return Work(convolution.flops(table), convolution.traffic_bytes(table))
        case Collective():
            return Work(np.zeros_like(table.ranks), collective.traffic_bytes(table))
        case Copy():
            return Work(np.zeros_like(table.copy_bytes), copy.traffic_bytes(table))
    raise TypeError(f"no cost model for {type(table).__name__}")


def estimate(table: Table, fleet: Fleet, calibrations: CalibrationSet) -> Estimate:
    """Time of each row of the table on one device of the fleet (leading axis: rows)."""
    resolved = calibrations.resolve(table.kernel)
    amount = work(table)
    parameters = resolved.calibration.parameters
    match parameters:
        case LatencyBandwidth():
            link = fleet.host_link if isinstance(table, Copy) else fleet.interconnect
            ranks = table.ranks if isinstance(table, Collective) else np.ones_like(amount.traffic_bytes)
            return latency_bandwidth(amount.traffic_bytes, ranks, link.bandwidth_bytes_per_s, resolved, parameters)
        case ThreeConstants():
            peak = fleet.device.peak_flops_per_s(table.kernel.arithmetic)
            bandwidth = fleet.device.bandwidth_bytes_per_s
            launches = table.launches if isinstance(table, Elementwise) else np.ones_like(amount.flops)
            return three_constants(amount.flops, amount.traffic_bytes, launches, peak, bandwidth, resolved, parameters)


__all__ = ["Work", "estimate", "work"]
