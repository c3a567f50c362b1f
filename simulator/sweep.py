"""Many points of one question at once: batches, contexts and prompts as arrays, one vectorised evaluation.

Structure (model, layout, formats) is one value; numbers broadcast against each other. The work is cut into blocks
along the last axis that stay in the processor's cache: the same arithmetic, several times faster than one pass over
arrays of a million points.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from .calibration import CalibrationSet
from .estimate import Array
from .inference import decode
from .memory import ledger
from .planner.fit import verdicts
from .scenario import Scenario

BLOCK_POINTS = 1 << 15


class Sweep(NamedTuple):
    """Columns over the broadcast shape of batch, context and prompt; bytes are of the fullest device."""

    decode_s: Array
    decode_low_s: Array
    decode_high_s: Array
    needed_bytes: Array
    needed_high_bytes: Array
    verdict: Array


def sweep(scenario: Scenario, calibrations: CalibrationSet) -> Sweep:
    """Decode time with its interval, memory and verdict at every point of the scenario's arrays."""
    axes = np.broadcast_shapes(*(np.shape(v) for v in (scenario.batch, scenario.context, scenario.prompt))) or (1,)
    result = Sweep(*(np.empty(axes) for _ in Sweep._fields))
    width = max(1, BLOCK_POINTS // max(1, math.prod(axes[:-1])))
    for start in range(0, axes[-1], width):
        block = slice(start, min(start + width, axes[-1]))
        part = scenario.but(
            **{name: _cut(getattr(scenario, name), len(axes), block) for name in ("batch", "context", "prompt")}
        )
        step, memory = decode(part, calibrations), ledger(part)
        columns = (
            step.time_s,
            step.low_s,
            step.high_s,
            memory.total_bytes().max(axis=0),
            memory.high_bytes().max(axis=0),
            verdicts(part, memory),
        )
        for whole, column in zip(result, columns, strict=True):
            whole[..., block] = column
    return result


def _cut(values: object, ndim: int, block: slice) -> Array:
    """The block's part of an array along the last axis, with all axes of the grid."""
    array = np.asarray(values, dtype=float)
    array = array.reshape((1,) * (ndim - array.ndim) + array.shape)
    return array if array.shape[-1] == 1 else array[..., block]
