"""Memory that a GPU shares with its processor: machines are sold with several sizes, and the GPU may use a share."""

from __future__ import annotations

import dataclasses

from ..errors import InputError
from ..units import format_bytes, format_gib
from .device import Device, Fact, Fleet, Kind

# Share of memory that Metal lends the GPU as delivered (llama.cpp start-up logs, recommendedMaxWorkingSetSize): two
# thirds of 8 to 32 GiB, three quarters of 36 GiB and more. Device files know better about the size they describe.
METAL_SMALL_BYTES, METAL_SMALL, METAL_LARGE = 32 * 2**30, 2 / 3, 3 / 4


def with_memory(device: Device, memory_bytes: float) -> Device:
    """The device in a machine with that much memory, by the system's count; its rates are the file's."""
    capacity = device.capacity_bytes
    if memory_bytes == capacity.value:
        return device
    share = device.addressable_share
    if device.vendor == "apple" and share is not None:
        usual = METAL_SMALL if memory_bytes <= METAL_SMALL_BYTES else METAL_LARGE
        share = Fact(usual, share.source, Kind.DERIVED)
    counted = Fact(memory_bytes, capacity.source, Kind.DERIVED)
    return dataclasses.replace(device, capacity_bytes=counted, advertised_capacity_bytes=None, addressable_share=share)


def as_sold(device: Device, stated_bytes: float, key: str = "--vram") -> Device:
    """The device in a machine sold with that much memory.

    Whole decimal gigabytes are the size on the box: what the system counts is in the proportion of the device's file
    (a Mac of 64 GB counts 64 GiB). Any other number is what the system counts.
    """
    if not device.unified_memory:
        own = format_bytes((device.advertised_capacity_bytes or device.capacity_bytes).value)
        remedy = "drop it; it goes with devices that share their machine's memory, such as m2-max, and unnamed cards"
        raise InputError(f"{device.key} has {own} of its own", key=key, value=format_bytes(stated_bytes), remedy=remedy)
    box = device.advertised_capacity_bytes or device.capacity_bytes
    counted = stated_bytes
    if stated_bytes % 1e9 == 0:
        counted = stated_bytes * device.capacity_bytes.value / box.value
    if not 1e9 <= counted <= device.capacity_bytes.value * 1.001:
        problem = f"{device.key} comes with up to {format_bytes(box.value)}"
        raise InputError(problem, key=key, value=format_bytes(stated_bytes), remedy="give the machine's memory")
    return with_memory(device, counted)


def notes(fleet: Fleet) -> tuple[str, ...]:
    """What a reader must know where devices share their machine's memory."""
    device = fleet.device
    if not device.unified_memory:
        return ()
    whole, own = device.capacity_bytes.value, device.addressable_bytes()
    told = f"the GPU of {device.key} may use {format_gib(own)} of {format_gib(whole)} as delivered"
    other = "" if fleet.memory_bytes else "; another size of memory: --vram, or its name with the size at the end"
    return (told + other,)
