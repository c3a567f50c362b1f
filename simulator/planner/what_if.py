"""What the asker imagines: more of one thing (`hbm=+24GB`), written as a change of the question."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

from ...errors import InputError
from ...hwspecs.device import Fact
from ...units import parse_bytes, parse_rate
from .changes import Change
from .question import Question

KEY = "--what-if"


def imagined(text: str, question: Question) -> Change:
    """The question with more of one thing, or less: `hbm=+24GB`, `bandwidth=+1TB/s`, `ram=-32GB`, `link=+32GB/s`,
    `gpus=+2`."""
    found = re.fullmatch(r"\s*([A-Za-z]+)\s*=\s*([+-])\s*(\S+)\s*", text)
    if found is None or found[1].lower() not in THINGS:
        things = ", ".join(THINGS)
        raise InputError("must be a thing and how much more", key=KEY, value=text, remedy=f"hbm=+24GB; or {things}")
    sign = 1.0 if found[2] == "+" else -1.0
    changed, same_prices = THINGS[found[1].lower()](question, sign, found[3])
    return Change(f"what if {text.strip()}", "", changed, same_prices, may_hurt=sign < 0)


def _hbm(question: Question, sign: float, amount: str) -> tuple[Question, bool]:
    more = sign * parse_bytes(amount, KEY)
    if question.fleet.usable_bytes() + more <= 0:
        raise InputError(f"leaves no memory on {question.fleet.device.key}", key=KEY, value=amount)
    return dataclasses.replace(question, more_bytes=question.more_bytes + more), more > 0


def _bandwidth(question: Question, sign: float, amount: str) -> tuple[Question, bool]:
    device = question.fleet.device
    rate = _more(device.bandwidth_bytes_per_s, sign * parse_rate(amount, KEY), amount)
    faster = dataclasses.replace(device, bandwidth_bytes_per_s=rate)
    return _on(question, device=faster), False


def _ram(question: Question, sign: float, amount: str) -> tuple[Question, bool]:
    there = question.fleet.host_memory_bytes or 0.0
    held = there + sign * parse_bytes(amount, KEY)
    if held <= 0:
        raise InputError("leaves no host memory", key=KEY, value=amount)
    return _on(question, host_memory_bytes=held), False


def _link(question: Question, sign: float, amount: str) -> tuple[Question, bool]:
    link = question.fleet.host_link
    rate = _more(link.bandwidth_bytes_per_s, sign * parse_rate(amount, KEY), amount)
    return _on(question, host_link=dataclasses.replace(link, bandwidth_bytes_per_s=rate)), False


def _gpus(question: Question, sign: float, amount: str) -> tuple[Question, bool]:
    if not amount.isdecimal():
        raise InputError("must be a whole number of devices", key=KEY, value=amount, remedy="gpus=+2")
    count = question.fleet.count + int(sign) * int(amount)
    if count < 1:
        raise InputError("must leave at least one device", key=KEY, value=amount, remedy="gpus=+2")
    return dataclasses.replace(question, fleet=question.fleet.sized(count)), False


def _more(fact: Fact, more: float, amount: str) -> Fact:
    if fact.value + more <= 0:
        raise InputError("leaves nothing of the rate", key=KEY, value=amount)
    return dataclasses.replace(fact, value=fact.value + more)


def _on(question: Question, **changes: object) -> Question:
    return dataclasses.replace(question, fleet=dataclasses.replace(question.fleet, **changes))  # type: ignore[arg-type]


THINGS: dict[str, Callable[[Question, float, str], tuple[Question, bool]]] = {
    "hbm": _hbm,
    "bandwidth": _bandwidth,
    "ram": _ram,
    "link": _link,
    "gpus": _gpus,
}
