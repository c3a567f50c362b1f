"""What detection finds, and how devices seen one by one become a fleet."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

from ...units import format_gib
from ..device import Device, Fact, Fleet, Kind
from ..load import fleet_of, load

# A driver's total differs from a file's by reserves, driver versions and error correction (a sixteenth of GDDR); the
# sizes a card is sold in differ by a fifth and more.
SAME_SIZE = 0.12


class Detected(NamedTuple):
    """What this machine offers, and what a reader should know about how that was found."""

    fleet: Fleet
    notes: tuple[str, ...]


class Unlisted(NamedTuple):
    """A GPU that is there but that no file describes; the note says how to describe it."""

    note: str


class Seen(NamedTuple):
    """One device of this machine, with its free memory where the system tells."""

    device: Device
    free_bytes: float | None
    notes: tuple[str, ...] = ()


def near(total_bytes: float, device: Device) -> bool:
    """Whether a total that a driver reports is that of the device's file."""
    return abs(total_bytes / device.capacity_bytes.value - 1) <= SAME_SIZE


def nearest(files: Iterable[str], total_bytes: float | None) -> Device | None:
    """Of the files a name may mean the one whose memory is nearest; the first where the total is not known."""
    devices = [load(Device, key) for key in files]
    if not devices or total_bytes is None:
        return devices[0] if devices else None
    return min(devices, key=lambda d: abs(math.log(total_bytes / d.capacity_bytes.value)))


def as_found(device: Device, total_bytes: float | None, place: str) -> tuple[Device, tuple[str, ...]]:
    """The listed device with the memory that is really there, where that is another size; `place` told it."""
    if total_bytes is None or near(total_bytes, device):
        return device, ()
    capacity = Fact(total_bytes, device.capacity_bytes.source, Kind.MEASURED)
    has, listed = format_gib(total_bytes), format_gib(device.capacity_bytes.value)
    note = f"{place} reports {has} where {device.key} has {listed}: memory as reported, rates as listed"
    return replace(device, capacity_bytes=capacity), (note,)


def together(seen: Sequence[Seen], host_memory_bytes: float | None) -> Detected:
    """The devices like the first one as a fleet; the fullest of them bounds what is free."""
    device, _, notes = seen[0]
    alike = [s for s in seen if (s.device.key, s.device.capacity_bytes) == (device.key, device.capacity_bytes)]
    if len(alike) < len(seen):
        notes = (*notes, f"{len(seen) - len(alike)} unlike devices of this machine are left out")
    fleet = fleet_of(device, len(alike), None, host_memory_bytes)
    free = [s.free_bytes for s in alike if s.free_bytes is not None]
    # A process brings its own context, which free memory does not know about yet; the ledger counts it.
    return Detected(replace(fleet, free_bytes=min(free) if free else None), notes)
