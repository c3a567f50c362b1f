"""Plans as the words that start an engine: one entry, `emit`, one module for each engine, and the flags they know.

`flags.csv` lists what each engine's version takes, read from its own source; every word that an export holds is in it.
"""

from __future__ import annotations

import csv
import importlib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from types import MappingProxyType, ModuleType
from typing import NamedTuple

from ....errors import InputError, UnknownNameError
from . import benchmark
from .planned import Decision, Exported, Means, Planned, Refused, confined, layer_file, seats

__all__ = ["ENGINES", "Decision", "Exported", "Flag", "Planned", "emit", "flags", "refusals"]

_MODULES: Mapping[str, str] = MappingProxyType(
    {
        "vllm": "vllm",
        "sglang": "sglang",
        "trtllm": "trtllm",
        "llama.cpp": "llama_cpp",
        "ktransformers": "ktransformers",
        "accelerate": "accelerate",
    }
)
ENGINES = tuple(_MODULES)


PREFETCH_DEPTHS = (0,)  # every engine here copies a layer when it is called


class Flag(NamedTuple):
    """One word an engine takes, `takes` what stands behind it (blank: nothing), and where that was read."""

    engine: str
    version: str
    flag: str
    takes: str
    source: str


@cache
def flags() -> tuple[Flag, ...]:
    """All of `flags.csv`."""
    text = resources.files(__package__).joinpath("flags.csv").read_text(encoding="utf-8")
    return tuple(Flag(**row) for row in csv.DictReader(text.splitlines()))


def emit(engine: str, asked: Planned) -> Exported:
    """The plan in the words of that engine; refused in one line where the engine cannot do what was decided."""
    module = _module(engine)
    means: dict[Decision, Means] = {}
    for decision in Decision:
        try:
            means[decision] = module.DECIDE[decision](asked)
        except Refused as why:
            raise _refusal(engine, decision, asked, str(why)) from None
    try:
        command = module.command(asked, means)
    except Refused as why:
        raise InputError(f"{engine} {why}", key="export", value=asked.scenario.model.name) from None
    words = " ".join([command.head, *(word for way in means.values() for word in way.flags)])
    told = "".join(f"{way.environment} " for way in means.values() if way.environment)
    lines = tuple(
        f"{confined(asked, seat)}{told}{words}"
        + "".join(f" {port} {module.PORT + seat.place}" for port in command.port)
        for seat in seats(asked)
    )
    measured, how = _benchmark(engine, module, asked, lines[0])
    notes = (*(way.note for way in means.values() if way.note), *_nodes(asked), *how, *_versions(engine, asked))
    decided = MappingProxyType({decision: str(way) for decision, way in means.items()})
    return Exported(
        engine, lines, {**command.files, **layer_file(asked)}, measured, tuple(dict.fromkeys(notes)), decided
    )


def demand(engine: str, decision: Decision, asked: Planned) -> None:
    """Refuse in one line what an engine cannot do, before a plan is looked for that needs it."""
    try:
        _module(engine).DECIDE[decision](asked)
    except Refused as why:
        raise _refusal(engine, decision, asked, str(why)) from None


def refusals(engine: str, asked: Planned) -> Mapping[Decision, str]:
    """Every decision of the plan that the engine refuses and why, where `emit` stops at the first: empty if none."""
    found: dict[Decision, str] = {}
    for decision, decide in _module(engine).DECIDE.items():
        try:
            decide(asked)
        except Refused as why:
            found[decision] = f"{engine} {why}"
        except InputError as error:
            found[decision] = error.problem
    return found


def _module(engine: str) -> ModuleType:
    if engine not in _MODULES:
        raise UnknownNameError("engine to export to", engine, ENGINES, listing="roofplan plan --help")
    return importlib.import_module(f".{_MODULES[engine]}", __package__)


def _refusal(engine: str, decision: Decision, asked: Planned, why: str) -> InputError:
    """The error of a decision, with the engines that can do this one (what else they refuse is another question)."""
    able = [other for other in ENGINES if other != engine and _can(other, decision, asked)]
    remedy = f"{', '.join(able)} can" if able else "no engine here can: plan without it"
    return InputError(f"{engine} {why}", key=decision.value, remedy=remedy)


def _can(engine: str, decision: Decision, asked: Planned) -> bool:
    try:
        _module(engine).DECIDE[decision](asked)
    except (Refused, InputError):
        return False
    return True


def _benchmark(engine: str, module: ModuleType, asked: Planned, first: str) -> tuple[str, tuple[str, ...]]:
    if engine == "accelerate":
        return first, benchmark.in_script(asked)
    alone = asked.users == 1 and benchmark.clients_of_one(asked) == 1 and asked.scenario.extras.draft is None
    if engine == "llama.cpp" and alone and not asked.modes:
        return benchmark.llama_bench(asked, module.bench_words(asked))
    return benchmark.serve(asked, engine, module.PORT)


def _nodes(asked: Planned) -> tuple[str, ...]:
    """Which lines belong to which node, where there are several."""
    nodes = [seat.node for seat in seats(asked)]
    if len(set(nodes)) == 1:
        return ()
    each = asked.scenario.fleet.count // asked.scenario.sharding.devices
    return (f"{len(set(nodes))} nodes: {each} lines on each in turn; spread the clients over all of them yourself",)


def _versions(engine: str, asked: Planned) -> tuple[str, ...]:
    version = next(flag.version for flag in flags() if flag.engine == engine)
    priced = asked.scenario.engine
    notes = [f"flags of {engine} {version}"]
    if priced.name != engine or (priced.version and not version.startswith(priced.version)):
        notes.append(f"the plan's times are those of {priced.label}")
    return tuple(notes)
