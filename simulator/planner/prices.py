"""What every alternative of a layer costs in a frame: seconds of each kind of step, bytes on every tier, quality.

A frame fixes the layout, the KV format and the number of users; what is left to choose is linear in how many layers
of each block take which alternative, and these are its coefficients, straight from the simulator. All arrays have a
last axis over the numbers of users asked about, so that a layout is priced in one evaluation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

from ...hwspecs.load import host_fleet
from ..calibration import CalibrationSet
from ..estimate import Array
from ..lowering.decoder import lower
from ..memory import ALLOCATOR_SHARE, ledger
from ..offload import PARTS, StepCosts, link_factors, part_of, state_share
from ..placement import layer_bytes
from ..quality import Part, Sensitivities, layer_shares, share
from ..quality import increase as quality_increase
from ..scenario import ON_DEVICE, Mode, Numerics, Phase, Scenario, Sharding, Step, Where, stage_layers
from ..schedule import price
from ..workload.formats import WeightFormat


class Alternative(NamedTuple):
    """How a layer may be kept and run: formats of its shell and of its routed experts, and where they are."""

    shell: WeightFormat
    experts: WeightFormat
    mode: Mode = ON_DEVICE
    cached: float = 0.0

    @property
    def label(self) -> str:
        """`fp8`, `fp8 + int4 experts`, `int4, layers on the host`."""
        formats = self.shell.name if self.shell is self.experts else f"{self.shell.name} + {self.experts.name} experts"
        return formats if self.mode is ON_DEVICE else f"{formats}, {self.mode.name}"


class StepKind(NamedTuple):
    """A step a request's life is made of, (users,): how much of it goes to each output token, to the pace of a user's
    tokens and to the time before the first; `cycles` micro-batches pass the pipeline for it."""

    step: Step
    per_token: Array
    pace: Array
    first: Array
    cycles: Array


class Seconds(NamedTuple):
    """One kind of step: seconds of a layer's parts on a side, (parts, blocks, users); of no layer (stages, users)."""

    parts: Array
    outside: Array


def part_seconds(scenario: Scenario, step: Step, calibrations: CalibrationSet, users: int) -> Seconds:
    """The step priced once, taken apart by block and part."""
    model = scenario.model
    names = [block.name for block in model.blocks]
    layers = dict.fromkeys(names, 0)
    for name, count in zip(names, model.layer_counts(), strict=True):
        layers[name] += count
    parts = {name: np.zeros((len(PARTS), users)) for name in names}
    outside = np.zeros((scenario.sharding.pp, users))
    for p in price(lower(scenario, step), scenario, calibrations):
        each = np.broadcast_to(p.times.time_s.reshape(len(p.table.label), -1), (len(p.table.label), users))
        for row, name in enumerate(p.table.layer):
            if name in layers:
                parts[name][part_of(p.table)] += each[row] * p.table.count[row].sum() / layers[name]
            else:
                outside += each[row] * p.table.count[row][:, None]
    return Seconds(np.stack([parts[name] for name in names], axis=1), outside)


def allocator_slope(scenario: Scenario) -> float:
    """Bytes the allocator takes on a device for each byte that is held, at most."""
    return 1.0 + (ALLOCATOR_SHARE[-1] if scenario.fleet.device.vendor == "nvidia" else 0.0)


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
    """One layout with one KV format, at several numbers of users: where all coefficients come from."""

    base: Scenario  # batch (users,), the layout, the KV format
    kinds: tuple[StepKind, ...]
    alternatives: tuple[Alternative, ...]
    calibrations: CalibrationSet
    sensitivities: Sensitivities | None = None

    @property
    def users(self) -> int:
        """How many numbers of users there are."""
        return int(np.size(self.base.batch))

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Layers of each block."""
        return self.base.model.layer_counts()

    @cached_property
    def first_layers(self) -> list[int]:
        """A layer of each block: all of a block are alike."""
        return [self.base.model.pattern.index(b) for b in range(len(self.counts))]

    @cached_property
    def formats(self) -> tuple[WeightFormat, ...]:
        """Every format some alternative has."""
        return tuple(dict.fromkeys(f for a in self.alternatives for f in (a.shell, a.experts)))

    def _in(self, weights: WeightFormat) -> Scenario:
        numerics = self.base.numerics
        return self.base.but(numerics=Numerics(weights, numerics.kv, numerics.activations))

    @cached_property
    def _device(self) -> dict[tuple[int, str], Seconds]:
        return {
            (k, f.name): part_seconds(self._in(f), kind.step, self.calibrations, self.users)
            for k, kind in enumerate(self.kinds)
            for f in self.formats
        }

    @cached_property
    def _host(self) -> dict[tuple[int, str], Seconds]:
        fleet = host_fleet(self.base.fleet, self.base.engine.copies_by_socket)
        there = self.calibrations.on(fleet)
        passes = np.array([1.0, 1.0, self.base.engine.host_attention_passes])[:, None, None]
        found = {}
        for k, kind in enumerate(self.kinds):
            for f in self.formats:
                asked = self._in(f).but(fleet=fleet, sharding=Sharding())
                priced = part_seconds(asked, kind.step, there, self.users)
                found[k, f.name] = priced._replace(parts=priced.parts * passes)
        return found

    def outside(self, kind: int) -> Array:
        """Seconds of what belongs to no layer, (stages, users)."""
        return self._device[kind, self.formats[0].name].outside

    @cached_property
    def _bytes(self) -> dict[str, tuple[Array, Array, Array, Array]]:
        """Of each format: bytes of a layer's shell and experts on a device and in all, (blocks,)."""
        found = {}
        for f in self.formats:
            here, whole = (layer_bytes(self._in(f), s) for s in (self.base.sharding, Sharding()))
            found[f.name] = tuple(
                column[self.first_layers] for column in (here.shell, here.experts, whole.shell, whole.experts)
            )
        return found  # type: ignore[return-value]

    @cached_property
    def state(self) -> tuple[Array, Array]:
        """Bytes of all users' state in a layer of each block on a device and in all, (blocks, users)."""
        here, whole = (layer_bytes(self.base, s).state for s in (self.base.sharding, Sharding()))
        first, shape = self.first_layers, (len(self.counts), self.users)
        own, all_ = (np.broadcast_to(s[first].reshape(len(first), -1), shape) for s in (here, whole))
        return own, all_

    @cached_property
    def host_state(self) -> Array:
        """Bytes of all users' state in a layer that host memory (or its drive) keeps, (alternatives, blocks, users)."""
        _, all_ = self.state
        away = np.array([float(a.mode.kv is not Where.DEVICE) for a in self.alternatives])
        return np.asarray(away[:, None, None] * all_)

    @cached_property
    def log_ppl(self) -> Array:
        """What a layer of each block adds to log-perplexity in each alternative, (alternatives, blocks)."""
        model = self.base.model
        rows = []
        for a in self.alternatives:
            row = np.zeros(len(self.counts))
            for part, format_ in ((Part.SHELL, a.shell), (Part.EXPERTS, a.experts)):
                change = max(0.0, quality_increase(model, format_).usual)
                each = change * layer_shares(model, part, format_.whole)[self.first_layers]
                if self.sensitivities is not None:
                    said = [self.sensitivities.of(layer, part, format_) for layer in self.first_layers]
                    each = np.array([e if s is None else max(0.0, s) for e, s in zip(each, said, strict=True)])
                row += each
            rows.append(row)
        return np.stack(rows)

    @cached_property
    def outer_log_ppl(self) -> float:
        """What embedding and head add, where the format narrows them too."""
        whole = self.formats[0]
        if not whole.whole:
            return 0.0
        change = max(0.0, quality_increase(self.base.model, whole).usual)
        return change * sum(share(self.base.model, part, True) for part in (Part.EMBEDDING, Part.HEAD))

    @cached_property
    def bytes_(self) -> tuple[Array, Array, Array]:
        """Bytes of a layer in each alternative (alternatives, blocks, users): on a device, in host memory of weights,
        and the buffers of copies (alternatives, users)."""
        own, all_ = self.state
        device, host, staging = [], [], []
        for a in self.alternatives:
            shell, _, whole_shell, _ = self._bytes[a.shell.name]
            _, experts, _, whole_experts = self._bytes[a.experts.name]
            away, mode = 1.0 - a.cached, a.mode
            moved = [float(w is not Where.DEVICE) for w in (mode.shell, mode.experts, mode.kv)]
            kept = shell * (1 - moved[0]) + experts * (1 - moved[1] * away)
            device.append(kept[:, None] + own * (1 - moved[2]))
            host.append((whole_shell * moved[0] + whole_experts * moved[1] * away)[:, None] + all_ * moved[2])
            buffer = np.zeros(self.users)
            if mode.shell is Where.STREAMED:
                buffer = buffer + float(np.max(shell + experts))
            if mode.kv is Where.STREAMED:
                buffer = np.maximum(buffer, own.max(axis=0))
            staging.append(2.0 * buffer)
        return np.stack(device), np.stack(host), np.stack(staging)

    @cached_property
    def slope(self) -> float:
        """Bytes the allocator takes for each byte that is held, at most."""
        return allocator_slope(self.base)

    @cached_property
    def least_bytes(self) -> Array:
        """Bytes a device takes at least, (users,): the smallest alternative of every layer, stages of one size."""
        device, _, _ = self.bytes_
        layers = np.array(self.counts, float) @ device.min(axis=0)
        return np.asarray(layers * self.slope / self.base.sharding.pp + self.fixed_bytes.min(axis=0))

    @cached_property
    def fixed_bytes(self) -> Array:
        """Most a device of each stage holds beside what alternatives choose, (stages, users).

        The runtime's ranges at their highest, as the verdict `surely` takes them; the allocator's share grows with
        what is held.
        """
        reference = self._in(self.formats[0])
        memory = ledger(reference)
        shell, experts, *_ = self._bytes[self.formats[0].name]
        own, _ = self.state
        each = (shell + experts)[:, None] + own
        held = np.stack([np.array(layers) @ each for layers in stage_layers(self.base.model, self.base.sharding)])
        high = np.broadcast_to(memory.high_bytes(), (self.base.sharding.pp, self.users))
        return np.asarray(high - self.slope * held)

    @cached_property
    def link_s_per_byte(self) -> float:
        """Seconds one byte of a large copy to the device takes."""
        return float(StepCosts(self.base, self.kinds[0].step, self.calibrations).copy(1e9).time_s) / 1e9

    def seconds(self, kind: int) -> tuple[Array, Array, Array]:
        """Seconds of a layer in each alternative, (alternatives, blocks, users): computing, prefetched, late copies."""
        return self._seconds[kind]

    @cached_property
    def _seconds(self) -> tuple[tuple[Array, Array, Array], ...]:
        found = []
        for kind in range(len(self.kinds)):
            rows = [self._layer(kind, a) for a in self.alternatives]
            found.append(tuple(np.stack([row[i] for row in rows]) for i in range(3)))
        return tuple(found)  # type: ignore[arg-type]

    def _layer(self, kind: int, a: Alternative) -> tuple[Array, Array, Array]:
        """`offload.layer_times`, over blocks and numbers of users at once."""
        shell, experts = self._device[kind, a.shell.name].parts, self._device[kind, a.experts.name].parts
        device = np.stack([shell[0], experts[1], shell[2]])
        if a.mode is ON_DEVICE:
            return device.sum(axis=0), np.zeros_like(device[0]), np.zeros_like(device[0])
        step, link = self.kinds[kind].step, self.link_s_per_byte
        there = np.stack([self._host[kind, f.name].parts[i] for i, f in enumerate((a.shell, a.experts, a.shell))])
        own, _ = self.state
        copied = np.stack(
            [
                np.broadcast_to(self._bytes[a.shell.name][0][:, None], own.shape),
                self._bytes[a.experts.name][1][:, None] * self._missed(kind, a.cached),
                own * state_share(self.base, step),
            ]
        )
        factors = link_factors(self.base)
        computing, prefetched, late = np.zeros_like(own), np.zeros_like(own), np.zeros_like(own)
        handed = np.zeros(self.users, dtype=bool)
        layers = np.array(self.counts, float)[:, None]
        for index, part in enumerate(PARTS):
            where: Where = getattr(a.mode, part)
            copies = copied[index] * link * factors[index]
            if where is Where.DEVICE:
                computing = computing + device[index]
                continue
            better = np.zeros(self.users, dtype=bool)
            if where is Where.HOST and step.phase is Phase.PREFILL:
                over = (layers * np.maximum(copies, device[index])).sum(axis=0)
                better = over < (layers * there[index]).sum(axis=0)
            on_host = (where is Where.HOST) & ~better
            computing = computing + np.where(on_host, there[index], device[index])
            handed |= on_host
            waits = part == "experts" and a.mode.shell is Where.DEVICE and step.phase is Phase.DECODE
            moved = np.where(on_host, 0.0, copies)
            late, prefetched = (late + moved, prefetched) if waits else (late, prefetched + moved)
        if a.mode.shell is not Where.HOST:
            computing = computing + np.where(handed, self._handover(kind), 0.0)
        return computing, prefetched, late

    def _missed(self, kind: int, cached: float) -> Array:
        """Share of a layer's expert bytes a step fetches, (blocks, users)."""
        if not self.base.model.has_experts:
            return np.zeros((len(self.counts), self.users))
        if (kind, cached) not in self._shares_missed:
            self._shares_missed[kind, cached] = self._miss(kind, cached)
        return self._shares_missed[kind, cached]

    @cached_property
    def _shares_missed(self) -> dict[tuple[int, float], Array]:
        return {}

    def _miss(self, kind: int, cached: float) -> Array:
        rows = []
        for at in range(self.users):
            rows.append(StepCosts(self._one(at), one_step(self.kinds[kind].step, at), self.calibrations).missed(cached))
        return np.stack(rows, axis=1)[self.first_layers]

    def _handover(self, kind: int) -> Array:
        step, model = self.kinds[kind].step, self.base.model
        size = np.broadcast_to(step.tokens, (self.users,)) * model.hidden * self.base.numerics.activations.bytes
        return np.asarray(2.0 * StepCosts(self.base, step, self.calibrations).copy(size).time_s)

    def _one(self, at: int) -> Scenario:
        return self.base.but(batch=float(np.ravel(self.base.batch)[at]))


def one_step(step: Step, at: int) -> Step:
    """The step of one number of users."""

    def taken(value: object) -> float:
        flat = np.ravel(np.asarray(value, float))
        return float(flat[at] if flat.size > 1 else flat[0])

    riding = None if step.riding is None else one_step(step.riding, at)
    logits = None if step.logit_tokens is None else taken(step.logit_tokens)
    return Step(step.phase, taken(step.sequences), taken(step.new_tokens), taken(step.past_tokens), logits, riding)


def combinations(
    formats: Sequence[WeightFormat], modes: Sequence[tuple[Mode, float]], has_experts: bool
) -> tuple[Alternative, ...]:
    """Every mode with every format; experts may be narrower than the shell around them."""
    pairs = [(f, f) for f in formats]
    if has_experts:
        pairs += [(s, e) for i, s in enumerate(formats) for e in formats[i + 1 :]]
    return tuple(Alternative(s, e, mode, cached) for s, e in pairs for mode, cached in modes)
