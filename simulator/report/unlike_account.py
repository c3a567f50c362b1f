"""A pipeline over unlike devices as an answer of `plan`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import groupby

import numpy as np

from ...units import format_gib, format_seconds
from .. import plan_answers as a
from ..answers import Layout
from ..explain import quantity, rate
from ..planner.changes import Tried
from ..planner.question import Goal, Question
from ..planner.unlike import FoundUnlike
from ..planner.unlike_bounds import may_keep_quality, room_bytes
from ..planner.unlike_changes import Weighed
from ..planner.unlike_program import UnlikeFrame
from ..planner.unlike_simulated import Part, UnlikePlan
from ..scenario import ON_DEVICE, Where
from . import plan_account
from .text import number

SPENT = {
    "devices": "computing on the devices",
    "hosts": "computing on hosts",
    "logits": "the output head",
    "handovers": "hand-overs between places",
    "drives": "reading drives",
}
WORTHLESS = 0.003  # what the search leaves unproved and rounds off: a device that is worth less may be left out


def answer_of(question: Question, named: str, found: FoundUnlike, weighed: Weighed | None) -> a.PlanAnswer:
    """The best pipeline with its proof and its places; `named` is how the asker named the devices.

    Without `weighed` nobody asked what would change it.
    """
    tried = weighed or Weighed()
    best = found.plans[0] if found.plans else None
    asked = plan_account.question_of(question)._replace(device=named, device_count=1)
    proof, domain = _proof(question, found), _domain(found)
    changes = tuple(_change(question, t, best, 0.0) for t in tried.changes)
    if best is None:
        step = f"roofplan fits {question.model.name} --gpu {question.fleet.label}   (what takes the room)"
        none = ("no single change of those looked at is enough",) if weighed is not None and not changes else ()
        words = (_needs(found), *none)
        return a.PlanAnswer(asked, "no", words, None, (), (), proof, domain, (), changes, (), (), (), (), "", step)
    without = tuple(_change(question, t, best, -math.inf) for t in tried.without)
    return a.PlanAnswer(
        asked=asked,
        verdict="yes",
        words=_words(best, without, tried.rivals),
        plan=_row(question, best, best),
        layers=tuple(_layers(best)),
        limits=_limits(question, best),
        proof=proof,
        domain=domain,
        timeline=tuple(_timeline(best)),
        changes=changes,
        without=without,
        runners_up=_runners_up(question, best, tried.rivals),
        front=(),
        emitted=(),
        refute=plan_account.refute(question, best.frame.load.users, best.pace),
        next_step="roofplan validate --from clusters   (how far published speeds of such machines were off)",
    )


def _change(question: Question, tried: Tried[FoundUnlike], best: UnlikePlan | None, worst: float) -> a.PlanChange:
    """A changed question's answer beside the present one's; what can only help is at `worst` as good."""
    change, found = tried
    if not found.plans:
        return plan_account.no_plan(change, found.timed_out)
    plan = found.plans[0]
    gain = None if best is None else max(worst, 1.0 - plan.objective / best.objective)
    words = "the same plan" if plan is best else _brief(question, plan)
    stopped = "; stopped at the time limit" if found.timed_out else ""
    return a.PlanChange(change.words, plan.objective, gain, f"{words}{stopped}", change.flags)


def _brief(question: Question, plan: UnlikePlan) -> str:
    """`18.5 s a request, 61.8 ms a token; Q4_K_M, int8 KV, experts of 24 layers on the host`."""
    pace = format_seconds(float(plan.pace.time_s))
    speed = f"{format_seconds(plan.objective)} a request, {pace} a token"
    if question.goal is Goal.THROUGHPUT:
        speed = f"{number(1.0 / float(plan.of_all.time_s))} tokens/s, {plan.frame.load.users:.0f} users, {pace} a token"
    return f"{speed}; {', '.join((_weights(plan), f'{plan.frame.kv} KV', *_away(plan)))}"


def _away(plan: UnlikePlan) -> list[str]:
    """What hosts compute and what is read from drives, nothing where devices do all."""
    layers = sum(part.layers for part in _used(plan) if part.place.on_host)
    experts = sum(a.mode.experts is Where.HOST for part in _used(plan) for a in part.alternatives)
    here = [*([f"{layers} layers"] if layers else []), *([f"experts of {experts} layers"] if experts else [])]
    read = sum(plan.drive_bytes)
    return [
        *([f"{' and '.join(here)} on the host"] if here else []),
        *([f"{format_gib(read)} read from drives"] if read > 0 else []),
    ]


def _runners_up(question: Question, best: UnlikePlan, plans: Sequence[UnlikePlan]) -> tuple[a.PlanRow, ...]:
    rows = [
        _row(question, plan, best, _why(question, plan, best)) for plan in plans if plan.objective >= best.objective
    ]
    return tuple(rows[: plan_account.RUNNERS_UP])


def _why(question: Question, plan: UnlikePlan, best: UnlikePlan) -> str:
    """Where most of the difference is."""
    if plan.frame.load.users != best.frame.load.users:
        return plan_account.users_words(plan.frame.load.users, best.frame.load.users, plan.pace, best.pace)
    output = float(question.output)
    pairs = {"taking prompts in": (float(plan.first.time_s), float(best.first.time_s))}
    for name, words in SPENT.items():
        pairs[words] = (output * getattr(plan.spent, name), output * getattr(best.spent, name))
    words, (then, now) = max(pairs.items(), key=lambda each: each[1][0] - each[1][1])
    if now <= 0:
        return f"{words}: added"
    return f"{words}: {then / now:.3g} x as long" if then / now >= 1.1 else f"{words}: {then / now - 1:.1%} longer"


def _needs(found: FoundUnlike) -> str:
    """What keeps every plan from fitting, where none does."""
    words = f"no pipeline of {found.frames:,} frames keeps all limits"
    faithful = [frame for frame in found.domain if may_keep_quality(frame)]
    if not faithful:
        return f"{words}: no format keeps the limit of quality"
    least, room = min((_least_bytes(f), sum(room_bytes(f, p) for p in range(len(f.places)))) for f in faithful)
    if least <= room:
        return f"{words}: memory would do, the other limits would not"
    taken = f"the narrowest layers that keep the quality take {format_gib(least)}"
    return f"{words}: {taken} of the {format_gib(room)} all places have for layers"


def _least_bytes(frame: UnlikeFrame) -> float:
    """Bytes of all layers in their smallest alternatives, wherever they are."""
    each = [
        c.device_bytes if place.on_host else c.slope * c.device_bytes + c.host_bytes
        for place, c in zip(frame.places, frame.costs, strict=True)
    ]
    return float(np.array(frame.counts, float) @ np.min([a.min(axis=0) for a in each], axis=0))


def _domain(found: FoundUnlike) -> tuple[a.PlanDomain, ...]:
    """The finite domain, decision by decision."""
    frames = found.domain
    loads = sorted({f.load for f in frames})
    return (
        a.PlanDomain("devices that share layers", tuple(dict.fromkeys(f.grouping for f in frames))),
        a.PlanDomain("KV cache", tuple(dict.fromkeys(f.kv.value for f in frames))),
        a.PlanDomain("weights", tuple(dict.fromkeys(" and ".join(w.name for w in f.formats) for f in frames))),
        a.PlanDomain("users", tuple(dict.fromkeys(f"{load.users:.0f}" for load in loads))),
        a.PlanDomain("micro-batches", tuple(f"{n}" for n in sorted({load.micro_batches for load in loads}))),
    )


def _proof(question: Question, found: FoundUnlike) -> a.PlanProof:
    best = found.plans[0].objective if found.plans else None
    status = plan_account.status_of(bool(found.plans), found.timed_out)
    bound = found.bound if math.isfinite(found.bound) else None
    unit = plan_account.UNITS[question.goal]
    return a.PlanProof(
        status, best, bound, found.gap, unit, found.frames, found.solved, found.seconds, plan_account.solver()
    )


def _name(plan: UnlikePlan, part: Part) -> str:
    """The place's name, with its machine's number where there are several."""
    place = part.place
    name = place.label.partition(": ")[2]
    return f"{name} of machine {place.node + 1}" if len(plan.frame.nodes) > 1 else name


def _used(plan: UnlikePlan) -> list[Part]:
    return [part for part in plan.parts if part.layers]


def _words(plan: UnlikePlan, without: Sequence[a.PlanChange], rivals: Sequence[UnlikePlan]) -> tuple[str, ...]:
    parts = _used(plan)
    shares = ", ".join(_share(plan, list(same)) for _, same in groupby(parts, key=_kind))
    spent = {name: float(value) for name, value in plan.spent._asdict().items()}
    whole = sum(spent.values()) or 1.0
    binds = f"what decides: {SPENT[plan.spent.deciding]}, {spent[plan.spent.deciding] / whole:.0%} of a token's time"
    run = f"run a pipeline of {len(parts)} place{'s' * (len(parts) > 1)}: {shares}"
    idle = [change.change for change in without if change.gain is not None and change.gain > -WORTHLESS]
    spare = f"no slower without {' or without '.join(idle)}" if idle else ""
    ties = plan_account.ties_words([p.objective for p in rivals], plan.objective)
    return tuple(w for w in (run, binds, spare, ties) if w)


def _kind(part: Part) -> tuple[int, str, bool]:
    return part.place.node, part.place.fleet.device.key, part.place.on_host


def _share(plan: UnlikePlan, parts: list[Part]) -> str:
    """`75 layers on 4 rtx-3090 (19, 19, 19, 18)`, of places of one kind."""
    place, layers = parts[0].place, [part.layers for part in parts]
    of = f" of machine {place.node + 1}" if len(plan.frame.nodes) > 1 else ""
    count = sum(part.place.devices for part in parts)
    kind = "the host" if place.on_host else f"{count} {place.fleet.device.key}" if count > 1 else place.fleet.device.key
    each = f" ({', '.join(map(str, layers))})" if len(layers) > 1 else ""
    return f"{sum(layers)} layers on {kind}{of}{each}"


def _weights(plan: UnlikePlan) -> str:
    """`Q4_K_M`, or `52 layers bf16, 28 fp8`, wherever they are."""
    weights = Counter(al._replace(mode=ON_DEVICE).label for part in _used(plan) for al in part.alternatives)
    return ", ".join(weights) if len(weights) == 1 else ", ".join(f"{n} layers {w}" for w, n in weights.most_common())


def _row(question: Question, plan: UnlikePlan, best: UnlikePlan, why: str = "") -> a.PlanRow:
    parts, load = _used(plan), plan.frame.load
    tp = max(part.place.tp for part in parts)
    devices = sum(part.place.devices for part in parts)
    return a.PlanRow(
        layout=Layout(tp, len(parts), 1, 1, devices),
        stages=tuple(part.layers for part in parts),
        replicas=1,
        devices=devices,
        users=int(load.users),
        chunk_tokens=plan.frame.question.engine.max_batched_tokens,
        weights=_weights(plan),
        kv=plan.frame.kv.value,
        where=", ".join(_away(plan)),
        prefetch_depth=0,
        draft_length=0,
        goal=plan.objective,
        ratio=plan.objective / best.objective,
        tie=plan is not best and plan.objective / best.objective < plan_account.TIE,
        time_per_output_token=quantity(plan.pace),
        first_token_service=quantity(plan.first),
        tokens_per_s_total=rate(plan.of_all, 1.0, "tokens/s"),
        request=quantity(plan.first + plan.pace.scaled(float(question.output))),
        ppl_increase=math.expm1(plan.log_ppl),
        money_per_million_tokens=None,
        joules_per_token=None,
        why=why,
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
    rows += plan_account.of_request(question.limits, plan.pace, plan.first, plan.log_ppl)
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
