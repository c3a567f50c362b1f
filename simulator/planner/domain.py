"""The finite domain a question is answered over: every layout a model can be cut into, every precision worth offering."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from ...dtypes import DType
from ..scenario import Numerics, Sharding
from ..workload.formats import FORMATS, WeightFormat
from ..workload.model import Experts, Model


def splits(model: Model, tp: int) -> bool:
    """Whether tensor parallelism of that degree cuts the model: attention heads and feed-forward width divide evenly."""
    return all(b.attention.heads % tp == 0 and b.ffn.intermediate % tp == 0 for b in model.blocks)


def layouts(model: Model, devices: int, tp: int | None = None, pp: int | None = None) -> tuple[Sharding, ...]:
    """Layouts on at most `devices` devices, tensor parallel by powers of two; `tp` and `pp` pin a degree."""
    degrees = [tp] if tp else [2**i for i in range(devices.bit_length()) if 2**i <= devices]
    result = []
    for t in degrees:
        if not splits(model, t):
            continue
        depths = [pp] if pp else range(1, devices // t + 1)
        result += [Sharding(t, p) for p in depths if t * p <= devices and p <= model.layers]
    return tuple(result)


def weight_choices(model: Model) -> tuple[WeightFormat, ...]:
    """Formats to offer, most faithful first: a quantised file is what it is, a 16-bit one can be narrowed."""
    if model.stored or model.native.bits_per_weight < 16:
        return (model.native,)
    return tuple(dict.fromkeys((model.native, FORMATS["fp8"], FORMATS["int4"])))


def precisions(
    model: Model, weights: WeightFormat | None = None, kv: DType | None = None
) -> tuple[Numerics, ...]:
    """Weight and KV formats to offer, most faithful first: weights are narrowed last."""
    kv_choices = (kv,) if kv else (model.activation if model.activation is DType.FP16 else DType.BF16, DType.FP8)
    weight_formats = (weights,) if weights else weight_choices(model)
    return tuple(Numerics(w, k, model.activation) for w in weight_formats for k in kv_choices)


def has_experts(model: Model) -> bool:
    """Whether any layer is a mixture of experts."""
    return any(isinstance(b.ffn, Experts) for b in model.blocks)


def largest(holds: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.bool_]], limit: int) -> int:
    """Largest whole n in 1..limit for which a monotone condition holds (0: none), asked for 64 numbers at a time."""
    low, high = 0, limit + 1  # holds at low (or low is 0), fails at high
    while high - low > 1:
        points = np.unique(np.linspace(low + 1, high - 1, 64).round() if high - low < 4096 else _spread(low, high))
        ok = holds(points)
        passing, failing = points[ok], points[~ok]
        low = int(passing.max()) if passing.size else low
        high = int(failing.min()) if failing.size else high
        if not failing.size and low == limit:
            break
    return low


def _spread(low: int, high: int) -> npt.NDArray[np.float64]:
    """Numbers between, closer together near the low end."""
    points = np.geomspace(max(low, 1), high - 1, 64).round()
    return np.asarray(np.clip(points, low + 1, high - 1))
