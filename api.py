"""The public functions: questions in, answers out. The command line and notebooks call these and nothing else."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .calibrate import store
from .calibrate.transfer import Calibrations
from .errors import InputError, UnknownNameError
from .hwspecs.device import Device, Fact, Fleet, Host, Kind, Source
from .hwspecs.load import fleet_of, load, names, with_bandwidth, with_drive
from .hwspecs.load import load_fleet as _load_fleet
from .hwspecs.unified import notes as shared_memory_notes
from .simulator import answers as a
from .simulator.estimate import total
from .simulator.explain import known, quantity, rate, rows_of, sentence, shares
from .simulator.inference import Decoded, prefill, swap_out
from .simulator.liveness import peaks
from .simulator.lowering.decoder import lower
from .simulator.memory import ALLOCATED, RESERVED, TensorClass, peak_steps
from .simulator.offload import StepCosts, step_time
from .simulator.planner import fit
from .simulator.planner.domain import precisions, takes
from .simulator.planner.fit import Candidate, Verdict, Wishes
from .simulator.report.account import UNNAMED, evidence_of, explain_row, flags_of, layout_of, needed, question_of, unfit
from .simulator.report.contract import envelope
from .simulator.report.placement_account import placement_of, words
from .simulator.scenario import Engine, Numerics, Phase, Scenario, Sharding
from .simulator.schedule import COMPOSITION_LOG_SD, price
from .simulator.steps import decode_step, prefill_step
from .simulator.tensor_bytes import kv_cache_bytes
from .simulator.workload import zoo
from .simulator.workload.model import Model

if TYPE_CHECKING:
    from .simulator.workload.network import Pipeline
    from .simulator.workload.pipelines import Size

DEFAULT_CONTEXT = 8192
COUNTS = (1, 2, 4, 8)  # devices of one kind tried for the reverse question


class Load(NamedTuple):
    """How much is asked of a model: users at once, their context and their prompt (None: the default)."""

    batch: int = 1
    context: int | None = None
    prompt: int | None = None


def load_model(name: str) -> Model:
    """A model that writes token by token: a bundled name, a file or folder (config.json, GGUF, safetensors), or a name
    that Ollama, LM Studio or the Hugging Face cache keeps on this machine."""
    found = load_any(name)
    if isinstance(found, Model):
        return found
    remedy = f"ask `roofplan fits {name}` (from Python: load_any and one_pass.ask_pass)"
    raise InputError("runs as one pass: it writes no tokens and keeps no cache", key="model", value=name, remedy=remedy)


def load_any(name: str, size: Size | None = None) -> Model | Pipeline:
    """The same, or a model that runs as one pass: an encoder, or a pipeline that makes images or clips of a `size`."""
    return zoo.resolve(name, size)


def load_fleet(
    gpu: str | None = None,
    *,
    host: str | None = None,
    ram_bytes: float | None = None,
    vram_bytes: float | None = None,
    bandwidth_bytes_per_s: float | None = None,
    ram_bytes_per_s: float | None = None,
    nvme: str | None = None,
) -> tuple[Fleet, tuple[str, ...]]:
    """The hardware and notes about how it was found: by name or file, as an unnamed card, or this machine's own.

    With a device that shares its machine's memory `vram_bytes` is the memory of that machine. `ram_bytes_per_s` is the
    bandwidth of the host's memory, `nvme` its drive: a rate such as 7GB/s, or a name.
    """
    fleet, notes = _named(gpu, host, ram_bytes, vram_bytes, bandwidth_bytes_per_s)
    return with_drive(with_bandwidth(fleet, ram_bytes_per_s), nvme), notes


def _named(
    gpu: str | None, host: str | None, ram_bytes: float | None, vram_bytes: float | None, bandwidth: float | None
) -> tuple[Fleet, tuple[str, ...]]:
    if gpu is not None:
        if bandwidth is not None:
            raise InputError("--gpu names a device already", key="--vram/--bandwidth", remedy="drop them or --gpu")
        fleet = _load_fleet(gpu, host, ram_bytes, vram_bytes)
        return fleet, shared_memory_notes(fleet)
    if vram_bytes is not None or bandwidth is not None:
        return _unnamed(vram_bytes, bandwidth, host, ram_bytes)
    from .hwspecs.detect import detect

    found = detect(ram_bytes)
    return found.fleet, found.notes


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
        file=UNNAMED,
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


def load_calibrations(fleet: Fleet, path: str | None = None, engine: str = "vllm") -> Calibrations:
    """The calibrations for a fleet and an engine: from a file or folder, then the user's, then ours.

    The file or folder is the argument, else ROOFPLAN_CALIBRATION; earlier places win where they have the kernel.
    """
    return Calibrations(fleet, store.entries(path), engine)


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
    choice = fit.choose(scenario, wishes, calibrations)
    plan, chosen, (step, operators) = choice
    decided = chosen.scenario
    parts = shares(operators)
    reach, fits = _reach(chosen), chosen.verdict is not Verdict.NO
    answer = a.FitAnswer(
        verdict=chosen.verdict.label,
        needed=needed(chosen.memory),
        capacity_bytes=decided.fleet.usable_bytes(),
        budget_bytes=fit.budget_bytes(decided),
        max_context=reach[0],
        max_users=reach[1],
        limits_hold=chosen.verdict.label,
        swap_bytes=float(kv_cache_bytes(decided.but(batch=1)).max()),
        swap=_swap(decided, calibrations) if fits else unfit("s"),
        prefill=quantity(prefill(decided, calibrations)) if fits else unfit("s"),
        decode_step=quantity(step) if fits else unfit("s"),
        tokens_per_s_user=rate(step, 1.0, "tokens/s") if fits else unfit("tokens/s"),
        tokens_per_s_total=rate(step, int(decided.batch), "tokens/s") if fits else unfit("tokens/s"),
        binds=sentence("decode", parts) if fits else "memory",
        shares=parts if fits else (),
        plan_status=plan.proof.status.value,
        plan_candidates=plan.proof.candidates,
        options=tuple(_options(scenario, wishes, choice, calibrations)),
        remedies=remedies(chosen, wishes, calibrations),
        placement=placement_of(decided, chosen.memory),
        next_step=_next_step(chosen, wishes),
    )
    return _report(decided, wishes, answer, evidence_of(step, operators, calibrations) if fits else None)


def ask_fit_models(
    models: list[Model],
    fleet: Fleet,
    calibrations: Calibrations,
    wishes: Wishes | None = None,
    load_: Load | None = None,
    engine: Engine | None = None,
) -> a.Report:
    """Every model of a list on one fleet, in the order given."""
    scenarios = [_at_load(m, fleet, load_ or Load(), engine) for m in models]
    wishes = wishes or Wishes()
    kept = [m.name for m in models if wishes.weights and not takes(m, wishes.weights)]
    free = wishes._replace(weights=None)
    found = [_fit_row(s, calibrations, free if s.model.name in kept else wishes) for s in scenarios]
    decoded = [d for _, d in found if d is not None]
    operators = [priced for d in decoded for priced in d.operators]
    evidence = evidence_of(total(d.step for d in decoded), operators, calibrations) if decoded else None
    told = (f"already quantised, so in their own format: {', '.join(kept)}",) if kept else ()
    rows = tuple(row for row, _ in found)
    known = tuple(f"{m.name}: {warning}" for m in models for warning in m.warnings)
    return envelope(a.FitList(rows), None, evidence, known + _cut_contexts(models, load_ or Load()) + told)


def ask_fit_devices(
    model: Model,
    wishes: Wishes | None = None,
    calibration: str | None = None,
    load_: Load | None = None,
    engine: Engine | None = None,
) -> a.Report:
    """The reverse question: on which bundled device, and how many of it, does the model surely fit; smallest first."""
    wishes, rows = wishes or Wishes(), []
    for device in sorted((load(Device, n) for n in names(Device)), key=lambda d: d.capacity_bytes.value):
        fleet = fleet_of(device)
        scenario = _at_load(model, fleet, load_ or Load(), engine)
        found = fit.fewest_devices(scenario, wishes, COUNTS)
        grown = fleet.sized(found.devices if found else COUNTS[-1])
        asked = wishes._replace(weights=found.numerics.weights, kv=found.numerics.kv) if found else wishes
        rows.append(
            _fit_row(scenario.but(fleet=grown), load_calibrations(grown, calibration, scenario.engine.name), asked)[0]
        )
    return envelope(a.FitList(tuple(rows)), warnings=model.warnings + _cut_contexts([model], load_ or Load()))


def _at_load(model: Model, fleet: Fleet, load_: Load, engine: Engine | None) -> Scenario:
    """The scenario of one model of a list: contexts are cut to what the model was made for."""
    context, prompt = (None if n is None else min(n, model.max_context) for n in (load_.context, load_.prompt))
    return make_scenario(model, fleet, batch=load_.batch, context=context, prompt=prompt, engine=engine)


def _cut_contexts(models: list[Model], load_: Load) -> tuple[str, ...]:
    """What a reader must know where a model ends before the context that was asked for."""
    asked = load_.context or 0
    cut = [f"{m.name} {m.max_context:,}" for m in models if m.max_context < asked]
    return (f"context {asked:,} cut to the model's own limit: {', '.join(cut)}",) if cut else ()


def _fit_row(scenario: Scenario, calibrations: Calibrations, wishes: Wishes) -> tuple[a.FitRow, Decoded | None]:
    """A line of a list, and the decode step behind it where there is one."""
    try:
        _, chosen, decoded = fit.choose(scenario, wishes, calibrations)
    except fit.NoLayoutError as error:
        return _row_without_layout(scenario, wishes, error.problem), None
    decided, fits, (step, operators) = chosen.scenario, chosen.verdict is not Verdict.NO, decoded
    context, users = _reach(chosen)
    parts = shares(operators)
    row = a.FitRow(
        model=decided.model.name,
        device=decided.fleet.device.key,
        device_count=decided.fleet.count,
        verdict=chosen.verdict.label,
        weights=decided.numerics.weights.name,
        kv=decided.numerics.kv.value,
        layout=layout_of(decided.sharding),
        batch=int(decided.batch),
        context=int(decided.context),
        needed=needed(chosen.memory),
        max_context=context,
        max_users=users,
        prefill=quantity(prefill(decided, calibrations)) if fits else unfit("s"),
        tokens_per_s_user=rate(step, 1.0, "tokens/s") if fits else unfit("tokens/s"),
        binds=sentence("decode", parts) if fits else "memory",
        weakest=step.weakest_tier().label if fits else "",
        note=parts[0].name if fits else "memory",
        placement=words(decided.placement),
    )
    return row, decoded if fits else None


def _row_without_layout(scenario: Scenario, wishes: Wishes, problem: str) -> a.FitRow:
    """The row of a model that the pinned layout cannot cut."""
    numerics = precisions(scenario.model, wishes.weights, wishes.kv)[0]
    none = a.Quantity(None, None, None, "B", problem)
    return a.FitRow(
        model=scenario.model.name,
        device=scenario.fleet.device.key,
        device_count=scenario.fleet.count,
        verdict=Verdict.NO.label,
        weights=numerics.weights.name,
        kv=numerics.kv.value,
        layout=layout_of(Sharding(wishes.tp or 1, wishes.pp or 1, wishes.ep or 1, cp=wishes.cp or 1)),
        batch=int(scenario.batch),
        context=int(scenario.context),
        needed=none,
        max_context=0,
        max_users=0,
        prefill=none._replace(unit="s"),
        tokens_per_s_user=none._replace(unit="tokens/s"),
        binds=problem,
        weakest="",
        note="layout",
        placement="",
    )


def _swap(scenario: Scenario, calibrations: Calibrations) -> a.Quantity:
    """Time to move one user's KV cache to host memory; there is no other memory where the device shares the host's."""
    if scenario.fleet.device.unified_memory:
        return a.Quantity(None, None, None, "s", "the device computes in host memory")
    return quantity(swap_out(scenario, calibrations))


def _reach(chosen: Candidate) -> tuple[int, int]:
    """Largest context and most users with the verdict the scenario itself has (0 where it does not fit)."""
    level = chosen.verdict
    if level is Verdict.NO:
        return 0, 0
    return fit.max_context(chosen.scenario, level), fit.max_users(chosen.scenario, level)


def _options(scenario: Scenario, wishes: Wishes, chosen: fit.Choice, calibrations: Calibrations) -> Iterator[a.Option]:
    """For every precision of the domain what `fits` would answer if it were pinned."""
    for numerics in precisions(scenario.model, wishes.weights, wishes.kv):
        pinned = wishes._replace(weights=numerics.weights, kv=numerics.kv)
        own = numerics == chosen.plan.scenario.numerics
        _, best, (step, _) = chosen if own else fit.choose(scenario, pinned, calibrations)
        fits = best.verdict is not Verdict.NO
        yield a.Option(
            weights=numerics.weights.name,
            kv=numerics.kv.value,
            layout=layout_of(best.scenario.sharding),
            verdict=best.verdict.label,
            needed=needed(best.memory),
            max_users=fit.max_users(best.scenario, best.verdict) if fits else 0,
            tokens_per_s_user=rate(step, 1.0, "tokens/s") if fits else unfit("tokens/s"),
            placement=words(best.scenario.placement),
        )


def _next_step(chosen: Candidate, wishes: Wishes) -> str:
    again = flags_of(chosen.scenario, wishes)
    if chosen.verdict is Verdict.NO:
        return f"roofplan memory {again}   (what takes the room)"
    return f"roofplan explain {again}   (where the time goes)"


def ask_ledger(scenario: Scenario, wishes: Wishes | None = None, calibrations: Calibrations | None = None) -> a.Report:
    """Bytes by class on the fullest device, at the precision and layout `fits` chooses unless pinned."""
    calibrations = calibrations or load_calibrations(scenario.fleet, engine=scenario.engine.name)
    wishes = wishes or Wishes()
    chosen = fit.choose(scenario, wishes, calibrations).candidate
    decided, memory = chosen.scenario, chosen.memory
    stage = memory.worst_stage()

    def at(values: object) -> float:
        return float(np.broadcast_to(np.asarray(values, float), (decided.sharding.pp,))[stage])

    def ranged(classes: tuple[TensorClass, ...]) -> a.Quantity:
        usual, low, high = (at(sum_(classes)) for sum_ in (memory.total_bytes, memory.low_bytes, memory.high_bytes))
        return known(usual, low, high, "B")

    rows = tuple(
        a.MemoryRow(
            e.tensor_class.value, e.tier.value, known(at(e.bytes), at(e.low_bytes), at(e.high_bytes), "B"), e.basis
        )
        for e in memory.entries
    )
    is_last = stage == decided.sharding.pp - 1
    largest = max((peaks(lower(decided, s))[is_last] for s in peak_steps(decided)), key=lambda p: float(p.bytes))
    answer = a.MemoryAnswer(
        verdict=chosen.verdict.label,
        stage=stage,
        stages=decided.sharding.pp,
        rows=rows,
        allocated=ranged(ALLOCATED),
        reserved=ranged(RESERVED),
        nvidia_smi=ranged(tuple(TensorClass)),
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
    calibrations = calibrations or load_calibrations(scenario.fleet, engine=scenario.engine.name)
    wishes = wishes or Wishes()
    chosen = fit.choose(scenario, wishes, calibrations).candidate
    decided = chosen.scenario
    step = decode_step(decided) if phase is Phase.DECODE else prefill_step(decided)
    if decided.placement.stretches:
        operators = step_time(StepCosts(decided, step, calibrations)).operators
    else:
        operators = price(lower(decided, step), decided, calibrations)
    rows, parts = rows_of(operators, calibrations), shares(operators)
    whole = total(row.time for row in rows).displaced(COMPOSITION_LOG_SD)
    answer = a.ExplainAnswer(
        phase=phase.value,
        step_tokens=float(np.asarray(step.sequences, float) * np.asarray(step.new_tokens, float)),
        rows=tuple(explain_row(row, float(whole.time_s), decided.fleet.device) for row in rows),
        total=quantity(whole),
        binds=sentence(phase.value, parts),
        shares=parts,
        bandwidth_bytes_per_s=decided.fleet.device.bandwidth_bytes_per_s.value,
    )
    report = _report(decided, wishes, answer, evidence_of(whole, operators, calibrations))
    if chosen.verdict is not Verdict.NO:
        return report
    return report._replace(warnings=(*report.warnings, "it does not fit: times are of a device with room enough"))


def ask_serve(
    scenario: Scenario, calibrations: Calibrations, wishes: Wishes | None = None, *, alike: bool = False
) -> a.Report:
    """Steady use by `batch` clients whose prompts have `prompt` tokens and whose answers fill the rest of the context.

    Precision and layout are those `fits` chooses for all clients at once, or for one where all do not fit. `alike`: all
    requests have these very lengths.
    """
    from .simulator.report import serve_account
    from .simulator.serving import operators_of, serve

    wishes, load = serve_account.wishes_of(scenario, wishes or Wishes()), serve_account.load_of(scenario, alike)
    chosen = fit.choose(scenario, wishes, calibrations).candidate
    if chosen.verdict is Verdict.NO:
        chosen = fit.choose(scenario.but(batch=1), wishes, calibrations).candidate
    decided = chosen.scenario.but(batch=scenario.batch)
    if chosen.verdict is Verdict.NO:
        return _report(decided, wishes, serve_account.refused(chosen, load, _next_step(chosen, wishes)), None)
    served = serve(decided, load, calibrations)
    decoding, spent = operators_of(decided, load, served, calibrations)
    answer = serve_account.answer_of(decided, chosen.verdict, load, served, decoding, wishes)
    return _report(decided, wishes, answer, evidence_of(served.time_per_output_token, spent, calibrations))


def ask_validation(
    evidence: str = "anchors",
    *,
    records: str | os.PathLike[str] | None = None,
    devices: Sequence[str] = (),
    kernels: Sequence[str] = (),
    engines: Sequence[str] = (),
    max_mape: Mapping[str, float] | None = None,
    max_median: Mapping[str, float] | None = None,
    min_coverage: float | None = None,
    regimes: bool = False,
    calibration: str | None = None,
) -> a.Report:
    """Predictions beside measurements (anchors, silicon, transferred, serving, or a record file), held to bounds."""
    from .calibrate import bounds
    from .simulator.report import validation

    limits = (
        *bounds.of_mapping(max_mape or {}, bounds.Measure.MAPE, "max_mape"),
        *bounds.of_mapping(max_median or {}, bounds.Measure.MEDIAN, "max_median"),
        *(() if min_coverage is None else (bounds.coverage(min_coverage, "min_coverage"),)),
    )
    if evidence not in set(validation.Evidence):
        raise UnknownNameError("evidence", evidence, validation.Evidence, listing="roofplan validate --help")
    kind, file = validation.Evidence(evidence), None if records is None else Path(records)
    if file is not None and kind is validation.Evidence.ANCHORS:
        kind = validation.Evidence.RECORDS
    if (file is None) == (kind is validation.Evidence.RECORDS):
        raise InputError("a file of measurements and no other evidence, or none", key="records", value=records)
    wanted = validation.wanted(devices, kernels, engines)
    found = validation.validate(validation.Request(kind, wanted, limits, regimes, file, calibration))
    return envelope(found.answer, warnings=found.notes)


def _report(scenario: Scenario, wishes: Wishes, answer: a.Answer, evidence: a.Evidence | None) -> a.Report:
    warnings = list(scenario.model.warnings)
    if int(scenario.context) > scenario.model.max_context:
        limit = f"{scenario.model.name} was made for contexts up to {scenario.model.max_context:,}"
        warnings.append(f"context {int(scenario.context):,} is longer: {limit}")
    if evidence is not None and evidence.extrapolated_share > 0.05:
        warnings.append(
            f"{evidence.extrapolated_share:.0%} of the time lies outside the range its calibration was fitted on"
        )
    return envelope(answer, question_of(scenario, wishes), evidence, tuple(warnings))
