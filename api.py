"""The public functions: questions in, answers out. The command line and notebooks call these and nothing else."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from . import DATA_DATE
from .calibrate import store
from .calibrate.transfer import Calibrations
from .dtypes import DType
from .errors import InputError
from .hwspecs.device import Device, Fact, Fleet, Host, Kind, Source
from .hwspecs.load import fleet_of, load, names
from .hwspecs.load import load_fleet as _load_fleet
from .simulator import answers as a
from .simulator.estimate import Estimate, Tier, total
from .simulator.explain import Row, cause, known, operator_class, quantity, rate, rows_of, sentence, shares
from .simulator.inference import decode_step, prefill, swap_out
from .simulator.liveness import peaks
from .simulator.lowering.decoder import lower
from .simulator.memory import Ledger, kv_cache_bytes, peak_steps
from .simulator.planner import fit
from .simulator.planner.domain import precisions
from .simulator.planner.fit import Candidate, Verdict, Wishes
from .simulator.report.contract import envelope
from .simulator.scenario import Engine, Numerics, Phase, Scenario, Sharding, Step
from .simulator.schedule import price
from .simulator.workload import zoo
from .simulator.workload.model import Model

DEFAULT_CONTEXT = 8192
COUNTS = (1, 2, 4, 8)  # devices of one kind tried for the reverse question
CALIBRATION_VARIABLE = "ROOFPLAN_CALIBRATION"


class Load(NamedTuple):
    """How much is asked of a model: users at once, their context and their prompt (None: the default)."""

    batch: int = 1
    context: int | None = None
    prompt: int | None = None


def load_model(name: str) -> Model:
    """A model from a bundled name, a config.json (or its folder) or a GGUF file."""
    return zoo.resolve(name)


def load_fleet(
    gpu: str | None = None,
    *,
    host: str | None = None,
    ram_bytes: float | None = None,
    vram_bytes: float | None = None,
    bandwidth_bytes_per_s: float | None = None,
) -> tuple[Fleet, tuple[str, ...]]:
    """The hardware and notes about how it was found: by name or file, as an unnamed card, or this machine's own."""
    if vram_bytes is not None or bandwidth_bytes_per_s is not None:
        if gpu is not None:
            raise InputError("names a device already", key="--vram/--bandwidth", remedy="drop them or --gpu")
        return _unnamed(vram_bytes, bandwidth_bytes_per_s, host, ram_bytes)
    if gpu is None:
        from .hwspecs.detect import detect

        found = detect(ram_bytes)
        return found.fleet, found.notes
    return _load_fleet(gpu, host, ram_bytes), ()


def _unnamed(
    vram: float | None, bandwidth: float | None, host: str | None, ram: float | None
) -> tuple[Fleet, tuple[str, ...]]:
    """A card known by memory and bandwidth only; its arithmetic is taken in the proportion of the RTX 4090."""
    if vram is None or bandwidth is None:
        missing = "--vram" if vram is None else "--bandwidth"
        raise InputError("missing", key=missing, remedy="an unnamed card needs both: --vram 24GB --bandwidth 1TB/s")
    like = load(Device, "rtx-4090")
    stated = Source("stated on the command line", "the asker", "--vram and --bandwidth")
    scale = bandwidth / like.bandwidth_bytes_per_s.value

    def said(value: float, kind: Kind = Kind.ASSUMED) -> Fact:
        return Fact(value, "stated", kind)

    device = dataclasses.replace(
        like,
        key="unnamed",
        file="--vram/--bandwidth",
        name="unnamed card",
        sources={"stated": stated},
        architecture="unknown",
        architecture_class="unknown",
        capacity_bytes=said(vram, Kind.DATASHEET),
        bandwidth_bytes_per_s=said(bandwidth, Kind.DATASHEET),
        peak_dense_flops_per_s={k: said(v.value * scale) for k, v in like.peak_dense_flops_per_s.items()},
    )
    note = "arithmetic of the unnamed card assumed in proportion to its bandwidth, as on an RTX 4090"
    return fleet_of(device, 1, load(Host, host) if host else None, ram), (note,)


def load_calibrations(fleet: Fleet, path: str | None = None) -> Calibrations:
    """The calibrations for a fleet: a file or folder (argument, else ROOFPLAN_CALIBRATION), then the user's, then ours.

    Earlier places win where they have the kernel for the device.
    """
    places = [Path(p) for p in (path or os.environ.get(CALIBRATION_VARIABLE),) if p]
    user = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "roofplan" / "calibrations"
    places += [user] if user.is_dir() else []
    files: list[Path] = []
    for place in places:
        if place.is_dir():
            files += sorted(place.glob("*.json"))
        elif place.is_file():
            files.append(place)
        else:
            raise InputError("no such file or folder", file=str(place), key="calibration")
    known_ = [c for file in [*files, *store.bundled_files()] for c in store.read(file)]
    return Calibrations(fleet, tuple(known_))


def make_scenario(
    model: Model,
    fleet: Fleet,
    *,
    batch: int = 1,
    context: int | None = None,
    prompt: int | None = None,
    numerics: Numerics | None = None,
    sharding: Sharding | None = None,
    engine: Engine | None = None,
) -> Scenario:
    """A scenario with the defaults: one user, 8k of context (less where the model ends earlier), all of it prompt."""
    context = context if context is not None else min(DEFAULT_CONTEXT, model.max_context)
    prompt = prompt if prompt is not None else context
    if prompt > context:
        raise InputError(f"the prompt cannot be longer than the context of {context}", key="--prompt", value=prompt)
    chosen = numerics or precisions(model)[0]
    return Scenario(model, fleet, batch, context, prompt, chosen, sharding or Sharding(), engine=engine or Engine())


def ask_fit(scenario: Scenario, calibrations: Calibrations, wishes: Wishes | None = None) -> a.Report:
    """Does it fit, at which precision and layout, how far can it grow, how fast is it, what would help."""
    from .simulator.remedies import remedies

    wishes = wishes or Wishes()
    plan, chosen, (step, operators) = fit.choose(scenario, wishes, calibrations)
    decided = chosen.scenario
    rows, parts = rows_of(operators, calibrations), shares(operators)
    reach = _reach(chosen)
    answer = a.FitAnswer(
        verdict=chosen.verdict.label,
        needed=_needed(chosen.memory),
        capacity_bytes=decided.fleet.usable_bytes(),
        budget_bytes=fit.budget_bytes(decided),
        max_context=reach[0],
        max_users=reach[1],
        limits_hold=max(chosen.verdict, Verdict.TIGHT).label,
        swap_bytes=float(kv_cache_bytes(decided.but(batch=1)).max()),
        swap=_swap(decided, calibrations),
        prefill=quantity(prefill(decided, calibrations)),
        decode_step=quantity(step),
        tokens_per_s_user=rate(step, 1.0, "tokens/s"),
        tokens_per_s_total=rate(step, int(decided.batch), "tokens/s"),
        binds=sentence("decode", parts),
        shares=parts,
        plan_status=plan.proof.status.value,
        plan_candidates=plan.proof.candidates,
        plan_gap=plan.proof.gap,
        options=tuple(_options(scenario, wishes, chosen)),
        remedies=remedies(chosen, wishes, calibrations),
        next_step=_next_step(chosen),
    )
    return _report(decided, wishes, answer, evidence_of(step, rows, calibrations))


def ask_fit_models(
    models: list[Model],
    fleet: Fleet,
    calibrations: Calibrations,
    wishes: Wishes | None = None,
    load_: Load | None = None,
) -> a.FitList:
    """Every model of a list on one fleet, in the order given."""
    scenarios = (_at_load(m, fleet, load_ or Load()) for m in models)
    return a.FitList(tuple(_fit_row(s, calibrations, wishes or Wishes()) for s in scenarios))


def ask_fit_devices(
    model: Model, wishes: Wishes | None = None, calibration: str | None = None, load_: Load | None = None
) -> a.FitList:
    """The reverse question: on which bundled device, and how many of it, does the model surely fit; smallest first."""
    rows = []
    for device in sorted((load(Device, n) for n in names(Device)), key=lambda d: d.capacity_bytes.value):
        fleet = fleet_of(device)
        scenario = _at_load(model, fleet, load_ or Load())
        found = fit.fewest_devices(scenario, wishes or Wishes(), COUNTS)
        grown = fleet.sized(found[0] if found else COUNTS[-1])
        asked = Wishes(weights=found[1].weights, kv=found[1].kv) if found else wishes or Wishes()
        rows.append(_fit_row(scenario.but(fleet=grown), load_calibrations(grown, calibration), asked))
    return a.FitList(tuple(rows))


def _swap(scenario: Scenario, calibrations: Calibrations) -> a.Quantity:
    """Time to move one user's KV cache to host memory; there is no other memory where the device shares the host's."""
    if scenario.fleet.device.unified_memory:
        return a.Quantity(None, None, None, "s", "the device computes in host memory")
    return quantity(swap_out(scenario, calibrations))


def _at_load(model: Model, fleet: Fleet, load_: Load) -> Scenario:
    """The scenario of one model of a list: contexts are cut to what the model was made for."""
    context, prompt = (None if n is None else min(n, model.max_context) for n in (load_.context, load_.prompt))
    return make_scenario(model, fleet, batch=load_.batch, context=context, prompt=prompt)


def _fit_row(scenario: Scenario, calibrations: Calibrations, wishes: Wishes) -> a.FitRow:
    _, chosen, (step, operators) = fit.choose(scenario, wishes, calibrations)
    decided = chosen.scenario
    context, users = _reach(chosen)
    parts = shares(operators)
    return a.FitRow(
        model=decided.model.name,
        device=decided.fleet.device.key,
        device_count=decided.fleet.count,
        verdict=chosen.verdict.label,
        weights=decided.numerics.weights.name,
        kv=decided.numerics.kv.value,
        layout=_layout(decided.sharding),
        needed=_needed(chosen.memory),
        max_context=context,
        max_users=users,
        prefill=quantity(prefill(decided, calibrations)),
        tokens_per_s_user=rate(step, 1.0, "tokens/s"),
        binds=sentence("decode", parts),
        weakest=step.weakest_tier().label,
        note=parts[0].name if parts else "",
    )


def _reach(chosen: Candidate) -> tuple[int, int]:
    """Largest context and most users with the verdict the scenario itself has (0 where nothing fits)."""
    level = max(chosen.verdict, Verdict.TIGHT)
    return fit.max_context(chosen.scenario, level), fit.max_users(chosen.scenario, level)


def _options(scenario: Scenario, wishes: Wishes, chosen: Candidate) -> Iterator[a.Option]:
    """For every precision of the domain the layout with the best verdict, with least memory among equals."""
    for numerics in precisions(scenario.model, wishes.weights, wishes.kv):
        if numerics == chosen.scenario.numerics:
            best = chosen
        else:
            ranked = fit.candidates(scenario, numerics, wishes)
            best = max(ranked, key=lambda c: (c.verdict, -float(np.max(c.memory.total_bytes()))))
        yield a.Option(
            numerics.weights.name,
            numerics.kv.value,
            _layout(best.scenario.sharding),
            best.verdict.label,
            _needed(best.memory),
        )


def _next_step(chosen: Candidate) -> str:
    model, gpu = chosen.scenario.model.origin, chosen.scenario.fleet.label
    name = chosen.scenario.model.name if model == "bundled" else model
    if chosen.verdict is Verdict.NO:
        return f"roofplan memory {name} --gpu {gpu}   (what takes the room)"
    return f"roofplan explain {name} --gpu {gpu} --batch {chosen.scenario.batch}   (where the time goes)"


def ask_ledger(scenario: Scenario, wishes: Wishes | None = None, calibrations: Calibrations | None = None) -> a.Report:
    """Bytes by class on the fullest device, at the precision and layout `fits` chooses unless pinned."""
    calibrations = calibrations or load_calibrations(scenario.fleet)
    wishes = wishes or Wishes()
    chosen = fit.choose(scenario, wishes, calibrations).candidate
    decided, memory = chosen.scenario, chosen.memory
    stage = memory.worst_stage()

    def at(values: object) -> float:
        return float(np.broadcast_to(np.asarray(values, float), (decided.sharding.pp,))[stage])

    rows = tuple(
        a.MemoryRow(
            e.tensor_class.value, e.tier.value, known(at(e.bytes), at(e.low_bytes), at(e.high_bytes), "B"), e.basis
        )
        for e in memory.entries
    )
    is_last = stage == decided.sharding.pp - 1
    largest = max((peaks(lower(decided, s))[is_last] for s in peak_steps(decided)), key=lambda p: float(p.bytes))
    allocated, reserved = at(memory.allocated_bytes()), at(memory.reserved_bytes())
    answer = a.MemoryAnswer(
        verdict=chosen.verdict.label,
        stage=stage,
        stages=decided.sharding.pp,
        rows=rows,
        allocated=known(allocated, allocated, allocated, "B"),
        reserved=known(reserved, reserved, reserved, "B"),
        nvidia_smi=known(at(memory.total_bytes()), at(memory.low_bytes()), at(memory.high_bytes()), "B"),
        capacity_bytes=decided.fleet.usable_bytes(),
        budget_bytes=fit.budget_bytes(decided),
        activation_peak_at=largest.at,
        activation_live=tuple(f"{b.name}: {float(b.bytes):.0f} B" for b in largest.live),
    )
    return _report(decided, wishes, answer, None)


def explain_step(
    scenario: Scenario,
    phase: Phase = Phase.DECODE,
    wishes: Wishes | None = None,
    calibrations: Calibrations | None = None,
) -> a.Report:
    """One step operator by operator, at the precision and layout `fits` chooses unless pinned."""
    calibrations = calibrations or load_calibrations(scenario.fleet)
    wishes = wishes or Wishes()
    decided = fit.choose(scenario, wishes, calibrations).plan.scenario
    step = decode_step(decided) if phase is Phase.DECODE else _first_chunk(decided)
    operators = price(lower(decided, step), decided, calibrations)
    rows, parts = rows_of(operators, calibrations), shares(operators)
    whole = total(row.time for row in rows)
    answer = a.ExplainAnswer(
        phase=phase.value,
        rows=tuple(_explain_row(row, float(whole.time_s)) for row in rows),
        total=quantity(whole),
        binds=sentence(phase.value, parts),
        shares=parts,
        peak_flops_per_s=decided.fleet.device.peak_flops_per_s(DType.BF16).value,
        bandwidth_bytes_per_s=decided.fleet.device.bandwidth_bytes_per_s.value,
    )
    return _report(decided, wishes, answer, evidence_of(whole, rows, calibrations))


def _first_chunk(scenario: Scenario) -> Step:
    """The first chunk of every user's prompt, as an engine would batch it."""
    return Step(Phase.PREFILL, scenario.batch, min(int(scenario.prompt), scenario.engine.max_batched_tokens), 0)


def _explain_row(row: Row, whole: float) -> a.ExplainRow:
    compute, memory, floor, link = (float(np.sum(t)) for t in row.time.terms.stack())
    return a.ExplainRow(
        operator_class=operator_class(row.table),
        operator=row.label,
        layer=row.layer,
        kernel=str(row.table.kernel),
        repetitions=row.repetitions,
        flops=row.flops,
        bytes=row.traffic_bytes,
        time=quantity(row.time),
        compute_s=compute,
        memory_s=memory,
        floor_s=floor,
        link_s=link,
        bound=cause(row.table, row.time.bound()),
        share=float(row.time.time_s) / whole,
        tier=row.resolved.tier.label,
        note=row.resolved.reason,
    )


def evidence_of(time: Estimate, rows: list[Row], calibrations: Calibrations) -> a.Evidence:
    """What a time rests on: tiers by share, calibrations with hashes, hardware sources."""
    whole = max(float(np.sum(time.time_s)), 1e-300)
    used: dict[tuple[str, Tier, str], float] = {}
    for row in rows:
        key = (row.resolved.calibration.id, row.resolved.tier, row.resolved.reason)
        used[key] = used.get(key, 0.0) + float(np.sum(row.time.time_s))
    everything = sum(used.values()) or 1.0
    files = {row.resolved.calibration.id: row.resolved.calibration.file for row in rows}
    device = calibrations.fleet.device
    return a.Evidence(
        weakest=time.weakest_tier().label,
        tiers=tuple(a.TierShare(tier.label, share) for tier, share in time.evidence().items()),
        calibrations=tuple(
            a.CalibrationUse(id_, tier.label, seconds / everything, reason, store.digest(Path(files[id_])))
            for (id_, tier, reason), seconds in sorted(used.items(), key=lambda item: -item[1])
        ),
        extrapolated_share=float(np.sum(time.extrapolated_s)) / whole,
        sources=tuple(f"{s.publisher}: {s.title}" for s in device.sources.values()),
        data_date=DATA_DATE,
    )


def _needed(memory: Ledger) -> a.Quantity:
    low, usual, high = (float(np.max(f())) for f in (memory.low_bytes, memory.total_bytes, memory.high_bytes))
    return known(usual, low, high, "B")


def _layout(sharding: Sharding) -> a.Layout:
    return a.Layout(sharding.tp, sharding.pp, sharding.devices)


def question_of(scenario: Scenario, wishes: Wishes) -> a.Question:
    """The scenario as the JSON contract shows it."""
    pinned = tuple(name for name, value in wishes._asdict().items() if value is not None)
    weights = scenario.numerics.weights
    return a.Question(
        model=scenario.model.name,
        model_origin=scenario.model.origin,
        device=scenario.fleet.device.key,
        device_count=scenario.fleet.count,
        host_memory_bytes=scenario.fleet.host_memory_bytes,
        batch=int(scenario.batch),
        context=int(scenario.context),
        prompt=int(scenario.prompt),
        weights=weights.name,
        bits_per_weight=weights.bits_per_weight,
        kv=scenario.numerics.kv.value,
        layout=_layout(scenario.sharding),
        memory_utilization=scenario.engine.memory_utilization,
        max_batched_tokens=scenario.engine.max_batched_tokens,
        routing=f"{scenario.engine.routing.value} {scenario.engine.routing_alpha:g}",
        pinned=pinned,
    )


def _report(scenario: Scenario, wishes: Wishes, answer: a.Answer, evidence: a.Evidence | None) -> a.Report:
    warnings = []
    if int(scenario.context) > scenario.model.max_context:
        limit = f"{scenario.model.name} was made for contexts up to {scenario.model.max_context:,}"
        warnings.append(f"context {int(scenario.context):,} is longer: {limit}")
    if evidence is not None and evidence.extrapolated_share > 0.05:
        warnings.append(
            f"{evidence.extrapolated_share:.0%} of the time lies outside the range its calibration was fitted on"
        )
    return envelope(answer, question_of(scenario, wishes), evidence, tuple(warnings))
