"""From a solved program to a scenario for the simulator: every layer its format and place, every stage its size."""

from __future__ import annotations

import dataclasses
from collections import defaultdict, deque
from types import MappingProxyType

import numpy as np

from ..placement import moved
from ..scenario import ON_DEVICE, MemoryTier, Numerics, Scenario, Sharding, Where, stage_layers
from ..workload.formats import WeightFormat
from ..workload.model import Block, Model
from .prices import Alternative
from .program import Assignment, Frame, Taken, host_room, placement_of
from .question import Question

BlockFormats = dict[tuple[int | None, bool], WeightFormat]


def realise(question: Question, frame: Frame, assignment: Assignment) -> Scenario:
    """The scenario of one replica: its users, layout, KV format, layer formats and placement."""
    base = frame.family.layout.base
    each = _layer_by_layer(question.model, base.sharding, assignment.taken)
    model, usual = with_formats(question.model, [a for _, a in each])
    stages = _stage_sizes(base.sharding, each)
    sharding = base.sharding._replace(stages=stages if _uneven(question.model, base.sharding, stages) else ())
    numerics = Numerics(usual, base.numerics.kv, base.numerics.activations)
    scenario = base.but(model=model, batch=frame.users, sharding=sharding, numerics=numerics)
    if frame.family.placed:
        placement = placement_of([a for _, a in each])._replace(ahead=assignment.ahead)
        held = moved(scenario.but(placement=placement))
        placement = placement._replace(
            storage_share=_share(assignment.weights_on_drive, held.host_weights),
            state_on_drive=_share(assignment.state_on_drive, float(np.max(held.host_state))),
        )
        scenario = scenario.but(placement=placement)
    return scenario


def nearest_memory(question: Question, frame: Frame, assignment: Assignment) -> Assignment:
    """The same layers with host memory filled before memory behind CXL, those the host computes with first.

    The program is indifferent where the link to the device is the slower of the two.
    """
    held, alternatives = frame.family.layout.bytes_, list(frame.alternatives)
    if not any(t.alternative.tier is MemoryTier.CXL for t in assignment.taken):
        return assignment

    def bytes_of(t: Taken) -> float:
        at = alternatives.index(t.alternative)
        return float(held.host[at, t.block, frame.at] + held.cxl[at, t.block, frame.at])

    buffers = max(float(held.buffer[alternatives.index(t.alternative), frame.at]) for t in assignment.taken)
    made = max(float(held.made[alternatives.index(t.alternative), frame.at]) for t in assignment.taken)
    here = [t for t in assignment.taken if t.alternative.tier is MemoryTier.HOST]
    room = host_room(question) - (assignment.ahead + 1) * buffers - made
    room -= sum(t.layers * bytes_of(t) for t in here) - assignment.weights_on_drive - assignment.state_on_drive
    for t in sorted(set(assignment.taken) - set(here), key=lambda t: (Where.HOST not in t.alternative.mode, *t[:2])):
        fit = min(t.layers, int(max(0.0, room) / bytes_of(t)))
        room -= fit * bytes_of(t)
        nearer = t._replace(alternative=t.alternative._replace(tier=MemoryTier.HOST), layers=fit)
        here += [each for each in (nearer, t._replace(layers=t.layers - fit)) if each.layers]
    return assignment._replace(taken=_merged(here))


def evenly(frame: Frame, taken: tuple[Taken, ...]) -> tuple[Taken, ...] | None:
    """The layers on stages as even as possible; None in one stage, or where layers of a block are of several kinds."""
    chosen = {t.block: t.alternative for t in taken}
    if frame.stages == 1 or len({(t.block, t.alternative) for t in taken}) > len(chosen):
        return None
    base = frame.family.layout.base
    stages = stage_layers(base.model, base.sharding._replace(stages=()))
    return tuple(
        Taken(stage, block, chosen[block], layers)
        for stage, counts in enumerate(stages)
        for block, layers in enumerate(counts)
        if layers
    )


def _merged(taken: list[Taken]) -> tuple[Taken, ...]:
    layers: dict[Taken, int] = {}
    for t in taken:
        layers[t._replace(layers=0)] = layers.get(t._replace(layers=0), 0) + t.layers
    return tuple(t._replace(layers=n) for t, n in layers.items())


def _share(part: float, whole: float) -> float:
    return float(min(1.0, part * (1 + 1e-9) / whole)) if whole else 0.0


def _layer_by_layer(model: Model, sharding: Sharding, taken: tuple[Taken, ...]) -> list[tuple[int, Alternative]]:
    """Stage and alternative of every layer in order: stages one after another, in each the same alternative in a run.

    The program counts layers of a block on a stage; which of them they are makes no difference to it.
    """
    of_block: dict[int, list[tuple[int, Alternative]]] = defaultdict(list)
    for t in sorted(taken, key=lambda t: (t.stage, _order(t.alternative))):
        of_block[t.block] += [(t.stage, t.alternative)] * t.layers
    queues = {block: deque(layers) for block, layers in of_block.items()}
    each = [queues[block].popleft() for block in model.pattern]
    if sharding.pp == 1:
        return each
    sizes = [sum(stage == s for stage, _ in each) for s in range(sharding.pp)]
    stages = [s for s, size in enumerate(sizes) for _ in range(size)]
    return [(stage, alternative) for stage, (_, alternative) in zip(stages, each, strict=True)]


def _order(a: Alternative) -> tuple[bool, str, float, float]:
    """Placed layers come first, as a placement's stretches do."""
    return (a.mode is ON_DEVICE, a.mode.name, a.cached, -a.shell.bits_per_weight)


def _stage_sizes(sharding: Sharding, each: list[tuple[int, Alternative]]) -> tuple[int, ...]:
    return tuple(sum(stage == s for stage, _ in each) for s in range(sharding.pp))


def _uneven(model: Model, sharding: Sharding, sizes: tuple[int, ...]) -> bool:
    return sizes != tuple(sum(stage) for stage in stage_layers(model, sharding._replace(stages=())))


def with_formats(model: Model, each: list[Alternative]) -> tuple[Model, WeightFormat]:
    """The model with the layers of a block told apart by their formats, and the format of most layers."""
    of_layer = [(b, a.shell, a.experts) for b, a in zip(model.pattern, each, strict=True)]
    kinds = list(dict.fromkeys(of_layer))
    usual = max(kinds, key=of_layer.count)[1]
    if all(shell is usual and experts is usual for _, shell, experts in kinds):
        return model, usual
    alone = {b: sum(k[0] == b for k in kinds) == 1 for b, _, _ in kinds}
    blocks: list[Block] = []
    formats: BlockFormats = {}
    for i, (b, shell, experts) in enumerate(kinds):
        words = shell.name if shell is experts else f"{shell.name}, {experts.name} experts"
        block = model.blocks[b]
        blocks.append(block if alone[b] else block._replace(name=f"{block.name} [{words}]"))
        formats |= {(i, False): shell, (i, True): experts}
    pattern = tuple(kinds.index(kind) for kind in of_layer)
    changed = dataclasses.replace(model, blocks=tuple(blocks), pattern=pattern, layer_formats=MappingProxyType(formats))
    return changed, usual
