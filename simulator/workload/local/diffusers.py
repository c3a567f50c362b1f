"""A folder of diffusers: `model_index.json` names the networks, each has a folder with its config.json.

How often they run, at which size and with how much text is no part of such a folder: that is taken from the bundled
pipeline of the same classes that is most like it, and said.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ....errors import InputError
from .. import files, zoo
from ..families.one_pass import DENOISERS
from ..hf import read_json
from ..pipelines import parse_pipeline

if TYPE_CHECKING:
    from ..network import Pipeline
    from ..pipelines import Size

Config = Mapping[str, Any]


def read_pipeline(folder: Path, size: Size | None = None) -> Pipeline:
    """The pipeline of a folder with a `model_index.json`."""
    index, file = read_json(folder / zoo.PIPELINE_INDEX), str(folder / zoo.PIPELINE_INDEX)
    if not isinstance(index, dict):
        raise InputError("must be a JSON object", file=file, value=index)
    # Each part is named by its library and class; parts without a config.json (tokenizers, schedulers) are no networks.
    classes = {name: part[1] for name, part in index.items() if isinstance(part, list) and len(part) == 2}
    networks = [name for name, kind in classes.items() if kind and files.is_file(folder / name / "config.json")]
    configs = {name: _stated(read_json(folder / name / "config.json"), classes[name]) for name in networks}
    like, run, parts = _most_like(configs, index, file)
    config = {"components": {name: configs[name] for name in parts}, "run": run}
    name = folder.resolve().name
    found = parse_pipeline(config, name=name, file=file, origin=str(folder), size=size)
    notes = [f"steps, guidance, text and size are those of {like} where not asked otherwise"]
    if beside := sorted(set(configs) - set(parts)):
        notes.append(f"left out: {', '.join(beside)}")
    return replace(found, warnings=tuple(notes))


def _stated(config: object, kind: object) -> Config:
    """A network's config with its class, which its index states beside it."""
    known = config if isinstance(config, dict) else {}
    return known if "_class_name" in known else {"architectures": [kind], **known}


def _kind(config: Config) -> str:
    named = config.get("architectures")
    return str(config.get("_class_name") or (named[0] if isinstance(named, list) and named else ""))


def _most_like(configs: Mapping[str, Config], index: Config, file: str) -> tuple[str, Config, list[str]]:
    """Name, `run` and networks of the bundled pipeline whose networks are all here, with most equal values."""
    denoisers = {name for name, config in configs.items() if _kind(config) in DENOISERS}
    best: tuple[int, str, Config, list[str]] | None = None
    for name in zoo.pipelines():
        parts, run = zoo.components(name)
        same = all(part in configs and _kind(configs[part]) == _kind(config) for part, config in parts.items())
        if not parts or not same or not denoisers <= set(parts):
            continue
        equal = sum(configs[part].get(key) == value for part, config in parts.items() for key, value in config.items())
        if best is None or equal > best[0]:
            best = equal, name, run, list(parts)
    if best is None:
        problem = "a pipeline of networks that are not known together"
        there = ", ".join(f"{name} {_kind(config)}" for name, config in sorted(configs.items())) or "no config.json"
        remedy = f"there are: {there}; `roofplan models list` shows what is known"
        raise InputError(problem, file=file, key="_class_name", value=index.get("_class_name"), remedy=remedy)
    return best[1:]
