"""What a microkernel is: a Triton kernel with its shapes, inputs, float64 reference, exact costs and launches.

A `Call` describes one launch completely. The same description is launched on a device, interpreted on the CPU and
compiled ahead of time from tensors without storage (device `meta`), so that the grid and the resources that are
reported are those of the kernel that is timed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, Self, TypeVar

from ..simulator.estimate import Array
from ..simulator.operators import Kernel, Table

if TYPE_CHECKING:
    from torch import Tensor

CaseT = TypeVar("CaseT", bound=Table)
InputT = TypeVar("InputT", bound="tuple[Any, ...]")
HOPPER = 90  # compute capability 9.0: H100, H200


class Launch(NamedTuple):
    """Programs (thread blocks) of one launch, threads and bytes of shared memory of each."""

    programs: int
    threads: int
    shared_bytes: int


@dataclass(frozen=True, eq=False)
class Call:
    """One launch: a jit function, its grid, run-time arguments by name, compile-time constants, warps and stages."""

    function: Any
    grid: tuple[int, ...]
    arguments: Mapping[str, Any]
    constants: Mapping[str, Any]
    warps: int = 4
    stages: int = 3

    @property
    def programs(self) -> int:
        """Thread blocks of the launch."""
        return prod(self.grid)


class Microkernel(ABC, Generic[CaseT, InputT]):
    """A kernel in one configuration. Subclasses are frozen dataclasses; a case is an operator table of one row.

    An input set is a NamedTuple of tensors: what is read, what is written (`outputs`) and partial results.
    """

    tolerance: ClassVar[float]
    """Largest |output - reference| / (|reference| + root mean square of the reference)."""

    @property
    @abstractmethod
    def identity(self) -> Kernel:
        """The calibration this kernel's times belong to."""

    @property
    @abstractmethod
    def variant(self) -> str:
        """What tells it from other kernels of the same identity: `plain`, `split-k`, `copy`, ..."""

    @property
    def name(self) -> str:
        """`gemm/bf16 split-k`."""
        return f"{self.identity} {self.variant}"

    @property
    def least_capability(self) -> int:
        """The oldest compute capability it compiles for, times ten."""
        return 80

    @abstractmethod
    def calibration(self, quick: bool) -> CaseT:
        """The shapes a fit sees; `quick` ones are at most 60 for all kernels of one identity together."""

    @abstractmethod
    def held_out(self) -> CaseT:
        """Whole shapes no fit sees: layers of named models and seeded random ones."""

    def miniature(self) -> Self:
        """The kernel itself, or a narrower one where even its smallest case is too much for an interpreter."""
        return self

    @abstractmethod
    def small(self) -> CaseT:
        """Shapes of the miniature that an interpreter runs in about a second, ragged edges among them."""

    @abstractmethod
    def make(self, case: CaseT, device: str, seed: int) -> InputT:
        """One input set: random data, never zeros; on device `meta` shapes and formats only."""

    def inputs(self, case: CaseT, device: str, seed: int, copies: int = 1) -> tuple[InputT, ...]:
        """Several input sets, all different: rotate through enough of them to exceed the cache."""
        return tuple(self.make(case, device, seed + copy) for copy in range(copies))

    @abstractmethod
    def calls(self, inputs: InputT, capability: int) -> tuple[Call, ...]:
        """The launches that compute the outputs, the kernel proper first; nothing is allocated.

        The compute capability, times ten, decides what does not exist everywhere: tensor descriptors from 90 on.
        """

    def run(self, inputs: InputT) -> tuple[Tensor, ...]:
        """Launch, and return the tensors that were written."""
        from .data import capability_of

        for call in self.calls(inputs, capability_of(self.outputs(inputs)[0])):
            options = {"num_warps": call.warps, "num_stages": call.stages}
            call.function[call.grid](**call.arguments, **call.constants, **options)
        return self.outputs(inputs)

    @abstractmethod
    def outputs(self, inputs: InputT) -> tuple[Tensor, ...]:
        """The tensors every element of which must be written."""

    @abstractmethod
    def reference(self, inputs: InputT) -> tuple[Tensor, ...]:
        """The same tensors in float64, from the inputs as they are stored."""

    def library(self, inputs: InputT) -> Tensor | None:
        """The same work by torch's own kernel, or None where it has none."""
        return None

    @abstractmethod
    def flops(self, table: CaseT) -> Array:
        """FLOPs of the matrix products of each row; 0 where there are none."""

    @abstractmethod
    def bytes(self, table: CaseT) -> Array:
        """Bytes of each row: every input once, every output once, no partial results."""

    def launches(self, case: CaseT, capability: int = HOPPER) -> tuple[Launch, ...]:
        """Grid and resources of every launch, compiled ahead of time for a compute capability."""
        from .aot import compiled

        calls = self.calls(self.make(case, "meta", 0), capability)
        return tuple(
            Launch(call.programs, 32 * call.warps, compiled(call, capability).resources.shared_bytes) for call in calls
        )

    def grid(self, case: CaseT, capability: int = HOPPER) -> Launch:
        """The first launch: that of the kernel proper where a second one adds up partial results."""
        return self.launches(case, capability)[0]
