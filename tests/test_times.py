"""What a predicted time must never do: beat the datasheet, gain certainty from a pipeline, hide a guess."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from roofplan import api
from roofplan.calibrate.transfer import Calibrations
from roofplan.dtypes import DType
from roofplan.hwspecs.device import Fact, Kind
from roofplan.hwspecs.load import ROOT
from roofplan.simulator.costs import experts, work
from roofplan.simulator.estimate import Tier
from roofplan.simulator.inference import decode, prefill
from roofplan.simulator.lowering.decoder import lower
from roofplan.simulator.memory import ledger
from roofplan.simulator.operators import Attention, Experts, Gemm, KernelName, LatentAttention, Table
from roofplan.simulator.planner.fit import verdict
from roofplan.simulator.scenario import Phase, Scenario, Sharding, Step
from roofplan.simulator.schedule import price
from roofplan.simulator.sweep import sweep
from roofplan.simulator.workload import zoo
from roofplan.simulator.workload.formats import FORMATS
from roofplan.simulator.workload.model import Model


def scenario(model: Model, gpu: str = "h200", sharding: Sharding | None = None) -> Scenario:
    return api.make_scenario(model, api.load_fleet(gpu)[0], sharding=sharding)


def calibrations_of(asked: Scenario) -> Calibrations:
    return api.load_calibrations(asked.fleet)


@pytest.mark.parametrize("pp", [1, 2, 4, 8])
def test_one_token_less_never_takes_longer_to_prefill(pp: int) -> None:
    asked = scenario(zoo.bundled("llama-3.1-8b"), gpu="8xh200", sharding=Sharding(1, pp))
    times = [float(prefill(asked.but(context=n, prompt=n), calibrations_of(asked)).time_s) for n in (16_383, 16_384)]
    assert times[0] <= times[1] * (1 + 1e-9)


@pytest.mark.parametrize("pp", [2, 4, 8])
def test_a_pipeline_makes_no_estimate_more_certain(pp: int) -> None:
    asked = scenario(zoo.bundled("llama-3.1-8b"), gpu="8xh200")
    alone = decode(asked, calibrations_of(asked)).log_sd
    cut = asked.but(sharding=Sharding(1, pp))
    assert float(decode(cut, calibrations_of(cut)).log_sd) == pytest.approx(float(alone), rel=0.05)


def cold_bytes(table: Table) -> np.ndarray:
    """What must come from memory in a model's step: weights and the KV cache; activations were just made."""
    match table:
        case Gemm():
            return table.weight_bytes
        case Experts():
            return experts.touched(table) * table.expert_bytes
        case Attention():
            return 2 * table.sequences * table.kv_tokens * table.kv_heads * table.head_dim * table.kv_bytes
        case LatentAttention() if table.kernel.name is KernelName.MLA_DECODE:
            return table.sequences * table.kv_tokens * (table.latent + table.rope) * table.kv_bytes
    return np.zeros(1)


@pytest.mark.parametrize("gpu", ["rtx-4090", "a100-80gb", "h100-sxm", "h200"])
@pytest.mark.parametrize("weights", ["bf16", "fp8", "fp8-block", "int8", "int4", "mxfp4"])
@pytest.mark.parametrize("model", ["llama-3.1-8b", "qwen3-30b-a3b", "deepseek-v3"])
def test_no_operator_beats_the_datasheet(gpu: str, weights: str, model: str) -> None:
    asked = scenario(zoo.bundled(model), gpu=gpu)
    asked = asked.but(numerics=asked.numerics._replace(weights=FORMATS[weights]), context=8192, prompt=8192)
    device = asked.fleet.device
    native = not FORMATS[weights].weight_only and device.computes(FORMATS[weights].compute)
    most = device.peak_flops_per_s(FORMATS[weights].compute if native else DType.BF16).value
    for step in (Step(Phase.PREFILL, 1, 8192, 0), Step(Phase.DECODE, 64, 1, 8191)):
        for table, times, _ in price(lower(asked, step), asked, calibrations_of(asked)):
            assert np.all(work(table).flops <= most * times.time_s * (1 + 1e-9)), table.label
            assert np.all(cold_bytes(table) <= device.bandwidth_bytes_per_s.value * times.time_s * (1 + 1e-9)), (
                table.label
            )


def test_a_user_file_with_a_listed_name_is_not_calibrated(tmp_path: Path) -> None:
    text = (ROOT / "gpus" / "h200.toml").read_text().replace("value = 4.8e12", "value = 2.4e12")
    (tmp_path / "h200.toml").write_text(text)
    asked = scenario(zoo.bundled("llama-3.1-8b"), gpu=str(tmp_path / "h200.toml"))
    tiers = decode(asked, calibrations_of(asked)).evidence()
    assert Tier.CALIBRATED not in tiers or tiers[Tier.CALIBRATED] < 0.01


def test_a_guessed_rate_is_told_and_widens() -> None:
    stated = scenario(zoo.bundled("llama-3.1-8b"))
    device = stated.fleet.device
    guess = Fact(device.bandwidth_bytes_per_s.value, device.bandwidth_bytes_per_s.source, Kind.ASSUMED)
    unsure_device = dataclasses.replace(device, bandwidth_bytes_per_s=guess)
    guessed = stated.but(fleet=dataclasses.replace(stated.fleet, device=unsure_device))
    sure, unsure = (decode(s, calibrations_of(s)) for s in (stated, guessed))
    assert float(unsure.time_s) == pytest.approx(float(sure.time_s))
    assert float(unsure.log_sd) > 0.4 > float(sure.log_sd)
    assert unsure.evidence()[Tier.ASSUMED] > 0.8


def test_a_sweep_equals_its_points() -> None:
    asked = scenario(zoo.bundled("qwen3-30b-a3b"), gpu="2xh100-sxm", sharding=Sharding(2, 1))
    batch, context = np.array([1.0, 7.0, 300.0])[:, None], np.array([100.0, 8000.0, 40_000.0, 40_960.0])[None, :]
    whole = sweep(asked.but(batch=batch, context=context, prompt=context), calibrations_of(asked))
    assert whole.decode_s.shape == (3, 4)
    for i, b in enumerate(batch.ravel()):
        for j, c in enumerate(context.ravel()):
            point = asked.but(batch=int(b), context=int(c), prompt=int(c))
            step, memory = decode(point, calibrations_of(point)), ledger(point)
            assert whole.decode_s[i, j] == pytest.approx(float(step.time_s), rel=1e-12)
            assert whole.decode_high_s[i, j] == pytest.approx(float(step.high_s), rel=1e-12)
            assert whole.needed_bytes[i, j] == pytest.approx(float(memory.total_bytes().max()), rel=1e-12)
            assert whole.verdict[i, j] == verdict(point, memory)


def test_a_sweep_is_the_same_in_any_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = scenario(zoo.bundled("llama-3.1-8b"))
    many = asked.but(batch=np.arange(1.0, 101.0), context=np.linspace(100, 90_000, 100).round())
    many = many.but(prompt=many.context)
    whole = sweep(many, calibrations_of(asked))
    monkeypatch.setattr("roofplan.simulator.sweep.BLOCK_POINTS", 7)
    for column, again in zip(whole, sweep(many, calibrations_of(asked)), strict=True):
        assert np.allclose(column, again, rtol=1e-12)
