"""The answer of `serve`, put together from what a load does to an engine."""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import InputError
from .. import answers as a
from ..explain import quantity, rate, sentence, shares
from ..memory import ledger
from ..planner.domain import weight_choices
from ..planner.fit import MAX_USERS, Candidate, Offload, Verdict, Wishes
from ..scenario import Scenario
from ..schedule import Priced
from ..serving import Load, Served
from ..speculation import tokens_per_round
from .account import flags_of, needed, unfit


def load_of(scenario: Scenario, alike: bool) -> Load:
    """The load of a scenario, refused where nothing decodes."""
    clients, prompt = int(scenario.batch), int(scenario.prompt)
    output = int(scenario.context) - prompt
    if clients > MAX_USERS:
        raise InputError(f"must lie between 1 and {MAX_USERS:,}", key="--clients", value=clients)
    if output < 2:
        remedy = "the first token comes with the prompt: ask for 2 or more"
        raise InputError("leaves no token to decode", key="--output", value=output, remedy=remedy)
    return Load(clients, prompt, output, alike)


def wishes_of(scenario: Scenario, wishes: Wishes) -> Wishes:
    """What a server is asked with: nothing leaves its devices, and guesses are made in one stage."""
    if wishes.offload not in (None, Offload.NEVER):
        remedy = "ask `roofplan plan`, which prices batches whose layers, experts or cache leave the devices"
        raise InputError("is not priced here", key="--offload", value=wishes.offload.value, remedy=remedy)
    stages = 1 if scenario.extras.draft_length and wishes.pp is None else wishes.pp
    return wishes._replace(offload=Offload.NEVER, pp=stages)


def answer_of(
    scenario: Scenario, verdict: Verdict, load: Load, served: Served, decoding: Sequence[Priced], wishes: Wishes
) -> a.ServeAnswer:
    """The steady state; `decoding` are the operators of its decode step."""
    time, parts = served.time_per_output_token, shares(decoding)
    each = tokens_per_round(scenario.extras)
    interference = max(0.0, 1.0 - float(served.decode_step.time_s / (time.time_s * each)))
    limits = {"kv cache": served.cache_limited, "prompts": served.prompt_limited, "clients": True}
    return a.ServeAnswer(
        verdict=verdict.label,
        output=int(load.output),
        alike=load.alike,
        tokens_per_step=each,
        needed=needed(ledger(scenario.but(batch=int(served.in_flight)))),
        capacity_bytes=scenario.fleet.usable_bytes(),
        time_per_output_token=quantity(time),
        tokens_per_s_user=rate(time, 1.0, "tokens/s"),
        tokens_per_s_total=rate(served.time_per_token_of_all, 1.0, "tokens/s"),
        first_token_service=quantity(served.first_token_service),
        decode_step=quantity(served.decode_step),
        running=served.running,
        in_flight=served.in_flight,
        waiting=load.clients - served.in_flight,
        limited_by=next(name for name, holds in limits.items() if holds),
        prompt_share=served.prompt_share,
        prefill_share=interference,
        binds=f"{sentence('decode', parts)}; prompts of others take {interference:.0%} of the time per output token",
        shares=parts,
        next_step=_decode_step_of(scenario, load, served.running, wishes),
    )


def refused(chosen: Candidate, load: Load, next_step: str) -> a.ServeAnswer:
    """The honest no: not even one request fits."""
    return a.ServeAnswer(
        verdict=chosen.verdict.label,
        output=int(load.output),
        alike=load.alike,
        tokens_per_step=tokens_per_round(chosen.scenario.extras),
        needed=needed(chosen.memory),
        capacity_bytes=chosen.scenario.fleet.usable_bytes(),
        time_per_output_token=unfit("s"),
        tokens_per_s_user=unfit("tokens/s"),
        tokens_per_s_total=unfit("tokens/s"),
        first_token_service=unfit("s"),
        decode_step=unfit("s"),
        running=0.0,
        in_flight=0.0,
        waiting=load.clients,
        limited_by="memory",
        prompt_share=0.0,
        prefill_share=0.0,
        binds="memory",
        shares=(),
        next_step=next_step,
    )


def _decode_step_of(scenario: Scenario, load: Load, running: float, wishes: Wishes) -> str:
    """How to open the decode step of these requests half way through their answers, in this precision and layout."""
    numerics, (tp, pp, ep, _, cp) = scenario.numerics, scenario.sharding
    model = scenario.model
    # Nothing was chosen, and not every stored format has a name.
    stored = len(weight_choices(model)) == 1 and numerics.weights.name == model.native.name
    ep_, cp_ = (degree if degree > 1 else wish for degree, wish in ((ep, wishes.ep), (cp, wishes.cp)))
    pinned = Wishes(None if stored else numerics.weights, numerics.kv, tp, pp, ep_, cp=cp_)
    middle = scenario.but(batch=max(1, round(running)), context=round(load.prompt + load.output / 2))
    alone = ", without guesses" if scenario.extras.draft_length else ""
    return f"roofplan explain {flags_of(middle, pinned)}   (the decode step{alone})"
