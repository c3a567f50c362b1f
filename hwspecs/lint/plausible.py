"""Units: a number that no part of its kind has was written in another unit than the schema's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

from ..device import Cluster, Device, Host, Link, Part, Storage
from .base import Finding, facts_of


class Range(NamedTuple):
    """What a number may be, from the least to the most that any part of the last decade has, and the usual slip."""

    low: float
    high: float
    slip: str
    whole: bool = False


_GIGA = "gigabytes written as bytes"
_RATE = "GB/s or TB/s written as bytes per second"
_HERTZ = "MHz or GHz written as Hz"
_COUNT = "a count"

# The lowest and highest of each: a Jetson Nano or a wristwatch's worth to a rack, with room on both sides.
RANGES: Mapping[type[Part], Mapping[str, Range]] = MappingProxyType(
    {
        Device: {
            "capacity_bytes": Range(1e9, 4e12, _GIGA),
            "advertised_capacity_bytes": Range(1e9, 4e12, _GIGA),
            "bandwidth_bytes_per_s": Range(5e9, 1e14, _RATE),
            "peak_dense_flops_per_s": Range(1e11, 1e18, "TFLOP/s or PFLOP/s written as FLOP/s"),
            "peak_sparse_flops_per_s": Range(1e11, 1e18, "TFLOP/s or PFLOP/s written as FLOP/s"),
            "sustained_flops_per_s": Range(1e11, 1e18, "TFLOP/s or PFLOP/s written as FLOP/s"),
            "flops_per_clock_per_sm": Range(2, 1e7, "operations per clock of one multiprocessor"),
            "sm_count": Range(1, 1e5, _COUNT, whole=True),
            "clock_hz": Range(2e8, 6e9, _HERTZ),
            "l2_bytes": Range(2.5e5, 1e10, "megabytes written as bytes"),
            "shared_memory_per_sm_bytes": Range(8e3, 3e8, "kilobytes written as bytes"),
            "register_file_per_sm_bytes": Range(8e3, 3e8, "kilobytes, or a number of registers, written as bytes"),
            "memory_bus_bits": Range(32, 65536, "bits of the whole interface", whole=True),
            "memory_bits_per_s_per_pin": Range(5e8, 1e11, "Gb/s or MHz written as bits per second"),
            "interconnect_bytes_per_s": Range(1e8, 1e13, _RATE),
            "power_w": Range(3, 5000, "kilowatts or milliwatts written as watts"),
            "compute_capability": Range(3, 20, "written like 8.9"),
            "addressable_share": Range(0.1, 1, "a share, not per cent"),
        },
        Host: {
            "memory_bytes": Range(1e9, 1e15, _GIGA),
            "memory_bandwidth_bytes_per_s": Range(1e9, 1e14, _RATE),
            "cores": Range(1, 1e5, _COUNT, whole=True),
            "clock_hz": Range(2e8, 6e9, _HERTZ),
            "sockets": Range(1, 1000, _COUNT, whole=True),
            "memory_channels": Range(1, 10000, _COUNT, whole=True),
            "memory_transfers_per_s": Range(5e8, 2e10, "MT/s written as transfers per second"),
            "peak_dense_flops_per_s": Range(1e9, 1e17, "GFLOP/s or TFLOP/s written as FLOP/s"),
        },
        Storage: {
            "read_bytes_per_s": Range(1e7, 1e12, "MB/s written as bytes per second"),
            "write_bytes_per_s": Range(1e7, 1e12, "MB/s written as bytes per second"),
            "capacity_bytes": Range(1e9, 1e16, "gigabytes or terabytes written as bytes"),
            "random_reads_per_s": Range(10, 1e8, "thousands written as ones"),
        },
        Link: {
            "bandwidth_bytes_per_s": Range(1e6, 1e13, _RATE),
            "transfers_per_s": Range(1e8, 1e13, "GT/s written as transfers per second"),
            "lanes": Range(1, 1024, _COUNT, whole=True),
            "encoding": Range(0.1, 1, "a share, not per cent"),
            "latency_s": Range(1e-9, 0.02, "microseconds written as seconds"),
        },
        Cluster: {
            "device_count": Range(1, 1e5, _COUNT, whole=True),
            "network_ports": Range(1, 1e4, _COUNT, whole=True),
        },
    }
)


def numbers_are_in_their_units(part: Part) -> Iterator[Finding]:
    """Every number within the range of its field; counts are whole."""
    ranges = RANGES[type(part)]
    for key, fact in facts_of(part):
        allowed = ranges[key.split(".")[0]]
        if not allowed.low <= fact.value <= allowed.high:
            problem = f"{fact.value:.6g} lies outside {allowed.low:.4g} to {allowed.high:.4g}: {allowed.slip}?"
            yield Finding(part.file, key, problem)
        elif allowed.whole and fact.value != int(fact.value):
            yield Finding(part.file, key, f"{fact.value:.6g} is not whole: {allowed.slip}")
