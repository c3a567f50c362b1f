"""The machine's own hardware: NVIDIA GPUs through NVML (free memory, MIG slices, visible devices), else the CPU.

Nothing is changed on the device. Container limits (cgroups) and CPU affinity bound what the host offers.
"""

from __future__ import annotations

import os
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from ..dtypes import DType
from ..errors import SurroundingsError
from .device import Device, Fact, Fleet, Kind, Source
from .load import ROOT, fleet_of, load

# Class, dense bf16 FLOPs per clock and multiprocessor with fp32 accumulation, CUDA cores per multiprocessor, by compute
# capability (CUDA programming guide, arithmetic throughput).
_ARCHITECTURE: Mapping[tuple[int, int], tuple[str, str, int, int]] = MappingProxyType(
    {
        (7, 0): ("volta", "mma.sync", 1024, 64),
        (7, 5): ("turing", "mma.sync", 1024, 64),
        (8, 0): ("ampere", "mma.sync", 2048, 64),
        (8, 6): ("ampere", "mma.sync", 1024, 128),
        (8, 7): ("ampere", "mma.sync", 1024, 128),
        (8, 9): ("ada", "mma.sync", 1024, 128),
        (9, 0): ("hopper", "wgmma", 4096, 128),
        (10, 0): ("blackwell", "tcgen05", 8192, 128),
        (12, 0): ("blackwell", "mma.sync", 1024, 128),
    }
)


HALVED_LINES = ("GeForce", "TITAN RTX")  # consumer cards run fp32 accumulation at half rate; professional ones do not
DRIVER_FILES = ("/dev/nvidiactl", "/dev/dxg", "/proc/driver/nvidia")  # loading NVML costs more than looking for these


class Detected(NamedTuple):
    """What this machine offers, and what a reader should know about how that was found."""

    fleet: Fleet
    notes: tuple[str, ...]


def detect(host_memory_bytes: float | None = None) -> Detected:
    """This machine's GPUs if there are any, else its CPU and memory."""
    ram = host_memory_bytes or available_host_memory_bytes()
    return _nvidia(ram) or _cpu(ram)


def _nvidia(host_memory_bytes: float | None) -> Detected | None:
    if sys.platform == "linux" and not any(Path(p).exists() for p in DRIVER_FILES):
        return None
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        handles = _visible(pynvml)
        if not handles:
            return None
        devices = [_describe(pynvml, handle) for handle in handles]
        device, notes = devices[0]
        alike = [
            handle
            for handle, (d, _) in zip(handles, devices, strict=True)
            if (d.key, d.capacity_bytes) == (device.key, device.capacity_bytes)
        ]
        if len(alike) < len(devices):
            notes = (*notes, f"{len(devices) - len(alike)} unlike devices of this machine are left out")
        free = min(float(pynvml.nvmlDeviceGetMemoryInfo(h).free) for h in alike)
        fleet = fleet_of(device, len(alike), None, host_memory_bytes)
        # A process brings its own context, which free memory does not know about yet; the ledger counts it.
        return Detected(replace(fleet, free_bytes=min(free, device.capacity_bytes.value)), notes)
    except pynvml.NVMLError as error:
        raise SurroundingsError(
            f"the NVIDIA driver did not answer: {error}", remedy="name a device with --gpu"
        ) from None
    finally:
        pynvml.nvmlShutdown()


def _visible(nvml: Any) -> list[Any]:
    """Handles of the devices CUDA programs of this process would see; MIG slices where MIG is on."""
    handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
    if wanted is not None:
        chosen = []
        for item in (part.strip() for part in wanted.split(",")):
            if item.isdigit() and int(item) < len(handles):
                chosen.append(handles[int(item)])
            elif item.startswith(("GPU-", "MIG-")):
                chosen.append(nvml.nvmlDeviceGetHandleByUUID(item))
            else:  # CUDA itself stops at the first name it does not know
                break
        handles = chosen
    return [part for handle in handles for part in _slices(nvml, handle)]


def _slices(nvml: Any, handle: Any) -> list[Any]:
    try:
        mode, _ = nvml.nvmlDeviceGetMigMode(handle)
    except nvml.NVMLError:
        return [handle]
    if not mode:
        return [handle]
    parts = []
    for i in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        try:
            parts.append(nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, i))
        except nvml.NVMLError:
            continue
    return parts


def _describe(nvml: Any, handle: Any) -> tuple[Device, tuple[str, ...]]:
    """The device behind a handle: a listed card, a slice of one, or a draft from what the driver tells."""
    is_slice = _is_slice(nvml, handle)
    parent = nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle) if is_slice else handle
    name = _text(nvml.nvmlDeviceGetName(parent))
    key = tomllib.loads((ROOT / "nvml.toml").read_text(encoding="utf-8")).get(name)
    notes: tuple[str, ...] = ()
    if key is None:
        device = _draft(nvml, parent, name)
        notes = (
            f"{name} is not listed: bandwidth and rates are derived from what its driver reports, devices are taken to "
            "be joined by PCIe",
        )
    else:
        device = load(Device, key)
    if is_slice:
        device = _sliced(device, nvml.nvmlDeviceGetAttributes(handle))
        notes = (*notes, f"a MIG slice of {name}: bandwidth and rates in proportion to its share")
    return device, notes


def _is_slice(nvml: Any, handle: Any) -> bool:
    try:
        return bool(nvml.nvmlDeviceIsMigDeviceHandle(handle))
    except nvml.NVMLError:
        return False


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _sliced(device: Device, attributes: Any) -> Device:
    """A MIG slice: its own memory, the rates in proportion to multiprocessors, the bandwidth to memory."""
    memory = attributes.memorySizeMB * 2.0**20
    total_sms = device.sm_count.value if device.sm_count else attributes.multiprocessorCount
    compute, share = attributes.multiprocessorCount / total_sms, memory / device.capacity_bytes.value

    def part(fact: Fact, factor: float) -> Fact:
        return Fact(fact.value * min(1.0, factor), fact.source, Kind.DERIVED)

    return replace(
        device,
        key=f"{device.key}-mig",
        capacity_bytes=Fact(memory, device.capacity_bytes.source, Kind.MEASURED),
        bandwidth_bytes_per_s=part(device.bandwidth_bytes_per_s, share),
        peak_dense_flops_per_s={k: part(v, compute) for k, v in device.peak_dense_flops_per_s.items()},
        sm_count=part(device.sm_count, compute) if device.sm_count else None,
    )


def _draft(nvml: Any, handle: Any, name: str) -> Device:
    """A device nobody listed, from the driver: capacity, bus x memory clock, cores x clock x operations."""
    capability = tuple(nvml.nvmlDeviceGetCudaComputeCapability(handle))
    if capability not in _ARCHITECTURE:
        remedy = "describe it: `roofplan hw show rtx-4090 --toml > mine.toml`, edit, --gpu mine.toml"
        raise SurroundingsError(f"unknown GPU {name} of compute capability {capability}", remedy=remedy)
    architecture, class_, ops, cores_per_sm = _ARCHITECTURE[capability]
    if any(line in name for line in HALVED_LINES):
        ops //= 2
    driver = Source(f"NVML of {name}", "NVIDIA driver", "queried on this machine")
    sms = nvml.nvmlDeviceGetNumGpuCores(handle) / cores_per_sm
    clock = nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM) * 1e6
    pin_rate = nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_MEM) * 2e6
    bus = nvml.nvmlDeviceGetMemoryBusWidth(handle)
    rates = {DType.FP32: sms * clock * 2 * cores_per_sm, DType.FP16: sms * clock * ops}
    if capability >= (8, 0):
        rates[DType.BF16] = rates[DType.FP16]
    if capability >= (8, 9):
        rates[DType.FP8] = 2 * rates[DType.BF16]
    lanes = nvml.nvmlDeviceGetMaxPcieLinkGeneration(handle)
    return Device(
        key=name.lower().removeprefix("nvidia ").replace(" ", "-"),
        file="NVML",
        name=name,
        sources=MappingProxyType({"driver": driver}),
        vendor="nvidia",
        architecture=architecture,
        architecture_class=class_,
        capacity_bytes=Fact(float(nvml.nvmlDeviceGetMemoryInfo(handle).total), "driver", Kind.MEASURED),
        bandwidth_bytes_per_s=Fact(bus * pin_rate / 8, "driver", Kind.DERIVED),
        peak_dense_flops_per_s={k: Fact(v, "driver", Kind.DERIVED) for k, v in rates.items()},
        interconnect=f"pcie{min(max(lanes, 3), 5)}-x16",
        host_link=f"pcie{min(max(lanes, 3), 5)}-x16",
        sm_count=Fact(sms, "driver", Kind.DERIVED),
        clock_hz=Fact(clock, "driver", Kind.MEASURED),
    )


def _cpu(host_memory_bytes: float | None) -> Detected:
    """This machine's CPU as a device; its memory bandwidth cannot be read without privileges and is assumed."""
    if host_memory_bytes is None:
        raise SurroundingsError("cannot read this machine's memory", remedy="name a device with --gpu, or give --ram")
    cores, flags = usable_cores(), _cpu_flags()
    width, name = (64, "AVX-512") if "avx512f" in flags else (32, "AVX2") if "avx2" in flags else (8, "no AVX2")
    clock = 2.5e9
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
        bandwidth_bytes_per_s=assumed(51.2e9),
        peak_dense_flops_per_s={DType.FP32: assumed(cores * clock * width)},
        interconnect="memory-bus",
        host_link="memory-bus",
        sm_count=Fact(cores, "machine", Kind.MEASURED),
        clock_hz=assumed(clock),
        unified_memory=True,
    )
    notes = (
        "no NVIDIA GPU found: this is the CPU. Its memory bandwidth (51.2 GB/s) and clock (2.5 GHz) are assumed",
        "name a GPU to ask about it: --gpu rtx-4090",
    )
    return Detected(fleet_of(device, 1, None, host_memory_bytes), notes)


def usable_cores() -> int:
    """Cores this process may use: affinity and cgroup quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _read_words(Path("/sys/fs/cgroup/cpu.max"))
    if len(quota) == 2 and quota[0].isdigit() and int(quota[1]) > 0:
        cores = min(cores, max(1, int(quota[0]) // int(quota[1])))
    return max(1, cores)


def available_host_memory_bytes() -> float | None:
    """Memory this process may still take: what the system calls available, bounded by the container's limit."""
    available = None
    for line in _read_lines(Path("/proc/meminfo")):
        if line.startswith("MemAvailable:"):
            available = float(line.split()[1]) * 1024
    if available is None:
        try:
            available = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
        except (ValueError, OSError, AttributeError):
            return None
    for limit_file, used_file in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        limit, used = _read_words(Path(limit_file)), _read_words(Path(used_file))
        if limit and limit[0].isdigit() and int(limit[0]) < 2**60:
            spent = float(used[0]) if used and used[0].isdigit() else 0.0
            available = min(available, max(1.0, float(limit[0]) - spent))
    return available


def _machine() -> str:
    """x86_64, aarch64, ..."""
    if hasattr(os, "uname"):
        return os.uname().machine.lower()
    import platform

    return platform.machine().lower() or "unknown"


def _cpu_flags() -> set[str]:
    for line in _read_lines(Path("/proc/cpuinfo")):
        if line.startswith(("flags", "Features")):
            return set(line.split(":", 1)[1].split())
    return set()


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []


def _read_words(path: Path) -> list[str]:
    lines = _read_lines(path)
    return lines[0].split() if lines else []
