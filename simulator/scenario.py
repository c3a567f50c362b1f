"""The question, typed. Every result is f(scenario, calibrations), and the JSON `question` is this value.

Numbers that may be swept (batch, context) are plain ints or numpy arrays that broadcast against each other;
everything structural (model, sharding, formats) is one value.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..dtypes import DType
from ..errors import InputError
from ..hwspecs.device import Fleet
from .workload.formats import WeightFormat
from .workload.model import Experts, LatentAttention, Model
from .workload.routing import Routing

Number = float | npt.NDArray[np.float64]


class Sharding(NamedTuple):
    """How a model is cut over devices: tensor parallel within a stage, pipeline stages one after another.

    With expert parallelism the ranks of a tensor-parallel group hold whole experts in `ep` groups; within a group
    each expert is cut `tp / ep` ways. `stages` are the layers of each stage where they are not as even as possible.
    With context parallelism the tokens of a KV cache are dealt out over `cp` ranks of a tensor-parallel group that
    would otherwise all keep the same one.
    """

    tp: int = 1
    pp: int = 1
    ep: int = 1
    stages: tuple[int, ...] = ()
    cp: int = 1

    @property
    def devices(self) -> int:
        """Devices one replica occupies."""
        return self.tp * self.pp

    def __str__(self) -> str:
        others = {"pp": self.pp, "ep": self.ep, "cp": self.cp}
        return " ".join([f"tp{self.tp}", *(f"{name}{degree}" for name, degree in others.items() if degree > 1)])

    @property
    def expert_cut(self) -> int:
        """Over how many ranks one expert is cut."""
        return self.tp // self.ep


class ContextParallel(StrEnum):
    """Whose KV cache an engine deals out over ranks (decode context parallelism)."""

    NONE = "none"
    LATENT = "latent attention"
    ANY = "any attention"

    def covers(self, model: Model) -> bool:
        """Whether that holds for all attention of the model."""
        if self is ContextParallel.LATENT:
            return all(isinstance(block.attention, LatentAttention) for block in model.blocks)
        return self is ContextParallel.ANY


class Numerics(NamedTuple):
    """Number formats of weights, KV cache and activations."""

    weights: WeightFormat
    kv: DType
    activations: DType = DType.BF16


class MemoryTier(StrEnum):
    """Where bytes live."""

    HBM = "hbm"
    HOST = "host"
    CXL = "cxl"  # of the host, but behind a link: it computes with it and copies from it at that link's pace
    STORAGE = "storage"


class Where(StrEnum):
    """Where a part of a layer is kept and who computes with it."""

    DEVICE = "device"  # kept and computed on the device
    HOST = "host"  # kept in host memory, computed by the host's cores
    STREAMED = "streamed"  # kept in host memory, copied over for each step, computed on the device
    REMADE = "remade"  # KV only: a layer's inputs are kept in host memory and copied, K and V made of them once more


class Mode(NamedTuple):
    """How the three parts of a layer run: the layer without routed experts, its experts, its KV cache and attention."""

    name: str
    shell: Where = Where.DEVICE
    experts: Where = Where.DEVICE
    kv: Where = Where.DEVICE

    @property
    def copies(self) -> bool:
        """Whether something is copied to the device for each step."""
        return Where.STREAMED in self or Where.REMADE in self


ON_DEVICE = Mode("on the device")
EXPERTS_HOST = Mode("experts on the host", experts=Where.HOST)
EXPERTS_STREAMED = Mode("experts streamed", experts=Where.STREAMED)
KV_HOST = Mode("attention on the host", kv=Where.HOST)
KV_STREAMED = Mode("KV cache streamed", kv=Where.STREAMED)
LAYERS_HOST = Mode("layers on the host", Where.HOST, Where.HOST, Where.HOST)
LAYERS_STREAMED = Mode("layers streamed", Where.STREAMED, Where.STREAMED)
STREAMED_KV_HOST = Mode("layers streamed, attention on the host", Where.STREAMED, Where.STREAMED, Where.HOST)
# Searched through where an engine names it: attention to a cache of 16 bits is faster where that is kept.
LAYERS_KV_STREAMED = Mode("layers and KV cache streamed", Where.STREAMED, Where.STREAMED, Where.STREAMED)
# Recomputing keys and values instead of fetching them: KVPR (arXiv 2411.17089), HybridServe (arXiv 2501.01792).
KV_REMADE = Mode("KV cache remade", kv=Where.REMADE)
STREAMED_KV_REMADE = Mode("layers streamed, KV cache remade", Where.STREAMED, Where.STREAMED, Where.REMADE)
MODES = (EXPERTS_HOST, EXPERTS_STREAMED, KV_HOST, KV_STREAMED, LAYERS_HOST, LAYERS_STREAMED, STREAMED_KV_HOST)
REMAKING = (KV_REMADE, STREAMED_KV_REMADE)


class Stretch(NamedTuple):
    """So many consecutive layers in one mode; of streamed experts the popular `cached` share stays on the device.

    What leaves the device is kept in `tier`: host memory, or memory the host reaches over CXL.
    """

    mode: Mode
    layers: int
    cached: float = 0.0
    tier: MemoryTier = MemoryTier.HOST


class Placement(NamedTuple):
    """What is not (wholly) on the device: stretches from the first layer on; layers behind them are on the device.

    Of the weights the host holds, `storage_share` is read from its drive whenever it is used; of the KV cache it holds,
    `state_on_drive` is written there with the prompts and read for every token. Copies are begun `ahead` copied layers
    before theirs (prefetch depth), into as many buffers and one more; with 0 a layer waits for its copy. Which layers
    of a kind are copied is free: they are spread evenly among the others, as prefetching engines do.
    """

    stretches: tuple[Stretch, ...] = ()
    storage_share: float = 0.0
    state_on_drive: float = 0.0
    ahead: int = 1

    def modes(self, layers: int) -> tuple[Stretch, ...]:
        """One stretch of a single layer for each layer of the model."""
        each = [s._replace(layers=1) for s in self.stretches for _ in range(s.layers)]
        return (*each[:layers], *[Stretch(ON_DEVICE, 1)] * (layers - len(each)))

    @property
    def streams(self) -> bool:
        """Whether anything is copied over for each step."""
        return any(stretch.mode.copies for stretch in self.stretches)


@dataclass(frozen=True)
class Engine:
    """The knobs of a serving engine that change memory or time.

    `memory_utilization` is the share of the device an engine may claim: 0.9 is vLLM's `gpu_memory_utilization`
    up to version 0.20. `max_batched_tokens` bounds one step's tokens (vLLM's default for servers on large
    devices is 8192), `block_tokens` is the page of the KV cache, `graphs` whether CUDA graphs are captured,
    `flash_attention` whether attention keeps no scores in memory (their time is not modelled). `name` picks the engine
    whose kernels were measured; prompts ride along with decode steps (`mixes_prefill`) or have steps of their own, cut
    into chunks (`chunks_prefill`) or whole; `step_overhead_s` is a step's time beside its kernels.
    llama.cpp looks tokens up on the host (`embeds_on_host`), keeps room for the logits of every token of a step
    (`logits_for_all`) and samples on the host. `offloads` are the modes of placement it can run (none named: any);
    `fp4_expert_multiples` are the multiples its 4-bit float experts' hidden and own widths are padded to;
    `copies_by_socket` whether each socket of a host reads a copy of the weights of its own; `context_parallel` whose
    KV cache ranks may share out.

    How it offloads: `whole_blocks` takes the prompts of a batch through each layer together, whose weights are copied
    once for all of them; `drive_beside` reads the drive beside computing and may keep the KV cache there; attention on
    the host moves the cache `host_attention_passes` times; the parts of a layer in `pageable` (an index into
    `layer_parts.PARTS`) are copied from memory that is not pinned; `prefetch_depths` are how many copied layers before
    theirs copies may begin (0: never ahead); `communicators`: devices speak through a library's, which take memory;
    `cuts_layers`: what leaves the device is a part of every layer, all alike.
    `staging_blocks`: what is not pinned is staged by the thread that launches kernels, before it launches the next. It
    widens 4-bit numbers in memory before it uses them (`unpacks_in_memory`), weights for each of the `small_batches`
    that a block computes in.
    """

    memory_utilization: float = 0.9
    max_batched_tokens: int = 8192
    block_tokens: int = 16
    graphs: bool = True
    flash_attention: bool = True
    routing: Routing = Routing.POWER_LAW
    routing_alpha: float = 1.01
    name: str = "vllm"
    version: str = ""
    mixes_prefill: bool = True
    chunks_prefill: bool = True
    step_overhead_s: float = 0.0
    embeds_on_host: bool = False
    logits_for_all: bool = False
    offloads: tuple[Mode, ...] = ()
    copies_by_socket: bool = False
    fp4_expert_multiples: tuple[int, int] = (1, 1)
    whole_blocks: bool = False
    drive_beside: bool = False
    host_attention_passes: float = 1.0
    pageable: tuple[int, ...] = ()
    prefetch_depths: tuple[int, ...] = (0, 1, 2, 4)
    communicators: bool = True
    cuts_layers: bool = False
    staging_blocks: bool = False
    unpacks_in_memory: bool = False
    small_batches: int = 1
    context_parallel: ContextParallel = ContextParallel.NONE

    @property
    def label(self) -> str:
        """`vllm`, or `vllm-0.12.0` where a version was named."""
        return f"{self.name}-{self.version}" if self.version else self.name

    def __post_init__(self) -> None:
        if not 0 < self.memory_utilization <= 1:
            raise InputError("must lie in (0, 1]", key="--memory-utilization", value=self.memory_utilization)
        for name in ("max_batched_tokens", "block_tokens"):
            if getattr(self, name) < 1:
                raise InputError("must be at least 1", key=name, value=getattr(self, name))
        if not 0 <= self.step_overhead_s < 1:
            raise InputError("must lie in [0, 1) s", key="step_overhead_s", value=self.step_overhead_s)
        if self.routing_alpha <= 0:
            raise InputError("must be positive", key="routing_alpha", value=self.routing_alpha)


class Phase(StrEnum):
    """What a step does."""

    PREFILL = "prefill"
    DECODE = "decode"


class Step(NamedTuple):
    """One forward pass: `sequences` each add `new_tokens` behind `past_tokens` already in the KV cache.

    Logits are made for `logit_tokens` positions in all (default: one a sequence). In a mixed step prompts ride along
    (`riding`): they share every product with the decoding sequences, but not attention.
    """

    phase: Phase
    sequences: Number
    new_tokens: Number
    past_tokens: Number
    logit_tokens: Number | None = None
    riding: Step | None = None

    @property
    def parts(self) -> tuple[Step, ...]:
        """The step's own sequences and those that ride along."""
        return (self,) if self.riding is None else (self, self.riding)

    @property
    def tokens(self) -> npt.NDArray[np.float64]:
        """New tokens of this part."""
        return np.asarray(np.asarray(self.sequences, float) * np.asarray(self.new_tokens, float))

    @property
    def kv_tokens(self) -> npt.NDArray[np.float64]:
        """Keys a sequence of this part has at the end of the step."""
        return np.asarray(np.asarray(self.past_tokens, float) + np.asarray(self.new_tokens, float))

    @property
    def first_sequences(self) -> npt.NDArray[np.float64]:
        """Sequences of this part whose first tokens it takes in: a source that they read is encoded now."""
        if self.phase is Phase.DECODE:
            return np.zeros(())
        return np.asarray(np.asarray(self.sequences, float) * (np.asarray(self.past_tokens, float) == 0))

    @property
    def logits(self) -> npt.NDArray[np.float64]:
        """Positions of this part that logits are made for."""
        return np.asarray(self.sequences if self.logit_tokens is None else self.logit_tokens, float)


class Extras(NamedTuple):
    """What keeps memory beside a model and its users' own state.

    `shared_prefix` tokens of every context are the same for all users and kept once. `adapters` LoRA adapters of
    `adapter_rank` stay loaded. `draft` is the model that speculates ahead, with a state of its own for every user:
    `draft_length` tokens a round (0: that is not priced), each right with the chance `acceptance`.
    """

    shared_prefix: int = 0
    adapters: int = 0
    adapter_rank: int = 16
    draft: Model | None = None
    draft_length: int = 0
    acceptance: float = 0.0

    def check(self, sharding: Sharding) -> None:
        """Refuse guesses that nothing makes, and chances that are none."""
        if not 0 <= self.acceptance <= 1:
            raise InputError("must lie in [0, 1]", key="--acceptance", value=self.acceptance)
        if not 0 <= self.draft_length <= MOST_GUESSES:
            raise InputError(f"must be 0 to {MOST_GUESSES}", key="--draft-length", value=self.draft_length)
        if self.draft_length and self.draft is None:
            raise InputError("needs a model that guesses", key="--draft-length", remedy="name one with --draft")
        if self.draft is not None and sharding.cp > 1:
            problem = "is not priced beside a KV cache that ranks share out"
            raise InputError(problem, key="--draft", value=self.draft.name, remedy="leave out --cp")
        if self.draft_length and sharding.pp > 1:
            remedy = "ask for --pp 1"
            raise InputError(
                "is not priced in a pipeline", key="--draft-length", value=self.draft_length, remedy=remedy
            )


MOST_GUESSES = 64


@dataclass(frozen=True, eq=False)
class Scenario:
    """Model, hardware, load and every choice about how to run it.

    `batch` users at once, each with `context` tokens in the KV cache of which `prompt` came as the prompt.
    """

    model: Model
    fleet: Fleet
    batch: Number
    context: Number
    prompt: Number
    numerics: Numerics
    sharding: Sharding = Sharding()
    placement: Placement = Placement()
    engine: Engine = Engine()
    extras: Extras = Extras()

    def __post_init__(self) -> None:
        for name in ("batch", "context", "prompt"):
            value = np.asarray(getattr(self, name), dtype=float)
            if not np.all(np.isfinite(value)) or np.any(value < 1) or np.any(value > 2**40):
                raise InputError("must lie between 1 and 2**40", key=name, value=getattr(self, name))
        if self.sharding.devices > self.fleet.count:
            raise InputError(
                f"the layout {self.sharding} needs {self.sharding.devices} devices",
                key="--gpu",
                value=self.fleet.label,
                remedy="ask for a smaller --tp or --pp",
            )
        if self.sharding.stages and (len(self.sharding.stages), sum(self.sharding.stages)) != (
            self.sharding.pp,
            self.model.layers,
        ):
            problem = f"must cut {self.model.layers} layers into {self.sharding.pp} stages"
            raise InputError(problem, key="stages", value=self.sharding.stages)
        self.extras.check(self.sharding)
        if self.sharding.ep != 1:
            self._refuse_uneven_experts()
        if self.sharding.cp != 1:
            self._refuse_uneven_contexts()

    def _refuse_uneven_experts(self) -> None:
        """Expert parallelism deals whole experts out evenly and cuts each evenly within its group."""
        tp, ep = self.sharding.tp, self.sharding.ep
        ffns = [b.ffn for b in self.model.blocks if isinstance(b.ffn, Experts)]
        if not ffns:
            raise InputError(f"{self.model.name} has no experts", key="ep", value=ep, remedy="leave it at 1")
        if ep < 1 or tp % ep:
            raise InputError(f"does not divide a tensor-parallel degree of {tp}", key="ep", value=ep)
        for ffn in ffns:
            if ffn.experts % ep:
                raise InputError(f"does not divide {ffn.experts} experts", key="ep", value=ep)
            if ffn.intermediate % (tp // ep):
                problem = f"leaves {tp // ep} ranks to cut an expert's width of {ffn.intermediate}, which is not even"
                raise InputError(problem, key="ep", value=ep)

    def _refuse_uneven_contexts(self) -> None:
        """Context parallelism deals tokens out over ranks that keep the same KV cache, all of it on the devices."""
        tp, cp = self.sharding.tp, self.sharding.cp
        copies = shared_ranks(self.model, self.engine, tp)
        if cp < 1 or copies % cp:
            problem, remedy = why_not_shared(self.model, self.engine, tp)
            raise InputError(problem, key="cp", value=cp, remedy=remedy)
        if any(stretch.mode.kv is not Where.DEVICE for stretch in self.placement.stretches):
            problem = "is for a KV cache on the devices, and some of it is in host memory"
            raise InputError(problem, key="cp", value=cp, remedy="leave it at 1")

    def but(self, **changes: object) -> Scenario:
        """The same question with some fields changed."""
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]


def shared_ranks(model: Model, engine: Engine, tp: int) -> int:
    """Over how many of `tp` ranks the engine can deal out the tokens of a KV cache, at most; its divisors do too."""
    return model.cache_copies(tp) if engine.context_parallel.covers(model) else 1


def why_not_shared(model: Model, engine: Engine, tp: int) -> tuple[str, str]:
    """Problem and remedy of a degree of context parallelism that `shared_ranks` of `tp` ranks do not allow."""
    if engine.context_parallel is ContextParallel.NONE:
        return f"{engine.label} has no context parallelism", "ask for --engine vllm"
    if not engine.context_parallel.covers(model):
        what = f"{engine.label} has context parallelism for {engine.context_parallel.value} only"
        return f"{what}, which {model.name} has not", "ask for --engine vllm"
    copies = model.cache_copies(tp)
    if copies == 1:
        problem = f"no two of {tp} ranks keep the same KV heads, of whole contexts, of {model.name}"
        return problem, "ask for a larger --tp, or leave it out"
    return f"does not divide the {copies} of {tp} ranks that keep the same KV cache", f"ask for a divisor of {copies}"


def drafted(scenario: Scenario) -> Scenario:
    """The draft model in place of the model it guesses for: on the devices of one stage, in its own format."""
    draft, numerics = scenario.extras.draft, scenario.numerics
    assert draft is not None
    own = Numerics(draft.native, numerics.kv, numerics.activations)
    return scenario.but(model=draft, sharding=Sharding(tp=scenario.sharding.tp), numerics=own, extras=Extras())


def stage_layers(model: Model, sharding: Sharding) -> tuple[tuple[int, ...], ...]:
    """Layers of each block on each stage: contiguous; unless stated as even as possible, early stages one more."""
    base, extra = divmod(model.layers, sharding.pp)
    stages, start = [], 0
    for size in sharding.stages or [base + (stage < extra) for stage in range(sharding.pp)]:
        part = model.pattern[start : start + size]
        stages.append(tuple(part.count(block) for block in range(len(model.blocks))))
        start += size
    return tuple(stages)
