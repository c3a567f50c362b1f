"""Whole runs people published: what each is asked as, what is predicted for it, and the rule of thumb beside it.

`reality/speeds.csv` holds the figures with their sources, `reality/speeds_asked.csv` how each is asked, both settled
before anything was predicted: the rows of use `judged` are never fitted to, those of use `development` are what the
constants of `runtimes` come from.
"""

from __future__ import annotations

import csv
import dataclasses
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..dtypes import DType
from ..errors import InputError, UnknownNameError
from ..hwspecs.device import Fact, Fleet, Host, Kind, Link
from ..hwspecs.load import host_fleet, load, load_fleet
from ..simulator import engines
from ..simulator.estimate import Estimate
from ..simulator.generation import generate
from ..simulator.inference import decode
from ..simulator.lowering.decoder import lower
from ..simulator.offload import StepCosts, step_time
from ..simulator.planner.place import place
from ..simulator.scenario import (
    EXPERTS_HOST,
    LAYERS_HOST,
    STREAMED_KV_HOST,
    Numerics,
    Phase,
    Placement,
    Scenario,
    Sharding,
    Step,
    Stretch,
)
from ..simulator.schedule import COMPOSITION_LOG_SD, price, stages_of
from ..simulator.serving import Load, serve
from ..simulator.workload import zoo
from ..simulator.workload.formats import WeightFormat, weight_format
from ..simulator.workload.model import Model
from . import store
from .transfer import Calibrations

REALITY = Path(__file__).parent / "reality"
RULE = 0.55  # of bandwidth / bytes read: the rule of thumb of public calculators


class Row(NamedTuple):
    """A published speed in tokens per second, and how it is asked."""

    id: str
    use: str
    model: str
    weights: str
    gpu: str
    devices: int
    engine: str
    phase: str
    batch: int
    prompt: int
    context: int
    output: int
    host_gb_s: float
    host_cores: int
    host_ghz: float
    host_sockets: int
    mode: str
    layers: int
    note: str
    tokens_per_s: float
    source: str


class Predicted(NamedTuple):
    """Tokens per second with the 80 % interval, the rule of thumb's figure, and what the time is mostly made of."""

    tokens_per_s: float
    low: float
    high: float
    rule_of_thumb: float


@lru_cache(maxsize=1)
def rows() -> tuple[Row, ...]:
    """Every row, with its published figure."""
    with (REALITY / "speeds.csv").open(encoding="utf-8", newline="") as file:
        published = {r["id"]: r for r in csv.DictReader(file)}
    with (REALITY / "speeds_asked.csv").open(encoding="utf-8", newline="") as file:
        asked = list(csv.DictReader(file))
    return tuple(_row(entry, published[entry["id"]]) for entry in asked)


def _row(entry: dict[str, str], figure: dict[str, str]) -> Row:
    """One row of the two files."""

    def number(key: str) -> float:
        return float(entry[key] or 0)

    return Row(
        id=entry["id"],
        use=entry["use"],
        model=entry["model"],
        weights=entry["weights"],
        gpu=entry["gpu"],
        devices=int(number("devices")),
        engine=entry["engine"],
        phase=entry["phase"],
        batch=int(number("batch")),
        prompt=int(number("prompt")),
        context=int(number("context")),
        output=int(number("output")),
        host_gb_s=number("host_gb_s"),
        host_cores=int(number("host_cores")),
        host_ghz=number("host_ghz"),
        host_sockets=int(number("host_sockets")),
        mode=entry["mode"],
        layers=int(number("layers")),
        note=entry["note"],
        tokens_per_s=float(figure["value"]),
        source=figure["source"],
    )


def host_of(row: Row) -> Host | None:
    """The host the row states, on the pattern of a desktop."""
    if not row.host_gb_s:
        return None
    like = load(Host, "desktop-ddr5")

    def stated(value: float) -> Fact:
        return Fact(value, "amd", Kind.DATASHEET)

    return dataclasses.replace(
        like,
        memory_bandwidth_bytes_per_s=stated(row.host_gb_s * 1e9),
        memory_bytes=stated(4e12),
        cores=stated(row.host_cores),
        clock_hz=stated(row.host_ghz * 1e9),
        sockets=stated(row.host_sockets),
        peak_dense_flops_per_s={},
    )


def fleet_of_row(row: Row) -> Fleet:
    """The devices of a row: bundled ones, a card known by memory and bandwidth, or the host itself."""
    from ..api import load_fleet as asked_fleet

    host = host_of(row)
    if row.gpu == "cpu":
        if host is None:
            raise InputError("a run on the host needs its bandwidth", key="host_gb_s", value=row.id)
        bus = load(Link, "memory-bus")
        return host_fleet(Fleet(host.as_device(), 1, bus, bus, host, 4e12))
    if row.gpu.startswith("unnamed"):
        _, memory, rate = row.gpu.split()
        fleet, _ = asked_fleet(vram_bytes=float(memory[:-2]) * 1e9, bandwidth_bytes_per_s=float(rate[:-4]) * 1e9)
    else:
        fleet = load_fleet(row.gpu if row.devices == 1 else f"{row.devices}x{row.gpu}")
    return fleet if host is None else dataclasses.replace(fleet, host=host, host_memory_bytes=4e12)


def weights_of(text: str, model: Model) -> WeightFormat:
    """The weights' format: a name, or bits per weight where a run says no more."""
    if text.startswith("bits="):
        return WeightFormat(f"{text[5:]} bits", float(text[5:]), DType.BF16)
    if text == model.native.name:
        return model.native
    name, _, left_wide = text.partition(":")  # fp8:re:PATTERN leaves modules of these names wide
    found = weight_format(name)
    return found._replace(exceptions=((left_wide, None),)) if left_wide else found


@lru_cache(maxsize=64)
def model_of(name: str) -> Model:
    """The bundled model; many rows ask for the same."""
    return zoo.bundled(name)


def scenario_of(row: Row) -> Scenario:
    """The question a row answers, without a placement."""
    model, fleet = model_of(row.model), fleet_of_row(row)
    numerics = Numerics(weights_of(row.weights, model), DType.BF16)
    engine = dataclasses.replace(engines.engine(row.engine), memory_utilization=1.0)
    sharding = Sharding(1, row.devices) if row.engine == "llama.cpp" else Sharding(row.devices)
    context = max(1, row.context + row.prompt + row.output) if row.phase != "decode" else row.context
    prompt = max(1, min(row.prompt or context, context))
    return Scenario(model, fleet, row.batch, context, prompt, numerics, sharding, engine=engine)


def placed(scenario: Scenario, row: Row, calibrations: Calibrations) -> Scenario:
    """The scenario with the placement the run states."""
    modes = {"experts": EXPERTS_HOST, "layers": LAYERS_HOST}
    if row.mode in modes:
        return scenario.but(placement=Placement((Stretch(modes[row.mode], row.layers),)))
    if row.mode == "flexgen":
        found = place(scenario, calibrations, scenario.engine.offloads).scenario
        return scenario.but(placement=Placement((Stretch(STREAMED_KV_HOST, row.layers),))) if found is None else found
    return scenario


def predict(row: Row, calibrations: Calibrations | None = None) -> Predicted:
    """The speed predicted for a row, beside the rule of thumb (decoding only; 0 where it says nothing)."""
    scenario = scenario_of(row)
    calibrations = calibrations or Calibrations(scenario.fleet, store.entries(), scenario.engine.name)
    scenario = placed(scenario, row, calibrations.on(scenario.fleet))
    time, tokens = _timed(row, scenario, calibrations.on(scenario.fleet))
    seconds = [float(t) for t in (time.time_s, time.low_s, time.high_s)]
    return Predicted(tokens / seconds[0], tokens / seconds[2], tokens / seconds[1], rule_of_thumb(row, scenario))


def _timed(row: Row, scenario: Scenario, calibrations: Calibrations) -> tuple[Estimate, float]:
    """A time, and the tokens that come out in it."""
    if row.phase == "decode":
        return decode(scenario, calibrations), float(row.batch)
    if row.phase == "prefill":
        return _prompt(scenario, row.prompt, row.context, calibrations), float(row.prompt)
    if row.phase == "serve":
        load = Load(row.batch, row.prompt, row.output)
        return serve(scenario, load, calibrations).time_per_token_of_all, 1.0
    if scenario.placement.stretches:
        made = generate(scenario, row.output, calibrations)
        return made.first + made.decode_step.scaled(float(row.output)), float(row.batch * row.output)
    fill = _prompt(scenario, row.prompt, 0, calibrations).scaled(float(row.batch))
    middle = scenario.but(context=row.prompt + row.output // 2)
    return fill + decode(middle, calibrations).scaled(float(row.output)), float(row.batch * row.output)


def _prompt(scenario: Scenario, tokens: int, past: int, calibrations: Calibrations) -> Estimate:
    """Time of one prompt of so many tokens behind `past` ones, in the engine's chunks."""
    chunk = scenario.engine.max_batched_tokens
    parts = []
    for start in range(0, tokens, chunk):
        step = Step(Phase.PREFILL, 1, min(chunk, tokens - start), np.asarray(float(past + start)), logit_tokens=1)
        if scenario.placement.stretches:
            parts.append(step_time(StepCosts(scenario, step, calibrations)).time)
        else:
            parts.append(stages_of(price(lower(scenario, step), scenario, calibrations)).through)
    return sum(parts[1:], start=parts[0]).displaced(COMPOSITION_LOG_SD)


def rule_of_thumb(row: Row, scenario: Scenario) -> float:
    """0.55 x bandwidth / (active parameters x bytes a weight) for one sequence, times the sequences."""
    if row.phase == "prefill":
        return 0.0
    model, width = scenario.model, scenario.numerics.weights.bytes_per_weight
    return RULE * scenario.fleet.device.bandwidth_bytes_per_s.value / (model.active_parameters * width) * row.batch


__all__ = ["Predicted", "Row", "UnknownNameError", "predict", "rows"]
