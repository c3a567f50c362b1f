"""The integer program of a pipeline over unlike places: how many layers of each block, in which alternative, where.

n[p, b, a] are the layers of block b on place p in alternative a; used[p], first[p], last[p] and together (more places
than one) are 0 or 1; drive[m] is what node m's host holds on its drive. One constraint is one function, its formula in
its docstring, its name on the solver's rows; coefficients come from `unlike_places.py`, the solver is HiGHS.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ...dtypes import DType
from ..estimate import Array
from ..workload.formats import WeightFormat
from .constraints import ANGLES, tangent
from .nodes import Node
from .place import HOST_SHARE
from .prices import Alternative
from .question import Goal, Question
from .solve import RELATIVE_GAP, SECONDS, Outcome
from .unlike_places import DECODE, PREFILL, Load, Place, PlaceCosts, hop, message_bytes, steps

if TYPE_CHECKING:
    import pulp

GIB, MS = 2.0**30, 1e3
Rows = Iterator[tuple[str, Any]]


class Wanted(NamedTuple):
    """What the asker says of the nodes: each must have a layer; or so many layers each (none: left open)."""

    every_node: bool = False
    layers: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class UnlikeFrame:
    """One grouping of devices, KV format, set of weight formats and load: what a program is of."""

    question: Question
    nodes: tuple[Node, ...]
    places: tuple[Place, ...]
    costs: tuple[PlaceCosts, ...]
    kv: DType
    formats: tuple[WeightFormat, ...]
    load: Load
    kv_log_ppl: float
    wanted: Wanted = Wanted()

    @property
    def kind(self) -> str:
        """`groups of 2, Q4_K_M, bf16 KV cache`: all but the load."""
        return f"{self.grouping}, {' and '.join(f.name for f in self.formats)}, {self.kv} KV cache"

    @property
    def label(self) -> str:
        """`groups of 2, Q4_K_M, bf16 KV cache, 8 users in 4 micro-batches`."""
        users = f"{self.load.users:.0f} user" + ("s" if self.load.users > 1 else "")
        batches = f" in {self.load.micro_batches} micro-batches" if self.load.micro_batches > 1 else ""
        return f"{self.kind}, {users}{batches}"

    def asked(self, question: Question, nodes: tuple[Node, ...]) -> UnlikeFrame:
        """The same frame, its prices as they are, for other limits or machines that differ in memory or network."""
        question = dataclasses.replace(question, engine=self.question.engine)
        return dataclasses.replace(self, question=question, nodes=nodes)

    @property
    def grouping(self) -> str:
        """`each device alone`, or `groups of 2`."""
        degree = max((p.tp for p in self.places), default=1)
        return f"groups of {degree}" if degree > 1 else "each device alone"

    @property
    def counts(self) -> tuple[int, ...]:
        """Layers of each block."""
        return self.question.model.layer_counts()

    @property
    def pieces(self) -> float:
        """Pieces in which the prompts of all users pass the pipeline."""
        return steps(self.question, self.load).pieces

    @property
    def network_s(self) -> tuple[tuple[float, ...], ...]:
        """Seconds of a hop by kind of step and node, were all nodes on its link."""
        kinds = steps(self.question, self.load)
        return tuple(
            tuple(float(hop(n.network, message_bytes(self.question, kind)).time_s) for n in self.nodes)
            for kind in (kinds.decode, kinds.prefill)
        )

    def inside_s(self, kind: int, node: int) -> float:
        """Seconds from one place of the node to the next: the slowest of its places."""
        here = [c for p, c in zip(self.places, self.costs, strict=True) if p.node == node]
        return max((float(c.handovers[kind].time_s) for c in here), default=0.0)

    def budget_bytes(self, at: int) -> float:
        """Bytes that may be taken on a place: of a host, or of each device."""
        place, q = self.places[at], self.question
        if place.on_host:
            return HOST_SHARE * self.nodes[place.node].memory_bytes()
        return q.engine.memory_utilization * (place.fleet.usable_bytes() + q.more_bytes)

    def of_node(self, node: int) -> list[int]:
        """Places of the node."""
        return [i for i, p in enumerate(self.places) if p.node == node]

    def goal(self, through: Any, slowest: Any, cycle: Any) -> Any:
        """The goal from the two kinds of step: their way through all places, the slowest place, a decode cycle.

        latency: (prompt through + (pieces - 1) slowest) + output x cycle; throughput: the same of all users' prompts,
        by users x output tokens.
        """
        first = through[PREFILL] + (self.pieces - 1.0) * slowest[PREFILL]
        whole = first + float(self.question.output) * cycle
        return whole if self.question.goal is Goal.LATENCY else whole * (1.0 / (self.load.users * self.question.output))


class On(NamedTuple):
    """So many layers of a block on a place in an alternative."""

    place: int
    block: int
    alternative: Alternative
    layers: int


class UnlikeSolved(NamedTuple):
    """The program's answer: the goal's value, the value nothing can be below, layers in places, bytes on drives."""

    outcome: Outcome
    objective: float
    bound: float
    taken: tuple[On, ...]
    drive_bytes: tuple[float, ...]


@dataclass(eq=False)
class UnlikeProgram:
    """The variables of a frame; rows are added by the constraint functions. Times are in ms, bytes in GiB."""

    frame: UnlikeFrame
    tightened: float
    problem: pulp.LpProblem
    n: dict[tuple[int, int, int], Any] = field(default_factory=dict)
    used: list[Any] = field(default_factory=list)
    first: list[Any] = field(default_factory=list)
    last: list[Any] = field(default_factory=list)
    together: Any = 0
    node_used: list[Any] = field(default_factory=list)
    node_joined: list[Any] = field(default_factory=list)
    drive: list[Any] = field(default_factory=list)
    stage: dict[tuple[int, int], Any] = field(default_factory=dict)  # kind, place
    through: list[Any] = field(default_factory=list)
    slowest: list[Any] = field(default_factory=list)
    cycle: Any = None

    def sum_of(self, place: int, coefficients: Array, scale: float = 1.0) -> Any:
        """Sum over a place's layers of a coefficient, (alternatives, blocks)."""
        return _sum(
            float(coefficients[a, b]) * scale * v
            for (p, b, a), v in self.n.items()
            if p == place and coefficients[a, b]
        )

    def layers_on(self, place: int, block: int | None = None) -> Any:
        """Layers on a place, of one block or all."""
        return _sum(v for (p, b, _), v in self.n.items() if p == place and block in (None, b))

    def host_held(self, node: int, weights: bool) -> Any:
        """GiB the node's host has to hold: weights only, or state and what runs there beside."""
        f = self.frame
        total = _sum(())
        for p in f.of_node(node):
            c = f.costs[p]
            total += self.sum_of(p, c.host_weights if weights else c.host_bytes, 1 / GIB)
            if f.places[p].on_host and not weights:
                fixed = c.fixed
                total += fixed.here / GIB * self.used[p]
                total += (fixed.first * self.first[p] + fixed.last * self.last[p]) / GIB
        return total


def every_layer_has_a_place(m: UnlikeProgram) -> Rows:
    """sum over p, a of n[p, b, a] = layers of block b."""
    for b, count in enumerate(m.frame.counts):
        yield f"every_layer_has_a_place_{b}", _sum(v for (_, block, _), v in m.n.items() if block == b) == count


def places_with_layers_are_used(m: UnlikeProgram) -> Rows:
    """used[p] <= sum over b, a of n[p, b, a] <= layers used[p]."""
    for p, used in enumerate(m.used):
        yield f"used_places_have_layers_{p}", m.layers_on(p) >= used
        yield f"places_with_layers_are_used_{p}", m.layers_on(p) <= sum(m.frame.counts) * used


def one_place_is_first_and_one_last(m: UnlikeProgram) -> Rows:
    """sum of last[p] = 1, last[p] <= used[p], last[p] + used[q] <= 1 for every later q; first[p] with every earlier."""
    places = range(len(m.used))
    for name, ends, earlier in (("first", m.first, True), ("last", m.last, False)):
        yield f"one_is_{name}", _sum(ends) == 1
        for p in places:
            yield f"{name}_is_used_{p}", ends[p] <= m.used[p]
            for q in range(p) if earlier else range(p + 1, len(m.used)):
                yield f"{name}_{p}_or_{q}", ends[p] + m.used[q] <= 1


def stages_are_contiguous(m: UnlikeProgram) -> Rows:
    """Where blocks alternate: sum over q <= p of n[q, b] = layers of block b among the first c[p], one c[p] chosen.

    With a single kind of block every count of layers is a cut.
    """
    model = m.frame.question.model
    if len(m.frame.counts) == 1:
        return
    first = np.array([[block == b for block in model.pattern] for b in range(len(m.frame.counts))], float)
    before = np.concatenate([np.zeros((len(first), 1)), np.cumsum(first, axis=1)], axis=1)
    for p in range(len(m.used) - 1):
        cut = [m.problem.add_variable(f"cut_{p}_{i}", cat="Binary") for i in range(model.layers + 1)]
        yield f"one_cut_behind_{p}", _sum(cut) == 1
        for b in range(len(m.frame.counts)):
            until = _sum(m.layers_on(q, b) for q in range(p + 1))
            yield f"stages_are_contiguous_{p}_{b}", until == _sum(float(before[b, i]) * c for i, c in enumerate(cut))


def like_places_are_taken_in_order(m: UnlikeProgram) -> Rows:
    """sum of n[p] >= sum of n[p + 1] - layers first[p] for neighbours that are the same, of a single kind of block.

    The first place keeps the table of tokens, so that it may have to hold fewer layers than the next.
    """
    places, layers = m.frame.places, sum(m.frame.counts)
    if len(m.frame.counts) > 1:
        return
    for p in range(len(places) - 1):
        if places[p].like == places[p + 1].like and not places[p].on_host:
            yield f"like_places_are_taken_in_order_{p}", m.layers_on(p) >= m.layers_on(p + 1) - layers * m.first[p]


def nodes_are_as_wanted(m: UnlikeProgram) -> Rows:
    """sum of n over a node's places >= 1 where every node takes part; = what is stated of it."""
    for node in range(len(m.frame.nodes)):
        here = _sum(m.layers_on(p) for p in m.frame.of_node(node))
        if m.frame.wanted.layers:
            yield f"node_has_its_layers_{node}", here == m.frame.wanted.layers[node]
        elif m.frame.wanted.every_node:
            yield f"every_node_takes_part_{node}", here >= 1


def place_memory(m: UnlikeProgram) -> Rows:
    """here used[p] + slope (sum of n bytes) + first[p] table + last[p] head + joined together <= budget of a device."""
    for p, (place, c) in enumerate(zip(m.frame.places, m.frame.costs, strict=True)):
        if place.on_host:
            continue
        fixed = c.fixed
        beside = fixed.here * m.used[p] + fixed.first * m.first[p] + fixed.last * m.last[p] + fixed.joined * m.together
        held = m.sum_of(p, c.device_bytes, c.slope / GIB) + beside * (1 / GIB)
        spare = m.frame.budget_bytes(p) * m.tightened / GIB
        yield f"place_memory_{p}", held <= spare + fixed.joined / GIB * (1 - m.used[p])


def host_memory(m: UnlikeProgram) -> Rows:
    """what the host holds <= its room + drive[m], drive[m] <= its weights; all of them where it does not read ahead."""
    f = m.frame
    for i, node in enumerate(f.nodes):
        if not any(f.places[p].on_host or f.costs[p].host_bytes.any() for p in f.of_node(i)):
            continue
        room = HOST_SHARE * node.memory_bytes() * m.tightened / GIB
        held, weights = m.host_held(i, weights=False), m.host_held(i, weights=True)
        yield f"host_memory_{i}", held <= room + m.drive[i]
        if isinstance(m.drive[i], float):
            continue
        yield f"drive_holds_weights_{i}", m.drive[i] <= weights
        if not node.reads_ahead:
            most = _most_held(f, i)
            over = m.problem.add_variable(f"over_{i}", cat="Binary")
            yield f"cache_is_too_small_{i}", held <= room + most * over
            yield f"cache_keeps_nothing_{i}", m.drive[i] >= weights - most * (1 - over)


def several_places(m: UnlikeProgram) -> Rows:
    """sum of used[p] - 1 <= (places - 1) together; used[p] <= node_used[i]; node_used[i, j] - 1 <= node_joined[i]."""
    f = m.frame
    if len(f.places) > 1:
        yield "several_places", _sum(m.used) - 1 <= (len(f.places) - 1) * m.together
    for i in range(len(f.nodes)):
        here = f.of_node(i)
        for p in here:
            yield f"node_is_used_{i}_{p}", m.node_used[i] >= m.used[p]
        yield f"node_is_not_used_{i}", m.node_used[i] <= _sum(m.used[p] for p in here)
        for j in range(len(f.nodes)):
            if j != i:
                yield f"nodes_are_joined_{i}_{j}", m.node_joined[i] >= m.node_used[i] + m.node_used[j] - 1


def device_limit(m: UnlikeProgram) -> Rows:
    """sum of devices[p] used[p] <= devices allowed; sum of their power <= power allowed."""
    limits, places = m.frame.question.limits, m.frame.places
    if limits.devices is not None:
        yield "device_limit", _sum(pl.devices * u for pl, u in zip(places, m.used, strict=True)) <= limits.devices
    if limits.power_w is not None:
        power = [pl.devices * (0.0 if (w := pl.fleet.device.power_w) is None else w.value) for pl in places]
        yield "power_limit", _sum(w * u for w, u in zip(power, m.used, strict=True)) <= limits.power_w


def stage_takes_its_time(m: UnlikeProgram) -> Rows:
    """stage[k, p] >= u (sum of n computing + last[p] ends) + v (sum of n copies) + drive[m] / rate, tangents (u, v)."""
    f = m.frame
    for (k, p), stage in m.stage.items():
        computing, copies = f.costs[p].seconds(k)
        run = m.sum_of(p, computing, MS) + f.costs[p].ends_s(k) * MS * m.last[p]
        behind = _sum(())
        if p == _reader(f, f.places[p].node) and not f.nodes[f.places[p].node].reads_ahead:
            behind += _drive_ms(m, f.places[p].node, k)
        if not copies.any():
            yield f"stage_takes_its_time_{k}_{p}", stage >= run + behind
            continue
        moved = m.sum_of(p, copies, MS)
        for i, angle in enumerate(ANGLES):
            u, v = tangent(float(angle))
            yield f"stage_takes_its_time_{k}_{p}_{i}", stage >= u * run + v * moved + behind


def pipeline_takes_all_stages(m: UnlikeProgram) -> Rows:
    """through[k] >= sum of stage[k] + inside[m] (sum of used[p] - node_used[m]) + hop[m] node_joined[m] + overhead."""
    f = m.frame
    for k in (DECODE, PREFILL):
        hops = _sum(f.network_s[k][i] * MS * m.node_joined[i] for i in range(len(f.nodes)))
        inside = _sum(
            f.inside_s(k, i) * MS * (_sum(m.used[p] for p in f.of_node(i)) - m.node_used[i])
            for i in range(len(f.nodes))
        )
        stages = _sum(m.stage[k, p] for p in range(len(f.places)))
        overhead = f.question.engine.step_overhead_s * MS
        yield f"pipeline_takes_all_stages_{k}", m.through[k] >= stages + inside + hops + overhead
        for p in range(len(f.places)):
            yield f"slowest_stage_{k}_{p}", m.slowest[k] >= m.stage[k, p]


def drives_that_read_ahead_keep_up(m: UnlikeProgram) -> Rows:
    """through[k] >= drive[m] / rate and slowest[k] >= the same, where a node reads ahead: it may do so all the time."""
    for i, node in enumerate(m.frame.nodes):
        if node.reads_ahead and node.storage is not None:
            for k in (DECODE, PREFILL):
                read = _drive_ms(m, i, k)
                yield f"drive_keeps_up_{k}_{i}", m.through[k] >= read
                yield f"drive_is_no_slower_{k}_{i}", m.slowest[k] >= read


def cycle_is_the_longer(m: UnlikeProgram) -> Rows:
    """cycle >= through and cycle >= micro-batches x slowest: idle stages with few of them, a queue with many."""
    yield "cycle_is_all_stages", m.cycle >= m.through[DECODE]
    yield "cycle_is_the_slowest_stage", m.cycle >= m.frame.load.micro_batches * m.slowest[DECODE]


def limits_hold(m: UnlikeProgram) -> Rows:
    """cycle <= time per output token; prompt through + (pieces - 1) slowest <= time to the first; log_ppl <= change."""
    f, limits = m.frame, m.frame.question.limits
    if limits.pace_s is not None:
        yield "pace", m.cycle <= limits.pace_s * MS
    if limits.first_s is not None:
        yield "first_token", m.through[PREFILL] + (f.pieces - 1) * m.slowest[PREFILL] <= limits.first_s * MS
    if limits.log_ppl is not None:
        spent = _sum(m.sum_of(p, c.layout.log_ppl, MS) for p, c in enumerate(f.costs))
        outer = f.kv_log_ppl + f.costs[0].layout.outer_log_ppl
        yield "quality_budget", spent + outer * MS <= limits.log_ppl * MS + 1e-6


UNLIKE_CONSTRAINTS: tuple[Callable[[UnlikeProgram], Rows], ...] = (
    every_layer_has_a_place,
    places_with_layers_are_used,
    one_place_is_first_and_one_last,
    stages_are_contiguous,
    like_places_are_taken_in_order,
    nodes_are_as_wanted,
    place_memory,
    host_memory,
    several_places,
    device_limit,
    stage_takes_its_time,
    pipeline_takes_all_stages,
    drives_that_read_ahead_keep_up,
    cycle_is_the_longer,
    limits_hold,
)


def build(frame: UnlikeFrame, tightened: float = 1.0, below: float = float("inf")) -> UnlikeProgram:
    """The program with all its rows and its objective; only plans `below` a value of the goal are wanted."""
    import pulp

    def binary(name: str) -> Any:
        return m.problem.add_variable(name, cat="Binary")

    m = UnlikeProgram(frame, tightened, pulp.LpProblem("unlike", pulp.LpMinimize))
    places, nodes = range(len(frame.places)), range(len(frame.nodes))
    for p in places:
        for b, count in enumerate(frame.counts):
            for a in range(len(frame.costs[p].alternatives)):
                m.n[p, b, a] = m.problem.add_variable(f"layers_{p}_{b}_{a}", 0, count, cat="Integer")
        for k in (DECODE, PREFILL):
            m.stage[k, p] = m.problem.add_variable(f"stage_{k}_{p}", 0)
    m.used, m.first, m.last = ([binary(f"{name}_{p}") for p in places] for name in ("used", "first", "last"))
    m.together = binary("together") if len(frame.places) > 1 else 0
    m.node_used, m.node_joined = ([binary(f"{name}_{i}") for i in nodes] for name in ("node_used", "node_joined"))
    m.drive = [
        m.problem.add_variable(f"drive_{i}", 0) if n.storage is not None else 0.0 for i, n in enumerate(frame.nodes)
    ]
    m.through = [m.problem.add_variable(f"through_{k}", 0) for k in (DECODE, PREFILL)]
    m.slowest = [m.problem.add_variable(f"slowest_{k}", 0) for k in (DECODE, PREFILL)]
    m.cycle = m.problem.add_variable("cycle", 0)
    goal = frame.goal(m.through, m.slowest, m.cycle)
    unit = _unit(frame)
    m.problem += goal * (1.0 / unit), "goal"
    if below < float("inf"):
        m.problem += goal * (1.0 / unit) <= below * MS / unit, "better_than_the_best_found"
    for constraint in UNLIKE_CONSTRAINTS:
        for name, row in constraint(m):
            m.problem += row, name
    return m


def solve_unlike(frame: UnlikeFrame, tightened: float = 1.0, below: float = float("inf")) -> UnlikeSolved:
    """Solve a frame's program; where no plan is `below` that value of the goal it counts as infeasible."""
    import pulp

    m = build(frame, tightened, below)
    m.problem.solve(pulp.HiGHS(msg=False, gapRel=RELATIVE_GAP, timeLimit=SECONDS, threads=1))
    status = m.problem.sol_status
    if status not in (pulp.LpSolutionOptimal, pulp.LpSolutionIntegerFeasible):
        return UnlikeSolved(Outcome.INFEASIBLE, float("inf"), float("inf"), (), ())
    scale = _unit(frame) / MS
    objective = float(pulp.value(m.problem.objective)) * scale
    bound = min(objective, float(m.problem.solverModel.getInfo().mip_dual_bound) * scale)
    taken = tuple(
        On(p, b, frame.costs[p].alternatives[a], layers)
        for (p, b, a), v in m.n.items()
        if (layers := round(v.value() or 0.0))
    )
    drive = tuple(d if isinstance(d, float) else float(d.value() or 0.0) * GIB for d in m.drive)
    outcome = Outcome.OPTIMAL if status == pulp.LpSolutionOptimal else Outcome.FEASIBLE
    return UnlikeSolved(outcome, objective, bound, taken, drive)


def _unit(frame: UnlikeFrame) -> float:
    """The goal's value in ms if all steps took one: keeps the solver's numbers near one."""
    return float(frame.goal([1.0, 1.0], [0.0, 0.0], 1.0))


def _reader(frame: UnlikeFrame, node: int) -> int:
    """The place whose time the node's drive adds to: its host, else its first device."""
    here = frame.of_node(node)
    return next((p for p in here if frame.places[p].on_host), here[0])


def _drive_ms(m: UnlikeProgram, node: int, kind: int) -> Any:
    """Time of reading what is on the node's drive; of experts, a decode step reads those it chose."""
    storage = m.frame.nodes[node].storage
    if storage is None or isinstance(m.drive[node], float):
        return _sum(())
    here = [m.frame.costs[p] for p in m.frame.of_node(node) if m.frame.costs[p].host_bytes.any()]
    share = 1.0 if kind == PREFILL or not here else min(c.reread_share for c in here)
    return m.drive[node] * (GIB / storage.read_bytes_per_s.value * MS * share)


def _most_held(frame: UnlikeFrame, node: int) -> float:
    """GiB the node's host would hold with all layers."""
    most = 0.0
    for p in frame.of_node(node):
        c = frame.costs[p]
        fixed = c.fixed if frame.places[p].on_host else None
        beside = 0.0 if fixed is None else fixed.here + fixed.first + fixed.last
        most += float(np.array(frame.counts, float) @ c.host_bytes.max(axis=0)) + beside
    return most / GIB


def _sum(terms: Any) -> Any:
    import pulp

    return pulp.lpSum(terms)
