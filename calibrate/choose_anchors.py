"""Choose the anchors that ship: `python -m roofplan.calibrate.choose_anchors` (extra `silicon`).

Rows of the public tables that no fit saw, so that a clean checkout tests accuracy without the extra. The rule never
looks at a prediction: series take turns, one device after another; at each of its turns a series gives one row of a
stratum it has not given yet, drawn with a seed made of its name.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from types import MappingProxyType

import numpy as np

from ..simulator.calibration import Basis, Cache, Calibration
from ..simulator.operators import KernelName
from . import records
from .bundle import Fitted
from .columns import DEFAULTS, ORDER, shape_columns, table_class
from .sample import strata
from .silicon import FOLDERS
from .validate import ANCHORS, held_out, shipped

ROWS = 50  # of a file: small enough to be read
PACKAGE = "aiconfigurator-core 0.12.0"  # the wheel of `silicon.SOURCE`
DIGITS = 6  # kept of a measured time
K = KernelName
FILES: Mapping[str, tuple[KernelName, ...]] = MappingProxyType(
    {
        "gemm": (K.GEMM, K.GEMM_BLOCK_SCALED, K.GEMM_WEIGHT_ONLY),
        "attention": (K.ATTENTION_PREFILL, K.ATTENTION_DECODE),
        "latent_attention": (K.MLA_PREFILL, K.MLA_DECODE),
        "experts": (K.EXPERTS, K.EXPERTS_BLOCK_SCALED, K.EXPERTS_WEIGHT_ONLY),
        "collective": (K.ALL_REDUCE, K.ALL_GATHER, K.REDUCE_SCATTER, K.ALL_TO_ALL),
        "elementwise": (K.ELEMENTWISE,),
    }
)


def choose(kernels: Sequence[KernelName], known: Sequence[Calibration], most: int = ROWS) -> list[records.Record]:
    """The anchors of an operator class, from the series these calibrations were fitted to."""
    rows = [_rows_of(calibration) for calibration in _in_turn(kernels, known)]
    turns = chain.from_iterable(zip_longest(*rows))
    chosen = [row for row, _ in zip((r for r in turns if r is not None), range(most), strict=False)]
    return sorted(chosen, key=_place)


def _place(record: records.Record) -> tuple[int, str, str, str, float]:
    device = list(FOLDERS).index(record.device)
    return device, record.kernel, str(record.dtype), record.engine, record.value


def _in_turn(kernels: Sequence[KernelName], known: Sequence[Calibration]) -> list[Calibration]:
    """The class's fitted series, devices taking turns, those of a device shuffled by the seeds of their names."""
    of_device = [
        sorted(
            (c for c in known if c.device == device and c.kernel.name in kernels and c.basis is Basis.FITTED), key=_seed
        )
        for device in FOLDERS
    ]
    return [c for c in chain.from_iterable(zip_longest(*of_device)) if c is not None]


def _seed(calibration: Calibration) -> int:
    return zlib.crc32(f"{calibration.device}/{calibration.kernel}/{calibration.engine}".encode())


def _rows_of(calibration: Calibration) -> Iterator[records.Record]:
    """Rows of a series, one of each stratum, in the order of a permutation."""
    rng = np.random.default_rng(_seed(calibration))
    found = held_out(calibration)
    cells = strata(found.table, found.seconds)
    for cell in rng.permutation(np.unique(cells)):
        yield _record(found, int(rng.choice(np.flatnonzero(cells == cell))))


def _record(found: Fitted, row: int) -> records.Record:
    c, table = found.calibration, found.table
    every = {column: float(np.ravel(getattr(table, field))[row]) for column, field in shape_columns(c.kernel.name)}
    shape = tuple((column, value) for column, value in every.items() if not _blank(c, column, every))
    return records.Record(
        device=c.device,
        kernel=str(c.kernel.name),
        dtype=c.kernel.dtype,
        value=float(f"{found.seconds[row] * 1e6:.{DIGITS}g}"),
        unit="us",
        shape=tuple(sorted(shape, key=lambda item: ORDER[item[0]])),
        engine=c.engine,
        version=c.version,
        cache=Cache.REUSED.value,
        source=f"{PACKAGE}, {c.provenance.table}, {c.source}",
    )


def _blank(calibration: Calibration, column: str, shape: Mapping[str, float]) -> bool:
    """Whether the column says what a blank one stands for."""
    default = DEFAULTS.get((table_class(calibration.kernel.name), column))
    return default is not None and shape[column] == default(shape, calibration.kernel)


def write(out: Path = ANCHORS) -> None:
    """Write every file of anchors."""
    for name, kernels in FILES.items():
        records.write(out / f"{name}.csv", choose(kernels, shipped()))


if __name__ == "__main__":
    write(*map(Path, sys.argv[1:]))
