"""The finite domain of a question: every layout a model can be cut into, every precision worth offering."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from ...dtypes import DType
from ..scenario import Numerics, Sharding
from ..workload.formats import FORMATS, WeightFormat
from ..workload.model import Experts, Model


def splits(model: Model, tp: int) -> bool:
    """Whether tensor parallelism of that degree cuts the model: heads and feed-forward width divide evenly."""
    return all(b.attention.heads % tp == 0 and b.ffn.intermediate % tp == 0 for b in model.blocks)


def layouts(model: Model, devices: int, tp: int | None = None, pp: int | None = None) -> tuple[Sharding, ...]:
    """Layouts on at most `devices` devices; `tp` and `pp` pin a degree.

    Tensor parallel by powers of two; pipelines by powers of two and by divisors of what is left.
    """
    if min(tp or 1, pp or 1) < 1:
        return ()
    result = []
    for t in [tp] if tp else _powers_of_two(devices):
        left = devices // t
        depths = {pp} if pp else {*_powers_of_two(left), *(p for p in range(1, left + 1) if left % p == 0)}
        if splits(model, t):
            result += [Sharding(t, p) for p in sorted(depths) if t * p <= devices and p <= model.layers]
    return tuple(result)


def _powers_of_two(limit: int) -> list[int]:
    return [2**i for i in range(limit.bit_length()) if 2**i <= limit]


def weight_choices(model: Model) -> tuple[WeightFormat, ...]:
    """Formats to offer, most faithful first: a quantised file is what it is, a 16-bit one can be narrowed."""
    if model.stored or model.native.bits_per_weight < 16:
        return (model.native,)
    return tuple(dict.fromkeys((model.native, FORMATS["fp8"], FORMATS["int4"])))


def precisions(model: Model, weights: WeightFormat | None = None, kv: DType | None = None) -> tuple[Numerics, ...]:
    """Weight and KV formats to offer, most faithful first: weights are narrowed last."""
    kv_choices = (kv,) if kv else (model.activation if model.activation is DType.FP16 else DType.BF16, DType.FP8)
    weight_formats = (weights,) if weights else weight_choices(model)
    return tuple(Numerics(w, k, model.activation) for w in weight_formats for k in kv_choices)


def has_experts(model: Model) -> bool:
    """Whether any layer is a mixture of experts."""
    return any(isinstance(b.ffn, Experts) for b in model.blocks)


PROBES = 1024  # numbers asked for at a time: an array of these costs about as much as one


def largest(holds: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.bool_]], limit: int) -> int:
    """Largest whole n in 1..limit for which a monotone condition holds (0: none)."""
    low, high = 0, limit + 1  # holds at low (or low is 0), fails at high (or high is beyond the limit)
    while high - low > 1:
        points = _between(low, high)
        ok = holds(points)
        passing, failing = points[ok], points[~ok]
        low = int(passing.max()) if passing.size else low
        high = int(failing.min()) if failing.size else high
    return low


def _between(low: int, high: int) -> npt.NDArray[np.float64]:
    """Whole numbers strictly between, the ends always among them; far apart ones spread by ratio, near ones evenly."""
    if high - low <= PROBES or low > PROBES:
        return np.unique(np.linspace(low + 1, high - 1, min(PROBES, high - low - 1)).round())
    return np.unique(np.geomspace(low + 1, high - 1, PROBES).round())
