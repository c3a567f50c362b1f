"""Imperfect overlap: the time of parts that run beside each other, between their maximum and their sum."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .estimate import Array


def norm_of(parts: tuple[Array, ...], exponent: float) -> tuple[Array, tuple[Array, ...]]:
    """(sum of parts^p)^(1/p), and what each part contributes to it, in proportion to its power.

    An exponent of 1 is a sum, an infinite one a maximum: a perfect roofline.
    """
    whole = np.broadcast_shapes(*(np.shape(part) for part in parts))
    largest = np.maximum(np.max(np.stack([np.broadcast_to(part, whole) for part in parts]), axis=0), 1e-300)
    powers = [(part / largest) ** exponent for part in parts]
    sum_of_powers = sum(powers[1:], start=powers[0])
    together = largest * sum_of_powers ** (1 / exponent)
    each = together / np.maximum(sum_of_powers, 1e-300)
    return np.asarray(together), tuple(np.asarray(each * power) for power in powers)


def prefetched(computing: Array, copies: Array, kinds: npt.NDArray[np.int64], ahead: int) -> float:
    """Seconds of one pass over layers whose weights or state are copied to the device as it goes, one copy at a time.

    `computing` and `copies` are seconds of each layer, (layers,). A copy begins when the link is free and one of
    `ahead` + 1 buffers is: the one of the copied layer that many before it. Layers of each kind are spread evenly among
    the others. Passes follow one another, and a steady one counts. With nothing ahead every layer waits for its copy.
    """
    if ahead < 1:
        return float(computing.sum() + copies.sum())
    order = np.argsort(_evenly(kinds), kind="stable")
    layers = list(zip(computing[order].tolist(), copies[order].tolist(), strict=True))
    link = now = before = 0.0
    freed: list[float] = [0.0] * (ahead + 1)  # when the buffers of the last copied layers were done with
    for _ in range(STEADY):
        before = now
        for computes, copied in layers:
            if copied:
                link = max(link, freed.pop(0)) + copied
                now = max(now, link)
            now += computes
            if copied:
                freed.append(now)
    return now - before


STEADY = 4  # passes after which the link has caught up with what it may begin early


def _evenly(kinds: npt.NDArray[np.int64]) -> Array:
    """Places between 0 and 1 that spread the layers of each kind evenly."""
    at = np.empty(len(kinds))
    for kind in np.unique(kinds):
        here = kinds == kind
        at[here] = (np.arange(here.sum()) + 0.5) / here.sum()
    return at
