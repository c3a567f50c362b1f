"""What kernels of the elementwise class share: rows of a fixed width, and bytes that are a line in their number."""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple

import numpy as np

from ..dtypes import DType
from ..simulator.estimate import Array
from ..simulator.operators import Elementwise, Kernel, KernelName
from .microkernel import InputT, Microkernel
from .tables import CALIBRATION, HELD_OUT, SMALL, log_uniform, only, table_of

MIB = 2**20
QUICK_BYTES = (2 * MIB, 40 * MIB, 768 * MIB)
# A launch's floor, powers of two, and half, once and twice the 50 to 60 MB of a last-level cache.
FULL_BYTES = (2**14, 2**17, *QUICK_BYTES, 8 * MIB, 25 * MIB, 60 * MIB, 100 * MIB, 256 * MIB, 2048 * MIB)
HELD_OUT_BYTES = tuple(log_uniform(20, 6, 2**18, 2**30))


class Traffic(NamedTuple):
    """Bytes read and written: once a launch, and with each row."""

    row_read: int
    row_write: int
    fixed_read: int = 0


class RowKernel(Microkernel[Elementwise, InputT]):
    """A kernel over rows of known width; the number of rows follows from the bytes of a case."""

    @property
    def identity(self) -> Kernel:
        """Elementwise, in bf16 unless a kernel says otherwise."""
        return Kernel(KernelName.ELEMENTWISE, DType.BF16)

    @property
    @abstractmethod
    def traffic(self) -> Traffic:
        """Bytes of a launch and of a row."""

    @property
    def least_rows(self) -> int:
        """Rows are a multiple of this."""
        return 1

    def rows_table(self, rows: list[int], label: str) -> Elementwise:
        """The cases with these numbers of rows."""
        count, t = np.array(rows, dtype=float), self.traffic
        return table_of(
            Elementwise,
            self.identity,
            [f"{label}: {self.variant}, {n} rows" for n in rows],
            read_bytes=count * t.row_read + t.fixed_read,
            write_bytes=count * t.row_write,
            launches=1.0,
        )

    def rows(self, case: Elementwise) -> int:
        """The number of rows of a case."""
        t = self.traffic
        rows, rest = divmod(only(case.read_bytes) + only(case.write_bytes) - t.fixed_read, t.row_read + t.row_write)
        if rest:
            raise ValueError(f"{self.name}: bytes of no whole number of rows")
        return rows

    def rows_of(self, sizes: tuple[int, ...]) -> list[int]:
        """Distinct numbers of rows that move about so many bytes."""
        t, least = self.traffic, self.least_rows
        return sorted({max(1, round((s - t.fixed_read) / (t.row_read + t.row_write) / least)) * least for s in sizes})

    def calibration(self, quick: bool) -> Elementwise:
        """From a launch's floor to far beyond the cache."""
        return self.rows_table(self.rows_of(QUICK_BYTES if quick else FULL_BYTES), CALIBRATION)

    def held_out(self) -> Elementwise:
        """Seeded sizes between 256 KiB and 1 GiB."""
        fitted = {*self.rows_of(FULL_BYTES), *self.rows_of(QUICK_BYTES)}
        return self.rows_table([r for r in self.rows_of(HELD_OUT_BYTES) if r not in fitted], HELD_OUT)

    def small(self) -> Elementwise:
        """A few rows."""
        return self.rows_table([self.least_rows, 3 * self.least_rows], SMALL)

    def flops(self, table: Elementwise) -> Array:
        """None on matrix units."""
        return np.zeros_like(table.launches)

    def bytes(self, table: Elementwise) -> Array:
        """read_bytes + write_bytes."""
        return np.asarray(table.read_bytes + table.write_bytes)
