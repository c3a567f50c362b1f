"""Collectives among the devices of this machine, timed by a program of their own that torchrun starts a copy of each.

NCCL among GPUs; gloo among processes on a CPU. All sizes of all collectives are timed by one start.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ...dtypes import DType
from ...errors import SurroundingsError
from ...simulator.calibration import Cache
from ...simulator.operators import Collective, Kernel, KernelName, Table
from ..timer import Timing, summary
from .subject import Subject, table

KIB, MIB = 2**10, 2**20
FIT_BYTES = (8 * KIB, 32 * KIB, 128 * KIB, 512 * KIB, 2 * MIB, 8 * MIB, 32 * MIB)
FULL_BYTES = (2 * KIB, 16 * KIB, 64 * KIB, 256 * KIB, MIB, 4 * MIB, 16 * MIB, 128 * MIB, 512 * MIB)
HELD_BYTES = (24 * KIB, 96 * KIB, 768 * KIB, 3 * MIB, 12 * MIB)
NAMES = (KernelName.ALL_REDUCE, KernelName.ALL_GATHER, KernelName.REDUCE_SCATTER, KernelName.ALL_TO_ALL)
GLOO_NAMES = (
    KernelName.ALL_REDUCE,
    KernelName.ALL_GATHER,
)  # gloo has no reduce-scatter, and no all-to-all of one buffer
START_S = 300.0  # after which a start that hangs is given up
REPEATS = 20


@dataclass(frozen=True, eq=False)
class Ranks:
    """The processes that take part, and the times of everything they were asked to do, found when first asked for."""

    backend: str
    count: int
    quick: bool
    version: str
    repeats: int = REPEATS
    sizes: tuple[int, ...] = field(default=())

    @property
    def names(self) -> tuple[KernelName, ...]:
        """The collectives the backend has."""
        return GLOO_NAMES if self.backend == "gloo" else NAMES

    @cached_property
    def times(self) -> Mapping[tuple[str, int], Timing]:
        """Median and percentiles by collective and bytes."""
        fit = FIT_BYTES if self.quick else (*FIT_BYTES, *FULL_BYTES)
        sizes = self.sizes or tuple(sorted({*fit, *HELD_BYTES}))
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "times.json"
            task = {
                "backend": self.backend,
                "names": [name.value for name in self.names],
                "bytes": list(sizes),
                "repeats": self.repeats,
                "out": str(out),
            }
            self._start(json.dumps(task))
            found: dict[str, dict[str, list[float]]] = json.loads(out.read_text(encoding="utf-8"))
        return MappingProxyType(
            {(name, int(size)): summary(samples) for name, rows in found.items() for size, samples in rows.items()}
        )

    def _start(self, task: str) -> None:
        module = f"{__package__}.collective_worker"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={self.count}"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "ROOFPLAN_COLLECTIVES": task}
        try:
            done = subprocess.run(
                [*command, "-m", module], env=environment, capture_output=True, text=True, timeout=START_S
            )
        except subprocess.TimeoutExpired:
            raise SurroundingsError(f"{self.backend} among {self.count} processes did not finish") from None
        if done.returncode:
            told = [line for line in done.stderr.splitlines() if "Error" in line]
            problem = f"{self.backend} among {self.count} processes failed: {(told or ['no message'])[-1].strip()}"
            raise SurroundingsError(problem, remedy="try `torchrun` by hand")


@dataclass(frozen=True, eq=False)
class Together(Subject):
    """One collective among all ranks."""

    ranks: Ranks
    collective: KernelName

    @property
    def identity(self) -> Kernel:
        """Messages are of 16-bit numbers; gloo's of 32."""
        return Kernel(self.collective, DType.FP32 if self.ranks.backend == "gloo" else DType.BF16)

    @property
    def engine(self) -> str:
        """The backend."""
        return self.ranks.backend

    @property
    def version(self) -> str:
        """The backend's version, or torch's where it is part of that."""
        return self.ranks.version

    @property
    def variant(self) -> str:
        """How many took part."""
        return f"{self.ranks.count} ranks"

    @property
    def cache(self) -> Cache:
        """The same buffer each time."""
        return Cache.REUSED

    def calibration(self, quick: bool) -> Collective:
        """Powers of four."""
        return self._table(FIT_BYTES if quick else tuple(sorted((*FIT_BYTES, *FULL_BYTES))))

    def held_out(self, quick: bool) -> Collective:
        """Sizes between."""
        return self._table(HELD_BYTES)

    def _table(self, sizes: tuple[int, ...]) -> Collective:
        ranks = [float(self.ranks.count)] * len(sizes)
        return table(Collective, self.identity, message_bytes=list(map(float, sizes)), ranks=ranks)

    def time(self, case: Table, budget_s: float) -> Timing:
        """What the ranks found when they were started."""
        assert isinstance(case, Collective)
        return self.ranks.times[self.collective.value, int(case.message_bytes[0])]


def together(torch: Any, backend: str, count: int, quick: bool) -> list[Together]:
    """The collectives of a backend among so many ranks."""
    version = str(torch.__version__)
    if backend == "nccl":
        version = ".".join(map(str, torch.cuda.nccl.version()))
    ranks = Ranks(backend, count, quick, version)
    return [Together(ranks, name) for name in ranks.names]
