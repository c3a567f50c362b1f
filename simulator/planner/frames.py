"""The finite domain of a plan: frames, each a layout with a KV format and numbers of users, and what is open in it.

A replica is a layout on the devices of one node; as many replicas as fit serve beside each other. Where the model is
whole on the devices, requests come and go (`serving`): a frame's numbers of users are clients. Where layers, experts or
the KV cache leave the device, a batch is taken in, decoded to its end, and followed by the next.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ...dtypes import DType
from ...errors import InputError
from ..calibration import CalibrationSet
from ..estimate import Array
from ..generation import batch_steps
from ..quality import kv_increase
from ..scenario import (
    ON_DEVICE,
    Engine,
    Extras,
    MemoryTier,
    Mode,
    Numerics,
    Phase,
    Scenario,
    Sharding,
    Step,
    Where,
    shared_ranks,
)
from ..serving import Load, steps_of
from ..speculation import LENGTHS, checking, tokens_per_round
from ..workload.formats import FORMATS, WeightFormat
from .domain import context_degrees, layouts, takes, weight_choices
from .fit import OFFLOADS, RUNNABLE, Offload
from .place import modes_of
from .prices import Alternative, Layout, StepKind, combinations
from .question import Question

ROOMY_BYTES = 70 * 2**30  # from here on vLLM's servers take 8192 tokens a step by default (vllm/engine/arg_utils.py)
FILLING = 8  # rounds until the steps of a load that is all prompts are just full of them
SMALL_CHUNK = 2048  # tokens of a prompt step, vLLM's default where latency counts more
MOST_PLACED = 2  # devices of a layout that is placed although its devices hold the model
CACHED = (0.0, 0.25, 0.5, 0.75)  # shares of a layer's experts kept on the device where the rest is fetched
GGUF_TYPES = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "IQ4_XS", "Q3_K_M")


class Family(NamedTuple):
    """A layout with a KV format at all numbers of users: the frames that are priced together."""

    layout: Layout
    replicas: int
    placed: bool
    kv_log_ppl: float

    @property
    def label(self) -> str:
        """`2 x tp4, fp8 KV cache`."""
        base = self.layout.base
        copies = f"{self.replicas} x " if self.replicas > 1 else ""
        away = ", host memory" if self.placed else ""
        count = base.extras.draft_length
        guesses = f", {count} guess{'es' * (count > 1)} a round" if count else ""
        return f"{copies}{base.sharding}, {base.numerics.kv} KV cache{away}{guesses}"


def formats(question: Question) -> tuple[tuple[WeightFormat, ...], ...]:
    """Sets of weight formats that may be mixed within a plan, each most faithful first.

    Formats of GGUF files come whole; the others are those of checkpoints the engines load.
    """
    model, pinned = question.model, question.pins.weights
    if pinned is not None:
        if not takes(model, pinned):
            problem = f"{model.name} is stored in {weight_choices(model)[0].name}"
            raise InputError(problem, key="--weights", value=pinned.name, remedy="drop --weights")
        return ((pinned,),)
    choices = weight_choices(model)
    if len(choices) == 1:
        return (choices,)
    if question.engine.name == "llama.cpp":
        from ..workload.formats import weight_format

        return ((choices[0],), *((weight_format(name),) for name in GGUF_TYPES))
    if question.engine.unpacks_in_memory:  # 16 bits, or 4 that are widened
        return ((choices[0], FORMATS["int4"]),)
    device = question.fleet.device
    extra = (FORMATS["nvfp4"],) if device.computes(DType.FP4) else ()
    if not device.computes(DType.FP8) and device.computes(DType.INT8):
        wide, *narrow = choices
        return ((wide, FORMATS["int8"], *narrow, *extra),)
    return ((*choices, *extra),)


def kv_formats(question: Question) -> tuple[DType, ...]:
    """KV formats to choose from."""
    if question.pins.kv is not None:
        return (question.pins.kv,)
    wide = DType.FP16 if question.model.activation is DType.FP16 else DType.BF16
    if question.engine.unpacks_in_memory:
        return (wide, DType.INT4)
    return (wide, DType.INT8 if question.engine.name == "llama.cpp" else DType.FP8)


def families(question: Question, calibrations: CalibrationSet) -> Iterator[Family]:
    """Every layout on every part of a node, with every KV format and size of a prompt step: whole, then placed."""
    for engine in engines_of(question):
        for extras in extras_of(question):
            asked = dataclasses.replace(question, engine=engine, extras=extras)
            yield from _families(asked, calibrations)


def extras_of(question: Question) -> tuple[Extras, ...]:
    """What is kept beside the model: with a draft model every number of guesses, and none, when it is left out."""
    extras, pinned = question.extras, question.pins.draft_length
    if extras.draft is None:
        return (extras,)
    lengths = LENGTHS if pinned is None else (pinned,)
    return tuple(extras._replace(draft_length=n, draft=extras.draft if n else None) for n in lengths)


def engines_of(question: Question) -> tuple[Engine, ...]:
    """The engine with the sizes of a prompt step to choose from, where it cuts prompts into pieces.

    A smaller step keeps a pace, or leaves memory for more users; large devices without a limit gain nothing by it.
    """
    engine = question.engine
    alone = question.goal.value == "latency" and question.prompt <= SMALL_CHUNK  # one prompt, in one step anyway
    roomy = question.limits.pace_s is None and question.fleet.usable_bytes() >= ROOMY_BYTES
    fixed = question.pins.chunk or not engine.chunks_prefill or engine.max_batched_tokens <= SMALL_CHUNK
    if alone or roomy or fixed:
        return (engine,)
    return engine, dataclasses.replace(engine, max_batched_tokens=SMALL_CHUNK)


def _families(question: Question, calibrations: CalibrationSet) -> Iterator[Family]:
    pins, most = question.pins, question.usable_devices()
    users = _users(question)
    for sharding in _layouts(question, most):
        # No engine here guesses in a pipeline; a draft's cache beside one that ranks share out is not priced.
        if question.extras.draft_length and (sharding.pp > 1 or sharding.cp > 1):
            continue
        replicas = min(question.fleet.count // sharding.devices * question.nodes, most // sharding.devices)
        for kv in kv_formats(question):
            change = max(0.0, kv_increase(question.model, kv).usual)
            for chosen in formats(question):
                resident = combinations(chosen, ((ON_DEVICE, 0.0),), question.model.has_experts)
                layout = _layout(question, sharding, kv, chosen, resident, users, calibrations)
                yield Family(layout, replicas, False, change)
                if pins.offload is Offload.NEVER or (sharding.devices > MOST_PLACED and _may_hold(layout, question)):
                    continue
                for modes in _placements(question, sharding, kv):
                    away = combinations(chosen, modes, False, _tiers(question))
                    layout = _layout(question, sharding, kv, chosen, away, users, calibrations, placed=True)
                    yield Family(layout, min(replicas, question.nodes), True, change)  # one a host: they would share it


def _may_hold(layout: Layout, question: Question) -> bool:
    """Whether the devices might hold the model for the fewest users: many devices that do are not joined by a host."""
    return bool(layout.least_bytes[0] <= question.budget_bytes())


def _layouts(question: Question, most: int) -> tuple[Sharding, ...]:
    pins = question.pins
    here = min(question.fleet.count, most)
    degrees = [pins.ep] if pins.ep else [1, *_expert_degrees(question)]
    found = [s for ep in degrees for s in layouts(question.model, here, pins.tp, pins.pp, ep)]
    whole = dict.fromkeys(s for s in found if s.ep == 1 or s.ep == s.tp)
    return tuple(s._replace(cp=cp) for s in whole for cp in _context_degrees(question, s.tp))


def _context_degrees(question: Question, tp: int) -> list[int]:
    """Degrees of context parallelism: each that keeps fewer copies of a KV cache, where the engine has it."""
    pinned, copies = question.pins.cp, shared_ranks(question.model, question.engine, tp)
    if pinned is None:
        return context_degrees(question.model, question.engine, tp)
    return [pinned] if copies % pinned == 0 else []


def _expert_degrees(question: Question) -> list[int]:
    """Whole experts on every rank: the degree engines offer (vLLM's --enable-expert-parallel)."""
    return [2**i for i in range(1, question.fleet.count.bit_length())] if question.model.has_experts else []


def _users(question: Question) -> Array:
    if question.pins.clients is not None:
        return np.array([float(question.pins.clients)])
    if question.goal.value == "latency":
        return np.ones(1)
    return np.array(question.users)


def _placements(question: Question, sharding: Sharding, kv: DType) -> list[tuple[tuple[Mode, float], ...]]:
    """The sets of modes that run together somewhere, each mode with every share of experts kept."""
    fleet = question.fleet
    if fleet.host_memory_bytes is None or fleet.device.unified_memory or sharding.pp > 1 or sharding.cp > 1:
        return []
    wanted = OFFLOADS[question.pins.offload]
    sets = [question.engine.offloads] if question.engine.offloads else RUNNABLE
    base = question.scenario(sharding=sharding, numerics=Numerics(question.model.native, kv, question.model.activation))
    found = []
    for modes in sets:
        here = modes_of(base, tuple(m for m in modes if m in wanted))
        if here:
            found.append(((ON_DEVICE, 0.0), *((m, c) for m in here for c in _cached(m))))
    return found


def _tiers(question: Question) -> tuple[MemoryTier, ...]:
    """Where the host may keep what leaves the devices, beside its drive."""
    return (MemoryTier.HOST,) if question.fleet.cxl is None else (MemoryTier.HOST, MemoryTier.CXL)


def _cached(mode: Mode) -> tuple[float, ...]:
    return CACHED if mode.experts is Where.STREAMED and mode.shell is Where.DEVICE else (0.0,)


def _layout(
    question: Question,
    sharding: Sharding,
    kv: DType,
    chosen: tuple[WeightFormat, ...],
    alternatives: tuple[Alternative, ...],
    users: Array,
    calibrations: CalibrationSet,
    placed: bool = False,
) -> Layout:
    numerics = Numerics(chosen[0], kv, question.model.activation)
    base = question.scenario(sharding=sharding, numerics=numerics, batch=users)
    kinds = batch_kinds(question, users) if placed else serving_kinds(base, question, users)
    return Layout(base, kinds, alternatives, calibrations, question.sensitivities)


def serving_kinds(base: Scenario, question: Question, running: Array) -> tuple[StepKind, ...]:
    """The steps of continuous batching (`serving.py`) with all clients running."""
    each = tokens_per_round(base.extras)
    load = Load(running, float(question.prompt), float(question.output), per_step=each)  # type: ignore[arg-type]
    # Where steps are full of prompts no more requests decode than steps have room for the prompts that follow them.
    clients, steps = running, steps_of(base, load, running)
    for _ in range(FILLING if np.any(steps.asked > 1) else 0):
        running = np.minimum(clients, running / np.maximum(steps.asked, 1e-9))
        steps = steps_of(base, load, running)
    # Beside prompts the number that decodes is a mean, and no lucky multiple of what a kernel likes (`costs/gemm.py`).
    taking = steps_of(base, load, np.where(running > 1, running * (1.0 - 1e-9), running)).taking
    share = np.broadcast_to(steps.share, running.shape) / each
    alone = 1.0 / each - share if base.engine.mixes_prefill else np.ones_like(share) / each
    cycles, one, more = np.minimum(running, base.sharding.pp), np.ones_like(running), clients / running
    none = np.zeros_like(running)
    pieces = np.broadcast_to(steps.pieces, running.shape).astype(float)
    kinds = [
        StepKind(steps.decode, alone * more, alone, none, cycles),
        StepKind(taking, share * more, share, none, cycles),
    ]
    if question.goal.value == "latency" or question.limits.first_s is not None:  # else nobody asks when it begins
        kinds.append(StepKind(steps.own, none, none, pieces, one))
    return tuple(kinds)


def batch_kinds(question: Question, batch: Array) -> tuple[StepKind, ...]:
    """A batch taken in, as many prompts in a step as the engine takes, and decoded at the mean context."""
    taking, pieces = batch_steps(question.prompt, batch, question.engine)
    none, one = np.zeros_like(batch), np.ones_like(batch)
    # The pace of a batch counts its prompts, as that of clients does.
    decode = Step(Phase.DECODE, batch, 1, np.asarray(question.prompt + question.output / 2))
    each = one / tokens_per_round(question.extras)
    return (
        StepKind(checking(decode, question.extras), each, each, none, one),
        StepKind(taking, pieces / question.output, pieces / question.output, pieces, one),
    )
