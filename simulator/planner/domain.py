"""The finite domain of a question: every layout a model can be cut into, every precision worth offering."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from ...dtypes import DType
from ...errors import InputError
from ..scenario import Engine, Numerics, Sharding, shared_ranks
from ..workload.formats import FORMATS, WeightFormat
from ..workload.model import Model


def splits(model: Model, tp: int, ep: int = 1) -> bool:
    """Whether tensor parallelism of that degree cuts the model: heads and feed-forward width divide evenly, KV heads
    divide or are replicated evenly; with `ep` groups of ranks whole experts are dealt out and cut within a group.
    """
    if ep > 1 and (tp % ep or not model.has_experts):
        return False
    return all(block.cut_by(tp, ep) for block in model.blocks)


def layouts(
    model: Model,
    devices: int,
    tp: int | None = None,
    pp: int | None = None,
    ep: int | None = None,
    cp: int | None = None,
) -> tuple[Sharding, ...]:
    """Layouts on at most `devices` devices; `tp`, `pp`, `ep` and `cp` pin a degree (experts, and the tokens of a KV
    cache, are dealt out only if asked for).

    Tensor parallel by powers of two; pipelines by powers of two and by divisors of what is left.
    """
    if min(tp or 1, pp or 1, ep or 1, cp or 1) < 1:
        return ()
    whole = Sharding(ep=ep or 1, cp=cp or 1)
    result = []
    for t in [tp] if tp else _powers_of_two(devices):
        left = devices // t
        depths = {pp} if pp else {*_powers_of_two(left), *(p for p in range(1, left + 1) if left % p == 0)}
        if splits(model, t, whole.ep) and model.cache_copies(t) % whole.cp == 0:
            result += [whole._replace(tp=t, pp=p) for p in sorted(depths) if t * p <= devices and p <= model.layers]
    return tuple(result)


def context_degrees(model: Model, engine: Engine, tp: int) -> list[int]:
    """Over how many of `tp` ranks the engine may share out a KV cache: powers of two, 1 where no two keep the same."""
    copies = shared_ranks(model, engine, tp)
    return [degree for degree in _powers_of_two(copies) if copies % degree == 0]


def _powers_of_two(limit: int) -> list[int]:
    return [2**i for i in range(limit.bit_length()) if 2**i <= limit]


def weight_choices(model: Model) -> tuple[WeightFormat, ...]:
    """Formats to offer, most faithful first: a quantised file is what it is, a 16-bit one can be narrowed."""
    if model.stored or model.native.bits_per_weight < 16:
        return (model.native,)
    sixteen = (FORMATS["bf16"],) if model.native.bits_per_weight > 16 else ()
    return (model.native, *sixteen, FORMATS["fp8"], FORMATS["int4"])


def takes(model: Model, weights: WeightFormat) -> bool:
    """Whether the model can be had in that format: its own, one it can be narrowed to, or as a GGUF file made of it."""
    choices = weight_choices(model)
    return len(choices) > 1 or weights.name == choices[0].name or (weights.whole and not model.stored)


def precisions(model: Model, weights: WeightFormat | None = None, kv: DType | None = None) -> tuple[Numerics, ...]:
    """Weight and KV formats to offer, most faithful first: weights are narrowed last."""
    kv_choices = (kv,) if kv else (model.activation if model.activation is DType.FP16 else DType.BF16, DType.FP8)
    choices = weight_choices(model)
    if weights is not None and not takes(model, weights):
        remedy = "drop --weights: a quantised file is what it is"
        raise InputError(
            f"{model.name} is stored in {choices[0].name}", key="--weights", value=weights.name, remedy=remedy
        )
    # A quantised file is taken as it is: of a format pinned by name it may narrow less than all.
    pinned = weights is not None and (len(choices) > 1 or weights.name != choices[0].name)
    weight_formats = (weights,) if weights is not None and pinned else choices
    return tuple(Numerics(w, k, model.activation) for w in weight_formats for k in kv_choices)


def largest(room: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]], limit: int, near: int = 1) -> int:
    """Largest whole n in 1..limit with room(n) >= 0 for a room that never grows with n (0: none).

    Asked for a few numbers at a time: both ends, and the neighbours of where a straight line between the ends of the
    remaining interval crosses zero. Memory is nearly linear in batch and context, so two or three rounds do; the
    middle of the interval is always asked too, so that a room of any other shape takes its logarithm. `near` is a
    first guess: the line is straight on its side of it.
    """
    low, high = 0, limit + 1  # there is room at low (or low is 0), none at high (or high is beyond the limit)
    room_low = room_high = None
    extra = {near, 2 * near}
    while high - low > 1:
        points = _probes(low, high, room_low, room_high, extra)
        rooms = room(points)
        fits = rooms >= 0
        if fits.any():
            low, room_low = int(points[fits][-1]), float(rooms[fits][-1])
        if not fits.all():
            high, room_high = int(points[~fits][0]), float(rooms[~fits][0])
    return low


def _probes(
    low: int, high: int, room_low: float | None, room_high: float | None, extra: set[int]
) -> npt.NDArray[np.float64]:
    """Whole numbers strictly between low and high, ascending: ends, middle, and around the crossing of the chord."""
    wanted = {low + 1, (low + high) // 2, high - 1} | extra
    if room_low is not None and room_high is not None and room_low - room_high > 0:
        crossing = low + round((high - low) * room_low / (room_low - room_high))
        wanted |= {crossing + offset for offset in (-1, 0, 1, 2)}
    return np.array(sorted(n for n in wanted if low < n < high), dtype=float)
