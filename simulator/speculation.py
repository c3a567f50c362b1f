"""A small model guesses ahead, the large one checks all guesses in one step.

A round is `draft_length` decode steps of the draft and one step of the model over one token more of each sequence. If
each guess is right with the same chance a, whatever came before, a round of k guesses yields

    E = 1 + a + a^2 + ... + a^k

tokens: those right before the first wrong one, and the model's own (Leviathan et al., arXiv 2211.17192, equation 1).
How often guesses are right is a matter of both models and of what they write: the asker says it.
"""

from __future__ import annotations

import numpy as np

from .calibration import CalibrationSet
from .estimate import Estimate, nothing
from .lowering.decoder import lower
from .scenario import Extras, Phase, Scenario, Step, drafted
from .schedule import pipeline_cycle, price, stages_of

LENGTHS = (0, 1, 2, 3, 4, 5, 6, 8)  # guesses a round, to choose from; none: the model alone, no draft loaded


def tokens_per_round(extras: Extras) -> float:
    """Tokens that a decode step of the model yields for each sequence: 1 without guesses."""
    return float(sum(extras.acceptance**i for i in range(extras.draft_length + 1)))


def checking(step: Step, extras: Extras) -> Step:
    """A decode step that checks the guesses too: each sequence brings them along, and all need logits."""
    if step.phase is not Phase.DECODE or not extras.draft_length:
        return step
    tokens = 1 + extras.draft_length
    return step._replace(new_tokens=tokens, logit_tokens=np.asarray(step.sequences, float) * tokens)


def drafting(scenario: Scenario, step: Step, calibrations: CalibrationSet) -> Estimate:
    """Time the draft takes beside a step of the model: its guesses one by one, prompts once."""
    if not scenario.extras.draft_length:
        return nothing()
    asked, found = drafted(scenario), nothing()
    for part in step.parts:
        decodes = part.phase is Phase.DECODE
        own = part._replace(new_tokens=1, logit_tokens=None, riding=None) if decodes else part._replace(riding=None)
        operators = price(lower(asked, own), asked, calibrations)
        once = pipeline_cycle(stages_of(operators), np.ones(()))
        found = found + once.scaled(float(scenario.extras.draft_length) if decodes else 1.0)
    return found
