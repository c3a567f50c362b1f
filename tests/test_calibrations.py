"""Calibrations: the bundled files, reading and writing them, and which of them answers with what right."""

import dataclasses
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

from roofplan.calibrate import forms, runtimes, store
from roofplan.calibrate.fit import CHOICES
from roofplan.calibrate.transfer import ASSUMED_LOG_SD, KIN, Calibrations
from roofplan.dtypes import DType
from roofplan.errors import InputError, SurroundingsError
from roofplan.hwspecs.device import Device
from roofplan.hwspecs.load import fleet_of, load, load_fleet, names
from roofplan.simulator.calibration import Basis, Calibration
from roofplan.simulator.costs import WIDENING_PER_DECADE, estimate
from roofplan.simulator.estimate import Estimate, Tier
from roofplan.simulator.inference import decode, prefill, swap_out
from roofplan.simulator.lowering.decoder import lower
from roofplan.simulator.operators import Collective, Gemm, Kernel, KernelName, one_row
from roofplan.simulator.scenario import Numerics, Phase, Scenario, Sharding, Step
from roofplan.simulator.workload import zoo
from roofplan.simulator.workload.formats import FORMATS, KV_FORMATS, WeightFormat

FILES = store.bundled_files()
KNOWN = tuple(c for path in FILES for c in store.read(path))
GEMM, PREFILL = Kernel(KernelName.GEMM, DType.BF16), Kernel(KernelName.ATTENTION_PREFILL, DType.BF16)


def on(name: str, known: tuple[Calibration, ...] = KNOWN) -> Calibrations:
    return Calibrations(load_fleet(name), known)


# ---- the bundled files


def test_there_are_files() -> None:
    assert {"h100-sxm", "a100-80gb", "l40s", "any"} <= {path.stem for path in FILES}


RUNTIME_FILES = [p for p in FILES if p.stem.startswith(("llama.cpp-", "servers-"))]
KERNEL_FILES = [p for p in FILES if p not in RUNTIME_FILES]


@pytest.mark.parametrize("path", RUNTIME_FILES, ids=lambda p: p.stem)
def test_constants_of_runtimes_are_three_and_alike(path: Path) -> None:
    entries = store.read(path)
    engine, _, vendor = path.stem.partition("-")
    assert {(c.device, c.engine, c.parameters) for c in entries} == {(f"any-{vendor}", engine, entries[0].parameters)}
    floor, compute, memory = entries[0].parameters
    assert 1e-7 < floor < 1e-4 and 0.01 < compute < 1 and 0.1 < memory < 1
    assert {c.kernel for c in entries} == set(runtimes.KERNELS) and entries[0].own_log_sd == runtimes.OWN_LOG_SD


@pytest.mark.parametrize("path", KERNEL_FILES, ids=lambda p: p.stem)
def test_bundled_files_hold_sensible_calibrations(path: Path) -> None:
    entries = store.read(path)
    assert {c.device for c in entries} == {path.stem}
    assert len({(c.kernel, c.engine) for c in entries}) == len(entries), "one calibration a kernel and engine"
    for c in entries:
        ranges, values = forms.ranges(type(c.parameters)), forms.values_of(c.parameters)
        assert len(ranges) == len(values) == len(c.log_sd) == len(c.correlation)
        if c.basis is Basis.FITTED:
            assert isinstance(c.parameters, forms.form_of(c.kernel, c.engine)) or c.parameters == c.baseline
            for (name, r), value in zip(ranges.items(), values, strict=True):
                structural = name.rpartition(".")[2] in CHOICES
                assert structural or r.low * (1 - 1e-4) <= value <= r.high * (1 + 1e-4), (c.id, name)
        assert all(low <= high for low, high in (c.hull.flops, c.hull.bytes))
        assert 0 < c.own_log_sd < 1.5 and 0 <= c.shared_log_sd < 1
        assert 0 < c.transfer_log_sd < 2  # on another device the same label may hide a kernel several times slower
        low, middle, high = c.residual_quantiles
        assert low < middle < high and c.provenance.source and c.provenance.fitted
        if c.basis is Basis.ASSUMED:
            assert c.accuracy is None and c.provenance.fit_rows == 0
            continue
        assert c.accuracy is not None and c.provenance.held_out_rows > 0
        assert 0 < c.accuracy.median <= c.accuracy.p90 and c.accuracy.median < c.accuracy.pure_median
        matrix = np.array(c.correlation)
        assert np.allclose(matrix, matrix.T) and np.all(np.abs(matrix) <= 1.001)
        assert np.linalg.eigvalsh(matrix).min() > -0.05 * len(matrix)  # two digits are kept of each entry


@pytest.mark.parametrize("path", [p for p in FILES if p.stem in names(Device)], ids=lambda p: p.stem)
def test_denominators_are_those_of_the_hardware_file(path: Path) -> None:
    device = load(Device, path.stem)
    for c in store.read(path):
        d = c.denominators
        assert d.bandwidth_bytes_per_s == pytest.approx(device.bandwidth_bytes_per_s.value, rel=0.02)
        assert d.peak_flops_per_s == pytest.approx(device.peak_flops_per_s(c.kernel.arithmetic).value, rel=0.02)
        assert (c.architecture, c.architecture_class) == (device.architecture, device.architecture_class)


# ---- reading and writing


def unnamed(entries: tuple[Calibration, ...]) -> list[Calibration]:
    """The calibrations without the name of the file they were read from."""
    return [entry._replace(file="") for entry in entries]


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_round_trip_is_exact(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "deep" / "folder" / path.name
    store.write(copy, store.read(path)[0].device, store.read(path))
    assert unnamed(store.read(copy)) == unnamed(store.read(path))
    assert json.loads(copy.read_text()) == json.loads(path.read_text())
    assert store.digest(copy) == store.digest(path)
    assert [p.name for p in copy.parent.iterdir()] == [path.name], "no temporary file is left"


def test_other_content_has_another_digest(tmp_path: Path) -> None:
    one, two = tmp_path / "1.json", tmp_path / "2.json"
    entries = store.read(FILES[0])
    store.write(one, "x", entries)
    store.write(two, "x", [entries[0]._replace(own_log_sd=0.1234), *entries[1:]])
    other = store.read(one)
    assert store.digest(one) != store.digest(two) and len(store.digest(one)) == 12
    assert store.read(two)[0].own_log_sd == 0.1234 and unnamed(store.read(two))[1:] == unnamed(other)[1:]


@pytest.mark.parametrize("method", ["replace", "fsync"])
def test_a_failed_write_leaves_the_old_file_whole(tmp_path: Path, monkeypatch, method: str) -> None:
    path = tmp_path / "mine.json"
    store.write(path, "mine", store.read(FILES[0]))
    before = path.read_bytes()

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os if method == "fsync" else Path, method, fail)
        with pytest.raises(SurroundingsError, match="cannot be written: No space left") as caught:
            store.write(path, "mine", store.read(FILES[1]))
    assert str(path) in str(caught.value)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path], "no temporary file is left"


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (file := tmp_path / "file").write_text("x")
    (tmp_path / "taken.json").mkdir()
    for path in (file / "below.json", file / "far" / "below.json", tmp_path / "taken.json", tmp_path / ("x" * 400)):
        with pytest.raises(SurroundingsError, match="cannot be written"):
            store.write(path, "mine", store.read(FILES[0]))
    assert file.read_text() == "x"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "taken.json"]


def content() -> dict:
    return json.loads(FILES[0].read_text(encoding="utf-8"))


def change(*route: object, to: object) -> str:
    changed = content()
    inside = changed
    for step in route[:-1]:
        inside = inside[step]
    inside[route[-1]] = to
    return json.dumps(changed)


FIRST = ("calibrations", 0)
DAMAGED = {
    "empty": "",
    "binary": "\x00\x01",
    "truncated": json.dumps(content())[:500],
    "nested": "[" * 100_000,
    "list": "[]",
    "no schema": "{}",
    "schema 1": change("schema", to=1),
    "no calibrations": json.dumps({k: v for k, v in content().items() if k != "calibrations"}),
    "calibrations is a number": change("calibrations", to=3),
    "entry is a word": change("calibrations", to=["x"]),
    "kernel": change(*FIRST, "kernel", to="conv9d"),
    "dtype": change(*FIRST, "dtype", to="fp7"),
    "basis": change(*FIRST, "basis", to="guess"),
    "form": change(*FIRST, "form", to="four-constants"),
    "form is a list": change(*FIRST, "form", to=[]),
    "parameters are a list": change(*FIRST, "parameters", to=[1, 2, 3]),
    "parameters are missing": change(*FIRST, "parameters", to={"floor_s": 1.0}),
    "negative": change(*FIRST, "parameters", "floor_s", to=-1.0),
    "not finite": change(*FIRST, "parameters", "floor_s", to=math.nan),
    "a word for a number": change(*FIRST, "parameters", "floor_s", to="fast"),
    "true for a number": change(*FIRST, "parameters", "floor_s", to=True),
    "too large": change(*FIRST, "parameters", "floor_s", to=10**400),
    "no fraction": change(*FIRST, "parameters", "memory_fraction", to=0.0),
    "no fraction of the peak": change(*FIRST, "parameters", "compute_fraction", to=0),
    "hull is a number": change(*FIRST, "hull", to=3),
    "hull side is short": change(*FIRST, "hull", "flops", to=[1.0]),
    "hull not finite": change(*FIRST, "hull", "flops", to=[math.nan, 2.0]),
    "hull too large": change(*FIRST, "hull", "flops", to=[1.0, 10**400]),
    "quantiles": change(*FIRST, "residual_quantiles", to=[1.0]),
    "accuracy": change(*FIRST, "accuracy", to={"mape": 1.0}),
    "hull upside down": change(*FIRST, "hull", "flops", to=[9.0, 2.0]),
    "quantile not finite": change(*FIRST, "residual_quantiles", to=[-0.1, math.nan, 0.1]),
    "correlation of words": change(*FIRST, "correlation", to=[["a"]]),
    "correlation not finite": change(*FIRST, "correlation", to=[[math.inf]]),
    "correlation is ragged": change(*FIRST, "correlation", to=[[0.1], [0.1]]),
    "a parameter too many": change(*FIRST, "parameters", "speed", to=1.0),
    "baseline": change(*FIRST, "baseline", to={}),
    "accuracy of words": change(*FIRST, "accuracy", "mape", to="good"),
    "provenance": change(*FIRST, "provenance", to=None),
    "own error": change(*FIRST, "own_log_sd", to=None),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_damaged_files_are_named(tmp_path: Path, what: str) -> None:
    path = tmp_path / "damaged.json"
    path.write_text(DAMAGED[what], encoding="utf-8")
    with pytest.raises(InputError) as caught:
        store.read(path)
    line = str(caught.value)
    assert str(path) in line and line.isprintable() and len(line) < 600


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "latin.json").write_bytes(b'{"schema": "\xff"}')
    for path in (tmp_path / "missing.json", tmp_path, tmp_path / "latin.json"):
        with pytest.raises(InputError) as caught:
            store.read(path)
        assert str(path) in str(caught.value)


# ---- who answers


def test_a_device_of_its_own_is_calibrated() -> None:
    for name in ("h100-sxm", "h200", "a100-80gb"):
        answer = on(name).resolve(GEMM)
        assert (answer.tier, answer.calibration.device) == (Tier.CALIBRATED, name)
        assert answer.own_log_sd == answer.calibration.own_log_sd and answer.reason


def test_a_relative_is_transferred_with_the_error_of_transfers() -> None:
    answer = on("rtx-4090").resolve(GEMM)
    assert (answer.tier, answer.calibration.device) == (Tier.TRANSFERRED, "l40s")
    assert answer.shared_log_sd == answer.calibration.transfer_log_sd and "l40s" in answer.reason
    assert answer.shared_log_sd > on("h200").resolve(GEMM).shared_log_sd


def test_without_the_nearest_relative_the_next_of_its_class_answers() -> None:
    rest = tuple(c for c in KNOWN if c.device != "l40s")
    assert on("rtx-4090", rest).resolve(GEMM).calibration.device == "a100-80gb"
    assert on("h100-sxm", tuple(c for c in KNOWN if c.device != "h100-sxm")).resolve(GEMM).calibration.device == "h200"


def test_an_unknown_architecture_is_priced_by_its_datasheet() -> None:
    device = dataclasses.replace(load(Device, "h200"), key="new", architecture="new", architecture_class="new")
    answer = Calibrations(fleet_of(device), KNOWN).resolve(GEMM)
    assert (answer.tier, answer.calibration.device) == (Tier.DATASHEET, "any")
    assert answer.calibration.basis is Basis.POOLED and answer.shared_log_sd >= answer.calibration.transfer_log_sd


def test_links_of_another_kind_lend_nothing() -> None:
    """An A100's NVLink fractions say nothing about a card on PCIe, though the class of the devices is the same."""
    reduce = Kernel(KernelName.ALL_REDUCE, DType.BF16)
    assert on("a100-80gb").resolve(reduce).calibration.device == "a100-80gb"
    only_a100 = tuple(c for c in KNOWN if c.device in ("a100-80gb", "any"))
    assert on("rtx-4090", only_a100).resolve(reduce).calibration.device == "any"
    assert on("rtx-4090", only_a100).resolve(GEMM).calibration.device == "a100-80gb"


@pytest.mark.parametrize("kernel", KIN, ids=str)
def test_borrowed_kernels_are_assumed_and_wider(kernel: Kernel) -> None:
    """Kin answers where nobody measured; the same kernel in the other 16-bit format is not borrowing."""
    measured = (c for c in KNOWN if not c.device.startswith("any-"))
    assert not any(c.kernel == kernel for c in measured), "a kernel with a calibration needs no kin"
    fleet = on("h200")
    borrowed, lender = fleet.resolve(kernel), fleet.resolve(KIN[kernel])
    assert borrowed.calibration is lender.calibration
    if kernel.name is KIN[kernel].name and {kernel.dtype, KIN[kernel].dtype} == {DType.FP16, DType.BF16}:
        assert borrowed is lender
    else:
        assert borrowed.tier is Tier.ASSUMED and str(kernel) in borrowed.reason
        assert borrowed.own_log_sd == pytest.approx(math.hypot(lender.own_log_sd, ASSUMED_LOG_SD))


FORMATS_IN_USE = [*FORMATS.values(), WeightFormat("gguf-q4_k", 4.8, DType.BF16), WeightFormat("q8", 8.5, DType.BF16)]


@pytest.mark.parametrize("device", names(Device))
def test_every_kernel_a_lowering_can_produce_resolves(device: str) -> None:
    fleet = load_fleet(f"8x{device}")
    calibrations, seen = Calibrations(fleet, KNOWN), set()
    for name in ("mixtral-8x7b", "deepseek-v3"):
        for weights in FORMATS_IN_USE:
            for kv in KV_FORMATS:
                wide = (DType.FP32,) if fleet.device.computes(DType.FP32) else ()
                for activations in (DType.BF16, DType.FP16, *wide):
                    numerics = Numerics(weights, kv, activations)
                    asked = Scenario(zoo.bundled(name), fleet, 4, 300, 200, numerics, Sharding(4, 2))
                    for phase in Phase:
                        seen |= {t.kernel for t in lower(asked, Step(phase, 4, 1, 10)).operators.tables}
                    times = decode(asked, calibrations), prefill(asked, calibrations), swap_out(asked, calibrations)
                    for time in times:
                        assert 0 < float(time.low_s) < float(time.time_s) < float(time.high_s) < 60
    assert len(seen) > 15
    for kernel in seen:
        answer = calibrations.resolve(kernel)
        assert answer is calibrations.resolve(kernel) and answer.own_log_sd > 0 and answer.reason


# ---- outside the calibrated range


def gemm(side: float) -> Estimate:
    columns = {"m": side, "n": side, "k": side, "weight_bytes": 2 * side**2}
    row = one_row(Gemm, "g", "l", 1, GEMM, **columns, activation_bytes=2.0, output_bytes=2.0)
    return estimate(row, load_fleet("h100-sxm"), on("h100-sxm"))


def test_outside_the_hull_the_error_widens() -> None:
    answer = on("h100-sxm").resolve(GEMM)
    inside, hull = gemm(4096.0), answer.calibration.hull
    assert float(inside.extrapolated_s[0]) == 0.0
    assert float(inside.log_sd[0]) == pytest.approx(math.hypot(answer.shared_log_sd, answer.own_log_sd))
    for side in (2.0, 1e6):
        outside = gemm(side)
        decades = max(
            hull.flops[0] - math.log10(2 * side**3),
            math.log10(2 * side**3) - hull.flops[1],
            hull.bytes[0] - math.log10(6 * side**2),
            math.log10(6 * side**2) - hull.bytes[1],
        )
        assert decades > 0.5
        assert float(outside.extrapolated_s[0]) == float(outside.time_s[0])
        own = answer.own_log_sd + WIDENING_PER_DECADE * decades
        assert float(outside.log_sd[0]) == pytest.approx(math.hypot(answer.shared_log_sd, own), rel=1e-9)
    assert float(gemm(1e7).log_sd[0]) > float(gemm(1e6).log_sd[0]) > float(inside.log_sd[0])


def test_messages_outside_the_hull_widen_too_and_none_at_all_does_not() -> None:
    calibrations, fleet = on("8xh200"), load_fleet("8xh200")
    kernel = Kernel(KernelName.ALL_REDUCE, DType.BF16)

    def send(size: float, ranks: float = 8.0) -> Estimate:
        return estimate(one_row(Collective, "r", "l", 1, kernel, message_bytes=size, ranks=ranks), fleet, calibrations)

    inside, outside, alone = send(1e6), send(1e12), send(1e12, 1.0)
    assert float(inside.extrapolated_s[0]) == 0 and float(outside.extrapolated_s[0]) == float(outside.time_s[0])
    assert float(outside.log_sd[0]) > float(inside.log_sd[0]) + WIDENING_PER_DECADE
    assert float(alone.time_s[0]) == 0.0 and float(alone.extrapolated_s[0]) == 0.0


def test_lines_read_alone_equal_the_whole_file() -> None:
    alone = [entry.calibration() for entry in store.bundled()]
    assert alone == [c for path in FILES for c in store.read(path)]
    assert [(e.kernel, e.device) for e in store.bundled()] == [(c.kernel, c.device) for c in alone]
