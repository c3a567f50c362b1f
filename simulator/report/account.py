"""An answer's account of itself: the question as understood, how to ask it again, what its times rest on."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ... import DATA_DATE
from ...calibrate import store
from ...calibrate.transfer import Calibrations
from ...hwspecs.device import Device, Fleet
from ...hwspecs.load import names
from ...units import format_size
from .. import answers as a
from .. import engines
from ..estimate import Estimate, Tier
from ..explain import Row, cause, known, operator_class, quantity
from ..memory import Ledger
from ..planner.fit import Wishes
from ..scenario import Engine, Extras, Scenario, Sharding
from ..schedule import Priced
from ..workload.model import Model

UNNAMED = "--vram/--bandwidth"  # stands where the file of a card without a name would


def layout_of(sharding: Sharding) -> a.Layout:
    """How a model is cut, as the contract shows it."""
    return a.Layout(sharding.tp, sharding.pp, sharding.ep, sharding.cp, sharding.devices)


def question_of(scenario: Scenario, wishes: Wishes) -> a.Question:
    """The scenario as the JSON contract shows it."""
    pinned = tuple(name for name, value in wishes._asdict().items() if value is not None)
    model, weights = scenario.model, scenario.numerics.weights
    bits = weights.bits_per_weight
    if weights.whole:  # a mixture of widths: the model's own average
        bits = 8 * model.weight_bytes(weights) / model.parameters
    return a.Question(
        model=model.name,
        model_origin=model.origin,
        device=scenario.fleet.device.key,
        device_count=scenario.fleet.count,
        host_memory_bytes=scenario.fleet.host_memory_bytes,
        batch=int(scenario.batch),
        context=int(scenario.context),
        prompt=int(scenario.prompt),
        weights=weights.name,
        bits_per_weight=bits,
        kv=scenario.numerics.kv.value,
        layout=layout_of(scenario.sharding),
        engine=scenario.engine.label,
        memory_utilization=scenario.engine.memory_utilization,
        max_batched_tokens=scenario.engine.max_batched_tokens,
        routing=f"{scenario.engine.routing.value} {scenario.engine.routing_alpha:g}",
        pinned=pinned,
    )


def flags_of(scenario: Scenario, wishes: Wishes) -> str:
    """The command-line words that ask this question again, choices that were left open left open."""
    fleet, extras, engine = scenario.fleet, scenario.extras, scenario.engine
    words = [model_word(scenario.model), *hardware_words(fleet)]
    words += [f"--batch {int(scenario.batch)}", f"--context {int(scenario.context)}"]
    if int(scenario.prompt) != int(scenario.context):
        words += [f"--prompt {int(scenario.prompt)}"]
    if scenario.placement.stretches:
        words += host_words(fleet)
    pinned = {**wishes._asdict(), "weights": wishes.weights and wishes.weights.name}
    words += [f"--{name} {value}" for name, value in pinned.items() if value is not None]
    words += beside_words(extras)
    words += [f"--draft {model_word(extras.draft)}"] if extras.draft is not None else []
    words += [f"--engine {engine.label}"] if engine.label != Engine().label else []
    return " ".join([*words, *knob_words(engine)])


def model_word(model: Model) -> str:
    """What a model is asked for by: its bundled name, or where it was read."""
    return model.name if model.origin == "bundled" else model.origin


def hardware_words(fleet: Fleet, nodes: int = 1) -> list[str]:
    """The words that name the devices again; nothing for those of this machine."""
    device = fleet.device
    if device.file == UNNAMED:
        rate, size = device.bandwidth_bytes_per_s.value, device.capacity_bytes.value
        return [f"--vram {size:.0f}B", f"--bandwidth {rate:.0f}B/s"]
    if not device.file.endswith(".toml"):
        return []
    label = fleet.label if device.key in names(Device) else fleet.label.replace(device.key, device.file)
    words = [f"--gpu {f'{nodes}x' if nodes > 1 else ''}{fleet.cluster or label}"]
    return [*words, f"--vram {format_size(fleet.memory_bytes)}"] if fleet.memory_bytes else words


def host_words(fleet: Fleet) -> list[str]:
    """The words for the host's memory, where it is known."""
    if fleet.host_memory_bytes is None:
        return []
    words = [f"--ram {fleet.host_memory_bytes / 1e9:.12g}GB"]
    return [*words, f"--host {fleet.host.key}"] if fleet.host else words


def beside_words(extras: Extras) -> list[str]:
    """The words for what all users share and for adapters."""
    words = [f"--shared-prefix {extras.shared_prefix}"] if extras.shared_prefix else []
    return words + ([f"--adapters {extras.adapters} --adapter-rank {extras.adapter_rank}"] if extras.adapters else [])


def knob_words(engine: Engine) -> list[str]:
    """The words for an engine's knobs that are not as its profile has them."""
    default = engines.PROFILES.get(engine.name, Engine())
    words = []
    if engine.memory_utilization != default.memory_utilization:
        words += [f"--memory-utilization {engine.memory_utilization:g}"]
    if engine.max_batched_tokens != default.max_batched_tokens:
        words += [f"--max-batched-tokens {engine.max_batched_tokens}"]
    words += [] if engine.graphs else ["--no-graphs"]
    return words + ([] if engine.flash_attention else ["--no-flash-attention"])


def needed(memory: Ledger) -> a.Quantity:
    """Memory of the fullest device, lowest to highest figure."""
    low, usual, high = (float(np.max(f())) for f in (memory.low_bytes, memory.total_bytes, memory.high_bytes))
    return known(usual, low, high, "B")


def unfit(unit: str) -> a.Quantity:
    """A speed nobody can have: the model does not fit."""
    return a.Quantity(None, None, None, unit, "does not fit")


def explain_row(row: Row, whole: float, device: Device) -> a.ExplainRow:
    """One operator of a step; `whole` is the time of the step in seconds."""
    compute, memory, floor, link, latency = (float(np.sum(t)) for t in row.time.terms.stack())
    return a.ExplainRow(
        operator_class=operator_class(row.table),
        operator=row.label,
        layer=row.layer,
        kernel=str(row.table.kernel),
        repetitions=row.repetitions,
        flops=row.flops,
        bytes=row.traffic_bytes,
        time=quantity(row.time),
        compute_s=compute,
        memory_s=memory,
        floor_s=floor,
        link_s=link,
        latency_s=latency,
        bound=cause(row.table, row.time.bound()),
        share=float(row.time.time_s) / whole,
        arithmetic=row.table.kernel.arithmetic.value,
        peak_flops_per_s=device.peak_flops_per_s(row.table.kernel.arithmetic).value,
        tier=row.resolved.tier.label,
        note=row.resolved.reason,
    )


def evidence_of(time: Estimate, operators: Iterable[Priced], calibrations: Calibrations) -> a.Evidence:
    """What a time of these operators rests on: tiers by share, calibrations with hashes, hardware sources."""
    whole = max(float(np.sum(time.time_s)), 1e-300)
    used: dict[tuple[str, Tier, str], float] = {}
    files: dict[str, str] = {}
    for table, times, on in operators:
        calibration, tier, *_, reason = (on or calibrations).resolve(table.kernel)
        key, count = (calibration.id, tier, reason), table.count.sum(axis=1)
        used[key] = used.get(key, 0.0) + float(times.time_s.reshape(len(count)) @ count)
        files[calibration.id] = calibration.file
    everything = sum(used.values()) or 1.0
    device = calibrations.fleet.device
    return a.Evidence(
        weakest=time.weakest_tier().label,
        tiers=tuple(a.TierShare(tier.label, share) for tier, share in time.evidence().items()),
        calibrations=tuple(
            a.CalibrationUse(id_, tier.label, seconds / everything, reason, store.digest(Path(files[id_])))
            for (id_, tier, reason), seconds in sorted(used.items(), key=lambda item: -item[1])
        ),
        extrapolated_share=float(np.sum(time.extrapolated_s)) / whole,
        sources=tuple(f"{s.publisher}: {s.title}" for s in device.sources.values()),
        data_date=DATA_DATE,
    )
