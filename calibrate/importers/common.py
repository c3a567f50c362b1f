"""What importers share: options for what a file does not say, JSON that may be lines, names of devices and models."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ...dtypes import DType
from ...errors import InputError
from ...hwspecs import names
from ..columns import ORDER
from ..records import MAX_TEXT, Record


class Given(NamedTuple):
    """What the person who measured adds; blank or None where the file is to say it."""

    device: str = ""
    model: str = ""
    tp: int | None = None
    pp: int | None = None
    ep: int | None = None
    weights: str = ""
    kv: str = ""
    dtype: DType | None = None
    batch: int | None = None
    block_size: int | None = None
    engine: str = ""
    version: str = ""
    source: str = ""
    date: str = ""
    note: str = ""


class Imported(NamedTuple):
    """The records of a file and why each entry that gave none was left out."""

    records: tuple[Record, ...]
    skipped: tuple[str, ...]


def read_objects(text: str, file: str) -> list[dict[str, Any]]:
    """The JSON objects of a file: one, a list of them, or one a line."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        content = _lines(text, file)
        if content is None:
            remedy = "is the file complete?"
            raise InputError(f"not valid JSON: {error}", file=file, remedy=remedy) from None
    objects = content if isinstance(content, list) else [content]
    for number, entry in enumerate(objects, 1):
        if not isinstance(entry, dict):
            raise InputError("must be a JSON object", file=file, key=f"entry {number}", value=entry)
    return objects


def _lines(text: str, file: str) -> list[Any] | None:
    """One JSON object a line, None where already the first line is none."""
    objects: list[Any] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            objects.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            if not objects:
                return None
            raise InputError(f"not valid JSON: {error}", file=file, key=f"line {number}") from None
    return objects or None


def number(entry: Mapping[str, Any], key: str, file: str, where: str) -> float | None:
    """A finite number of zero or more, None where the file has none."""
    value = entry.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError("must be a number", file=file, key=f"{where}: {key}", value=value)
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    if not 0 <= found <= 1e18:
        raise InputError("must lie between 0 and 1e18", file=file, key=f"{where}: {key}", value=value)
    return found


def required(entry: Mapping[str, Any], key: str, file: str, where: str) -> float:
    """A number the file must have."""
    value = number(entry, key, file, where)
    if value is None:
        remedy = "is this the file --from names?"
        raise InputError("missing", file=file, key=f"{where}: {key}", remedy=remedy)
    return value


def word(entry: Mapping[str, Any], key: str) -> str:
    """A short printable text of a file, blank where there is none."""
    value = entry.get(key)
    return clean(value) if isinstance(value, str) else ""


def clean(text: str) -> str:
    """A text as a record may hold it."""
    return "".join(ch if ch.isprintable() else " " for ch in text[:MAX_TEXT]).strip()


def device_of(given: Given, seen: str, file: str) -> str:
    """The device asked for, else the listed one that the file names as its driver does."""
    if given.device:
        return given.device
    known = names.called(seen)
    if len(known) > 1:
        problem = f"the driver calls several devices {seen}"
        raise InputError(problem, file=file, key="--device", remedy=f"say which: {' or '.join(known)}")
    if not known:
        problem = f"the file does not say which device of ours it ran on{f' ({seen})' if seen else ''}"
        raise InputError(problem, file=file, key="--device", remedy="name it: `roofplan hw list`")
    return known[0]


def model_of(given: Given, seen: str, file: str) -> str:
    """The model asked for, else the file's, without the folders of the machine it was on."""
    if given.model:
        return given.model
    if not seen:
        raise InputError("the file does not name the model", file=file, key="--model", remedy="name it with --model")
    if cached := re.search(r"models--([^/]+?)--([^/]+)/", seen.replace("\\", "/") + "/"):
        return f"{cached[1]}/{cached[2]}"
    parts = seen.replace("\\", "/").rstrip("/").split("/")
    is_repository = len(parts) == 2 and parts[0] not in ("", ".", "..", "~", "models") and not seen.endswith(".gguf")
    return seen if is_repository else parts[-1]


def source_of(given: Given, tool: str, file: str) -> str:
    """Where the record says it comes from."""
    return given.source or clean(f"{tool}: {Path(file).name}")


def notes(given: Given, *parts: str) -> str:
    """A record's note: the asker's first."""
    return clean("; ".join(part for part in (given.note, *parts) if part))


def shape(columns: Mapping[str, float | None]) -> tuple[tuple[str, float], ...]:
    """A record's shape: the columns that have a value, in the order of the schema."""
    known = {name: float(value) for name, value in columns.items() if value is not None}
    return tuple(sorted(known.items(), key=lambda item: ORDER[item[0]]))


def layout(given: Given, tp: float = 1, pp: float = 1, ep: float = 1) -> dict[str, float]:
    """The columns of the layout, options before what the file says; degrees of one stay blank."""
    degrees = {"tp": given.tp or tp, "pp": given.pp or pp, "ep": given.ep or ep}
    return {name: float(degree) for name, degree in degrees.items() if degree != 1}
