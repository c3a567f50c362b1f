"""What would turn a "no" into a "yes": single changes, each alone sufficient and each actually tried."""

from __future__ import annotations

import dataclasses

from ..hwspecs.device import Device
from ..hwspecs.load import fleet_of, load, names
from ..units import format_gib
from .answers import Remedy
from .calibration import CalibrationSet
from .inference import decode
from .planner.domain import weight_choices
from .planner.fit import (
    Candidate,
    Verdict,
    Wishes,
    candidates,
    fewest_devices,
    max_context,
    max_users,
)
from .scenario import Scenario, Sharding

COUNTS = (2, 4, 8)


def remedies(candidate: Candidate, wishes: Wishes, calibrations: CalibrationSet) -> tuple[Remedy, ...]:
    """Changes that alone make the scenario surely fit, smallest sacrifice first; empty when it does already."""
    if candidate.verdict is Verdict.SURELY:
        return ()
    tried = (
        _fewer_users(candidate),
        _shorter_context(candidate),
        _both(candidate),
        *_narrower(candidate, wishes),
        _more_devices(candidate, wishes),
        _larger_device(candidate, wishes),
        _host_memory(candidate, calibrations),
    )
    return tuple(remedy for remedy in tried if remedy is not None)


def _fewer_users(candidate: Candidate) -> Remedy | None:
    scenario = candidate.scenario
    users = max_users(scenario)
    if not 0 < users < int(scenario.batch):
        return None
    return Remedy(f"{users} users at once instead of {scenario.batch}", "fits surely", f"--batch {users}")


def _shorter_context(candidate: Candidate) -> Remedy | None:
    scenario = candidate.scenario
    context = max_context(scenario)
    if not 0 < context < int(scenario.context):
        return None
    return Remedy(f"context {context:,} instead of {int(scenario.context):,}", "fits surely", f"--context {context}")


def _both(candidate: Candidate) -> Remedy | None:
    """One user, where neither fewer users nor a shorter context alone is enough."""
    scenario = candidate.scenario
    if int(scenario.batch) == 1 or max_users(scenario) or max_context(scenario):
        return None
    context = max_context(scenario.but(batch=1))
    if not context:
        return None
    return Remedy(f"one user with context {context:,}", "fits surely", f"--batch 1 --context {context}")


def _narrower(candidate: Candidate, wishes: Wishes) -> list[Remedy]:
    """Narrower formats than the ones that were pinned."""
    scenario, found = candidate.scenario, []
    if wishes.kv is not None and wishes.kv.bits > 8:
        found.append(_tried(scenario, wishes._replace(kv=None), "KV cache in fp8", "--kv fp8"))
    if wishes.weights is not None:
        for weights in weight_choices(scenario.model):
            if weights.bits_per_weight < wishes.weights.bits_per_weight:
                change = wishes._replace(weights=weights)
                found.append(_tried(scenario, change, f"weights in {weights.name}", f"--weights {weights.name}"))
    return [remedy for remedy in found if remedy is not None][:1]


def _tried(scenario: Scenario, wishes: Wishes, change: str, flags: str) -> Remedy | None:
    kv = scenario.numerics.kv if wishes.kv is not None else type(scenario.numerics.kv).FP8
    numerics = scenario.numerics._replace(weights=wishes.weights or scenario.numerics.weights, kv=kv)
    reached = max(option.verdict for option in candidates(scenario, numerics, wishes))
    return Remedy(change, "fits surely", flags) if reached is Verdict.SURELY else None


def _more_devices(candidate: Candidate, wishes: Wishes) -> Remedy | None:
    scenario = candidate.scenario
    counts = tuple(c for c in COUNTS if c > scenario.fleet.count)
    found = fewest_devices(scenario.but(fleet=dataclasses.replace(scenario.fleet, free_bytes=None)), wishes, counts)
    if found is None or scenario.fleet.device.vendor == "cpu":
        return None
    count, numerics, sharding = found
    name = f"{count}x{scenario.fleet.device.key}"
    return Remedy(name, f"fits surely with {numerics.weights.name} weights, {sharding}", f"--gpu {name}")


def _larger_device(candidate: Candidate, wishes: Wishes) -> Remedy | None:
    """The smallest bundled device with more memory that holds the scenario alone."""
    scenario = candidate.scenario
    here = scenario.fleet.device.capacity_bytes.value
    larger = [d for d in (load(Device, n) for n in names(Device)) if d.capacity_bytes.value > here * 1.02]
    for device in sorted(larger, key=lambda d: d.capacity_bytes.value):
        grown = scenario.but(fleet=fleet_of(device), sharding=Sharding())
        found = fewest_devices(grown, wishes, (1,))
        if found is not None:
            weights = found[1].weights.name
            return Remedy(f"one {device.name}", f"fits surely with {weights} weights", f"--gpu {device.key}")
    return None


def _host_memory(candidate: Candidate, calibrations: CalibrationSet) -> Remedy | None:
    """Weights in host memory, streamed over the host link: only a bound on the speed, no schedule is promised."""
    scenario = candidate.scenario
    fleet, memory = scenario.fleet, candidate.memory
    spare = fleet.host_memory_bytes
    over = float((memory.high_bytes() - scenario.engine.memory_utilization * fleet.usable_bytes()).max())
    if spare is None or fleet.device.unified_memory or over <= 0 or over * scenario.sharding.devices > 0.9 * spare:
        return None
    step = float(decode(scenario, calibrations).time_s)
    bound = int(scenario.batch) / (step + over / fleet.host_link.bandwidth_bytes_per_s.value)
    return Remedy(
        f"{format_gib(over)} of weights per device in host memory",
        f"at most {bound:.3g} tok/s if they are streamed for every token (bound of {fleet.host_link.name})",
        "an engine that offloads (llama.cpp -ngl, vLLM --cpu-offload-gb)",
    )
