"""Collectives: the bytes that cross one device's link, one direction ("bus" bytes of nccl-tests), and their time.

all-reduce 2 (n-1)/n S, all-gather, reduce-scatter and all-to-all (n-1)/n S of the whole buffer S, point to point S.
Source: NVIDIA nccl-tests, doc/PERFORMANCE.md.

NCCL picks protocols and channels as messages grow, which a square root between latency and bandwidth follows:

    T = alpha + gamma log2(n) + V / R + sqrt(V H) / R,  R = e W (2 / n)^s

The exponent s tells a switch (0) from ranks that share a host bridge (about 1).
An engine's own all-reduce takes the faster of two algorithms: every rank reads all others' buffers (one shot), or a
reduce-scatter and an all-gather (two shots), with e for each:

    T = alpha + rho (n - 1) + min(S (n - 1) / R_1, beta + V / R_2)
"""

from __future__ import annotations

import numpy as np

from ..calibration import Denominators
from ..estimate import Array, Terms
from ..operators import Collective, KernelName
from ..parameters import OneOrTwoShot, Ring

_SHARE = {
    KernelName.ALL_REDUCE: 2.0,
    KernelName.ALL_GATHER: 1.0,
    KernelName.REDUCE_SCATTER: 1.0,
    KernelName.ALL_TO_ALL: 1.0,
}


def traffic_bytes(table: Collective) -> Array:
    """Bytes each link carries; none for a single rank."""
    if table.kernel.name is KernelName.SEND:
        return np.asarray(np.where(table.ranks > 1, table.message_bytes, 0.0))
    return np.asarray(_SHARE[table.kernel.name] * (table.ranks - 1) / table.ranks * table.message_bytes)


def shared_link(ranks: Array, d: Denominators, sharing: float) -> Array:
    """Bytes per second of one link while all ranks send."""
    return np.asarray(d.link_bytes_per_s * (2.0 / np.maximum(ranks, 2.0)) ** sharing)


def ring(table: Collective, d: Denominators, p: Ring) -> Terms:
    """NCCL's time by the formula above; nothing to move takes no time."""
    traffic = traffic_bytes(table)
    rate = p.link_fraction * shared_link(table.ranks, d, p.sharing)
    busy = traffic > 0
    latency = p.floor_s + p.hop_s * np.log2(np.maximum(table.ranks, 1.0))
    return Terms(
        floor_s=np.asarray(np.where(busy, latency, 0.0)),
        link_s=np.asarray(traffic / rate),
        latency_s=np.asarray(np.sqrt(traffic * p.half_bytes) / rate),
    )


def one_or_two_shot(table: Collective, d: Denominators, p: OneOrTwoShot) -> Terms:
    """The faster of an engine's two all-reduce algorithms."""
    n = table.ranks
    start = p.floor_s + p.rank_s * (n - 1)
    link = shared_link(n, d, p.sharing)
    one = table.message_bytes * (n - 1) / (p.one_shot_fraction * link)
    two = 2.0 * (n - 1) / n * table.message_bytes / (p.two_shot_fraction * link)
    single = one <= p.two_shot_s + two
    busy = (n > 1) & (table.message_bytes > 0)
    return Terms(
        floor_s=np.asarray(np.where(busy, start + np.where(single, 0.0, p.two_shot_s), 0.0)),
        link_s=np.asarray(np.where(busy, np.where(single, one, two), 0.0)),
    )
