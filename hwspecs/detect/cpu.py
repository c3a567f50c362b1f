"""The processor as a device, where there is no GPU."""

from __future__ import annotations

import os
from types import MappingProxyType

from ...dtypes import DType
from ...errors import SurroundingsError
from ..device import Device, Fact, Kind, Source
from ..load import fleet_of
from .common import Detected
from .system import System

CLOCK_HZ = 2.5e9  # assumed: neither can be read without privileges
BANDWIDTH_BYTES_PER_S = 51.2e9  # two channels of DDR4-3200


def find(system: System, host_memory_bytes: float | None) -> Detected:
    """This machine's CPU as a device; its memory bandwidth cannot be read without privileges and is assumed."""
    if host_memory_bytes is None:
        raise SurroundingsError("cannot read this machine's memory", remedy="name a device with --gpu, or give --ram")
    cores, flags = system.usable_cores(), _flags(system)
    width, name = (64, "AVX-512") if "avx512f" in flags else (32, "AVX2") if "avx2" in flags else (8, "no AVX2")
    source = Source("this machine's CPU", "roofplan", f"{cores} usable cores, {name}; clock and memory are assumptions")

    def assumed(value: float) -> Fact:
        return Fact(value, "machine", Kind.ASSUMED)

    device = Device(
        key="this-cpu",
        file="this machine",
        name=f"this machine's CPU ({cores} cores, {name})",
        sources=MappingProxyType({"machine": source}),
        vendor="cpu",
        architecture=_machine(),
        architecture_class="cpu",
        capacity_bytes=Fact(host_memory_bytes, "machine", Kind.MEASURED),
        bandwidth_bytes_per_s=assumed(BANDWIDTH_BYTES_PER_S),
        peak_dense_flops_per_s={DType.FP32: assumed(cores * CLOCK_HZ * width)},
        interconnect="memory-bus",
        host_link="memory-bus",
        sm_count=Fact(cores, "machine", Kind.MEASURED),
        clock_hz=assumed(CLOCK_HZ),
        unified_memory=True,
    )
    notes = (
        "no GPU found that roofplan knows: this is the CPU. Its memory bandwidth (51.2 GB/s) and clock (2.5 GHz) are "
        "assumed",
        "name a GPU to ask about it: --gpu rtx-4090",
    )
    return Detected(fleet_of(device, 1, None, host_memory_bytes), notes)


def _machine() -> str:
    """x86_64, aarch64, ..."""
    if hasattr(os, "uname"):
        return os.uname().machine.lower()
    import platform

    return platform.machine().lower() or "unknown"


def _flags(system: System) -> set[str]:
    for line in system.lines("/proc/cpuinfo"):
        if line.startswith(("flags", "Features")):
            return set(line.split(":", 1)[1].split())
    return set()
