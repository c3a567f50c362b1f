"""A program's answer for unlike places, simulated: each place's own operators, hand-overs, drives, and its ledger."""

from __future__ import annotations

from collections import defaultdict, deque
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..estimate import Estimate, Terms, Tier, nothing, overhead, priced, total
from ..layer_parts import PARTS, layer_times
from ..memory import Ledger, TensorClass, ledger
from ..offload import DRIVE_LOG_SD, OVERLAP, Side, StepCosts, shared_out, touched_share
from ..overlap import norm_of
from ..placement import layer_bytes
from ..scenario import ON_DEVICE, Numerics, Scenario, Sharding, Where
from ..schedule import COMPOSITION_LOG_SD
from .prices import Alternative
from .question import Goal
from .realise import with_formats
from .unlike_places import DECODE, PREFILL, Place, PlaceCosts, hop, message_bytes, steps
from .unlike_program import UnlikeFrame, UnlikeSolved

Mask = npt.NDArray[np.bool_]


class Part(NamedTuple):
    """What one place does: the layers from `start` on, its decode seconds, its memory at its highest and its budget."""

    place: Place
    start: int
    alternatives: tuple[Alternative, ...]
    decode: Estimate
    high_bytes: float
    budget_bytes: float

    @property
    def layers(self) -> int:
        """How many layers it has."""
        return len(self.alternatives)


class Spent(NamedTuple):
    """Seconds of a decode step by what they are spent on; of drives that read ahead only what the others wait for."""

    devices: float
    hosts: float
    logits: float
    handovers: float
    drives: float

    @property
    def deciding(self) -> str:
        """The largest of them."""
        return max(self._fields, key=lambda name: float(getattr(self, name)))


class UnlikePlan(NamedTuple):
    """A plan priced by the simulator. `pace` is the time per output token of a user once prompts are in, `of_all` the
    time per output token of all users, prompts included; `drive_bytes` is what each node's host reads from its drive
    again and again; `program` is the program's value of the goal, which the simulated `objective` should be.
    """

    frame: UnlikeFrame
    parts: tuple[Part, ...]
    pace: Estimate
    first: Estimate
    of_all: Estimate
    spent: Spent
    objective: float
    program: float
    log_ppl: float
    drive_bytes: tuple[float, ...]

    @property
    def difference(self) -> float:
        """The program's value relative to the simulated one, less one."""
        return self.program / self.objective - 1.0


class _Step(NamedTuple):
    """One kind of step: its places' times, its hand-overs, drives that read beside them, what the time was spent on."""

    stages: tuple[Estimate, ...]
    handovers: Estimate
    ahead: tuple[Estimate, ...]
    spent: Spent

    @property
    def through(self) -> Estimate:
        return max((total(self.stages) + self.handovers, *self.ahead), key=_seconds)

    @property
    def slowest(self) -> Estimate:
        return max((*self.stages, *self.ahead), key=_seconds)


def _seconds(time: Estimate) -> float:
    return float(time.time_s)


def simulate_unlike(frame: UnlikeFrame, answer: UnlikeSolved) -> UnlikePlan:
    """Every layer its place, alternative and number; then both kinds of step and the ledgers, place by place."""
    question = frame.question
    each = _in_order(frame, answer)
    model, usual = with_formats(question.model, [a for _, a in each])
    used = sorted({p for p, _ in each})
    scenarios = {
        p: frame.costs[p].scenario.but(
            model=model, numerics=Numerics(usual, frame.kv, question.model.activation), fleet=frame.places[p].fleet
        )
        for p in used
    }
    decode, prefill = (_step(frame, answer, each, used, scenarios, kind) for kind in (DECODE, PREFILL))
    queue = frame.load.micro_batches * float(decode.slowest.time_s) / float(decode.through.time_s)
    pace = decode.through.scaled(max(1.0, queue)).displaced(COMPOSITION_LOG_SD)
    first = (prefill.through + prefill.slowest.scaled(frame.pieces - 1.0)).displaced(COMPOSITION_LOG_SD)
    objective = float(
        frame.goal(
            [float(s.through.time_s) for s in (decode, prefill)],
            [float(s.slowest.time_s) for s in (decode, prefill)],
            float(pace.time_s),
        )
    )
    users, output = frame.load.users, question.output
    of_all = (first + pace.scaled(float(output))).scaled(1.0 / (users * output))
    parts = []
    for i, p in enumerate(used):
        mine = [at for at, (place, _) in enumerate(each) if place == p]
        high, budget = _memory(frame, answer, each, used, scenarios, p)
        alternatives = tuple(each[at][1] for at in mine)
        parts.append(Part(frame.places[p], mine[0], alternatives, decode.stages[i], high, budget))
    layout = [frame.costs[p].layout for p in range(len(frame.places))]
    spent = sum(
        t.layers * float(layout[t.place].log_ppl[layout[t.place].alternatives.index(t.alternative), t.block])
        for t in answer.taken
    )
    log_ppl = spent + frame.kv_log_ppl + layout[0].outer_log_ppl
    if question.goal is Goal.LATENCY:
        of_all = pace
    return UnlikePlan(
        frame, tuple(parts), pace, first, of_all, decode.spent, objective, answer.objective, log_ppl, answer.drive_bytes
    )


def _in_order(frame: UnlikeFrame, answer: UnlikeSolved) -> list[tuple[int, Alternative]]:
    """Place and alternative of every layer of the model: places in order, in each what the host helps with first."""
    each: list[tuple[int, Alternative]] = []
    pattern = frame.question.model.pattern
    for p in range(len(frame.places)):
        mine = sorted((t for t in answer.taken if t.place == p), key=lambda t: t.alternative.mode is ON_DEVICE)
        queues: dict[int, deque[Alternative]] = defaultdict(deque)
        for t in mine:
            queues[t.block] += [t.alternative] * t.layers
        while any(queues.values()):
            block = pattern[len(each)]
            each.append((p, queues[block].popleft()))
    return each


def _step(
    frame: UnlikeFrame,
    answer: UnlikeSolved,
    each: list[tuple[int, Alternative]],
    used: list[int],
    scenarios: dict[int, Scenario],
    kind: int,
) -> _Step:
    taking = steps(frame.question, frame.load)
    step = (taking.decode, taking.prefill)[kind]
    stages: list[Estimate] = []
    ahead: list[Estimate] = []
    devices, hosts, logits, drives = 0.0, 0.0, 0.0, 0.0
    readers: dict[int, int] = {}
    for p in used:
        readers.setdefault(frame.places[p].node, p)
    for p in used:
        c, place = frame.costs[p], frame.places[p]
        costs = StepCosts(scenarios[p], step, c.calibrations)
        here = np.array([at == p for at, _ in each])
        own, helped = _stage(costs, here, [a for _, a in each])
        ends = costs.outside if p == used[-1] else nothing()
        drive = _drive(frame, answer, each, scenarios, costs, p) if readers[place.node] == p else nothing()
        waits = not frame.nodes[place.node].reads_ahead
        stages.append(own + helped + ends + (drive if waits else nothing()))
        ahead += [] if waits else [drive]
        on_host, beside = float(own.time_s), float(helped.time_s)
        devices, hosts = (devices, hosts + on_host + beside) if place.on_host else (devices + on_host, hosts + beside)
        logits += float(ends.time_s)
        drives += float(drive.time_s) if waits else 0.0
    hops = _handovers(frame, used, kind) + overhead(frame.question.engine.step_overhead_s)
    run = float((total(stages) + hops).time_s)
    drives += max(0.0, max((float(d.time_s) for d in ahead), default=0.0) - run)
    return _Step(tuple(stages), hops, tuple(ahead), Spent(devices, hosts, logits, float(hops.time_s), drives))


def _stage(costs: StepCosts, here: Mask, alternatives: list[Alternative]) -> tuple[Estimate, Estimate]:
    """Time of a place's layers: what runs on it, and what its host computes or copies for it, hand-overs included."""
    share = np.where(here, np.ones((len(PARTS), 1)), 0.0)
    away = here & np.array([a.mode.experts is Where.HOST for a in alternatives])
    if not away.any():
        return _sum_of(costs, costs.device, share), nothing()
    times = layer_times(costs, alternatives[int(np.argmax(away))].mode)
    copied = float(times.prefetched[away].sum())
    if copied:  # a prompt whose experts are copied over for it
        run = _sum_of(costs, costs.device, share)
        both, _ = norm_of((run.time_s, np.asarray(copied)), OVERLAP)
        return run, costs.copy(1e9).scaled((float(both) - float(run.time_s)) / float(costs.copy(1e9).time_s))
    experts = np.zeros_like(share)
    experts[PARTS.index("experts"), away] = 1.0
    helped = _sum_of(costs, costs.host, experts) + costs.handover.scaled(float(away.sum()))
    return _sum_of(costs, costs.device, share - experts), helped


def _sum_of(costs: StepCosts, side: Side, share: npt.NDArray[np.float64]) -> Estimate:
    operators = shared_out(costs, side.operators, share)
    return total(p.times.weighted_rows(p.table.count.sum(axis=1)) for p in operators)


def _drive(
    frame: UnlikeFrame,
    answer: UnlikeSolved,
    each: list[tuple[int, Alternative]],
    scenarios: dict[int, Scenario],
    costs: StepCosts,
    at: int,
) -> Estimate:
    """Reading what the node's host has no memory for: the share of its weights on the drive, experts as chosen."""
    node = frame.places[at].node
    storage, size = frame.nodes[node].storage, answer.drive_bytes[node]
    if storage is None or size <= 0.0:
        return nothing()
    held = read = 0.0
    for p, scenario in scenarios.items():
        if frame.places[p].node != node:
            continue
        own = layer_bytes(scenario, Sharding())
        touched = touched_share(scenario, costs.step)
        for i, (place, alternative) in enumerate(each):
            if place == p:
                whole = frame.places[p].on_host
                shell = own.shell[i] if whole else 0.0
                experts = own.experts[i] if whole or alternative.mode.experts is Where.HOST else 0.0
                held, read = held + shell + experts, read + shell + experts * touched[i]
    seconds = min(1.0, size / held) * read / storage.read_bytes_per_s.value
    return priced(Terms(link_s=np.asarray(seconds)), tier=Tier.ASSUMED, shared_log_sd=DRIVE_LOG_SD, own_log_sd=0.0)


def _handovers(frame: UnlikeFrame, used: list[int], kind: int) -> Estimate:
    """From place to place within nodes, and once around all nodes with layers."""
    nodes = list(dict.fromkeys(frame.places[p].node for p in used))
    parts = []
    for node in nodes:
        inside = sum(frame.places[p].node == node for p in used) - 1
        if inside:
            slowest: PlaceCosts = max(
                (frame.costs[p] for p in frame.of_node(node)), key=lambda c: float(c.handovers[kind].time_s)
            )
            parts.append(slowest.handovers[kind].scaled(float(inside)))
        if len(nodes) > 1:
            taking = steps(frame.question, frame.load)
            size = message_bytes(frame.question, (taking.decode, taking.prefill)[kind])
            parts.append(hop(frame.nodes[node].network, size))
    return total(parts) if parts else nothing()


def _memory(
    frame: UnlikeFrame,
    answer: UnlikeSolved,
    each: list[tuple[int, Alternative]],
    used: list[int],
    scenarios: dict[int, Scenario],
    at: int,
) -> tuple[float, float]:
    """Most the place holds by the ledger of its stage, and what it may: a host's drive holds what it was given."""
    place, c, scenario = frame.places[at], frame.costs[at], scenarios[at]
    sizes = tuple(sum(p == q for p, _ in each) for q in used)
    sharding = Sharding(place.tp, len(used), stages=sizes if len(used) > 1 else ())
    staged = scenario.but(fleet=place.fleet.sized(place.tp * len(used)), sharding=sharding)
    memory = ledger(staged)
    if not frame.question.engine.communicators:
        memory = Ledger(tuple(e for e in memory.entries if e.tensor_class is not TensorClass.COMMUNICATORS))
    high = float(np.atleast_1d(np.squeeze(memory.high_bytes()))[used.index(at)])
    experts = layer_bytes(scenario, scenario.sharding).experts
    away = [i for i, (p, a) in enumerate(each) if p == at and a.mode.experts is Where.HOST and not place.on_host]
    high -= c.slope * float(experts[away].sum())
    if not place.on_host:
        return high, frame.budget_bytes(at)
    whole = layer_bytes(scenario, Sharding()).experts
    lent = [
        i
        for i, (p, a) in enumerate(each)
        if p != at and frame.places[p].node == place.node and a.mode.experts is Where.HOST
    ]
    return high + float(whole[lent].sum()), frame.budget_bytes(at) + answer.drive_bytes[place.node]
