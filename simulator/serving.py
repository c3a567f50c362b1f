"""Serving under continuous batching, in steady use: time per output token, and time to first token without a queue.

A closed loop of clients: each sends a prompt, reads its whole answer, sends the next. N of them are in the engine (all,
or as many as its KV cache holds), B of those decode at a time, and f steps take k prompts in for each decode step:

    T = (1 - f) T_decode(B) + f T_mixed(B, k)     engines that let prompts ride along with decode steps, f <= 1
    T = T_decode(B) + f T_prefill(k)              engines that prefill in steps of their own
    f k = B (1 - 1/N) / output                    the prompts of the others come during a request's answer
    k = f k / (1 - exp(-f k))                     those that come in one step share it: a Poisson number of them
    B = N output T / (output T + S)               Little's law

S is the time a prompt takes from its first step to its last: a service time. A request that waits for a place waits
longer, and how long is not modelled here. Source: an arrival in a closed network meets the N - 1 others (Sevcik and
Mitrani 1981); mixing follows Sarathi-Serve (arXiv 2403.02310), which measures what prefills cost the decodes beside
them. `tests/test_serving.py` holds it against a simulation of single requests.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .calibration import CalibrationSet
from .estimate import Array, Estimate, overhead
from .lowering.decoder import lower
from .memory import ledger
from .scenario import Phase, Scenario, Step
from .schedule import COMPOSITION_LOG_SD, Priced, pipeline_cycle, price, stages_of
from .speculation import checking, drafting, tokens_per_round
from .tensor_bytes import kv_cache_bytes

BATCHES = 25  # points at which the fixed point is bracketed
LARGEST_GRAPH = 512  # sequences of the largest decode step that is captured
FULL = 0.98  # share of the room for prompts from which on it is what limits


class Load(NamedTuple):
    """Clients of a closed loop and the mean lengths of their prompts and answers, in tokens.

    `alike`: all requests have these very lengths, so that requests that start together end together. `per_step` are the
    tokens a decode step yields for each request: more than one where a draft model guesses.
    """

    clients: float
    prompt: float
    output: float
    alike: bool = False
    per_step: float = 1.0

    @property
    def steps(self) -> float:
        """Decode steps of an answer."""
        return self.output / self.per_step


class Served(NamedTuple):
    """Steady use: of `in_flight` requests `running` decode at a time; `prompt_share` of all steps take prompts in.

    `time_per_token_of_all` is the inverse of the output tokens of all requests a second. `cache_limited`: the other
    clients wait for room in the KV cache. `prompt_limited`: every step is full of prompts, more of them wait.
    """

    time_per_output_token: Estimate
    first_token_service: Estimate
    decode_step: Estimate
    time_per_token_of_all: Estimate
    running: float
    in_flight: float
    prompt_share: float
    cache_limited: bool
    prompt_limited: bool


def serve(scenario: Scenario, load: Load, calibrations: CalibrationSet) -> Served:
    """The steady state of a load on the scenario's model, layout and engine."""
    held = admitted(scenario, load._replace(per_step=tokens_per_round(scenario.extras)))
    batches = np.unique(np.round(np.geomspace(1.0, held.clients, BATCHES), 3))
    points = _at(scenario, held, batches, calibrations)
    running = _fixed_point(scenario.engine.mixes_prefill, held, batches, points)
    final = _at(scenario, held, np.asarray(running), calibrations)
    return Served(
        time_per_output_token=final.time.scaled(1.0 / held.per_step).displaced(COMPOSITION_LOG_SD),
        first_token_service=final.service.displaced(COMPOSITION_LOG_SD),
        decode_step=final.decode.displaced(COMPOSITION_LOG_SD),
        time_per_token_of_all=_slowest(final, held, running).displaced(COMPOSITION_LOG_SD),
        running=running,
        in_flight=held.clients,
        prompt_share=_prompt_share(scenario.engine.mixes_prefill, held, final.steps),
        cache_limited=held.clients < load.clients,
        prompt_limited=scenario.engine.mixes_prefill and float(final.steps.asked) > FULL,
    )


def _slowest(final: _Points, load: Load, running: float) -> Estimate:
    """Time per token of all requests: the longest of what decoding, each request's life and the prompts alone need.

    Where few tokens follow long prompts less than one request decodes at a time, and the prompts set the pace.
    """
    life = (final.time.scaled(load.steps) + final.service).scaled(1.0 / (load.output * load.clients))
    prompts = final.service.scaled(1.0 / (load.output * float(final.steps.wave)))
    return max((final.of_all, life, prompts), key=lambda each: float(each.time_s))


def admitted(scenario: Scenario, load: Load) -> Load:
    """The load of those clients that are in the engine at a time; one is, whatever the ledger says."""
    return load._replace(clients=max(1.0, min(load.clients, running_limit(scenario, load))))


def running_limit(scenario: Scenario, load: Load) -> float:
    """Requests whose KV cache fits beside weights, activations and everything else the engine keeps.

    Room for the activations of a full step is set aside before the cache gets the rest, whatever the prompts are.
    """
    engine, prompts = scenario.engine, max(1, round(scenario.engine.max_batched_tokens / load.prompt))
    whole = scenario.but(context=round(load.prompt + load.output), prompt=round(load.prompt), batch=prompts)
    kv = kv_cache_bytes(whole)
    left = engine.memory_utilization * scenario.fleet.usable_bytes() - (ledger(whole).total_bytes() - kv)
    return float(np.floor((left / np.maximum(kv / prompts, 1.0)).min()))


class Steps(NamedTuple):
    """What B running requests are served with: steps that only decode, and steps that take prompts in, piece by piece.

    A request endures `share` of the latter for each decode step (where they mix: of all steps). `own` is such a step as
    a prompt meets it, in company more often than a step is; `wave` prompts, or one `pieces`-th of one, fill a step, and
    `asked` is how full the steps would be if all prompts came in. Pieces are priced at their mean past: exact in FLOPs
    and bytes where attention has no window.
    """

    decode: Step
    taking: Step
    own: Step
    share: Array
    asked: Array
    pieces: Array
    wave: Array


def steps_of(scenario: Scenario, load: Load, running: Array) -> Steps:
    """The steps at each number of running requests; all of `load.clients` are in the engine."""
    engine, stages = scenario.engine, np.minimum(running, scenario.sharding.pp)
    room = np.maximum(engine.max_batched_tokens - (running if engine.mixes_prefill else 0.0 * running), 1.0)
    pieces = np.ceil(load.prompt / room) if engine.chunks_prefill else np.ones_like(running)
    wave = np.clip(room / load.prompt, 1.0, load.clients)
    coming = np.maximum(_endured(engine.mixes_prefill, load, running, wave) / load.steps * pieces / stages, 1e-9)
    together = wave if load.alike else np.minimum(coming / -np.expm1(-coming), wave)
    met = wave if load.alike else np.minimum(1.0 + coming, wave)
    share = np.minimum(coming / together, 1.0) if engine.mixes_prefill else np.asarray(coming / together)

    def taking(prompts: Array, in_company: bool = True) -> Step:
        size = np.asarray(load.prompt / pieces)
        prefill = Step(Phase.PREFILL, prompts, size, size * (pieces - 1) / 2)
        mixed = engine.mixes_prefill and in_company
        together = checking(_decoding(load, running / stages), scenario.extras)
        return together._replace(riding=prefill) if mixed else prefill

    decode = checking(_decoding(load, running / stages, engine.graphs), scenario.extras)
    own = taking(met, in_company=bool(np.any(np.asarray(load.clients) > 1)))
    return Steps(decode, taking(together), own, share, np.asarray(coming / wave), pieces, wave)


def _endured(mixes: bool, load: Load, running: Array, wave: Array) -> Array:
    """Prompts of others that are taken in while a request decodes.

    Requests of unlike lengths end one by one, and each is followed by a new prompt. Alike ones stay a wave: where
    prefills come first and alone, all prompts are taken in before anybody decodes on, and the request in the middle
    waits for half of the others. (An engine that mixes staggers the wave by its steps, and all count.)
    """
    if load.alike and not mixes:
        return np.asarray((load.clients - wave) / 2)
    return np.asarray(running * (1 - 1 / load.clients))


def _decoding(load: Load, sequences: Array, captured: bool = False) -> Step:
    """A decode step at the mean context of an answer half written.

    Captured steps are padded: vLLM captures 1, 2, 4 and the multiples of 8 (`cudagraph_capture_sizes` in
    vllm/config), SGLang much the same. Padding reads no KV cache.
    """
    held, context = sequences, load.prompt + load.output / 2
    if captured:
        padded = np.where(sequences <= 4, 2 ** np.ceil(np.log2(sequences)), 8 * np.ceil(sequences / 8))
        held = np.where(padded <= LARGEST_GRAPH, padded, sequences)
    return Step(Phase.DECODE, held, 1, np.asarray((context + 1) * sequences / held - 1))


def _prompt_share(mixes: bool, load: Load, steps: Steps) -> float:
    """Share of all steps that take prompts in; of a wave a request endures half of them only."""
    if load.clients == 1:  # nobody decodes while its own prompt is taken in, step after step
        return float(steps.pieces / (steps.pieces + load.steps))
    if mixes:
        return float(steps.share)
    often = float(load.clients / steps.wave * steps.pieces / load.steps if load.alike else steps.share)
    return often / (1.0 + often)


def operators_of(
    scenario: Scenario, load: Load, served: Served, calibrations: CalibrationSet
) -> tuple[tuple[Priced, ...], tuple[Priced, ...]]:
    """The operators of the decode step, and all that the time per output token is spent on, each by its share of it."""
    held = load._replace(clients=served.in_flight, per_step=tokens_per_round(scenario.extras))
    steps = steps_of(scenario, held, np.asarray(served.running))
    decoding, taking = (price(lower(scenario, step), scenario, calibrations) for step in (steps.decode, steps.taking))
    alone = 1.0 - steps.share if scenario.engine.mixes_prefill else np.ones(())
    spent = [Priced(p.table, p.times.scaled(alone)) for p in decoding]
    return decoding, (*spent, *(Priced(p.table, p.times.scaled(steps.share)) for p in taking))


class _Points(NamedTuple):
    """Times at several numbers of running requests."""

    time: Estimate
    service: Estimate
    decode: Estimate
    of_all: Estimate
    steps: Steps


def _at(scenario: Scenario, load: Load, running: Array, calibrations: CalibrationSet) -> _Points:
    """Times per token, service time of a prompt and decode step at each number of running requests.

    Of a wave whose prompts come first and alone, each request's life holds all of those steps.
    """
    steps, mixes = steps_of(scenario, load, running), scenario.engine.mixes_prefill
    stages = np.minimum(running, scenario.sharding.pp)
    decode, taking = (_step(scenario, step, stages, calibrations) for step in (steps.decode, steps.taking))
    service = _step(scenario, steps.own, np.ones(()), calibrations).scaled(steps.pieces)
    time = decode.scaled(1.0 - steps.share if mixes else 1.0) + taking.scaled(steps.share)
    of_all = time.scaled(1.0 / (running * load.per_step))
    if load.alike and not mixes:
        life = decode.scaled(load.steps) + service.scaled(load.clients / steps.wave)
        of_all = life.scaled(1.0 / (load.output * load.clients))
    return _Points(time, service, decode, of_all, steps)


def _step(scenario: Scenario, step: Step, micro_batches: Array, calibrations: CalibrationSet) -> Estimate:
    """One step of every micro-batch, with what the engine spends around it."""
    operators = price(lower(scenario, step), scenario, calibrations)
    once = pipeline_cycle(stages_of(operators), micro_batches) + overhead(scenario.engine.step_overhead_s)
    return once + drafting(scenario, step, calibrations)


def _fixed_point(mixes: bool, load: Load, batches: Array, points: _Points) -> float:
    """The number of running requests that the loop holds up: the last batch whose demand reaches it.

    Where prompts ride along no more requests run than steps have room for the prompts that follow them.
    """
    answer = load.steps * points.time.time_s
    held = load.clients * answer / (answer + points.service.time_s)
    if mixes:
        held = np.minimum(held, np.where(points.steps.asked > 1, batches / points.steps.asked, np.inf))
    short = np.flatnonzero(held < batches)
    if not short.size:
        return float(batches[-1])
    i = int(short[0])
    if i == 0:
        return float(batches[0])
    above, below = held[i - 1] - batches[i - 1], batches[i] - held[i]
    return float(batches[i - 1] + (batches[i] - batches[i - 1]) * above / (above + below))


__all__ = ["Load", "Served", "Steps", "admitted", "operators_of", "running_limit", "serve", "steps_of"]
