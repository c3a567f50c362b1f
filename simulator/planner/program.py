"""The integer program of one frame: how many layers of each block, on each stage, take each alternative.

Coefficients come from the simulator (`prices.py`), rows are the functions of `constraints.py`, the solver is HiGHS. The
program is a bound, not the truth: what it relaxes (the order of layers, the curve of overlap) the simulator prices.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..estimate import Array
from ..scenario import ON_DEVICE, Placement, Stretch
from .frames import Family
from .place import HOST_SHARE
from .prices import Alternative
from .question import Goal, Question

if TYPE_CHECKING:
    import pulp

GIB = 2.0**30


class Taken(NamedTuple):
    """So many layers of a block on a stage in an alternative."""

    stage: int
    block: int
    alternative: Alternative
    layers: int


class Assignment(NamedTuple):
    """What a program decides: the layers; bytes the host has no memory for (weights read from its drive, KV cache kept
    there); how many copied layers before theirs copies begin."""

    taken: tuple[Taken, ...]
    weights_on_drive: float = 0.0
    state_on_drive: float = 0.0
    ahead: int = 1


@dataclass(frozen=True, eq=False)
class Frame:
    """A family at one number of users: the numbers of its program."""

    family: Family
    at: int

    @property
    def users(self) -> float:
        """Users of one replica at once."""
        return float(np.ravel(self.family.layout.base.batch)[self.at])

    @property
    def label(self) -> str:
        """`2 x tp4, fp8 KV cache, 64 users`."""
        each = " each" if self.family.replicas > 1 else ""
        return f"{self.family.label}, {self.users:.0f} user{'' if self.users == 1 else 's'}{each}"

    @property
    def devices(self) -> int:
        """Devices all replicas take."""
        return self.family.replicas * self.family.layout.base.sharding.devices

    @property
    def alternatives(self) -> tuple[Alternative, ...]:
        """What a layer may be."""
        return self.family.layout.alternatives

    @property
    def counts(self) -> tuple[int, ...]:
        """Layers of each block."""
        return self.family.layout.counts

    @property
    def stages(self) -> int:
        """Pipeline stages."""
        return self.family.layout.base.sharding.pp

    def weights_of(self, question: Question) -> Array:
        """What a second of each kind of step adds to the goal, (kinds,)."""
        kinds = self.family.layout.kinds
        per_token, pace, first = (
            np.array([getattr(k, f)[self.at] for k in kinds]) for f in ("per_token", "pace", "first")
        )
        if question.goal is Goal.LATENCY:
            alone = np.where(first > 0, 0.0, pace)  # a step that takes prompts in comes before the first token
            return np.asarray(first + question.output * alone)
        return np.asarray(per_token * per_token_scale(question, self.users, self.family.replicas, self.devices))


def per_token_scale(question: Question, users: float, replicas: int, devices: int) -> float:
    """What a second per token of one user means for the goal: seconds of all users' tokens, money or joules."""
    seconds = 1.0 / (users * replicas)
    match question.goal:
        case Goal.COST:
            return seconds * devices * (question.price_per_hour or 0.0) / 3600.0
        case Goal.ENERGY:
            power = question.fleet.device.power_w
            return seconds * devices * (power.value if power is not None else 0.0)
    return seconds


class Tightened(NamedTuple):
    """Shares of the memory and of the times allowed that may be used, where the simulator refused what took all."""

    memory: float = 1.0
    pace: float = 1.0
    first: float = 1.0


@dataclass(eq=False)
class Program:
    """The variables of a frame; rows are added by the constraint functions."""

    question: Question
    frame: Frame
    problem: pulp.LpProblem
    layers: dict[tuple[int, int, int], Any] = field(default_factory=dict)  # stage, block, alternative
    ends: dict[tuple[int, int], Any] = field(default_factory=dict)  # whether a stage ends behind so many layers
    times: list[Any] = field(default_factory=list)  # seconds of each kind of step
    used: dict[int, Any] = field(default_factory=dict)  # whether an alternative with buffers is taken at all
    buffers: Any = 0.0  # GiB, for copies and for what is made again
    made: Any = 0.0  # GiB of it for keys and values made again
    ahead: int = 1  # copied layers before theirs that copies are begun
    waits: Any = 0.0  # 1: layers wait for their copies, one buffer is enough
    from_drive: Any = 0.0  # GiB of the host's weights that its memory has no room for
    state_on_drive: Any = 0.0  # GiB of the KV cache it has no room for
    tightened: Tightened = Tightened()

    @property
    def touched(self) -> float:
        """Least share of what is on the drive that a step reads: all of it where there are no experts."""
        return 0.0 if self.question.model.has_experts else 1.0

    def sum_of(self, coefficients: Array, stage: int | None = None, scale: float = 1.0) -> Any:
        """Sum over layers of a coefficient, (alternatives, blocks)."""
        import pulp

        return pulp.lpSum(
            float(coefficients[a, b]) * scale * variable
            for (s, b, a), variable in self.layers.items()
            if (stage is None or s == stage) and coefficients[a, b]
        )


def build(
    question: Question,
    frame: Frame,
    tightened: Tightened = Tightened(),  # noqa: B008 - a value without state
    below: float = float("inf"),
    ahead: int | None = None,
) -> Program:
    """The program with all its rows and its objective; only plans `below` a value of the goal are wanted.

    Copies have buffers for the engine's least prefetch depth, or for none; `ahead` pins the depth.
    """
    import pulp

    from .constraints import CONSTRAINTS

    program = Program(question, frame, pulp.LpProblem("plan", pulp.LpMinimize))
    program.tightened = tightened
    for s in range(frame.stages):
        for b, count in enumerate(frame.counts):
            for a in range(len(frame.alternatives)):
                program.layers[s, b, a] = program.problem.add_variable(f"layers_{s}_{b}_{a}", 0, count, "Integer")
    if len(frame.counts) > 1:
        for s in range(frame.stages - 1):
            for end in range(s + 1, question.model.layers - frame.stages + s + 2):
                program.ends[s, end] = program.problem.add_variable(f"ends_{s}_{end}", 0, 1, "Binary")
    for k in range(len(frame.family.layout.kinds)):
        program.times.append(program.problem.add_variable(f"seconds_{k}", 0))
    held = frame.family.layout.bytes_
    for buffered in np.flatnonzero(held.buffer[:, frame.at] > 0):
        program.used[int(buffered)] = program.problem.add_variable(f"used_{buffered}", 0, 1, "Binary")
    if program.used:
        program.buffers = program.problem.add_variable("buffers", 0)
        program.ahead = least_ahead(question) if ahead is None else ahead
        program.waits = float(program.ahead == 0)
        if program.ahead and ahead is None and min(question.engine.prefetch_depths) == 0:
            program.waits = program.problem.add_variable("waits", 0, 1, "Binary")
    if held.made[:, frame.at].any():
        program.made = program.problem.add_variable("made", 0)
    if frame.family.placed and question.fleet.storage is not None:
        program.from_drive = program.problem.add_variable("from_drive", 0)
        if question.engine.drive_beside:
            program.state_on_drive = program.problem.add_variable("state_on_drive", 0)
    weights = frame.weights_of(question)
    unit = objective_unit(question, frame)
    goal = pulp.lpSum(float(w) * 1e-3 / unit * t for w, t in zip(weights, program.times, strict=True))
    program.problem += goal, "goal"
    if below < float("inf"):
        program.problem += goal <= below / unit, "better_than_the_best_found"
    for constraint in CONSTRAINTS:
        for name, row in constraint(program):
            program.problem += row, name
    return program


def least_ahead(question: Question) -> int:
    """The smallest prefetch depth of the engine that is one: what copies take beside the computing (0: it has none)."""
    return min((depth for depth in question.engine.prefetch_depths if depth), default=0)


def objective_unit(question: Question, frame: Frame) -> float:
    """The goal's value if every kind of step took a millisecond: keeps the solver's numbers near one."""
    return max(1e-300, float(frame.weights_of(question).sum()) * 1e-3)


def host_room(question: Question) -> float:
    """Bytes of host memory a plan may use."""
    return HOST_SHARE * (question.fleet.host_memory_bytes or 0.0)


def cxl_room(question: Question) -> float:
    """Bytes of memory behind CXL a plan may use."""
    cxl = question.fleet.cxl
    return 0.0 if cxl is None or cxl.capacity_bytes is None else HOST_SHARE * cxl.capacity_bytes.value


def placement_of(each: list[Alternative]) -> Placement:
    """The placement that gives each layer its alternative's mode; layers at the end that stay need no stretch."""
    stretches: list[Stretch] = []
    for a in each:
        alike = Stretch(a.mode, 1, a.cached, a.tier)
        if stretches and stretches[-1]._replace(layers=1) == alike:
            stretches[-1] = stretches[-1]._replace(layers=stretches[-1].layers + 1)
        else:
            stretches.append(alike)
    while stretches and stretches[-1].mode is ON_DEVICE:
        stretches.pop()
    return Placement(tuple(stretches))
