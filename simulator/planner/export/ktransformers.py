"""KTransformers: SGLang's server with the routed experts on the host's cores (`--kt-*`); see `flags.csv`.

Its own server with optimisation rules in YAML is archived since version 0.4; its documents start SGLang's.
"""

from __future__ import annotations

from collections.abc import Mapping

from ...scenario import EXPERTS_HOST
from ...workload.layers import Experts
from . import sglang
from .planned import (
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
    on_device,
)

NAME = "ktransformers"
PORT = sglang.PORT

# Methods whose experts are in the same format on the host as in the checkpoint. AMXINT4, AMXINT8 and LLAMAFILE narrow
# the host's experts alone; the rest of the model stays as it is, which no single weight format of a plan says.
METHODS: Mapping[Kind, str] = {
    Kind.PLAIN: "BF16",
    Kind.FP8_BLOCK: "FP8",
    Kind.FP8: "FP8_PERCHANNEL",
    Kind.INT4: "RAWINT4",
}


def _weights(planned: Planned) -> Means:
    weights = planned.scenario.numerics.weights
    kind = kind_of(weights)
    if kind not in METHODS or (kind is Kind.PLAIN and weights.name != "bf16"):
        raise Refused(f"computes no experts in {weights.name} with the rest of the model in it too")
    if kind is Kind.INT4 and not is_native(planned):
        raise Refused("computes int4 experts of checkpoints published so (Kimi K2) only")
    means = sglang.DECIDE[Decision.WEIGHTS](planned)
    flags = () if kind is Kind.FP8 else means.flags
    note = f"MODEL is {planned.scenario.model.name} in {weights.name}, on a local drive: --kt-weight-path reads it too"
    return Means((*flags, "--kt-weight-path", '"$MODEL"', "--kt-method", METHODS[kind]), note=note)


def _placement(planned: Planned) -> Means:
    scenario = planned.scenario
    if set(planned.modes) - {EXPERTS_HOST}:
        on_device(planned, "moves nothing but routed experts to the host")
    stretches = scenario.placement.modes(scenario.model.layers)
    sparse = [
        (s, block.ffn.experts)
        for s, i in zip(stretches, scenario.model.pattern, strict=True)
        if isinstance((block := scenario.model.blocks[i]).ffn, Experts)
    ]
    if not any(s.mode == EXPERTS_HOST for s, _ in sparse):
        raise Refused("is for experts on the host, and the plan has none there")
    kept = {
        (round(s.cached * experts) if s.mode == EXPERTS_HOST else experts, s.mode == EXPERTS_HOST)
        for s, experts in sparse
    }
    if len(kept) > 1:
        raise Refused("keeps as many experts of each layer on the device: all sparse layers alike, not some of them")
    if any(abs(s.cached * experts - round(s.cached * experts)) > 1e-6 * experts for s, experts in sparse):
        raise Refused("keeps whole experts on the device, and the plan's share is none of those")
    host = scenario.fleet.host
    cores = 0 if host is None else int(host.cores.value)
    sockets = 1 if host is None or host.sockets is None else int(host.sockets.value)
    threads = ("--kt-cpuinfer", str(cores) if cores else "$(nproc)", "--kt-threadpool-count", str(sockets))
    # Deferring experts to the next layer changes what is computed; no plan asks for it.
    return Means(
        ("--kt-num-gpu-experts", str(next(iter(kept))[0]), *threads, "--kt-max-deferred-experts-per-token", "0")
    )


def _none(what: str, decision: Decision) -> Decide:
    def decide(planned: Planned) -> Means:
        means = sglang.DECIDE[decision](planned)
        if means.flags:
            raise Refused(f"has no documented {what} beside experts on the host")
        return means

    return decide


def _pp(planned: Planned) -> Means:
    if planned.scenario.sharding.pp > 1:
        raise Refused("has no documented pipeline stages")
    return Means(because="one stage")


DECIDE: Mapping[Decision, Decide] = {
    **sglang.DECIDE,
    Decision.PP: _pp,
    Decision.CP: no_shared_contexts,
    Decision.WEIGHTS: _weights,
    Decision.LAYER_FORMATS: layer_formats(frozenset(), ""),
    Decision.PLACEMENT: _placement,
    Decision.ADAPTERS: _none("adapters", Decision.ADAPTERS),
    Decision.DRAFT: _none("draft model", Decision.DRAFT),
}


def command(planned: Planned, means: Mapping[Decision, Means]) -> Command:
    """SGLang's own."""
    return sglang.command(planned, means)
