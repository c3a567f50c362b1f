"""Plans from Python: `ask_plan`, loaded when it is asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from . import api
from .calibrate.transfer import Calibrations
from .errors import InputError
from .simulator import answers as a
from .simulator.calibration import CalibrationSet
from .simulator.offload import StepCosts, step_time
from .simulator.plan_answers import PlanAnswer, PlanLayers, PlanRow
from .simulator.planner import changes
from .simulator.planner.changes import Change, Tried
from .simulator.planner.export import ENGINES, PREFETCH_DEPTHS, Decision, Planned, demand, refusals
from .simulator.planner.export import emit as emit_for
from .simulator.planner.nodes import Node
from .simulator.planner.question import Goal, Question
from .simulator.planner.search import Found, Simulated, refine, rivals, search
from .simulator.report import plan_account as account
from .simulator.report.account import (
    beside_words,
    evidence_of,
    hardware_words,
    host_words,
    knob_words,
    model_word,
)
from .simulator.report.contract import envelope
from .simulator.scenario import Engine, Extras, Phase, Step
from .simulator.serving import Load, operators_of, serve
from .simulator.workload.model import Experts

Progress = Callable[[str], None]


def quiet(_: str) -> None:
    """Progress nobody sees."""


def ask_plan(
    question: Question,
    calibration: str | None = None,
    *,
    why: bool = True,
    second_goal: Goal | None = None,
    emit: str | None = None,
    what_if: Sequence[Change] = (),
    progress: Progress = quiet,
) -> a.Report:
    """The best plan with its proof; `why`: what would change it, solved again; `second_goal`: the front of both.

    With `emit` only plans that engine can run are looked at, and the best is written as its flags and files. `what_if`
    are changes of the question the asker wants to know about (`planner/what_if.py`).
    """

    def calibrations_of(asked: Question) -> Calibrations:
        return api.load_calibrations(asked.fleet, calibration, asked.engine.name)

    if emit is not None:
        if question.extras.draft is not None and question.pins.draft_length != 0:
            guesses = question.extras._replace(draft_length=question.pins.draft_length or 1)
            demand(emit, Decision.DRAFT, Planned(question.scenario(extras=guesses)))
        demand(emit, Decision.DEVICE, Planned(question.scenario(extras=Extras())))
        engine = dataclasses.replace(question.engine, prefetch_depths=PREFETCH_DEPTHS)
        question = dataclasses.replace(question, engine=engine)
    calibrations = calibrations_of(question)
    progress("looking at every layout and precision")
    can_run = None if emit is None else lambda plan: not refusals(emit, _planned(question, plan))
    found = refine(question, search(question, calibrations, accept=can_run), calibrations, can_run)
    if not found.frames and question.usable_devices():
        pinned = {f"--{name}": getattr(question.pins, name) for name in ("tp", "pp", "ep", "cp")}
        key, value = next(((k, v) for k, v in pinned.items() if v is not None), ("--gpu", question.fleet.label))
        problem = f"leaves no layout of {question.model.name} on {question.usable_devices()} devices"
        raise InputError(problem, key=key, value=value, remedy="drop it")
    if not found.plans:
        return _without_a_plan(question, found, calibrations_of, why, progress, what_if)
    best = found.plans[0]
    limits = account.limits_of(question, best)
    engines = [] if emit else [engine for engine in ENGINES if not refusals(engine, _planned(question, best))]
    tried: list[Tried[Found]] = []
    others: list[Simulated] = []
    if why:
        progress("looking at what came close")
        others = [p for p in rivals(question, found, calibrations) if can_run is None or can_run(p)]
        progress("solving again with a little more of everything")
        tried = changes.purchases(question, found, calibrations_of)
    tried = changes.tried(what_if, found, calibrations_of) + tried
    answer = PlanAnswer(
        asked=account.question_of(question),
        verdict="yes",
        words=(*account.words_of(question, best, others, limits), *_told(emit, engines)),
        plan=account.row_of(question, best),
        layers=_layers(best),
        limits=limits,
        proof=account.proof_of(question, found),
        domain=account.domain_of(question, found),
        timeline=account.timeline_of(best),
        changes=tuple(account.change_of(question, t, best) for t in tried),
        without=(),
        runners_up=account.runners_up(question, best, others),
        front=() if second_goal is None else _front(question, second_goal, found, calibrations),
        emitted=() if emit is None else _emitted(question, best, emit),
        refute=account.refute(question, best.frame.users, best.pace),
        next_step=_next(question, best, emit, engines),
    )
    return envelope(answer, None, _evidence(question, best, calibrations), question.model.warnings)


def ask_unlike(
    question: Question,
    nodes: tuple[Node, ...],
    named: str,
    calibration: str | None = None,
    *,
    why: bool = True,
    progress: Progress = quiet,
) -> a.Report:
    """The best pipeline over the unlike devices of one or more machines; `why`: what would change it, solved again."""
    from .simulator.planner import unlike_changes
    from .simulator.planner.unlike import plan_unlike
    from .simulator.report import unlike_account

    progress("looking at every grouping, format and number of users")
    calibrations = api.load_calibrations(question.fleet, calibration, question.engine.name)
    found = plan_unlike(question, nodes, calibrations)
    asked = unlike_changes.Asked(question, nodes, calibrations, found, progress)
    weighed = unlike_changes.weigh(asked) if why else None
    return envelope(unlike_account.answer_of(question, named, found, weighed), warnings=question.model.warnings)


def _without_a_plan(
    question: Question,
    found: Found,
    calibrations_of: Callable[[Question], CalibrationSet],
    why: bool,
    progress: Progress,
    what_if: Sequence[Change],
) -> a.Report:
    progress("looking for the smallest change that is enough")
    relaxed = changes.relaxations(question, found, calibrations_of) if why else []
    tried = changes.tried(what_if, found, calibrations_of) + relaxed
    answer = PlanAnswer(
        asked=account.question_of(question),
        verdict="no",
        words=(account.needs(question, found),),
        plan=None,
        layers=(),
        limits=(),
        proof=account.proof_of(question, found),
        domain=account.domain_of(question, found),
        timeline=(),
        changes=tuple(account.change_of(question, t, None) for t in tried),
        without=(),
        runners_up=(),
        front=(),
        emitted=(),
        refute="",
        next_step=f"roofplan fits {question.model.name} --gpu {question.fleet.label}   (what takes the room)",
    )
    return envelope(answer, warnings=question.model.warnings)


def _layers(plan: Simulated) -> tuple[PlanLayers, ...]:
    blocks = plan.frame.family.layout.base.model.blocks
    return tuple(
        PlanLayers(
            t.stage,
            blocks[t.block].name,
            t.layers,
            t.alternative.shell.name,
            (t.alternative.experts if isinstance(blocks[t.block].ffn, Experts) else t.alternative.shell).name,
            t.alternative.mode.name,
            t.alternative.cached,
            t.alternative.tier.value,
        )
        for t in plan.taken
    )


def _evidence(question: Question, plan: Simulated, calibrations: Calibrations) -> a.Evidence:
    if plan.frame.family.placed:
        middle = Step(Phase.DECODE, plan.frame.users, 1, question.prompt + question.output / 2)
        costs = StepCosts(plan.scenario, middle, calibrations)
        return evidence_of(plan.pace, step_time(costs).operators, calibrations)
    load = Load(plan.frame.users, float(question.prompt), float(question.output))
    served = serve(plan.scenario, load, calibrations)
    _, spent = operators_of(plan.scenario, load, served, calibrations)
    return evidence_of(served.time_per_output_token, spent, calibrations)


def _guessing(extras: Extras) -> list[str]:
    """The words of a draft model, and of how far it guesses where that is decided."""
    if extras.draft is None:
        return []
    length = f" --draft-length {extras.draft_length}" if extras.draft_length else ""
    return [f"--draft {model_word(extras.draft)}{length} --acceptance {extras.acceptance:.0%}"]


def _front(question: Question, second: Goal, found: Found, calibrations: CalibrationSet) -> tuple[PlanRow, ...]:
    """Plans that no other beats in both goals: the best for each goal at every number of users in all."""
    totals = sorted({float(u) * f.replicas for f in found.families for u in np.ravel(f.layout.base.batch)})
    plans = list(found.plans[:1])
    for goal in (question.goal, second):
        asked = dataclasses.replace(question, goal=goal)
        if goal is Goal.LATENCY:
            plans += search(asked, calibrations, 0.01, 5.0).plans[:1]
            continue
        for users in totals:
            plans += search(asked, calibrations, 0.01, 5.0, found.families, users).plans[:1]
    values = [(account.value_of(question, p, question.goal), account.value_of(question, p, second)) for p in plans]
    kept, least = [], float("inf")
    for (_, y), plan in sorted(zip(values, plans, strict=True), key=lambda pair: pair[0]):
        if y < least * 0.999:
            kept.append(account.row_of(question, plan, found.plans[0]))
            least = y
    return tuple(kept)


def _planned(question: Question, plan: Simulated) -> Planned:
    family = plan.frame.family
    return Planned(plan.scenario, family.replicas, question.output, int(plan.frame.users) * family.replicas)


def _emitted(question: Question, plan: Simulated, engine: str) -> tuple[str, ...]:
    made = emit_for(engine, _planned(question, plan))
    files = [line for name, text in made.files.items() for line in (f"--- {name}", text.rstrip(), "---")]
    return (*made.lines, *files, f"measure it: {made.benchmark}", *made.notes)


def _next(question: Question, plan: Simulated, emitted: str | None, engines: Sequence[str]) -> str:
    """The command that shows more: the server of a plan it can be told, else the plan's own flags or picture."""
    scenario, weights = plan.scenario, plan.scenario.numerics.weights.name
    if not plan.frame.family.placed and not scenario.model.layer_formats:
        tp, pp, ep, _, cp = scenario.sharding
        words = [
            f"roofplan serve {model_word(question.model)}",
            *hardware_words(question.fleet.sized(tp * pp)),
            f"--clients {plan.frame.users:.0f} --prompt {question.prompt} --output {question.output}",
            f"--tp {tp} --pp {pp} --kv {scenario.numerics.kv}",
            *([f"--ep {ep}"] if ep > 1 else []),
            *([f"--cp {cp}"] if cp > 1 else []),
            *([] if weights == question.model.native.name else [f"--weights {weights}"]),
            *_guessing(scenario.extras),
            *_run_by(scenario.engine, scenario.extras),
        ]
        return f"{' '.join(words)}   (one replica, step by step)"
    asked = account.question_of(question)
    words = [
        f"roofplan plan {model_word(question.model)}",
        *hardware_words(question.fleet, question.nodes),
        *([] if question.fleet.device.unified_memory else host_words(question.fleet)),
        f"--prompt {question.prompt} --output {question.output} --goal {question.goal}",
        *asked.limits,
        *asked.pinned,
        *_guessing(question.extras._replace(draft_length=0)),  # a pinned number of guesses is among the pinned
        *_run_by(question.engine, question.extras),
    ]
    again = " ".join(dict.fromkeys(words))  # a pinned size of a step is a knob of the engine too
    if emitted is None and engines:
        return f"{again} --emit {engines[0]}   (the command that starts it)"
    return f"{again} --plot plan.png   (what takes the room and the time)"


def _run_by(engine: Engine, extras: Extras) -> list[str]:
    return [*beside_words(extras), f"--engine {engine.label}", *knob_words(engine)]


def _told(emitted: str | None, engines: Sequence[str]) -> tuple[str, ...]:
    """Which engines can be told the plan, where none was asked for."""
    if emitted is not None:
        return ()
    if engines:
        return (f"engines that can be told to run it: {', '.join(engines)} (--emit)",)
    return ("no engine here can be told to run all of it: --emit ENGINE keeps to what one can",)
