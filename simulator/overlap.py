"""Imperfect overlap: the time of parts that run beside each other, between their maximum and their sum."""

from __future__ import annotations

import numpy as np

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
