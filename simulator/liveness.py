"""Peak of activation memory: which buffers are alive together, from the lowered program's own order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .estimate import Array
from .lowering.decoder import Program
from .lowering.program import Buffer, Node


@dataclass(frozen=True, eq=False)
class Peak:
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
    point by point; `at` and `live` describe the node where the largest of all points peaks. Blocks stand for all
    their layers: nothing but the hidden state outlives a layer.
    """
    nodes = program.body + program.head
    versions = _versions(nodes)
    last_use = {name: i for i, (reads, writes) in enumerate(versions) for name in (*reads, *writes)}
    alive: dict[str, Buffer] = {}
    best = body = Peak(np.zeros(()), "nothing", ())
    for i, (node, (_, writes)) in enumerate(zip(nodes, versions, strict=True)):
        if i == len(program.body):
            body = best
        if node.writes:
            alive.update(zip(writes, node.writes, strict=True))
            best = _larger(best, Peak(np.asarray(sum(b.bytes for b in alive.values())), node.label, tuple(alive.values())))
        alive = {name: b for name, b in alive.items() if last_use[name] > i}
    return body, best


def _larger(a: Peak, b: Peak) -> Peak:
    named = b if np.max(b.bytes) > np.max(a.bytes) else a
    return Peak(np.asarray(np.maximum(a.bytes, b.bytes)), named.at, named.live)


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
