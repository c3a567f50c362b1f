"""The errors roofplan raises on purpose, and the exit code each one maps to.

    RoofplanError
    |-- InputError               2   the question cannot be read; says where, what and the remedy
    |   `-- UnknownNameError     2   a name nobody listed, with the nearest names
    `-- SurroundingsError        3   the machine lacks something: an extra, a device, a writable place

Anything else that escapes is an internal error (70); an interrupt is 130, a pipe whose reader has gone 141; an honest
"no" is exit code 1 and not an error at all.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum


class ExitCode(IntEnum):
    """What the process exit status means (README, section "Exit codes")."""

    YES = 0
    NO = 1
    BAD_INPUT = 2
    SURROUNDINGS = 3
    INTERNAL = 70
    INTERRUPTED = 130
    READER_GONE = 141


class RoofplanError(Exception):
    """Base of every deliberate error: one line naming file, key, value and remedy."""

    exit_code = ExitCode.INTERNAL
    kind = "internal"

    def __init__(
        self,
        problem: str,
        *,
        file: str | None = None,
        key: str | None = None,
        value: object = None,
        remedy: str | None = None,
    ) -> None:
        self.problem = problem
        self.file = file
        self.key = key
        self.value = value
        self.remedy = remedy
        super().__init__(self.line())

    def line(self) -> str:
        """The whole error on one line, control characters escaped and long values cut."""
        where = ": ".join(_cut(part, 500) for part in (self.file, self.key) if part)
        shown = "" if self.value is None else f" (got {_short(self.value)})"
        text = (f"{where}: " if where else "") + _cut(self.problem, 500) + shown
        if self.remedy:
            text += f"; {_cut(self.remedy, 800)}"
        return "".join(ch if ch.isprintable() else ch.encode("unicode_escape").decode() for ch in text)


class InputError(RoofplanError):
    """The question, a file it names, or a value in it cannot be used."""

    exit_code = ExitCode.BAD_INPUT
    kind = "bad-input"


class UnknownNameError(InputError):
    """A name that is not in a known list; carries the closest known names as remedy."""

    kind = "unknown-name"

    def __init__(self, what: str, name: str, known: Iterable[str], *, listing: str) -> None:
        import difflib

        close = difflib.get_close_matches(name.lower(), list(known), n=3, cutoff=0.4)
        close += [k for k in known if k not in close and len(name) > 2 and name.lower() in k][: 3 - len(close)]
        hint = f"did you mean {', '.join(close)}? " if close else ""
        super().__init__(f"unknown {what}", value=name, remedy=f"{hint}`{listing}` lists them all")


class SurroundingsError(RoofplanError):
    """The environment lacks something: an optional extra, a device, a writable directory."""

    exit_code = ExitCode.SURROUNDINGS
    kind = "surroundings"


def _short(value: object, limit: int = 80) -> str:
    try:
        return _cut(repr(value), limit)
    except (ValueError, RecursionError):  # an integer of more than 4300 digits, or nested too deeply
        return f"a {type(value).__name__} too large to print"


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."
