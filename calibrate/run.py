"""`roofplan calibrate` from the first look to the report: measure, fit, predict in writing, measure again, judge."""

from __future__ import annotations

import contextlib
import datetime
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..dtypes import DType
from ..errors import InputError, SurroundingsError
from ..files import write_text
from ..hwspecs.device import Device, Fleet
from ..hwspecs.load import fleet_of
from ..hwspecs.load import load as load_part
from ..hwspecs.new import from_nvml
from ..simulator.calibration import Calibration
from ..simulator.costs import work
from ..simulator.operators import Collective, Copy, Kernel
from . import fit_measured, predictions, records, store
from .benches import Bench, cpu_bench, cuda_index, gpu_bench
from .columns import Quantity
from .fit import seconds
from .fit_measured import groups_of
from .machine import STREAMS, draft, free_cores, this_cpu, threads_of, write_hardware
from .measure.facts import Fact, drive_read, interference
from .measure.subject import Subject, torch_module
from .measure.transformer import CASES, Size, StepCase, time_steps
from .predictions import Prediction
from .records import Record
from .sensors import Sensors
from .session import SOURCE, Item, Session, Told, earlier
from .timer import Timing
from .validate import Points

RECORDS = "records.csv"
FOLDER = "calibrations"
QUICK_CPU_S = 24.0  # behind which a quick run hurries, to end within a minute on a busy machine
STEP_S, LEAST_STEP_S = 0.6, 0.1  # of each step of the transformer, pauses between included


class Request(NamedTuple):
    """What was asked for: where to write, which device, how thoroughly, and what an earlier run measured."""

    out: Path
    device: str = ""
    quick: bool = True
    resume: Path | None = None
    threads: int | None = None
    kernels: tuple[str, ...] = ()


class Judged(NamedTuple):
    """Predictions of one kernel of one engine (or of steps) and what was measured afterwards."""

    device: str
    kernel: str
    engine: str
    fit_rows: int
    predicted: tuple[Prediction, ...]
    measured_s: tuple[float, ...]
    at_bound: tuple[str, ...] = ()

    def _share(self, which: str) -> np.ndarray[Any, np.dtype[np.float64]]:
        said = np.array([getattr(p, which) for p in self.predicted])
        return np.asarray(np.abs(said / np.array(self.measured_s) - 1) * 100)

    def mape(self, which: str = "seconds") -> float:
        """Mean absolute error of the model or of a baseline, in percent."""
        return float(self._share(which).mean())

    def median(self, which: str = "seconds") -> float:
        """Median absolute error, in percent."""
        return float(np.median(self._share(which)))

    def p90(self) -> float:
        """90th percentile of the absolute error, in percent."""
        return float(np.quantile(self._share("seconds"), 0.9))

    def coverage(self) -> float:
        """Share of the rows inside their 80 % interval, in percent."""
        inside = [p.low_s <= s <= p.high_s for p, s in zip(self.predicted, self.measured_s, strict=True)]
        return 100.0 * float(np.mean(inside))


class Outcome(NamedTuple):
    """Everything a report says."""

    benches: tuple[Bench, ...]
    devices: tuple[Device, ...]
    kernels: tuple[Judged, ...]
    steps: tuple[Judged, ...]
    library: tuple[Judged, ...]
    facts: tuple[Fact, ...]
    digest: str
    written: str
    files: tuple[Path, ...]
    records: int
    measured: int
    drifted: int
    failures: tuple[tuple[str, str], ...]
    seconds: float
    points: tuple[Points, ...]


def calibrate(request: Request, told: Told, say: Callable[[str], None]) -> Outcome:
    """Do all of it; an interrupt or an error leaves every record measured so far in the folder."""
    began = time.monotonic()
    path, request = _prepared(request)
    torch = torch_module()
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        sense, benches = _benches(request, torch, stack, say)
        known = _earlier(request, benches, torch)
        limit_s = QUICK_CPU_S if request.quick and len(benches) == 1 else math.inf
        session = Session(path, known, sense, until_s=began + limit_s)
        facts = _facts(request, torch, benches, say)
        for bench in benches:
            session.measure(bench.fit_items(request.quick), bench.case_s, bench.sentinel, told)
        devices = [_device(bench, session, request) for bench in benches]
        fitted: list[Calibration] = []
        for bench, device in zip(benches, devices, strict=True):
            fitted += fit_measured.fit_all(session.find(bench.fit_items(request.quick)), fleet_of(device), say)
        size, cases = Size(), CASES if benches[0].machine.vendor == "cpu" and len(benches) == 1 else ()
        fits = {(c.device, c.kernel, c.engine) for c in fitted}
        held = [i for b in benches for i in b.held_items(request.quick) if _fit_of(i.device, i.subject) in fits]
        library = [p for b in benches for p in b.library_items(request.quick) if _fit_of(b.machine.key, p[1]) in fits]
        fleet = fleet_of(devices[0])
        promised = _predicted(request.out, session, held, library, (size, cases), fleet, fitted, say)
        for bench in benches:
            mine = [i for i in (*held, *(i for i, _ in library)) if i.device == bench.machine.key]
            session.measure(mine, bench.case_s, bench.sentinel, told)
        left_s = (began + limit_s - time.monotonic()) / max(1, len(cases))
        pace_s = min(STEP_S, max(LEAST_STEP_S, left_s))
        step_times = _steps(torch, benches[0], session, size, cases, pace_s, say)
    kernels, from_ours = _judge(session, held, [item for item, _ in library], promised, fitted)
    files = _write(request.out, devices, fitted, session, held, facts)
    return Outcome(
        benches=tuple(benches),
        devices=tuple(devices),
        kernels=kernels,
        steps=tuple(_judge_steps(devices[0].key, promised.steps, step_times)),
        library=from_ours,
        facts=tuple(facts),
        digest=promised.digest,
        written=promised.written,
        files=(path, request.out / predictions.FILE, *files),
        records=len(session.records),
        measured=session.measured,
        drifted=session.drifted,
        failures=tuple(session.failures.items()),
        seconds=time.monotonic() - began,
        points=tuple(_points([r for r in session.records if r.is_kernel], fitted)),
    )


def _fit_of(device: str, subject: Subject) -> tuple[str, Kernel, str]:
    """The calibration that predicts a subject; none where all its shapes failed."""
    return device, subject.identity, subject.engine


def _prepared(request: Request) -> tuple[Path, Request]:
    """The record file of the folder, which is made and known to be writable, and what there is to go on with.

    The folder's own records need not be there yet: so one command begins, and goes on however often it is cut short.
    """
    path = request.out / RECORDS
    try:
        request.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SurroundingsError(
            f"cannot be made: {error.strerror}", file=str(request.out), key="--out", remedy="name another folder"
        ) from None
    if path.exists() and request.resume is None:
        remedy = f"go on with it: --resume {path}; or name another folder"
        raise InputError("holds records of an earlier run", file=str(request.out), key="--out", remedy=remedy)
    probe = request.out / ".roofplan.probe"
    write_text(probe, "", "--out")
    probe.unlink()
    begins = request.resume is not None and not request.resume.exists() and request.resume.absolute() == path.absolute()
    return path, request._replace(resume=None) if begins else request


def _benches(
    request: Request, torch: Any, stack: contextlib.ExitStack, say: Callable[[str], None]
) -> tuple[Callable[[], str], list[Bench]]:
    """The devices to measure, and what senses their state beside each block."""
    threads = request.threads or _threads(request.resume) or free_cores()
    torch.set_num_threads(threads)
    machine = this_cpu(torch, threads)
    name = request.device or ("cuda:0" if torch.cuda.is_available() else "cpu")
    if name == "cpu":
        say(f"measuring {machine.name} with {threads} thread{'s' * (threads > 1)}")
        return lambda: "", [cpu_bench(torch, machine, request.quick)]
    index = cuda_index(torch, name)
    sensors = stack.enter_context(Sensors(index))
    gpu = gpu_bench(torch, index, request.quick, sensors.driver, say, request.kernels)
    say(f"measuring {gpu.machine.name} and its host")
    return lambda: sensors.read().line(), [gpu, cpu_bench(torch, machine, request.quick, host_only=True)]


def _threads(resume: Path | None) -> int | None:
    """The threads the earlier run had."""
    if resume is None:
        return None
    return next((n for r in records.read(resume) if (n := threads_of(r.device)) is not None), None)


def _earlier(request: Request, benches: Sequence[Bench], torch: Any) -> tuple[Record, ...]:
    if request.resume is None:
        return ()
    versions = {s.engine: s.version for b in benches for s in b.subjects}
    versions |= {lib.engine: lib.version for b in benches for lib, _ in b.library}
    return earlier(request.resume, [b.machine.key for b in benches], versions)


def _facts(request: Request, torch: Any, benches: Sequence[Bench], say: Callable[[str], None]) -> list[Fact]:
    """What no operator describes; a drive that cannot be read is no reason to stop."""
    if len(benches) == 1 and request.quick:
        return []
    say("reading the drive")
    try:
        found = [drive_read(request.out, request.quick)]
    except SurroundingsError as error:
        say(error.line())
        found = []
    gpu = benches[0]
    if gpu.machine.vendor != "cpu":
        from .measure.microkernels import Device as Cuda

        say("copies beside products")
        found += interference(Cuda(torch, torch.cuda.current_device(), gpu.machine.cache_bytes))
    return found


def _device(bench: Bench, session: Session, request: Request) -> Device:
    """The hardware of a bench: the listed file, one drafted from the driver, or one drafted from what was measured."""
    if bench.device is not None:
        if not bench.machine.file:
            path = request.out / f"{bench.machine.key}.toml"
            write_text(path, from_nvml(), "--out")
            return load_part(Device, str(path))
        return bench.device
    found = session.find(bench.fit_items(request.quick))
    streams = np.array([STREAMS in r.source for r in found])
    path = write_hardware(draft(bench.machine, records.tables(found), streams), request.out)
    return load_part(Device, str(path))


def _predicted(
    out: Path,
    session: Session,
    held: Sequence[Item],
    library: Sequence[tuple[Item, Any]],
    steps: tuple[Size, Sequence[StepCase]],
    fleet: Fleet,
    fitted: Sequence[Calibration],
    say: Callable[[str], None],
) -> predictions.Predictions:
    """The predictions of everything that is measured from here on: those in the folder, or new ones in writing."""
    path, size, cases = out / predictions.FILE, *steps
    items = [*held, *(item for item, _ in library)]
    if path.exists():
        found = predictions.read(path)
        if not predictions.matches(found, items, cases):
            remedy = "start anew in another folder"
            raise InputError("predictions of another set of shapes", file=str(path), remedy=remedy)
        return found
    session.forget(items)  # whatever was measured before its prediction was written is no test of it
    ours = {(c.kernel, c.engine): c for c in fitted}
    rows = predictions.of_items(held, fitted)
    rows += predictions.of_library(
        [item for item, _ in library], [ours[own.identity, own.engine] for _, own in library]
    )
    own = [c for c in fitted if c.device == fleet.device.key]
    told = predictions.of_steps(size, cases, fleet, own) if cases else ()
    digest = predictions.write(path, rows, told, {"device": fleet.device.key})
    say(f"predictions of {len(rows)} operators and {len(told)} steps are in {path}, sha256 {digest}")
    return predictions.read(path)


def _steps(
    torch: Any,
    bench: Bench,
    session: Session,
    size: Size,
    cases: Sequence[StepCase],
    pace_s: float,
    say: Callable[[str], None],
) -> tuple[float, ...]:
    """Seconds of the transformer's steps: those on record, or all of them anew."""
    if not cases:
        return ()
    assert bench.pool is not None
    blank = [_step_record(bench, torch, size, case, Timing(1.0, 1.0, 1.0, 0)) for case in cases]
    there = {(r.kernel, r.shape): r for r in session.records if r.model == size.name}
    if all((r.kernel, r.shape) in there for r in blank):
        return tuple(there[r.kernel, r.shape].si() for r in blank)
    say(f"timing {len(cases)} steps of a transformer of {size.layers} layers, {size.hidden} wide")
    timings = time_steps(torch, size, tuple(cases), bench.pool, pace_s)
    made = [_step_record(bench, torch, size, case, t) for case, t in zip(cases, timings, strict=True)]
    try:
        for record in made:
            session.add(record)
    finally:
        session.save()
    return tuple(record.si() for record in made)


def _step_record(bench: Bench, torch: Any, size: Size, case: StepCase, timing: Timing) -> Record:
    """A step as a measurement of the whole system."""
    context = case.past + case.tokens
    decode = case.phase.value == "decode"
    load = {"batch": float(case.sequences), "context": float(context)} | ({} if decode else {"prompt": float(context)})
    low, middle, high = (float(f"{s * 1e3:.6g}") for s in (timing.p10_s, timing.median_s, timing.p90_s))
    return Record(
        device=bench.machine.key,
        kernel=(Quantity.DECODE_STEP if decode else Quantity.PREFILL).value,
        dtype=DType.FP32,
        value=middle,
        unit="ms",
        shape=tuple(load.items()),
        p10=low,
        p90=high,
        engine="torch",
        version=str(torch.__version__),
        cache="cold",
        source=f"{SOURCE}, transformer",
        date=datetime.date.today().isoformat(),
        note=f"{timing.samples} samples, {timing.disturbed} lost a core",
        model=size.name,
        weights="fp32",
        kv="fp32",
    )


def _judge(
    session: Session,
    held: Sequence[Item],
    library: Sequence[Item],
    promised: predictions.Predictions,
    fitted: Sequence[Calibration],
) -> tuple[tuple[Judged, ...], tuple[Judged, ...]]:
    """Every kernel's predictions beside its measurements; the library's apart."""
    rows = promised.operators
    by = {(c.device, c.kernel, c.engine): c for c in fitted}
    own = list(_by_kernel(held, rows[: len(held)], session))
    kernels = []
    for (device, kernel, engine), said, seen in own:
        c = by[device, kernel, engine]
        kernels.append(Judged(device, str(kernel), engine, c.provenance.fit_rows, said, seen, c.at_bound))
    others = _by_kernel(library, rows[len(held) :], session)
    return tuple(kernels), tuple(Judged(d, str(k), e, 0, said, seen) for (d, k, e), said, seen in others)


def _by_kernel(
    items: Sequence[Item], said: Sequence[Prediction], session: Session
) -> Iterator[tuple[tuple[str, Any, str], tuple[Prediction, ...], tuple[float, ...]]]:
    groups: dict[tuple[str, Any, str], list[tuple[Prediction, float]]] = {}
    for item, prediction in zip(items, said, strict=True):
        if (record := session.get(item)) is not None:
            key = item.device, item.subject.identity, item.subject.engine
            groups.setdefault(key, []).append((prediction, record.si()))
    for key, rows in groups.items():
        yield key, tuple(p for p, _ in rows), tuple(s for _, s in rows)


def _judge_steps(device: str, said: Sequence[Prediction], seconds: Sequence[float]) -> Iterator[Judged]:
    for phase in dict.fromkeys(p.about.split()[0] for p in said):
        rows = [(p, s) for p, s in zip(said, seconds, strict=True) if p.about.startswith(phase)]
        yield Judged(device, phase, "torch", 0, tuple(p for p, _ in rows), tuple(s for _, s in rows))


def _write(
    out: Path,
    devices: Sequence[Device],
    fitted: Sequence[Calibration],
    session: Session,
    held: Sequence[Item],
    facts: Sequence[Fact],
) -> tuple[Path, ...]:
    """Calibration files with the accuracy that was found, and the hardware files already there."""
    written = []
    found = {(g.table.kernel, g.engine): g for g in groups_of(session.find(held))}
    for device in devices:
        mine = [c for c in fitted if c.device == device.key]
        rated = []
        for c in mine:
            group = found.get((c.kernel, c.engine))
            rated.append(c if group is None else fit_measured.with_accuracy(c, fit_measured.judged(c, group)))
        path = out / FOLDER / f"{device.key}.json"
        store.write(path, device.key, rated)
        store.read.cache_clear()  # of an earlier run
        written.append(path)
    return (*written, *(p for d in devices if (p := out / f"{d.key}.toml").exists()))


def _points(found: Sequence[Record], fitted: Sequence[Calibration]) -> Iterator[Points]:
    """What was measured of each kernel, for a picture under the device's roof."""
    by = {(c.device, c.kernel, c.engine): c for c in fitted}
    for device in dict.fromkeys(r.device for r in found):
        for group in groups_of([r for r in found if r.device == device]):
            c = by.get((device, group.table.kernel, group.engine))
            if c is None:
                continue
            amount, d = work(group.table), c.denominators
            link = isinstance(group.table, Collective | Copy)
            yield Points(
                name=f"{group.table.kernel} {group.engine}",
                device=device,
                kernel=str(group.table.kernel),
                predicted_s=seconds(group.table, d, c.parameters, group.cache),
                measured_s=group.seconds,
                flops=amount.flops,
                traffic_bytes=amount.traffic_bytes,
                peak_flops_per_s=0.0 if link else d.peak_flops_per_s,
                bandwidth_bytes_per_s=0.0 if link else d.bandwidth_bytes_per_s,
            )
