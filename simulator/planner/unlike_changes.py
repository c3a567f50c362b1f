"""What would change a plan for unlike devices, solved again: what more would buy, what each device is worth, what came
close, and where nothing fits the smallest changes that are enough. Steps and words are those of `changes.py`.

A change that can only help is looked at below the present plan, one that can only hurt above its bound: either ends as
soon as nothing is left between.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from ...hwspecs.device import Fleet, Host, Link
from ...hwspecs.load import MAX_DEVICES, STAND_IN, load, names
from ..calibration import CalibrationSet
from ..scenario import Where
from .changes import (
    HOST_SIZES,
    HOST_STEPS,
    LINK_STEP,
    SECONDS,
    Change,
    Tried,
    less_asked,
    more_memory,
    more_quality,
    smallest,
    whole_gb,
)
from .fit import Offload
from .nodes import MOST_PLACES, Node, hosted_by, resized, text_of, with_memory
from .question import Question
from .unlike import FoundUnlike, plan_unlike
from .unlike_places import may_use_hosts
from .unlike_program import UnlikeFrame
from .unlike_simulated import Part, UnlikePlan

RIVALS = 5
NETWORKS = "ethernet-"  # what the machines are imagined to be joined by


class Asked(NamedTuple):
    """A question about unlike devices that was answered: what the changes are changes of."""

    question: Question
    nodes: tuple[Node, ...]
    calibrations: CalibrationSet
    found: FoundUnlike
    progress: Callable[[str], None]

    def again(self, change: Change, below: float = float("inf"), above: float = 0.0) -> Tried[FoundUnlike]:
        """The changed question's answer."""
        self.progress(f"solving again: {change.words}")
        nodes = change.nodes or self.nodes
        frames = [f.asked(change.question, nodes) for f in self.found.domain] if change.same_prices else None
        question = dataclasses.replace(change.question, fleet=_first_fleet(nodes))
        found = plan_unlike(
            question, nodes, self.calibrations, seconds=SECONDS, frames=frames, below=below, above=above
        )
        return Tried(change, found)


class Weighed(NamedTuple):
    """What would change a plan, what is left without a device, what came close; without a plan: what is enough."""

    changes: tuple[Tried[FoundUnlike], ...] = ()
    without: tuple[Tried[FoundUnlike], ...] = ()
    rivals: tuple[UnlikePlan, ...] = ()


def weigh(asked: Asked) -> Weighed:
    """All of it."""
    if not asked.found.plans:
        return Weighed(tuple(relaxations(asked)))
    return Weighed(tuple(purchases(asked)), tuple(contributions(asked)), tuple(rivals(asked)))


def purchases(asked: Asked) -> list[Tried[FoundUnlike]]:
    """What a little more buys: memory, a faster link or network, host memory, a device, quality.

    Where nothing better is found the present plan stands.
    """
    return [_or_present(asked, change) for change in _more(asked)]


def contributions(asked: Asked) -> list[Tried[FoundUnlike]]:
    """What is left without one device of each kind, without a machine, and without what hosts do.

    A plan that does not use what is left out stands.
    """
    return [
        asked.again(change, above=asked.found.bound) if used else _or_present(asked, change)
        for change, used in _less(asked)
    ]


def relaxations(asked: Asked) -> list[Tried[FoundUnlike]]:
    """The smallest change of each kind that alone makes a plan possible; only those that do."""
    found = smallest(_ladders(asked), asked.again)
    return list({tried.change.flags: tried for tried in found}.values())


def _or_present(asked: Asked, change: Change) -> Tried[FoundUnlike]:
    """The answer to a question that the present plan answers too."""
    present = asked.found.plans[:1]
    tried = asked.again(change, below=present[0].objective)
    return tried if tried.found.plans else tried._replace(found=tried.found._replace(plans=present))


def rivals(asked: Asked) -> list[UnlikePlan]:
    """The best plan of each other grouping, KV format and set of weight formats; the most promising of them."""
    found = asked.found
    plans: list[UnlikePlan] = []
    kinds: dict[str, list[UnlikeFrame]] = {}
    for bound, i in found.queue:
        if bound < float("inf"):
            kinds.setdefault(found.domain[i].kind, []).append(found.domain[i])
    kinds.pop(found.plans[0].frame.kind)
    for kind, frames in kinds.items():
        if len(plans) == RIVALS:
            break
        asked.progress(f"looking at what came close: {kind}")
        best = plan_unlike(asked.question, asked.nodes, asked.calibrations, seconds=SECONDS, frames=frames)
        plans += best.plans[:1]
    return sorted(plans, key=lambda p: p.objective)


def _more(asked: Asked) -> Iterator[Change]:
    question, nodes, best = asked.question, asked.nodes, asked.found.plans[0]
    if any(node.fleets for node in nodes):
        yield more_memory(question)
    if any(node.devices + node.computes > 1 for node in nodes):
        faster = tuple(_faster(node) for node in nodes)
        yield Change("10 GB/s more on the links between devices", "", question, False, faster)
    yield from _networks(question, nodes)
    if _hosts_take_part(best):
        yield _more_host_memory(question, nodes, HOST_STEPS[0])
    if question.limits.devices is None:
        yield from _further(question, nodes, range(1, 2))
    yield from more_quality(question, best.log_ppl)


def _less(asked: Asked) -> Iterator[tuple[Change, bool]]:
    """What there is less of, and whether the plan uses it."""
    question, nodes, best = asked.question, asked.nodes, asked.found.plans[0]
    for at, node in enumerate(nodes):
        of = f" of machine {at + 1}" if len(nodes) > 1 else ""
        for group, fleet in enumerate(node.fleets):
            stays = fleet.count > 1 or len(node.fleets) > 1 or node.host is not None
            left = (*nodes[:at], *([resized(node, group, fleet.count - 1)] if stays else []), *nodes[at + 1 :])
            words = f"one of {fleet.count} {fleet.device.key}{of}" if fleet.count > 1 else f"the {fleet.device.key}{of}"
            if left:
                yield _of_nodes(question, words, left), _taken(best, at, fleet) >= fleet.count
        if len(nodes) > 1 and node.devices + node.computes > 1:
            rest = (*nodes[:at], *nodes[at + 1 :])
            yield _of_nodes(question, f"machine {at + 1}: {node.name}", rest), any(_on(best, at))
    slow = _slowest(nodes)
    rest = tuple(kept for node in nodes if (kept := _without(node, slow)) is not None)
    if slow is not None and rest:
        count = sum(f.count for node in nodes for f in node.fleets if f.device.key == slow)
        yield (
            _of_nodes(question, f"{'both' if count == 2 else f'all {count}'} {slow}", rest),
            any(p.place.fleet.device.key == slow for p in best.parts),
        )
    if _hosts_take_part(best) and any(node.fleets for node in nodes):
        never = dataclasses.replace(question, pins=question.pins._replace(offload=Offload.NEVER))
        yield Change("what hosts compute", "--offload never", never, False), True


def _slowest(nodes: tuple[Node, ...]) -> str | None:
    """The kind with the least memory bandwidth, where there are several of it and other kinds."""
    kinds: dict[str, list[Fleet]] = {}
    for fleet in (fleet for node in nodes for fleet in node.fleets):
        kinds.setdefault(fleet.device.key, []).append(fleet)
    slowest = min(kinds, key=lambda kind: kinds[kind][0].device.bandwidth_bytes_per_s.value, default=None)
    several = slowest is not None and sum(fleet.count for fleet in kinds[slowest]) > 1
    return slowest if several and len(kinds) > 1 else None


def _without(node: Node, kind: str | None) -> Node | None:
    """The node without its devices of a kind, where something is left of it."""
    for group in reversed(range(len(node.fleets))):
        if node.fleets[group].device.key == kind:
            if len(node.fleets) == 1 and node.host is None:
                return None
            node = resized(node, group, 0)
    return node


def _on(plan: UnlikePlan, node: int) -> Iterator[Part]:
    return (part for part in plan.parts if part.place.node == node and part.layers)


def _taken(plan: UnlikePlan, node: int, fleet: Fleet) -> int:
    """Devices of a kind that have layers."""
    return sum(part.place.devices for part in _on(plan, node) if part.place.fleet.device is fleet.device)


def _ladders(asked: Asked) -> Iterator[Iterable[Change]]:
    question, nodes = asked.question, asked.nodes
    yield from less_asked(question)
    if may_use_hosts(question) and any(node.computes for node in nodes):
        yield (_more_host_memory(question, nodes, step) for step in HOST_STEPS)
    elif may_use_hosts(question) and _may_have_hosts(nodes):
        for drives in (False, True):
            yield (_with_hosts(question, nodes, size, drives) for size in HOST_SIZES)
    if question.limits.devices is None:
        yield _further(question, nodes, range(1, MOST_PLACES))


def _of_nodes(question: Question, words: str, nodes: tuple[Node, ...]) -> Change:
    asked = f"--gpus {shlex.quote(text_of(nodes))}" if nodes[0].fleets else ""  # a question starts with devices
    return Change(words, asked, question, False, nodes)


def _networks(question: Question, nodes: tuple[Node, ...]) -> Iterator[Change]:
    """The slowest Ethernet that is faster than what joins the machines."""
    if len(nodes) < 2:
        return
    now = min((node.network for node in nodes), key=_rate)
    cables = sorted((load(Link, name) for name in names(Link) if name.startswith(NETWORKS)), key=_rate)
    faster = next((cable for cable in cables if _rate(cable) > _rate(now)), None)
    if faster is not None:
        joined = tuple(dataclasses.replace(node, network=faster) for node in nodes)
        words = f"{faster.key} between the machines instead of {now.key}"
        yield Change(words, f"--network {faster.key}", question, True, joined)


def _faster(node: Node) -> Node:
    """The node with more on the links between its devices, and on those they reach their host by."""
    fleets = tuple(
        fleet
        if fleet.device.unified_memory
        else dataclasses.replace(
            fleet, interconnect=_faster_link(fleet.interconnect), host_link=_faster_link(fleet.host_link)
        )
        for fleet in node.fleets
    )
    return dataclasses.replace(node, fleets=fleets, link=_faster_link(node.link))


def _faster_link(link: Link) -> Link:
    rate = link.bandwidth_bytes_per_s
    return dataclasses.replace(link, bandwidth_bytes_per_s=dataclasses.replace(rate, value=rate.value + LINK_STEP))


def _rate(link: Link) -> float:
    return link.bandwidth_bytes_per_s.value


def _more_host_memory(question: Question, nodes: tuple[Node, ...], step: float) -> Change:
    """Every host that computes with so many times its memory."""
    changed = tuple(with_memory(n, whole_gb(n.memory_bytes() * step)) if n.computes else n for n in nodes)
    pairs = [(now, then) for now, then in zip(nodes, changed, strict=True) if now.computes]
    before, sizes = (" and ".join(f"{n.memory_bytes() / 1e9:.0f}" for n in each) for each in zip(*pairs, strict=True))
    words = f"{sizes} GB of host memory instead of {before}"
    return Change(words, f"--gpus {shlex.quote(text_of(changed))}", question, True, changed)


def _may_have_hosts(nodes: tuple[Node, ...]) -> bool:
    """Whether all machines could be given a host that takes part."""
    apart = not any(node.host or any(fleet.device.unified_memory for fleet in node.fleets) for node in nodes)
    return apart and sum(node.devices for node in nodes) + len(nodes) <= MOST_PLACES


def _with_hosts(question: Question, nodes: tuple[Node, ...], size: float, drives: bool) -> Change:
    """Every machine with a host that takes part, the one that is assumed where only memory is stated."""
    hosted = tuple(with_memory(hosted_by(node, load(Host, STAND_IN)), size) for node in nodes)
    if not drives:
        hosted = tuple(dataclasses.replace(node, storage=None) for node in hosted)
    words = f"{size / 1e9:.0f} GB in a {STAND_IN} host{' each' if len(nodes) > 1 else ''}"
    return Change(words, f"--host {STAND_IN} --ram {size / 1e9:.0f}GB", question, False, hosted)


def _further(question: Question, nodes: tuple[Node, ...], more: Iterable[int]) -> Iterator[Change]:
    """So many more devices of the kind there is most of, in the machine that has most of them."""
    groups = [(fleet.count, at, g) for at, node in enumerate(nodes) for g, fleet in enumerate(node.fleets)]
    if not groups:
        return
    kinds: Counter[str] = Counter()
    for count, at, g in groups:
        kinds[nodes[at].fleets[g].device.key] += count
    kind, there = kinds.most_common(1)[0]
    count, at, group = max(
        (each for each in groups if nodes[each[1]].fleets[each[2]].device.key == kind), key=lambda each: each[0]
    )
    spare = MOST_PLACES - sum(node.devices + (node.host is not None) for node in nodes)
    for n in more:
        if n <= spare and count + n <= MAX_DEVICES:
            larger = (*nodes[:at], resized(nodes[at], group, count + n), *nodes[at + 1 :])
            yield _of_nodes(question, f"{there + n} {kind} instead of {there}", larger)


def _first_fleet(nodes: tuple[Node, ...]) -> Fleet:
    """The devices a question is asked of, where they are unlike: the first."""
    return nodes[0].fleets[0] if nodes[0].fleets else nodes[0].fleet_of_host()


def _hosts_take_part(plan: UnlikePlan) -> bool:
    return any(
        part.place.on_host or any(a.mode.experts is Where.HOST for a in part.alternatives) for part in plan.parts
    )
