"""The machine's own hardware: NVIDIA GPUs, then AMD's, Intel's, Apple's, else the CPU.

Nothing is changed on a device, and no vendor's tool is started: the system's own files and libraries tell enough.
"""

from __future__ import annotations

from collections.abc import Callable

from . import amd, apple, cpu, intel, nvidia
from .common import Detected, Unlisted
from .system import System

__all__ = ["Detected", "System", "detect"]

VENDORS: tuple[Callable[[System, float | None], Detected | Unlisted | None], ...] = (
    nvidia.find,
    amd.find,
    intel.find,
    apple.find,
)


def detect(host_memory_bytes: float | None = None, system: System | None = None) -> Detected:
    """This machine's GPUs if there are any, else its CPU and memory; `system` is where it tells about itself."""
    system = system or System()
    ram = host_memory_bytes or system.available_bytes()
    unlisted: list[str] = []
    for find in VENDORS:
        found = find(system, ram)
        if isinstance(found, Detected):
            return found._replace(notes=(*found.notes, *unlisted))
        if found is not None:
            unlisted.append(found.note)
    last = cpu.find(system, ram)
    return last._replace(notes=(*unlisted, *last.notes))
