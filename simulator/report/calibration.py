"""A calibration of the device at hand as an answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ...calibrate import run
from ...calibrate.measure.microkernels import OURS
from ...calibrate.run import Judged, Outcome
from .. import catalogue as a


class Limit(NamedTuple):
    """What an error may reach, and what is hoped for, in percent."""

    limit: float
    goal: float | None = None


CPU_LIMIT = Limit(25.0)
OWN_MAPE, OWN_MEDIAN = Limit(6.0, 3.0), Limit(4.0, 2.0)


def report(found: Outcome) -> a.CalibrationReport:
    """The answer of `roofplan calibrate`."""
    first = found.benches[0].machine
    device = found.devices[0]
    folder = found.files[0].parent
    drafted = device.file if device.file.endswith(".toml") and str(folder) in device.file else device.key
    return a.CalibrationReport(
        device=device.key,
        name=first.name,
        software=first.software,
        threads=first.threads,
        facts=tuple(_facts(found)),
        kernels=tuple(map(row, found.kernels)),
        steps=tuple(map(row, found.steps)),
        library=tuple(map(row, found.library)),
        timed_steps=tuple(_timed(found.steps)),
        gates=tuple(_gates(found)),
        left_out=tuple(a.LeftOut(*row) for row in (*(r for b in found.benches for r in b.left_out), *found.failures)),
        predictions_written=found.written,
        predictions_sha256=found.digest,
        records=found.records,
        measured_now=found.measured,
        drifted_blocks=found.drifted,
        seconds=found.seconds,
        files=tuple(map(str, found.files)),
        gpu=drafted,
        calibrations=str(folder / run.FOLDER),
    )


def row(judged: Judged) -> a.JudgedRow:
    """One kernel's errors."""
    return a.JudgedRow(
        device=judged.device,
        kernel=judged.kernel,
        engine=judged.engine,
        fitted_rows=judged.fit_rows,
        held_out_rows=len(judged.measured_s),
        mape_percent=judged.mape(),
        median_percent=judged.median(),
        p90_percent=judged.p90(),
        coverage_percent=judged.coverage(),
        three_constants_median_percent=judged.median("three_s"),
        pure_roofline_median_percent=judged.median("roofline_s"),
        at_bound=judged.at_bound,
    )


def _facts(found: Outcome) -> Iterator[a.MachineFact]:
    for bench, device in zip(found.benches, found.devices, strict=True):
        if device.vendor != "cpu":
            continue
        plural = "s" * (bench.machine.threads > 1)
        how = f"the fastest that torch reached with {bench.machine.threads} thread{plural}"
        for dtype, rate in device.peak_dense_flops_per_s.items():
            yield a.MachineFact(device.key, f"product in {dtype}", rate.value, "FLOP/s", how)
        yield a.MachineFact(device.key, "memory", device.bandwidth_bytes_per_s.value, "B/s", how)
    for fact in found.facts:
        yield a.MachineFact(found.devices[0].key, *fact)


def _timed(steps: Sequence[Judged]) -> Iterator[a.TimedStep]:
    for judged in steps:
        for said, seen in zip(judged.predicted, judged.measured_s, strict=True):
            yield a.TimedStep(
                said.about, said.shape, said.seconds, said.low_s, said.high_s, seen, said.three_s, said.roofline_s
            )


def _gates(found: Outcome) -> Iterator[a.Gate]:
    """Own kernels one by one on a GPU; on a CPU all operators together, and all steps."""
    if found.benches[0].machine.vendor == "cpu":
        for name, rows in (("operators", found.kernels), ("steps", found.steps)):
            if rows:
                yield _gate(f"median error of {name}", CPU_LIMIT, _pooled_median(rows))
        return
    for judged in found.kernels:
        if judged.engine.startswith(OURS):
            name = f"{judged.kernel} {judged.engine}"
            yield _gate(f"mean error of {name}", OWN_MAPE, judged.mape())
            yield _gate(f"median error of {name}", OWN_MEDIAN, judged.median())


def _gate(name: str, limit: Limit, value: float) -> a.Gate:
    return a.Gate(name, limit.limit, limit.goal, value, value <= limit.limit)


def _pooled_median(rows: Sequence[Judged]) -> float:
    said = np.array([p.seconds for r in rows for p in r.predicted])
    seen = np.array([s for r in rows for s in r.measured_s])
    return float(np.median(np.abs(said / seen - 1)) * 100)
