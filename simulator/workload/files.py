"""Questions about paths that never raise: names may be too long, folders missing or not readable."""

from __future__ import annotations

import os
from pathlib import Path


def home(*parts: str) -> Path:
    """A folder below the user's home, whether or not there is one."""
    return Path(os.path.expanduser("~"), *parts)  # noqa: PTH111 - Path.home raises where there is no home


def names_in(folder: Path) -> list[str]:
    """What a folder holds, sorted; nothing where it cannot be read."""
    try:
        return sorted(os.listdir(folder))  # noqa: PTH208 - names are wanted, and Path.iterdir raises as late as this
    except (OSError, ValueError):
        return []


def is_file(path: Path) -> bool:
    """Whether it is a file; False too for a name too long or unreadable."""
    return os.path.isfile(path)  # noqa: PTH113 - Path.is_file raises on a name too long


def is_dir(path: Path) -> bool:
    """Whether it is a folder; False too for a name too long or unreadable."""
    return os.path.isdir(path)  # noqa: PTH112 - as above
