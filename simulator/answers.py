"""What roofplan answers with: plain frozen values, the same from Python and as JSON. The JSON Schema is generated
from these types; renaming a field here is a new schema version.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from .catalogue import CatalogueAnswer
    from .plan_answers import PlanAnswer

    Numbers = npt.NDArray[np.float64]
    Counts = npt.NDArray[np.integer[Any]]

SCHEMA_NAME = "roofplan"
SCHEMA_VERSION = 1


class Quantity(NamedTuple):
    """A number with its unit and interval: 80 % for times and rates, lowest to highest for bytes.

    `reason` says why the value is null where it is.
    """

    value: float | None
    low: float | None
    high: float | None
    unit: str
    reason: str | None = None


class Layout(NamedTuple):
    """How the model is cut: tensor parallel x pipeline parallel = devices used; `ep` groups hold whole experts,
    `cp` ranks of a tensor-parallel group share out the tokens of a KV cache."""

    tp: int
    pp: int
    ep: int
    cp: int
    devices: int


class Question(NamedTuple):
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
    engine: str
    memory_utilization: float
    max_batched_tokens: int
    routing: str
    pinned: tuple[str, ...]


class CalibrationUse(NamedTuple):
    """A calibration an answer rests on: its id, tier here, share of the time, why it was chosen, file hash."""

    id: str
    tier: str
    share: float
    reason: str
    file_sha256: str


class TierShare(NamedTuple):
    """Share of the decode time that rests on a tier of evidence."""

    tier: str
    share: float


class Evidence(NamedTuple):
    """What the times rest on. `weakest` is the weakest tier that holds more than 5 % of the time."""

    weakest: str
    tiers: tuple[TierShare, ...]
    calibrations: tuple[CalibrationUse, ...]
    extrapolated_share: float
    sources: tuple[str, ...]
    data_date: str


class MemoryRow(NamedTuple):
    """One class of the ledger on one device: bytes with their range, and what the figure rests on."""

    tensor_class: str
    tier: str
    bytes: Quantity
    basis: str


class MemoryAnswer(NamedTuple):
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


class Share(NamedTuple):
    """A named share of a time."""

    name: str
    share: float


class Remedy(NamedTuple):
    """One change that alone turns the answer into a yes (or the closest there is), and what it gives."""

    change: str
    effect: str
    flags: str


class Option(NamedTuple):
    """What the answer would be with this precision pinned."""

    weights: str
    kv: str
    layout: Layout
    verdict: str
    needed: Quantity
    max_users: int
    tokens_per_s_user: Quantity
    placement: str


class PlacementRow(NamedTuple):
    """Layers of which something is not on the device, and how they run; of streamed experts a share stays cached."""

    mode: str
    first_layer: int
    layers: int
    cached_share: float


class Placement(NamedTuple):
    """What is kept in host memory (and read from its drive), and which engine runs it so (empty: all on the device)."""

    rows: tuple[PlacementRow, ...]
    host_bytes: float
    drive_bytes: float
    host: str
    run_with: str


class FitAnswer(NamedTuple):
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
    options: tuple[Option, ...]
    remedies: tuple[Remedy, ...]
    placement: Placement
    next_step: str


class FitRow(NamedTuple):
    """One line of a list of models on a device, or of devices for a model."""

    model: str
    device: str
    device_count: int
    verdict: str
    weights: str
    kv: str
    layout: Layout
    batch: int
    context: int
    needed: Quantity
    max_context: int
    max_users: int
    prefill: Quantity
    tokens_per_s_user: Quantity
    binds: str
    weakest: str
    note: str
    placement: str


class FitList(NamedTuple):
    """Many models on one device, or one model on many devices."""

    rows: tuple[FitRow, ...]


class ExplainRow(NamedTuple):
    """One operator of one layer class on one device: totals over its repetitions."""

    operator_class: str
    operator: str
    layer: str
    kernel: str
    repetitions: float
    flops: float
    bytes: float
    time: Quantity
    compute_s: float
    memory_s: float
    floor_s: float
    link_s: float
    latency_s: float
    bound: str
    share: float
    arithmetic: str
    peak_flops_per_s: float
    tier: str
    note: str


class ExplainAnswer(NamedTuple):
    """A step operator by operator, the longest last in the sentence that names what binds."""

    phase: str
    step_tokens: float
    rows: tuple[ExplainRow, ...]
    total: Quantity
    binds: str
    shares: tuple[Share, ...]
    bandwidth_bytes_per_s: float


class ServeAnswer(NamedTuple):
    """Steady use by clients (the question's `batch`) that each send the next request when their answer is complete.

    Of `in_flight` requests `running` decode at a time; `waiting` clients have no place in the KV cache. `prompt_share`
    of the steps take prompts in, and the prompts of others take `prefill_share` of the time per output token.
    `limited_by` is `clients`, `kv cache` or `prompts`. `first_token_service` leaves out the time in a queue. A decode
    step yields `tokens_per_step` for each request, more than one where a draft model guesses.
    """

    verdict: str
    output: int
    alike: bool
    tokens_per_step: float
    needed: Quantity
    capacity_bytes: float
    time_per_output_token: Quantity
    tokens_per_s_user: Quantity
    tokens_per_s_total: Quantity
    first_token_service: Quantity
    decode_step: Quantity
    running: float
    in_flight: float
    waiting: float
    limited_by: str
    prompt_share: float
    prefill_share: float
    binds: str
    shares: tuple[Share, ...]
    next_step: str


class Words(NamedTuple):
    """A column of words: the place of each in `names`. A list of words in JSON."""

    names: tuple[str, ...]
    codes: npt.NDArray[np.int8]


class SweepColumns(NamedTuple):
    """One entry a point: series by series, in each every batch in turn with all its contexts.

    `verdict` is `surely`, `tight` or `no`; `binds` what most of a decode step goes to (`memory` where it does not fit),
    `evidence` the weakest tier that holds more than 5 % of it. Bytes are of the fullest device, lowest to highest
    figure; intervals of times and rates are 80 %. Speeds and evidence are null (`""`) where the verdict is `no`.
    """

    device: Words
    device_count: Counts
    weights: Words
    kv: Words
    tp: Counts
    pp: Counts
    ep: Counts
    cp: Counts
    batch: Counts
    context_tokens: Counts
    prompt_tokens: Counts
    verdict: Words
    binds: Words
    evidence: Words
    needed_bytes: Numbers
    needed_low_bytes: Numbers
    needed_high_bytes: Numbers
    decode_s: Numbers
    decode_low_s: Numbers
    decode_high_s: Numbers
    tokens_per_s_user: Numbers
    tokens_per_s_user_low: Numbers
    tokens_per_s_user_high: Numbers
    tokens_per_s_total: Numbers
    tokens_per_s_total_low: Numbers
    tokens_per_s_total_high: Numbers
    prefill_s: Numbers
    prefill_low_s: Numbers
    prefill_high_s: Numbers


class SweepSeries(NamedTuple):
    """A device with a weight and a KV format; its memory, and the evidence of the points the printed table shows."""

    device: str
    device_count: int
    weights: str
    bits_per_weight: float
    kv: str
    capacity_bytes: float
    budget_bytes: float
    evidence: Evidence | None


class SweepAnswer(NamedTuple):
    """Every combination of series, batch and context, each in the layout `fits` would choose for it unless pinned."""

    model: str
    model_origin: str
    engine: str
    memory_utilization: float
    max_batched_tokens: int
    routing: str
    pinned: tuple[str, ...]
    points: int
    series: tuple[SweepSeries, ...]
    columns: SweepColumns


class PassQuestion(NamedTuple):
    """A question about a model of one pass as understood: a batch of results of a size, formats, what is resident."""

    model: str
    model_origin: str
    family: str
    device: str
    device_count: int
    batch: int
    result: str
    size: str
    weights: str
    bits_per_weight: float
    activations: str
    residency: str
    memory_utilization: float
    pinned: tuple[str, ...]


class PassNetwork(NamedTuple):
    """One network: how often it runs for a result and with how many inputs of it, what it holds, how long it takes.

    `weight_bytes` and `activations` are of the whole batch; `time` is that of all its passes, `share` of the whole.
    """

    name: str
    parameters: int
    passes: int
    inputs: int
    fp32: bool
    weight_bytes: float
    activations: Quantity
    time: Quantity
    share: float


class PassOption(NamedTuple):
    """What the answer would be with this format and residency pinned."""

    weights: str
    residency: str
    verdict: str
    needed: Quantity
    max_batch: int
    time: Quantity


class PassAnswer(NamedTuple):
    """Does a model of one pass fit, how many results at once, how long one batch of them takes, what binds.

    `copying` is the time to bring weights to the device where only one network is there at a time.
    """

    asked: PassQuestion
    verdict: str
    needed: Quantity
    capacity_bytes: float
    budget_bytes: float
    max_batch: int
    time: Quantity
    results_per_s: Quantity
    copying: Quantity
    networks: tuple[PassNetwork, ...]
    memory: tuple[MemoryRow, ...]
    binds: str
    shares: tuple[Share, ...]
    options: tuple[PassOption, ...]
    next_step: str


class PassRow(NamedTuple):
    """One line of a list of devices for a model of one pass."""

    model: str
    device: str
    verdict: str
    weights: str
    residency: str
    batch: int
    needed: Quantity
    max_batch: int
    time: Quantity
    results_per_s: Quantity
    weakest: str


class PassList(NamedTuple):
    """A model of one pass on many devices."""

    size: str
    rows: tuple[PassRow, ...]


class SchemaId(NamedTuple):
    """Name and version of the contract."""

    name: str
    version: int


Answer = FitAnswer | FitList | MemoryAnswer | ExplainAnswer | ServeAnswer | SweepAnswer | PassAnswer | PassList


class Report(NamedTuple):
    """What `--json` prints: the question as understood, the answer, its evidence and warnings."""

    schema: SchemaId
    question: Question | None
    answer: Answer | CatalogueAnswer | PlanAnswer
    evidence: Evidence | None
    warnings: tuple[str, ...]


class ErrorBody(NamedTuple):
    """An error: exit code, kind and the parts its one line is made of."""

    code: int
    kind: str
    message: str
    file: str | None
    key: str | None
    value: str | None
    remedy: str | None


class ErrorReport(NamedTuple):
    """What `--json` prints instead when there is no answer."""

    schema: SchemaId
    error: ErrorBody
