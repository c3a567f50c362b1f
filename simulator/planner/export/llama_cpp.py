"""llama.cpp's server, `llama-server`. What it takes is in `flags.csv`, read from its `tools/server/README.md`."""

from __future__ import annotations

from collections.abc import Mapping

from ....dtypes import DType
from ...scenario import EXPERTS_HOST, KV_HOST, LAYERS_HOST, ON_DEVICE
from .planned import (
    ALIKE,
    Command,
    Decide,
    Decision,
    Kind,
    Means,
    Planned,
    Refused,
    is_native,
    kind_of,
    layer_formats,
    no_shared_contexts,
    replicas,
    runs_on,
)

NAME = "llama.cpp"
PORT = 8080
CACHES = {DType.BF16: "bf16", DType.FP16: "f16", DType.INT8: "q8_0", DType.INT4: "q4_0"}
GGUF_NAMES = {DType.BF16: "BF16", DType.FP16: "F16", DType.FP32: "F32"}


def _tp(planned: Planned) -> Means:
    sharding = planned.scenario.sharding
    if sharding.tp == 1:
        return Means(because="one device for each layer")
    if sharding.pp > 1:
        raise Refused(f"splits tensors or layers over devices, not both ({sharding})")
    note = "llama.cpp calls --split-mode tensor experimental"
    return Means(("--split-mode", "tensor"), note=note)


def _pp(planned: Planned) -> Means:
    sharding = planned.scenario.sharding
    if sharding.pp == 1:
        return Means(("--split-mode", "none") if sharding.tp == 1 else (), because="no stages")
    return Means(("--split-mode", "layer"))


def _ep(planned: Planned) -> Means:
    if planned.scenario.sharding.ep > 1:
        raise Refused("deals no whole experts out to devices")
    return Means(because="experts are cut like all else")


def _stages(planned: Planned) -> Means:
    sizes = planned.stages
    if len(sizes) == 1:
        return Means(because="no stages")
    # The share of a device is of the layers and the head behind them (llama-model.cpp, load_tensors).
    return Means(("--tensor-split", ",".join(map(str, (*sizes[:-1], sizes[-1] + 1)))))


def _weights(planned: Planned) -> Means:
    weights = planned.scenario.numerics.weights
    kind = kind_of(weights)
    name = planned.scenario.model.name
    if kind is Kind.GGUF:
        return Means(
            because=f"the file's own types, {weights.name}", note=f"MODEL is a GGUF file of {name}, {weights.name}"
        )
    if kind is Kind.PLAIN:
        stored = GGUF_NAMES[DType(weights.name)]
        return Means(because=f"the file's own type, {stored}", note=f"MODEL is a GGUF file of {name}, {stored}")
    if kind is Kind.MXFP4 and is_native(planned):
        return Means(
            because="the file's own types, mxfp4", note=f"MODEL is a GGUF file of {name} with its mxfp4 experts kept"
        )
    raise Refused(f"reads GGUF files, which do not hold {weights.name}")


def _kv(planned: Planned) -> Means:
    kv = planned.scenario.numerics.kv
    if kv not in CACHES:
        raise Refused(f"keeps no cache in {kv}")
    if kv in (DType.INT8, DType.INT4) and not planned.scenario.engine.flash_attention:
        raise Refused(f"keeps values in {kv} only with flash attention")
    return Means(("--cache-type-k", CACHES[kv], "--cache-type-v", CACHES[kv]))


def _step_tokens(planned: Planned) -> Means:
    tokens = str(planned.scenario.engine.max_batched_tokens)
    return Means(("--batch-size", tokens, "--ubatch-size", tokens))


def _chunks(planned: Planned) -> Means:
    engine = planned.scenario.engine
    if not engine.chunks_prefill and planned.prompt > engine.max_batched_tokens:
        raise Refused(f"takes whole prompts only up to --ubatch-size, here {engine.max_batched_tokens}")
    return Means(because="prompts in chunks of --ubatch-size")


def _mixes(planned: Planned) -> Means:
    return Means(("--cont-batching",) if planned.scenario.engine.mixes_prefill else ("--no-cont-batching",))


def _graphs(planned: Planned) -> Means:
    if planned.scenario.engine.graphs:
        raise Refused("keeps no pool of graphs (its builds capture the current step alone)")
    return Means(because="no pool of graphs")


def _page(planned: Planned) -> Means:
    # The profile's 256 is what the cache is padded to; a longer page only rounds up further.
    return Means(because="a slot has its whole context; --ctx-size is rounded up to the page by the plan's own count")


def _prefix(planned: Planned) -> Means:
    if planned.scenario.extras.shared_prefix:
        return Means(
            ("--kv-unified", "--cache-prompt"), note="slots share a prefix once a prompt with it is in the cache"
        )
    return Means(because="nothing shared")


def _adapters(planned: Planned) -> Means:
    count = planned.scenario.extras.adapters
    if not count:
        return Means(because="none")
    files = ",".join(f"$ADAPTER_{i}" for i in range(1, count + 1))
    note = f"ADAPTER_1 ... are GGUF files of adapters of rank {planned.scenario.extras.adapter_rank}"
    return Means(("--lora", f'"{files}"'), note=f"{note}; all are applied unless a request scales them")


def _draft(planned: Planned) -> Means:
    draft = planned.scenario.extras.draft
    if draft is None:
        return Means(because="none")
    words: tuple[str, ...] = ("--spec-type", "draft-simple", "--spec-draft-model", '"$DRAFT"')
    if guesses := planned.scenario.extras.draft_length:
        words += ("--spec-draft-n-max", str(guesses))
    return Means(words, note=f"DRAFT is a GGUF file of {draft.name}")


def placed(planned: Planned) -> tuple[str, ...]:
    """The words for what stays on the host: first layers whole, experts of any layers, or the whole cache."""
    scenario = planned.scenario
    each = [stretch.mode for stretch in scenario.placement.modes(scenario.model.layers)]
    away = sum(mode != ON_DEVICE for mode in each)
    if len(set(scenario.model.pattern[:away])) == 1:  # alike: whole layers may as well be the first ones
        each[:away] = sorted(each[:away], key=lambda mode: mode != LAYERS_HOST)
    known = {LAYERS_HOST, EXPERTS_HOST, KV_HOST, ON_DEVICE}
    for stretch in scenario.placement.stretches:
        if stretch.mode not in known:
            raise Refused(f"copies nothing over for a step: {stretch.layers} x {stretch.mode.name}")
        if stretch.cached > 0:
            raise Refused(f"keeps a layer's experts together, not {stretch.cached:.0%} of them on the device")
    whole = each.count(LAYERS_HOST)
    if any(mode != LAYERS_HOST for mode in each[:whole]):
        raise Refused("keeps the first layers on the host, none behind others on the device")
    if planned.modes and scenario.sharding.tp > 1:
        raise Refused("has no placement beside --split-mode tensor")
    caches = each.count(KV_HOST)
    if caches and caches != len(each) - whole:
        raise Refused(f"keeps the cache of all layers on the host or of none, not of {caches}")
    flags = ["--n-gpu-layers", str(len(each) - whole + 1 if whole else 999)]
    experts = [i for i, mode in enumerate(each) if mode == EXPERTS_HOST]
    if experts == list(range(whole, whole + len(experts))) and experts:
        flags += ["--n-cpu-moe", str(whole + len(experts))]
    elif experts:
        flags += ["--override-tensor", rf"'blk\.({'|'.join(map(str, experts))})\.ffn_.*_exps.*=CPU'"]
    if caches:
        flags.append("--no-kv-offload")
    return tuple(flags)


def _placement(planned: Planned) -> Means:
    return Means(placed(planned))


def _storage(planned: Planned) -> Means:
    share = planned.scenario.placement.storage_share
    if share <= 0:
        return Means(because="nothing is read from a drive")
    if not planned.modes:
        raise Refused("reads weights from a drive only for layers or experts on the host")
    note = f"{share:.0%} of the host's weights come from its drive where memory holds no more of the mapped file"
    return Means(("--load-mode", "mmap"), note=note)


def _flash(planned: Planned) -> Means:
    return Means(("--flash-attn", "on" if planned.scenario.engine.flash_attention else "off"))


def _activations(_planned: Planned) -> Means:
    # ggml picks the format of each product by the types of its operands; nothing on the command line changes that.
    return Means(because="its own choice for each product")


DECIDE: Mapping[Decision, Decide] = {
    Decision.TP: _tp,
    Decision.PP: _pp,
    Decision.STAGES: _stages,
    Decision.EP: _ep,
    Decision.CP: no_shared_contexts,
    Decision.REPLICAS: replicas,
    Decision.USERS: lambda p: Means(("--parallel", str(p.users))),
    Decision.STEP_TOKENS: _step_tokens,
    Decision.CHUNKS: _chunks,
    Decision.MIXES: _mixes,
    Decision.CONTEXT: lambda p: Means(
        ("--ctx-size", str(p.users * p.length)), note="--ctx-size is that of all users together"
    ),
    Decision.MEMORY: lambda p: Means(("--fit", "off"), because="takes what the other words ask for, no share"),
    Decision.WEIGHTS: _weights,
    Decision.LAYER_FORMATS: layer_formats(
        frozenset({Kind.PLAIN, Kind.GGUF}), "llama-quantize, a --tensor-type for the tensors of each layer"
    ),
    Decision.ACTIVATIONS: _activations,
    Decision.KV: _kv,
    Decision.GRAPHS: _graphs,
    Decision.FLASH: _flash,
    Decision.PAGE: _page,
    Decision.PREFIX: _prefix,
    Decision.ADAPTERS: _adapters,
    Decision.DRAFT: _draft,
    Decision.PLACEMENT: _placement,
    Decision.STORAGE: _storage,
    **ALIKE,
    Decision.DEVICE: runs_on("google", "habana"),
}


def bench_words(planned: Planned) -> str:
    """The same choices in the words of `llama-bench`, for a plan of one user with everything on the device."""
    scenario = planned.scenario
    kv, step = CACHES[scenario.numerics.kv], scenario.engine.max_batched_tokens
    split = "tensor" if scenario.sharding.tp > 1 else "layer" if scenario.sharding.pp > 1 else "none"
    flash = "on" if scenario.engine.flash_attention else "off"
    return f"-ngl 999 -sm {split} -b {step} -ub {step} -ctk {kv} -ctv {kv} -fa {flash}"


def command(_planned: Planned, _means: Mapping[Decision, Means]) -> Command:
    """`llama-server -m FILE`."""
    return Command('llama-server --model "$MODEL"', ("--port",))
