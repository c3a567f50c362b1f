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
from ..layer_parts import PARTS, LayerTimes, layer_times, part_of
from ..lowering.decoder import lower
from ..memory import ALLOCATOR_SHARE, ledger
from ..offload import StepCosts, chosen_shares, cxl_s_per_byte, held_up, link_factors, state_share
from ..placement import Away, LayerBytes, away, layer_bytes
from ..quality import Part, layer_shares, share
from ..quality import increase as quality_increase
from ..remake import remakes, remaking, seconds_by_block
from ..scenario import ON_DEVICE, MemoryTier, Mode, Numerics, Phase, Scenario, Sharding, Step, stage_layers
from ..schedule import price
from ..sensitivities import Sensitivities
from ..speculation import drafting
from ..workload.formats import WeightFormat


class Alternative(NamedTuple):
    """How a layer may be kept and run: formats of its shell and of its routed experts, and where they are."""

    shell: WeightFormat
    experts: WeightFormat
    mode: Mode = ON_DEVICE
    cached: float = 0.0
    tier: MemoryTier = MemoryTier.HOST

    @property
    def label(self) -> str:
        """`fp8`, `fp8 + int4 experts`, `int4, layers on the host`."""
        formats = self.shell.name if self.shell is self.experts else f"{self.shell.name} + {self.experts.name} experts"
        behind = " behind CXL" if self.tier is MemoryTier.CXL else ""
        return formats if self.mode is ON_DEVICE else f"{formats}, {self.mode.name}{behind}"


class Held(NamedTuple):
    """Bytes of a layer in each alternative, (alternatives, blocks, users): on a device; in host memory, and its state
    there; behind CXL; of a buffer for copying it, (alternatives, users), and what is made again meanwhile."""

    device: Array
    host: Array
    host_state: Array
    cxl: Array
    buffer: Array
    made: Array


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
        """Seconds of what belongs to no layer, and of a draft model, (stages, users)."""
        return self._outside[kind]

    @cached_property
    def _outside(self) -> tuple[Array, ...]:
        found = (self._device[kind, self.formats[0].name].outside for kind in range(len(self.kinds)))
        drafts = (drafting(self.base, kind.step, self.calibrations).time_s for kind in self.kinds)
        return tuple(layers + draft for layers, draft in zip(found, drafts, strict=True))

    @cached_property
    def _bytes(self) -> dict[str, tuple[LayerBytes, LayerBytes]]:
        """Of each format: bytes of a layer of each block on a device and in all."""
        return {f.name: (self._of_blocks(self._in(f), self.base.sharding), self._of_blocks(self._in(f), Sharding()))
                for f in self.formats}  # fmt: skip

    def _of_blocks(self, scenario: Scenario, sharding: Sharding) -> LayerBytes:
        found, first, shape = layer_bytes(scenario, sharding), self.first_layers, (len(self.counts), self.users)
        state, inputs = (np.broadcast_to(s[first].reshape(len(first), -1), shape) for s in (found.state, found.inputs))
        return LayerBytes(found.shell[first], found.experts[first], state, inputs)

    def _whose(self, a: Alternative) -> tuple[LayerBytes, LayerBytes]:
        """Bytes of a layer in an alternative's formats, on a device and in all."""
        pairs = zip(self._bytes[a.shell.name], self._bytes[a.experts.name], strict=True)
        here, whole = (shell._replace(experts=experts.experts) for shell, experts in pairs)
        return here, whole

    @cached_property
    def state(self) -> Array:
        """Bytes of all users' state in a layer of each block on a device, (blocks, users)."""
        return self._bytes[self.formats[0].name][0].state

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
    def bytes_(self) -> Held:
        """What a layer takes on every tier in each alternative."""
        rows = [self._held(a) for a in self.alternatives]
        return Held(*(np.stack(column) for column in zip(*rows, strict=True)))

    def _held(self, a: Alternative) -> Held:
        here, whole = self._whose(a)
        taken: Away = away(a.mode, a.cached, here, whole)
        device = (here.shell + here.experts - taken.freed_weights)[:, None] + here.state - taken.freed_state
        elsewhere, none = taken.weights[:, None] + taken.state, np.zeros_like(taken.state)
        far = a.tier is MemoryTier.CXL
        host, state, cxl = (none, none, elsewhere) if far else (elsewhere, taken.state, none)
        return Held(device, host, state, cxl, taken.buffer.max(axis=0), taken.made.max(axis=0))

    @cached_property
    def slope(self) -> float:
        """Bytes the allocator takes for each byte that is held, at most."""
        return allocator_slope(self.base)

    @cached_property
    def least_bytes(self) -> Array:
        """Bytes a device takes at least, (users,): the smallest alternative of every layer, stages of one size."""
        layers = np.array(self.counts, float) @ self.bytes_.device.min(axis=0)
        return np.asarray(layers * self.slope / self.base.sharding.pp + self.fixed_bytes.min(axis=0))

    @cached_property
    def fixed_bytes(self) -> Array:
        """Most a device of each stage holds beside what alternatives choose, (stages, users).

        The runtime's ranges at their highest, as the verdict `surely` takes them; the allocator's share grows with
        what is held.
        """
        reference = self._in(self.formats[0])
        memory = ledger(reference)
        own, _ = self._bytes[self.formats[0].name]
        each = (own.shell + own.experts)[:, None] + own.state
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
            found.append(tuple(np.stack([row[i] for row in rows]) for i in range(3)))  # computing, prefetched, late
        return tuple(found)  # type: ignore[arg-type]

    def _layer(self, kind: int, a: Alternative) -> LayerTimes:
        return layer_times(_Costs(self, kind, a), a.mode, a.cached, a.tier)

    def device_parts(self, kind: int, a: Alternative) -> Array:
        """Seconds of the parts of a layer on the device, (parts, blocks, users)."""
        return self._parts(self._device, kind, a)

    def host_parts(self, kind: int, a: Alternative) -> Array:
        """Seconds of them on the host."""
        return self._parts(self._host, kind, a)

    def _parts(self, side: dict[tuple[int, str], Seconds], kind: int, a: Alternative) -> Array:
        shell, experts = side[kind, a.shell.name].parts, side[kind, a.experts.name].parts
        return np.stack([shell[0], experts[1], shell[2]])

    def copied_bytes(self, kind: int, a: Alternative) -> tuple[Array, Array, Array]:
        """Bytes of each part that a step copies to a device, (parts, blocks, users); the same of all devices; of the
        inputs instead of the state, (blocks, users)."""
        share = state_share(self.base, self.kinds[kind].step)
        here, whole = self._whose(a)
        own, all_ = (
            np.stack([*(np.broadcast_to(w[:, None], b.state.shape) for w in (b.shell, b.experts)), b.state * share])
            for b in (here, whole)
        )
        return own, all_, here.inputs * share

    def remade(self, kind: int, weights: WeightFormat) -> Array:
        """Seconds of making a layer's keys and values again, (blocks, users)."""
        asked = self._in(weights)
        shape = (len(self.counts), self.users)
        if not remakes(asked):
            return np.zeros(shape)
        found = seconds_by_block(asked, remaking(asked, self.kinds[kind].step, self.calibrations))
        return np.broadcast_to(found.reshape(shape[0], -1), shape)

    def chosen(self, kind: int, cached: float) -> Array:
        """Share of a layer's expert bytes a step fetches, (blocks, users)."""
        if not self.base.model.has_experts:
            return np.zeros((len(self.counts), self.users))
        if (kind, cached) not in self._shares_chosen:
            self._shares_chosen[kind, cached] = self._choose(kind, cached)
        return self._shares_chosen[kind, cached]

    @cached_property
    def _shares_chosen(self) -> dict[tuple[int, float], Array]:
        return {}

    def _choose(self, kind: int, cached: float) -> Array:
        parts = (np.broadcast_to(part.tokens, (self.users,)) for part in self.kinds[kind].step.parts)
        return chosen_shares(self.base, np.asarray(sum(parts)), cached)

    def handover(self, kind: int) -> Array:
        """Seconds of the hidden state to the host and back, (users,)."""
        step, model = self.kinds[kind].step, self.base.model
        size = np.broadcast_to(step.tokens, (self.users,)) * model.hidden * self.base.numerics.activations.bytes
        return np.asarray(2.0 * StepCosts(self.base, step, self.calibrations).copy(size).time_s)


@dataclasses.dataclass(frozen=True, eq=False)
class _Costs:
    """The parts of an alternative's layers, as `layer_parts.PartCosts` asks for them: (parts, blocks, users)."""

    layout: Layout
    kind: int
    alternative: Alternative

    @cached_property
    def on_device(self) -> Array:
        return self.layout.device_parts(self.kind, self.alternative)

    @cached_property
    def on_host(self) -> Array:
        return self.layout.host_parts(self.kind, self.alternative)

    @cached_property
    def _copied(self) -> tuple[Array, Array, Array]:
        return self.layout.copied_bytes(self.kind, self.alternative)

    @property
    def copying(self) -> Array:
        factors = link_factors(self.layout.base)[:, None, None]
        return np.asarray(self._copied[0] * self.layout.link_s_per_byte * factors)

    @property
    def over_cxl(self) -> Array:
        return np.asarray(self._copied[1] * cxl_s_per_byte(self.layout.base.fleet))

    @property
    def copying_inputs(self) -> Array:
        kv = PARTS.index("kv")
        return np.asarray(self._copied[2] * self.layout.link_s_per_byte * link_factors(self.layout.base)[kv])

    @property
    def remaking(self) -> Array:
        return self.layout.remade(self.kind, self.alternative.shell)

    @property
    def repeats(self) -> Array:
        return np.array(self.layout.counts, float)

    @property
    def handing_over(self) -> Array:
        return self.layout.handover(self.kind)

    @property
    def held_up(self) -> Array:
        return held_up(self.layout.base, self.decoding)

    @property
    def decoding(self) -> bool:
        return self.layout.kinds[self.kind].step.phase is Phase.DECODE

    def chosen(self, cached: float) -> Array:
        return self.layout.chosen(self.kind, cached)


def combinations(
    formats: Sequence[WeightFormat],
    modes: Sequence[tuple[Mode, float]],
    has_experts: bool,
    tiers: Sequence[MemoryTier] = (MemoryTier.HOST,),
) -> tuple[Alternative, ...]:
    """Every mode with every format, kept in every tier; experts may be narrower than the shell around them."""
    pairs = [(f, f) for f in formats]
    if has_experts:
        pairs += [(s, e) for i, s in enumerate(formats) for e in formats[i + 1 :]]
    kept = [(m, c, t) for m, c in modes for t in (tiers if m is not ON_DEVICE else tiers[:1])]
    return tuple(Alternative(s, e, mode, cached, tier) for s, e in pairs for mode, cached, tier in kept)
