"""The steps an engine runs for a scenario."""

from __future__ import annotations

import numpy as np

from .scenario import Phase, Scenario, Step


def decode_step(scenario: Scenario) -> Step:
    """One decode step of one micro-batch: pipeline stages work on as many micro-batches as there are stages."""
    batch = np.asarray(scenario.batch, float)
    sequences = np.ceil(batch / np.minimum(batch, scenario.sharding.pp))
    return Step(Phase.DECODE, sequences, 1, np.asarray(scenario.context, float) - 1)


def prefill_step(scenario: Scenario) -> Step:
    """The first prefill step of a scalar scenario as engines batch it: whole prompts while they fit, else one chunk."""
    prompt, limit = int(scenario.prompt), scenario.engine.max_batched_tokens
    return Step(Phase.PREFILL, max(1, min(int(scenario.batch), limit // prompt)), min(prompt, limit), 0)
