"""Does it fit: the verdict of a ledger, the best layout and precision, how far it can grow, what would help.

The answer enumerates the whole domain: precisions from the most faithful down, every layout for each. The first
precision that surely fits wins; among its layouts the one that decodes fastest. So the choice needs no solver and
its proof is the list of candidates.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple

import numpy as np

from ...dtypes import DType
from ...errors import InputError, UnknownNameError
from ..calibration import CalibrationSet
from ..estimate import Array
from ..inference import Decoded, decode_in_detail
from ..memory import Ledger, activation_peaks, ledger
from ..plan import Plan, Proof, Status
from ..scenario import (
    EXPERTS_HOST,
    EXPERTS_STREAMED,
    KV_HOST,
    KV_REMADE,
    KV_STREAMED,
    LAYERS_HOST,
    LAYERS_KV_STREAMED,
    LAYERS_STREAMED,
    MODES,
    REMAKING,
    STREAMED_KV_HOST,
    Engine,
    Mode,
    Numerics,
    Scenario,
    Sharding,
    shared_ranks,
    why_not_shared,
)
from ..workload.formats import WeightFormat
from .domain import largest, layouts, precisions
from .place import place
from .verdict import Verdict, budget_bytes, room_bytes, verdict, verdicts

__all__ = ["Verdict", "budget_bytes", "room_bytes", "verdict", "verdicts"]

MAX_USERS = 65536
# Peaks of inner and last stage by what they depend on of a layout: tensor- and context-parallel degree.
Activations = dict[tuple[int, int], tuple[Array, Array]]


class NoLayoutError(InputError):
    """The pinned layout does not cut the model."""

    def __init__(self, key: str, value: int, problem: str, remedy: str) -> None:
        super().__init__(problem, key=key, value=value, remedy=remedy)


def _why_no_layout(scenario: Scenario, tp: int, pp: int, ep: int, cp: int) -> tuple[str, int, str, str]:
    """Key, value, problem and remedy of the first reason why tp x pp with ep groups over cp ranks is no layout."""
    fleet, model = scenario.fleet, scenario.model
    if cp > 1 and layouts(model, fleet.count, tp if tp > 1 else None, pp, ep):
        return "--cp", cp, *why_not_shared(model, scenario.engine, tp if tp > 1 else fleet.count)
    if tp * pp > fleet.count:
        remedy = f"ask for --gpu {tp * pp}x{fleet.device.key}"
        return "--tp/--pp", tp * pp, f"that many devices are needed, there are {fleet.count}", remedy
    if pp > model.layers:
        return "--pp", pp, f"{model.name} has only {model.layers} layers", "ask for fewer stages"
    if ep > 1 and not model.has_experts:
        return "--ep", ep, f"{model.name} has no experts", "leave it out"
    if max(tp, ep) > fleet.count:
        return (
            "--ep",
            ep,
            f"that many devices are needed, there are {fleet.count}",
            f"ask for --gpu {ep}x{fleet.device.key}",
        )
    if ep > 1 and not layouts(model, fleet.count, tp if tp > 1 else None, pp, ep):
        what = f"deals no expert out evenly with --tp {tp}" if tp > 1 else "deals no expert out evenly here"
        return "--ep", ep, what, "ask for a divisor of --tp and of the experts"
    whole = next(block for block in model.blocks if not block.cut_by(tp, ep))
    a, width = whole.attention, None if whole.ffn is None else whole.ffn.intermediate
    heads = "" if a is None else f"{a.heads} heads, {a.kv_heads} KV heads and "
    what = f"does not divide {heads}a feed-forward width of {width or 0} evenly"
    return "--tp", tp, what, "ask for another degree"


class Offload(StrEnum):
    """What may leave the device where not everything fits it."""

    NEVER = "never"
    LAYERS = "layers"
    EXPERTS = "experts"
    KV = "kv"


def offload(name: str) -> Offload:
    """What may leave the device, by the word of an option."""
    if name.lower() not in set(Offload):
        raise UnknownNameError("thing to offload", name, Offload, listing="roofplan fits --help")
    return Offload(name.lower())


OFFLOADS: Mapping[Offload | None, tuple[Mode, ...]] = {
    None: (*MODES, *REMAKING, LAYERS_KV_STREAMED),
    Offload.NEVER: (),
    Offload.LAYERS: (LAYERS_HOST, LAYERS_STREAMED),
    Offload.EXPERTS: (EXPERTS_HOST, EXPERTS_STREAMED),
    Offload.KV: (KV_HOST, KV_STREAMED, KV_REMADE),
}


# Modes that run together somewhere: llama.cpp and KTransformers; vLLM's --cpu-offload-gb, FlexGen, KVPR; expert caches.
RUNNABLE = (
    (LAYERS_HOST, EXPERTS_HOST, KV_HOST),
    (LAYERS_STREAMED, STREAMED_KV_HOST, KV_HOST, KV_STREAMED, *REMAKING),
    (EXPERTS_STREAMED,),
)


class Wishes(NamedTuple):
    """What the asker pinned; None leaves the choice open."""

    weights: WeightFormat | None = None
    kv: DType | None = None
    tp: int | None = None
    pp: int | None = None
    ep: int | None = None
    offload: Offload | None = None
    cp: int | None = None


class Candidate(NamedTuple):
    """A layout and precision with its ledger and verdict."""

    scenario: Scenario
    memory: Ledger
    verdict: Verdict


class Choice(NamedTuple):
    """The plan, the candidate behind it with its ledger, and its decode step."""

    plan: Plan
    candidate: Candidate
    decoded: Decoded


def layouts_of(scenario: Scenario, wishes: Wishes) -> tuple[Sharding, ...]:
    """The layouts that the asker's pins leave, at least one."""
    found = shared_out(scenario, scenario.fleet.count, wishes)
    if not found:
        degrees = (degree or 1 for degree in (wishes.tp, wishes.pp, wishes.ep, wishes.cp))
        raise NoLayoutError(*_why_no_layout(scenario, *degrees))
    return found


def shared_out(scenario: Scenario, devices: int, wishes: Wishes) -> tuple[Sharding, ...]:
    """The layouts on so many devices that the asker's pins leave and the engine can run."""
    found = layouts(scenario.model, devices, wishes.tp, wishes.pp, wishes.ep, wishes.cp)
    return tuple(s for s in found if shared_ranks(scenario.model, scenario.engine, s.tp) % s.cp == 0)


def candidates(
    scenario: Scenario, numerics: Numerics, wishes: Wishes, activations: Activations | None = None
) -> list[Candidate]:
    """The layouts of one precision with their verdicts; `activations` remembers what precisions share.

    For one user no pipeline is cut deeper once its tensor-parallel degree surely fits: with a single micro-batch more
    stages run the same operators and hand over besides.
    """
    activations = {} if activations is None else activations
    result, settled = [], set[int]()
    for sharding in layouts_of(scenario, wishes):
        if sharding.tp in settled:
            continue
        option = scenario.but(numerics=numerics, sharding=sharding)
        ranks = sharding.tp, sharding.cp
        if ranks not in activations:
            activations[ranks] = activation_peaks(option)
        memory = ledger(option, activations[ranks])
        result.append(Candidate(option, memory, verdict(option, memory)))
        if result[-1].verdict is Verdict.SURELY and np.max(scenario.batch) <= 1:
            settled.add(sharding.tp)
    return result


def choose(scenario: Scenario, wishes: Wishes, calibrations: CalibrationSet) -> Choice:
    """The plan `fits` answers with: most faithful precision that surely fits (else tightly), fastest layout."""
    best: list[Candidate] = []
    looked_at, activations = 0, Activations()
    for numerics in precisions(scenario.model, wishes.weights, wishes.kv):
        options = candidates(scenario, numerics, wishes, activations)
        looked_at += len(options)
        reached = max(option.verdict for option in options)
        if not best or reached > best[0].verdict:
            best = [o for o in options if o.verdict is reached]
        if reached is Verdict.SURELY:
            break
        if best[0].verdict is Verdict.NO:  # nothing fits yet: remember the narrowest, which comes closest
            best = options
    if best[0].verdict is Verdict.NO:
        offloaded, tried = placements(scenario, wishes, calibrations)
        looked_at += tried
        best = offloaded or [min(best, key=lambda o: float(np.max(o.memory.total_bytes())))]
    decoded = [decode_in_detail(o.scenario, calibrations) for o in best]
    steps = [float(d.step.time_s) for d in decoded]
    index = int(np.argmin(steps))
    chosen = best[index]
    proof = Proof(
        Status.INFEASIBLE if chosen.verdict is Verdict.NO else Status.ENUMERATED, steps[index], min(steps), looked_at
    )
    return Choice(
        Plan(
            chosen.scenario,
            proof,
            () if chosen.verdict is Verdict.SURELY else (f"memory of one {chosen.scenario.fleet.device.key}",),
        ),
        chosen,
        decoded[index],
    )


def placements(scenario: Scenario, wishes: Wishes, calibrations: CalibrationSet) -> tuple[list[Candidate], int]:
    """The best placement in host memory (and on its drive) for each precision and layout of one stage.

    A KV cache that ranks are to share out is one on the devices: nothing is placed beside it.
    """
    found, looked_at = list[Candidate](), 0
    if (wishes.cp or 1) > 1:
        return found, looked_at
    for numerics in precisions(scenario.model, wishes.weights, wishes.kv):
        for sharding in layouts(scenario.model, scenario.fleet.count, wishes.tp, wishes.pp or 1, wishes.ep):
            option = scenario.but(numerics=numerics, sharding=sharding)
            for modes in _runnable(scenario.engine, OFFLOADS[wishes.offload]):
                placed = place(option, calibrations, modes)
                looked_at += placed.looked_at
                if placed.scenario is not None:
                    memory = ledger(placed.scenario)
                    found.append(Candidate(placed.scenario, memory, verdict(placed.scenario, memory)))
    return found, looked_at


def _runnable(engine: Engine, wanted: tuple[Mode, ...]) -> list[tuple[Mode, ...]]:
    """The modes some engine can run together: those of the engine asked about, where it names any, else of each."""
    sets = [engine.offloads] if engine.offloads else RUNNABLE
    return [tuple(m for m in modes if m in wanted) for modes in sets if any(m in wanted for m in modes)]


def max_context(scenario: Scenario, level: Verdict = Verdict.SURELY) -> int:
    """Longest context at the scenario's batch with at least that verdict, up to the model's own limit (0: none).

    Searched in whole pages of the KV cache, within which only a prompt shorter than the context's can still grow.
    """
    page, limit = scenario.engine.block_tokens, scenario.model.max_context

    def room(contexts: Array) -> Array:
        contexts = np.minimum(contexts, limit)
        grown = scenario.but(context=contexts, prompt=np.minimum(contexts, scenario.prompt))
        return room_bytes(grown, ledger(grown), level)

    pages = largest(lambda n: room(n * page), -(-limit // page), -(-int(scenario.context) // page))
    whole = min(pages * page, limit)
    if whole == limit or whole >= int(scenario.prompt):
        return whole
    return whole + largest(lambda n: room(whole + n), min(page, limit - whole))


def max_users(scenario: Scenario, level: Verdict = Verdict.SURELY) -> int:
    """Most users of the scenario's context at once with at least that verdict (0: none)."""

    def room(batches: Array) -> Array:
        grown = scenario.but(batch=batches)
        return room_bytes(grown, ledger(grown), level)

    return largest(room, MAX_USERS, int(scenario.batch))


class Fewest(NamedTuple):
    """The smallest count of like devices that surely holds a model, with the precision it takes."""

    devices: int
    numerics: Numerics


def fewest_devices(scenario: Scenario, wishes: Wishes, counts: tuple[int, ...]) -> Fewest | None:
    """Smallest of `counts` of like devices on which the model surely fits, in the most faithful precision there."""
    for count in counts:
        if not shared_out(scenario, count, wishes):
            continue
        grown = scenario.but(fleet=scenario.fleet.sized(count), sharding=Sharding())
        for numerics in precisions(scenario.model, wishes.weights, wishes.kv):
            if any(option.verdict is Verdict.SURELY for option in candidates(grown, numerics, wishes)):
                return Fewest(count, numerics)
    return None
