"""What `plan` answers with; part of the contract in `answers.py`, loaded when a plan is asked for."""

from __future__ import annotations

from typing import NamedTuple

from .answers import Layout, Quantity


class PlanQuestion(NamedTuple):
    """The question as understood. `limits` and `pinned` are words of the command line with their values."""

    model: str
    model_origin: str
    device: str
    device_count: int
    nodes: int
    host_memory_bytes: float | None
    prompt: int
    output: int
    goal: str
    engine: str
    memory_utilization: float
    limits: tuple[str, ...]
    pinned: tuple[str, ...]
    currency: str


class PlanLayers(NamedTuple):
    """So many layers of a block on a pipeline stage, their formats, and where they are kept and run.

    What leaves the device is kept in `tier`: host, or cxl for memory behind that link.
    """

    stage: int
    block: str
    layers: int
    weights: str
    experts: str
    where: str
    cached_share: float
    tier: str


class PlanRow(NamedTuple):
    """A plan: `users` of each of `replicas` at once, prompts in steps of at most `chunk_tokens`.

    Copies are begun `prefetch_depth` copied layers before theirs; a draft model guesses `draft_length` tokens a round.
    `goal` is what was to be made small, in `PlanProof.unit`.

    `ratio` is its goal over the best plan's; `tie` says that measurements could turn the two around.
    """

    layout: Layout
    stages: tuple[int, ...]
    replicas: int
    devices: int
    users: int
    chunk_tokens: int
    weights: str
    kv: str
    where: str
    prefetch_depth: int
    draft_length: int
    goal: float
    ratio: float
    tie: bool
    time_per_output_token: Quantity
    first_token_service: Quantity
    tokens_per_s_total: Quantity
    request: Quantity
    ppl_increase: float
    money_per_million_tokens: float | None
    joules_per_token: float | None
    why: str


class PlanProof(NamedTuple):
    """What is proved: no plan of the domain is below `bound`; null where there is no plan.

    `gap` is relative to the goal of the plan found.
    """

    status: str
    goal: float | None
    bound: float | None
    gap: float
    unit: str
    frames: int
    programs: int
    seconds: float
    solver: str


class PlanDomain(NamedTuple):
    """One decision of the finite domain and the values it was looked at with."""

    decision: str
    values: tuple[str, ...]


class PlanLimit(NamedTuple):
    """A limit: what the plan takes of it, in the limit's unit."""

    name: str
    used: float
    limit: float
    unit: str
    binds: bool


class PlanChange(NamedTuple):
    """A change of the question, solved again: the goal then, and how much better it is, as a share of the present one.

    Negative: worse. Null: there is no plan on one of the two sides.
    """

    change: str
    goal: float | None
    gain: float | None
    plan: str
    ask: str


class PlanSpan(NamedTuple):
    """A stretch of time of a step: what runs on a lane (compute or copies), from `start_s` on for `seconds`."""

    step: str
    lane: str
    name: str
    start_s: float
    seconds: float


class PlanAnswer(NamedTuple):
    """The best plan, its layers, proof and limits; what would change it; what else came close.

    `without` is what is left of a plan for unlike devices without one device of each kind.
    """

    asked: PlanQuestion
    verdict: str
    words: tuple[str, ...]
    plan: PlanRow | None
    layers: tuple[PlanLayers, ...]
    limits: tuple[PlanLimit, ...]
    proof: PlanProof
    domain: tuple[PlanDomain, ...]
    timeline: tuple[PlanSpan, ...]
    changes: tuple[PlanChange, ...]
    without: tuple[PlanChange, ...]
    runners_up: tuple[PlanRow, ...]
    front: tuple[PlanRow, ...]
    emitted: tuple[str, ...]
    refute: str
    next_step: str
