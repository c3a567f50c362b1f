"""What would change a plan: the same question with a little more of something, solved again; and with less asked of it.

Changes that leave every price as it is (memory, quality, limits) look at the same frames again; others price anew.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from ...dtypes import DType
from ..calibration import CalibrationSet
from ..scenario import Where
from .frames import Family
from .question import Limits, Question
from .search import Found, search

GIB = 2.0**30
STEPS = (1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0)
LINK_STEP = 10e9
MOST_CLAIMED = 0.95


class Change(NamedTuple):
    """A changed question in words, the flags that ask it, and whether its frames cost what they did."""

    words: str
    flags: str
    question: Question
    same_prices: bool


class Tried(NamedTuple):
    """A change and what was found then."""

    change: Change
    found: Found


def purchases(question: Question, found: Found, calibrations_of: Callable[[Question], CalibrationSet]) -> list[Tried]:
    """What a little more of each resource buys the plan: memory, link, host memory, a device, quality."""
    return [_try(change, found.families, calibrations_of) for change in _more(question, found)]


def _more(question: Question, found: Found) -> Iterator[Change]:
    fleet, limits = question.fleet, question.limits
    best = found.plans[0]
    more = dataclasses.replace(question, more_bytes=GIB)
    yield Change("1 GiB more on each device", "", more, True)
    placed = best.frame.family.placed
    if placed and fleet.host_memory_bytes is not None:
        larger = fleet.host_memory_bytes * 1.25
        changed = dataclasses.replace(fleet, host_memory_bytes=larger)
        ask = f"--ram {larger / 1e9:.0f}GB"
        yield Change(
            f"{(larger - fleet.host_memory_bytes) / 1e9:.0f} GB more host memory", ask, _on(question, changed), True
        )
    if placed and any(Where.STREAMED in t.alternative.mode for t in best.taken):
        rate = fleet.host_link.bandwidth_bytes_per_s
        faster = dataclasses.replace(
            fleet.host_link, bandwidth_bytes_per_s=dataclasses.replace(rate, value=rate.value + LINK_STEP)
        )
        yield Change(
            "10 GB/s more on the link to the host",
            "",
            _on(question, dataclasses.replace(fleet, host_link=faster)),
            False,
        )
    share = question.engine.memory_utilization
    if share < MOST_CLAIMED:
        engine = dataclasses.replace(question.engine, memory_utilization=MOST_CLAIMED)
        words = f"an engine that claims {MOST_CLAIMED:.0%} of a device instead of {share:.0%}"
        claimed = dataclasses.replace(question, engine=engine)
        yield Change(words, f"--memory-utilization {MOST_CLAIMED}", claimed, False)
    if question.nodes == 1:
        count = fleet.count + 1 if fleet.count < 4 else fleet.count * 2
        ask = f"--gpu {count}x{fleet.device.key}"
        yield Change(f"{count} devices instead of {fleet.count}", ask, _on(question, fleet.sized(count)), False)
    if limits.log_ppl is not None and (limits.log_ppl == 0 or best.log_ppl > 0.5 * limits.log_ppl):
        doubled = max(0.01, 2 * limits.log_ppl)
        ask = f"--max-ppl-increase {doubled:.0%}"
        yield Change(
            f"a perplexity {doubled:.0%} higher instead of {limits.log_ppl:.0%}",
            ask,
            _limit(question, limits._replace(log_ppl=doubled)),
            True,
        )


def relaxations(question: Question, found: Found, calibrations_of: Callable[[Question], CalibrationSet]) -> list[Tried]:
    """The smallest change of each kind that alone makes a plan possible; only those that do."""
    tried = []
    for ladder in _ladders(question):
        for change in ladder:
            result = _try(change, found.families, calibrations_of)
            if result.found.plans:
                tried.append(result)
                break
    return tried


def _ladders(question: Question) -> Iterator[Sequence[Change]]:
    limits, fleet, pins = question.limits, question.fleet, question.pins
    if limits.log_ppl is not None:
        steps = [max(0.01, limits.log_ppl) * s for s in (1.5, 2.0, 3.0, 5.0, 10.0)]
        yield [
            Change(
                f"a perplexity {s:.1%} higher",
                f"--max-ppl-increase {s:.1%}",
                _limit(question, limits._replace(log_ppl=s)),
                True,
            )
            for s in steps
        ]
    if pins.kv is not None and pins.kv.bits > 8:
        narrower = dataclasses.replace(question, pins=pins._replace(kv=DType.FP8))
        yield [Change("the KV cache in fp8", "--kv fp8", narrower, False)]
    if limits.pace_s is not None:
        pace = limits.pace_s
        yield [
            Change(
                f"{pace * s * 1e3:.3g} ms per token",
                f"--tpot-ms {pace * s * 1e3:.3g}",
                _limit(question, limits._replace(pace_s=pace * s)),
                True,
            )
            for s in STEPS
        ]
    if limits.first_s is not None:
        first = limits.first_s
        yield [
            Change(
                f"{first * s * 1e3:,.0f} ms to the first token",
                f"--ttft-service-ms {first * s * 1e3:.0f}",
                _limit(question, limits._replace(first_s=first * s)),
                True,
            )
            for s in STEPS
        ]
    yield [_shorter(question, share) for share in (0.75, 0.5, 0.25, 0.125) if question.prompt * share >= 1]
    if fleet.host_memory_bytes is not None:
        ram = fleet.host_memory_bytes
        yield [_with_ram(question, ram * s) for s in (1.25, 1.5, 2.0, 3.0, 4.0, 8.0)]
    elif not fleet.device.unified_memory:
        yield [_with_ram(question, gb * 1e9) for gb in (32, 64, 128, 256, 512, 1024)]
    yield [
        Change(
            f"{count} devices instead of {fleet.count}",
            f"--gpu {count}x{fleet.device.key}",
            _on(question, fleet.sized(count)),
            False,
        )
        for count in (2, 4, 8, 16)
        if count > fleet.count and question.limits.devices is None and question.nodes == 1
    ]


def _try(change: Change, known: tuple[Family, ...], calibrations_of: Callable[[Question], CalibrationSet]) -> Tried:
    families = known if change.same_prices else None
    return Tried(change, search(change.question, calibrations_of(change.question), families=families, seconds=20.0))


def _on(question: Question, fleet: object) -> Question:
    return dataclasses.replace(question, fleet=fleet)  # type: ignore[arg-type]


def _limit(question: Question, limits: Limits) -> Question:
    return dataclasses.replace(question, limits=limits)


def _shorter(question: Question, share: float) -> Change:
    prompt, output = max(1, int(question.prompt * share)), max(1, int(question.output * share))
    changed = dataclasses.replace(question, prompt=prompt, output=output)
    words = f"prompts of {prompt:,} and answers of {output:,} tokens"
    return Change(words, f"--prompt {prompt} --output {output}", changed, False)


def _with_ram(question: Question, size: float) -> Change:
    changed = _on(question, dataclasses.replace(question.fleet, host_memory_bytes=size))
    return Change(f"{size / 1e9:.0f} GB of host memory", f"--ram {size / 1e9:.0f}GB", changed, False)
