"""A pipeline over unlike devices: which layers go to which card, host and machine, in which format.

For one user the time of a token is the sum over the places it passes; for many the slowest place sets the pace of the
micro-batches behind each other. Prices, program and answer are as for like devices (`search.py`): coefficients from the
simulator, an integer program for each frame, its answer simulated place by place and held against the ledgers.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from ...errors import InputError
from ..calibration import CalibrationSet
from ..quality import kv_increase
from .frames import engines_of, formats, kv_formats
from .nodes import Node, check_places
from .question import Goal, Question
from .solve import Outcome
from .unlike_bounds import LATE, least
from .unlike_places import Load, PlacePrices, groupings
from .unlike_program import UnlikeFrame, Wanted, solve_unlike
from .unlike_simulated import UnlikePlan, simulate_unlike

GAP = 0.002  # relative: frames that could be better by less than this are not looked at
TRIES = 5
KEPT = 20


class FoundUnlike(NamedTuple):
    """Plans, the best first; the bound no plan of the domain is below; what was looked at."""

    plans: tuple[UnlikePlan, ...]
    bound: float
    domain: tuple[UnlikeFrame, ...]
    queue: tuple[tuple[float, int], ...]  # first bound, place of its frame in the domain; the most promising first
    solved: int
    seconds: float
    timed_out: bool

    @property
    def frames(self) -> int:
        """How many frames there are."""
        return len(self.domain)

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
    frames: Iterable[UnlikeFrame] | None = None,
    below: float = np.inf,
    above: float = 0.0,
) -> FoundUnlike:
    """The fastest pipeline over the nodes' places to within the gap, for the goals latency and throughput.

    The question's own fleet says nothing here but for its formats. `frames` may hand in a domain, or a part of it, that
    is priced already. Only plans `below` a value of the goal are wanted; that all plans are `above` a value may be
    known already. No plan: nothing fits, drives included.
    """
    _check(question, nodes, wanted)
    started = time.monotonic()
    domain = tuple(_frames(question, nodes, calibrations, wanted) if frames is None else frames)
    queue = tuple(sorted((least(f), i) for i, f in enumerate(domain)))
    plans: list[UnlikePlan] = []
    best, bound, solved, timed_out = below, np.inf, 0, False
    for first, i in queue:
        at_best = max(above, first)
        if at_best >= best * (1.0 - gap) or at_best == np.inf:
            bound = min(bound, at_best)
            break
        if time.monotonic() - started > seconds:
            bound, timed_out = min(bound, at_best), True
            break
        found, proved = look_at_unlike(domain[i], best * (1.0 - gap))
        solved += 1
        bound = min(bound, proved)
        if found is not None:
            plans.append(found)
            best = min(best, found.objective)
    plans = sorted(plans, key=lambda p: p.objective)[:KEPT]
    elapsed = time.monotonic() - started
    return FoundUnlike(tuple(plans), min(bound, best), domain, queue, solved, elapsed, timed_out)


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
    limits = question.limits
    late = limits.pace_s is not None and float(found.pace.time_s) > limits.pace_s * LATE
    return not late and (limits.first_s is None or float(found.first.time_s) <= limits.first_s * LATE)


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
                    costs = tuple(prices.costs[at] for prices in priced)
                    yield UnlikeFrame(question, nodes, places, costs, kv, chosen, load, change, wanted)


def _loads(question: Question, places: int) -> tuple[Load, ...]:
    """One user; or numbers of users in as many micro-batches as there may be places, and in fewer."""
    if question.goal is Goal.LATENCY:
        return (Load(1.0, 1),)
    users = question.users if question.pins.clients is None else (float(question.pins.clients),)
    depths = sorted({min(2**i, places) for i in range(places.bit_length() + 1)})
    return tuple(Load(n, m) for n in users for m in depths if m <= n)


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
