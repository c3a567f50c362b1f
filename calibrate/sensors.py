"""What a GPU tells about itself while it is timed: clock, power, temperature, why it is slowed. Read, never set."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from ..hwspecs.detect import nvidia
from ..hwspecs.detect.nvidia_draft import text
from ..hwspecs.detect.system import System

# Bits of nvmlDeviceGetCurrentClocksEventReasons (nvml.h) that mean a kernel ran slower than it could.
REASONS: Mapping[int, str] = MappingProxyType(
    {
        0x4: "power cap",
        0x8: "hardware slowdown",
        0x10: "sync boost",
        0x20: "software thermal",
        0x40: "hardware thermal",
        0x80: "power brake",
    }
)


class Reading(NamedTuple):
    """One look at a device; None where it does not tell."""

    sm_hz: float | None = None
    memory_hz: float | None = None
    power_w: float | None = None
    celsius: float | None = None
    slowed_by: tuple[str, ...] = ()

    def line(self) -> str:
        """`SM 1980 MHz, 512 W, 58 C, slowed by power cap`: what a record's note says; empty where nothing is told."""
        parts = []
        if self.sm_hz is not None:
            parts.append(f"SM {self.sm_hz / 1e6:.0f} MHz")
        if self.power_w is not None:
            parts.append(f"{self.power_w:.0f} W")
        if self.celsius is not None:
            parts.append(f"{self.celsius:.0f} C")
        if self.slowed_by:
            parts.append(f"slowed by {', '.join(self.slowed_by)}")
        return ", ".join(parts)


class Sensors:
    """NVML opened for one visible device; used as a context. Without a driver it reads nothing."""

    def __init__(self, index: int, nvml: Any | None = None, system: System | None = None) -> None:
        self._nvml = nvml if nvml is not None else nvidia.opened()
        self._handle: Any = None
        if self._nvml is not None:
            handles = nvidia.visible(self._nvml, system or System())
            self._handle = nvidia.whole(self._nvml, handles[index]) if index < len(handles) else None

    def __enter__(self) -> Sensors:
        return self

    def __exit__(self, *_: object) -> None:
        if self._nvml is not None:
            self._nvml.nvmlShutdown()
            self._nvml = None

    @property
    def driver(self) -> str:
        """Version of the driver, or nothing."""
        if self._nvml is None:
            return ""
        return str(text(self._ask("nvmlSystemGetDriverVersion", device=False) or ""))

    def read(self) -> Reading:
        """Clock, power, temperature and throttle reasons now."""
        if self._nvml is None or self._handle is None:
            return Reading()
        n = self._nvml
        clock = self._ask("nvmlDeviceGetClockInfo", n.NVML_CLOCK_SM)
        memory = self._ask("nvmlDeviceGetClockInfo", n.NVML_CLOCK_MEM)
        power, celsius = (
            self._ask("nvmlDeviceGetPowerUsage"),
            self._ask("nvmlDeviceGetTemperature", n.NVML_TEMPERATURE_GPU),
        )
        bits = self._ask("nvmlDeviceGetCurrentClocksEventReasons")
        if bits is None:  # the name of older libraries
            bits = self._ask("nvmlDeviceGetCurrentClocksThrottleReasons")
        return Reading(
            None if clock is None else clock * 1e6,
            None if memory is None else memory * 1e6,
            None if power is None else power * 1e-3,
            None if celsius is None else float(celsius),
            tuple(word for bit, word in REASONS.items() if bits is not None and bits & bit),
        )

    def _ask(self, name: str, *arguments: Any, device: bool = True) -> Any | None:
        """What a function of NVML answers; None where the device or the library does not have it."""
        function = getattr(self._nvml, name, None)
        if function is None or self._nvml is None:
            return None
        try:
            return function(self._handle, *arguments) if device else function(*arguments)
        except self._nvml.NVMLError:
            return None
