"""Inference as a program: prefill of a prompt, decoding of a batch, and swapping a user's KV cache out.

Service times only: a request that waits in a queue waits longer, and nothing here models the queue.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..dtypes import DType
from .calibration import CalibrationSet
from .costs import estimate
from .estimate import Array, Estimate, nothing
from .lowering.decoder import lower
from .offload import StepCosts, prefill_time, step_time
from .operators import Copy, Kernel, KernelName, one_row
from .scenario import Phase, Scenario, Step
from .schedule import COMPOSITION_LOG_SD, Priced, Stages, pipeline_cycle, pipeline_fill, pipeline_tail, price, stages_of
from .steps import decode_step
from .tensor_bytes import kv_cache_bytes


class Decoded(NamedTuple):
    """A decode step: its time, and the operators of one micro-batch it is made of."""

    step: Estimate
    operators: tuple[Priced, ...]


def decode(scenario: Scenario, calibrations: CalibrationSet) -> Estimate:
    """Time in which every user gets one more token, at the scenario's full context."""
    return decode_in_detail(scenario, calibrations).step


def decode_in_detail(scenario: Scenario, calibrations: CalibrationSet) -> Decoded:
    """The decode step with the priced operators behind it."""
    if scenario.placement.stretches:
        detailed = step_time(StepCosts(scenario, decode_step(scenario), calibrations))
        return Decoded(detailed.time.displaced(COMPOSITION_LOG_SD), detailed.operators)
    operators = price(lower(scenario, decode_step(scenario)), scenario, calibrations)
    micro_batches = np.minimum(np.asarray(scenario.batch, float), scenario.sharding.pp)
    return Decoded(pipeline_cycle(stages_of(operators), micro_batches).displaced(COMPOSITION_LOG_SD), operators)


def prefill(scenario: Scenario, calibrations: CalibrationSet) -> Estimate:
    """Time from the start of one request's prompt to its first token, alone on the device: service time only.

    A prompt longer than the engine's `max_batched_tokens` runs in chunks; each later chunk attends to all before.
    The full chunks are priced at their mean past: exact in FLOPs and bytes, both linear in the past, where attention
    has no window, and an upper bound where it has one.
    """
    if scenario.placement.stretches:
        return prefill_time(scenario, calibrations).displaced(COMPOSITION_LOG_SD)
    prompt, chunk = np.asarray(scenario.prompt, float), scenario.engine.max_batched_tokens
    full = np.floor(prompt / chunk)
    rest = np.asarray(prompt - full * chunk)
    result = nothing()
    if np.any(full > 0):
        mean_past = np.asarray(np.maximum(full - 1, 0.0) / 2 * chunk)
        stages = _prefill_stages(scenario, calibrations, np.full_like(prompt, chunk), mean_past)
        result = result + pipeline_fill(stages, np.maximum(full, 1.0)).scaled(full > 0)
    if np.any(rest > 0):
        stages = _prefill_stages(scenario, calibrations, rest, np.asarray(full * chunk))
        result = (
            result
            + stages.through.scaled((rest > 0) & (full == 0))
            + pipeline_tail(stages).scaled((rest > 0) & (full > 0))
        )
    return result.displaced(COMPOSITION_LOG_SD)


def _prefill_stages(scenario: Scenario, calibrations: CalibrationSet, new_tokens: Array, past_tokens: Array) -> Stages:
    step = Step(Phase.PREFILL, 1, new_tokens, past_tokens)
    return stages_of(price(lower(scenario, step), scenario, calibrations))


def swap_out(scenario: Scenario, calibrations: CalibrationSet) -> Estimate:
    """Time to copy one user's KV cache from a device to host memory (and as much again to bring it back).

    Devices copy in parallel over their own links; the stage with the most KV cache sets the time.
    """
    one_user = kv_cache_bytes(scenario.but(batch=1)).max(axis=0)
    table = one_row(Copy, "swap", "model", 1, Kernel(KernelName.HOST_COPY, DType.BF16), copy_bytes=one_user)
    return estimate(table, scenario.fleet, calibrations).row(0)
