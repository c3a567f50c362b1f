"""The rows of the program: one constraint is one function, its formula in its docstring, its name on the solver's rows.

n[s, b, a] are the layers of block b on stage s in alternative a; T_k the seconds of a step of kind k.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ..offload import OVERLAP
from ..scenario import ON_DEVICE, Phase
from .program import GIB, Program, cxl_room, host_room

Rows = Iterator[tuple[str, Any]]
ANGLES = tuple(np.linspace(0.0, 1.0, 9))
MS = 1e3


def every_layer_has_a_place(p: Program) -> Rows:
    """sum over s, a of n[s, b, a] = layers of block b."""
    for b, count in enumerate(p.frame.counts):
        yield f"every_layer_has_a_place_{b}", _sum(v for (_, block, _), v in p.layers.items() if block == b) == count


def every_stage_has_layers(p: Program) -> Rows:
    """sum over b, a of n[s, b, a] >= 1: an engine has no empty stage."""
    for s in range(p.frame.stages if p.frame.stages > 1 else 0):
        yield f"every_stage_has_layers_{s}", _sum(v for (stage, _, _), v in p.layers.items() if stage == s) >= 1


def stages_follow_one_another(p: Program) -> Rows:
    """Stage s has the layers from the end of the last one to its own: with before[b, e] layers of b among the first e,

    sum over a of n[s, b, a] = sum over e of before[b, e] (ends[s, e] - ends[s - 1, e]); sum over e of ends[s, e] = 1.
    """
    if not p.ends:
        return
    pattern, last = np.array(p.question.model.pattern), p.frame.stages - 1
    for s in range(last):
        yield f"stages_follow_one_another_{s}", _sum(end for (stage, _), end in p.ends.items() if stage == s) == 1
    for b in range(len(p.frame.counts)):
        before = np.concatenate([[0], np.cumsum(pattern == b)])
        for s in range(last + 1):
            here = _sum(v for (stage, block, _), v in p.layers.items() if (stage, block) == (s, b))
            upto = _sum(int(before[e]) * end for (stage, e), end in p.ends.items() if stage == s)
            since = _sum(int(before[e]) * end for (stage, e), end in p.ends.items() if stage == s - 1)
            total = p.frame.counts[b] if s == last else upto
            yield f"stages_follow_one_another_{s}_{b}", here == total - since


def something_leaves_the_device(p: Program) -> Rows:
    """sum of n[s, b, a] over modes elsewhere >= 1: else requests come and go, which other frames price."""
    if p.frame.family.placed:
        away = {a for a, each in enumerate(p.frame.alternatives) if each.mode is not ON_DEVICE}
        yield "something_leaves_the_device", _sum(v for (_, _, a), v in p.layers.items() if a in away) >= 1


def device_memory(p: Program) -> Rows:
    """fixed[s] + slope (sum of n[s, b, a] bytes[a, b] + buffers) <= what may be claimed of a device, each stage."""
    layout, at = p.frame.family.layout, p.frame.at
    fixed, slope = layout.fixed_bytes, layout.slope
    device = layout.bytes_.device
    budget = p.question.budget_bytes() * p.tightened.memory
    for s in range(p.frame.stages):
        held = p.sum_of(device[:, :, at], s, slope / GIB) + slope * p.buffers
        yield f"device_memory_{s}", held <= (budget - float(fixed[s, at])) / GIB


def copies_have_buffers(p: Program) -> Rows:
    """n[s, b, a] <= layers[b] used[a], where a is copied over for a step, and

    buffers >= ((depth + 1) used[a] - depth waits) buffer[a] + made: one where layers wait for their copies.
    """
    held, depth = p.frame.family.layout.bytes_, p.ahead
    for a, used in p.used.items():
        for (s, b, alternative), variable in p.layers.items():
            if alternative == a:
                yield f"copies_are_used_{s}_{b}_{a}", variable <= p.frame.counts[b] * used
        one = float(held.buffer[a, p.frame.at]) / GIB
        many = (depth + 1) * used - (depth * p.waits if depth else 0.0)
        yield f"copies_have_buffers_{a}", p.buffers >= one * many + p.made


def remade_state_has_room(p: Program) -> Rows:
    """made >= made[a] used[a]: keys and values of a layer that are made again stand beside the copies."""
    held = p.frame.family.layout.bytes_
    for a, used in p.used.items():
        if not isinstance(p.made, float) and held.made[a, p.frame.at]:
            yield f"remade_state_has_room_{a}", p.made >= float(held.made[a, p.frame.at]) / GIB * used


def host_memory(p: Program) -> Rows:
    """sum of n[s, b, a] host[a, b] + buffers <= room of the host + what its drive keeps instead,

    which is at most sum of n[s, b, a] weights[a, b], and where an engine can, sum of n[s, b, a] state[a, b]; then no
    more than the drive holds.
    """
    if not p.frame.family.placed:
        return
    layout, at = p.frame.family.layout, p.frame.at
    host, state = (each[:, :, at] for each in (layout.bytes_.host, layout.bytes_.host_state))
    held = p.sum_of(host, scale=1 / GIB) + p.buffers
    yield "host_memory", held - p.from_drive - p.state_on_drive <= host_room(p.question) / GIB
    if not isinstance(p.from_drive, float):
        yield "weights_on_the_drive", p.from_drive <= p.sum_of(host - state, scale=1 / GIB)
    if not isinstance(p.state_on_drive, float):
        yield "state_on_the_drive", p.state_on_drive <= p.sum_of(state, scale=1 / GIB)
        drive = p.question.fleet.storage
        if drive is not None and drive.capacity_bytes is not None:
            yield "drive_capacity", p.from_drive + p.state_on_drive <= drive.capacity_bytes.value / GIB


def cxl_memory(p: Program) -> Rows:
    """sum of n[s, b, a] cxl[a, b] <= room behind CXL."""
    cxl = p.frame.family.layout.bytes_.cxl[:, :, p.frame.at]
    if cxl.any():
        yield "cxl_memory", p.sum_of(cxl, scale=1 / GIB) <= cxl_room(p.question) / GIB


def step_takes_its_time(p: Program) -> Rows:
    """T_k >= u (outside + sum of n computing) + v (sum of n prefetched) + sum of n late + bytes from the drive / rate,

    for (u, v) on the unit circle of the norm dual to the overlap's: tangents, so that no plan lies below them. Where
    layers wait for their copies u = v = 1; where the drive is read beside the rest, a norm of both follows.
    """
    layout, at = p.frame.family.layout, p.frame.at
    for k, time in enumerate(p.times):
        computing, prefetched, late = (c[:, :, at] for c in layout.seconds(k))
        run = (
            p.sum_of(computing, scale=MS)
            + float(layout.outside(k)[:, at].sum() + layout.base.engine.step_overhead_s) * MS
        )
        behind, drive = p.sum_of(late, scale=MS), _drive(p, k)
        beside = drive is not None and p.question.engine.drive_beside
        if drive is not None and not beside:
            behind += drive
        copies = p.sum_of(prefetched, scale=MS)
        if prefetched.any() and not (isinstance(p.waits, float) and p.waits == 0.0):
            most = (computing + prefetched).max(axis=0) @ np.array(p.frame.counts) + layout.outside(k)[:, at].sum()
            yield f"step_takes_its_time_{k}_waiting", time >= run + copies + behind - (1 - p.waits) * float(most) * MS
        for i, angle in enumerate(ANGLES if prefetched.any() else ANGLES[-1:]):
            u, v = tangent(float(angle))
            yield f"step_takes_its_time_{k}_{i}", time >= u * run + v * copies + behind
            for j, outer in enumerate(ANGLES[:-1] if beside else ()):
                w, d = tangent(float(outer))
                yield f"step_takes_its_time_{k}_{i}_{j}", time >= w * (u * run + v * copies + behind) + d * drive


def _drive(p: Program, kind: int) -> Any:
    """Milliseconds a step of a kind reads weights, reads the state kept there or writes that of its prompts."""
    drive = p.question.fleet.storage
    if drive is None or isinstance(p.from_drive, float):
        return None
    step, pieces = p.frame.family.layout.kinds[kind], p.frame.family.layout.kinds[kind].first[p.frame.at]
    found = p.from_drive * (GIB / drive.read_bytes_per_s.value * MS * p.touched)
    if step.step.phase is Phase.DECODE:
        share = float(np.ravel(step.step.past_tokens)[0]) / p.question.context
        return found + p.state_on_drive * (share * GIB / drive.read_bytes_per_s.value * MS)
    share = p.question.prompt / p.question.context / float(pieces)
    return found + p.state_on_drive * (share * GIB / drive.write_bytes_per_s.value * MS)


def slowest_stage_sets_the_pace(p: Program) -> Rows:
    """T_k >= micro-batches (outside[s] + sum of n[s, b, a] computing[a, b]) for every stage of a pipeline."""
    layout, at = p.frame.family.layout, p.frame.at
    for k, time in enumerate(p.times if p.frame.stages > 1 else ()):
        computing, _, _ = layout.seconds(k)
        cycles = float(layout.kinds[k].cycles[at])
        for s in range(p.frame.stages):
            stage = p.sum_of(computing[:, :, at], s, MS) + float(layout.outside(k)[s, at]) * MS
            yield f"slowest_stage_sets_the_pace_{k}_{s}", time >= cycles * stage


def quality_budget(p: Program) -> Rows:
    """sum of n[s, b, a] log_ppl[a, b] + that of the KV cache <= the change of log-perplexity allowed."""
    limit = p.question.limits.log_ppl
    if limit is not None:
        layout = p.frame.family.layout
        spent = p.sum_of(layout.log_ppl, scale=1e3) + (p.frame.family.kv_log_ppl + layout.outer_log_ppl) * 1e3
        yield "quality_budget", spent <= limit * 1e3 + 1e-6


def pace(p: Program) -> Rows:
    """sum over k of pace[k] T_k <= the time allowed per output token."""
    limit = p.question.limits.pace_s
    if limit is not None:
        yield "pace", _weighted(p, "pace") <= limit * MS * p.tightened.pace


def first_token(p: Program) -> Rows:
    """sum over k of first[k] T_k <= the service time allowed to the first token."""
    limit = p.question.limits.first_s
    if limit is not None:
        yield "first_token", _weighted(p, "first") <= limit * MS * p.tightened.first


CONSTRAINTS: tuple[Callable[[Program], Rows], ...] = (
    every_layer_has_a_place,
    every_stage_has_layers,
    stages_follow_one_another,
    something_leaves_the_device,
    device_memory,
    copies_have_buffers,
    remade_state_has_room,
    host_memory,
    cxl_memory,
    step_takes_its_time,
    slowest_stage_sets_the_pace,
    quality_budget,
    pace,
    first_token,
)


def _weighted(p: Program, name: str) -> Any:
    at = p.frame.at
    kinds = p.frame.family.layout.kinds
    return _sum(float(getattr(kind, name)[at]) * t for kind, t in zip(kinds, p.times, strict=True))


def tangent(angle: float) -> tuple[float, float]:
    """(u, v) with u^q + v^q = 1, 1/q + 1/OVERLAP = 1: then u x + v y <= (x^p + y^p)^(1/p) for all x, y >= 0."""
    q = OVERLAP / (OVERLAP - 1.0)
    return float(angle ** (1 / q)), float((1.0 - angle) ** (1 / q))


def _sum(terms: Any) -> Any:
    import pulp

    return pulp.lpSum(terms)
