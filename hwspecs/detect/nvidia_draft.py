"""A card nobody listed, from its driver: capacity, bus x memory clock, cores x clock x operations of its generation."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from ...errors import SurroundingsError
from ..architectures import GENERATIONS, flops_per_clock
from ..device import Device, Fact, Kind, Link, Source
from ..load import names

DRIVER, GUIDE, SHARED = "driver", "guide", "shared"
DESCRIBE = "describe it: `roofplan hw new mine --like rtx-4090`, edit, --gpu mine.toml"


def text(value: str | bytes) -> str:
    """A text of NVML, whose older bindings give bytes."""
    return value.decode() if isinstance(value, bytes) else value


def bandwidth_bytes_per_s(nvml: Any, handle: Any) -> float:
    """Bus width times the highest memory clock, two bits a clock and pin, as NVML counts clocks of all kinds."""
    return float(nvml.nvmlDeviceGetMemoryBusWidth(handle) * _pin_rate(nvml, handle) / 8)


def draft(nvml: Any, handle: Any, name: str, total_bytes: float, *, shared: bool = False) -> Device:
    """The device as its driver describes it; raises where the driver or the generation leaves rates unknown."""
    capability = tuple(nvml.nvmlDeviceGetCudaComputeCapability(handle))
    generation = GENERATIONS.get(capability)
    if generation is None:
        raise SurroundingsError(f"unknown GPU {name} of compute capability {capability}", remedy=DESCRIBE)
    sms = nvml.nvmlDeviceGetNumGpuCores(handle) / generation.cores
    clock = nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM) * 1e6
    per_clock = flops_per_clock(generation, name)
    link = "memory-bus" if shared else _pcie(nvml, handle)
    power = _power_w(nvml, handle)

    def told(value: float, kind: Kind = Kind.MEASURED) -> Fact:
        return Fact(float(value), DRIVER, kind)

    return Device(
        key=name.lower().removeprefix("nvidia ").replace(" ", "-"),
        file="NVML",
        name=name,
        sources=MappingProxyType(_sources(nvml, name, capability, shared)),
        vendor="nvidia",
        architecture=generation.architecture,
        architecture_class=generation.architecture_class,
        accumulate="fp32",
        capacity_bytes=told(total_bytes),
        bandwidth_bytes_per_s=told(bandwidth_bytes_per_s(nvml, handle), Kind.DERIVED),
        memory_bus_bits=told(nvml.nvmlDeviceGetMemoryBusWidth(handle)),
        memory_bits_per_s_per_pin=told(_pin_rate(nvml, handle), Kind.DERIVED),
        sm_count=told(sms, Kind.DERIVED),
        clock_hz=told(clock),
        compute_capability=told(capability[0] + capability[1] / 10),
        power_w=told(power) if power else None,
        peak_dense_flops_per_s={k: told(sms * clock * v, Kind.DERIVED) for k, v in per_clock.items()},
        flops_per_clock_per_sm={k: Fact(v, GUIDE, Kind.DERIVED) for k, v in per_clock.items()},
        interconnect=link,
        host_link=link,
        unified_memory=shared,
        addressable_share=Fact(1.0, SHARED, Kind.ASSUMED) if shared else None,
    )


def _sources(nvml: Any, name: str, capability: tuple[int, ...], shared: bool) -> dict[str, Source]:
    driver = text(nvml.nvmlSystemGetDriverVersion())
    version = ".".join(map(str, capability))
    sources = {
        DRIVER: Source(f"NVML of {name}", "NVIDIA driver", f"queried on one machine, driver {driver}: highest clocks"),
        GUIDE: Source("CUDA C++ Programming Guide and whitepapers", "NVIDIA", f"compute capability {version} ({name})"),
    }
    if shared:
        sources[SHARED] = Source("CUDA programs may take all of shared memory", "roofplan", name)
    return sources


def _pin_rate(nvml: Any, handle: Any) -> float:
    return float(nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_MEM)) * 2e6


def _power_w(nvml: Any, handle: Any) -> float | None:
    try:
        return float(nvml.nvmlDeviceGetPowerManagementDefaultLimit(handle)) / 1000
    except nvml.NVMLError:
        return None


def _pcie(nvml: Any, handle: Any) -> str:
    """The PCIe file of the card's generation and width; the nearest listed where there is none of them."""
    generation = min(max(nvml.nvmlDeviceGetMaxPcieLinkGeneration(handle), 3), 6)
    try:
        width = nvml.nvmlDeviceGetMaxPcieLinkWidth(handle)
    except nvml.NVMLError:
        width = 16
    name = f"pcie{generation}-x{width}"
    return name if name in names(Link) else f"pcie{generation}-x16"
