"""NVIDIA GPUs through NVML: free memory, MIG slices, visible devices.

A card is the file its name stands for if its memory and bandwidth are those of the file; else it is drafted from what
the driver tells. Where NVML has no memory to report (GB10, Jetson), memory is the host's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from ...errors import SurroundingsError
from .. import names
from ..device import Device, Fact, Kind
from .common import Detected, Seen, as_found, near, nearest, together
from .nvidia_draft import bandwidth_bytes_per_s, draft, text
from .system import System

# Loading NVML costs more than looking for these: data centre and desktop drivers, WSL, Jetson's.
DRIVER_FILES = ("/dev/nvidiactl", "/dev/dxg", "/proc/driver/nvidia", "/dev/nvhost-gpu", "/dev/nvgpu")
BOARD = "/proc/device-tree/model"
SAME_BANDWIDTH = 0.15  # a file's bandwidth and bus times memory clock; cut-down cards of one name differ by more


class Memory(NamedTuple):
    """Bytes of a device in all and free; `shared` with the host where the driver has none to report."""

    total_bytes: float
    free_bytes: float
    shared: bool = False


def find(system: System, host_memory_bytes: float | None) -> Detected | None:
    """This machine's visible NVIDIA GPUs of the first kind."""
    if system.platform == "linux" and not any(system.path(p).exists() for p in DRIVER_FILES):
        return None
    nvml = opened()
    if nvml is None:
        return _jetson(system, host_memory_bytes)
    try:
        seen = [_describe(nvml, handle, system) for handle in visible(nvml, system)]
        return together(seen, host_memory_bytes) if seen else None
    except nvml.NVMLError as error:
        raise SurroundingsError(
            f"the NVIDIA driver did not answer: {error}", remedy="name a device with --gpu"
        ) from None
    finally:
        nvml.nvmlShutdown()


def opened() -> Any | None:
    """NVML, opened, or nothing where there is no driver; whoever opens it calls nvmlShutdown."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml


def visible(nvml: Any, system: System) -> list[Any]:
    """Handles of the devices CUDA programs of this process would see; MIG slices where MIG is on."""
    handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
    wanted = system.environment.get("CUDA_VISIBLE_DEVICES")
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


def memory_of(nvml: Any, handle: Any, system: System) -> Memory:
    """Memory of a device, by the driver; the host's where the driver has none to report."""
    try:
        info = nvml.nvmlDeviceGetMemoryInfo(handle)
    except nvml.NVMLError_NotSupported:
        info = None
    if info is not None and info.total:
        return Memory(float(info.total), float(info.free))
    total, free = system.memory_bytes(), system.available_bytes()
    if total is None or free is None:
        raise SurroundingsError(
            "neither the driver nor the system tells how much memory the GPU has", remedy="name a device with --gpu"
        )
    return Memory(total, free, shared=True)


def _describe(nvml: Any, handle: Any, system: System) -> Seen:
    """The device behind a handle: a listed card, a slice of one, or a draft from what the driver tells."""
    is_slice, parent = _is_slice(nvml, handle), whole(nvml, handle)
    name, memory = text(nvml.nvmlDeviceGetName(parent)), memory_of(nvml, parent, system)
    device, notes = _card(nvml, parent, name, memory, system)
    if is_slice:
        memory = memory_of(nvml, handle, system)
        device = _sliced(device, nvml.nvmlDeviceGetAttributes(handle))
        notes = (*notes, f"a MIG slice of {name}: bandwidth and rates in proportion to its share")
    return Seen(device, min(memory.free_bytes, device.capacity_bytes.value), notes)


def _card(nvml: Any, handle: Any, name: str, memory: Memory, system: System) -> tuple[Device, tuple[str, ...]]:
    """The listed card whose memory and bandwidth these are, else a draft, with what a reader must know about it."""
    files = names.nvml(name)
    if memory.shared:
        return _shared(nvml, handle, name, memory, files, system)
    device = nearest(files, memory.total_bytes)
    if device is not None and near(memory.total_bytes, device) and _same_bandwidth(nvml, handle, device):
        return device, ()
    try:
        drafted = draft(nvml, handle, name, memory.total_bytes)
    except nvml.NVMLError:  # virtual GPUs keep clocks and widths to themselves
        if device is None:
            raise
        return as_found(device, memory.total_bytes, "the driver")
    known = f"{name} is not listed" if device is None else f"this {name} is not the one of {' or '.join(files)}"
    derived = "bandwidth and rates are derived from what its driver reports (its highest clocks)"
    return drafted, (f"{known}: {derived}, devices are taken to be joined by PCIe",)


def _shared(
    nvml: Any, handle: Any, name: str, memory: Memory, files: Sequence[str], system: System
) -> tuple[Device, tuple[str, ...]]:
    """A device without memory of its own. One driver name stands for a family of modules: the board knows which."""
    told = f"memory of {name} is this machine's, shared with its processor"
    device = nearest(names.jetson(_board(system)) or files, memory.total_bytes)
    if device is None:
        note = (
            f"{name} is not listed: bandwidth and rates are derived from what its driver reports (its highest clocks)"
        )
        return draft(nvml, handle, name, memory.total_bytes, shared=True), (note, told)
    found, notes = as_found(device, memory.total_bytes, "this machine")
    return found, (*notes, told)


def _board(system: System) -> str:
    """What the device tree calls the board, without the zero that ends it."""
    return "".join(system.lines(BOARD)).rstrip("\0")


def _jetson(system: System, host_memory_bytes: float | None) -> Detected | None:
    """A Jetson whose system has no NVML (before JetPack 6): the board's name and the host's memory."""
    total, board = system.memory_bytes(), _board(system)
    device = nearest(names.jetson(board), total)
    if device is None:
        return None
    found, notes = as_found(device, total, "this machine")
    seen = Seen(found, system.available_bytes(), (*notes, f"{board}: memory is shared with its processor"))
    return together([seen], host_memory_bytes)


def _same_bandwidth(nvml: Any, handle: Any, device: Device) -> bool:
    """Whether bus and memory clock give the file's bandwidth; true where the driver does not tell them."""
    try:
        found = bandwidth_bytes_per_s(nvml, handle)
    except nvml.NVMLError:
        return True
    return abs(found / device.bandwidth_bytes_per_s.value - 1) <= SAME_BANDWIDTH


def whole(nvml: Any, handle: Any) -> Any:
    """The card that a MIG slice is part of; any other device itself."""
    return nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle) if _is_slice(nvml, handle) else handle


def _is_slice(nvml: Any, handle: Any) -> bool:
    try:
        return bool(nvml.nvmlDeviceIsMigDeviceHandle(handle))
    except nvml.NVMLError:
        return False


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
