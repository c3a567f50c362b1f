"""What is timed: a kernel of one engine, the shapes a fit sees, those kept apart, and how to launch one of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from importlib import import_module
from typing import Any, TypeVar

import numpy as np

from ...errors import SurroundingsError
from ...simulator.calibration import Cache
from ...simulator.operators import Kernel, Table
from ..columns import DEFAULTS, ORDER, shape_columns
from ..records import Record
from ..timer import Timing

TableT = TypeVar("TableT", bound=Table)


class Subject(ABC):
    """One kernel as one engine runs it; a case is an operator table of one row."""

    @property
    @abstractmethod
    def identity(self) -> Kernel:
        """The calibration its times belong to."""

    @property
    @abstractmethod
    def engine(self) -> str:
        """The software that runs it, in the words of a record."""

    @property
    @abstractmethod
    def version(self) -> str:
        """Version of that software."""

    @property
    @abstractmethod
    def variant(self) -> str:
        """What tells it from other kernels of the same identity and engine."""

    @property
    def cache(self) -> Cache:
        """Where its operands are when it starts."""
        return Cache.COLD

    @property
    def name(self) -> str:
        """`gemm/fp32 torch linear`."""
        return f"{self.identity} {self.engine} {self.variant}"

    @abstractmethod
    def calibration(self, quick: bool) -> Table | None:
        """Shapes a fit sees; None where nothing of it is fitted."""

    @abstractmethod
    def held_out(self, quick: bool) -> Table | None:
        """Whole shapes no fit sees."""

    @abstractmethod
    def time(self, case: Table, budget_s: float) -> Timing:
        """Make operands for a shape and time it for about as long."""


def table(cls: type[TableT], kernel: Kernel, **columns: list[float]) -> TableT:
    """An operator table of several rows from its columns."""
    count = len(next(iter(columns.values())))
    arrays: dict[str, Any] = {name: np.asarray(values, dtype=float) for name, values in columns.items()}
    return cls((str(kernel.name),) * count, ("table",) * count, np.ones((count, 1)), kernel, **arrays)


def rows_of(whole: Table) -> list[Table]:
    """The cases of a table."""
    return [whole.take(np.array([i], dtype=np.int64)) for i in range(len(whole.label))]


def shape_of(case: Table) -> tuple[tuple[str, float], ...]:
    """The shape columns of a record of the case, in the order of the schema; what a blank stands for is left blank."""
    fields = shape_columns(case.kernel.name)
    full = {column: float(getattr(case, field)[0]) for column, field in fields}

    def told(column: str, field: str) -> bool:
        default = DEFAULTS.get((type(case), field))
        return default is None or default(full, case.kernel) != full[column]

    kept = {column: full[column] for column, field in fields if told(column, field)}
    return tuple(sorted(kept.items(), key=lambda item: ORDER[item[0]]))


def torch_module() -> Any:
    """torch, or one clear line where it is not installed."""
    try:
        return import_module("torch")
    except ImportError:
        raise SurroundingsError(
            "torch is not installed: nothing can be timed without it", remedy="pip install torch"
        ) from None


Key = tuple[str, str, str, str, tuple[tuple[str, float], ...]]


def key_of(record: Record) -> Key:
    """What two records of the same measurement share: kernel, engine, cache, variant (in `source`) and shape."""
    return record.kernel_id, record.engine, record.cache, record.source, record.shape
