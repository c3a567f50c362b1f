"""What lowering functions share: the shard of a step they describe, and the nodes of its dataflow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ...dtypes import DType
from ..estimate import Array
from ..scenario import Scenario, Step, stage_layers

NARROW_BITS = 8


class Buffer(NamedTuple):
    """An activation tensor on one device."""

    name: str
    bytes: Array


class Node(NamedTuple):
    """One operation in execution order: `writes` come alive, buffers die after the last node that reads them.

    A node without writes is a function returning: it keeps what its caller still refers to alive until then.
    """

    label: str
    reads: tuple[str, ...] = ()
    writes: tuple[Buffer, ...] = ()


@dataclass(frozen=True, eq=False)
class Shard:
    """The numbers every lowering function needs: the step on one device of a tensor-parallel group."""

    scenario: Scenario
    step: Step
    tokens: Array
    logit_tokens: Array
    tp: int
    stages: tuple[tuple[int, ...], ...]

    @staticmethod
    def of(scenario: Scenario, step: Step) -> Shard:
        """The shard of a step; token counts keep the scenario's grid axes."""
        tokens = np.asarray(sum(part.tokens for part in step.parts))
        logits = np.asarray(sum(part.logits for part in step.parts))
        stages = stage_layers(scenario.model, scenario.sharding)
        return Shard(scenario, step, tokens, logits, scenario.sharding.tp, stages)

    @property
    def cp(self) -> int:
        """Ranks that share out the tokens of a KV cache."""
        return self.scenario.sharding.cp

    @property
    def activation(self) -> DType:
        """Format of activations."""
        return self.scenario.numerics.activations

    def widens(self, bits: float) -> bool:
        """Whether the engine widens numbers of so many bits in memory before it uses them (`unpack.py`)."""
        return self.scenario.engine.unpacks_in_memory and bits < NARROW_BITS

    def layer_count(self, block: int) -> npt.NDArray[np.float64]:
        """Layers of the block on each pipeline stage."""
        return np.array([stage[block] for stage in self.stages], dtype=float)

    def on_stage(self, index: int) -> npt.NDArray[np.float64]:
        """Once, on one stage (-1: the last)."""
        count = np.zeros(len(self.stages))
        count[index] = 1.0
        return count

    def activation_of(self, name: str, width: float, tokens: Array | None = None, size: float | None = None) -> Buffer:
        """An activation buffer of `width` elements a token."""
        count = self.tokens if tokens is None else tokens
        return Buffer(name, count * (width * (self.activation.bytes if size is None else size)))
