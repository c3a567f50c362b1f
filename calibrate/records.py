"""Measurement records: the CSV file in which anyone brings a measurement back, one row each.

Wide columns in any order, blank where a column does not apply (`columns.py`); read with the standard library alone,
written atomically and read back before anything replaces an old file, so that every file written is a file read.
"""

from __future__ import annotations

import csv
import difflib
import io
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..dtypes import DType
from ..errors import InputError
from ..files import write_text
from ..simulator.estimate import Array
from ..simulator.operators import Kernel, KernelName, Table
from ..simulator.workload.routing import BALANCED
from .columns import (
    BY_NAME,
    COLUMNS,
    LEAST,
    LIMITS,
    MAY_BE_NEGATIVE,
    MAY_BE_ZERO,
    MOST,
    ORDER,
    QUANTITIES,
    REQUIRED,
    TEXTS,
    Quantity,
    allowed,
    filled,
    needed,
    shape_columns,
    table_class,
)

SECONDS: Mapping[str, float] = MappingProxyType({"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9})
TOKENS, TOKENS_PER_S = "tokens", "tokens/s"
KERNELS = (*KernelName, *Quantity)
DTYPES = frozenset(DType)
LISTING = "`roofplan records schema` lists them all"
MAX_FILE_BYTES = 200_000_000
MAX_TEXT = 500
_KNOWN = frozenset(KERNELS)
_MEASURED = ("value", "p10", "p90")


class Record(NamedTuple):
    """One measurement. `shape` holds the numeric columns that were given, in the order of the schema."""

    device: str
    kernel: str
    dtype: DType
    value: float
    unit: str
    shape: tuple[tuple[str, float], ...] = ()
    p10: float | None = None
    p90: float | None = None
    engine: str = ""
    version: str = ""
    cache: str = ""
    source: str = ""
    date: str = ""
    note: str = ""
    model: str = ""
    weights: str = ""
    kv: str = ""

    @property
    def is_kernel(self) -> bool:
        """Whether one kernel was measured, not a whole system."""
        return self.kernel not in QUANTITIES

    @property
    def identity(self) -> Kernel:
        """Kernel and number format of a kernel row: what a calibration belongs to."""
        return Kernel(KernelName(self.kernel), self.dtype)

    @property
    def kernel_id(self) -> str:
        """`gemm/bf16`: kernel or quantity, and number format."""
        return f"{self.kernel}/{self.dtype}"

    def number(self, column: str, blank: float = math.nan) -> float:
        """A shape column, or what a blank one stands for."""
        return dict(self.shape).get(column, blank)

    def si(self, value: float | None = None) -> float:
        """The measurement, or one of its percentiles, in seconds; tokens for a capacity."""
        given = self.value if value is None else value
        if self.unit == TOKENS:
            return given
        return 1.0 / given if self.unit == TOKENS_PER_S else given * SECONDS[self.unit]


class Measurements(NamedTuple):
    """Kernel records of one class, kernel and device as an operator table; `rows` index the records they came from."""

    table: Table
    seconds: Array
    rows: npt.NDArray[np.intp]


def closest(name: str, known: Iterable[str]) -> str:
    """`did you mean X? ` for a name that nobody listed, or nothing."""
    near = difflib.get_close_matches(name.lower(), list(known), n=1, cutoff=0.5)
    return f"did you mean {near[0]}? " if near else ""


def read(path: Path) -> tuple[Record, ...]:
    """The records of a file."""
    return parse(read_text(path), str(path))


def read_text(path: Path) -> str:
    """A file's text, or one clear line why there is none."""
    file = str(path)
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise InputError("larger than 200 MB: not a file of measurements", file=file)
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=file, remedy="give the path of a file") from None
    except ValueError:
        raise InputError("not a path", file=file, remedy="give the path of a file") from None
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        remedy = "save it as UTF-8 text"
        raise InputError(f"not UTF-8 text (byte {error.start})", file=file, remedy=remedy) from None


def parse(text: str, file: str) -> tuple[Record, ...]:
    """The records of a file's text; `file` names it in complaints."""
    records = []
    for _, row in rows(text, file):
        if isinstance(row, InputError):
            raise row
        records.append(row)
    return tuple(records)


def rows(text: str, file: str) -> Iterator[tuple[int, Record | InputError]]:
    """Line number and record of every row, or what is wrong with it; a file without usable columns raises."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if header is None:
                header = _header(cells, file, reader.line_num)
                continue
            try:
                yield reader.line_num, _record(header, cells, file, reader.line_num)
            except InputError as error:
                yield reader.line_num, error
    except csv.Error as error:
        where = f"line {reader.line_num}"
        raise InputError(
            f"not valid CSV: {error}", file=file, key=where, remedy="quote texts that hold commas"
        ) from None
    if header is None:
        raise InputError("empty: no line with column names", file=file, remedy=f"begin with {','.join(REQUIRED)}")


def _header(cells: list[str], file: str, line: int) -> list[str]:
    """The column names, checked."""
    header = [cell.strip() for cell in cells]
    for name in header:
        if name not in BY_NAME:
            known = closest(name, BY_NAME)
            raise InputError("unknown column", file=file, key=f"line {line}", value=name, remedy=known + LISTING)
    for name in header:
        if header.count(name) > 1:
            raise InputError("column stands twice", file=file, key=f"line {line}: {name}", remedy="drop one of them")
    for name in REQUIRED:
        if name not in header:
            problem = f"missing column: {BY_NAME[name].meaning}"
            raise InputError(problem, file=file, key=f"line {line}: {name}", remedy=f"needed: {', '.join(REQUIRED)}")
    return header


def _record(header: list[str], cells: list[str], file: str, line: int) -> Record:
    """One row as a record; complaints name the line and the column."""

    def wrong(column: str, problem: str, remedy: str | None = None) -> InputError:
        value = given.get(column)
        return InputError(problem, file=file, key=f"line {line}: {column}", value=value, remedy=remedy)

    if len(cells) != len(header):
        problem = f"{len(cells)} cells where the header has {len(header)}"
        raise InputError(problem, file=file, key=f"line {line}", remedy="leave blank what does not apply; quote commas")
    given = {name: cell.strip() for name, cell in zip(header, cells, strict=True) if cell and not cell.isspace()}
    for name in REQUIRED:
        if name not in given:
            raise wrong(name, f"missing: {BY_NAME[name].meaning}")
    kernel = given["kernel"].lower()
    if kernel not in _KNOWN:
        raise wrong("kernel", "unknown kernel or quantity", closest(kernel, KERNELS) + LISTING)
    if (dtype := given["dtype"].lower()) not in DTYPES:
        raise wrong("dtype", "unknown number format", f"{closest(dtype, DType)}known: {', '.join(DType)}")
    if given["unit"] not in (units := units_of(kernel)):
        raise wrong("unit", f"not a unit of {kernel}", f"known: {', '.join(units)}")
    numbers: dict[str, float] = {}
    texts: dict[str, str] = {}
    for name, cell in given.items():
        if not BY_NAME[name].numeric:
            if len(cell) > MAX_TEXT or not cell.isprintable():
                raise wrong(name, f"must be one line of at most {MAX_TEXT} printable characters")
            texts[name] = cell
            continue
        if name not in _MEASURED and name not in allowed(kernel):
            own = ", ".join(sorted(allowed(kernel), key=ORDER.__getitem__))
            raise wrong(name, f"does not belong to {kernel}", f"leave it blank; its columns: {own}")
        numbers[name] = _number(cell, name, wrong)
    for name in needed(kernel):
        if name not in given:
            raise wrong(name, f"missing: {kernel} needs {', '.join(needed(kernel))}")
    return Record(
        device=texts["device"],
        kernel=kernel,
        dtype=DType(dtype),
        value=numbers.pop("value"),
        unit=texts["unit"],
        p10=numbers.pop("p10", None),
        p90=numbers.pop("p90", None),
        shape=tuple(sorted(numbers.items(), key=_place)),
        **{name: texts.get(name, "") for name in TEXTS},
    )


def _place(item: tuple[str, float]) -> int:
    return ORDER[item[0]]


def _number(cell: str, name: str, wrong: Callable[..., InputError]) -> float:
    try:
        value = float(cell)
    except ValueError:
        remedy = "a decimal point, no thousands separators, the unit in its own column"
        raise wrong(name, "not a number", remedy) from None
    if not math.isfinite(value):
        raise wrong(name, "must be finite", "leave the row out where nothing was measured")
    if name in MAY_BE_NEGATIVE and (value == 0 or value == BALANCED):
        return value
    if value < 0 or (value == 0 and name not in MAY_BE_ZERO):
        raise wrong(name, "must not be negative" if name in MAY_BE_ZERO else "must be positive")
    if value > (most := LIMITS.get(name, MOST)) or 0 < value < LEAST:
        raise wrong(name, f"must lie between {LEAST:g} and {most:g}", f"its unit: {BY_NAME[name].unit}")
    return value


@cache
def units_of(kernel: str) -> tuple[str, ...]:
    """The units a measurement of this kernel or quantity may have."""
    if kernel == Quantity.KV_TOKENS:
        return (TOKENS,)
    return (*SECONDS, TOKENS_PER_S) if kernel == Quantity.DECODE_STEP else tuple(SECONDS)


def to_text(records: Sequence[Record]) -> str:
    """Records as CSV with the columns they use, in the order of the schema."""
    lines = [_cells(record) for record in records]
    used = set(REQUIRED).union(*lines)
    header = [column.name for column in COLUMNS if column.name in used]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([cells.get(name, "") for name in header] for cells in lines)
    return out.getvalue()


def _cells(record: Record) -> dict[str, str]:
    numbers = {"value": record.value, "p10": record.p10, "p90": record.p90, **dict(record.shape)}
    cells = {name: _exact(value) for name, value in numbers.items() if value is not None}
    texts = {name: str(getattr(record, name)) for name in ("device", "kernel", "dtype", "unit", *TEXTS)}
    return cells | {name: text for name, text in texts.items() if text}


def _exact(value: float) -> str:
    """The shortest text that reads back as the same number."""
    return str(int(value)) if float(value).is_integer() and abs(value) < 2**53 else repr(float(value))


def write(path: Path, records: Sequence[Record]) -> None:
    """Write records; the old file stays whole until the new one is complete and known to read back as given."""
    text = to_text(records)
    if parse(text, str(path)) != tuple(records):
        raise InputError(
            "records that would read back differently", file=str(path), remedy="texts without outer blanks"
        )
    write_text(path, text)


def tables(records: Sequence[Record]) -> list[Measurements]:
    """The kernel records as operator tables a cost model prices, one for each kernel, device, engine and cache state.

    Whole-system records are left out; device, engine and cache of a table are those of any record it came from.
    """
    groups: dict[tuple[Kernel, str, str, str], list[int]] = {}
    for index, record in enumerate(records):
        if record.is_kernel:
            groups.setdefault((record.identity, record.device, record.engine, record.cache), []).append(index)
    return [_table(key[0], records, group) for key, group in groups.items()]


def _table(kernel: Kernel, records: Sequence[Record], group: list[int]) -> Measurements:
    cls, count = table_class(kernel.name), len(group)
    shapes = [filled(dict(records[i].shape), kernel) for i in group]
    columns = {field: np.array([shape[field] for shape in shapes]) for _, field in shape_columns(kernel.name)}
    table = cls(
        label=(str(kernel.name),) * count,
        layer=("record",) * count,
        count=np.ones((count, 1)),
        kernel=kernel,
        **columns,
    )
    return Measurements(table, np.array([records[i].si() for i in group]), np.array(group))
