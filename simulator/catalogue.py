"""Answers about hardware files, models and measurements. Apart from `answers`: a question loads only its own."""

from __future__ import annotations

from typing import NamedTuple


class HardwareRow(NamedTuple):
    """One bundled hardware file."""

    key: str
    kind: str
    name: str
    facts: int


class HardwareList(NamedTuple):
    """Bundled hardware files."""

    rows: tuple[HardwareRow, ...]


class FactRow(NamedTuple):
    """One number of a hardware file."""

    key: str
    value: float
    unit: str
    kind: str
    source: str
    where: str


class HardwareSheet(NamedTuple):
    """A hardware file number by number."""

    key: str
    name: str
    facts: tuple[FactRow, ...]


class LintFinding(NamedTuple):
    """One thing wrong with a file of hardware or of measurements."""

    file: str
    key: str
    problem: str


class LintReport(NamedTuple):
    """All findings over the files that were checked."""

    files: int
    findings: tuple[LintFinding, ...]


class CompareRow(NamedTuple):
    """One number on several devices; `ratio` is to the first device, null where either lacks it."""

    key: str
    unit: str
    values: tuple[float | None, ...]
    ratios: tuple[float | None, ...]


class Comparison(NamedTuple):
    """Devices side by side."""

    devices: tuple[str, ...]
    rows: tuple[CompareRow, ...]


class ModelRow(NamedTuple):
    """One model's size."""

    name: str
    family: str
    parameters: int
    active_parameters: int
    layers: int
    max_context: int
    weight_bytes: float
    kv_bytes_per_token: float
    origin: str


class ModelList(NamedTuple):
    """Bundled models."""

    rows: tuple[ModelRow, ...]


class TensorRow(NamedTuple):
    """One distinct weight tensor of a model."""

    role: str
    block: str
    layers: int
    copies: int
    rows: int
    cols: int
    bias: bool
    parameters: int
    bytes: float


class ModelSheet(NamedTuple):
    """A model tensor by tensor."""

    model: ModelRow
    tensors: tuple[TensorRow, ...]


class ColumnRow(NamedTuple):
    """One column of a record file, and the kernels and quantities whose rows need it or may fill it."""

    name: str
    unit: str
    required: bool
    needed_by: tuple[str, ...]
    allowed_for: tuple[str, ...]
    meaning: str


class RecordSchema(NamedTuple):
    """The columns a file of measurements may have."""

    columns: tuple[ColumnRow, ...]


class ImportedRow(NamedTuple):
    """One measurement that was brought in."""

    device: str
    kernel: str
    model: str
    value: float
    unit: str
    note: str


class ImportReport(NamedTuple):
    """What an importer read, what it left out and why, and the file that now holds it."""

    source_file: str
    out: str
    rows: tuple[ImportedRow, ...]
    skipped: tuple[str, ...]
    records_in_file: int


CatalogueAnswer = (
    HardwareList | HardwareSheet | LintReport | Comparison | ModelList | ModelSheet | RecordSchema | ImportReport
)
