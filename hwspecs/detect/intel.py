"""Intel GPUs by the files of their kernel drivers (xe, i915): PCI ids and the memory of a card.

Neither driver tells without privileges how much of it is in use.
"""

from __future__ import annotations

from .. import names
from . import drm
from .common import Detected, Seen, as_found, nearest, together
from .system import System

VENDOR = "0x8086"


def find(system: System, host_memory_bytes: float | None) -> Detected | None:
    """This machine's visible Intel GPUs of the first listed kind; processors' own graphics are not listed."""
    seen = [found for card in drm.cards(system, VENDOR) if (found := _describe(card, system)) is not None]
    chosen = [seen[i] for i in system.visible(len(seen), "ZE_AFFINITY_MASK")]
    return together(chosen, host_memory_bytes) if chosen else None


def _describe(card: drm.Card, system: System) -> Seen | None:
    total = _memory_bytes(card, system)
    device = nearest(names.pci("intel", card.device, card.revision), total)
    if device is None:
        return None
    found, notes = as_found(device, total, "the driver")
    return Seen(found, None, (*notes, "the driver does not tell how much of the card's memory is in use"))


def _memory_bytes(card: drm.Card, system: System) -> float | None:
    """Memory of the card's first tile (xe; tiles are devices of their own), else what i915 has below the card."""
    for path in (
        card.pci / "tile0" / "physical_vram_size_bytes",
        card.pci / "lmem_total_bytes",
        card.folder / "lmem_total_bytes",
    ):
        found = system.number(path)
        if found:
            return found
    return None
