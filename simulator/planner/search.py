"""The search: frames in the order of what they could reach, each solved and simulated, until no bound is left below.

A frame's first bound takes the fastest alternative for every layer, whatever it holds; the program's bound replaces
it when the frame is looked at. The plan is the best of what was simulated; the proof is the least bound of all frames.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ..calibration import CalibrationSet
from ..estimate import Estimate
from ..generation import generate
from ..memory import Ledger, ledger
from ..scenario import Scenario
from ..serving import Load, serve
from .bounds import first_bounds
from .frames import Family
from .frames import families as domain
from .program import Assignment, Frame, Taken, Tightened, per_token_scale
from .question import Goal, Question
from .realise import evenly, nearest_memory, realise
from .solve import Outcome, Solved, solve

GAP = 0.002  # relative: frames that could be better by less than this are not looked at
TRIES = 4
KEPT = 40


class Simulated(NamedTuple):
    """A plan priced by the simulator: times of one replica, the goal's value, its ledger, its change of log-perplexity.

    `pace` is the time per output token of each user, prompts of others included; `request` a whole request.
    """

    frame: Frame
    taken: tuple[Taken, ...]
    scenario: Scenario
    memory: Ledger
    pace: Estimate
    first: Estimate
    request: Estimate
    of_all: Estimate
    objective: float
    log_ppl: float
    shortfall: float = 1.0  # the goal's value over that of the program with the same layers


class Found(NamedTuple):
    """Plans, the best first; the bound no plan of the domain is below; what was looked at."""

    plans: tuple[Simulated, ...]
    bound: float
    frames: int
    solved: int
    families: tuple[Family, ...]
    queue: tuple[tuple[float, int, int], ...]  # first bound, family, place of its number of users
    seconds: float
    timed_out: bool

    @property
    def gap(self) -> float:
        """How much better than the best plan one could still be, relative to it."""
        if not self.plans:
            return 0.0
        best = self.plans[0].objective
        return max(0.0, (best - self.bound) / best)


def search(
    question: Question,
    calibrations: CalibrationSet,
    gap: float = GAP,
    seconds: float = 60.0,
    families: tuple[Family, ...] | None = None,
    users: float | None = None,
    accept: Callable[[Simulated], bool] | None = None,
    below: float = np.inf,
) -> Found:
    """The best plan of the domain to within the gap.

    `families` may hand in a domain that is priced already, `users` leaves those frames that have so many in all,
    `accept` refuses plans (those an engine cannot run, say), and only plans `below` a value of the goal are wanted.

    Programs price all users decoding. A few less, as the simulator finds them, may fall on a better tile of a kernel:
    the bound is lowered by the most that any plan looked at is below its program.
    """
    started = time.monotonic()
    found = tuple(domain(question, calibrations)) if families is None else families
    frames = [
        (bound, i, at) for i, family in enumerate(found) for at, bound in enumerate(first_bounds(question, family))
    ]
    if users is not None:
        frames = [f for f in frames if Frame(found[f[1]], f[2]).users * found[f[1]].replicas == users]
    queue = sorted(frame for frame in frames if np.isfinite(frame[0]))
    queue.sort(key=lambda frame: frame[0] * (1.0 + gap * _intricate(found[frame[1]])))
    left = np.minimum.accumulate(np.array([bound for bound, _, _ in queue])[::-1])[::-1]
    plans: list[Simulated] = []
    best, least, held, solved, timed_out = below, np.inf, 1.0, 0, False
    for (bound, i, at), all_left in zip(queue, left, strict=True):
        late = time.monotonic() - started > seconds
        if late or all_left >= best * (1.0 - gap):
            least, timed_out = min(least, float(all_left)), late
            break
        if bound >= best * (1.0 - gap):
            least = min(least, bound)
            continue
        simulated, proved = look_at(question, Frame(found[i], at), calibrations, best * (1.0 - gap))
        solved += 1
        least = min(least, proved)
        if simulated is not None:
            held = min(held, simulated.shortfall)
        if simulated is not None and (accept is None or accept(simulated)):
            plans.append(simulated)
            best = min(best, simulated.objective)
    plans = sorted(plans, key=lambda p: p.objective)[:KEPT]
    elapsed = time.monotonic() - started
    bound = min(least * held, best)
    return Found(tuple(plans), bound, len(frames), solved, found, tuple(queue), elapsed, timed_out)


def _intricate(family: Family) -> int:
    """How much there is to a family: of plans that are as good the plainer one is looked at first."""
    return int(family.placed) + int(family.layout.base.extras.draft_length > 0)


BETWEEN = 4  # numbers of users looked at on either side, which are a sixth to a third apart


def refine(
    question: Question, found: Found, calibrations: CalibrationSet, accept: Callable[[Simulated], bool] | None = None
) -> Found:
    """The search again in the best plan's layout, with numbers of users between its neighbours of the first search."""
    if not found.plans or question.pins.clients is not None or question.goal is Goal.LATENCY:
        return found
    best = found.plans[0]
    at = best.frame.users
    smaller, larger = (tuple(u for u in question.users if sign * (u - at) > 0) for sign in (-1, 1))
    near = [max(smaller, default=at), min(larger, default=at)]
    steps = np.unique(np.concatenate([np.round(np.linspace(at, end, BETWEEN + 2)) for end in near]))
    steps = steps[~np.isin(steps, [at, *near])]
    if not len(steps):
        return found
    layout = best.frame.family.layout.base
    sharding = layout.sharding
    pins = question.pins._replace(
        tp=sharding.tp,
        pp=sharding.pp,
        ep=sharding.ep,
        cp=sharding.cp,
        kv=layout.numerics.kv,
        chunk=layout.engine.max_batched_tokens,
        draft_length=layout.extras.draft_length,
    )
    asked = dataclasses.replace(question, pins=pins, engine=layout.engine, users=tuple(float(u) for u in steps))
    more = search(asked, calibrations, accept=accept, below=best.objective)
    shifted = tuple((bound, i + len(found.families), at) for bound, i, at in more.queue)
    return Found(
        tuple(sorted((*found.plans, *more.plans), key=lambda p: p.objective))[:KEPT],
        min(found.bound, more.bound),
        found.frames + more.frames,
        found.solved + more.solved,
        (*found.families, *more.families),
        tuple(sorted((*found.queue, *shifted))),
        found.seconds + more.seconds,
        found.timed_out or more.timed_out,
    )


RIVALS = 5


def rivals(question: Question, found: Found, calibrations: CalibrationSet) -> list[Simulated]:
    """The best plan of the most promising frame of each other layout, KV format and kind of placement."""
    best = found.plans[0]
    seen, plans = {_kind(best.frame)}, []
    for _, i, at in found.queue:
        frame = Frame(found.families[i], at)
        if _kind(frame) in seen:
            continue
        seen.add(_kind(frame))
        simulated, _ = look_at(question, frame, calibrations, np.inf)
        if simulated is not None:
            plans.append(simulated)
        if len(seen) > RIVALS:
            break
    return sorted(plans, key=lambda p: p.objective)


def _kind(frame: Frame) -> tuple[str, str, bool, int]:
    base = frame.family.layout.base
    return str(base.sharding), base.numerics.kv.value, frame.family.placed, base.extras.draft_length


def look_at(
    question: Question, frame: Frame, calibrations: CalibrationSet, better_than: float
) -> tuple[Simulated | None, float]:
    """A frame's plan, simulated, and the least value its program proves; None where nothing in it fits or is better.

    What the ledger or the simulated pace refuses is solved again with that much less of it: the bound stays the first.
    """
    tightened, proved = Tightened(), np.inf
    for attempt in range(TRIES):
        answer = solve(question, frame, tightened, better_than)
        if attempt == 0:
            proved = min(answer.bound, better_than)
        if answer.outcome is Outcome.INFEASIBLE:
            return None, proved
        simulated = simulate(question, frame, answer.assignment, calibrations)
        simulated = simulated._replace(shortfall=simulated.objective / answer.objective)
        simulated = _evened(question, frame, simulated, calibrations)
        over = _taken_of(question, simulated)
        if max(over) <= 1.0:
            return _begun_earlier(question, frame, answer, simulated, calibrations, better_than), proved
        tightened = Tightened(*(t * (1.0 / o - 1e-4 if o > 1 else 1.0) for t, o in zip(tightened, over, strict=True)))
    return None, proved


def _taken_of(question: Question, plan: Simulated) -> Tightened:
    """Shares of the memory and of the times allowed that a plan takes."""
    limits = question.limits
    return Tightened(
        float(np.max(plan.memory.high_bytes())) / question.budget_bytes(),
        0.0 if limits.pace_s is None else float(plan.pace.time_s) / limits.pace_s,
        0.0 if limits.first_s is None else float(plan.first.time_s) / limits.first_s,
    )


def _evened(question: Question, frame: Frame, found: Simulated, calibrations: CalibrationSet) -> Simulated:
    """The plan with stages as even as possible, where that is as good: for one user a program does not care."""
    each = evenly(frame, found.taken)
    if each is None or each == found.taken:
        return found
    other = simulate(question, frame, Assignment(each), calibrations)
    fits = max(_taken_of(question, other)) <= 1
    return other._replace(shortfall=found.shortfall) if fits and other.objective <= found.objective else found


HELD_UP = 0.01  # a plan slower than its program by more than this may gain by copies begun further ahead


def _begun_earlier(
    question: Question,
    frame: Frame,
    answer: Solved,
    found: Simulated,
    calibrations: CalibrationSet,
    better_than: float,
) -> Simulated:
    """The plan, or a better one with copies begun further ahead: unlike layers delay each other; buffers take room."""
    if not found.scenario.placement.streams or found.objective <= answer.objective * (1 + HELD_UP):
        return found
    for depth in question.engine.prefetch_depths:
        if depth <= answer.assignment.ahead:
            continue
        below = min(better_than, found.objective * (1 - GAP))
        deeper = solve(question, frame, below=below, ahead=depth, gap=HELD_UP)
        if deeper.outcome is Outcome.INFEASIBLE:
            break
        other = simulate(question, frame, deeper.assignment, calibrations)
        if max(_taken_of(question, other)) <= 1 and other.objective < found.objective:
            found = other
    return found


def simulate(question: Question, frame: Frame, assignment: Assignment, calibrations: CalibrationSet) -> Simulated:
    """Price an assignment: continuous batching where the devices hold the model, else a batch at a time."""
    assignment = nearest_memory(question, frame, assignment)
    scenario, taken = realise(question, frame, assignment), assignment.taken
    layout = frame.family.layout
    if frame.family.placed:
        made = generate(scenario, question.output, calibrations)
        pace, first, alone = made.per_token, made.first, made.alone
        of_all = pace.scaled(1.0 / frame.users)
    else:
        served = serve(scenario, Load(frame.users, float(question.prompt), float(question.output)), calibrations)
        pace = served.time_per_output_token
        first, of_all, alone = served.first_token_service, served.time_per_token_of_all, pace
    request = first + alone.scaled(float(question.output))
    if question.goal is Goal.LATENCY:
        objective = float(request.time_s)
    else:
        scale = per_token_scale(question, 1.0, frame.family.replicas, frame.devices)
        objective = float(of_all.time_s) * scale
    spent = (
        frame.family.kv_log_ppl
        + layout.outer_log_ppl
        + sum(t.layers * float(layout.log_ppl[layout.alternatives.index(t.alternative), t.block]) for t in taken)
    )
    of_all = of_all.scaled(1.0 / frame.family.replicas)
    return Simulated(frame, taken, scenario, ledger(scenario), pace, first, request, of_all, objective, spent)
