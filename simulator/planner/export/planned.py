"""What is exported and what comes of it, and what all engines share: number formats, devices of a replica, refusals.

A plan is taken apart into its decisions (`Decision`). An engine states for each how it is carried out (`Means`) or
raises `Refused`; none can be left out, which is what keeps one from being dropped in silence.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from ....dtypes import DType
from ....errors import InputError
from ...scenario import MemoryTier, Mode, Scenario, stage_layers
from ...workload.formats import FORMATS, WeightFormat
from ...workload.gguf_types import file_type
from ...workload.layers import Experts


class Decision(StrEnum):
    """What a plan decides. The other knobs of an `Engine` are facts about an engine, or say how the load routes."""

    TP = "tensor parallelism"
    PP = "pipeline stages"
    STAGES = "layers of a stage"
    EP = "expert parallelism"
    CP = "context parallelism"
    REPLICAS = "replicas"
    USERS = "users of a replica"
    STEP_TOKENS = "tokens of a step"
    CHUNKS = "prompts in chunks"
    MIXES = "prompts beside decoding"
    CONTEXT = "context"
    MEMORY = "memory utilization"
    WEIGHTS = "weights"
    LAYER_FORMATS = "formats of layers"
    ACTIVATIONS = "activations"
    KV = "KV cache"
    GRAPHS = "graphs"
    FLASH = "flash attention"
    PAGE = "tokens of a page"
    PREFIX = "shared prefix"
    ADAPTERS = "adapters"
    DRAFT = "draft model"
    PLACEMENT = "placement"
    STORAGE = "storage"
    PREFETCH = "prefetch depth"
    CXL = "memory behind CXL"
    DEVICE = "device"


@dataclass(frozen=True, eq=False)
class Planned:
    """A plan to carry out: `replicas` servers as the scenario says, whose `batch` is the users of one of them.

    A request has the scenario's `prompt` and gets `output` tokens; `clients` requests are under way over all replicas.
    """

    scenario: Scenario
    replicas: int = 1
    output: int = 256
    clients: int = 1

    def __post_init__(self) -> None:
        for name in ("replicas", "output", "clients"):
            if getattr(self, name) < 1:
                raise InputError("must be at least 1", key=name, value=getattr(self, name))
        for name in ("batch", "context", "prompt"):
            if np.ndim(getattr(self.scenario, name)):
                raise InputError("a plan has one value", key=name, value=getattr(self.scenario, name))
            if getattr(self.scenario, name) % 1:
                raise InputError("must be a whole number", key=name, value=getattr(self.scenario, name))

    @property
    def users(self) -> int:
        """Requests a replica works on at once."""
        return int(self.scenario.batch)

    @property
    def prompt(self) -> int:
        """Tokens of a request's prompt."""
        return int(self.scenario.prompt)

    @property
    def length(self) -> int:
        """Tokens a sequence may reach: the context, or prompt and output where those are longer."""
        return max(int(self.scenario.context), self.prompt + self.output)

    @property
    def stages(self) -> tuple[int, ...]:
        """Layers of each pipeline stage."""
        return tuple(sum(stage) for stage in stage_layers(self.scenario.model, self.scenario.sharding))

    @property
    def is_mixed(self) -> bool:
        """Whether the plan gives layers formats of their own."""
        return bool(self.scenario.model.layer_formats)

    @property
    def modes(self) -> Mapping[Mode, int]:
        """How many layers the placement gives each mode other than on the device."""
        counts: dict[Mode, int] = {}
        for stretch in self.scenario.placement.stretches:
            counts[stretch.mode] = counts.get(stretch.mode, 0) + stretch.layers
        return counts


class Means(NamedTuple):
    """How a decision is carried out: words of the command line, settings of a file, or why neither is needed.

    `note` is what the reader must know or do beside it, `environment` words before the command.
    """

    flags: tuple[str, ...] = ()
    settings: tuple[tuple[str, object], ...] = ()
    because: str = ""
    note: str = ""
    environment: str = ""

    def __str__(self) -> str:
        return (
            self.environment
            or " ".join(self.flags)
            or ", ".join(f"{key}: {value}" for key, value in self.settings)
            or self.because
        )


class Refused(Exception):
    """An engine cannot do what a decision asks: the text says why, after the engine's name."""


Decide = Callable[[Planned], Means]


class Exported(NamedTuple):
    """The commands that start every replica (`lines`), the files they read, the benchmark, and what to know.

    `decided` says for each decision which words carry it out.
    """

    engine: str
    lines: tuple[str, ...]
    files: Mapping[str, str]
    benchmark: str
    notes: tuple[str, ...]
    decided: Mapping[Decision, str]


class Command(NamedTuple):
    """What one engine adds to the decisions: words before and behind the flags, files made of the settings."""

    head: str
    port: tuple[str, ...] = ()
    files: Mapping[str, str] = MappingProxyType({})


class Kind(StrEnum):
    """Kinds of weight formats, by what has to have written the checkpoint."""

    PLAIN = "plain"
    FP8 = "fp8"
    FP8_BLOCK = "fp8-block"
    INT8 = "int8"
    INT4 = "int4"
    MXFP4 = "mxfp4"
    NVFP4 = "nvfp4"
    GGUF = "gguf"
    BITSANDBYTES = "bnb"
    OTHER = "other"


def kind_of(weights: WeightFormat) -> Kind:
    """The kind of a format. Names of checkpoints (`int4-g32`) are those of `workload/quantised.py`."""
    name = weights.name.lower()
    if name in ("bf16", "fp16", "fp32"):
        return Kind.PLAIN
    # `quantised.py` marks other methods by their names: mlx-, hqq-, torchao-.
    if weights.whole or (name not in FORMATS and file_type(weights.name) is not None):
        return Kind.OTHER if name.startswith("mlx") else Kind.GGUF
    for kind, pattern in (
        (Kind.FP8_BLOCK, r"fp8-block(-\d+x\d+)?"),
        (Kind.FP8, r"fp8"),
        (Kind.INT8, r"int8"),
        (Kind.INT4, r"int4(-g\d+|-channel)?"),
        (Kind.MXFP4, r"mxfp4(-w4a16)?"),
        (Kind.NVFP4, r"nvfp4(-w4a16)?"),
        (Kind.BITSANDBYTES, r"bnb-.*"),
    ):
        if re.fullmatch(pattern, name):
            return kind
    return Kind.OTHER


def is_native(planned: Planned) -> bool:
    """Whether the weights are as the publisher's own files have them."""
    return planned.scenario.numerics.weights.name == planned.scenario.model.native.name


def computes_in(planned: Planned, engine: str) -> DType:
    """The one format an engine computes in: that of plain weights, else of the activations; 16 bits are as good."""
    numerics = planned.scenario.numerics
    weights = numerics.weights
    dtype = DType(weights.name) if kind_of(weights) is Kind.PLAIN else numerics.activations
    if dtype not in (DType.BF16, DType.FP16, DType.FP32):
        raise Refused(f"has no activations kept in {dtype}; the kernels of narrow weights narrow them themselves")
    if dtype.bits != numerics.activations.bits:
        raise Refused(f"has one format for weights and activations, not {weights.name} and {numerics.activations}")
    return dtype


def checkpoint_note(planned: Planned, made_by: str) -> str:
    """What the checkpoint in MODEL has to be."""
    model, weights = planned.scenario.model, planned.scenario.numerics.weights
    if is_native(planned):
        return f"MODEL is {model.name} as published, in {weights.name}"
    if kind_of(weights) is Kind.PLAIN:
        return f"MODEL is {model.name} in {weights.name}"
    return f"MODEL is a checkpoint of {model.name} in {weights.name}: {made_by}"


def sixteen(planned: Planned, engine: str) -> bool:
    """Whether the cache has 16 bits and is in the format the engine computes in, which is then its default."""
    kv = planned.scenario.numerics.kv
    if kv not in (DType.BF16, DType.FP16):
        return False
    dtype = computes_in(planned, engine)
    if dtype is not kv:
        raise Refused(f"keeps a 16-bit cache in the format it computes in, {dtype}, not in {kv}")
    return True


def full(why: str, planned: Planned) -> InputError:
    """The error of a plan that no engine can hold, whatever its options."""
    value = planned.scenario.engine.memory_utilization
    remedy = "plan for fewer users, narrower weights or more devices"
    return InputError(f"does not fit: {why}", key=Decision.MEMORY.value, value=value, remedy=remedy)


def on_device(planned: Planned, why: str = "has no placement beside the device") -> None:
    """Refuse any placement."""
    if planned.modes:
        raise Refused(f"{why}: {', '.join(f'{n} x {mode.name}' for mode, n in planned.modes.items())}")


def no_shared_contexts(planned: Planned) -> Means:
    """Refuse a KV cache whose tokens are dealt out over ranks; none asked needs no words."""
    if planned.scenario.sharding.cp > 1:
        raise Refused("deals no contexts out over the ranks that serve their prompts too")
    return Means(because="every rank keeps whole contexts")


def no_storage(planned: Planned) -> Means:
    """Refuse weights on a drive; none asked needs no words."""
    if planned.scenario.placement.storage_share > 0:
        raise Refused("reads no weights from a drive while it runs")
    return Means(because="nothing is read from a drive")


def waiting(planned: Planned) -> Means:
    """The decision of engines that begin no copy before the layer that needs it; of what is not copied no words."""
    placement = planned.scenario.placement
    if placement.streams and placement.ahead:
        raise Refused(f"begins no copies {placement.ahead} layers ahead")
    return Means(because="layers wait for their copies" if placement.streams else "nothing is copied for a step")


def runs_on(*others: str) -> Decide:
    """The decision of an engine that has kernels for the devices of every vendor but the `others`."""

    def decide(planned: Planned) -> Means:
        device = planned.scenario.fleet.device
        if device.vendor in others:
            raise Refused(f"has no kernels for {device.name}")
        return Means(because=f"runs on {device.vendor} devices")

    return decide


def no_cxl(planned: Planned) -> Means:
    """Refuse memory behind CXL: engines take host memory as the system hands it out."""
    if any(stretch.tier is MemoryTier.CXL for stretch in planned.scenario.placement.stretches):
        raise Refused("knows no memory behind CXL: only numactl, or the kernel's tiering, can tell it from the rest")
    return Means(because="none is used")


class Loaded(NamedTuple):
    """How a server is told what it loads: its names of number formats, what has to have made a checkpoint of each kind,
    and the words that say so where config.json does not."""

    engine: str
    names: Mapping[DType, str]
    made_by: Mapping[Kind, str]
    words: Mapping[Kind, tuple[str, ...]]

    def weights(self, planned: Planned) -> Means:
        """The decision about weights."""
        kind = kind_of(planned.scenario.numerics.weights)
        wide = planned.scenario.model.native.bits_per_weight >= 16
        if kind is Kind.PLAIN:
            return Means(("--dtype", self._computes_in(planned)), note=checkpoint_note(planned, ""))
        if kind not in self.made_by:
            raise Refused(f"loads no weights in {planned.scenario.numerics.weights.name}")
        if kind is Kind.FP8 and wide and not planned.is_mixed and not is_native(planned):
            note = f"MODEL is {planned.scenario.model.name} of 16 bits, made fp8 as it is loaded, or a checkpoint of "
            return Means(("--quantization", "fp8"), note=note + self.made_by[kind])
        return Means(self.words.get(kind, ()), note=checkpoint_note(planned, self.made_by[kind]))

    def activations(self, planned: Planned) -> Means:
        """The decision about activations, which is that about weights where those are plain."""
        if kind_of(planned.scenario.numerics.weights) is Kind.PLAIN:
            said = computes_in(planned, self.engine)
            return Means(because=f"one --dtype for weights and activations: {said}")
        return Means(("--dtype", self._computes_in(planned)))

    def _computes_in(self, planned: Planned) -> str:
        return self.names[computes_in(planned, self.engine)]


def even_stages(planned: Planned) -> Means | None:
    """What to say of stages that any engine cuts alike, None where it has to be told."""
    sizes = planned.stages
    return Means(because=f"{len(sizes)} of {sizes[0]} layers") if len(set(sizes)) == 1 else None


LAYER_FILE = "layer_formats.csv"


def layer_formats(loads: frozenset[Kind], made_by: str) -> Decide:
    """The decision of an engine whose checkpoints of mixed formats, `made_by` a tool, may hold the kinds of `loads`."""

    def decide(planned: Planned) -> Means:
        if not planned.is_mixed:
            return Means(because="one format for all layers")
        formats = {w.name: w for w in planned.scenario.model.layer_formats.values()}
        wrong = [name for name, weights in formats.items() if kind_of(weights) not in loads]
        if wrong:
            raise Refused(f"loads no checkpoint that mixes {', '.join(formats)} (not {', '.join(wrong)})")
        note = f"MODEL's layers have the formats {', '.join(formats)} as in {LAYER_FILE}: {made_by}"
        return Means(because=f"the checkpoint, made by {LAYER_FILE}", note=note)

    return decide


def layer_file(planned: Planned) -> Mapping[str, str]:
    """The file that says what format each layer's own weights and its routed experts have, for whoever makes it."""
    if not planned.is_mixed:
        return {}
    model, usual = planned.scenario.model, planned.scenario.numerics.weights
    rows = ["layer,weights,experts"]
    for i, block in enumerate(model.pattern):
        names = [model.layer_formats.get((block, routed), usual).name for routed in (False, True)]
        rows.append(f"{i},{names[0]},{names[1] if isinstance(model.blocks[block].ffn, Experts) else ''}")
    return {LAYER_FILE: "\n".join(rows) + "\n"}


def replicas(planned: Planned) -> Means:
    """Replicas are processes of their own, one line each."""
    return Means(because=f"{planned.replicas} of the lines below" if planned.replicas > 1 else "one line")


def one_at_a_time(name: str, value: int) -> Refused:
    """What an engine without a degree of parallelism says."""
    return Refused(f"has no {name} (asked for {value})")


# How a process is confined to some devices of a node. Sources: CUDA C++ programming guide, "CUDA environment
# variables"; ROCm documentation, "GPU isolation techniques"; Level Zero specification, "Affinity mask".
VISIBLE: Mapping[str, str] = MappingProxyType(
    {"nvidia": "CUDA_VISIBLE_DEVICES", "amd": "HIP_VISIBLE_DEVICES", "intel": "ZE_AFFINITY_MASK"}
)


class Seat(NamedTuple):
    """Where a replica runs: node, first device and place among the node's replicas."""

    node: int
    first: int
    place: int


def seats(planned: Planned) -> tuple[Seat, ...]:
    """Replicas fill node after node; none spans two."""
    each, room = planned.scenario.sharding.devices, planned.scenario.fleet.count
    a_node = room // each
    return tuple(Seat(i // a_node, i % a_node * each, i % a_node) for i in range(planned.replicas))


def confined(planned: Planned, seat: Seat) -> str:
    """The environment that shows a replica its own devices, blank where it has the whole node."""
    fleet, each = planned.scenario.fleet, planned.scenario.sharding.devices
    if each == fleet.count:
        return ""
    if fleet.device.vendor not in VISIBLE:
        raise InputError(
            "no variable is known that shows a process some of these devices only",
            key=f"{fleet.label} for {each}",
            value=fleet.device.vendor,
            remedy="plan for as many devices as a replica uses",
        )
    return f"{VISIBLE[fleet.device.vendor]}={','.join(str(seat.first + i) for i in range(each))} "


# What every engine here decides alike.
ALIKE: Mapping[Decision, Decide] = {Decision.PREFETCH: waiting, Decision.CXL: no_cxl}
