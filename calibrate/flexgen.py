"""FlexGen's published policies simulated: what it chose for OPT-30B and OPT-175B on a T4 and how fast that ran.

`reality/flexgen.csv` holds each policy (shares of weights and KV cache on device and host in percent, the drive has the
rest) with the throughput its authors printed: arXiv 2303.06865, and the repository's `benchmark/flexgen/bench_suite.py`
and `benchmark/batch_size_table.md`. Nothing here is fitted: the T4's rate under its power limit, the host and the drive
are in their hardware files, what the engine does in its profile (`simulator.engines`).

Shares of a layer become shares of the layers. Small batches (`gpu_batch`) share a copy of the weights but compute one
after another, each with products of its own, for which 4-bit weights are unpacked again.
"""

from __future__ import annotations

import csv
import dataclasses
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from ..dtypes import DType
from ..hwspecs.device import Fleet
from ..hwspecs.load import load_fleet
from ..simulator import engines
from ..simulator.calibration import CalibrationSet
from ..simulator.generation import Generated, batch_steps, generate
from ..simulator.offload import StepCosts, drive_bytes, state_drive_bytes
from ..simulator.placement import layer_bytes
from ..simulator.scenario import (
    KV_HOST,
    KV_STREAMED,
    LAYERS_KV_STREAMED,
    STREAMED_KV_HOST,
    Numerics,
    Phase,
    Placement,
    Scenario,
    Sharding,
    Step,
    Stretch,
    Where,
)
from ..simulator.workload import zoo
from ..simulator.workload.formats import FORMATS, WeightFormat
from .speeds import REALITY

GPU, HOST = "t4", "gcp-n1-highmem-32"
FOUR_BITS = WeightFormat("4 bits in groups of 64", 4.5, DType.FP16)  # with a scale and a minimum of 16 bits each


class Policy(NamedTuple):
    """A policy and its published throughput in tokens per second, all of it and without the prompts (0: not stated)."""

    id: str
    model: str
    weights_on_device: float
    weights_on_host: float
    cache_on_host: float
    prompt: int
    output: int
    gpu_batch: int
    gpu_batches: int
    host_attention: bool
    pinned: bool
    compress_weights: bool
    compress_cache: bool
    tokens_per_s: float
    decode_tokens_per_s: float
    source: str

    @property
    def batch(self) -> int:
        """Sequences of a block."""
        return self.gpu_batch * self.gpu_batches

    @property
    def compressed(self) -> bool:
        """Whether anything is kept in 4 bits."""
        return self.compress_weights or self.compress_cache


@lru_cache(maxsize=1)
def policies() -> tuple[Policy, ...]:
    """Every published policy."""
    with (REALITY / "flexgen.csv").open(encoding="utf-8", newline="") as file:
        return tuple(_policy(r) for r in csv.DictReader(file))


def _policy(r: dict[str, str]) -> Policy:
    return Policy(
        id=r["id"],
        model=r["model"],
        weights_on_device=float(r["weights_on_device"]) / 100,
        weights_on_host=float(r["weights_on_host"]) / 100,
        cache_on_host=float(r["cache_on_host"]) / 100,
        prompt=int(r["prompt"]),
        output=int(r["output"]),
        gpu_batch=int(r["gpu_batch"]),
        gpu_batches=int(r["gpu_batches"]),
        host_attention=r["host_attention"] == "1",
        pinned=r["pinned"] == "1",
        compress_weights=r["compress_weights"] == "1",
        compress_cache=r["compress_cache"] == "1",
        tokens_per_s=float(r["tokens_per_s"]),
        decode_tokens_per_s=float(r["decode_tokens_per_s"] or 0),
        source=r["source"],
    )


def fleet() -> Fleet:
    """The machine of the paper's table 1."""
    return load_fleet(GPU, HOST)


def scenario_of(policy: Policy) -> Scenario:
    """The policy as a scenario of one block."""
    model = zoo.bundled(policy.model)
    weights = FOUR_BITS if policy.compress_weights else FORMATS["fp16"]
    numerics = Numerics(weights, DType.INT4 if policy.compress_cache else DType.FP16, DType.FP16)
    engine = dataclasses.replace(engines.engine("flexgen"), small_batches=policy.gpu_batches)
    if not policy.pinned:
        engine = dataclasses.replace(engine, pageable=(0, 1, 2))
    context = policy.prompt + policy.output
    return Scenario(
        model, fleet(), policy.batch, context, policy.prompt, numerics, placement=_placement(policy), engine=engine
    )


def _placement(policy: Policy) -> Placement:
    layers = zoo.bundled(policy.model).layers
    here = round(layers * policy.weights_on_device)
    away, kept = (STREAMED_KV_HOST, KV_HOST) if policy.host_attention else (LAYERS_KV_STREAMED, KV_STREAMED)
    stretches = (Stretch(away, layers - here), Stretch(kept, here))
    from_drive = 1.0 - policy.weights_on_host / (1.0 - policy.weights_on_device)
    return Placement(tuple(s for s in stretches if s.layers), from_drive, 1.0 - policy.cache_on_host)


class Predicted(NamedTuple):
    """Tokens per second of a policy as the paper counts them, with and without the prompts, and behind what roof."""

    tokens_per_s: float
    decode_tokens_per_s: float
    most_tokens_per_s: float


def predict(policy: Policy, calibrations: CalibrationSet) -> Predicted:
    """The policy simulated, and the roof of its machine's datasheet rates."""
    scenario = scenario_of(policy)
    made = generate(scenario, policy.output, calibrations)
    return Predicted(
        rate(made, policy.batch, policy.output),
        policy.batch / float(made.decode_step.time_s),
        policy.batch * policy.output / least_seconds(scenario, policy.output, calibrations),
    )


def rate(made: Generated, batch: float, output: int) -> float:
    """Tokens per second of a block: the prompts make each sequence's first token, decode steps the others."""
    return batch * output / (float(made.first.time_s) + (output - 1) * float(made.decode_step.time_s))


def least_seconds(scenario: Scenario, output: int, calibrations: CalibrationSet) -> float:
    """A block's time if every step took no longer than the slowest of: its products at the peak rate, its copies at the
    link's, its reading and writing at the drive's, the cache the host attends to at its memory's; all by datasheet."""
    prompts, times = batch_steps(int(scenario.prompt), float(scenario.batch), scenario.engine)
    token = Step(Phase.DECODE, float(scenario.batch), 1, np.asarray(float(scenario.prompt) + output / 2))
    first, each = (_least(StepCosts(scenario, step, calibrations)) for step in (prompts, token))
    return first * float(times) + (output - 1) * each


def _least(costs: StepCosts) -> float:
    scenario, step, fleet_ = costs.scenario, costs.step, costs.scenario.fleet
    modes = [stretch.mode for stretch in scenario.placement.modes(scenario.model.layers)]
    whole = layer_bytes(scenario, Sharding())
    weights = float((whole.shell + whole.experts).sum()) / scenario.numerics.weights.bytes_per_weight
    peak = fleet_.device.peak_flops_per_s(DType.FP16).value
    decoding = step.phase is Phase.DECODE
    copied = np.array([[getattr(m, part) is Where.STREAMED for m in modes] for part in ("shell", "experts", "kv")])
    attended = [decoding and m.kv is Where.HOST for m in modes]
    read, written = state_drive_bytes(scenario, step)
    seconds = [
        2.0 * weights * float(np.max(step.tokens)) / peak,
        float((costs.copied_bytes * copied).sum()) / fleet_.host_link.bandwidth_bytes_per_s.value,
    ]
    if fleet_.host is not None:
        seconds.append(float(costs.copied_bytes[2][attended].sum()) / fleet_.host.memory_bandwidth_bytes_per_s.value)
    if fleet_.storage is not None:
        seconds.append((read + drive_bytes(scenario, step)) / fleet_.storage.read_bytes_per_s.value)
        seconds.append(written / fleet_.storage.write_bytes_per_s.value)
    return max(seconds)
