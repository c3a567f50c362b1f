"""What drivers and systems call devices, and the files that may be meant (`nvml.toml`, `names.toml`).

One name can stand for several sizes of memory; then all files are given, the likeliest first.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent

Files = tuple[str, ...]


def nvml(name: str) -> Files:
    """Files of the card that NVML calls by this name; drivers before about 465 leave out "NVIDIA "."""
    return _nvml().get(name) or _nvml().get(f"NVIDIA {name}", ())


def pci(vendor: str, device: str, revision: str = "") -> Files:
    """Files of a PCI device (`0x744c`), by its revision (`0xc8`) where several products share the id."""
    table = _others().get(f"{vendor}.pci", {})
    return table.get(f"{device}:{revision.removeprefix('0x')}") or table.get(device, ())


def apple(brand: str) -> Files:
    """Files of an Apple chip by its brand string."""
    return _others()["apple.brand"].get(brand, ())


def jetson(model: str) -> Files:
    """Files of the module that a board's device tree names, such as `NVIDIA Jetson AGX Orin Developer Kit`."""
    matches = (files for module, files in _others()["nvidia.module"].items() if module in model)
    return next(matches, ())


def called(name: str) -> Files:
    """Files of whatever any driver or system calls by this name; case and the vendor's name in front do not matter."""
    return _spoken().get(_plain(name), ())


def _plain(name: str) -> str:
    return name.strip().lower().removeprefix("nvidia ").removeprefix("amd ")


@lru_cache(maxsize=1)
def _spoken() -> Mapping[str, Files]:
    """Every name of every table but PCI ids."""
    tables = [_nvml(), *(table for key, table in _others().items() if not key.endswith(".pci"))]
    return {_plain(name): files for table in tables for name, files in table.items()}


@lru_cache(maxsize=1)
def _nvml() -> Mapping[str, Files]:
    return dict(_read(tomllib.loads((_HERE / "nvml.toml").read_text(encoding="utf-8"))))


@lru_cache(maxsize=1)
def _others() -> Mapping[str, Mapping[str, Files]]:
    """`names.toml`, its tables by their dotted names."""
    vendors = tomllib.loads((_HERE / "names.toml").read_text(encoding="utf-8"))
    return {f"{vendor}.{kind}": dict(_read(t)) for vendor, kinds in vendors.items() for kind, t in kinds.items()}


def _read(table: Mapping[str, Any]) -> Iterator[tuple[str, Files]]:
    for name, files in table.items():
        yield name, (files,) if isinstance(files, str) else tuple(files)
