"""The columns of a sweep as CSV, as Parquet and as a pandas DataFrame."""

from __future__ import annotations

import csv
import importlib.util
import io
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import SurroundingsError
from ...files import replacing
from .. import answers as a

if TYPE_CHECKING:
    import pandas as pd

ROWS = 1 << 16  # written at a time
Tick = Callable[[int], None]
ORDERED = {"verdict", "evidence"}


def need(package: str) -> None:
    """Refuse what needs a package that is not here, before any work is done."""
    if importlib.util.find_spec(package) is None:
        raise SurroundingsError(f"{package} is not installed", remedy="pip install 'roofplan[frames]'")


def write_csv(report: a.Report, path: Path, tick: Tick) -> None:
    """A row a point; what is not known is empty, and every number reads back as the same number."""
    answer = _answer(report)
    with replacing(path, "--csv") as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(a.SweepColumns._fields)
        for rows in _chunks(answer.points):
            writer.writerows(zip(*(_plain(column, rows) for column in answer.columns), strict=True))
            tick(rows.stop - rows.start)
        text.detach()


def _chunks(points: int) -> Iterator[slice]:
    return (slice(start, min(start + ROWS, points)) for start in range(0, points, ROWS))


def _plain(column: Any, rows: slice) -> list[Any]:
    """Part of a column as Python values, None for what is not known."""
    if isinstance(column, a.Words):
        return [column.names[code] for code in column.codes[rows].tolist()]
    values: list[Any] = column[rows].tolist()
    return values if column.dtype.kind == "i" else [None if math.isnan(value) else value for value in values]


def write_parquet(report: a.Report, path: Path, tick: Tick) -> None:
    """The same as Parquet: words as dictionaries, null for what is not known."""
    need("pyarrow")
    import pyarrow as pa
    import pyarrow.parquet as pq

    answer = _answer(report)

    def column(values: Any, rows: slice) -> Any:
        if isinstance(values, a.Words):
            return pa.DictionaryArray.from_arrays(values.codes[rows], list(values.names))
        part = values[rows]
        return pa.array(part, mask=np.isnan(part) if part.dtype.kind == "f" else None)

    def group(rows: slice) -> Any:
        return pa.table([column(values, rows) for values in answer.columns], list(a.SweepColumns._fields))

    with replacing(path, "--parquet") as file, pq.ParquetWriter(file, group(slice(0, 0)).schema) as writer:
        for rows in _chunks(answer.points):
            writer.write_table(group(rows))
            tick(rows.stop - rows.start)


def frame(report: a.Report) -> pd.DataFrame:
    """The columns as a DataFrame: words as categories, NaN for what is not known."""
    need("pandas")
    import pandas as pd

    def column(name: str, values: Any) -> Any:
        if not isinstance(values, a.Words):
            return values
        return pd.Categorical.from_codes(values.codes, list(values.names), ordered=name in ORDERED)

    return pd.DataFrame({name: column(name, values) for name, values in _answer(report).columns._asdict().items()})


def _answer(report: a.Report) -> a.SweepAnswer:
    assert isinstance(report.answer, a.SweepAnswer)
    return report.answer
