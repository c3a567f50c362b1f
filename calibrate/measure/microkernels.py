"""roofplan's own Triton kernels on a GPU, and the library's kernels that do the same work.

Before a kernel is timed its outputs are poisoned and compared with float64; one that fails is left out and named.
Products, decoding and experts rotate through operands that exceed the last-level cache, as the layers of a model do;
what stands between them, and the attention of a prompt, reads what was written a moment before.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ... import __version__
from ...simulator.calibration import Cache
from ...simulator.operators import Kernel, KernelName, Table
from ..timer import Timing, on_gpu
from .subject import Subject, rows_of
from .torch_ops import ENGINE

if TYPE_CHECKING:
    from ...kernels.microkernel import Microkernel

CACHES = 3  # times the last-level cache that rotating operands fill
MOST_SETS = 256  # of operands: the smallest shapes stay in the cache for all that
MEMORY_SHARE = 0.25  # of the device's free memory for operands
OURS = "roofplan"  # how the engines of our kernels begin
STREAMS = ("read", "copy", "write", "scale-add")
REUSED = (KernelName.ELEMENTWISE, KernelName.ATTENTION_PREFILL, KernelName.MLA_PREFILL)
HEAVY_FLOPS = 1e12  # of a shape that the power limit slows: it runs for a while
HEAVY_S = 0.2


@dataclass(frozen=True, eq=False)
class Device:
    """The CUDA device everything below runs on."""

    torch: Any
    index: int
    cache_bytes: float

    @property
    def name(self) -> str:
        """`cuda:0`."""
        return f"cuda:{self.index}"

    @cached_property
    def capability(self) -> int:
        """Compute capability times ten."""
        major, minor = self.torch.cuda.get_device_capability(self.index)
        return int(10 * major + minor)

    def free_bytes(self) -> float:
        """Memory that is free now, what torch keeps for reuse included."""
        torch = self.torch
        free, _ = torch.cuda.mem_get_info(self.index)
        return float(free + torch.cuda.memory_reserved(self.index) - torch.cuda.memory_allocated(self.index))


def sets_for(footprint_bytes: float, cache_bytes: float, free_bytes: float) -> int:
    """Sets of operands: three times the cache together and one more, as far as memory allows."""
    wanted = math.ceil(CACHES * cache_bytes / max(footprint_bytes, 1.0)) + 1
    affordable = int(MEMORY_SHARE * free_bytes / max(footprint_bytes, 1.0))
    return max(1, min(wanted, MOST_SETS, affordable))


@dataclass(frozen=True, eq=False)
class Own(Subject):
    """One of our kernels."""

    kernel: Microkernel[Any, Any]
    device: Device

    @property
    def identity(self) -> Kernel:
        """The kernel's own."""
        return self.kernel.identity

    @property
    def engine(self) -> str:
        """Kernel identity is part of the key: a variant is another kernel, so another engine."""
        return f"{OURS}-{self.kernel.variant.replace(' ', '-')}"

    @property
    def version(self) -> str:
        """roofplan's version: the kernels are in it."""
        return __version__

    @property
    def variant(self) -> str:
        """The kernel's own."""
        return self.kernel.variant

    @property
    def cache(self) -> Cache:
        """By what the kernel is for."""
        return Cache.REUSED if self.identity.name in REUSED else Cache.COLD

    def calibration(self, quick: bool) -> Table:
        """The kernel's own shapes."""
        shapes: Table = self.kernel.calibration(quick)
        return shapes

    def held_out(self, quick: bool) -> Table:
        """The kernel's own shapes."""
        shapes: Table = self.kernel.held_out()
        return shapes

    def time(self, case: Table, budget_s: float) -> Timing:
        """Launches from a graph over rotating operands."""
        sets = self.operands(case)
        return on_gpu(self.device.torch, lambda i: self.kernel.run(sets[i]), len(sets), self.busy_s(case, budget_s))

    def operands(self, case: Table) -> tuple[Any, ...]:
        """As many sets of operands as the cache asks for; one where they are reused."""
        footprint = float(self.kernel.bytes(case)[0])
        copies = 1
        if self.cache is Cache.COLD:
            copies = sets_for(footprint, self.device.cache_bytes, self.device.free_bytes())
        return self.kernel.inputs(case, self.device.name, 0, copies)

    def busy_s(self, case: Table, budget_s: float) -> float:
        """Shapes that the power limit slows run for at least a fifth of a second."""
        return max(budget_s, HEAVY_S) if float(self.kernel.flops(case)[0]) > HEAVY_FLOPS else budget_s

    def failure(self) -> str | None:
        """What is wrong with the kernel here, by its smallest and its median shape; None where it is right."""
        from ...kernels.check import verify

        if self.kernel.least_capability > self.device.capability:
            return f"needs compute capability {self.kernel.least_capability / 10:g}"
        shapes = self.kernel.calibration(True)
        size = np.asarray(self.kernel.flops(shapes) + self.kernel.bytes(shapes))
        order, cases = np.argsort(size), rows_of(shapes)
        for index in dict.fromkeys((int(order[0]), int(order[len(order) // 2]))):
            try:
                found = verify(self.kernel, cases[index], self.device.name)
            except Exception as error:  # whatever a compiler or a driver says: the other kernels are still worth timing
                return f"{type(error).__name__}: {error}".splitlines()[0][:200]
            if not found.passed:
                return f"error {found.error:.2g} against float64, allowed {found.tolerance:.2g}"
        return None


@dataclass(frozen=True, eq=False)
class Library(Subject):
    """The library's kernel for the same work: never fitted, only predicted from ours."""

    own: Own

    @property
    def identity(self) -> Kernel:
        """That of our kernel."""
        return self.own.identity

    @property
    def engine(self) -> str:
        """torch, whatever library it calls."""
        return ENGINE

    @property
    def version(self) -> str:
        """torch's version."""
        return str(self.own.device.torch.__version__)

    @property
    def variant(self) -> str:
        """What it stands beside."""
        return f"library {self.own.variant}"

    @property
    def cache(self) -> Cache:
        """As for our kernel."""
        return self.own.cache

    def calibration(self, quick: bool) -> None:
        """None: that is the point."""

    def held_out(self, quick: bool) -> Table:
        """The shapes held out for our kernel."""
        return self.own.held_out(quick)

    def time(self, case: Table, budget_s: float) -> Timing:
        """As our kernel, on the same kind of operands."""
        sets, kernel = self.own.operands(case), self.own.kernel
        return on_gpu(
            self.own.device.torch, lambda i: kernel.library(sets[i]), len(sets), self.own.busy_s(case, budget_s)
        )


def own_kernels(device: Device) -> list[Own]:
    """All of our kernels, imported here: triton with them.

    Plain streams come last: a question about what stands between products is answered by the first of its kind.
    """
    from ...kernels import registry

    owns = [Own(kernel, device) for kernel in registry.everything()]
    return sorted(owns, key=lambda own: own.identity.name is KernelName.ELEMENTWISE and own.variant in STREAMS)


def libraries(owns: list[Own]) -> Iterator[Library]:
    """One library kernel for each kind of work: of variants that do the same work the first that has one."""
    from ...kernels.microkernel import Microkernel

    seen: set[tuple[Kernel, str]] = set()
    for own in owns:
        kind = own.variant if own.identity.name is KernelName.ELEMENTWISE else ""
        if type(own.kernel).library is Microkernel.library or (own.identity, kind) in seen:
            continue
        seen.add((own.identity, kind))
        yield Library(own)
