"""Generate the JSON Schema of the contract from the answer types: `python -m roofplan.simulator.report.schema`.

A development tool (it needs pydantic, extra `test`); the generated file is committed and a test keeps it current.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import operator
import types
import typing
from typing import Any

from .. import answers, catalogue, plan_answers
from ..answers import SCHEMA_NAME, SCHEMA_VERSION, ErrorReport, Report
from .contract import SCHEMA_FILE

_COLUMNS = {"Words": tuple[str, ...], "Counts": tuple[int, ...], "Numbers": tuple[float | None, ...]}
_NAMES = {**vars(catalogue), **vars(plan_answers), **vars(answers), **_COLUMNS}


@functools.cache
def _as_object(type_: Any) -> Any:
    """The type with every named tuple in it turned into a dataclass: answers are JSON objects, not arrays."""
    if isinstance(type_, type) and issubclass(type_, tuple) and hasattr(type_, "_fields"):
        hints = typing.get_type_hints(type_, globalns=_NAMES)
        mirror = dataclasses.make_dataclass(type_.__name__, [(n, _as_object(t)) for n, t in hints.items()], frozen=True)
        mirror.__doc__ = type_.__doc__
        return mirror
    origin, arguments = typing.get_origin(type_), typing.get_args(type_)
    if origin is tuple:
        return types.GenericAlias(tuple, tuple(a if a is Ellipsis else _as_object(a) for a in arguments))
    if arguments:
        return functools.reduce(operator.or_, map(_as_object, arguments))
    return type_


def generate() -> dict[str, Any]:
    """The schema of both kinds of output; every field is always there, none other is."""
    from pydantic import TypeAdapter

    adapter: TypeAdapter[Any] = TypeAdapter(_as_object(Report) | _as_object(ErrorReport))
    schema = adapter.json_schema()
    for definition in schema["$defs"].values():
        definition["additionalProperties"] = False
        definition["required"] = sorted(definition.get("properties", {}))
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"{SCHEMA_NAME} {SCHEMA_VERSION}",
        **schema,
    }


def text() -> str:
    """The file as it is committed."""
    return json.dumps(generate(), indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    SCHEMA_FILE.write_text(text(), encoding="utf-8")
