"""Judge whole serving steps: time per output token of public runs, composed from operators, nothing fitted on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ..errors import InputError
from ..hwspecs.device import Device, Fleet
from ..hwspecs.load import fleet_of, load
from ..simulator.calibration import Calibration, Errors
from ..simulator.engines import engine
from ..simulator.estimate import Array, Estimate
from ..simulator.parameters import LatencyBandwidth, ThreeConstants
from ..simulator.scenario import Numerics, Scenario, Sharding
from ..simulator.serving import Load, serve
from ..simulator.workload import zoo
from ..simulator.workload.formats import FORMATS
from .serving_rows import ServingRow, neighbours
from .transfer import COLLECTIVES, Calibrations
from .validate import ALL, EVERYTHING, LEAST_ROWS, SERVING, Case, Judged, Points, Progress, Rows, Wanted

ENOUGH_ROWS = 20  # of an engine version, to take an overhead from
AS_STORED = ("int4", "mxfp4")  # formats of some tensors only: those of the checkpoint itself


class Compared(NamedTuple):
    """A row with our time per output token and those of the two baselines, composed the same way."""

    row: ServingRow
    time: Estimate
    pure_s: float
    three_s: float


class Ratios(NamedTuple):
    """How well ratios between neighbouring rows are met, in percent, beside ratio = 1 and the best constant."""

    pairs: int
    median: float
    p90: float
    unit_median: float
    constant_median: float


def question(row: ServingRow) -> tuple[Scenario, Load, Fleet]:
    """The row as a question."""
    model = zoo.bundled(row.model)
    stored = model.native if row.weights in AS_STORED else FORMATS[row.weights]
    fleet = fleet_of(load(Device, row.device), row.devices)
    prompt, output = row.isl * row.mean_length, row.osl * row.mean_length
    tokens = max(1, round(prompt))
    scenario = Scenario(
        model,
        fleet,
        1,
        tokens + 1,
        tokens,
        Numerics(stored, row.kv),
        Sharding(row.tp, row.pp, row.ep),
        engine=engine(row.engine),
    )
    return scenario, Load(row.concurrency, prompt, output, alike=row.mean_length == 1.0), fleet


def why_not(row: ServingRow) -> str | None:
    """Why a row cannot be composed; None where it can."""
    if row.attention_dp > 1:
        return "attention is data-parallel: not lowered yet"
    return None


def compare(
    rows: Sequence[ServingRow], known: Sequence[Calibration], progress: Callable[[str], None]
) -> list[Compared]:
    """Every row that can be composed, with the model and both baselines."""
    models = (tuple(known), tuple(map(_three, known)), tuple(map(_pure, known)))
    answers: dict[tuple[str, int, str], tuple[Calibrations, ...]] = {}  # the same for all rows of a device and engine
    found = []
    for number, row in enumerate(rows, start=1):
        if number % 100 == 0:
            progress(f"serving row {number}/{len(rows)}")
        if why_not(row) is not None:
            continue
        scenario, load_, fleet = question(row)
        key = (row.device, row.devices, row.engine)
        if key not in answers:
            answers[key] = tuple(Calibrations(fleet, known_, row.engine) for known_ in models)
        times = [serve(scenario, load_, c).time_per_output_token for c in answers[key]]
        found.append(Compared(row, times[0], float(times[2].time_s), float(times[1].time_s)))
    if not found:
        raise InputError("no row can be composed", key="rows", value=len(rows))
    return found


def _three(calibration: Calibration) -> Calibration:
    return calibration._replace(parameters=calibration.baseline)


def _pure(calibration: Calibration) -> Calibration:
    link = calibration.kernel.name in COLLECTIVES
    return calibration._replace(parameters=LatencyBandwidth(0.0, 0.0, 1.0) if link else ThreeConstants(0.0, 1.0, 1.0))


def rows_of(found: Sequence[Compared]) -> Rows:
    """Time per output token of some rows, measured, predicted and by the baselines."""
    return Rows(
        measured_s=np.array([c.row.tpot_s for c in found]),
        predicted_s=np.array([float(c.time.time_s) for c in found]),
        log_sd=np.array([float(c.time.log_sd) for c in found]),
        pure_s=np.array([c.pure_s for c in found]),
        three_s=np.array([c.three_s for c in found]),
    )


def errors_of(found: Sequence[Compared]) -> Errors:
    """Errors of some rows' time per output token."""
    return rows_of(found).errors()


class ServingJudged(NamedTuple):
    """Cases of whole steps, comparable rows first, with the points behind them and the errors of ratios."""

    judged: Judged
    ratios: dict[str, Ratios]
    left_out: dict[str, int]


def judge(
    rows: Sequence[ServingRow], known: Sequence[Calibration], progress: Progress, wanted: Wanted = EVERYTHING
) -> ServingJudged:
    """Time per output token of all rows, of those that may be compared, and of these by model, engine and clients."""
    asked = [row for row in rows if wanted.takes(row.device, "serving", row.engine)]
    found = compare(asked, known, progress)
    fair = [c for c in found if c.row.exclusion is None]
    if not fair:
        raise InputError("no comparable row among these", key="rows", value=len(asked))
    about = Case(SERVING, _one(fair, "device"), SERVING, _one(fair, "engine"), "", "composed", ALL, errors_of(fair))
    cases = [about, about._replace(regime="unfiltered", errors=errors_of(found))]
    cases += _parts(about, fair)
    judged, none = rows_of(fair), np.zeros(0)
    points = Points(SERVING, about.device, SERVING, judged.predicted_s, judged.measured_s, none, none, 0.0, 0.0)
    near, met = neighbours(asked), {}
    for name, pairs in (("more clients", near.concurrency), ("another layout", near.layout)):
        ids = {c.row.id for c in fair}
        if both := [(a, b) for a, b in pairs if a.id in ids and b.id in ids]:
            met[name] = ratios(fair, both)
    reasons = Counter(row.exclusion or why_not(row) or "" for row in asked)
    return ServingJudged(Judged(tuple(cases), points, judged), met, {why: n for why, n in reasons.items() if why})


def _one(found: Sequence[Compared], field: str) -> str:
    """The device or engine the rows have in common."""
    names = list(dict.fromkeys(str(getattr(c.row, field)) for c in found))
    return names[0] if len(names) == 1 else ", ".join(sorted(names))


def _parts(about: Case, found: Sequence[Compared]) -> Iterator[Case]:
    """The rows by model and engine, by device, and by clients."""
    groups: dict[Case, list[Compared]] = {}
    for c in found:
        few = 4 ** int(np.log2(c.row.concurrency) // 2)
        for case in (
            about._replace(regime=f"1 {c.row.model}", engine=c.row.engine),
            about._replace(regime=f"2 {c.row.device}", device=c.row.device),
            about._replace(regime=f"3 {few:>3} to {4 * few - 1} clients"),
        ):
            groups.setdefault(case, []).append(c)
    for case in sorted(groups, key=lambda c: (c.regime, c.engine)):
        if len(groups[case]) >= LEAST_ROWS:
            yield case._replace(regime=case.regime[2:].strip(), errors=errors_of(groups[case]))


def ratios(found: Sequence[Compared], pairs: Sequence[tuple[ServingRow, ServingRow]]) -> Ratios:
    """Errors of predicted ratios between neighbouring rows."""
    ours = {c.row.id: float(c.time.time_s) for c in found}
    both = [(a, b) for a, b in pairs if a.id in ours and b.id in ours]
    truth = np.array([a.tpot_s / b.tpot_s for a, b in both])
    guess = np.array([ours[a.id] / ours[b.id] for a, b in both])
    error = np.abs(guess / truth - 1)

    def median(values: Array) -> float:
        return 100 * float(np.median(np.abs(values)))

    constants = [median(c / truth - 1) for c in np.geomspace(0.3, 3.0, 200)]
    return Ratios(len(both), median(error), 100 * float(np.quantile(error, 0.9)), median(1 / truth - 1), min(constants))


class StepOverhead(NamedTuple):
    """What an engine version spends in a step beside its kernels, from every second of its rows, judged on the others.

    `before` and `after` are the median errors in percent on the rows it was not taken from.
    """

    engine: str
    version: str
    rows: int
    overhead_s: float
    before: float
    after: float


def step_overheads(found: Sequence[Compared]) -> tuple[StepOverhead, ...]:
    """The overhead of each engine version that is stated and has enough rows: never part of an untuned figure.

    A step makes one token of each user, so a constant time a step is a constant time a token; the median of what is
    missing is taken, none where predictions are too long already.
    """
    result = []
    for engine_, version in sorted({(c.row.engine, c.row.version) for c in found if c.row.version}):
        group = sorted(
            (c for c in found if (c.row.engine, c.row.version) == (engine_, version)), key=lambda c: c.row.id
        )
        if len(group) < ENOUGH_ROWS:
            continue
        taken, judged = group[::2], group[1::2]
        missing = float(np.median([c.row.tpot_s - float(c.time.time_s) for c in taken]))
        overhead_s = max(0.0, missing)
        truth = np.array([c.row.tpot_s for c in judged])
        ours = np.array([float(c.time.time_s) for c in judged])

        def median(predicted: Array, truth: Array = truth) -> float:
            return 100 * float(np.median(np.abs(predicted / truth - 1)))

        result.append(StepOverhead(engine_, version, len(group), overhead_s, median(ours), median(ours + overhead_s)))
    return tuple(result)
