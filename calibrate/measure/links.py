"""Copies between a GPU and its host: pinned and pageable, each way, and both ways at once.

Pinned copies are timed between events on their streams; pageable ones return when they are done and are timed by the
clock. With both ways at once a copy in the other direction runs on a stream of its own all the while.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import product
from typing import Any

from ...dtypes import DType
from ...simulator.operators import Copy, Kernel, KernelName, Table
from ..timer import Timing, summary
from .microkernels import Device
from .subject import Subject, table

KIB, MIB = 2**10, 2**20
FIT_BYTES = (4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB, MIB, 4 * MIB, 16 * MIB, 64 * MIB, 256 * MIB)
FULL_BYTES = (2 * KIB, 32 * KIB, 128 * KIB, 512 * KIB, 2 * MIB, 8 * MIB, 32 * MIB, 128 * MIB, 1024 * MIB)
HELD_BYTES = (10 * KIB, 90 * KIB, 700 * KIB, 3 * MIB, 11 * MIB, 45 * MIB, 180 * MIB)
REPEATS = 10


@dataclass(frozen=True, eq=False)
class HostCopy(Subject):
    """One way of copying: `to_device` or back, from or to pinned memory or not, alone or beside the other way."""

    device: Device
    to_device: bool
    pinned: bool
    both: bool = False

    @property
    def identity(self) -> Kernel:
        """A copy over the host link, as swapping a KV cache is."""
        return Kernel(KernelName.HOST_COPY, DType.BF16)

    @property
    def engine(self) -> str:
        """`h2d-pinned`: each way of copying has constants of its own."""
        words = "h2d" if self.to_device else "d2h", "pinned" if self.pinned else "pageable", "both" if self.both else ""
        return "-".join(word for word in words if word)

    @property
    def version(self) -> str:
        """torch's version."""
        return str(self.device.torch.__version__)

    @property
    def variant(self) -> str:
        """torch's own copy."""
        return "copy_"

    def calibration(self, quick: bool) -> Copy:
        """Powers of four from 4 KiB."""
        return self._table(FIT_BYTES if quick else tuple(sorted((*FIT_BYTES, *FULL_BYTES))))

    def held_out(self, quick: bool) -> Copy:
        """Odd sizes between."""
        return self._table(HELD_BYTES)

    def _table(self, sizes: tuple[int, ...]) -> Copy:
        return table(Copy, self.identity, copy_bytes=list(map(float, sizes)))

    def time(self, case: Table, budget_s: float) -> Timing:
        """At least ten copies."""
        assert isinstance(case, Copy)
        torch, size = self.device.torch, int(case.copy_bytes[0])
        host, there = self._buffers(size)
        target, source = (there, host) if self.to_device else (host, there)
        stream, other = torch.cuda.Stream(), torch.cuda.Stream()
        back = self._buffers(size) if self.both else None
        samples: list[float] = []
        end = time.perf_counter() + budget_s
        while len(samples) < REPEATS + 2 or (time.perf_counter() < end and len(samples) < 20 * REPEATS):
            torch.cuda.synchronize()
            if back is not None:
                self._other_way(other, *back)
            samples.append(self._one(stream, target, source))
        torch.cuda.synchronize()
        return summary(samples[2:])

    def _buffers(self, size: int) -> tuple[Any, Any]:
        torch = self.device.torch
        host = torch.randint(0, 255, (size,), dtype=torch.uint8, pin_memory=self.pinned)
        return host, torch.randint(0, 255, (size,), dtype=torch.uint8, device=self.device.name)

    def _other_way(self, stream: Any, host: Any, there: Any) -> None:
        """Start copies that last longer than the one that is timed."""
        target, source = (host, there) if self.to_device else (there, host)
        with self.device.torch.cuda.stream(stream):
            for _ in range(3):
                target.copy_(source, non_blocking=True)

    def _one(self, stream: Any, target: Any, source: Any) -> float:
        cuda = self.device.torch.cuda
        if not self.pinned:
            start_s = time.perf_counter()
            target.copy_(source)
            cuda.synchronize()
            return time.perf_counter() - start_s
        start, end = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
        with cuda.stream(stream):
            start.record(stream)
            target.copy_(source, non_blocking=True)
            end.record(stream)
        end.synchronize()
        return float(start.elapsed_time(end)) * 1e-3


def copies(device: Device) -> list[HostCopy]:
    """Every way of copying; pinned ones first, which answer for a question that does not say."""
    alone = [HostCopy(device, to, pinned) for pinned, to in product((True, False), (True, False))]
    return [*alone, HostCopy(device, True, True, both=True), HostCopy(device, False, True, both=True)]
