"""AMD GPUs by the files of their kernel driver (amdgpu): PCI ids, memory in all and in use.

A processor with a GPU (Strix Halo) has little memory of its own (VRAM, set aside by the firmware) and borrows the rest
from the host (GTT); programs take from both.
"""

from __future__ import annotations

from dataclasses import replace

from .. import names
from ..device import Device, Fact, Kind
from . import drm
from .common import Detected, Seen, Unlisted, as_found, nearest, together
from .system import System

VENDOR = "0x1002"
VISIBLE = ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")  # whichever is set, in this order


def find(system: System, host_memory_bytes: float | None) -> Detected | Unlisted | None:
    """This machine's visible AMD GPUs of the first listed kind."""
    cards = [card for card in drm.cards(system, VENDOR) if system.number(card.pci / "mem_info_vram_total")]
    seen = [found for card in cards if (found := _describe(card, system)) is not None]
    if not seen:
        return _unlisted(cards[0]) if cards else None
    chosen = [seen[i] for i in system.visible(len(seen), *VISIBLE)]
    return together(chosen, host_memory_bytes) if chosen else None


def _unlisted(card: drm.Card) -> Unlisted:
    ids = f"{VENDOR}:{card.device} revision {card.revision}"
    return Unlisted(f"AMD GPU {ids} is not listed: describe it with `roofplan hw new mine --like rx-7900-xtx`")


def _describe(card: drm.Card, system: System) -> Seen | None:
    """The listed device with these PCI ids, with what its driver says about memory."""
    files = names.pci("amd", card.device, card.revision)
    memory = {
        key: system.number(card.pci / f"mem_info_{key}") or 0.0
        for key in ("vram_total", "vram_used", "gtt_total", "gtt_used")
    }
    device = nearest(files, memory["vram_total"])
    if device is None:
        return None
    free = memory["vram_total"] - memory["vram_used"]
    if device.unified_memory:
        lent = min(memory["gtt_total"] - memory["gtt_used"], system.available_bytes() or 0.0)
        whole = memory["vram_total"] + (system.memory_bytes() or 0.0)
        share = (memory["vram_total"] + memory["gtt_total"]) / whole
        found, notes = as_found(device, whole, "this machine")
        return Seen(_lending(found, share), free + max(0.0, lent), (*notes, _lent(share)))
    found, notes = as_found(device, memory["vram_total"], "amdgpu")
    mode = "".join(system.words(card.pci / "current_compute_partition"))
    if mode not in ("", "SPX"):
        notes = (*notes, f"{device.key} is split into partitions ({mode}): its rates are those of the whole")
    return Seen(found, min(free, found.capacity_bytes.value), notes)


def _lending(device: Device, share: float) -> Device:
    """The device with the share of memory that this machine's kernel lends its GPU."""
    source = device.addressable_share.source if device.addressable_share else device.capacity_bytes.source
    return replace(device, addressable_share=Fact(min(1.0, share), source, Kind.MEASURED))


def _lent(share: float) -> str:
    return f"memory is shared with the processor: the GPU may use {min(1.0, share):.0%} of it (VRAM and GTT)"
