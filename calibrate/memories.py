"""Memory people saw in logs: what each figure is asked as, and what is predicted for it.

`reality/memory.csv` holds the figures with their sources, `reality/memory_asked.csv` the question each answers, both
settled before anything was predicted. A figure is exact (weights, KV cache: sums of tensors), or what is left: the room
an engine finds for its KV cache after weights, activations and what the runtime takes.
"""

from __future__ import annotations

import csv
import dataclasses
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from ..hwspecs.load import load_fleet
from ..simulator import engines
from ..simulator.memory import TensorClass, activation_peaks, ledger
from ..simulator.planner.verdict import Verdict, verdict
from ..simulator.scenario import LAYERS_HOST, Numerics, Placement, Scenario, Sharding, Stretch
from ..simulator.tensor_bytes import kv_cache_bytes
from ..simulator.workload.formats import kv_format
from .speeds import REALITY, model_of, weights_of

BLOCK_TOKENS = 16
EXACT = ("model_weights_bytes", "kv_cache_bytes")
LEFT = ("available_kv_bytes", "kv_tokens", "kv_blocks")


class Row(NamedTuple):
    """A published figure and the question it answers; SI units."""

    id: str
    model: str
    weights: str
    kv: str
    gpu: str
    tp: int
    engine: str
    utilization: float
    length: int
    max_batched: int
    sequences: int
    layers_on_host: int
    flash_attention: bool
    quantity: str
    value: float
    device_total_bytes: float
    source: str
    note: str


class Predicted(NamedTuple):
    """A figure beside the published one; `of_device` is their difference as a share of the memory of a device."""

    row: Row
    value: float
    of_device: float

    @property
    def error(self) -> float:
        """Predicted over published, less one."""
        return self.value / self.row.value - 1.0 if self.row.value else 0.0


@lru_cache(maxsize=1)
def rows() -> tuple[Row, ...]:
    """Every figure that can be asked."""
    with (REALITY / "memory.csv").open(encoding="utf-8", newline="") as file:
        published = {r["id"]: r for r in csv.DictReader(file)}
    with (REALITY / "memory_asked.csv").open(encoding="utf-8", newline="") as file:
        return tuple(_row(entry, published[entry["id"]]) for entry in csv.DictReader(file))


def _row(entry: dict[str, str], figure: dict[str, str]) -> Row:
    return Row(
        id=entry["id"],
        model=entry["model"],
        weights=entry["weights"],
        kv=entry["kv"],
        gpu=entry["gpu"],
        tp=int(entry["tp"]),
        engine=entry["engine"],
        utilization=float(entry["utilization"]),
        length=int(entry["length"]),
        max_batched=int(entry["max_batched"]),
        sequences=int(entry["sequences"]),
        layers_on_host=int(entry["layers"]),
        flash_attention=entry["flash_attention"] != "0",
        quantity=entry["quantity"],
        value=float(figure["value"]),
        device_total_bytes=float(figure["device_total_bytes"] or 0),
        source=figure["source"],
        note=entry["note"],
    )


def scenario_of(row: Row) -> Scenario:
    """The question of a row: the fullest step the engine profiles is one of all its sequences."""
    model = model_of(row.model)
    fleet = load_fleet(row.gpu if row.tp == 1 else f"{row.tp}x{row.gpu}")
    if row.device_total_bytes:
        fleet = dataclasses.replace(fleet, free_bytes=row.device_total_bytes)
    known = engines.engine(row.engine)
    engine = dataclasses.replace(
        known,
        memory_utilization=row.utilization if row.engine != "llama.cpp" else known.memory_utilization,
        max_batched_tokens=row.max_batched or known.max_batched_tokens,
        flash_attention=row.flash_attention,
    )
    numerics = Numerics(weights_of(row.weights, model), kv_format(row.kv))
    length = row.length or min(8192, model.max_context)
    sharding = Sharding(row.tp) if row.engine != "llama.cpp" else Sharding(1, row.tp)
    asked = Scenario(model, fleet, row.sequences, length, length, numerics, sharding, engine=engine)
    if row.layers_on_host:
        asked = asked.but(placement=Placement((Stretch(LAYERS_HOST, row.layers_on_host),)))
    return asked


def predict(row: Row) -> Predicted:
    """The figure predicted for a row; for `fits` the verdict (0 no, 1 tight, 2 surely)."""
    scenario = scenario_of(row)
    memory = ledger(scenario)
    match row.quantity:
        case "model_weights_bytes":
            whole = row.engine == "llama.cpp"
            weights = scenario.model.weight_bytes(scenario.numerics.weights)
            value = weights if whole else float(np.max(memory.of(TensorClass.WEIGHTS)))
        case "kv_cache_bytes":
            value = float(np.sum(kv_cache_bytes(scenario)))
        case "compute_buffer_bytes":
            value = float(np.max(memory.of(TensorClass.ACTIVATIONS)))
        case "fits":
            return Predicted(row, float(verdict(scenario, memory)), 0.0)
        case _:
            value = left_bytes(scenario)
    device = scenario.fleet.device.capacity_bytes.value
    per_unit = _unit_bytes(scenario, row.quantity)
    return Predicted(row, value / per_unit, (value - row.value * per_unit) / device)


def left_bytes(scenario: Scenario) -> float:
    """What an engine finds free for its KV cache: its share of the device, less what it saw taken before.

    vLLM profiles a step of all its sequences, counts what torch had allocated at its peak (not the allocator's slack)
    and captures graphs later; SGLang's share is of weights and cache alone.
    """
    memory = ledger(scenario.but(batch=1), activation_peaks(scenario))
    unseen = (TensorClass.KV_CACHE, TensorClass.GRAPHS, TensorClass.ALLOCATOR)
    taken = memory.total_bytes() - sum(memory.of(name) for name in unseen)
    if scenario.engine.name == "sglang":
        taken = memory.of(TensorClass.WEIGHTS)
    return scenario.engine.memory_utilization * scenario.fleet.usable_bytes() - float(np.max(taken))


def _unit_bytes(scenario: Scenario, quantity: str) -> float:
    """Bytes of one token or block of the KV cache on a device; 1 for figures in bytes."""
    tokens = {"kv_tokens": 1, "kv_blocks": BLOCK_TOKENS}.get(quantity)
    if tokens is None:
        return 1.0
    one = scenario.but(batch=1, context=4096, prompt=4096)
    return tokens * float(np.max(kv_cache_bytes(one))) / 4096


def said_to_fit(predicted: Predicted) -> bool:
    """Whether a figure of kind `fits` says surely of what did not fit."""
    return predicted.row.quantity == "fits" and predicted.row.value == 0 and predicted.value == Verdict.SURELY
