"""Places of unlike nodes, and what a layer costs on each: seconds of both kinds of step and bytes, from the simulator.

A place is a device, a group of like devices that share each layer (tensor parallel), or a node's host. A pipeline
passes the places in the order of the nodes, within a node the host first (as llama.cpp does) and then its devices; the
first place used looks tokens up, the last one makes the logits.
"""

from __future__ import annotations

import dataclasses
from functools import cached_property
from typing import NamedTuple

import numpy as np

from ...dtypes import DType
from ...hwspecs.device import Fleet, Link
from ...hwspecs.load import host_fleet
from ..calibration import CalibrationSet
from ..estimate import Array, Estimate, Terms, Tier, priced
from ..generation import batch_steps
from ..memory import ACTIVATION_SPREAD, Ledger, TensorClass, activation_peaks, ledger
from ..offload import StepCosts, touched_share
from ..placement import layer_bytes
from ..scenario import EXPERTS_HOST, LAYERS_HOST, ON_DEVICE, Number, Numerics, Phase, Scenario, Sharding, Step
from ..tensor_bytes import stage_weight_bytes
from ..workload.formats import WeightFormat
from .domain import splits
from .fit import OFFLOADS, Offload
from .nodes import Node
from .prices import Alternative, Layout, StepKind, allocator_slope, combinations
from .question import Question

LATENCY_S = 5e-5  # of a link whose file states none: kernel to kernel, as for Ethernet (assumed)
NETWORK_LOG_SD = 0.4  # how well latency and rate of a network describe a hop of a pipeline (assumed)
DECODE, PREFILL = 0, 1


@dataclasses.dataclass(frozen=True, eq=False)
class Place:
    """Where layers may be: `tp` like devices of a node that share each layer, or its host. `like` ones are the same."""

    node: int
    fleet: Fleet
    tp: int
    on_host: bool
    like: int
    label: str

    @property
    def devices(self) -> int:
        """Accelerators it takes."""
        return 0 if self.on_host else self.tp


class Load(NamedTuple):
    """Users of the pipeline at once, and the micro-batches they are in."""

    users: float
    micro_batches: int


def groupings(question: Question, nodes: tuple[Node, ...]) -> tuple[tuple[Place, ...], ...]:
    """Every way to take like devices of a node together, each device alone first.

    llama.cpp cuts layers over devices row by row, which nobody measured here: only engines with collectives do.
    """
    found: list[tuple[Place, ...]] = []
    for degree in _degrees(question, nodes):
        places: list[Place] = []
        for at, node in enumerate(nodes):
            if node.computes and _takes_layers(question):
                fleet = host_fleet(node.fleet_of_host(), question.engine.copies_by_socket)
                fleet = dataclasses.replace(fleet, host_memory_bytes=node.memory_bytes())
                places.append(Place(at, fleet, 1, True, -1, f"{node.name}: host"))
            for group, fleet in enumerate(node.fleets):
                tp = max(d for d in (1, degree) if d <= fleet.count)
                for i in range(fleet.count // tp):
                    cards = f"{i}" if tp == 1 else f"{i * tp} to {i * tp + tp - 1}"
                    label = f"{node.name}: {fleet.device.key}" + (f" {cards}" if fleet.count > 1 else "")
                    one = dataclasses.replace(fleet.sized(tp), host=node.host, host_memory_bytes=node.memory_bytes())
                    places.append(Place(at, one, tp, False, at * 100 + group, label))
        found.append(tuple(places))
    return tuple(found)


def _degrees(question: Question, nodes: tuple[Node, ...]) -> tuple[int, ...]:
    pinned = question.pins.tp
    if pinned is not None:
        return (pinned,)
    if question.engine.name == "llama.cpp":
        return (1,)
    most = max((fleet.count for node in nodes for fleet in node.fleets), default=1)
    return tuple(2**i for i in range(most.bit_length()) if 2**i <= most and splits(question.model, 2**i))


def _takes_layers(question: Question) -> bool:
    """Whether the engine computes whole layers on hosts, and may."""
    return question.pins.offload in (None, Offload.LAYERS) and LAYERS_HOST in question.engine.offloads


def _gives_experts(question: Question) -> bool:
    """Whether the engine leaves routed experts to hosts, and may."""
    able = EXPERTS_HOST in question.engine.offloads and EXPERTS_HOST in OFFLOADS[question.pins.offload]
    return question.model.has_experts and able


def may_use_hosts(question: Question) -> bool:
    """Whether hosts may take part."""
    return _takes_layers(question) or _gives_experts(question)


def sends_experts(question: Question, node: Node) -> bool:
    """Whether devices of the node may leave routed experts to its host."""
    return _gives_experts(question) and node.computes and bool(node.fleets)


class Taking(NamedTuple):
    """The two steps of a load, of one micro-batch each, and how many pieces all its prompts are."""

    decode: Step
    prefill: Step
    pieces: float


def steps(question: Question, load: Load) -> Taking:
    """Decoding at the mean context; prompts whole while they fit a step, else in equal pieces."""
    decode, prefill, pieces = _steps(question, load.users, load.micro_batches)
    return Taking(decode, prefill, float(pieces))


def _steps(question: Question, users: Number, micro_batches: Number) -> tuple[Step, Step, Array]:
    prefill, pieces = batch_steps(question.prompt, users, question.engine)
    each = np.ceil(np.asarray(users, float) / micro_batches)
    decode = Step(Phase.DECODE, each, 1, np.asarray(question.prompt + question.output / 2))
    return decode, prefill, pieces


class FixedBytes(NamedTuple):
    """Most bytes beside layers: anywhere, with the first and the last place, and where there is more than one."""

    here: float
    first: float
    last: float
    joined: float


@dataclasses.dataclass(frozen=True, eq=False)
class PlacePrices:
    """One place for one KV format and set of weight formats, priced for all loads in one evaluation."""

    question: Question
    place: Place
    node: Node
    kv: DType
    formats: tuple[WeightFormat, ...]
    loads: tuple[Load, ...]
    calibrations: CalibrationSet

    @cached_property
    def scenario(self) -> Scenario:
        """The whole model on the place, for all users of each load."""
        q = self.question
        numerics = Numerics(self.formats[0], self.kv, q.model.activation)
        sharding = Sharding(self.place.tp)
        users = np.array([load.users for load in self.loads])
        return Scenario(q.model, self.place.fleet, users, q.context, q.prompt, numerics, sharding, engine=q.engine)

    @cached_property
    def layout(self) -> Layout:
        """The same as the planner's prices know it."""
        users, batches = np.array(self.loads, float).T
        one, (decode, prefill, _) = np.ones(len(users)), _steps(self.question, users, batches)
        kinds = tuple(StepKind(step, one, one, one, one) for step in (decode, prefill))
        modes = [(ON_DEVICE, 0.0)]
        if not self.place.on_host and sends_experts(self.question, self.node):
            modes.append((EXPERTS_HOST, 0.0))
        alternatives = combinations(self.formats, modes, self.question.model.has_experts)
        return Layout(self.scenario, kinds, alternatives, self.calibrations.on(self.place.fleet))

    @cached_property
    def costs(self) -> tuple[PlaceCosts, ...]:
        """What a frame needs of it, load by load; like places have the same."""
        return tuple(PlaceCosts(self, at) for at in range(len(self.loads)))

    @cached_property
    def slope(self) -> float:
        """Bytes the allocator takes for each byte, at most."""
        return allocator_slope(self.scenario)

    @cached_property
    def fixed(self) -> tuple[FixedBytes, ...]:
        """What the place holds beside layers, the runtime's ranges at their highest, as the verdict `surely` has it."""
        inner, last = activation_peaks(self.scenario)
        memory = ledger(self.scenario, (inner, inner))
        own = layer_bytes(self.scenario, self.scenario.sharding)
        weights = own.shell + own.experts
        layers = float(weights.sum()) + own.state.reshape(len(weights), -1).sum(axis=0)
        whole = self._staged(2)
        held = stage_weight_bytes(whole)
        size = whole.model.layers - whole.model.layers // 2
        embed, head = float(held[0] - weights[:size].sum()), float(held[-1] - weights[size:].sum())
        outer = float(stage_weight_bytes(self.scenario)[0]) - float(weights.sum())
        logits = self.slope * ACTIVATION_SPREAD[-1] * np.maximum(0.0, last - inner)
        joined = _joined_bytes(ledger(whole, (inner, inner))) if self.question.engine.communicators else 0.0
        here = np.max(memory.high_bytes(), axis=0) - self.slope * (layers + outer)
        first, more = self.slope * embed, max(0.0, joined - _joined_bytes(memory))
        one = np.ones(len(self.loads))
        ends = one * (self.slope * head + logits)
        return tuple(FixedBytes(float(h), first, float(e), more) for h, e in zip(one * here, ends, strict=True))

    def _staged(self, stages: int) -> Scenario:
        fleet = self.place.fleet.sized(self.place.tp * stages)
        return self.scenario.but(fleet=fleet, sharding=Sharding(self.place.tp, stages))


@dataclasses.dataclass(frozen=True, eq=False)
class PlaceCosts:
    """Coefficients of one place for one KV format, set of weight formats and load: (alternatives, blocks)."""

    prices: PlacePrices
    at: int

    @property
    def load(self) -> Load:
        """The load they are of."""
        return self.prices.loads[self.at]

    @cached_property
    def scenario(self) -> Scenario:
        """The whole model on the place, for all users."""
        return self.prices.scenario.but(batch=int(self.load.users))

    @property
    def layout(self) -> Layout:
        """The place as the planner's prices know it, all loads."""
        return self.prices.layout

    @property
    def calibrations(self) -> CalibrationSet:
        """Calibrations of the place's own devices."""
        return self.layout.calibrations

    @property
    def alternatives(self) -> tuple[Alternative, ...]:
        """What a layer may be here."""
        return self.layout.alternatives

    def seconds(self, kind: int) -> tuple[Array, Array]:
        """Seconds of a layer: computing, hand-overs to the host included, and copies beside it."""
        computing, prefetched, late = self.layout.seconds(kind)
        return (computing + late)[:, :, self.at], prefetched[:, :, self.at]

    def ends_s(self, kind: int) -> float:
        """Seconds of what belongs to no layer, all of it on the last place."""
        return float(self.layout.outside(kind)[0, self.at])

    @cached_property
    def device_bytes(self) -> Array:
        """Bytes of a layer here."""
        return np.asarray(self.layout.bytes_.device[:, :, self.at])

    @cached_property
    def host_bytes(self) -> Array:
        """Bytes of a layer in the memory of the node's host: all of it on a host, its experts where it has them."""
        return np.asarray(self.device_bytes if self.prices.place.on_host else self.layout.bytes_.host[:, :, self.at])

    @cached_property
    def host_weights(self) -> Array:
        """The part of them that is weights, which a drive may keep."""
        state = self.layout.state[:, self.at] if self.prices.place.on_host else 0.0
        return np.asarray(self.host_bytes - state)

    @property
    def slope(self) -> float:
        """Bytes the allocator takes for each byte, at most."""
        return self.prices.slope

    @property
    def fixed(self) -> FixedBytes:
        """What the place holds beside layers."""
        return self.prices.fixed[self.at]

    @cached_property
    def reread_share(self) -> float:
        """Least share of what the host keeps of a layer that a decode step reads: all but experts nobody chose."""
        question = self.prices.question
        if not question.model.has_experts:
            return 1.0
        own = layer_bytes(self.scenario, self.scenario.sharding)
        shell = own.shell if self.prices.place.on_host else np.zeros_like(own.shell)
        read = shell + own.experts * touched_share(self.scenario, steps(question, self.load).decode)
        kept = shell + own.experts
        return float(np.min(read[kept > 0] / kept[kept > 0]))

    @cached_property
    def handovers(self) -> tuple[Estimate, Estimate]:
        """The hidden state to another place of the node, through its host, down and up again: in both kinds of step."""
        question = self.prices.question
        kinds = steps(question, self.load)[:2]
        costs = [(StepCosts(self.scenario, step, self.calibrations), message_bytes(question, step)) for step in kinds]
        decode, prefill = (c.copy(size).scaled(2.0) for c, size in costs)
        return decode, prefill


def _joined_bytes(memory: Ledger) -> float:
    return sum(float(e.high_bytes.max()) for e in memory.entries if e.tensor_class is TensorClass.COMMUNICATORS)


def message_bytes(question: Question, step: Step) -> float:
    """Bytes of the hidden state that goes from one place to the next."""
    return float(np.sum(step.tokens)) * question.model.hidden * question.model.activation.bytes


def hop(link: Link, size: float) -> Estimate:
    """A message between nodes that are all on such a link: latency + bytes / rate. Unlike links each count half."""
    latency = LATENCY_S if link.latency_s is None else link.latency_s.value
    terms = Terms(floor_s=np.asarray(latency), link_s=np.asarray(size / link.bandwidth_bytes_per_s.value))
    return priced(terms, tier=Tier.ASSUMED, shared_log_sd=NETWORK_LOG_SD, own_log_sd=0.0)
