"""The machine a measurement belongs to: what it is called, what runs on it, and its hardware file where nobody has one.

A CPU's file is drafted from measurements: its rate is that of the fastest product, its bandwidth that of the fastest
stream. Both are what torch reaches with the threads it was given, and stand in the file as measured.
"""

from __future__ import annotations

import datetime
import platform
import re
import time
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from ..dtypes import DType
from ..errors import SurroundingsError
from ..hwspecs.detect.system import System
from ..hwspecs.device import Device, Fact, Kind, Source
from ..hwspecs.new import to_toml
from ..simulator.costs import work
from ..simulator.operators import KernelName
from .records import Measurements

CLOCK_HZ = 2.5e9  # assumed where the system does not tell
CACHE_BYTES = 32 * 2**20  # the same of the last-level cache
LOOK_S = 0.3  # for how long other programs' use of the cores is watched
NEARLY_FREE = 0.3  # of a core that something else uses now and then
STREAMS = "stream"  # how the variants begin that a memory's bandwidth is read off


class Machine(NamedTuple):
    """One device of this machine. `software` is what times depend on beside it; `file` its hardware file if listed."""

    key: str
    name: str
    vendor: str
    software: str
    threads: int
    cache_bytes: float
    memory_bytes: float
    clock_hz: float
    file: str = ""


def this_cpu(torch: Any, threads: int, system: System | None = None) -> Machine:
    """This machine's processor with so many threads."""
    system = system or System()
    name = _cpu_name(system)
    memory = system.memory_bytes() or system.available_bytes()
    if memory is None:
        raise SurroundingsError("cannot read this machine's memory", remedy="nothing can be timed without knowing it")
    slug = re.sub(r"[^a-z0-9]+", "-", re.sub(r"\(.*?\)", " ", name.lower())).strip("-")[:40].strip("-") or "cpu"
    software = f"torch {torch.__version__}, Python {platform.python_version()}, {platform.system()}"
    return Machine(
        key=f"{slug}-{threads}-threads",
        name=name,
        vendor="cpu",
        software=software,
        threads=threads,
        cache_bytes=_cache_bytes(system) or CACHE_BYTES,
        memory_bytes=memory,
        clock_hz=_clock_hz(system) or CLOCK_HZ,
    )


def threads_of(key: str) -> int | None:
    """The threads that a key made by `this_cpu` names."""
    match = re.fullmatch(r".+-(\d+)-threads", key)
    return int(match.group(1)) if match else None


def free_cores(system: System | None = None, look_s: float = LOOK_S) -> int:
    """Cores that nothing else uses now: a parallel operator waits for its slowest thread, however short its turn.

    All usable ones where the system does not tell.
    """
    system = system or System()
    cores = system.usable_cores()
    return max(1, min(cores, int(cores - busy_cores(system, look_s) + NEARLY_FREE)))


def busy_cores(system: System, look_s: float = LOOK_S) -> float:
    """Cores' worth of work that everything on this machine does while we look on; 0 where the system does not tell."""
    before = _busy_and_all(system)
    time.sleep(look_s if before else 0.0)
    after = _busy_and_all(system)
    if not before or not after or after[1] <= before[1]:
        return 0.0
    return system.usable_cores() * (after[0] - before[0]) / (after[1] - before[1])


def _busy_and_all(system: System) -> tuple[float, float] | None:
    """Ticks of all cores so far: those somebody used, and all of them."""
    words = system.words("/proc/stat")
    if len(words) < 6 or words[0] != "cpu":
        return None
    ticks = [float(w) for w in words[1:9]]
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)


def _cpu_name(system: System) -> str:
    for line in system.lines("/proc/cpuinfo"):
        if line.startswith(("model name", "Model\t", "Hardware")):
            return line.split(":", 1)[1].strip()
    return system.sysctl_text("machdep.cpu.brand_string") or platform.processor() or platform.machine() or "CPU"


def _clock_hz(system: System) -> float | None:
    found = [line.split(":", 1)[1] for line in system.lines("/proc/cpuinfo") if line.startswith("cpu MHz")]
    return max(float(text) * 1e6 for text in found) if found else None


def _cache_bytes(system: System) -> float | None:
    """The largest cache of the first core: the last level."""
    found = []
    for index in range(8):
        words = system.words(f"/sys/devices/system/cpu/cpu0/cache/index{index}/size")
        if words and (match := re.fullmatch(r"(\d+)([KMG]?)", words[0])):
            found.append(float(match.group(1)) * {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}[match.group(2)])
    return max(found, default=None)


def draft(machine: Machine, groups: Sequence[Measurements], streams: np.ndarray[Any, np.dtype[np.bool_]]) -> Device:
    """The CPU as a device, from its measurements; `streams` marks elementwise rows over memory alone."""
    flops, rates = 0.0, 0.0
    for table, seconds, rows in groups:
        amount = work(table)
        if table.kernel.name is KernelName.GEMM and table.kernel.dtype is DType.FP32:
            flops = max(flops, float(np.max(amount.flops / seconds)))
        chosen = streams[rows]
        if table.kernel.name is KernelName.ELEMENTWISE and chosen.any():
            rates = max(rates, float(np.max(amount.traffic_bytes[chosen] / seconds[chosen])))
    if not flops or not rates:
        raise SurroundingsError("no product or no stream was timed: the processor's rates are not known")
    day = datetime.date.today().isoformat()
    told = Source(f"measured on {machine.name}", "roofplan calibrate", f"{day}, {machine.software}")

    def fact(value: float, kind: Kind = Kind.MEASURED) -> Fact:
        return Fact(value, "measured", kind)

    return Device(
        key=machine.key,
        file=f"{machine.key}.toml",
        name=f"{machine.name}, {_threads(machine.threads)}",
        sources=MappingProxyType({"measured": told}),
        vendor="cpu",
        architecture=platform.machine().lower() or "unknown",
        architecture_class="cpu",
        capacity_bytes=fact(machine.memory_bytes),
        bandwidth_bytes_per_s=fact(float(f"{rates:.4g}")),
        peak_dense_flops_per_s={DType.FP32: fact(float(f"{flops:.4g}"))},
        interconnect="memory-bus",
        host_link="memory-bus",
        sm_count=fact(machine.threads),
        clock_hz=fact(machine.clock_hz),
        l2_bytes=fact(machine.cache_bytes),
        addressable_share=Fact(1.0, "measured", Kind.ASSUMED),
        unified_memory=True,
    )


def _threads(count: int) -> str:
    return f"{count} thread{'s' * (count > 1)}"


def hardware_text(device: Device) -> str:
    """A hardware file of the draft."""
    return to_toml(
        device,
        ["Drafted by `roofplan calibrate` from what was measured here: rates of torch, not of a data sheet."],
        {"clock_hz": "as the system tells", "l2_bytes": "the last-level cache as the system tells"},
    )


def write_hardware(device: Device, folder: Path) -> Path:
    """Put the hardware file where records of the device find it: beside them."""
    from ..files import write_text

    path = folder / f"{device.key}.toml"
    write_text(path, hardware_text(device), "--out")
    return path
