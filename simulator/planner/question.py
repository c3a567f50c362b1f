"""What `plan` is asked: a model and a load, the devices there are, a goal, and what must hold."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from ...dtypes import DType
from ...errors import InputError
from ...hwspecs.device import Fleet
from ..scenario import Engine, Extras, Scenario
from ..sensitivities import Sensitivities
from ..workload.formats import WeightFormat
from ..workload.model import Model
from .fit import Offload, Wishes, layouts_of

# Of a replica, a sixth to a third apart; `search.refine` looks between them.
USERS = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0, *(float(n * 2**i) for i in range(1, 9) for n in (5, 6, 7, 8)), 3072.0, 4096.0)


class Goal(StrEnum):
    """What a plan is to make small: `throughput` is the time per token of all users, so every goal is minimised."""

    LATENCY = "latency"  # seconds from a prompt's start to the last token of its answer, one user
    THROUGHPUT = "throughput"  # seconds per output token of all users and devices
    COST = "cost"  # money per output token
    ENERGY = "energy"  # joules per output token, devices at their power limit


class Limits(NamedTuple):
    """What a plan must keep; None: no limit.

    `pace_s` is the time per output token, `first_s` the service time to the first one (no queue), `log_ppl` the change
    of log-perplexity, `devices` how many may be used, `power_w` and `money_per_hour` what those used may take.
    """

    pace_s: float | None = None
    first_s: float | None = None
    log_ppl: float | None = None
    devices: int | None = None
    power_w: float | None = None
    money_per_hour: float | None = None


class Pins(NamedTuple):
    """Decisions the asker made; None leaves them open. `clients` are the users of one replica,
    `chunk` the tokens of a prompt step, `draft_length` the tokens guessed in a round."""

    weights: WeightFormat | None = None
    kv: DType | None = None
    tp: int | None = None
    pp: int | None = None
    ep: int | None = None
    clients: int | None = None
    chunk: int | None = None
    offload: Offload | None = None
    draft_length: int | None = None
    cp: int | None = None


@dataclass(frozen=True, eq=False)
class Question:
    """Everything a plan depends on. `fleet` is one node; there are `nodes` of them, and a replica stays within one.

    Requests have `prompt` and `output` tokens. `price_per_hour` is the money of one device for an hour,
    `more_bytes` what a device is imagined to hold more than it does,
    `users` the numbers of users of a replica to look at,
    `sensitivities` what formats cost in single layers, where the asker measured it. `extras` keep memory beside the
    model; of a draft model the plan decides how far it guesses, or that it is left out.
    """

    model: Model
    fleet: Fleet
    prompt: int
    output: int
    goal: Goal
    limits: Limits = Limits()
    pins: Pins = Pins()
    engine: Engine = Engine()
    nodes: int = 1
    price_per_hour: float | None = None
    currency: str = ""
    more_bytes: float = 0.0
    users: tuple[float, ...] = USERS
    sensitivities: Sensitivities | None = None
    extras: Extras = Extras()

    def __post_init__(self) -> None:
        for name in ("prompt", "output", "nodes"):
            if not 1 <= getattr(self, name) <= 2**32:
                raise InputError("must be at least 1", key=f"--{name}", value=getattr(self, name))
        for name, value in self.limits._asdict().items():
            if value is not None and not (value > 0 or (name == "log_ppl" and value == 0)):
                raise InputError("must be positive", key=LIMIT_OPTIONS[name], value=value)
        if self.goal is Goal.COST and self.price_per_hour is None:
            remedy = f"--price {self.fleet.device.key}=3.5USD/h"
            raise InputError("is needed for the goal cost", key="--price", remedy=remedy)
        if self.goal is Goal.ENERGY and self.fleet.device.power_w is None:
            problem = f"the power of {self.fleet.device.key} is not known"
            raise InputError(problem, key="--goal", value="energy", remedy="add power_w to its hardware file")
        if self.prompt + self.output > self.model.max_context:
            problem = f"prompt and output exceed the {self.model.max_context:,} tokens of {self.model.name}"
            raise InputError(problem, key="--prompt", value=self.prompt, remedy="ask for fewer tokens")
        if (self.pins.cp or 1) > 1:
            pins = self.pins
            layouts_of(self.scenario(), Wishes(tp=pins.tp, pp=pins.pp, ep=pins.ep, cp=pins.cp))

    def budget_bytes(self) -> float:
        """Bytes an engine may claim on one device."""
        return self.engine.memory_utilization * (self.fleet.usable_bytes() + self.more_bytes)

    @property
    def context(self) -> int:
        """Tokens a request's KV cache holds at its end."""
        return self.prompt + self.output

    @property
    def devices(self) -> int:
        """Devices there are, or may be used."""
        there = self.fleet.count * self.nodes
        return there if self.limits.devices is None else min(there, self.limits.devices)

    def usable_devices(self) -> int:
        """Devices that limits of power and money leave."""
        found, device = float(self.devices), self.fleet.device
        if self.limits.power_w is not None and device.power_w is not None:
            found = min(found, self.limits.power_w // device.power_w.value)
        if self.limits.money_per_hour is not None and self.price_per_hour is not None:
            found = min(found, self.limits.money_per_hour // self.price_per_hour)
        return int(found)

    def scenario(self, **changes: object) -> Scenario:
        """The question as one replica's scenario on one device, for one user, in the model's own format."""
        from ..scenario import Numerics

        fleet = self.fleet
        base = Scenario(
            self.model,
            fleet,
            1,
            self.context,
            self.prompt,
            Numerics(self.model.native, DType.BF16, self.model.activation),
            engine=self.engine,
            extras=self.extras,
        )
        return base.but(**changes)


LIMIT_OPTIONS = {
    "pace_s": "--tpot-ms",
    "first_s": "--ttft-service-ms",
    "log_ppl": "--max-ppl-increase",
    "devices": "--max-gpus",
    "power_w": "--max-power",
    "money_per_hour": "--max-cost",
}
PIN_OPTIONS = {"chunk": "max-batched-tokens", "draft_length": "draft-length"}  # the others are named like the options
