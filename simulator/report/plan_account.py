"""A search's result as an answer: the plan in words and rows, its proof, its limits, what would change it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from ...units import format_gib, format_seconds
from .. import plan_answers as a
from ..estimate import Estimate
from ..explain import quantity, rate
from ..planner.bounds import least as least_of
from ..planner.changes import Change, Tried
from ..planner.program import cxl_room, host_room
from ..planner.question import LIMIT_OPTIONS, PIN_OPTIONS, Goal, Limits, Question
from ..planner.search import Found, Simulated
from ..scenario import ON_DEVICE, MemoryTier
from ..speculation import tokens_per_round
from .account import layout_of

TIE = 1.09
"""Plans closer than this are a tie: 80 % of the ratios between neighbouring layouts of public serving runs are met
within 9 % (`roofplan validate --from serving`)."""
BINDING = 0.02  # a limit that is used up to within this share binds
RUNNERS_UP = 4
UNITS = {
    Goal.LATENCY: "s per request",
    Goal.THROUGHPUT: "s per output token of all users",
    Goal.COST: "money per output token",
    Goal.ENERGY: "J per output token",
}


def question_of(question: Question) -> a.PlanQuestion:
    """The question as the JSON contract shows it."""
    limits = tuple(
        f"{LIMIT_OPTIONS[name]} {_shown(name, value, question.currency)}"
        for name, value in question.limits._asdict().items()
        if value is not None
    )
    pins = question.pins._asdict()
    pinned = tuple(
        f"--{PIN_OPTIONS.get(name, name)} {getattr(value, 'name', value) if name == 'weights' else value}"
        for name, value in pins.items()
        if value is not None
    )
    return a.PlanQuestion(
        model=question.model.name,
        model_origin=question.model.origin,
        device=question.fleet.device.key,
        device_count=question.fleet.count,
        nodes=question.nodes,
        host_memory_bytes=question.fleet.host_memory_bytes,
        prompt=question.prompt,
        output=question.output,
        goal=question.goal.value,
        engine=question.engine.label,
        memory_utilization=question.engine.memory_utilization,
        limits=limits,
        pinned=pinned,
        currency=question.currency,
    )


def _shown(name: str, value: float, currency: str) -> str:
    if name.endswith("_s"):
        return f"{value * 1e3:g}"
    if name == "log_ppl":
        return f"{math.expm1(value):.2%}"
    units = {"power_w": "W", "money_per_hour": f"{currency or 'USD'}/h"}
    return f"{value:g}{units.get(name, '')}"


def row_of(question: Question, plan: Simulated, best: Simulated | None = None, why: str = "") -> a.PlanRow:
    """A plan as a row beside the best."""
    scenario, frame = plan.scenario, plan.frame
    best = best or plan
    per_hour = question.price_per_hour
    power = question.fleet.device.power_w
    seconds = float(plan.of_all.time_s)
    return a.PlanRow(
        layout=layout_of(scenario.sharding),
        stages=scenario.sharding.stages,
        replicas=frame.family.replicas,
        devices=frame.devices,
        users=int(frame.users),
        chunk_tokens=scenario.engine.max_batched_tokens,
        weights=weights_words(plan),
        kv=scenario.numerics.kv.value,
        where=where_words(plan),
        prefetch_depth=scenario.placement.ahead if scenario.placement.streams else 0,
        draft_length=scenario.extras.draft_length,
        goal=plan.objective,
        ratio=plan.objective / best.objective,
        tie=plan is not best and plan.objective / best.objective < TIE,
        time_per_output_token=quantity(plan.pace),
        first_token_service=quantity(plan.first),
        tokens_per_s_total=rate(plan.of_all, 1.0, "tokens/s"),
        request=quantity(plan.request),
        ppl_increase=math.expm1(plan.log_ppl),
        money_per_million_tokens=None if per_hour is None else 1e6 * seconds * frame.devices * per_hour / 3600,
        joules_per_token=None if power is None else seconds * frame.devices * power.value,
        why=why,
    )


def weights_words(plan: Simulated) -> str:
    """`fp8`, or `52 layers bf16, 28 fp8`."""
    layers: Counter[str] = Counter()
    for t in plan.taken:
        layers[t.alternative._replace(mode=ON_DEVICE, tier=MemoryTier.HOST).label] += t.layers
    if len(layers) == 1:
        return next(iter(layers))
    return ", ".join(f"{count} layer{'s' * (count > 1)} {name}" for name, count in layers.most_common())


def where_words(plan: Simulated) -> str:
    """What is not on the device, nothing where all is."""
    layers: Counter[str] = Counter()
    for t in plan.taken:
        if t.alternative.mode is not ON_DEVICE:
            kept = f" ({t.alternative.cached:.0%} of them kept)" if t.alternative.cached else ""
            behind = " in memory behind CXL" if t.alternative.tier is MemoryTier.CXL else ""
            layers[f"{t.alternative.mode.name}{kept}{behind}"] += t.layers
    return ", ".join(f"{count} x {name}" for name, count in layers.most_common())


def limits_of(question: Question, plan: Simulated) -> tuple[a.PlanLimit, ...]:
    """Every limit with what the plan takes of it; those it takes all of bind."""
    limits, memory = question.limits, plan.memory
    device = float(np.max(memory.high_bytes()))
    rows = [("memory of a device", device, question.budget_bytes(), "B")]
    host = memory.tier_bytes(MemoryTier.HOST)
    if plan.frame.family.placed:
        rows.append(("host memory", host, host_room(question), "B"))
    if question.fleet.cxl is not None and plan.frame.family.placed:
        rows.append(("memory behind CXL", memory.tier_bytes(MemoryTier.CXL), cxl_room(question), "B"))
    rows += of_request(limits, plan.pace, plan.first, plan.log_ppl)
    rows.append(("devices", float(plan.frame.devices), float(question.usable_devices()), "1"))
    largest_layer = _layer_bytes(plan)
    slack = {"memory of a device": max(BINDING * question.budget_bytes(), largest_layer)}
    return tuple(
        a.PlanLimit(name, used, limit, unit, limit - used <= slack.get(name, BINDING * limit))
        for name, used, limit, unit in rows
    )


def of_request(limits: Limits, pace: Estimate, first: Estimate, log_ppl: float) -> list[tuple[str, float, float, str]]:
    """What a plan takes of the limits on times and quality: name, used, limit and unit."""
    taken = (
        ("time per output token", float(pace.time_s), limits.pace_s, "s"),
        ("time to the first token (service)", float(first.time_s), limits.first_s, "s"),
        ("change of log-perplexity", log_ppl, limits.log_ppl, "1"),
    )
    return [(name, used, limit, unit) for name, used, limit, unit in taken if limit is not None]


def _layer_bytes(plan: Simulated) -> float:
    """The widest layer on a device: less room than that holds no further one."""
    device = plan.frame.family.layout.bytes_.device
    return float(device[:, :, plan.frame.at].max())


def domain_of(question: Question, found: Found) -> tuple[a.PlanDomain, ...]:
    """The finite domain, decision by decision."""
    layouts = [f.layout for f in found.families]
    users = sorted({float(u) for layout in layouts for u in np.ravel(layout.base.batch)})
    modes = {al.mode.name for layout in layouts for al in layout.alternatives}
    tiers = {al.tier.value for layout in layouts for al in layout.alternatives}
    copies = any(al.mode.copies for layout in layouts for al in layout.alternatives)
    depths, guesses = question.engine.prefetch_depths, {layout.base.extras.draft_length for layout in layouts}
    more = [
        *([a.PlanDomain("kept by the host in", tuple(sorted(tiers)))] if len(tiers) > 1 else []),
        *([a.PlanDomain("prefetch depth", tuple(map(str, depths)))] if copies else []),
        *([a.PlanDomain("guesses a round", tuple(map(str, sorted(guesses))))] if guesses != {0} else []),
    ]
    return (
        a.PlanDomain("layouts", tuple(dict.fromkeys(str(layout.base.sharding) for layout in layouts))),
        a.PlanDomain("replicas", tuple(dict.fromkeys(str(f.replicas) for f in found.families))),
        a.PlanDomain("users of a replica", tuple(f"{u:.0f}" for u in users)),
        a.PlanDomain("KV cache", tuple(dict.fromkeys(layout.base.numerics.kv.value for layout in layouts))),
        a.PlanDomain(
            "weights of each layer", tuple(dict.fromkeys(f.name for layout in layouts for f in layout.formats))
        ),
        a.PlanDomain("place of each layer", tuple(sorted(modes))),
        a.PlanDomain(
            "tokens of a prompt step",
            tuple(dict.fromkeys(f"{each.base.engine.max_batched_tokens}" for each in layouts)),
        ),
        *more,
    )


def proof_of(question: Question, found: Found) -> a.PlanProof:
    """What was proved, and with what."""
    best = found.plans[0].objective if found.plans else None
    return a.PlanProof(
        status=status_of(bool(found.plans), found.timed_out),
        goal=best,
        bound=found.bound if math.isfinite(found.bound) else None,
        gap=found.gap,
        unit=UNITS[question.goal],
        frames=found.frames,
        programs=found.solved,
        seconds=found.seconds,
        solver=solver(),
    )


def status_of(has_plan: bool, timed_out: bool) -> str:
    """What is known, in words."""
    if has_plan:
        return "feasible, stopped at the time limit" if timed_out else "optimal to within the gap"
    return "no plan found in time" if timed_out else "infeasible"


def solver() -> str:
    """Whose numbers they are."""
    from importlib.metadata import version

    return f"PuLP {version('pulp')}, HiGHS {version('highspy')}"


def runners_up(question: Question, best: Simulated, plans: Sequence[Simulated]) -> tuple[a.PlanRow, ...]:
    """Plans that came close, with what they lose by."""
    rows = [
        row_of(question, plan, best, _why(question, plan, best)) for plan in plans if plan.objective >= best.objective
    ]
    return tuple(rows[:RUNNERS_UP])


def _why(question: Question, plan: Simulated, best: Simulated) -> str:
    """What makes it worse: the share of the difference that the larger part of its time has."""
    if question.goal is Goal.LATENCY:
        parts = {
            "prompt": (plan.first, best.first),
            "decoding": (plan.request + plan.first.scaled(-1.0), best.request + best.first.scaled(-1.0)),
        }
        name = max(parts, key=lambda n: float(parts[n][0].time_s - parts[n][1].time_s))
        return f"{name} takes {float(parts[name][0].time_s) / float(parts[name][1].time_s):.2f} x as long"
    users, base = plan.frame.users * plan.frame.family.replicas, best.frame.users * best.frame.family.replicas
    return users_words(users, base, plan.pace, best.pace)


def users_words(users: float, base: float, pace: Estimate, other: Estimate) -> str:
    """`64 users instead of 96, each token 1.20 x as long`."""
    step = float(pace.time_s) / float(other.time_s)
    return f"{users:.0f} users instead of {base:.0f}, each token {step:.2f} x as long"


def change_of(question: Question, tried: Tried[Found], best: Simulated | None) -> a.PlanChange:
    """A changed question's answer beside the present one's."""
    change, found = tried
    if not found.plans:
        return no_plan(change, found.timed_out)
    plan = found.plans[0]
    gain = None if best is None else 1.0 - plan.objective / best.objective
    if gain is not None and not change.may_hurt:
        gain = max(0.0, gain)
    words = f"{plan.frame.label}, {weights_words(plan)}"
    return a.PlanChange(change.words, plan.objective, gain, words, change.flags)


def no_plan(change: Change, timed_out: bool) -> a.PlanChange:
    """A changed question that has no plan, or none was found."""
    return a.PlanChange(change.words, None, None, "no plan found in time" if timed_out else "no plan", change.flags)


def words_of(
    question: Question, best: Simulated, plans: Sequence[Simulated], limits: tuple[a.PlanLimit, ...]
) -> tuple[str, ...]:
    """The plan in sentences: what to run, what it reaches, what binds, how sure that is."""
    scenario, frame = best.scenario, best.frame
    replicas = f"{frame.family.replicas} replicas of " if frame.family.replicas > 1 else ""
    users = f"{frame.users:.0f} user{'s' if frame.users > 1 else ''}"
    away = where_words(best)
    run = f"run {replicas}{scenario.sharding} with {weights_words(best)} weights and a {scenario.numerics.kv} KV cache"
    run += f" shared out over {scenario.sharding.cp} ranks" if scenario.sharding.cp > 1 else ""
    chunk = scenario.engine.max_batched_tokens
    pieces = "" if chunk == question.engine.max_batched_tokens else f", prompts in steps of {chunk:,} tokens"
    each = " each" if frame.family.replicas > 1 else ""
    first = f"{run}, {users} at once{each}{pieces}" + (f"; {away}" if away else "")
    first += f", {_begun(scenario.placement.ahead)}" if scenario.placement.streams else ""
    binding = [limit.name for limit in limits if limit.binds]
    second = f"what binds: {', '.join(binding)}" if binding else "no limit binds: the devices' own speed does"
    ties = ties_words([p.objective for p in plans], best.objective)
    return tuple(w for w in (first, _guessing(question, best), second, ties) if w)


def ties_words(goals: Sequence[float], best: float) -> str:
    """How many other plans are too close to call."""
    ties = sum(1 <= goal / best < TIE for goal in goals)
    return (
        f"{ties} other plan{'s' if ties != 1 else ''} within {TIE - 1:.0%}: measure before you choose" if ties else ""
    )


def _begun(ahead: int) -> str:
    return f"copies begun {ahead} copied layer{'s' * (ahead > 1)} ahead" if ahead else "each layer waits for its copy"


def _guessing(question: Question, best: Simulated) -> str:
    """What becomes of the draft model, where one was given."""
    draft, extras = question.extras.draft, best.scenario.extras
    if draft is None:
        return ""
    chance = f"guesses that are right {question.extras.acceptance:.0%} of the time"
    if not extras.draft_length and question.pins.draft_length == 0:
        return f"{draft.name} is left out, as asked"
    if not extras.draft_length:
        return f"leave {draft.name} out: at {chance} its time and memory cost more than they save"
    tokens = tokens_per_round(extras)
    count = extras.draft_length
    return (
        f"{draft.name} guesses {count} token{'s' * (count > 1)} a round: at {chance} a round yields {tokens:.2g} tokens"
    )


def refute(question: Question, users: float, pace: Estimate) -> str:
    """The measurement that would show a plan's speed to be wrong."""
    told = quantity(pace)
    low, high = (told.low or 0.0) * 1e3, (told.high or 0.0) * 1e3
    return (
        f"serve {users:.0f} client{'s' * (users > 1)} with prompts of {question.prompt:,} and answers of "
        f"{question.output:,} tokens: "
        f"a mean time per output token outside {_ms(low)} to {_ms(high)} ms refutes it (one run in five may)"
    )


def _ms(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def needs(question: Question, found: Found) -> str:
    """What keeps every plan from fitting, where none does."""
    if question.usable_devices() < 1:
        return "the limits of power and money leave not one device"
    least, limits = least_of(question, found.families), question.limits
    tried = f"none of {found.frames:,} combinations of layout, KV format and users keeps all limits"
    if not least.frames:
        taken = min((float(f.layout.least_bytes.min()) for f in found.families), default=float("nan"))
        room = format_gib(question.budget_bytes())
        return f"{tried}: the narrowest layers take at least {format_gib(taken)} of the {room} of a device"
    words = [f"{tried}; {least.frames:,} would fit and keep the quality"]
    if limits.pace_s is not None and least.pace_s > limits.pace_s:
        words.append(f"but a token takes at least {format_seconds(least.pace_s)}")
    if limits.first_s is not None and least.first_s > limits.first_s:
        words.append(f"but the first token takes at least {format_seconds(least.first_s)}")
    return ", ".join(words)


def value_of(question: Question, plan: Simulated, goal: Goal) -> float:
    """What a plan makes of any goal, smaller is better."""
    row = row_of(question, plan)
    match goal:
        case Goal.LATENCY:
            return row.request.value or math.inf
        case Goal.COST:
            return row.money_per_million_tokens or math.inf
        case Goal.ENERGY:
            return row.joules_per_token or math.inf
    return float(plan.of_all.time_s)


STEPS = ("decode step", "step with prompts")


def timeline_of(plan: Simulated) -> tuple[a.PlanSpan, ...]:
    """What computes and what is copied in a decode step and in one that takes prompts in, layers by alternative.

    Layers run one after another; copies run beside them, but for experts fetched after the router has chosen. What the
    program is priced with: the simulator adds what imperfect overlap costs.
    """
    frame, spans = plan.frame, []
    layout = frame.family.layout
    for kind, step in enumerate(STEPS):
        computing, prefetched, late = (s[:, :, frame.at] for s in layout.seconds(kind))
        now = copied = 0.0
        for t in plan.taken:
            index = layout.alternatives.index(t.alternative)
            label = f"{t.layers} x {t.alternative.label}"
            run, beside, behind = (t.layers * float(each[index, t.block]) for each in (computing, prefetched, late))
            spans.append(a.PlanSpan(step, "computing", label, now, run + behind))
            now += run + behind
            if beside:
                spans.append(a.PlanSpan(step, "copies", label, copied, beside))
                copied += beside
        outside = float(layout.outside(kind)[:, frame.at].sum())
        spans.append(a.PlanSpan(step, "computing", "embedding, head, hand-overs", now, outside))
    return tuple(spans)
