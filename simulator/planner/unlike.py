"""A pipeline over unlike devices: which layers go to which card, host and machine, in which format.

For one user the time of a token is the sum over the places it passes; for many the slowest place sets the pace of the
micro-batches behind each other. Prices, program and answer are as for like devices (`search.py`): coefficients from the
simulator, an integer program for each frame, its answer simulated place by place and held against the ledgers.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ...errors import InputError
from ..calibration import CalibrationSet
from ..quality import kv_increase
from .frames import engines_of, formats, kv_formats
from .nodes import Node, check_places
from .question import Goal, Question
from .solve import Outcome
from .unlike_places import DECODE, PREFILL, Load, PlaceCosts, PlacePrices, groupings
from .unlike_program import UnlikeFrame, Wanted, solve_unlike
from .unlike_simulated import UnlikePlan, simulate_unlike

GAP = 0.002  # relative: frames that could be better by less than this are not looked at
TRIES = 5
KEPT = 20


class FoundUnlike(NamedTuple):
    """Plans, the best first; the bound no plan of the domain is below; what was looked at."""

    plans: tuple[UnlikePlan, ...]
    bound: float
    frames: int
    solved: int
    seconds: float
    timed_out: bool

    @property
    def gap(self) -> float:
        """How much better than the best plan one could still be, relative to it."""
        return max(0.0, 1.0 - self.bound / self.plans[0].objective) if self.plans else 0.0


def plan_unlike(
    question: Question,
    nodes: tuple[Node, ...],
    calibrations: CalibrationSet,
    wanted: Wanted = Wanted(),  # noqa: B008 - a value without state
    gap: float = GAP,
    seconds: float = 60.0,
) -> FoundUnlike:
    """The fastest pipeline over the nodes' places to within the gap, for the goals latency and throughput.

    The question's own fleet says nothing here but for its formats. No plan: nothing fits, drives included.
    """
    _check(question, nodes, wanted)
    started = time.monotonic()
    frames = list(_frames(question, nodes, calibrations, wanted))
    queue = sorted(((least(f), i) for i, f in enumerate(frames)), key=lambda each: each[0])
    plans: list[UnlikePlan] = []
    best, bound, solved, timed_out = np.inf, np.inf, 0, False
    for at_best, i in queue:
        if at_best >= best * (1.0 - gap) or at_best == np.inf:
            bound = min(bound, at_best)
            break
        if time.monotonic() - started > seconds:
            bound, timed_out = min(bound, at_best), True
            break
        found, proved = look_at_unlike(frames[i], best * (1.0 - gap))
        solved += 1
        bound = min(bound, proved)
        if found is not None:
            plans.append(found)
            best = min(best, found.objective)
    plans = sorted(plans, key=lambda p: p.objective)[:KEPT]
    return FoundUnlike(tuple(plans), min(bound, best), len(frames), solved, time.monotonic() - started, timed_out)


def look_at_unlike(frame: UnlikeFrame, better_than: float) -> tuple[UnlikePlan | None, float]:
    """A frame's plan, simulated, and the least value its program proves; None where nothing fits or is better."""
    tightened, proved = 1.0, np.inf
    for attempt in range(TRIES):
        answer = solve_unlike(frame, tightened, better_than)
        if attempt == 0:
            proved = min(answer.bound, better_than)
        if answer.outcome is Outcome.INFEASIBLE:
            return None, proved
        found = simulate_unlike(frame, answer)
        over = max(part.high_bytes / part.budget_bytes for part in found.parts)
        if over <= 1.0 and _keeps(found, frame.question):
            return found, proved
        if over <= 1.0:
            return None, proved
        tightened *= 1.0 / over - 1e-4
    return None, proved


def _keeps(found: UnlikePlan, question: Question) -> bool:
    """Whether the simulated times keep the limits that the program kept, but for its tolerance."""
    limits, slack = question.limits, 1.0 + 1e-6
    late = limits.pace_s is not None and float(found.pace.time_s) > limits.pace_s * slack
    return not late and (limits.first_s is None or float(found.first.time_s) <= limits.first_s * slack)


def _frames(
    question: Question, nodes: tuple[Node, ...], calibrations: CalibrationSet, wanted: Wanted
) -> Iterator[UnlikeFrame]:
    for engine in engines_of(question):
        yield from _frames_of(dataclasses.replace(question, engine=engine), nodes, calibrations, wanted)


def _frames_of(
    question: Question, nodes: tuple[Node, ...], calibrations: CalibrationSet, wanted: Wanted
) -> Iterator[UnlikeFrame]:
    """Every grouping of devices, KV format, set of weight formats and load of one engine."""
    for places in groupings(question, nodes):
        loads = _loads(question, len(places))
        for kv in kv_formats(question):
            change = max(0.0, kv_increase(question.model, kv).usual)
            for chosen in formats(question):
                made: dict[tuple[int, int, bool], PlacePrices] = {}
                for p in places:
                    key = (p.node, p.like, p.on_host)
                    if key not in made:
                        made[key] = PlacePrices(question, p, nodes[p.node], kv, chosen, loads, calibrations)
                priced = [made[p.node, p.like, p.on_host] for p in places]
                for at, load in enumerate(loads):
                    costs = tuple(PlaceCosts(prices, at) for prices in priced)
                    yield UnlikeFrame(question, nodes, places, costs, kv, chosen, load, change, wanted)


def _loads(question: Question, places: int) -> tuple[Load, ...]:
    """One user; or numbers of users in as many micro-batches as there may be places, and in fewer."""
    if question.goal is Goal.LATENCY:
        return (Load(1.0, 1),)
    users = question.users if question.pins.clients is None else (float(question.pins.clients),)
    depths = sorted({min(2**i, places) for i in range(places.bit_length() + 1)})
    return tuple(Load(n, m) for n in users for m in depths if m <= n)


def least(frame: UnlikeFrame) -> float:
    """A value of the goal no plan of the frame is below; infinite where not even its smallest layers fit.

    Every layer runs in its fastest alternative where it is fastest; the slowest place has at least the share of layers
    that would let all of them end together.
    """
    counts = np.array(frame.counts, float)
    fastest = np.zeros((2, len(frame.places), len(counts)))
    for p, c in enumerate(frame.costs):
        for k in (DECODE, PREFILL):
            fastest[k, p] = c.seconds(k)[0].min(axis=0)
    through = [float(counts @ fastest[k].min(axis=0)) for k in (DECODE, PREFILL)]
    even = [
        1.0 / float((1.0 / np.maximum(fastest[k].min(axis=1) * counts.sum(), 1e-12)).sum()) for k in (DECODE, PREFILL)
    ]
    cycle = max(through[DECODE], frame.load.micro_batches * even[DECODE])
    return float(frame.goal(through, even, cycle)) if _may_fit(frame) else np.inf


def _may_fit(frame: UnlikeFrame) -> bool:
    """Whether places have room for as many layers of the smallest kind; a drive holds whatever does not fit."""
    if any(node.storage is not None and node.computes for node in frame.nodes):
        return True
    room = sum(
        max(0.0, frame.budget_bytes(p) - c.fixed.here) // (c.slope * float(c.device_bytes.min()))
        for p, c in enumerate(frame.costs)
        if float(c.device_bytes.min()) > 0
    )
    return any(float(c.device_bytes.min()) <= 0 for c in frame.costs) or room >= sum(frame.counts)


def _check(question: Question, nodes: tuple[Node, ...], wanted: Wanted) -> None:
    """Refuse what is not planned for unlike devices."""
    check_places(nodes)
    if question.goal not in (Goal.LATENCY, Goal.THROUGHPUT):
        remedy = "ask for latency or throughput"
        raise InputError("is not planned for unlike devices", key="--goal", value=str(question.goal), remedy=remedy)
    if question.limits.money_per_hour is not None:
        raise InputError("is not kept for unlike devices", key="--max-cost", remedy="leave out the dearest devices")
    for name in ("pp", "ep"):
        if (getattr(question.pins, name) or 1) > 1:
            raise InputError("is chosen by the plan for unlike devices", key=f"--{name}", remedy="leave it out")
    if (question.pins.cp or 1) > 1:
        raise InputError("is not planned for unlike devices", key="--cp", remedy="leave it out")
    if not any(groupings(question, nodes)):
        what = f"{question.engine.name} computes no layers on a host, and there are no devices"
        raise InputError(what, key="--engine", value=question.engine.name, remedy="--engine llama.cpp")
    if wanted.layers and (len(wanted.layers), sum(wanted.layers)) != (len(nodes), question.model.layers):
        problem = f"must share {question.model.layers} layers out to {len(nodes)} nodes"
        raise InputError(problem, key="layers", value=wanted.layers)
