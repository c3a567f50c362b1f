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
    """One model's size; `oracle` counted its parameters too. What runs as one pass has no context and no KV cache."""

    name: str
    family: str
    parameters: int
    active_parameters: int
    layers: int
    max_context: int
    weight_bytes: float
    kv_bytes_per_token: float
    origin: str
    oracle: str


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


class ValidationRow(NamedTuple):
    """Errors of a kernel (or of whole serving steps) in a regime, beside two baselines on the same rows.

    Bias is the median of predicted / measured - 1; coverage the share of rows inside the 80 % interval, whose median
    width is relative to the prediction. `degenerate` names rates that the data of what priced it did not hold.
    """

    evidence: str
    case: str
    device: str
    kernel: str
    engine: str
    version: str
    source: str
    regime: str
    rows: int
    mape_percent: float
    median_percent: float
    p90_percent: float
    bias_percent: float
    coverage_percent: float
    width_percent: float
    three_constants_mape_percent: float
    three_constants_median_percent: float
    pure_roofline_mape_percent: float
    pure_roofline_median_percent: float
    worse_than_three_constants: bool
    degenerate: tuple[str, ...]


class EvidenceSummary(NamedTuple):
    """What all kernels judged on one kind of evidence come to."""

    evidence: str
    cases: int
    rows: int
    coverage_percent: float
    worse_than_three_constants: tuple[str, ...]
    degenerate: tuple[str, ...]


class BoundRow(NamedTuple):
    """One bound beside the figure it was held against."""

    measure: str
    kernel_class: str
    evidence: str
    case: str
    limit_percent: float
    value_percent: float
    held: bool


class RatioRow(NamedTuple):
    """How ratios between neighbouring serving runs are met, beside ratio = 1 and the best constant ratio."""

    between: str
    pairs: int
    median_percent: float
    p90_percent: float
    unit_median_percent: float
    constant_median_percent: float


class Validation(NamedTuple):
    """Predictions beside measurements."""

    rows: tuple[ValidationRow, ...]
    summaries: tuple[EvidenceSummary, ...]
    ratios: tuple[RatioRow, ...]
    bounds: tuple[BoundRow, ...]


class KernelRow(NamedTuple):
    """One series of measured kernels, fitted or left out; `reason` says why, or what the fit rests on."""

    device: str
    kernel: str
    engine: str
    version: str
    source: str
    rows: int
    state: str
    reason: str


class KernelList(NamedTuple):
    """Every series there is."""

    rows: tuple[KernelRow, ...]


CatalogueAnswer = (
    HardwareList
    | HardwareSheet
    | LintReport
    | Comparison
    | ModelList
    | ModelSheet
    | RecordSchema
    | ImportReport
    | Validation
    | KernelList
)
