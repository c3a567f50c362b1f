"""Where a machine tells about itself: files below a root, environment, sysctl. Tests bring a machine of their own."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path


def sysctl(name: str) -> bytes | None:
    """The raw value behind a name of sysctl (Apple's system library), or nothing where there is none."""
    try:
        ask = ctypes.CDLL(None).sysctlbyname
    except (AttributeError, OSError, TypeError):  # other systems have no such function
        return None
    size = ctypes.c_size_t(0)
    if ask(name.encode(), None, ctypes.byref(size), None, 0) or not size.value:
        return None
    buffer = ctypes.create_string_buffer(size.value)
    if ask(name.encode(), buffer, ctypes.byref(size), None, 0):
        return None
    return buffer.raw[: size.value]


@dataclass(frozen=True)
class System:
    """A machine as far as detection reads it."""

    root: Path = Path("/")
    platform: str = sys.platform
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)
    sysctl: Callable[[str], bytes | None] = sysctl

    def path(self, name: str) -> Path:
        """The file behind an absolute name such as `/proc/meminfo`."""
        return self.root / name.lstrip("/")

    def lines(self, name: str | Path) -> list[str]:
        """Lines of a file; none where it cannot be read."""
        try:
            return (self.path(name) if isinstance(name, str) else name).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            return []

    def words(self, name: str | Path) -> list[str]:
        """Words of a file's first line."""
        lines = self.lines(name)
        return lines[0].split() if lines else []

    def number(self, name: str | Path) -> float | None:
        """A file that holds one whole number."""
        words = self.words(name)
        return float(words[0]) if len(words) == 1 and words[0].isdigit() else None

    def sysctl_text(self, name: str) -> str:
        """A text of sysctl."""
        return (self.sysctl(name) or b"").rstrip(b"\0").decode("utf-8", "replace")

    def sysctl_number(self, name: str) -> int | None:
        """A whole number of sysctl, of whatever width the system keeps it in."""
        raw = self.sysctl(name)
        return int.from_bytes(raw, sys.byteorder) if raw else None

    def memory_bytes(self, key: str = "MemTotal") -> float | None:
        """A line of /proc/meminfo."""
        found = (line.split() for line in self.lines("/proc/meminfo") if line.startswith(f"{key}:"))
        return next((float(words[1]) * 1024 for words in found if len(words) > 1 and words[1].isdigit()), None)

    def available_bytes(self) -> float | None:
        """Memory this process may still take: what the system calls available, bounded by the container's limit."""
        available = self.memory_bytes("MemAvailable")
        if available is None:
            try:
                available = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
            except (ValueError, OSError, AttributeError):
                return None
        for limit_file, used_file in (
            ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
            ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
        ):
            limit = self.number(limit_file)
            if limit is not None and limit < 2**60:
                available = min(available, max(1.0, limit - (self.number(used_file) or 0.0)))
        return available

    def usable_cores(self) -> int:
        """Cores this process may use: affinity and cgroup quota."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        quota = self.words("/sys/fs/cgroup/cpu.max")
        if len(quota) == 2 and quota[0].isdigit() and int(quota[1]) > 0:
            cores = min(cores, max(1, int(quota[0]) // int(quota[1])))
        return max(1, cores)

    def visible(self, count: int, *variables: str) -> list[int]:
        """Indices of `count` devices that the first of these variables that is set leaves visible, in its order.

        A runtime stops at the first index it does not know, so everything behind one is out of sight too.
        """
        wanted = next((self.environment[name] for name in variables if name in self.environment), None)
        if wanted is None:
            return list(range(count))
        chosen: list[int] = []
        for item in (part.strip() for part in wanted.split(",")):
            if not item.isdigit() or int(item) >= count:
                break
            chosen.append(int(item))
        return chosen
