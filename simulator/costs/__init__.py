"""Cost models: operators x device x calibration -> estimates. One file per operator class, one entry point."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ...hwspecs.device import Fleet, Kind
from ..calibration import Cache, CalibrationSet, Denominators, Parameters, Resolved
from ..estimate import NO_TIME, Array, Estimate, Terms, priced
from ..operators import (
    Attention,
    Collective,
    Convolution,
    Copy,
    Elementwise,
    Experts,
    Gemm,
    Kernel,
    KernelName,
    LatentAttention,
    Table,
    TableT,
)
from ..parameters import (
    FlashPrefill,
    GroupedExperts,
    LatencyBandwidth,
    LatentDecode,
    OneOrTwoShot,
    PackedGemm,
    Ring,
    ScaledGemm,
    SoftRoofline,
    SplitKGemm,
    SplitKvDecode,
    Streaming,
    ThreeConstants,
)
from . import attention, collective, convolution, copy, elementwise, experts, gemm, latent_attention, packed_gemm
from .alpha_beta import latency_bandwidth
from .roofline import soft_roofline, three_constants


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


def datasheet(fleet: Fleet, kernel: Kernel, like: Denominators | None = None) -> Denominators:
    """The numbers of the fleet's hardware files that a kernel's parameters are fractions of.

    A count, clock or cache nobody states is that of the device the parameters come from (`like`).
    """
    unstated = (1.0, 1.0, 1.0) if like is None else (like.sm_count, like.clock_hz, like.l2_bytes)
    device = fleet.device
    return Denominators(
        device.peak_flops_per_s(kernel.arithmetic).value,
        device.bandwidth_bytes_per_s.value,
        (fleet.host_link if kernel.name is KernelName.HOST_COPY else fleet.interconnect).bandwidth_bytes_per_s.value,
        *(
            other if known is None else known.value
            for known, other in zip((device.sm_count, device.clock_hz, device.l2_bytes), unstated, strict=True)
        ),
    )


def terms(table: Table, d: Denominators, parameters: Parameters, cache: Cache = Cache.COLD) -> Terms:
    """Time of each row on a device of these rates: the one path of fitting, validation and prediction."""
    match table, parameters:
        case _, ThreeConstants() | SoftRoofline():
            amount = work(table)
            launches = table.launches if isinstance(table, Elementwise) else np.ones_like(amount.flops)
            price = three_constants if isinstance(parameters, ThreeConstants) else soft_roofline
            return price(amount.flops, amount.traffic_bytes, launches, d, parameters)  # type: ignore[arg-type]
        case _, LatencyBandwidth():
            crossing = work(table).traffic_bytes
            ranks = table.ranks if isinstance(table, Collective) else np.ones_like(crossing)
            return latency_bandwidth(crossing, ranks, d, parameters)
        case Gemm(), SplitKGemm():
            return _at_distinct(table, "m", lambda t: gemm.split_k(t, d, parameters, cache))
        case Gemm(), PackedGemm():
            return packed_gemm.packed(table, d, parameters)
        case Gemm(), ScaledGemm():
            return _at_distinct(table, "m", lambda t: gemm.scaled(t, d, parameters, cache))
        case Convolution(), SplitKGemm():
            return gemm.split_k(convolution.as_gemm(table), d, parameters, cache)
        case Attention(), FlashPrefill():
            return attention.prefill(table, d, parameters, cache)
        case Attention(), SplitKvDecode():
            return attention.decode(table, d, parameters, cache)
        case LatentAttention(), FlashPrefill():
            return latent_attention.prefill(table, d, parameters, cache)
        case LatentAttention(), LatentDecode():
            return latent_attention.decode(table, d, parameters, cache)
        case Experts(), GroupedExperts():
            return _at_distinct(table, "tokens", lambda t: experts.grouped(t, d, parameters, cache))
        case Elementwise(), Streaming():
            return elementwise.streaming(table, d, parameters)
        case Collective(), Ring():
            return collective.ring(table, d, parameters)
        case Collective(), OneOrTwoShot():
            return collective.one_or_two_shot(table, d, parameters)
    raise TypeError(f"no cost model for {type(table).__name__} with {type(parameters).__name__}")


MANY = 4096  # grid points from which it pays to price each distinct number of tokens once


def _at_distinct(table: TableT, column: str, price: Callable[[TableT], Terms]) -> Terms:
    """Prices of a table whose grid axes all belong to one column of tokens: large grids hold few distinct ones."""
    tokens: Array = getattr(table, column)
    numeric = [getattr(table, f.name) for f in dataclasses.fields(table) if f.name not in ("count", column)]
    alone = all(a.size == a.shape[0] for a in numeric if isinstance(a, np.ndarray))
    if tokens[0].size < MANY or not alone:
        return price(table)
    distinct = np.unique(tokens)
    if distinct.size * 2 > tokens[0].size:
        return price(table)
    few = {
        f.name: getattr(table, f.name).reshape(-1, 1)
        for f in dataclasses.fields(table)
        if isinstance(getattr(table, f.name), np.ndarray) and f.name != "count"
    }
    few[column] = np.broadcast_to(distinct, (len(table.label), distinct.size))
    prices = price(dataclasses.replace(table, **few))
    rows = np.arange(len(table.label)).reshape(-1, *([1] * (tokens.ndim - 1)))
    index = np.searchsorted(distinct, tokens)
    return Terms(*(t if t is NO_TIME else np.asarray(t[rows, index]) for t in prices.stack()))


WIDENING_PER_DECADE = 0.25  # log-sd added for each decade outside the calibrated range (assumed; see `Resolved`)


def estimate(table: Table, fleet: Fleet, calibrations: CalibrationSet) -> Estimate:
    """Time of each row of the table on one device of the fleet (leading axis: rows).

    Where the rate that bounds a row is itself an assumption, so is the time, and its error is that much larger.
    """
    return estimate_with(table, fleet, calibrations.resolve(table.kernel))


def limited(d: Denominators, fleet: Fleet, table: Table, resolved: Resolved) -> Denominators:
    """A lender's share of the peak must not exceed what the device was measured to sustain under its power limit."""
    sustained = fleet.device.sustained(table.kernel.arithmetic)
    fraction = getattr(resolved.calibration.parameters, "compute_fraction", None)
    if sustained is None or fraction is None or resolved.calibration.device == fleet.device.key:
        return d
    return d._replace(peak_flops_per_s=min(d.peak_flops_per_s, sustained / fraction))


def estimate_with(table: Table, fleet: Fleet, resolved: Resolved, cache: Cache = Cache.COLD) -> Estimate:
    """The same with a calibration that was found already."""
    denominators = limited(datasheet(fleet, table.kernel, resolved.calibration.denominators), fleet, table, resolved)
    amount, parts = work(table), terms(table, denominators, resolved.calibration.parameters, cache)
    busy = (amount.flops + amount.traffic_bytes) > 0
    outside = np.where(busy, resolved.calibration.hull.outside(amount.flops, amount.traffic_bytes), 0.0)
    return priced(
        parts,
        tier=resolved.tier,
        shared_log_sd=resolved.shared_log_sd,
        own_log_sd=resolved.own_log_sd + WIDENING_PER_DECADE * outside,
        extrapolated=outside > 0,
        guessed=_guessed(table, fleet, parts),
    )


def _guessed(table: Table, fleet: Fleet, parts: Terms) -> npt.NDArray[np.bool_] | None:
    """Rows bounded by a rate that nobody stated; None where all are known."""
    if isinstance(table, Collective | Copy):
        link = fleet.host_link if isinstance(table, Copy) else fleet.interconnect
        assumed = link.bandwidth_bytes_per_s.kind is Kind.ASSUMED
        return np.ones(parts.total_s().shape, dtype=bool) if assumed else None
    peak = fleet.device.peak_flops_per_s(table.kernel.arithmetic).kind is Kind.ASSUMED
    bandwidth = fleet.device.bandwidth_bytes_per_s.kind is Kind.ASSUMED
    if not (peak or bandwidth):
        return None
    return np.asarray(np.where(parts.compute_s > parts.memory_s, peak, bandwidth))


__all__ = ["Work", "datasheet", "estimate", "estimate_with", "terms", "work"]
