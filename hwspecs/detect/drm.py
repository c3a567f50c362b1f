"""Graphics cards as Linux lists them: one folder a card below /sys/class/drm, with its PCI ids."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from .system import System

CARDS = "/sys/class/drm"


class Card(NamedTuple):
    """A card's folder and its PCI ids (`0x744c`, revision `0xc8`)."""

    folder: Path
    device: str
    revision: str

    @property
    def pci(self) -> Path:
        """The folder of its PCI device."""
        return self.folder / "device"


def cards(system: System, vendor: str) -> Iterator[Card]:
    """The cards of a PCI vendor (`0x1002`), in the order of their numbers; connectors and render nodes are none."""
    folder = system.path(CARDS)
    found = [(int(m[1]), p) for p in folder.glob("card*") if (m := re.fullmatch(r"card(\d+)", p.name))]
    for _, path in sorted(found):
        ids = ["".join(system.words(path / "device" / name)).lower() for name in ("vendor", "device", "revision")]
        if ids[0] == vendor:
            yield Card(path, ids[1], ids[2])
