"""Many points of one question at once: batches, contexts and prompts as arrays, one vectorised evaluation.

Structure (model, formats) is one value; numbers broadcast against each other. The work is cut into blocks
along the last axis that stay in the processor's cache: the same arithmetic, several times faster than one pass over
arrays of a million points.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .calibration import CalibrationSet
from .estimate import Array
from .explain import largest_cause
from .inference import decode_in_detail, prefill
from .memory import activation_peaks, ledger
from .planner.fit import Activations, Verdict, verdicts
from .scenario import Scenario, Sharding

BLOCK_POINTS = 1 << 15

Codes = npt.NDArray[np.int8]


class Sweep(NamedTuple):
    """Columns over the broadcast shape of batch, context and prompt; bytes are of the fullest device.

    `verdict` holds values of `Verdict`, `tier` of `Tier` (the weakest that holds more than 5 % of the decode step),
    `cause` places in `explain.CAUSES` (what most of that step goes to), `layout` places in the layouts asked about.
    Times are those of a device with room enough, whatever the verdict.
    """

    decode_s: Array
    decode_low_s: Array
    decode_high_s: Array
    prefill_s: Array
    prefill_low_s: Array
    prefill_high_s: Array
    needed_bytes: Array
    needed_low_bytes: Array
    needed_high_bytes: Array
    verdict: Codes
    tier: Codes
    cause: Codes
    layout: Codes


def sweep(
    scenario: Scenario,
    calibrations: CalibrationSet,
    layouts: Sequence[Sharding] = (),
    tick: Callable[[int], None] | None = None,
) -> Sweep:
    """Times with their intervals, memory and verdict at every point of the scenario's arrays.

    At each point in the layout `fits` would choose there: of the best verdict, the one that decodes fastest, or where
    none fits the one that needs least. `layouts` names what to choose from (default: the scenario's own alone); `tick`
    is told how many points are done after every block.
    """
    axes = np.broadcast_shapes(*(np.shape(v) for v in (scenario.batch, scenario.context, scenario.prompt))) or (1,)
    codes = ("verdict", "tier", "cause", "layout")
    result = Sweep._make(np.empty(axes, np.int8 if name in codes else float) for name in Sweep._fields)
    layouts = layouts or (scenario.sharding,)
    rows = math.prod(axes[:-1])
    for block in _blocks(axes[-1], rows):
        part = scenario.but(
            **{name: _cut(getattr(scenario, name), len(axes), block) for name in ("batch", "context", "prompt")}
        )
        _fill(Sweep._make(column[..., block] for column in result), part, calibrations, layouts)
        if tick is not None:
            tick(rows * (block.stop - block.start))
    _fill_prefills(result, scenario, calibrations, layouts)
    return result


def _blocks(length: int, rows: int = 1) -> Iterator[slice]:
    """Slices of an axis with `rows` points at each place."""
    width = max(1, BLOCK_POINTS // max(1, rows))
    return (slice(start, min(start + width, length)) for start in range(0, length, width))


def _cut(values: object, ndim: int, block: slice) -> Array:
    """The block's part of an array along the last axis, with all axes of the grid."""
    array = np.asarray(values, dtype=float)
    array = array.reshape((1,) * (ndim - array.ndim) + array.shape)
    return array if array.shape[-1] == 1 else array[..., block]


def _fill_prefills(
    result: Sweep, scenario: Scenario, calibrations: CalibrationSet, layouts: Sequence[Sharding]
) -> None:
    """Write the prefill columns: of each distinct prompt once, in the layouts that were chosen."""
    distinct, place = np.unique(scenario.prompt, return_inverse=True)
    place = place.reshape(np.shape(scenario.prompt))
    columns = result.prefill_s, result.prefill_low_s, result.prefill_high_s
    for index, sharding in enumerate(layouts):
        chosen = result.layout == index
        if not chosen.any():
            continue
        figures = np.empty((len(columns), distinct.size))
        for block in _blocks(distinct.size):
            prompts = distinct[block].astype(float)
            first = prefill(scenario.but(sharding=sharding, batch=1, context=prompts, prompt=prompts), calibrations)
            figures[:, block] = first.time_s, first.low_s, first.high_s
        for whole, column in zip(columns, figures, strict=True):
            np.copyto(whole, column[place], where=chosen)


class _Memory(NamedTuple):
    """Bytes of the fullest device in one layout, and the verdict."""

    needed: Array
    low: Array
    high: Array
    verdict: npt.NDArray[np.int64]


def _fill(result: Sweep, block: Scenario, calibrations: CalibrationSet, layouts: Sequence[Sharding]) -> None:
    """Write the columns of one block; only layouts that may be chosen somewhere in it are priced."""
    activations: Activations = {}
    memories = [_memory(block.but(sharding=sharding), activations) for sharding in layouts]
    reached = np.max([m.verdict for m in memories], axis=0)
    narrowest = np.argmin([m.needed for m in memories], axis=0)
    result.decode_s.fill(np.inf)
    for index, (sharding, memory) in enumerate(zip(layouts, memories, strict=True)):
        eligible = np.where(reached == Verdict.NO, narrowest == index, memory.verdict == reached)
        if not eligible.any():
            continue
        columns = _columns(block.but(sharding=sharding), calibrations, memory, index)
        better = eligible & (columns.decode_s < result.decode_s)
        pairs: Iterable[tuple[Any, Any]] = zip(result, columns, strict=True)
        for whole, column in pairs:
            np.copyto(whole, column, where=better)


def _memory(option: Scenario, activations: Activations) -> _Memory:
    """The ledger of one layout; peaks of activations are shared by layouts with the same ranks in a stage."""
    ranks = option.sharding.tp, option.sharding.cp
    if ranks not in activations:
        activations[ranks] = activation_peaks(option)
    memory = ledger(option, activations[ranks])
    needed, low, high = (f().max(axis=0) for f in (memory.total_bytes, memory.low_bytes, memory.high_bytes))
    return _Memory(needed, low, high, verdicts(option, memory))


def _columns(option: Scenario, calibrations: CalibrationSet, memory: _Memory, index: int) -> Sweep:
    """The columns of one layout, each on the axes it varies in."""
    step, operators = decode_in_detail(option, calibrations)
    unknown = np.asarray(np.nan)  # prefills are written afterwards: they do not vary with the batch
    return Sweep(
        decode_s=step.time_s,
        decode_low_s=step.low_s,
        decode_high_s=step.high_s,
        prefill_s=unknown,
        prefill_low_s=unknown,
        prefill_high_s=unknown,
        needed_bytes=memory.needed,
        needed_low_bytes=memory.low,
        needed_high_bytes=memory.high,
        verdict=memory.verdict.astype(np.int8),
        tier=step.weakest_tiers(),
        cause=largest_cause(operators),
        layout=np.asarray(index, np.int8),
    )
