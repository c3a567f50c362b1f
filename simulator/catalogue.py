"""Answers about hardware files, models and measurements. Apart from `answers`: a question loads only its own."""

from __future__ import annotations

from typing import NamedTuple


class HardwareRow(NamedTuple):
    """One bundled hardware file. Memory and bandwidth are those of the part (a link: one direction; a drive: reading).

    `flops_per_s` is the dense rate in `dtype`: bf16, else fp16, else the widest there is; a cluster has neither but
    says what it is made of.
    """

    key: str
    kind: str
    name: str
    facts: int
    memory_bytes: float | None
    bandwidth_bytes_per_s: float | None
    flops_per_s: float | None
    dtype: str
    made_of: str


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


class WordRow(NamedTuple):
    """One word of a hardware file: its vendor, the link it names, ..."""

    key: str
    value: str


class HardwareSheet(NamedTuple):
    """A hardware file word by word and number by number."""

    key: str
    kind: str
    name: str
    words: tuple[WordRow, ...]
    facts: tuple[FactRow, ...]


class LintFinding(NamedTuple):
    """One thing wrong with a file of hardware or of measurements."""

    file: str
    key: str
    problem: str


class HardwareDraft(NamedTuple):
    """A new hardware file, what is still wrong with it and what it leaves out."""

    file: str
    started_from: str
    findings: tuple[LintFinding, ...]
    notes: tuple[LintFinding, ...]


class LintReport(NamedTuple):
    """All findings over the files that were checked; notes are what a file may go without, at a cost."""

    files: int
    findings: tuple[LintFinding, ...]
    notes: tuple[LintFinding, ...] = ()


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
    """Bundled models, or those on this machine."""

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


class FigureRow(NamedTuple):
    """A published figure beside its prediction; `inside` its 80 % interval, or (a verdict) not wrongly reassuring."""

    id: str
    kind: str
    what: str
    unit: str
    published: float
    predicted: float
    low: float | None
    high: float | None
    error_percent: float | None
    inside: bool
    rule_of_thumb: float | None
    source: str
    note: str


class FigureSummary(NamedTuple):
    """Figures of one kind together."""

    kind: str
    rows: int
    median_percent: float | None
    mean_percent: float | None
    worst_percent: float | None
    coverage_percent: float | None
    note: str


class FigureReport(NamedTuple):
    """Published figures of whole systems beside predictions."""

    rows: tuple[FigureRow, ...]
    summaries: tuple[FigureSummary, ...]


class JudgedRow(NamedTuple):
    """A kernel of one engine (or a kind of step): predictions in writing beside what was measured afterwards.

    `at_bound` names parameters that the measurements did not hold.
    """

    device: str
    kernel: str
    engine: str
    fitted_rows: int
    held_out_rows: int
    mape_percent: float
    median_percent: float
    p90_percent: float
    coverage_percent: float
    three_constants_median_percent: float
    pure_roofline_median_percent: float
    at_bound: tuple[str, ...]


class TimedStep(NamedTuple):
    """One step of a transformer: predicted with its 80 % interval, and measured."""

    step: str
    shape: str
    predicted_s: float
    low_s: float
    high_s: float
    measured_s: float
    three_constants_s: float
    pure_roofline_s: float


class MachineFact(NamedTuple):
    """One number about a machine that was measured, and how."""

    device: str
    name: str
    value: float
    unit: str
    how: str


class Gate(NamedTuple):
    """An error that was agreed on beforehand beside the one found; `goal_percent` is what is hoped for."""

    name: str
    limit_percent: float
    goal_percent: float | None
    value_percent: float
    held: bool


class LeftOut(NamedTuple):
    """A kernel that was not timed, and why."""

    name: str
    reason: str


class CalibrationReport(NamedTuple):
    """What `calibrate` measured, fitted, predicted and found on a device.

    `measured_now` records of all are of this run; `drifted_blocks` were measured again because a sentinel moved.
    """

    device: str
    name: str
    software: str
    threads: int
    facts: tuple[MachineFact, ...]
    kernels: tuple[JudgedRow, ...]
    steps: tuple[JudgedRow, ...]
    library: tuple[JudgedRow, ...]
    timed_steps: tuple[TimedStep, ...]
    gates: tuple[Gate, ...]
    left_out: tuple[LeftOut, ...]
    predictions_written: str
    predictions_sha256: str
    records: int
    measured_now: int
    drifted_blocks: int
    seconds: float
    files: tuple[str, ...]
    gpu: str
    calibrations: str


class DoctorRow(NamedTuple):
    """One thing roofplan may use: what was found, whether that will do (`ok`, `limited`, `missing`), what to do."""

    what: str
    state: str
    found: str
    enables: str
    remedy: str


class DoctorReport(NamedTuple):
    """What this machine can do for roofplan, a line each."""

    rows: tuple[DoctorRow, ...]


class ChoiceRow(NamedTuple):
    """A layout and a number of users that were chosen by price, beside the best measured; rates a device.

    Regrets are shares of the best rate: with a broken limit as a whole loss, with fewer users on the chosen layout
    until the limit is kept, and with the best number of users of the chosen layout.
    """

    question: str
    limit_s: float
    points: int
    layouts: int
    best: str
    chosen: str
    best_tokens_per_s: float
    chosen_tokens_per_s: float
    predicted_tokens_per_s: float
    measured_s: float
    predicted_s: float
    best_layout: bool
    limit_broken: bool
    strict_percent: float
    fewer_percent: float
    layout_percent: float


class RegretSummary(NamedTuple):
    """How much of the best rate is lost over many questions."""

    median_percent: float
    p90_percent: float
    mean_percent: float


class ChoiceSummary(NamedTuple):
    """A rule on the questions of a half of the runs or all; the regrets as in a row."""

    rule: str
    half: str
    questions: int
    best_layout_percent: float
    broken_percent: float
    strict: RegretSummary
    fewer: RegretSummary
    layout: RegretSummary


class ChoiceGate(NamedTuple):
    """A committed limit of one of these figures."""

    rule: str
    figure: str
    limit: float
    value: float
    kept: bool
    source: str


class ChoiceReport(NamedTuple):
    """Decisions beside measurements. `preferred` is the rule that lost least on the half it was looked for on."""

    rows: tuple[ChoiceRow, ...]
    summaries: tuple[ChoiceSummary, ...]
    preferred: str
    gates: tuple[ChoiceGate, ...]


CatalogueAnswer = (
    HardwareList
    | HardwareSheet
    | HardwareDraft
    | LintReport
    | Comparison
    | ModelList
    | ModelSheet
    | RecordSchema
    | ImportReport
    | Validation
    | KernelList
    | FigureReport
    | CalibrationReport
    | DoctorReport
    | ChoiceReport
)
