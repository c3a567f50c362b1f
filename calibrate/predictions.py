"""Predictions in a file before anything they speak of is measured: written once, named by their hash, read back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import __version__
from ..errors import InputError
from ..files import write_text
from ..hwspecs.device import Fleet
from ..simulator.calibration import Calibration
from ..simulator.costs import datasheet, terms
from ..simulator.estimate import Z_80, Array
from ..simulator.lowering.decoder import lower
from ..simulator.operators import Operators, Table
from ..simulator.scenario import Engine, Numerics, Scenario
from ..simulator.schedule import COMPOSITION_LOG_SD, price, stages_of
from ..simulator.workload.formats import FORMATS
from .fit import pure_roofline, seconds
from .measure.transformer import Size, StepCase, model_of
from .session import Item
from .transfer import Calibrations

FILE = "predictions.json"


class Prediction(NamedTuple):
    """Predicted seconds of an operator or a step with their 80 % interval, and what two baselines say.

    `roofline_s` is the datasheet (or what was measured in its place) alone, `three_s` three constants fitted on the
    same rows as the model.
    """

    about: str
    shape: str
    seconds: float
    low_s: float
    high_s: float
    roofline_s: float
    three_s: float


class Predictions(NamedTuple):
    """Everything predicted, in the order of what it was asked for; `digest` is the file's SHA-256."""

    operators: tuple[Prediction, ...]
    steps: tuple[Prediction, ...]
    written: str
    digest: str = ""


def of_items(items: Sequence[Item], calibrations: Sequence[Calibration]) -> tuple[Prediction, ...]:
    """What the calibrations of the device say about each case."""
    by = {(c.device, c.kernel, c.engine): c for c in calibrations}
    return tuple(_of_item(item, by[item.device, item.subject.identity, item.subject.engine]) for item in items)


def of_library(items: Sequence[Item], priced_by: Sequence[Calibration]) -> tuple[Prediction, ...]:
    """What the calibrations of our own kernels say about the library's kernels of the same shapes."""
    return tuple(_of_item(item, by) for item, by in zip(items, priced_by, strict=True))


def _of_item(item: Item, by: Calibration) -> Prediction:
    d, cache, case = by.denominators, item.subject.cache, item.case
    predicted = float(seconds(case, d, by.parameters, cache)[0])
    spread = float(np.exp(Z_80 * np.hypot(by.own_log_sd, by.shared_log_sd)))
    return Prediction(
        about=item.subject.name,
        shape=" ".join(f"{k}={v:g}" for k, v in item.key[-1]),
        seconds=predicted,
        low_s=predicted / spread,
        high_s=predicted * spread,
        roofline_s=float(pure_roofline(case, d)[0]),
        three_s=float(seconds(case, d, by.baseline, cache)[0]),
    )


def of_steps(
    size: Size, cases: Sequence[StepCase], fleet: Fleet, calibrations: Sequence[Calibration]
) -> tuple[Prediction, ...]:
    """Steps of a transformer, composed from its operators exactly as a question about a model is."""
    model, known = model_of(size), Calibrations(fleet, tuple(calibrations), "torch")
    numerics = Numerics(FORMATS["fp32"], FORMATS["fp32"].compute, FORMATS["fp32"].compute)
    found = []
    for case in cases:
        context = case.past + case.tokens
        engine = Engine(name="torch", graphs=False)
        scenario = Scenario(model, fleet, case.sequences, context, context, numerics, engine=engine)
        program = lower(scenario, case.step)
        whole = stages_of(price(program, scenario, known)).through.displaced(COMPOSITION_LOG_SD)
        pure, three = _baselines(program.operators, fleet, known)
        shape = f"batch={case.sequences} tokens={case.tokens} past={case.past}"
        estimate = (float(whole.time_s), float(whole.low_s), float(whole.high_s))
        found.append(Prediction(f"{case.phase} {size.name}", shape, *estimate, pure, three))
    return tuple(found)


def _baselines(operators: Operators, fleet: Fleet, known: Calibrations) -> tuple[float, float]:
    """The same operators under the bare roofline, and under three constants each."""
    pure = three = 0.0
    for table in operators.tables:
        by, d = known.resolve(table.kernel).calibration, datasheet(fleet, table.kernel)
        pure += _sum(table, pure_roofline(table, d))
        three += _sum(table, terms(table, d, by.baseline).total_s())
    return pure, three


def _sum(table: Table, each: Array) -> float:
    return float((np.asarray(each).reshape(len(table.label), -1)[:, 0] * table.count.sum(axis=1)).sum())


def write(path: Path, operators: Sequence[Prediction], steps: Sequence[Prediction], about: dict[str, str]) -> str:
    """Write predictions and return the SHA-256 of the file; one that is there already is never replaced."""
    if path.exists():
        raise InputError("exists already: predictions are written once", file=str(path))
    content = {
        "roofplan": __version__,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        **about,
        "operators": [p._asdict() for p in operators],
        "steps": [p._asdict() for p in steps],
    }
    write_text(path, json.dumps(content, indent=1) + "\n", "--out")
    return read(path).digest


def read(path: Path) -> Predictions:
    """The predictions of a file."""
    try:
        raw = path.read_bytes()
        content: dict[str, Any] = json.loads(raw)
        operators, steps = (tuple(Prediction(**row) for row in content[key]) for key in ("operators", "steps"))
        return Predictions(operators, steps, str(content["written"]), hashlib.sha256(raw).hexdigest())
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=str(path)) from None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"not a file of predictions: {error}", file=str(path)) from None


def matches(found: Predictions, items: Sequence[Item], steps: Sequence[StepCase]) -> bool:
    """Whether predictions of an earlier run speak of just these cases."""
    wanted = [(item.subject.name, " ".join(f"{k}={v:g}" for k, v in item.key[-1])) for item in items]
    return [(p.about, p.shape) for p in found.operators] == wanted and len(found.steps) == len(steps)
