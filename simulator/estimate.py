"""Times with their terms, their error and their evidence, and the arithmetic by which they add.

An error has two parts. The *shared* part (a calibration that is 5 % too fast is so for every operator it prices) adds
up linearly, between calibrations too, which is the cautious side; the *own* part of each operator (this shape is an odd
one) adds in quadrature. Both are carried through sums as a standard deviation and a variance in seconds, and become an
interval only at the end: adding lows and highs would over-cover, plain quadrature would under-cover. Evidence is the
share of time by tier.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

Z_80 = 1.2815515655446004  # standard normal quantile of 0.9: low and high enclose 80 %
WEAKEST_SHARE = 0.05  # a tier that holds more than this share of the time is the one a reader should know


class Tier(IntEnum):
    """How well founded a time is, best first."""

    MEASURED = 0
    CALIBRATED = 1
    TRANSFERRED = 2
    DATASHEET = 3
    ASSUMED = 4

    @property
    def label(self) -> str:
        """The word shown to people."""
        return self.name.lower()


class Bound(IntEnum):
    """Which term a time is made of."""

    COMPUTE = 0
    MEMORY = 1
    FLOOR = 2
    LINK = 3
    LATENCY = 4

    @property
    def label(self) -> str:
        """The word shown to people."""
        return self.name.lower()


NO_TIME: Array = np.zeros(())
"""The one array that stands for "none of this": sums pass over it instead of adding zeros."""
NO_TIME.setflags(write=False)


def _plus(a: Array, b: Array) -> Array:
    return b if a is NO_TIME else a if b is NO_TIME else np.asarray(a + b)


def _times(a: Array, factor: Array) -> Array:
    return a if a is NO_TIME else np.asarray(a * factor)


@dataclass(frozen=True, eq=False)
class Terms:
    """What a time consists of, in seconds; the five add up to it.

    Latency is what neither rate explains: dependent steps inside a kernel, devices too large for the work.
    """

    compute_s: Array = dataclasses.field(default_factory=lambda: NO_TIME)
    memory_s: Array = dataclasses.field(default_factory=lambda: NO_TIME)
    floor_s: Array = dataclasses.field(default_factory=lambda: NO_TIME)
    link_s: Array = dataclasses.field(default_factory=lambda: NO_TIME)
    latency_s: Array = dataclasses.field(default_factory=lambda: NO_TIME)

    def stack(self) -> tuple[Array, ...]:
        """The terms in the order of `Bound`."""
        return self.compute_s, self.memory_s, self.floor_s, self.link_s, self.latency_s

    def total_s(self) -> Array:
        """The time: their sum."""
        return np.asarray(sum(t for t in self.stack() if t is not NO_TIME))

    def plus(self, **terms: Array) -> Terms:
        """The same with more of the named terms."""
        return dataclasses.replace(
            self, **{name: _plus(getattr(self, name), np.asarray(t)) for name, t in terms.items()}
        )

    def where(self, busy: npt.NDArray[np.bool_]) -> Terms:
        """The same where there is work, no time elsewhere."""
        return Terms(*(t if t is NO_TIME else np.asarray(np.where(busy, t, 0.0)) for t in self.stack()))


@dataclass(frozen=True, eq=False)
class Estimate:
    """A time (any shape, broadcastable fields) with terms, error parts and evidence, all in seconds.

    `evidence_s` is the time by `Tier`; `extrapolated_s` the time priced outside the hull of its calibration.
    """

    time_s: Array
    terms: Terms
    shared_sd_s: Array
    own_var_s2: Array
    evidence_s: tuple[Array, ...]
    extrapolated_s: Array

    def __add__(self, other: Estimate) -> Estimate:
        return Estimate(
            _plus(self.time_s, other.time_s),
            Terms(*map(_plus, self.terms.stack(), other.terms.stack())),
            _plus(self.shared_sd_s, other.shared_sd_s),
            _plus(self.own_var_s2, other.own_var_s2),
            tuple(map(_plus, self.evidence_s, other.evidence_s)),
            _plus(self.extrapolated_s, other.extrapolated_s),
        )

    def scaled(self, count: npt.ArrayLike) -> Estimate:
        """`count` repetitions of the very same work: its own error repeats too, so both parts scale linearly."""
        n = np.asarray(count, dtype=float)
        return Estimate(
            _times(self.time_s, n),
            Terms(*(_times(t, n) for t in self.terms.stack())),
            _times(self.shared_sd_s, n),
            _times(self.own_var_s2, n * n),
            tuple(_times(e, n) for e in self.evidence_s),
            _times(self.extrapolated_s, n),
        )

    def displaced(self, log_sd: float) -> Estimate:
        """The same time, less certain: everything in it may be off together by this much more."""
        return dataclasses.replace(self, shared_sd_s=np.asarray(np.hypot(self.shared_sd_s, self.time_s * log_sd)))

    def weighted_rows(self, weights: Array) -> Estimate:
        """Sum over the leading row axis with `weights` (rows,): repetitions within a row, independence between rows."""
        ndim = max(a.ndim for a in self._arrays())
        w = weights.reshape(-1, *([1] * (ndim - 1)))

        def reduce(a: Array, by: Array) -> Array:
            if a is NO_TIME:
                return a
            return np.asarray((a * by).sum(axis=0)) if a.ndim == ndim else np.asarray(a * by.sum())

        return Estimate(
            reduce(self.time_s, w),
            Terms(*(reduce(t, w) for t in self.terms.stack())),
            reduce(self.shared_sd_s, w),
            reduce(self.own_var_s2, w * w),
            tuple(reduce(e, w) for e in self.evidence_s),
            reduce(self.extrapolated_s, w),
        )

    def row(self, index: int) -> Estimate:
        """One row of the leading axis."""

        def pick(a: Array) -> Array:
            return np.asarray(a[index] if a.ndim and a.shape[0] > 1 else a[0] if a.ndim else a)

        return Estimate(
            pick(self.time_s),
            Terms(*(pick(t) for t in self.terms.stack())),
            pick(self.shared_sd_s),
            pick(self.own_var_s2),
            tuple(pick(e) for e in self.evidence_s),
            pick(self.extrapolated_s),
        )

    def _arrays(self) -> tuple[Array, ...]:
        return (self.time_s, *self.terms.stack(), self.shared_sd_s, self.own_var_s2, *self.evidence_s)

    @property
    def log_sd(self) -> Array:
        """Standard deviation of the logarithm: shared and own part combined at the very end (0 where no time is)."""
        time = np.where(self.time_s > 0, self.time_s, 1.0)
        return np.asarray(np.sqrt((self.shared_sd_s / time) ** 2 + self.own_var_s2 / time**2))

    @property
    def low_s(self) -> Array:
        """Lower end of the 80 % interval."""
        return np.asarray(self.time_s * np.exp(-Z_80 * self.log_sd))

    @property
    def high_s(self) -> Array:
        """Upper end of the 80 % interval."""
        return np.asarray(self.time_s * np.exp(Z_80 * self.log_sd))

    def bound(self) -> Bound:
        """The largest term of a scalar estimate."""
        return Bound(int(np.argmax([float(np.sum(t)) for t in self.terms.stack()])))

    def term_share(self, bound: Bound) -> float:
        """Share of the time of a scalar estimate that the term makes up."""
        return float(np.sum(self.terms.stack()[bound])) / max(float(np.sum(self.time_s)), 1e-300)

    def evidence(self) -> dict[Tier, float]:
        """Share of the time of a scalar estimate by tier, tiers without time left out."""
        total = max(float(np.sum(self.time_s)), 1e-300)
        shares = {tier: float(np.sum(self.evidence_s[tier])) / total for tier in Tier}
        return {tier: share for tier, share in shares.items() if share > 1e-9}

    def weakest_tiers(self) -> npt.NDArray[np.int8]:
        """At each grid point the weakest tier that holds more than 5 % of the time."""
        result = np.zeros(np.shape(self.time_s), np.int8)
        whole = np.maximum(self.time_s, 1e-300)
        for tier in Tier:
            np.putmask(result, np.broadcast_to(self.evidence_s[tier] / whole > WEAKEST_SHARE, result.shape), tier)
        return result

    def weakest_tier(self) -> Tier:
        """The weakest tier of a scalar estimate that holds more than 5 % of the time."""
        return Tier(int(self.weakest_tiers().item()))


def nothing() -> Estimate:
    """The neutral element of addition."""
    return Estimate(NO_TIME, Terms(), NO_TIME, NO_TIME, (NO_TIME,) * len(Tier), NO_TIME)


def total(estimates: Iterable[Estimate]) -> Estimate:
    """The sum of estimates of different work; `nothing()` for none."""
    result = None
    for estimate in estimates:
        result = estimate if result is None else result + estimate
    return nothing() if result is None else result


OVERHEAD_LOG_SD = 0.5  # what an engine spends around a step varies by versions and hosts that much (assumed)


def overhead(seconds: float) -> Estimate:
    """Time beside the kernels, as somebody stated it."""
    if seconds == 0:
        return nothing()
    return priced(Terms(floor_s=np.asarray(seconds)), tier=Tier.ASSUMED, shared_log_sd=OVERHEAD_LOG_SD, own_log_sd=0.0)


GUESSED_HARDWARE_LOG_SD = 0.5  # a rate nobody stated: a factor of two either way is within two deviations


def priced(
    terms: Terms,
    *,
    tier: Tier,
    shared_log_sd: float,
    own_log_sd: float | Array,
    extrapolated: npt.ArrayLike = False,
    guessed: npt.NDArray[np.bool_] | None = None,
) -> Estimate:
    """An estimate from its terms, the relative errors of its calibration and the tier that calibration has here.

    `guessed` marks where the hardware's own rate is an assumption: there the evidence is assumed, the error larger.
    """
    time = terms.total_s()
    evidence = [time if t is tier else NO_TIME for t in Tier]
    shared: npt.ArrayLike = shared_log_sd
    if guessed is not None:
        shared = np.hypot(shared_log_sd, GUESSED_HARDWARE_LOG_SD * guessed)
        evidence[tier] = np.asarray(time * ~guessed)
        evidence[Tier.ASSUMED] = _plus(evidence[Tier.ASSUMED], np.asarray(time * guessed))
    return Estimate(
        time,
        terms,
        np.asarray(time * np.asarray(shared, dtype=float)),
        np.asarray((time * own_log_sd) ** 2),
        tuple(evidence),
        time * np.asarray(extrapolated, dtype=float),
    )
