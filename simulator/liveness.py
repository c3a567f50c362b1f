"""Peak of activation memory: which buffers are alive together, from the lowered program's own order."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .estimate import Array
from .lowering.decoder import Program
from .lowering.program import Buffer, Node


class Peak(NamedTuple):
    """The largest sum of live buffers over a program."""

    bytes: Array
    at: str
    live: tuple[Buffer, ...]


def peak(program: Program) -> Peak:
    """Peak of a program with its head: what the last pipeline stage sees."""
    return peaks(program)[1]


def peaks(program: Program) -> tuple[Peak, Peak]:
    """Peaks of the body alone (a stage that is not the last) and of body and head.

    Outputs come alive before a node runs, buffers die after their last reader. With swept sizes the peak is taken
    point by point; `at` and `live` describe the last node that raised the peak of any point. Blocks stand for all
    their layers: nothing but the hidden state outlives a layer.
    """
    nodes = program.body + program.head
    versions = _versions(nodes)
    last_use = {name: i for i, (reads, writes) in enumerate(versions) for name in (*reads, *writes)}
    alive: dict[str, Buffer] = {}
    total = np.zeros(())  # sums and differences of whole bytes below 2**53: exact
    best = body = Peak(total, "nothing", ())
    for i, (node, (_, writes)) in enumerate(zip(nodes, versions, strict=True)):
        if i == len(program.body):
            body = best
        for name, buffer in zip(writes, node.writes, strict=True):
            alive[name] = buffer
            total = total + buffer.bytes
        if node.writes:
            larger = bool((total > best.bytes).any())
            at, live = (node.label, tuple(alive.values())) if larger else (best.at, best.live)
            best = Peak(np.maximum(best.bytes, total) if larger else best.bytes, at, live)
        for name in [name for name in alive if last_use[name] <= i]:
            total = total - alive.pop(name).bytes
    return body, best


def _versions(nodes: tuple[Node, ...]) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Reads and writes with a version number: the `hidden` of one layer is not the `hidden` of the next."""
    current: dict[str, int] = {}
    result = []
    for node in nodes:
        reads = tuple(f"{name}#{current[name]}" for name in node.reads if name in current)
        for buffer in node.writes:
            current[buffer.name] = current.get(buffer.name, 0) + 1
        result.append((reads, tuple(f"{b.name}#{current[b.name]}" for b in node.writes)))
    return result
