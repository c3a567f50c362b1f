"""Does a pipeline of one pass fit: the verdict, the format and residency it takes, how many results at once.

Enumerated like decoders: formats from the most faithful down, all networks resident before one at a time.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np

from ...errors import InputError, UnknownNameError
from ...units import format_gib
from ..calibration import CalibrationSet
from ..estimate import Array
from ..memory import Ledger
from ..passing import Passed, Passing, Residency, ledger, run
from ..scenario import MemoryTier
from ..workload.formats import FORMATS, WeightFormat
from ..workload.network import Pipeline
from .domain import largest
from .fit import MAX_USERS
from .place import HOST_SHARE
from .verdict import Verdict, room

__all__ = ["Choice", "Option", "Wish", "choose", "max_results", "options"]


class Wish(NamedTuple):
    """What the asker pinned; None leaves the choice open."""

    weights: WeightFormat | None = None
    residency: Residency | None = None


class Option(NamedTuple):
    """A format and residency with its ledger and verdict."""

    asked: Passing
    memory: Ledger
    verdict: Verdict


class Choice(NamedTuple):
    """The option `fits` answers with, its times, and every option looked at."""

    chosen: Option
    passed: Passed
    options: tuple[Option, ...]


RESIDENCIES = {"never": Residency.ALL, "networks": Residency.ONE}


def residency(word: str) -> Residency:
    """What of a pipeline is on the device at once, by the word of an option: what may leave it."""
    if word.lower() not in RESIDENCIES:
        raise UnknownNameError("thing of a pipeline to offload", word, RESIDENCIES, listing="roofplan fits --help")
    return RESIDENCIES[word.lower()]


def word_of(kind: Residency) -> str:
    """The word that pins it."""
    return next(word for word, pinned in RESIDENCIES.items() if pinned is kind)


def formats(pipeline: Pipeline) -> tuple[WeightFormat, ...]:
    """Weight formats to offer, most faithful first; a narrow checkpoint is what it is."""
    native = pipeline.native
    if native.bits_per_weight < 16:
        return (native,)
    sixteen = (FORMATS["bf16"],) if native.bits_per_weight > 16 else ()
    return (native, *sixteen, FORMATS["fp8"], FORMATS["int4"])


def options(asked: Passing, wish: Wish) -> tuple[Option, ...]:
    """Every format and residency that was not pinned otherwise, in the order they are preferred.

    Networks that leave the device need room in host memory, where it is known how much there is.
    """
    stated = asked.fleet.host_memory_bytes
    spare = math.inf if stated is None else HOST_SHARE * stated
    alone = len(asked.pipeline.stages) == 1 or asked.fleet.device.unified_memory
    kinds = (wish.residency,) if wish.residency else (Residency.ALL,) if alone else tuple(Residency)
    found, least = [], math.inf
    for weights in (wish.weights,) if wish.weights else formats(asked.pipeline):
        for residency in kinds:
            option = dataclasses.replace(asked, weights=weights, residency=residency)
            memory = ledger(option)
            waiting = memory.tier_bytes(MemoryTier.HOST)
            least = min(least, waiting)
            if waiting <= spare:
                found.append(Option(option, memory, _verdict(option, memory)))
    if not found:
        problem = f"all networks wait in host memory, which takes {format_gib(least)}"
        raise InputError(problem, key="--ram", value=format_gib(stated or 0.0), remedy="state more, or drop --offload")
    return tuple(found)


def _verdict(asked: Passing, memory: Ledger) -> Verdict:
    for level in (Verdict.SURELY, Verdict.TIGHT):
        if float(_room(asked, memory, level)) >= 0:
            return level
    return Verdict.NO


def _room(asked: Passing, memory: Ledger, level: Verdict) -> Array:
    return room(asked.fleet, asked.memory_utilization, memory, level)


def choose(asked: Passing, wish: Wish, calibrations: CalibrationSet) -> Choice:
    """The most faithful format that surely fits (else tightly); where none does, the option that needs least."""
    found = options(asked, wish)
    best = max(found, key=lambda option: option.verdict)  # the first of the best: the order is that of preference
    if best.verdict is Verdict.NO:
        best = min(found, key=lambda option: float(np.max(option.memory.total_bytes())))
    return Choice(best, run(best.asked, calibrations), found)


def max_results(option: Option) -> int:
    """Most results at once with the verdict the option has (0 where it does not fit)."""
    if option.verdict is Verdict.NO:
        return 0

    def left(batches: Array) -> Array:
        grown = dataclasses.replace(option.asked, batch=batches)
        return _room(grown, ledger(grown), option.verdict)

    return largest(left, MAX_USERS, int(option.asked.batch))
