"""What roofplan answers with: plain frozen values, the same from Python and as JSON. The JSON Schema is generated
from these types; renaming a field here is a new schema version.
"""

from __future__ import annotations

from dataclasses import dataclass

SCHEMA_NAME = "roofplan"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Quantity:
    """A number with its 80 % interval and unit. `reason` says why the value is null where it is."""

    value: float | None
    low: float | None
    high: float | None
    unit: str
    reason: str | None = None


@dataclass(frozen=True)
class Layout:
    """How the model is cut: tensor parallel x pipeline parallel = devices used."""

    tp: int
    pp: int
    devices: int


@dataclass(frozen=True)
class Question:
    """The scenario as understood, defaults filled in, layout and formats chosen."""

    model: str
    model_origin: str
    device: str
    device_count: int
    host_memory_bytes: float | None
    batch: int
    context: int
    prompt: int
    weights: str
    bits_per_weight: float
    kv: str
    layout: Layout
    memory_utilization: float
    max_batched_tokens: int
    routing: str
    pinned: tuple[str, ...]


@dataclass(frozen=True)
class CalibrationUse:
    """A calibration an answer rests on: its id, tier here, share of the time, why it was chosen, file hash."""

    id: str
    tier: str
    share: float
    reason: str
    file_sha256: str


@dataclass(frozen=True)
class TierShare:
    """Share of the decode time that rests on a tier of evidence."""

    tier: str
    share: float


@dataclass(frozen=True)
class Evidence:
    """What the times rest on. `weakest` is the weakest tier that holds more than 5 % of the time."""

    weakest: str
    tiers: tuple[TierShare, ...]
    calibrations: tuple[CalibrationUse, ...]
    extrapolated_share: float
    sources: tuple[str, ...]
    data_date: str


@dataclass(frozen=True)
class MemoryRow:
    """One class of the ledger on one device: bytes with their range, and what the figure rests on."""

    tensor_class: str
    tier: str
    bytes: Quantity
    basis: str


@dataclass(frozen=True)
class MemoryAnswer:
    """The ledger of the fullest device (pipeline stage `stage`), in bytes."""

    verdict: str
    stage: int
    stages: int
    rows: tuple[MemoryRow, ...]
    allocated: Quantity
    reserved: Quantity
    nvidia_smi: Quantity
    capacity_bytes: float
    budget_bytes: float
    activation_peak_at: str
    activation_live: tuple[str, ...]


@dataclass(frozen=True)
class Share:
    """A named share of a time."""

    name: str
    share: float


@dataclass(frozen=True)
class Remedy:
    """One change that alone turns the answer into a yes (or the closest there is), and what it gives."""

    change: str
    effect: str
    flags: str


@dataclass(frozen=True)
class Option:
    """One precision of the domain with the best verdict any layout reaches."""

    weights: str
    kv: str
    layout: Layout
    verdict: str
    needed: Quantity


@dataclass(frozen=True)
class FitAnswer:
    """Does it fit, how far can it grow, how fast does it run, what binds, what would help."""

    verdict: str
    needed: Quantity
    capacity_bytes: float
    budget_bytes: float
    max_context: int
    max_users: int
    limits_hold: str
    swap_bytes: float
    swap: Quantity
    prefill: Quantity
    decode_step: Quantity
    tokens_per_s_user: Quantity
    tokens_per_s_total: Quantity
    binds: str
    shares: tuple[Share, ...]
    plan_status: str
    plan_candidates: int
    plan_gap: float
    options: tuple[Option, ...]
    remedies: tuple[Remedy, ...]
    next_step: str


@dataclass(frozen=True)
class FitRow:
    """One line of a list of models on a device, or of devices for a model."""

    model: str
    device: str
    device_count: int
    verdict: str
    weights: str
    kv: str
    layout: Layout
    needed: Quantity
    max_context: int
    max_users: int
    prefill: Quantity
    tokens_per_s_user: Quantity
    binds: str
    weakest: str
    note: str


@dataclass(frozen=True)
class FitList:
    """Many models on one device, or one model on many devices."""

    rows: tuple[FitRow, ...]


@dataclass(frozen=True)
class ExplainRow:
    """One operator of one layer class on one device: totals over its repetitions."""

    operator_class: str
    operator: str
    layer: str
    kernel: str
    count: float
    flops: float
    bytes: float
    time: Quantity
    compute_s: float
    memory_s: float
    floor_s: float
    link_s: float
    bound: str
    share: float
    tier: str
    note: str


@dataclass(frozen=True)
class ExplainAnswer:
    """A step operator by operator, the longest last in the sentence that names what binds."""

    phase: str
    rows: tuple[ExplainRow, ...]
    total: Quantity
    binds: str
    shares: tuple[Share, ...]
    peak_flops_per_s: float
    bandwidth_bytes_per_s: float


@dataclass(frozen=True)
class HardwareRow:
    """One bundled hardware file."""

    key: str
    kind: str
    name: str
    facts: int


@dataclass(frozen=True)
class HardwareList:
    """Bundled hardware files."""

    rows: tuple[HardwareRow, ...]


@dataclass(frozen=True)
class FactRow:
    """One number of a hardware file."""

    key: str
    value: float
    unit: str
    kind: str
    source: str
    where: str


@dataclass(frozen=True)
class HardwareSheet:
    """A hardware file number by number."""

    key: str
    name: str
    facts: tuple[FactRow, ...]


@dataclass(frozen=True)
class LintFinding:
    """One thing wrong with a hardware file."""

    file: str
    key: str
    problem: str


@dataclass(frozen=True)
class LintReport:
    """All findings over the files that were checked."""

    files: int
    findings: tuple[LintFinding, ...]


@dataclass(frozen=True)
class CompareRow:
    """One number on several devices; `ratio` is to the first device, null where either lacks it."""

    key: str
    unit: str
    values: tuple[float | None, ...]
    ratios: tuple[float | None, ...]


@dataclass(frozen=True)
class Comparison:
    """Devices side by side."""

    devices: tuple[str, ...]
    rows: tuple[CompareRow, ...]


@dataclass(frozen=True)
class ModelRow:
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


@dataclass(frozen=True)
class ModelList:
    """Bundled models."""

    rows: tuple[ModelRow, ...]


@dataclass(frozen=True)
class TensorRow:
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


@dataclass(frozen=True)
class ModelSheet:
    """A model tensor by tensor."""

    model: ModelRow
    tensors: tuple[TensorRow, ...]


@dataclass(frozen=True)
class SchemaId:
    """Name and version of the contract."""

    name: str
    version: int


Answer = (
    FitAnswer
    | FitList
    | MemoryAnswer
    | ExplainAnswer
    | HardwareList
    | HardwareSheet
    | LintReport
    | Comparison
    | ModelList
    | ModelSheet
)


@dataclass(frozen=True)
class Report:
    """What `--json` prints: the question as understood, the answer, its evidence and warnings."""

    schema: SchemaId
    question: Question | None
    answer: Answer
    evidence: Evidence | None
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class ErrorBody:
    """An error: exit code, kind and the parts its one line is made of."""

    code: int
    kind: str
    message: str
    file: str | None
    key: str | None
    value: str | None
    remedy: str | None


@dataclass(frozen=True)
class ErrorReport:
    """What `--json` prints instead when there is no answer."""

    schema: SchemaId
    error: ErrorBody
