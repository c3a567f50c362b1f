"""Sweeps: every combination of devices, formats, users and contexts at once, as an answer or as a pandas DataFrame."""

from __future__ import annotations

import warnings as python_warnings
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from . import api
from .dtypes import DType
from .errors import InputError
from .hwspecs.device import Fleet
from .simulator import answers as a
from .simulator import engines
from .simulator.estimate import Array
from .simulator.planner.domain import precisions, weight_choices
from .simulator.planner.fit import Wishes, layouts_of
from .simulator.report import sweep_account
from .simulator.report.contract import envelope
from .simulator.scenario import Engine, Numerics, Scenario
from .simulator.sweep import sweep as evaluate
from .simulator.workload.formats import WeightFormat, kv_format, weight_format
from .simulator.workload.model import Model
from .units import MAX_TOKENS, parse_counts

if TYPE_CHECKING:
    import pandas as pd

MAX_POINTS = 20_000_000
MAX_JSON_POINTS = 1_000_000
POINTS_AT_ONCE = 1 << 20  # beside the columns themselves little memory is needed
DEFAULT_BATCH = "1:256"
SHORTEST, LONGEST = 1024, 131_072  # of the default contexts

Axis = str | int | Iterable[float]
"""`8`, `1:256` (doubling), `1k:8k:1k` (steps), a comma list of these, or whole numbers."""


class SweepQuestion(NamedTuple):
    """A checked question: what is swept, and what holds for all points. Made by `make_sweep`."""

    model: Model
    fleets: tuple[Fleet, ...]
    numerics: tuple[Numerics, ...]
    batch: Array
    context: Array
    prompt: int | None
    wishes: Wishes
    engine: Engine
    calibration: str | None
    warnings: tuple[str, ...]

    @property
    def points(self) -> int:
        """How many there are: series x batches x contexts."""
        return len(self.fleets) * len(self.numerics) * self.batch.size * self.context.size


def make_sweep(
    model: Model,
    fleets: Sequence[Fleet],
    *,
    batch: Axis = DEFAULT_BATCH,
    context: Axis | None = None,
    prompt: int | None = None,
    weights: Sequence[WeightFormat] = (),
    kv: Sequence[DType] = (),
    wishes: Wishes | None = None,
    engine: Engine | None = None,
    calibration: str | None = None,
) -> SweepQuestion:
    """A sweep with the defaults: 1 to 256 users, 1k to 128k of context (less where the model ends earlier), all of it
    prompt, every weight format `fits` offers for the model, a 16-bit KV cache. Layouts are pinned by `wishes`.

    Contexts beyond the model's own limit are left out, with a warning.
    """
    if context is None:
        context = f"{min(SHORTEST, model.max_context)}:{min(LONGEST, model.max_context)}"
    batches, contexts = _values(batch, "--batch"), _values(context, "--context")
    known = contexts[contexts <= model.max_context]
    limit = f"{model.name} was made for contexts up to {model.max_context:,}"
    if not known.size:
        raise InputError(f"{limit}: none is left", key="--context", value=int(contexts[0]))
    cut = contexts[known.size :]
    left_out = f"{limit}: {cut.size:,} longer left out, {int(cut[0]):,} first" if cut.size else ""
    if prompt is not None and prompt > known[0]:
        problem = f"cannot be longer than the shortest context of {int(known[0]):,}"
        raise InputError(problem, key="--prompt", value=prompt)
    formats = [precisions(model, w, k)[0] for w in weights or weight_choices(model) for k in kv or (None,)]
    devices = {(fleet.device.file, fleet.count): fleet for fleet in fleets}
    question = SweepQuestion(
        model=model,
        fleets=tuple(devices.values()),
        numerics=tuple(dict.fromkeys(formats)),
        batch=batches,
        context=known,
        prompt=prompt,
        wishes=wishes or Wishes(),
        engine=engine or Engine(),
        calibration=calibration,
        warnings=(left_out,) if left_out else (),
    )
    _refuse_too_many(question.points)
    return question


def _values(values: Axis, key: str) -> Array:
    """Ascending distinct numbers of an axis, written out only when they are known not to be too many."""
    if isinstance(values, int):
        values = str(values)
    if isinstance(values, str):
        parts = parse_counts(values, key)
        _refuse_too_many(sum(map(len, parts)))
        return np.unique(np.concatenate([np.asarray(part, dtype=float) for part in parts]))
    try:
        numbers = np.asarray(values if isinstance(values, np.ndarray) else list(values), dtype=float).ravel()
    except (TypeError, ValueError):
        raise InputError("must be whole numbers or a range such as 1:256", key=key, value=values) from None
    if not numbers.size or not np.all((numbers >= 1) & (numbers <= MAX_TOKENS) & (numbers == np.floor(numbers))):
        raise InputError("must be whole numbers between 1 and 2**40, at least one", key=key, value=values)
    return np.unique(numbers)


def _refuse_too_many(points: int) -> None:
    if points > MAX_POINTS:
        problem = f"{points:,} points; a sweep has at most {MAX_POINTS:,}"
        raise InputError(problem, key="--batch/--context", remedy="ask for fewer values, larger steps or fewer devices")


def ask_sweep(question: SweepQuestion, tick: Callable[[int], None] | None = None) -> a.Report:
    """Memory, verdict, times and rates with intervals, evidence and what binds, at every point, as columns.

    Each point is in the layout `fits` would choose for it with these formats. `tick` is told how many are done.
    """
    model, engine = question.model, question.engine
    columns = sweep_account.empty(
        question.points,
        tuple(dict.fromkeys(fleet.device.key for fleet in question.fleets)),
        tuple(dict.fromkeys(numerics.weights.name for numerics in question.numerics)),
        tuple(dict.fromkeys(numerics.kv.value for numerics in question.numerics)),
    )
    batch, context = question.batch[:, None], question.context[None, :]
    prompt = context if question.prompt is None else np.full_like(context, question.prompt)
    series: list[a.SweepSeries] = []
    size = question.batch.size * question.context.size
    some = max(1, POINTS_AT_ONCE // question.context.size)  # batches
    for fleet in question.fleets:
        calibrations = api.load_calibrations(fleet, question.calibration, engine.name)
        for numerics in question.numerics:
            asked = Scenario(model, fleet, batch, context, prompt, numerics, engine=engine)
            layouts, first = layouts_of(asked, question.wishes), len(series) * size
            for start in range(0, question.batch.size, some):
                part = asked.but(batch=batch[start : start + some])
                found = evaluate(part, calibrations, layouts, tick)
                row = first + start * context.size
                sweep_account.fill(columns, slice(row, row + found.verdict.size), part, layouts, found)
            series.append(sweep_account.series_of(asked, columns, first, calibrations))
    answer = a.SweepAnswer(
        model=model.name,
        model_origin=model.origin,
        engine=engine.label,
        memory_utilization=engine.memory_utilization,
        max_batched_tokens=engine.max_batched_tokens,
        routing=f"{engine.routing.value} {engine.routing_alpha:g}",
        pinned=tuple(name for name, value in question.wishes._asdict().items() if value is not None),
        points=question.points,
        series=tuple(series),
        columns=columns,
    )
    return envelope(answer, warnings=question.warnings)


def sweep(
    model: str | Model,
    gpus: str | Sequence[str] | None = None,
    *,
    batch: Axis = DEFAULT_BATCH,
    context: Axis | None = None,
    prompt: int | None = None,
    weights: str | Sequence[str] = (),
    kv: str | Sequence[str] = (),
    tp: int | None = None,
    pp: int | None = None,
    ep: int | None = None,
    cp: int | None = None,
    engine: str = "vllm",
    calibration: str | None = None,
) -> pd.DataFrame:
    """A sweep as a pandas DataFrame, one row a point; columns are those of `SweepColumns`, units in their names.

    `gpus`, `weights` and `kv` are names or lists of them (default: this machine's device, what `fits` offers, 16 bits);
    `batch` and `context` are numbers, arrays or ranges such as `"1:256"`. Words are categories, verdicts and evidence
    ordered ones; speeds are NaN where it does not fit. Needs pandas (extra `frames`).
    """
    from .simulator.report import sweep_files

    sweep_files.need("pandas")
    fleets = [api.load_fleet(name)[0] for name in (names(gpus, "--gpu") if gpus is not None else (None,))]
    question = make_sweep(
        api.load_model(model) if isinstance(model, str) else model,
        fleets,
        batch=batch,
        context=context,
        prompt=prompt,
        weights=weight_formats(weights),
        kv=kv_formats(kv),
        wishes=Wishes(tp=tp, pp=pp, ep=ep, cp=cp),
        engine=engines.engine(engine),
        calibration=calibration,
    )
    report = ask_sweep(question)
    for line in report.warnings:
        python_warnings.warn(line, stacklevel=2)
    return sweep_files.frame(report)


def weight_formats(given: str | Sequence[str] | None) -> list[WeightFormat]:
    """Weight formats of a comma list or a sequence of names; none for None."""
    return [weight_format(name) for name in names(() if given is None else given, "--weights")]


def kv_formats(given: str | Sequence[str] | None) -> list[DType]:
    """The same of KV cache formats."""
    return [kv_format(name) for name in names(() if given is None else given, "--kv")]


def names(given: str | Sequence[str], key: str) -> tuple[str, ...]:
    """Names of a comma list or a sequence, each once."""
    words: Any = given.split(",") if isinstance(given, str) else given
    if not all(isinstance(word, str) and word.strip() for word in words):
        raise InputError("must be a name or a list of names", key=key, value=given)
    return tuple(dict.fromkeys(word.strip() for word in words))
