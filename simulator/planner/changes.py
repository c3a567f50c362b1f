"""What would change a plan: the same question with a little more of something, solved again; and with less asked of it.

Changes that leave every price as it is (memory, quality, limits) look at the same frames again; others price anew.
What flags say is what is tried: numbers are rounded first.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

from ..calibration import CalibrationSet
from .frames import Family, kv_formats
from .nodes import Node
from .question import Limits, Question
from .search import Found, refine, search

GIB = 2.0**30
STEPS = (1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0)
QUALITY_STEPS = (1.5, 2.0, 3.0, 5.0, 10.0)
HOST_STEPS = (1.25, 1.5, 2.0, 3.0, 4.0, 8.0)
HOST_SIZES = tuple(gb * 1e9 for gb in (32, 64, 128, 256, 512, 1024))
LINK_STEP = 10e9
MOST_CLAIMED = 0.95
SECONDS = 20.0  # most for a question asked again


class Change(NamedTuple):
    """A changed question in words, the flags that ask it, and whether its frames cost what they did.

    `nodes` are the machines of unlike devices it is asked of; none: those there are.
    """

    words: str
    flags: str
    question: Question
    same_prices: bool
    nodes: tuple[Node, ...] = ()
    may_hurt: bool = False  # more of anything helps or does nothing, and a search that ends worse ended within its gap


class Plans(Protocol):
    """What a search found, the best plan first."""

    @property
    def plans(self) -> Sequence[object]:
        """None where there is no plan."""


F = TypeVar("F", bound=Plans)


class Tried(NamedTuple, Generic[F]):
    """A change and what was found then."""

    change: Change
    found: F


def purchases(
    question: Question, found: Found, calibrations_of: Callable[[Question], CalibrationSet]
) -> list[Tried[Found]]:
    """What a little more of each resource buys the plan: memory, link, host memory, a device, quality."""
    return [_try(change, found.families, calibrations_of) for change in _more(question, found)]


def tried(
    wanted: Iterable[Change], found: Found, calibrations_of: Callable[[Question], CalibrationSet]
) -> list[Tried[Found]]:
    """Changes somebody thought of, each solved."""
    return [_try(change, found.families, calibrations_of) for change in wanted]


def _more(question: Question, found: Found) -> Iterator[Change]:
    fleet = question.fleet
    best = found.plans[0]
    yield more_memory(question)
    placed = best.frame.family.placed
    if placed and fleet.host_memory_bytes is not None:
        larger = whole_gb(fleet.host_memory_bytes * HOST_STEPS[0])
        changed = dataclasses.replace(fleet, host_memory_bytes=larger)
        ask = f"--ram {larger / 1e9:.0f}GB"
        yield Change(
            f"{(larger - fleet.host_memory_bytes) / 1e9:.0f} GB more host memory", ask, _on(question, changed), True
        )
    if placed and any(t.alternative.mode.copies for t in best.taken):
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
    yield from more_quality(question, best.log_ppl)
    if best.scenario.extras.draft_length:
        yield _worse_guesses(question)


GUESSES_STEP = 0.1


def _worse_guesses(question: Question) -> Change:
    """What the plan is worth if the draft is right less often than was said."""
    right = round(max(0.0, question.extras.acceptance - GUESSES_STEP), 2)
    words = f"guesses that are right {right:.0%} of the time instead of {question.extras.acceptance:.0%}"
    changed = dataclasses.replace(question, extras=question.extras._replace(acceptance=right))
    return Change(words, f"--acceptance {right:.0%}", changed, False, may_hurt=True)


def more_memory(question: Question) -> Change:
    """A little more on each device."""
    return Change("1 GiB more on each device", "", dataclasses.replace(question, more_bytes=GIB), True)


def more_quality(question: Question, spent: float) -> Iterator[Change]:
    """Twice the change of perplexity, where a plan has `spent` most of what it may."""
    limit = question.limits.log_ppl
    if limit is not None and (limit == 0 or spent > 0.5 * limit):
        now = math.expm1(limit)
        doubled = _perplexity(question, max(0.01, 2 * now))
        yield doubled._replace(words=f"{doubled.words} instead of {percent(now)}")


def relaxations(
    question: Question, found: Found, calibrations_of: Callable[[Question], CalibrationSet]
) -> list[Tried[Found]]:
    """The smallest change of each kind that alone makes a plan possible; only those that do."""
    return smallest(_ladders(question), lambda change: _try(change, found.families, calibrations_of))


def smallest(ladders: Iterable[Iterable[Change]], attempt: Callable[[Change], Tried[F]]) -> list[Tried[F]]:
    """The first step of each ladder that makes a plan possible."""
    tried = []
    for ladder in ladders:
        enough = next((result for change in ladder if (result := attempt(change)).found.plans), None)
        if enough is not None:
            tried.append(enough)
    return tried


def _ladders(question: Question) -> Iterator[Iterable[Change]]:
    fleet = question.fleet
    yield from less_asked(question)
    if fleet.host_memory_bytes is not None:
        yield [_with_ram(question, fleet.host_memory_bytes * s) for s in HOST_STEPS]
    elif not fleet.device.unified_memory:
        yield [_with_ram(question, size) for size in HOST_SIZES]
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


def less_asked(question: Question) -> Iterator[Iterable[Change]]:
    """Steps of asking less, whatever the devices: quality, the KV cache's format, pace, first token, context."""
    limits, pins = question.limits, question.pins
    if limits.log_ppl is not None:
        yield [_perplexity(question, max(0.01, math.expm1(limits.log_ppl)) * s) for s in QUALITY_STEPS]
    if pins.kv is not None and pins.kv.bits > 8:
        kv = kv_formats(dataclasses.replace(question, pins=pins._replace(kv=None)))[-1]
        narrower = dataclasses.replace(question, pins=pins._replace(kv=kv))
        yield [Change(f"the KV cache in {kv}", f"--kv {kv}", narrower, False)]
    if limits.pace_s is not None:
        yield [_pace(question, limits.pace_s * s) for s in STEPS]
    if limits.first_s is not None:
        yield [_first(question, limits.first_s * s) for s in STEPS]
    yield [_shorter(question, share) for share in (0.75, 0.5, 0.25, 0.125) if question.prompt * share >= 1]


def _try(
    change: Change, known: tuple[Family, ...], calibrations_of: Callable[[Question], CalibrationSet]
) -> Tried[Found]:
    families = known if change.same_prices else None
    asked, calibrations = change.question, calibrations_of(change.question)
    return Tried(change, refine(asked, search(asked, calibrations, families=families, seconds=SECONDS), calibrations))


def _on(question: Question, fleet: object) -> Question:
    return dataclasses.replace(question, fleet=fleet)  # type: ignore[arg-type]


def _limit(question: Question, limits: Limits) -> Question:
    return dataclasses.replace(question, limits=limits)


def _perplexity(question: Question, rise: float) -> Change:
    rise = math.ceil(rise * 1e3 - 1e-6) / 1e3
    limits = question.limits._replace(log_ppl=math.log1p(rise))
    words, flag = f"a perplexity {percent(rise)} higher", f"--max-ppl-increase {percent(rise)}"
    return Change(words, flag, _limit(question, limits), True)


def _pace(question: Question, seconds: float) -> Change:
    ms = three_digits(seconds * 1e3)
    limits = question.limits._replace(pace_s=ms / 1e3)
    return Change(f"{ms:,g} ms per token", f"--tpot-ms {ms:g}", _limit(question, limits), True)


def _first(question: Question, seconds: float) -> Change:
    ms = three_digits(seconds * 1e3)
    limits = question.limits._replace(first_s=ms / 1e3)
    return Change(f"{ms:,g} ms to the first token", f"--ttft-service-ms {ms:g}", _limit(question, limits), True)


def _shorter(question: Question, share: float) -> Change:
    prompt, output = max(1, int(question.prompt * share)), max(1, int(question.output * share))
    changed = dataclasses.replace(question, prompt=prompt, output=output)
    words = f"prompts of {prompt:,} and answers of {output:,} tokens"
    return Change(words, f"--prompt {prompt} --output {output}", changed, False)


def _with_ram(question: Question, size: float) -> Change:
    size = whole_gb(size)
    changed = _on(question, dataclasses.replace(question.fleet, host_memory_bytes=size))
    return Change(f"{size / 1e9:.0f} GB of host memory", f"--ram {size / 1e9:.0f}GB", changed, False)


def whole_gb(size: float) -> float:
    """At least as many bytes, whole decimal gigabytes."""
    return math.ceil(size / 1e9) * 1e9


def three_digits(value: float) -> float:
    """The value as it is printed, to three digits."""
    return float(f"{value:.3g}")


def percent(share: float) -> str:
    """`4.5%`."""
    return f"{100 * share:.4g}%"
