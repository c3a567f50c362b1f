"""Every microkernel compiled ahead of time for Ampere, Hopper and Blackwell, without a GPU: what it uses is known."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="Triton exists for Linux alone")

from roofplan.kernels import registry
from roofplan.kernels.resources import SHARED_LIMIT_BYTES, Resources, blocks_per_multiprocessor

# Modules that are compiled in one process: starting one takes longer than compiling the small ones.
GROUPS = (
    tuple(registry.ALL[: registry.ALL.index("gemm")]),
    ("gemm",),
    ("weight_only_gemv", "weight_only_gemm"),
    ("experts", "convolution"),
    ("prefill",),
    ("decode",),
)
EACH = {80: "function", 90: "tile", 100: "function"}
# Functions whose tiles are large enough for the asynchronous matrix instructions of Hopper, wherever they have 64 rows.
WGMMA = {"descriptor_gemm", "persistent_gemm", "_weight_only", "_prefill", "_convolution"}


def compile_group(modules: tuple[str, ...], capability: int, folder: Path) -> list[dict[str, Any]]:
    """What every launch uses, compiled in a process that does not interpret, with a cache of its own."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(folder)}
    command = [sys.executable, "-m", "roofplan.kernels.aot", str(capability), *modules, "--each", EACH[capability]]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_module_is_compiled() -> None:
    assert sorted(m for group in GROUPS for m in group) == sorted(registry.ALL)


@pytest.mark.parametrize("capability", EACH)
@pytest.mark.parametrize("modules", GROUPS, ids=["-".join(g) if len(g) < 3 else "elementwise" for g in GROUPS])
def test_nothing_spills_and_shared_memory_suffices(modules: tuple[str, ...], capability: int, tmp_path: Path) -> None:
    launches = compile_group(modules, capability, tmp_path)
    expected = {k.name for module in modules for k in registry.load(module) if k.least_capability <= capability}
    assert {launch["kernel"] for launch in launches} == expected
    for launch in launches:
        used = Resources(**{name: launch[name] for name in Resources._fields})
        assert used.spill_bytes == 0, launch
        assert 16 <= used.registers <= 255, launch
        assert used.shared_bytes <= SHARED_LIMIT_BYTES[capability], launch
        assert blocks_per_multiprocessor(32 * launch["warps"], used) >= 1, launch
        products = (used.mma, used.wgmma, used.tcgen05)
        if capability == 90 and launch["function"] in WGMMA:
            assert used.wgmma >= 4 and used.mma == 0, launch
        if capability == 100 and launch["function"] in WGMMA:
            eight_bit_integers = launch["kernel"].startswith("gemm/int8")  # this Triton has them on mma alone there
            assert used.mma >= 4 if eight_bit_integers else used.tcgen05 >= 4, launch
        if capability == 80:
            assert used.wgmma == used.tcgen05 == used.tma_loads == 0, launch
        if capability >= 90 and launch["function"] in ("descriptor_gemm", "persistent_gemm", "_prefill", "_decode"):
            assert used.tma_loads >= 2, launch
        if launch["kernel"].startswith(("elementwise", "scan")):
            assert products == (0, 0, 0), launch


def test_occupancy_of_a_known_launch() -> None:
    """The CUDA occupancy calculator's example figures: registers, shared memory and threads each bound it once."""
    light = Resources(90, 32, 0, 0, 0, 0, 0, 0)
    assert blocks_per_multiprocessor(256, light) == 8  # 2048 threads
    assert blocks_per_multiprocessor(256, light._replace(registers=128)) == 2  # 65536 registers
    assert blocks_per_multiprocessor(256, light._replace(registers=130)) == 1  # rounded up to 136
    assert blocks_per_multiprocessor(128, light._replace(shared_bytes=100 * 1024)) == 2  # 228 KB, 1 KB a block kept
    assert blocks_per_multiprocessor(32, light) == 32  # slots
