"""The time of a step whose layers are not all on the device: computed on the host, or copied over as it goes.

Layers run one after another, on the device or on the host; what is copied travels beside them, prefetched, but for
experts, which nobody knows before the router has chosen:

    T = (C^p + S^p)^(1/p) + E,   C = time on the device + time on the host + hand-overs,   S = prefetched copies

with p = `OVERLAP`, and E the copies of chosen experts that are not cached on the device, and staging that keeps an
engine from launching kernels. That is for copies begun ahead of like layers; how much later a pass over unlike ones
ends is simulated copy by copy (`overlap.prefetched`), and where nothing is begun ahead T = C + S + E. A hand-over
copies the hidden state to the host and back. Weights that do not fit host memory are read from the drive each time:
behind T, or beside all of it by engines that have threads for it; so is what of the KV cache is kept there. Memory
behind CXL holds computing and copies up where it is the slower of the two.
"""

from __future__ import annotations

import dataclasses
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..dtypes import DType
from ..hwspecs.device import Fleet
from ..hwspecs.load import host_fleet
from .calibration import CalibrationSet
from .costs import estimate
from .costs import experts as experts_cost
from .estimate import NO_TIME, Array, Estimate, Terms, Tier, nothing, priced, total
from .layer_parts import PARTS, LayerTimes, host_seconds, layer_times, part_of
from .lowering.decoder import lower
from .operators import Copy, Experts, Kernel, KernelName, one_row
from .overlap import norm_of, prefetched
from .placement import layer_bytes
from .remake import remakes, remaking, seconds_by_block
from .scenario import ON_DEVICE, Number, Phase, Scenario, Sharding, Step, Stretch, Where
from .schedule import Priced, price
from .workload.model import Experts as ExpertsFacts
from .workload.routing import Routing, popularity

OVERLAP = 4.0  # exponent of the norm over computing and copying beside each other (assumed: no public measurement yet)
# Rate of a copy from memory that is not pinned, as a share of one that is: 4.6 of 12.4 GB/s, measured on a T4 by the
# authors of CAMP (public repository, manuscript table "platform"). The host's cores decide it more than the link.
PAGEABLE = 0.37
DRIVE_LOG_SD = 0.4  # how well a drive's sequential rate describes reading layers through the page cache (assumed)


class Side(NamedTuple):
    """A step priced on one side: its operators, and seconds of each part of each layer, (3, layers)."""

    operators: tuple[Priced, ...]
    seconds: npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True, eq=False)
class StepCosts:
    """A step of a scalar scenario priced on the device and on its host, layer by layer and part by part."""

    scenario: Scenario
    step: Step
    calibrations: CalibrationSet

    @cached_property
    def device(self) -> Side:
        """Everything on the device."""
        return self._side(self.scenario, self.calibrations)

    @cached_property
    def host(self) -> Side:
        """Everything on the host: the whole model, whatever the layout on the devices."""
        fleet = host_fleet(self.scenario.fleet, self.scenario.engine.copies_by_socket)
        side = self._side(self.scenario.but(fleet=fleet, sharding=Sharding()), self.calibrations.on(fleet))
        passes = self.scenario.engine.host_attention_passes
        operators = tuple(
            p._replace(times=p.times.scaled(passes)) if part_of(p.table) == PARTS.index("kv") else p
            for p in side.operators
        )
        return Side(operators, side.seconds * np.array([[1.0], [1.0], [passes]]))

    @cached_property
    def outside(self) -> Estimate:
        """What runs before and behind the layers, always on the device."""
        return total(p.times.weighted_rows(p.table.count.sum(axis=1)) for p in self.outer_operators)

    @cached_property
    def outer_operators(self) -> tuple[Priced, ...]:
        """The operators that belong to no layer; those of layers count nothing."""
        names = {block.name for block in self.scenario.model.blocks}
        return tuple(
            _counted(p, np.array([float(name not in names) for name in p.table.layer])) for p in self.device.operators
        )

    def _side(self, scenario: Scenario, calibrations: CalibrationSet) -> Side:
        operators = price(lower(scenario, self.step), scenario, calibrations)
        model = scenario.model
        names = [block.name for block in model.blocks]
        layers_of = dict.fromkeys(names, 0)
        for name, count in zip(names, model.layer_counts(), strict=True):
            layers_of[name] += count
        seconds = {(part, name): 0.0 for part in range(len(PARTS)) for name in names}
        for p in operators:
            each = p.times.time_s.reshape(len(p.table.label), -1)[:, 0]
            for i, (name, repeats) in enumerate(zip(p.table.layer, p.table.count.sum(axis=1), strict=True)):
                if name in layers_of:
                    seconds[part_of(p.table), name] += float(each[i]) * repeats / layers_of[name]
        order = [names[block] for block in model.pattern]
        return Side(operators, np.array([[seconds[p, name] for name in order] for p in range(len(PARTS))]))

    @property
    def on_device(self) -> Array:
        """Seconds of computing on the device, (3, layers)."""
        return self.device.seconds

    @property
    def on_host(self) -> Array:
        """Seconds of computing on the host, (3, layers)."""
        return self.host.seconds

    @cached_property
    def copied_bytes(self) -> npt.NDArray[np.float64]:
        """Bytes over the host link if a part of a layer is copied for the step, (3, layers); experts all of them."""
        return self._part_bytes(self.scenario.sharding)

    def _part_bytes(self, sharding: Sharding) -> npt.NDArray[np.float64]:
        found = layer_bytes(self.scenario, sharding)
        state = found.state.reshape(len(found.shell), -1)[:, 0] * state_share(self.scenario, self.step)
        return np.stack([found.shell, found.experts, state])

    @cached_property
    def copying(self) -> Array:
        """Seconds of those copies, (3, layers)."""
        return np.asarray(self.copied_bytes * self.link_s_per_byte[:, None])

    @cached_property
    def over_cxl(self) -> Array:
        """Seconds the bytes of all ranks take out of memory behind CXL, (3, layers)."""
        return np.asarray(self._part_bytes(Sharding()) * cxl_s_per_byte(self.scenario.fleet))

    @cached_property
    def copying_inputs(self) -> Array:
        """Seconds of copying the inputs of cached tokens, (layers,)."""
        found = layer_bytes(self.scenario, self.scenario.sharding).inputs.reshape(self.scenario.model.layers, -1)[:, 0]
        kv = PARTS.index("kv")
        return np.asarray(found * state_share(self.scenario, self.step) * self.link_s_per_byte[kv])

    @cached_property
    def remade(self) -> tuple[Priced, ...]:
        """The operators that make keys and values again, in a layer of each block."""
        return remaking(self.scenario, self.step, self.calibrations) if remakes(self.scenario) else ()

    @cached_property
    def remaking(self) -> Array:
        """Seconds of making keys and values again, (layers,)."""
        each = seconds_by_block(self.scenario, self.remade)
        return np.asarray(each.reshape(len(each), -1)[:, 0][list(self.scenario.model.pattern)])

    @property
    def repeats(self) -> Array:
        """Each layer stands for itself."""
        return np.ones(self.scenario.model.layers)

    @property
    def handing_over(self) -> Array:
        """Seconds of the hidden state to the host and back."""
        return self.handover.time_s

    @property
    def held_up(self) -> Array:
        """Share of copying each part that nothing runs beside, (3,)."""
        return held_up(self.scenario, self.decoding)

    @property
    def decoding(self) -> bool:
        """Whether it is a decode step."""
        return self.step.phase is Phase.DECODE

    @cached_property
    def link_s_per_byte(self) -> npt.NDArray[np.float64]:
        """Seconds one byte of each part takes in large copies, (3,): pageable memory is slower."""
        pinned = float(self.copy(1e9).time_s) / 1e9
        return pinned * link_factors(self.scenario)

    def chosen(self, cached: float) -> Array:
        """Share of a layer's expert bytes a step has to fetch where the popular `cached` share is on the device."""
        tokens = np.asarray(sum(np.sum(part.tokens) for part in self.step.parts))
        return chosen_shares(self.scenario, tokens, cached)[list(self.scenario.model.pattern)]

    @cached_property
    def handover(self) -> Estimate:
        """The hidden state of the step's tokens to the host and back."""
        tokens = float(np.sum([np.sum(part.tokens) for part in self.step.parts]))
        size = tokens * self.scenario.model.hidden * self.scenario.numerics.activations.bytes
        return self.copy(size).scaled(2.0)

    def copy(self, size: Number) -> Estimate:
        """A copy of so many bytes over the host link."""
        table = one_row(Copy, "host copy", "model", 1, Kernel(KernelName.HOST_COPY, DType.BF16), copy_bytes=size)
        return estimate(table, self.scenario.fleet, self.calibrations).row(0)

    def side_of(self, where: Where) -> Side:
        """Who computes a part that is kept there."""
        return self.host if where is Where.HOST else self.device


def chosen_shares(scenario: Scenario, tokens: Array, cached: float) -> Array:
    """Share of a layer's expert bytes that steps of so many tokens fetch, (blocks, *tokens); see `StepCosts.chosen`."""
    skewed = scenario.engine.routing is Routing.POWER_LAW
    shares = []
    for block in scenario.model.blocks:
        ffn = block.ffn
        if not isinstance(ffn, ExpertsFacts):
            shares.append(np.zeros(tokens.shape))
            continue
        cold = round(ffn.experts * (1.0 - cached))
        chosen = popularity(tokens, ffn.experts, ffn.top_k, skewed)
        shares.append(chosen[..., :cold].sum(axis=-1) / ffn.experts)
    return np.stack(shares)


def link_factors(scenario: Scenario) -> npt.NDArray[np.float64]:
    """How much longer than from pinned memory copies of each part take, (3,)."""
    pageable = scenario.engine.pageable
    return np.array([1.0 / PAGEABLE if part in pageable else 1.0 for part in range(len(PARTS))])


def held_up(scenario: Scenario, decoding: bool) -> Array:
    """Share of copying each part to the device that nothing runs beside, (3,): see `Engine.staging_blocks`.

    Prompts write their cache to the host, which threads of their own do.
    """
    engine, kv = scenario.engine, PARTS.index("kv")
    staged = [engine.staging_blocks and i in engine.pageable and (decoding or i != kv) for i in range(len(PARTS))]
    return np.where(staged, 1.0 - PAGEABLE, 0.0)


def cxl_s_per_byte(fleet: Fleet) -> float:
    """Seconds one byte takes out of memory behind CXL (none there: 0, nobody asks)."""
    return 0.0 if fleet.cxl is None else 1.0 / fleet.cxl.read_bytes_per_s.value


def state_share(scenario: Scenario, step: Step) -> Array:
    """Share of all users' KV cache a step copies: a step that takes prompts in writes that of its own sequences."""
    if step.phase is Phase.DECODE:
        return np.ones(())
    return np.asarray(np.minimum(1.0, np.asarray(step.sequences, float) / np.asarray(scenario.batch, float)))


class Detailed(NamedTuple):
    """A step under a placement, and the operators it is made of wherever they run."""

    time: Estimate
    operators: tuple[Priced, ...]


def step_time(costs: StepCosts) -> Detailed:
    """The step under the scenario's placement, with its terms, error and evidence."""
    times = _own_times(costs)
    on = times.by_host
    operators = [*costs.outer_operators, *shared_out(costs, costs.device.operators, np.where(on, 0.0, 1.0))]
    if on.any():
        host = costs.calibrations.on(host_fleet(costs.scenario.fleet, costs.scenario.engine.copies_by_socket))
        for p in shared_out(costs, costs.host.operators, np.where(on, 1.0, 0.0)):
            label = tuple(f"host: {text}" for text in p.table.label)
            operators.append(Priced(dataclasses.replace(p.table, label=label), p.times, host))
        handed = _handovers(costs.scenario, on)
        operators.append(_copies("hand over to the host and back", costs.handover, handed))
    again = [stretch.mode.kv is Where.REMADE for stretch in costs.scenario.placement.modes(on.shape[1])]
    if any(again):
        operators += shared_out(costs, costs.remade, np.where(np.array(again), 1.0, 0.0)[None].repeat(len(PARTS), 0))
    waits = _waiting_for_cxl(costs, on)
    if waits:
        gigabyte = costs.copy(1e9)
        operators.append(_copies("wait for memory behind CXL", gigabyte, waits / float(gigabyte.time_s)))
    run = total(p.times.weighted_rows(p.table.count.sum(axis=1)) for p in operators)
    late = float(times.late.sum())
    together = _beside(costs.scenario, float(run.time_s), times)
    drive = _from_drive(costs)
    if costs.scenario.engine.drive_beside and float(drive.time_s):
        all_, _ = norm_of((np.asarray(together + late), drive.time_s), OVERLAP)
        drive = drive.scaled((float(all_) - together - late) / float(drive.time_s))
    exposed = max(0.0, together - float(run.time_s)) + late
    if exposed:
        gigabyte = costs.copy(1e9)
        operators.append(_copies("copied for the step", gigabyte, exposed / float(gigabyte.time_s)))
        run = run + gigabyte.scaled(exposed / float(gigabyte.time_s))
    if float(drive.time_s):
        operators.append(_copies("read from the drive", drive, 1.0))
    return Detailed(run + drive, tuple(operators))


def _own_times(costs: StepCosts) -> LayerTimes:
    """The times of every layer in its own mode."""
    parts = []
    for span, stretch in _spans(costs.scenario):
        times = layer_times(costs, stretch.mode, stretch.cached, stretch.tier)
        parts.append([column[..., span] for column in times])
    return LayerTimes(*(np.concatenate(columns, axis=-1) for columns in zip(*parts, strict=True)))


def _beside(scenario: Scenario, run: float, times: LayerTimes) -> float:
    """Seconds of computing and prefetched copies together; what runs outside the layers is one more of them."""
    ahead = scenario.placement.ahead
    copies, computing = float(times.prefetched.sum()), float(times.computing.sum())
    if not copies:
        return run
    if not ahead:
        return run + copies
    like_layers, _ = norm_of((np.asarray(run), np.asarray(copies)), OVERLAP)
    if scenario.engine.cuts_layers:
        return float(like_layers)
    inside = times.computing * min(1.0, run / computing)
    lengths = [span.stop - span.start for span, _ in _spans(scenario)]
    kinds = np.append(np.repeat(np.arange(len(lengths)), lengths), len(lengths))
    pass_s = prefetched(np.append(inside, run - inside.sum()), np.append(times.prefetched, 0.0), kinds, ahead)
    return min(run + copies, float(like_layers) * pass_s / max(run, copies))


def _copies(label: str, one: Estimate, count: float) -> Priced:
    """Copies as operators beside the others; how many bytes they move is in their time."""
    kernel = Kernel(KernelName.HOST_COPY, DType.BF16)
    rows = Estimate(
        _row(one.time_s),
        Terms(*map(_row, one.terms.stack())),
        _row(one.shared_sd_s),
        _row(one.own_var_s2),
        tuple(map(_row, one.evidence_s)),
        _row(one.extrapolated_s),
    )
    return Priced(one_row(Copy, label, "model", count, kernel, copy_bytes=0.0), rows)


def _row(value: Array) -> Array:
    """The same with a leading axis of one row."""
    return value if value is NO_TIME else np.asarray(value)[None]


def _spans(scenario: Scenario) -> list[tuple[slice, Stretch]]:
    """The stretches with the layers they cover, what stays on the device as the last one."""
    spans, start = [], 0
    for stretch in (*scenario.placement.stretches, Stretch(ON_DEVICE, scenario.model.layers)):
        stop = min(scenario.model.layers, start + stretch.layers)
        spans.append((slice(start, stop), stretch))
        start = stop
    return spans


def _waiting_for_cxl(costs: StepCosts, on: npt.NDArray[np.bool_]) -> float:
    """Seconds the host waits for what it computes with out of memory behind CXL."""
    found = 0.0
    for span, stretch in _spans(costs.scenario):
        for index in np.flatnonzero(on[:, span].any(axis=1)):
            slower = host_seconds(costs, int(index), stretch.cached, stretch.tier) - costs.on_host[index]
            found += float(slower[span].sum())
    return found


def _handovers(scenario: Scenario, on: npt.NDArray[np.bool_]) -> float:
    """How often the hidden state goes to the host and comes back: once a run of whole layers, else once a layer."""
    whole = on[0]
    runs = int(whole[0]) + int(np.count_nonzero(whole[1:] & ~whole[:-1]))
    return runs + float(np.count_nonzero(on[1:].any(axis=0) & ~whole))


def shared_out(costs: StepCosts, operators: tuple[Priced, ...], share: npt.NDArray[np.float64]) -> list[Priced]:
    """The operators of layers, each part as often as there are layers with it on this side."""
    order = np.array([costs.scenario.model.blocks[b].name for b in costs.scenario.model.pattern])
    result = []
    for p in operators:
        part = part_of(p.table)
        here = [float(share[part][order == name].mean()) if (order == name).any() else 0.0 for name in p.table.layer]
        result.append(_counted(p, np.array(here)))
    return result


def _counted(priced_: Priced, share: npt.NDArray[np.float64]) -> Priced:
    """The same operators, each row as often as its share says."""
    return priced_._replace(table=dataclasses.replace(priced_.table, count=priced_.table.count * share[:, None]))


def drive_bytes(scenario: Scenario, step: Step) -> float:
    """Bytes a step reads from the drive: of the host's weights the share that is not in memory, experts as chosen."""
    share = scenario.placement.storage_share
    if not share:
        return 0.0
    whole = layer_bytes(scenario, Sharding())
    touched = touched_share(scenario, step)
    read = 0.0
    for i, stretch in enumerate(scenario.placement.modes(scenario.model.layers)):
        read += whole.shell[i] if stretch.mode.shell is not Where.DEVICE else 0.0
        if stretch.mode.experts is not Where.DEVICE:
            read += whole.experts[i] * touched[i] * (1.0 - stretch.cached)
    return share * read


def touched_share(scenario: Scenario, step: Step) -> npt.NDArray[np.float64]:
    """Share of each layer's experts the step's tokens choose."""
    result = np.zeros(scenario.model.layers)
    order = np.array([scenario.model.blocks[b].name for b in scenario.model.pattern])
    for table in lower(scenario.but(sharding=Sharding()), step).operators.tables:
        if isinstance(table, Experts):
            share = experts_cost.touched(table) / table.experts
            for name, value in zip(table.layer, share.reshape(len(table.label), -1)[:, 0], strict=True):
                result[order == name] = value
    return result


def state_drive_bytes(scenario: Scenario, step: Step) -> tuple[float, float]:
    """Bytes of the KV cache a step reads from the drive, and writes there: all of it for a token, prompts once."""
    share = scenario.placement.state_on_drive
    if not share:
        return 0.0, 0.0
    state = layer_bytes(scenario, Sharding()).state.reshape(scenario.model.layers, -1)[:, 0]
    away = [stretch.mode.kv is not Where.DEVICE for stretch in scenario.placement.modes(scenario.model.layers)]
    of_context = share * float(state[away].sum()) / float(np.ravel(scenario.context)[0])
    if step.phase is Phase.DECODE:
        return of_context * float(np.ravel(step.past_tokens)[0]), of_context
    written = of_context * float(np.ravel(step.new_tokens)[0]) * float(state_share(scenario, step))
    return 0.0, written


def _from_drive(costs: StepCosts) -> Estimate:
    """Time of reading what does not fit host memory, and of writing prompts' state, at the drive's sequential rates."""
    drive = costs.scenario.fleet.storage
    if drive is None:
        return nothing()
    read, written = state_drive_bytes(costs.scenario, costs.step)
    read += drive_bytes(costs.scenario, costs.step)
    if not read + written:
        return nothing()
    seconds = np.asarray(read / drive.read_bytes_per_s.value + written / drive.write_bytes_per_s.value)
    return priced(Terms(link_s=seconds), tier=Tier.ASSUMED, shared_log_sd=DRIVE_LOG_SD, own_log_sd=0.0)


def prefill_time(scenario: Scenario, calibrations: CalibrationSet) -> Estimate:
    """Time of one request's prompt under the scenario's placement, in chunks as the engine cuts them.

    Full chunks are priced at their mean past, as `inference.prefill` does.
    """
    prompt, chunk = int(scenario.prompt), scenario.engine.max_batched_tokens
    full, rest = divmod(prompt, chunk)
    parts = []
    if full:
        step = Step(Phase.PREFILL, 1, chunk, np.asarray(max(full - 1, 0) / 2 * chunk))
        parts.append(step_time(StepCosts(scenario, step, calibrations)).time.scaled(float(full)))
    if rest:
        step = Step(Phase.PREFILL, 1, rest, np.asarray(float(full * chunk)))
        parts.append(step_time(StepCosts(scenario, step, calibrations)).time)
    return total(parts)
