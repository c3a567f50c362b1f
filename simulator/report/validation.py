"""Predictions beside measurements as an answer: which evidence, which bounds, and what ships with what reason."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from ...calibrate import bounds as b
from ...calibrate import records, silicon, store
from ...calibrate import validate as v
from ...calibrate.bundle import HOST_BOUND, PRODUCTS
from ...calibrate.transfer import ANY_DEVICE
from ...errors import InputError, SurroundingsError
from .. import catalogue as a
from ..calibration import Basis
from .measurements import device_key

INDEPENDENT = "independent"  # the anchors that others measured
LISTING = "roofplan validate --kernels"
FIRST_TOKEN = "time to first token is not judged: it holds the queue, which these runs do not state"


class Evidence(StrEnum):
    """What predictions are held against."""

    ANCHORS = "anchors"
    SILICON = "silicon"
    TRANSFERRED = "transferred"
    SERVING = "serving"
    RECORDS = "records"


class Request(NamedTuple):
    """What is to be judged: `records` is the file where that is the evidence."""

    evidence: Evidence = Evidence.ANCHORS
    wanted: v.Wanted = v.EVERYTHING
    bounds: tuple[b.Bound, ...] = ()
    regimes: bool = False
    records: Path | None = None
    calibration: str | None = None


class Found(NamedTuple):
    """The answer, what a reader must know beside it, and the points behind it for a picture."""

    answer: a.Validation
    notes: tuple[str, ...]
    points: tuple[v.Points, ...]


def wanted(devices: Iterable[str] = (), kernels: Iterable[str] = (), engines: Iterable[str] = ()) -> v.Wanted:
    """A filter; short spellings of devices become the listed name."""
    return v.Wanted(tuple(map(device_key, devices)), tuple(name.strip().lower() for name in kernels), tuple(engines))


def validate(request: Request, progress: v.Progress = lambda _: None) -> Found:
    """Judge everything that is asked for and hold it to its bounds."""
    ratios: tuple[a.RatioRow, ...] = ()
    match request.evidence:
        case Evidence.SERVING:
            judged, ratios, notes = _serving(request, progress)
        case Evidence.ANCHORS | Evidence.RECORDS:
            judged, notes = _records(request, progress)
        case _:
            judged, notes = _public(request, progress)
    cases = [case for found in judged for case in found.cases]
    outcomes = b.hold(request.bounds, cases)
    shown = [c for c in cases if request.regimes or c.regime == v.ALL or c.kernel == v.SERVING]
    answer = a.Validation(
        tuple(map(_row, shown)),
        tuple(_summary(name, cases) for name in dict.fromkeys(c.evidence for c in cases)),
        ratios,
        tuple(
            a.BoundRow(
                str(o.bound.measure), o.bound.of, o.evidence, o.case, o.bound.limit_percent, o.value_percent, o.held
            )
            for o in outcomes
        ),
    )
    return Found(answer, tuple(notes), tuple(found.points for found in judged))


def _public(request: Request, progress: v.Progress) -> tuple[list[v.Judged], list[str]]:
    """Held-out sites, or the same rows priced with other devices' calibrations."""
    _no_calibration(request)
    silicon.root()
    every = v.fitted()
    v.refuse_unknown(request.wanted, ((c.device, str(c.kernel), c.engine) for c in every), LISTING)
    mine = v.fitted(request.wanted)
    devices, notes = dict.fromkeys(c.device for c in mine), []
    judge = v.judge_held_out
    if request.evidence is Evidence.TRANSFERRED:
        judge = v.judge_transferred
        alone = [c.id for c in mine if v.lender(c) is None]
        notes = [f"no relative could lend: {', '.join(alone)}"] if alone else []
    judged = [found for device in devices for found in judge(device, progress, request.wanted)]
    return _some(judged, request), notes


def _records(request: Request, progress: v.Progress) -> tuple[list[v.Judged], list[str]]:
    """The user's file, or the tables that ship."""
    files = [request.records] if request.records is not None else sorted(v.ANCHORS.glob("*.csv"))
    if not files:
        remedy = "judge a file of your own with --records FILE, or the public tables with --from silicon"
        raise SurroundingsError("no anchor tables ship with this version", remedy=remedy)
    held = {file: records.read(file) for file in files}
    kernels = [r for rows in held.values() for r in rows if r.is_kernel]
    notes = [_whole_systems(file, rows) for file, rows in held.items() if not all(r.is_kernel for r in rows)]
    if not kernels:
        problem = "no measurement of a kernel in it"
        raise InputError(problem, file=str(files[0]), remedy="; ".join(notes) or "see `roofplan records schema`")
    v.refuse_unknown(request.wanted, ((r.device, r.kernel_id, r.engine) for r in kernels), "roofplan records lint")
    known, judged = store.known(request.calibration), list[v.Judged]()
    for file in files:
        others = file.stem == INDEPENDENT
        evidence = "records" if request.records is not None else "others' anchors" if others else "anchors"
        judged += v.judge_records(file, known, evidence, request.wanted, progress)
    if request.records is None and request.wanted == v.EVERYTHING and not request.regimes:
        judged = _by_kernel(judged)
        notes = [*notes, "a line pools devices and engines: --regimes, or a filter, shows each"]
    return _some(judged, request), notes


def _by_kernel(judged: list[v.Judged]) -> list[v.Judged]:
    """One line a kernel and kind of evidence."""
    groups: dict[tuple[str, str], list[v.Judged]] = {}
    for one in judged:
        groups.setdefault((one.cases[0].evidence, one.cases[0].kernel), []).append(one)
    return [v.pooled(group) for _, group in sorted(groups.items())]


def _whole_systems(file: Path, rows: Iterable[records.Record]) -> str:
    quantities = [r.kernel for r in rows if not r.is_kernel]
    return f"{file.name}: {len(quantities)} rows of whole systems ({', '.join(sorted(set(quantities)))}) are not judged"


def _serving(request: Request, progress: v.Progress) -> tuple[list[v.Judged], tuple[a.RatioRow, ...], list[str]]:
    """Whole steps of public runs."""
    from ...calibrate import serving, serving_rows

    if request.wanted.kernels:
        raise InputError("whole steps have no kernel", key="--kernel", remedy="drop it, or --from serving")
    rows = serving_rows.load(request.wanted.devices or serving_rows.TUNED)
    there = ((row.device, v.SERVING, row.engine) for row in rows)
    v.refuse_unknown(request.wanted, there, "roofplan validate --from serving")
    found = serving.judge(rows, store.known(request.calibration), progress, request.wanted)
    reasons = ", ".join(f"{n} {why.replace('_', ' ')}" for why, n in sorted(found.left_out.items()))
    notes = [FIRST_TOKEN, *([f"not comparable: {reasons}"] if reasons else [])]
    ratios = tuple(a.RatioRow(between, *errors) for between, errors in found.ratios.items())
    return [found.judged], ratios, notes


def _some(judged: list[v.Judged], request: Request) -> list[v.Judged]:
    if not judged:
        asked = ", ".join(name for names in request.wanted for name in names)
        raise InputError("nothing to judge", value=asked, remedy=f"`{LISTING}` lists what there is")
    return judged


def _no_calibration(request: Request) -> None:
    if request.calibration is not None:
        problem = "the public tables judge the calibrations that ship"
        raise InputError(problem, key="--calibration", remedy="use it with --records, or drop it")


def _row(case: v.Case) -> a.ValidationRow:
    e = case.errors
    return a.ValidationRow(
        evidence=case.evidence,
        case=case.name,
        device=case.device,
        kernel=case.kernel,
        engine=case.engine,
        version=case.version,
        source=case.source,
        regime=case.regime,
        rows=e.n,
        mape_percent=e.mape,
        median_percent=e.median,
        p90_percent=e.p90,
        bias_percent=e.bias,
        coverage_percent=e.coverage,
        width_percent=e.width,
        three_constants_mape_percent=e.three_mape,
        three_constants_median_percent=e.three_median,
        pure_roofline_mape_percent=e.pure_mape,
        pure_roofline_median_percent=e.pure_median,
        worse_than_three_constants=_worse(case),
        degenerate=case.degenerate,
    )


def _worse(case: v.Case) -> bool:
    return case.errors.mape > case.errors.three_mape * (1 + 1e-9)


def _summary(evidence: str, cases: Iterable[v.Case]) -> a.EvidenceSummary:
    mine = [c for c in cases if c.evidence == evidence and c.regime == v.ALL]
    return a.EvidenceSummary(
        evidence,
        len(mine),
        sum(c.errors.n for c in mine),
        b.pooled_coverage(mine),
        tuple(c.name for c in mine if _worse(c)),
        tuple(c.name for c in mine if c.degenerate),
    )


def kernels(wanted_: v.Wanted = v.EVERYTHING) -> tuple[a.KernelList, tuple[str, ...]]:
    """Every series of the public tables and every calibration that ships, and what is not among them."""
    silicon.root()
    every = [s for device in wanted_.devices or silicon.FOLDERS for s in silicon.catalogue(device)]
    rows = [*_series(every), *kernels_of_any_device()]
    v.refuse_unknown(wanted_, ((r.device, r.kernel, r.engine) for r in rows), LISTING)
    mine = tuple(r for r in rows if wanted_.takes(r.device, r.kernel, r.engine))
    if not mine:
        asked = ", ".join(name for names in wanted_ for name in names)
        raise InputError("no such kernel", value=asked, remedy=f"`{LISTING}` lists what there is")
    others = sorted({p.name for p in silicon.root().iterdir() if p.is_dir()} - set(silicon.FOLDERS.values()))
    kept = [name for name in others if name.startswith(silicon.HELD_OUT_FOLDERS)]
    rest = [name for name in others if name not in kept]
    notes = (
        f"kept out of every fit, to judge the forms once a release: {', '.join(kept)}",
        f"no hardware file of ours fits: {', '.join(rest)}",
    )
    return a.KernelList(mine), notes


def _series(every: Iterable[silicon.Series]) -> Iterator[a.KernelRow]:
    """Series of the tables; one that could be fitted but does not ship was left out when its fit was seen."""
    ours = {(c.device, c.kernel, c.engine, c.version, c.source): c for c in v.fitted()}
    for s in every:
        reason, state = s.left_out or "", "left out"
        if s.left_out is None and s.kernel is not None:
            found = ours.get((s.device, s.kernel, s.engine, s.version, s.source))
            if found is not None:
                p, state = found.provenance, "fitted"
                reason = f"on {p.fit_rows} rows, judged on {p.held_out_rows} of other sites"
            elif s.kernel.name in PRODUCTS:
                reason = f"after fitting: {HOST_BOUND}"
            else:
                reason = "no calibration of it ships"
        kernel = str(s.kernel or s.label)
        yield a.KernelRow(s.device, kernel, s.engine, s.version, s.source, s.rows, state, reason)


def kernels_of_any_device() -> Iterator[a.KernelRow]:
    """What answers for devices without a relative."""
    for c in v.shipped():
        if c.device == ANY_DEVICE:
            reason = c.provenance.source if c.basis is Basis.ASSUMED else c.provenance.table
            yield a.KernelRow(
                c.device, str(c.kernel), c.engine, c.version, c.source, c.provenance.fit_rows, c.basis.value, reason
            )
