"""What a compiled kernel uses, read from the compiled object: registers, spills, shared memory, matrix instructions."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

# Shared memory one block may have: CUDA programming guide, technical specifications by compute capability
# (163 KB on 8.0, 99 KB on 8.6 and 8.9, 227 KB on 9.0 and 10.0).
SHARED_LIMIT_BYTES = {80: 163 * 1024, 86: 99 * 1024, 89: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024}
REGISTERS_PER_MULTIPROCESSOR = 65536
THREADS_PER_MULTIPROCESSOR = {80: 2048, 86: 1536, 89: 1536, 90: 2048, 100: 2048}
BLOCKS_PER_MULTIPROCESSOR = {80: 32, 86: 16, 89: 24, 90: 32, 100: 32}
REGISTER_UNIT = 8  # registers of a thread are given out in units of 8
SHARED_UNIT_BYTES = 1024  # what the system keeps of each block's shared memory


class Resources(NamedTuple):
    """What one compiled launch uses. Matrix instructions are those written in PTX, not those executed."""

    capability: int
    registers: int
    spill_bytes: int
    shared_bytes: int
    mma: int
    wgmma: int
    tcgen05: int
    tma_loads: int


def of(kernel: Any, capability: int) -> Resources:
    """The resources of a compiled Triton kernel, compiled ahead of time or launched."""
    ptx = kernel.asm["ptx"]
    registers, stack = usage(kernel.asm["cubin"])
    return Resources(
        capability,
        registers,
        stack,
        int(kernel.metadata.shared),
        mma=len(re.findall(r"\bmma\.sync", ptx)),
        wgmma=len(re.findall(r"\bwgmma\.mma_async", ptx)),
        tcgen05=len(re.findall(r"\btcgen05\.mma", ptx)),
        tma_loads=len(re.findall(r"\bcp\.async\.bulk\.tensor\S*\.shared", ptx)),
    )


def usage(cubin: bytes) -> tuple[int, int]:
    """Registers of a thread and bytes of its stack, to which registers spill, of the largest function of a cubin."""
    from triton.backends import nvidia

    tool = Path(nvidia.__file__).parent / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        command = [str(tool), "-res-usage", str(file)]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.findall(r"REG:(\d+) STACK:(\d+)", printed)
    if not found:
        raise ValueError(f"cuobjdump names no registers: {printed[:200]!r}")
    return max(int(r) for r, _ in found), max(int(s) for _, s in found)


def blocks_per_multiprocessor(threads: int, used: Resources) -> int:
    """Blocks one multiprocessor holds at once: the least of what registers, shared memory, threads and slots allow."""
    arch = used.capability
    warps = -(-threads // 32)
    registers = warps * 32 * -(-used.registers // REGISTER_UNIT) * REGISTER_UNIT
    shared = used.shared_bytes + SHARED_UNIT_BYTES
    return min(
        REGISTERS_PER_MULTIPROCESSOR // max(registers, 1),
        (SHARED_LIMIT_BYTES[arch] + SHARED_UNIT_BYTES) // shared,
        THREADS_PER_MULTIPROCESSOR[arch] // (32 * warps),
        BLOCKS_PER_MULTIPROCESSOR[arch],
    )
