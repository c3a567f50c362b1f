"""A batch of requests taken in, decoded to its end, and followed by the next: how offloading engines run."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .calibration import CalibrationSet
from .estimate import Array, Estimate
from .offload import StepCosts, step_time
from .scenario import Engine, Number, Phase, Scenario, Step
from .schedule import COMPOSITION_LOG_SD
from .speculation import checking, drafting, tokens_per_round


class Generated(NamedTuple):
    """Taking a batch's prompts in, one decode step at the mean context, and time per output token of each user: of
    decoding alone, and with its share of the prompts."""

    first: Estimate
    decode_step: Estimate
    alone: Estimate
    per_token: Estimate


def batch_steps(prompt: int, batch: Number, engine: Engine) -> tuple[Step, Array]:
    """The steps that take a batch's prompts in, and how many: whole prompts together while they fit, else pieces.

    Where a whole block passes layer by layer all prompts are one step: its small batches compute one after another,
    but each layer's weights are copied once (FlexGen's zig-zag block schedule, arXiv 2303.06865, section 4.1).
    """
    if engine.whole_blocks:
        return Step(Phase.PREFILL, batch, float(prompt), np.zeros(())), np.ones(np.shape(batch))
    chunk = engine.max_batched_tokens
    together = np.minimum(batch, max(1.0, chunk // prompt))
    pieces = float(np.ceil(prompt / chunk))
    size = prompt / pieces
    return Step(Phase.PREFILL, together, size, size * (pieces - 1) / 2), np.asarray(pieces * np.ceil(batch / together))


def generate(scenario: Scenario, output: int, calibrations: CalibrationSet) -> Generated:
    """The batch of a scenario whose prompts and answers of `output` tokens are all alike."""
    prompt, batch = int(scenario.prompt), float(scenario.batch)
    step, times = batch_steps(prompt, batch, scenario.engine)
    decode = checking(Step(Phase.DECODE, batch, 1, np.asarray(prompt + output / 2)), scenario.extras)
    first = step_time(StepCosts(scenario, step, calibrations)).time.scaled(times).displaced(COMPOSITION_LOG_SD)
    first = first + drafting(scenario, step, calibrations).scaled(times)
    one = step_time(StepCosts(scenario, decode, calibrations)).time + drafting(scenario, decode, calibrations)
    one = one.displaced(COMPOSITION_LOG_SD)
    alone = one.scaled(1.0 / tokens_per_round(scenario.extras))
    return Generated(first, one, alone, alone + first.scaled(1.0 / output))
