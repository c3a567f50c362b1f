"""Serving under continuous batching, in steady use: time per output token, and time to first token without a queue.

A closed loop of `clients`: each sends a prompt, reads its whole answer, sends the next. B of them decode at a time; a
share of the steps carries a prompt, or a chunk of one, along:

    T = (1 - f) T_decode(B) + f T_mixed(B),   f = B chunks / output      mixing engines
    T = T_decode(B) + (B / output) T_prefill                             engines that prefill in steps of their own
    B = clients * output T / (output T + S),  B <= what the KV cache holds

S is the time a prompt takes from its first step to its last: a service time. A request that waits for a place waits
longer, and how long is not modelled here. Source: the fixed point is Little's law; mixing follows Sarathi-Serve
(arXiv 2403.02310), which measures what prefills cost the decodes beside them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .calibration import CalibrationSet
from .estimate import Array, Estimate, overhead, total
from .lowering.decoder import lower
from .memory import kv_cache_bytes, ledger
from .scenario import Phase, Scenario, Step
from .schedule import COMPOSITION_LOG_SD, pipeline_cycle, price, stages_of

BATCHES = 25  # points at which the fixed point is bracketed


class Load(NamedTuple):
    """Clients of a closed loop and the mean lengths of their prompts and answers, in tokens.

    `alike`: all requests have these very lengths, so that requests that start together end together.
    """

    clients: float
    prompt: float
    output: float
    alike: bool = False


class Served(NamedTuple):
    """Steady use: `running` requests decode at a time, `mixed_share` of the steps carry a prompt along."""

    time_per_output_token: Estimate
    first_token_service: Estimate
    decode_step: Estimate
    running: float
    mixed_share: float
    cache_limited: bool


def serve(scenario: Scenario, load: Load, calibrations: CalibrationSet) -> Served:
    """The steady state of a load on the scenario's model, layout and engine."""
    most = max(1.0, min(load.clients, running_limit(scenario, load)))
    batches = np.unique(np.round(np.geomspace(1.0, most, BATCHES), 3))
    rough = _at(scenario, load, batches, calibrations)
    running = _fixed_point(load, batches, rough)
    final = _at(scenario, load, np.array([running]), calibrations)
    time, service, decode = (t.row(0).displaced(COMPOSITION_LOG_SD) for t in (final.time, final.service, final.decode))
    return Served(
        time, service, decode, running, float(final.mixed[0]), most < load.clients and running >= 0.999 * most
    )


def running_limit(scenario: Scenario, load: Load) -> float:
    """Requests whose KV cache fits beside weights, activations and everything else the engine keeps."""
    whole = scenario.but(context=round(load.prompt + load.output), prompt=round(load.prompt), batch=1)
    kv = float(kv_cache_bytes(whole).max())
    others = float(ledger(whole).total_bytes().max()) - kv
    budget = scenario.engine.memory_utilization * scenario.fleet.usable_bytes()
    return float(np.floor((budget - others) / kv)) if kv > 0 else np.inf


class _Points(NamedTuple):
    """Times at several numbers of running requests."""

    time: Estimate
    service: Estimate
    decode: Estimate
    mixed: Array


def _at(scenario: Scenario, load: Load, running: Array, calibrations: CalibrationSet) -> _Points:
    """Time per token, service time of a prompt and decode step at each number of running requests."""
    decode = _step(scenario, _decoding(running, load, scenario.sharding.pp), calibrations)
    budget = float(scenario.engine.max_batched_tokens)
    if not scenario.engine.mixes_prefill:
        pieces = _pieces(load.prompt, np.full_like(running, budget))
        service = total(_step(scenario, Step(Phase.PREFILL, 1, new, past), calibrations) for new, past in pieces)
        time = decode + service.scaled(_prefills_endured(running, load) / load.output)
        return _Points(time, service, decode, np.zeros_like(running))
    room = np.maximum(budget - running, 1.0) if scenario.engine.chunks_prefill else np.full_like(running, load.prompt)
    pieces = _pieces(load.prompt, room)
    mixed = [_step(scenario, _mixing(running, load, scenario, new, past), calibrations) for new, past in pieces]
    service = total(mixed)
    share = running * len(pieces) / load.output
    time = decode.scaled(np.maximum(1.0 - share, 0.0)) + service.scaled(running / load.output)
    return _Points(time, service, decode, np.minimum(share, 1.0))


def _prefills_endured(running: Array, load: Load) -> Array:
    """Prefill steps of others that stop a request's decoding, where prefills come first and alone.

    Requests of unlike lengths end one by one, and each is followed by a new prompt: B of them in a request's life.
    Alike ones stay a wave: all prompts are taken in, one after another, before anybody decodes, and the request in the
    middle waits for half of the others. (An engine that mixes lets the wave drift apart, and all count.)
    """
    return np.asarray((running - 1) / 2 if load.alike else running)


def _pieces(prompt: float, room: Array) -> list[tuple[Array, Array]]:
    """New and past tokens of each chunk a prompt is cut into; as many as the smallest room needs, all alike."""
    number = int(np.ceil(prompt / room.min()))
    size = np.full_like(room, prompt / number)
    return [(size, np.asarray(size * i)) for i in range(number)]


def _decoding(running: Array, load: Load, stages: int) -> Step:
    """A decode step at the mean context of an answer half written; a stage works on its share of the requests."""
    return Step(Phase.DECODE, running / np.minimum(running, stages), 1, np.asarray(load.prompt + load.output / 2))


def _mixing(running: Array, load: Load, scenario: Scenario, new: Array, past: Array) -> Step:
    """A decode step with a chunk of a prompt."""
    step = _decoding(running, load, scenario.sharding.pp)
    return step._replace(riding=Step(Phase.PREFILL, 1, new, past))


def _step(scenario: Scenario, step: Step, calibrations: CalibrationSet) -> Estimate:
    """One step of all stages, with what the engine spends around it."""
    operators = price(lower(scenario, step), scenario, calibrations)
    cycle = pipeline_cycle(stages_of(operators), np.asarray(float(scenario.sharding.pp)))
    return cycle + overhead(scenario.engine.step_overhead_s)


def _fixed_point(load: Load, batches: Array, points: _Points) -> float:
    """The number of running requests that the loop holds up: the last batch whose demand reaches it."""
    answer = load.output * points.time.time_s
    held = load.clients * answer / (answer + points.service.time_s)
    short = np.flatnonzero(held < batches)
    if not short.size:
        return float(batches[-1])
    i = int(short[0])
    if i == 0:
        return float(batches[0])
    above, below = held[i - 1] - batches[i - 1], batches[i] - held[i]
    return float(batches[i - 1] + (batches[i] - batches[i - 1]) * above / (above + below))


__all__ = ["Load", "Served", "running_limit", "serve"]
