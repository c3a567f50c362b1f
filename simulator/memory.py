"""The ledger: bytes per device by tensor class, each with a lower and an upper figure, and what a tool would show.

Weights, KV cache and live activations are computed; what the runtime adds (context, workspaces, graphs,
communicators, allocator) are ranges read in public logs, with the source in each row.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import numpy as np

from ..hwspecs.device import SWITCHED_BYTES_PER_S, Device
from .estimate import Array
from .liveness import peaks
from .lowering.decoder import lower
from .placement import Moved, moved
from .scenario import MemoryTier, Number, Phase, Scenario, Step, drafted
from .tensor_bytes import kv_cache_bytes, stage_weight_bytes

GIB, MIB = 2.0**30, 2.0**20


class TensorClass(StrEnum):
    """The rows of a ledger, in the order they are shown."""

    WEIGHTS = "weights"
    KV_CACHE = "kv cache"
    ADAPTERS = "adapters"
    DRAFT = "draft model"
    ACTIVATIONS = "activations"
    STAGING = "staging buffers"
    WORKSPACE = "workspace"
    ALLOCATOR = "allocator slack"
    GRAPHS = "graphs"
    COMMUNICATORS = "communicators"
    CONTEXT = "context"


# What torch.cuda.max_memory_allocated and max_memory_reserved would report.
ALLOCATED = (
    TensorClass.WEIGHTS,
    TensorClass.KV_CACHE,
    TensorClass.ADAPTERS,
    TensorClass.DRAFT,
    TensorClass.ACTIVATIONS,
    TensorClass.STAGING,
    TensorClass.WORKSPACE,
)
RESERVED = (*ALLOCATED, TensorClass.ALLOCATOR)


class Entry(NamedTuple):
    """Bytes of one class on one device of each stage: arrays (stages, *grid)."""

    tensor_class: TensorClass
    tier: MemoryTier
    low_bytes: Array
    bytes: Array
    high_bytes: Array
    basis: str


@dataclass(frozen=True, eq=False)
class Ledger:
    """What one device of each pipeline stage holds at its peak. Ledgers of different jobs on one device add."""

    entries: tuple[Entry, ...]

    def __add__(self, other: Ledger) -> Ledger:
        return Ledger(self.entries + other.entries)

    def _sum(self, field: str, classes: tuple[TensorClass, ...] | None, tier: MemoryTier = MemoryTier.HBM) -> Array:
        chosen = [e for e in self.entries if e.tier is tier and (classes is None or e.tensor_class in classes)]
        return np.asarray(sum((getattr(e, field) for e in chosen), start=np.zeros(())))

    def low_bytes(self, classes: tuple[TensorClass, ...] | None = None) -> Array:
        """Least a device of each stage needs, (stages, *grid); of some classes only, if given (see ALLOCATED)."""
        return self._sum("low_bytes", classes)

    def total_bytes(self, classes: tuple[TensorClass, ...] | None = None) -> Array:
        """Expected bytes; of all classes it is what nvidia-smi would show for the process."""
        return self._sum("bytes", classes)

    def high_bytes(self, classes: tuple[TensorClass, ...] | None = None) -> Array:
        """Most a device of each stage needs."""
        return self._sum("high_bytes", classes)

    def tier_bytes(self, tier: MemoryTier) -> float:
        """Expected bytes of a scalar ledger in host memory or on its drive, all devices together."""
        return float(np.max(self._sum("bytes", None, tier)))

    def of(self, tensor_class: TensorClass) -> Array:
        """Expected bytes of one class."""
        return self._sum("bytes", (tensor_class,))

    def worst_stage(self) -> int:
        """The stage whose device holds most (of a scalar ledger)."""
        return int(np.argmax(np.atleast_1d(self.total_bytes())))


class Range(NamedTuple):
    """A figure read in public logs: lowest, usual, highest, and where."""

    low: float
    usual: float
    high: float
    basis: str


# vLLM start-up logs: "Free memory on device (free/total)" before anything is loaded. H100 0.51 in 29 equal runs of
# llm-d-planner accuracy/results/v0.19.0; A100 0.41; H200 0.60; 24 GB Ada class 0.45; L4 and 16 GB cards 0.23.
CONTEXT = {
    "hopper": Range(0.50 * GIB, 0.55 * GIB, 0.62 * GIB, "vLLM logs: 0.51 (H100), 0.60 (H200) GiB before loading"),
    "ampere": Range(0.25 * GIB, 0.42 * GIB, 0.50 * GIB, "vLLM logs: 0.41 to 0.49 GiB (A100); 0.25 (RTX 3090)"),
    "ada": Range(0.23 * GIB, 0.45 * GIB, 0.50 * GIB, "vLLM logs: 0.23 (L4) to 0.49 (L40S) GiB before loading"),
}
CONTEXT_ELSEWHERE = Range(0.23 * GIB, 0.45 * GIB, 0.70 * GIB, "vLLM logs: 0.23 (L4) to 0.70 (B200) GiB")
FIRST_USE = Range(0.02 * GIB, 0.25 * GIB, 0.46 * GIB, "non-torch increase of one device, vLLM 0.10 to 0.19 logs")
NVLINK_GROUP = Range(
    0.15 * GIB, 2.85 * GIB, 3.4 * GIB, "tensor-parallel H100, vLLM 0.19: 1.0 at start + 1.8 at first use"
)
PCIE_GROUP = Range(0.13 * GIB, 0.30 * GIB, 1.4 * GIB, "tensor-parallel over PCIe: 0.13 to 0.39 GiB, 1.4 once")
PIPELINE_GROUP = Range(0.15 * GIB, 0.95 * GIB, 1.5 * GIB, "pipeline-parallel H100, vLLM 0.19: 0.92 to 0.97 GiB")
GRAPHS_DENSE = Range(0.23 * GIB, 0.90 * GIB, 1.9 * GIB, "44 runs on H100, vLLM 0.19: 0.51 to 1.85, median 0.94 GiB")
GRAPHS_EXPERTS = Range(0.4 * GIB, 1.4 * GIB, 3.5 * GIB, "mixture-of-experts runs, vLLM 0.10 to 0.19: 0.93 to 3.45 GiB")
ALLOCATOR_SHARE = (0.002, 0.01, 0.024)  # reserved / allocated - 1 in public inference logs
WORKSPACE = {"hopper": 32 * MIB}  # cuBLAS workspace of a handle and stream; 8.125 MiB before Hopper
WORKSPACE_ELSEWHERE = 8.125 * MIB
WORKSPACE_STREAMS = (1, 2, 4)
ACTIVATION_SPREAD = (0.9, 1.0, 1.25)  # logged peaks over computed ones: 0.95 to 1.18 (tests/test_memory_logs.py)


def peak_steps(scenario: Scenario) -> tuple[Step, Step]:
    """The two steps whose activations may be largest: the fullest prefill an engine batches, and decoding everybody."""
    batch, prompt = np.asarray(scenario.batch, float), np.asarray(scenario.prompt, float)
    tokens = np.minimum(batch * prompt, scenario.engine.max_batched_tokens)
    sequences = np.minimum(batch, tokens)
    prefill = Step(Phase.PREFILL, sequences, tokens / sequences, np.zeros(()), logit_tokens=sequences)
    return prefill, Step(Phase.DECODE, batch, 1, np.asarray(scenario.context, float) - 1)


def activation_peaks(scenario: Scenario) -> tuple[Array, Array]:
    """Peak of live activations on a device of an inner stage and of the last one, which makes the logits (*grid).

    They depend on the load and the ranks of a stage (tensor and context parallel), not on the formats of weights and KV
    cache.
    """
    fullest, decode = peak_steps(scenario)
    sequences, new_tokens = _stacked((fullest.sequences, decode.sequences), (fullest.new_tokens, decode.new_tokens))
    both = Step(
        Phase.PREFILL, sequences, new_tokens, np.zeros(())
    )  # one walk sees both steps; the past is no activation
    inner, last = (np.asarray(p.bytes.max(axis=0)) for p in peaks(lower(scenario, both)))
    source = _source_peak(scenario, fullest)
    return (inner, last) if source is None else (np.maximum(inner, source), np.maximum(last, source))


def _source_peak(scenario: Scenario, prefill: Step) -> Array | None:
    """Activations of the encoder over the sources of all sequences of a prefill; None where nothing reads a source."""
    model, width = scenario.model, scenario.numerics.activations.bytes
    if not model.reads_source:
        return None
    widest = max((tower.peak_elements for tower in model.towers), default=0.0)
    return np.asarray(np.asarray(prefill.sequences, float) * widest * width)


def _stacked(*pairs: tuple[Number, Number]) -> list[Array]:
    """Each pair along a new first axis, all with as many axes behind it."""
    ndim = max(np.ndim(v) for pair in pairs for v in pair)
    levelled = ([np.reshape(v, (1,) * (ndim - np.ndim(v)) + np.shape(v)).astype(float) for v in pair] for pair in pairs)
    return [np.stack(np.broadcast_arrays(*pair)) for pair in levelled]


def ledger(scenario: Scenario, activation: tuple[Array, Array] | None = None) -> Ledger:
    """What one device of each stage holds at the peak of the scenario, arrays (stages, *grid).

    `activation` may hand in what `activation_peaks` gave for the same load and ranks of a stage.
    """
    device = scenario.fleet.device
    inner, last = activation_peaks(scenario) if activation is None else activation
    activations = np.stack(np.broadcast_arrays(*[inner] * (scenario.sharding.pp - 1), last))
    away = moved(scenario)
    figures = stage_weight_bytes(scenario) - away.weights, kv_cache_bytes(scenario) - away.state, activations
    axes = max(figure.ndim for figure in figures)  # behind the stages a figure lacks the grid axes it does not vary in
    column, kv, activations = (f.reshape(len(f), *([1] * (axes - f.ndim)), *f.shape[1:]) for f in figures)

    def ranged(name: TensorClass, figure: Range) -> Entry:
        ones = np.ones_like(column)
        return entry(name, figure.basis, ones * figure.low, ones * figure.usual, ones * figure.high)

    entries = [
        entry(TensorClass.WEIGHTS, "computed from the tensor list", column),
        entry(TensorClass.KV_CACHE, "computed, whole pages", kv),
        entry(
            TensorClass.ACTIVATIONS,
            "computed from the liveness of the lowered operators",
            *(activations * factor for factor in ACTIVATION_SPREAD),
        ),
    ]
    entries += _beside(scenario, column)
    if scenario.placement.stretches:
        entries += _elsewhere(away, column)
    if device.vendor != "nvidia":
        return Ledger(tuple(entries))
    entries += allocated_beside(device, column + kv + activations + away.staging)
    if scenario.engine.graphs:
        entries.append(ranged(TensorClass.GRAPHS, GRAPHS_EXPERTS if scenario.model.has_experts else GRAPHS_DENSE))
    if scenario.sharding.devices > 1 and scenario.engine.communicators:
        entries.append(ranged(TensorClass.COMMUNICATORS, _group(scenario)))
    return Ledger((*entries, context_entry(device, column)))


def entry(name: TensorClass, basis: str, *figures: Array, tier: MemoryTier = MemoryTier.HBM) -> Entry:
    """A row of a ledger from its lowest, usual and highest bytes, or one figure for all three."""
    low, usual, high = figures if len(figures) == 3 else figures * 3
    return Entry(name, tier, low, usual, high, basis)


def allocated_beside(device: Device, held: Array) -> tuple[Entry, Entry]:
    """What PyTorch allocates on an NVIDIA device beside the `held` bytes of tensors: workspaces, allocator slack."""
    workspace = WORKSPACE.get(device.architecture, WORKSPACE_ELSEWHERE)
    space = (np.ones_like(held) * workspace * n for n in WORKSPACE_STREAMS)
    slack = (held * share for share in ALLOCATOR_SHARE)
    return (
        entry(TensorClass.WORKSPACE, "cuBLAS workspace of one to four streams (PyTorch)", *space),
        entry(TensorClass.ALLOCATOR, "reserved over allocated in public logs: 1.002 to 1.024", *slack),
    )


def context_entry(device: Device, like: Array) -> Entry:
    """What the driver and libraries hold on an NVIDIA device, as an array like another."""
    context = _added(CONTEXT.get(device.architecture, CONTEXT_ELSEWHERE), FIRST_USE)
    figures = (np.ones_like(like) * figure for figure in (context.low, context.usual, context.high))
    return entry(TensorClass.CONTEXT, context.basis, *figures)


def adapter_bytes(scenario: Scenario) -> float:
    """Bytes of the loaded LoRA adapters on one device: rank x (rows + cols) for every matrix of every layer.

    In 16 bits and cut like the matrices they sit beside (vLLM and S-LoRA keep as many slots as adapters).
    """
    model, extras, sharding = scenario.model, scenario.extras, scenario.sharding
    elements = sum(
        extras.adapter_rank * (t.rows + t.cols) * t.copies * model.instances(t)
        for t in model.tensors
        if t.scope is not None
    )
    return extras.adapters * elements * 2.0 / sharding.devices


def _beside(scenario: Scenario, column: Array) -> list[Entry]:
    """Adapters and a draft model, where there are any; the draft runs on every device in the activations' format."""
    entries, extras = [], scenario.extras
    if extras.adapters:
        size = np.ones_like(column) * adapter_bytes(scenario)
        entries.append(entry(TensorClass.ADAPTERS, "computed: rank x (rows + cols) of every matrix", size))
    if extras.draft is not None:
        draft = drafted(scenario)
        size = stage_weight_bytes(draft).reshape(-1, *([1] * (column.ndim - 1))) + kv_cache_bytes(draft)
        entries.append(entry(TensorClass.DRAFT, "computed: the draft's weights and state", np.ones_like(column) * size))
    return entries


def _elsewhere(away: Moved, column: Array) -> list[Entry]:
    """What a placement keeps in host memory and on its drive, and the buffers it copies through."""
    ones = np.ones_like(column)
    host, cxl = MemoryTier.HOST, MemoryTier.CXL
    entries = [
        entry(TensorClass.WEIGHTS, "computed from the tensor list", ones * away.host_weights, tier=host),
        entry(TensorClass.KV_CACHE, "computed, whole pages", ones * away.host_state, tier=host),
    ]
    if away.cxl_weights or np.any(away.cxl_state):
        entries.append(entry(TensorClass.WEIGHTS, "computed from the tensor list", ones * away.cxl_weights, tier=cxl))
        entries.append(entry(TensorClass.KV_CACHE, "computed, whole pages", ones * away.cxl_state, tier=cxl))
    if away.staging:
        buffers = "buffers of the largest copied part, one more than copies are begun ahead"
        entries.append(entry(TensorClass.STAGING, buffers, ones * away.staging))
        entries.append(entry(TensorClass.STAGING, f"{buffers}, pinned", ones * away.staging, tier=host))
    if away.drive_weights:
        entries.append(
            entry(TensorClass.WEIGHTS, "read from the drive", ones * away.drive_weights, tier=MemoryTier.STORAGE)
        )
    if np.any(away.drive_state):
        entries.append(entry(TensorClass.KV_CACHE, "on the drive", ones * away.drive_state, tier=MemoryTier.STORAGE))
    return entries


def _group(scenario: Scenario) -> Range:
    if scenario.sharding.tp == 1:
        return PIPELINE_GROUP
    link_bytes_per_s = scenario.fleet.interconnect.bandwidth_bytes_per_s.value
    return NVLINK_GROUP if link_bytes_per_s > SWITCHED_BYTES_PER_S else PCIE_GROUP


def _added(a: Range, b: Range) -> Range:
    return Range(a.low + b.low, a.usual + b.usual, a.high + b.high, f"{a.basis}; {b.basis}")
