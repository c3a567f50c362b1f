"""What no operator describes: how fast a drive reads, and how much copies slow the arithmetic beside them."""

from __future__ import annotations

import contextlib
import mmap
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...errors import SurroundingsError
from .microkernels import Device

CHUNK_BYTES = 2**24
QUICK_BYTES, FULL_BYTES = 2**28, 2**31
PRODUCT = 4096  # rows, columns and depth of the product that copies run beside
COPY_BYTES = 2**28


class Fact(NamedTuple):
    """One number about the machine, and how it came about."""

    name: str
    value: float
    unit: str
    how: str


def drive_read(folder: Path, quick: bool) -> Fact:
    """Sequential read of a file of random bytes in a folder, past the system's cache where it lets us."""
    size = QUICK_BYTES if quick else FULL_BYTES
    random = np.random.default_rng(0).integers(0, 256, CHUNK_BYTES, dtype=np.uint8).tobytes()
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".roofplan.", suffix=".partial") as file:
            for _ in range(size // CHUNK_BYTES):
                file.write(random)
            file.flush()
            os.fsync(file.fileno())
            seconds, direct = _read(file.name, size)
    except OSError as error:
        raise SurroundingsError(f"cannot be read and written: {error.strerror}", file=str(folder)) from None
    how = "past the system's cache" if direct else "the system may have kept some of it"
    return Fact("drive read", size / seconds, "B/s", f"{size / 2**20:.0f} MiB in pieces of 16 MiB, {how}")


def _read(name: str, size: int) -> tuple[float, bool]:
    """Seconds to read the file, and whether the cache was passed by."""
    direct = getattr(os, "O_DIRECT", 0)
    try:
        descriptor = os.open(name, os.O_RDONLY | direct)
    except OSError:  # file systems in memory
        descriptor, direct = os.open(name, os.O_RDONLY), 0
    with contextlib.closing(mmap.mmap(-1, CHUNK_BYTES)) as buffer:  # aligned as direct reads need it
        try:
            if not direct and hasattr(os, "posix_fadvise"):
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            start = time.perf_counter()
            done = 0
            while done < size and (got := os.preadv(descriptor, [buffer], done)):
                done += got
            return time.perf_counter() - start, bool(direct)
        finally:
            os.close(descriptor)


def interference(device: Device, repeats: int = 10) -> list[Fact]:
    """A large product alone and beside copies each way, and what the copies lose."""
    torch = device.torch
    a, b = (torch.randn(PRODUCT, PRODUCT, device=device.name, dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    host = torch.empty(COPY_BYTES, dtype=torch.uint8, pin_memory=True)
    there = torch.empty(COPY_BYTES, dtype=torch.uint8, device=device.name)
    many = 40

    def products() -> None:
        for _ in range(many):
            torch.matmul(a, b, out=out)

    def h2d() -> None:
        there.copy_(host, non_blocking=True)

    def d2h() -> None:
        host.copy_(there, non_blocking=True)

    alone = _median(torch, products, None, repeats)
    facts = []
    for name, copy in (("h2d", h2d), ("d2h", d2h)):
        quiet = _median(torch, copy, None, repeats)
        repeated = max(1, round(1.5 * alone / quiet))

        def copying(copy: Callable[[], None] = copy, repeated: int = repeated) -> None:
            for _ in range(repeated):
                copy()

        slowed = _median(torch, products, copying, repeats)
        beside = _median(torch, copying, products, repeats) / repeated
        how = f"{many} products of {PRODUCT}^3 in bf16 beside copies of {COPY_BYTES / 2**20:.0f} MiB"
        facts.append(Fact(f"product beside {name}", slowed / alone - 1, "share longer", how))
        facts.append(Fact(f"{name} beside product", beside / quiet - 1, "share longer", how))
    return facts


def _median(torch: Any, timed: Callable[[], None], beside: Callable[[], None] | None, repeats: int) -> float:
    """Median seconds of some work on a stream, with other work started on another stream just before."""
    first, second = torch.cuda.Stream(), torch.cuda.Stream()
    found = []
    for _ in range(repeats + 1):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        if beside is not None:
            with torch.cuda.stream(second):
                beside()
        with torch.cuda.stream(first):
            start.record(first)
            timed()
            end.record(first)
        torch.cuda.synchronize()
        found.append(float(start.elapsed_time(end)) * 1e-3)
    return float(np.median(found[1:]))
