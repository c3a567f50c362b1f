"""A pipeline over unlike devices as an answer of `plan`."""

from __future__ import annotations

import math
from collections import Counter
from itertools import groupby

from .. import plan_answers as a
from ..answers import Layout
from ..explain import quantity, rate
from ..planner.question import Question
from ..planner.unlike import FoundUnlike
from ..planner.unlike_simulated import Part, UnlikePlan
from ..scenario import ON_DEVICE
from . import plan_account

SPENT = {
    "devices": "computing on the devices",
    "hosts": "computing on hosts",
    "logits": "the output head",
    "handovers": "hand-overs between places",
    "drives": "reading drives",
}


def answer_of(question: Question, named: str, found: FoundUnlike) -> a.PlanAnswer:
    """The best pipeline with its proof and its places; `named` is how the asker named the devices."""
    asked = plan_account.question_of(question)._replace(device=named, device_count=1)
    proof = _proof(question, found)
    if not found.plans:
        words = (f"no pipeline of {found.frames:,} frames keeps all limits",)
        step = "add devices, or host memory (--ram), or allow narrower weights (--max-ppl-increase)"
        return a.PlanAnswer(asked, "no", words, None, (), (), proof, (), (), (), (), (), (), "", step)
    best = found.plans[0]
    return a.PlanAnswer(
        asked=asked,
        verdict="yes",
        words=_words(best),
        plan=_row(question, best),
        layers=tuple(_layers(best)),
        limits=_limits(question, best),
        proof=proof,
        domain=(),
        timeline=tuple(_timeline(best)),
        changes=(),
        runners_up=(),
        front=(),
        emitted=(),
        refute=plan_account.refute(question, best.frame.load.users, best.pace),
        next_step="leave one device out of --gpus: the difference is what it is worth",
    )


def _proof(question: Question, found: FoundUnlike) -> a.PlanProof:
    best = found.plans[0].objective if found.plans else None
    status = "infeasible"
    if found.timed_out:
        status = "feasible, stopped at the time limit"
    elif found.plans:
        status = "optimal to within the gap"
    bound = found.bound if math.isfinite(found.bound) else None
    unit = plan_account.UNITS[question.goal]
    return a.PlanProof(
        status, best, bound, found.gap, unit, found.frames, found.solved, found.seconds, plan_account.solver()
    )


def _name(plan: UnlikePlan, part: Part) -> str:
    """The place's name, without its machine's where there is one machine."""
    label = part.place.label
    return label.partition(": ")[2] or label if len(plan.frame.nodes) == 1 else label


def _used(plan: UnlikePlan) -> list[Part]:
    return [part for part in plan.parts if part.layers]


def _words(plan: UnlikePlan) -> tuple[str, ...]:
    parts = _used(plan)
    shares = ", ".join(f"{part.layers} layers on {_name(plan, part)}" for part in parts)
    spent = {name: float(value) for name, value in plan.spent._asdict().items()}
    whole = sum(spent.values()) or 1.0
    binds = f"what decides: {SPENT[plan.spent.deciding]}, {spent[plan.spent.deciding] / whole:.0%} of a token's time"
    return f"run a pipeline of {len(parts)} place{'s' * (len(parts) > 1)}: {shares}", binds


def _formats(part: Part) -> Counter[str]:
    return Counter(al.label for al in part.alternatives)


def _row(question: Question, plan: UnlikePlan) -> a.PlanRow:
    parts, load = _used(plan), plan.frame.load
    tp = max(part.place.tp for part in parts)
    devices = sum(part.place.devices for part in parts)
    weights: Counter[str] = Counter()
    for part in parts:
        weights += _formats(part)
    words = ", ".join(weights) if len(weights) == 1 else ", ".join(f"{n} layers {w}" for w, n in weights.most_common())
    return a.PlanRow(
        layout=Layout(tp, len(parts), 1, 1, devices),
        stages=tuple(part.layers for part in parts),
        replicas=1,
        devices=devices,
        users=int(load.users),
        chunk_tokens=plan.frame.question.engine.max_batched_tokens,
        weights=words,
        kv=plan.frame.kv.value,
        where=", ".join(_name(plan, part) for part in parts if part.place.on_host),
        prefetch_depth=0,
        draft_length=0,
        goal=plan.objective,
        ratio=1.0,
        tie=False,
        time_per_output_token=quantity(plan.pace),
        first_token_service=quantity(plan.first),
        tokens_per_s_total=rate(plan.of_all, 1.0, "tokens/s"),
        request=quantity(plan.first + plan.pace.scaled(float(question.output))),
        ppl_increase=math.expm1(plan.log_ppl),
        money_per_million_tokens=None,
        joules_per_token=None,
        why="",
    )


def _layers(plan: UnlikePlan) -> list[a.PlanLayers]:
    rows, blocks = [], plan.frame.question.model.blocks
    pattern = plan.frame.question.model.pattern
    for stage, part in enumerate(_used(plan)):
        kinds = [(blocks[pattern[part.start + i]].name, al) for i, al in enumerate(part.alternatives)]
        for (block, al), same in groupby(kinds):
            where = _name(plan, part) if al.mode is ON_DEVICE else f"{_name(plan, part)}, {al.mode.name}"
            layers = len(list(same))
            formats = al.shell.name, al.experts.name
            rows.append(a.PlanLayers(stage, block, layers, *formats, where, al.cached, al.tier.value))
    return rows


def _limits(question: Question, plan: UnlikePlan) -> tuple[a.PlanLimit, ...]:
    rows = [
        (f"memory of {_name(plan, part)}", part.high_bytes, part.budget_bytes, "B")
        for part in plan.parts
        if part.budget_bytes > 0
    ]
    limits = question.limits
    if limits.pace_s is not None:
        rows.append(("time per output token", float(plan.pace.time_s), limits.pace_s, "s"))
    if limits.first_s is not None:
        rows.append(("time to the first token (service)", float(plan.first.time_s), limits.first_s, "s"))
    if limits.log_ppl is not None:
        rows.append(("change of log-perplexity", plan.log_ppl, limits.log_ppl, "1"))
    near = plan_account.BINDING * 2
    return tuple(a.PlanLimit(name, used, limit, unit, limit - used <= near * limit) for name, used, limit, unit in rows)


def _timeline(plan: UnlikePlan) -> list[a.PlanSpan]:
    """The decode step of one micro-batch: place after place."""
    spans, now = [], 0.0
    for part in _used(plan):
        seconds = float(part.decode.time_s)
        spans.append(a.PlanSpan("decode step", "computing", f"{part.layers} layers, {_name(plan, part)}", now, seconds))
        now += seconds
    return spans
