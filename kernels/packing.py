"""Four-bit weights as the kernels store them: groups of 128 along k, 16 words of eight nibbles, one bf16 scale.

Nibble i of word j of a group is element 16 i + j, unsigned with 8 for zero: a shift of 16 neighbouring words yields 16
neighbouring elements, so that nothing has to be permuted. Weight (n, k) -> words (n, k / 8), scales (n, k / 128).
"""

from __future__ import annotations

import torch
from torch import Tensor

GROUP = 128
NIBBLES = 8  # of a 32-bit word
WORDS = GROUP // NIBBLES
ZERO = 8


def unpack(words: Tensor, scales: Tensor) -> Tensor:
    """The weights in float64."""
    rows = len(words)
    shifts = 4 * torch.arange(NIBBLES, device=words.device, dtype=torch.int32)
    nibbles = (words.view(rows, -1, 1, WORDS) >> shifts[:, None]) & 15
    return (nibbles - ZERO).double().view(rows, -1, GROUP).mul_(scales.double()[..., None]).view(rows, -1)


def widen(weights: Tensor, scales: Tensor) -> Tensor:
    """One-byte weights (n, k) with scales (n, k / 128) in float64."""
    return weights.double().view(len(weights), -1, GROUP).mul_(scales.double()[..., None]).view(len(weights), -1)
