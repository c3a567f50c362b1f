"""Peak of activation memory: which buffers are alive together, from the lowered program's own order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .estimate import Array
from .lowering.program import Buffer, Node, Program


@dataclass(frozen=True, eq=False)
class Peak:
    """The largest sum of live buffers over a program."""

    bytes: Array
    at: str
    live: tuple[Buffer, ...]


def peak(program: Program, head: bool = True) -> Peak:
    """Walk the nodes in order: outputs come alive before a node runs, buffers die after their last reader.

    With swept sizes the peak is taken point by point; `at` and `live` describe the node where the largest of
    all points peaks. Blocks stand for all their layers: nothing but the hidden state outlives a layer.
    Without `head` it is the peak of a pipeline stage that is not the last.
    """
    nodes = program.body + (program.head if head else ())
    versions = _versions(nodes)
    last_use = {name: i for i, (reads, writes) in enumerate(versions) for name in (*reads, *writes)}
    alive: dict[str, Buffer] = {}
    best = Peak(np.zeros(()), "nothing", ())
    for i, (node, (_, writes)) in enumerate(zip(nodes, versions, strict=True)):
        alive.update(zip(writes, node.writes, strict=True))
        total = np.asarray(sum(b.bytes for b in alive.values()))
        larger = bool(np.max(total) > np.max(best.bytes))
        at, live = (node.label, tuple(alive.values())) if larger else (best.at, best.live)
        best = Peak(np.asarray(np.maximum(best.bytes, total)), at, live)
        alive = {name: b for name, b in alive.items() if last_use[name] > i}
    return best


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
