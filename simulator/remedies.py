"""What would turn a "no" into a "yes": single changes, each alone sufficient and each actually tried."""

from __future__ import annotations

import dataclasses

import numpy as np

from ..dtypes import DType
from ..hwspecs.device import Device
from ..hwspecs.load import fleet_of, load, names
from ..units import format_size
from .answers import Remedy
from .calibration import CalibrationSet
from .inference import decode
from .planner.domain import weight_choices
from .planner.fit import (
    Candidate,
    Offload,
    Verdict,
    Wishes,
    candidates,
    fewest_devices,
    max_context,
    max_users,
    placements,
)
from .scenario import Scenario, Sharding

COUNTS = (2, 4, 8)


def remedies(candidate: Candidate, wishes: Wishes, calibrations: CalibrationSet) -> tuple[Remedy, ...]:
    """Changes that alone make the scenario surely fit, smallest sacrifice first; empty when it does already."""
    if candidate.verdict is Verdict.SURELY:
        return ()
    scenario = candidate.scenario
    users, context = max_users(scenario), max_context(scenario)
    tried = (
        _fewer_users(scenario, users),
        _shorter_context(scenario, context),
        None if users or context else _both(scenario),
        _narrower(candidate, wishes),
        _more_devices(candidate, wishes),
        _larger_device(candidate, wishes),
        _host_memory(candidate, wishes, calibrations),
    )
    return tuple(remedy for remedy in tried if remedy is not None)


def _fewer_users(scenario: Scenario, most: int) -> Remedy | None:
    now = int(scenario.batch)
    if not 0 < most < now:
        return None
    return Remedy(f"users at once: {most:,} instead of {now:,}", "fits surely", f"--batch {most}")


def _shorter_context(scenario: Scenario, most: int) -> Remedy | None:
    now = int(scenario.context)
    if not 0 < most < now:
        return None
    return Remedy(f"context {most:,} instead of {now:,}", "fits surely", _context_flags(scenario, most))


def _both(scenario: Scenario) -> Remedy | None:
    """One user, where neither fewer users nor a shorter context alone is enough."""
    context = max_context(scenario.but(batch=1)) if int(scenario.batch) > 1 else 0
    if not context:
        return None
    flags = f"--batch 1 {_context_flags(scenario, context)}"
    return Remedy(f"one user with context {context:,}", "fits surely", flags)


def _context_flags(scenario: Scenario, context: int) -> str:
    """A prompt is part of its context, so it shrinks with it."""
    return f"--context {context}" + (f" --prompt {context}" if context < int(scenario.prompt) else "")


def _narrower(candidate: Candidate, wishes: Wishes) -> Remedy | None:
    """The first narrower format than a pinned one that is enough."""
    scenario = candidate.scenario
    if wishes.kv is not None and wishes.kv.bits > 8:
        remedy = _tried(scenario, wishes._replace(kv=None), "KV cache in fp8", "--kv fp8")
        if remedy is not None:
            return remedy
    pinned = wishes.weights.bits_per_weight if wishes.weights is not None else 0.0
    for weights in weight_choices(scenario.model):
        if weights.bits_per_weight < pinned:
            change = wishes._replace(weights=weights)
            remedy = _tried(scenario, change, f"weights in {weights.name}", f"--weights {weights.name}")
            if remedy is not None:
                return remedy
    return None


def _tried(scenario: Scenario, wishes: Wishes, change: str, flags: str) -> Remedy | None:
    kv = scenario.numerics.kv if wishes.kv is not None else DType.FP8
    numerics = scenario.numerics._replace(weights=wishes.weights or scenario.numerics.weights, kv=kv)
    reached = max(option.verdict for option in candidates(scenario, numerics, wishes))
    return Remedy(change, "fits surely", flags) if reached is Verdict.SURELY else None


def _more_devices(candidate: Candidate, wishes: Wishes) -> Remedy | None:
    """More devices of the kind; a pinned layout is let go where it keeps the model from using them."""
    scenario = candidate.scenario
    if not scenario.fleet.device.file.endswith(".toml"):  # this CPU, or a card without a name to multiply
        return None
    counts = tuple(c for c in COUNTS if c > scenario.fleet.count)
    grown = scenario.but(fleet=dataclasses.replace(scenario.fleet, free_bytes=None))
    found, note = fewest_devices(grown, wishes, counts), ""
    if found is None and (wishes.tp or wishes.pp):
        found, note = fewest_devices(grown, wishes._replace(tp=None, pp=None), counts), ", without --tp and --pp"
    if found is None:
        return None
    name, shared = f"{found.devices}x{scenario.fleet.device.key}", scenario.fleet.memory_bytes
    flags = f"--gpu {name}" + (f" --vram {format_size(shared)}" if shared else "") + note
    return Remedy(name, f"fits surely with {found.numerics.weights.name} weights", flags)


def _larger_device(candidate: Candidate, wishes: Wishes) -> Remedy | None:
    """The smallest bundled device with more memory that holds the scenario alone."""
    scenario = candidate.scenario
    here = scenario.fleet.device.addressable_bytes()
    larger = [d for d in (load(Device, n) for n in names(Device)) if d.addressable_bytes() > here * 1.02]
    for device in sorted(larger, key=lambda d: d.addressable_bytes()):
        grown = scenario.but(fleet=fleet_of(device), sharding=Sharding())
        found = fewest_devices(grown, wishes, (1,))
        if found is not None:
            weights = found.numerics.weights.name
            return Remedy(f"one {device.name}", f"fits surely with {weights} weights", f"--gpu {device.key}")
    return None


ROOMS_GB = (16, 32, 64, 128, 256, 512, 1024)


def _host_memory(candidate: Candidate, wishes: Wishes, calibrations: CalibrationSet) -> Remedy | None:
    """The least host memory of a machine like those sold that is enough, with the speed of what is placed there."""
    fleet = candidate.scenario.fleet
    if candidate.verdict is not Verdict.NO:  # `fits` places nothing elsewhere where it may fit
        return None
    if fleet.device.unified_memory or fleet.device.vendor == "cpu" or wishes.offload is Offload.NEVER:
        return None
    for room in ROOMS_GB:
        if room * 1e9 <= (fleet.host_memory_bytes or 0.0):
            continue
        larger = candidate.scenario.but(fleet=dataclasses.replace(fleet, host_memory_bytes=room * 1e9))
        found, _ = placements(larger, wishes, calibrations)
        if found:
            speeds = [int(larger.batch) / float(decode(each.scenario, calibrations).time_s) for each in found]
            best = found[int(np.argmax(speeds))].scenario
            users = "" if int(larger.batch) == 1 else " over all users"
            formats = f"{best.numerics.weights.name} weights"
            then = f"fits surely with {formats}, about {max(speeds):.2g} tokens/s{users}"
            return Remedy(f"{room} GB of host memory", then, f"--ram {room}GB")
    return None
