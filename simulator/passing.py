"""Models that run as one pass: what a pipeline of networks holds on one device, and how long a result takes.

Times are those of the kernels, one after another; memory is weights, the activations of the largest moment, and what
PyTorch and the driver hold beside them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import numpy as np

from ..dtypes import DType
from ..errors import InputError
from ..hwspecs.device import Fleet
from .calibration import CalibrationSet
from .estimate import Array, Estimate, nothing, total
from .lowering.network import Setting, network_operators
from .memory import Ledger, TensorClass, allocated_beside, context_entry, entry
from .operators import Copy, Kernel, KernelName, Operators, one_row
from .scenario import MemoryTier, Number
from .schedule import Priced, price_operators
from .workload.formats import WeightFormat
from .workload.network import Pipeline, Stage

PASS_SPREAD = (0.8, 1.0, 1.5)
"""Activations over the computed ones: fused kernels need less, convolutions' workspaces and copies in another layout
more (assumed: no measured peak of a pipeline stands behind it)."""
PASS_LOG_SD = 0.25
"""What the kernels of a pass leave out (host time of eager execution, fusions): a shared relative error, assumed."""


class Residency(StrEnum):
    """What is on the device at once: every network, or the one that runs (what diffusers calls model offload)."""

    ALL = "all"
    ONE = "one at a time"


@dataclass(frozen=True, eq=False)
class Passing:
    """A pipeline on one device of a fleet: `batch` results at once, weights in a format, networks resident or not.

    `memory_utilization` is the share of the device that may be claimed. `batch` may be an array.
    """

    pipeline: Pipeline
    fleet: Fleet
    weights: WeightFormat
    batch: Number = 1
    residency: Residency = Residency.ALL
    memory_utilization: float = 0.9

    def __post_init__(self) -> None:
        values = np.asarray(self.batch, float)
        if not np.all(np.isfinite(values)) or np.any(values < 1) or np.any(values > 2**40):
            raise InputError("must lie between 1 and 2**40", key="--batch", value=self.batch)
        if not 0 < self.memory_utilization <= 1:
            raise InputError("must lie in (0, 1]", key="--memory-utilization", value=self.memory_utilization)

    @property
    def activation(self) -> DType:
        """Format of activations and of all weights that are not narrowed: that of the checkpoint, or 16 bits."""
        stated = self.weights if self.weights.bits_per_weight >= 16 else self.pipeline.native
        return stated.compute if stated.bits_per_weight >= 16 else DType.BF16

    def setting(self, stage: Stage) -> Setting:
        """How a stage runs."""
        own = Setting(self.fleet.device, self.weights, self.activation)
        return own.for_wide() if stage.wide else own

    def budget_bytes(self) -> float:
        """Bytes that may be claimed on the device."""
        return self.memory_utilization * self.fleet.usable_bytes()


def can_compute(asked: Passing) -> bool:
    """Whether a rate is known for every format the pipeline computes in: some devices state none for fp32."""
    try:
        for stage in asked.pipeline.stages:
            asked.fleet.device.peak_flops_per_s(asked.setting(stage).activation)
    except InputError:
        return False
    return True


class Held(NamedTuple):
    """Bytes of one network: its weights, and its activations at their peak with the whole batch."""

    weights: float
    activations: Array


def held(asked: Passing) -> tuple[Held, ...]:
    """What each network holds while it runs."""
    result = []
    for stage in asked.pipeline.stages:
        setting = asked.setting(stage)
        width = setting.activation.bytes
        weights = stage.network.weight_bytes(setting.weights, width)
        inputs = np.asarray(asked.batch, float) * stage.inputs
        result.append(Held(weights, np.asarray(inputs * stage.network.peak_elements * width)))
    return tuple(result)


def ledger(asked: Passing) -> Ledger:
    """What the device holds at the peak, arrays (1, *grid): all weights and the largest activations, or the larger sum.

    With one network at a time the peak is that of the network whose weights and activations together are largest.
    """
    parts = held(asked)
    activations = np.stack([part.activations for part in parts])
    weights = np.asarray([part.weights for part in parts]).reshape(-1, *([1] * (activations.ndim - 1)))
    if asked.residency is Residency.ALL:
        peak, own = activations.max(axis=0), np.broadcast_to(weights.sum(axis=0), activations.shape[1:])
    else:
        largest = (weights + activations).argmax(axis=0)[None]
        peak = np.take_along_axis(activations, largest, axis=0)[0]
        own = np.take_along_axis(np.broadcast_to(weights, activations.shape), largest, axis=0)[0]
    peak, own = np.asarray(peak)[None], np.asarray(own, float)[None]
    basis = "computed from the list of layers"
    moment = "computed from what is alive together, as eager PyTorch runs; the range is assumed"
    entries = [
        entry(TensorClass.WEIGHTS, basis, own),
        entry(TensorClass.ACTIVATIONS, moment, *(peak * factor for factor in PASS_SPREAD)),
    ]
    if asked.residency is Residency.ONE and not asked.fleet.device.unified_memory:
        waiting = np.broadcast_to(weights.sum(axis=0), own.shape)
        entries.append(entry(TensorClass.WEIGHTS, "all networks wait in host memory", waiting, tier=MemoryTier.HOST))
    device = asked.fleet.device
    if device.vendor == "nvidia":
        entries += [*allocated_beside(device, own + peak), context_entry(device, own)]
    return Ledger(tuple(entries))


class Passed(NamedTuple):
    """Times of one batch of results: of each network over all its passes, of copying weights, of everything."""

    stages: tuple[Estimate, ...]
    copying: Estimate
    whole: Estimate
    operators: tuple[Priced, ...]


def run(asked: Passing, calibrations: CalibrationSet) -> Passed:
    """Time from the first network to the last, for the whole batch."""
    priced = [
        price_operators(
            network_operators(s.network, asked.setting(s), np.asarray(asked.batch, float) * s.inputs, s.passes),
            asked.fleet,
            calibrations,
        )
        for s in asked.pipeline.stages
    ]
    stages = tuple(_summed(rows).displaced(PASS_LOG_SD) for rows in priced)
    copies = () if asked.residency is Residency.ALL else _copies(asked, calibrations)
    operators = (*(row for rows in priced for row in rows), *copies)
    copying = _summed(copies) if copies else nothing()
    return Passed(stages, copying, _summed(operators).displaced(PASS_LOG_SD), operators)


def _summed(rows: tuple[Priced, ...]) -> Estimate:
    return total(times.weighted_rows(table.count.sum(axis=1)) for table, times, _ in rows)


def _copies(asked: Passing, calibrations: CalibrationSet) -> tuple[Priced, ...]:
    """Weights of every network over the host link, once for a batch; nothing where the memory is the host's own."""
    if asked.fleet.device.unified_memory:
        return ()
    size = sum(part.weights for part in held(asked))
    table = one_row(Copy, "weights", "all", 1, Kernel(KernelName.HOST_COPY, DType.BF16), copy_bytes=size)
    return price_operators(Operators((table,)), asked.fleet, calibrations)
