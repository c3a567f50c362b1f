"""Reading and printing quantities. Inside roofplan everything is SI: bytes, seconds, FLOP/s.

1 GB = 1e9 bytes and 1 GiB = 2**30 bytes, and both spellings are honoured on input. Token counts take
the suffixes k and m in their usual binary sense for contexts (32k = 32768).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from .errors import InputError

_BYTES = {
    "b": 1.0,
    **{f"{p}b": 10.0 ** (3 * i) for i, p in enumerate("kmgtpe", start=1)},
    **{f"{p}ib": 2.0 ** (10 * i) for i, p in enumerate("kmgtpe", start=1)},
}
_TOKENS = {"": 1, "k": 1024, "m": 1024**2}
_NUMBER = re.compile(r"((?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)(?:e[+-]?[0-9]+)?)\s*([a-z/]*)", re.IGNORECASE | re.ASCII)

MAX_TOKENS = 2**40
MAX_BYTES = 1e18


def _split(text: str, key: str, example: str) -> tuple[float, str]:
    match = _NUMBER.fullmatch(text.strip())
    if not match:
        raise InputError("not a quantity", key=key, value=text, remedy=f"write it like {example}")
    number = float(match.group(1))
    if not math.isfinite(number):
        raise InputError("not a finite number", key=key, value=text, remedy=f"write it like {example}")
    return number, match.group(2).lower()


def parse_bytes(text: str, key: str) -> float:
    """Bytes from `64GB` or `24GiB`; the unit is required, because GB and GiB differ by 7 %."""
    number, unit = _split(text, key, "64GB or 24GiB")
    return _amount(number, unit, 1.0, "memory", "64GB or 24GiB", text, key)


def parse_rate(text: str, key: str) -> float:
    """Bytes per second from `1TB/s` or `936GB/s`."""
    number, unit = _split(text, key, "936GB/s")
    amount = unit.removesuffix("/s") if unit.endswith("/s") else ""
    return _amount(number, amount, 1e3, "bandwidth", "936GB/s", text, key)


def _amount(number: float, unit: str, least: float, what: str, example: str, text: str, key: str) -> float:
    """Bytes behind a number and its unit, within the limits of sense."""
    if unit not in _BYTES:
        raise InputError(f"unknown or missing unit of {what}", key=key, value=text, remedy=f"write it like {example}")
    value = number * _BYTES[unit]
    if not least <= value <= MAX_BYTES:
        raise InputError(f"must lie between {format_bytes(least)} and 1 EB", key=key, value=text)
    return value


def parse_count(text: str, key: str) -> int:
    """A whole number of tokens, requests or users from `8`, `32k` (= 32768) or `1m`."""
    number, unit = _split(text, key, "8 or 32k")
    if unit not in _TOKENS:
        raise InputError("unknown suffix of a count", key=key, value=text, remedy="write it like 8 or 32k (k = 1024)")
    value = number * _TOKENS[unit]
    if value != int(value):
        raise InputError("must be a whole number", key=key, value=text)
    if not 1 <= value <= MAX_TOKENS:
        raise InputError("must lie between 1 and 2**40", key=key, value=text)
    return int(value)


def parse_share(text: str, key: str) -> float:
    """A share of `70%`, up to a thousandfold."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", text)
    if found is None or float(found[1]) > 1000:
        raise InputError("must be a percentage", key=key, value=text, remedy="write it like 1%")
    return float(found[1]) / 100


def parse_counts(text: str, key: str) -> list[Sequence[int]]:
    """Whole numbers from a comma list of `8`, `1:256` (doubling from 1 up to 256) and `1k:8k:1k` (in steps of 1k).

    Each part is a sequence of its own, and steps are not written out: a reader can count before making them.
    """
    return [_part(part, text, key) for part in text.split(",")]


def _part(part: str, text: str, key: str) -> Sequence[int]:
    words = part.split(":")
    if len(words) > 3 or not all(map(str.strip, words)):
        remedy = "write 8, a list 1,4,16, a doubling range 1:256 or one with a step 1k:8k:1k"
        raise InputError("not a number or range", key=key, value=text, remedy=remedy)
    first, last, *step = (parse_count(word, key) for word in (words if len(words) > 1 else words * 2))
    if last < first:
        swapped = ":".join((words[1], words[0], *words[2:]))
        raise InputError("a range that ends before it begins", key=key, value=text, remedy=f"write {swapped}")
    if step:
        return range(first, last + 1, step[0])
    return [first << i for i in range((last // first).bit_length())]


def _scaled(value: float, suffixes: tuple[str, ...]) -> str:
    if not math.isfinite(value):
        return "-"
    size, index = abs(value), 0
    while size >= 999.5 and index < len(suffixes) - 1:
        size, index = size / 1e3, index + 1
    digits = f"{size:.3g}" if size < 999.5 else f"{size:,.0f}"
    return f"{'-' if value < 0 else ''}{digits} {suffixes[index]}".rstrip()


def format_gib(value: float) -> str:
    """Bytes as GiB (or MiB below 0.1 GiB), the unit of nvidia-smi and of every out-of-memory message."""
    if not math.isfinite(value):
        return "-"
    gib = value / 2**30
    return f"{gib:.1f} GiB" if abs(gib) >= 9.95 else f"{gib:.2f} GiB" if abs(gib) >= 0.1 else f"{value / 2**20:.1f} MiB"


def format_bytes(value: float) -> str:
    """Bytes in decimal units: traffic, rates, file sizes."""
    return _scaled(value, ("B", "kB", "MB", "GB", "TB", "PB", "EB"))


def format_size(value: float) -> str:
    """Bytes as an option takes them, exactly: `64GB` where they are whole gigabytes."""
    return f"{value / 1e9:.0f}GB" if value % 1e9 == 0 else f"{value:.0f}B"


def format_rate(value: float) -> str:
    """Bytes per second in decimal units."""
    return f"{format_bytes(value)}/s"


def format_flops(value: float) -> str:
    """Floating-point operations in decimal units."""
    return _scaled(value, ("", "k", "M", "G", "T", "P", "E", "Z")) + "FLOP"


# Below so many seconds, by so much, in that unit.
DURATIONS = (
    (1e-3, 1e6, "us"),
    (1.0, 1e3, "ms"),
    (100.0, 1.0, "s"),
    (6000.0, 1 / 60, "min"),
    (360_000.0, 1 / 3600, "h"),
)


def format_seconds(value: float) -> str:
    """A duration with a fitting unit."""
    if not math.isfinite(value):
        return "-"
    for limit, scale, unit in DURATIONS:
        if abs(value) < limit * 0.9995:
            return f"{value * scale:.3g} {unit}"
    days = value / 86400
    return f"{days:.3g} d" if abs(days) < 1e3 else f"{days:,.0f} d"


def format_count(value: float) -> str:
    """A count with thousands separators; large ones with a suffix."""
    return f"{value:,.0f}" if abs(value) < 1e7 else _scaled(value, ("", "k", "M", "B", "T")).replace(" ", "")
