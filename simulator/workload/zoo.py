"""The bundled models and the one place where a model name or path becomes a `Model`.

The zoo is one file, a config.json of facts per line with its name first, so that one model costs one line.
"""

from __future__ import annotations

import json
import os.path
from pathlib import Path

from ...errors import InputError, UnknownNameError
from .hf import parse_config, read_config
from .model import Model

ZOO = Path(__file__).parent / "zoo.jsonl"


def _lines() -> dict[str, str]:
    """Name to line, without parsing the lines."""
    lines = ZOO.read_text(encoding="utf-8").splitlines()
    return {line.split('"', 4)[3]: line for line in lines if line}


def names() -> list[str]:
    """Bundled models in the order of the file: by family, then size."""
    return list(_lines())


def shown() -> list[str]:
    """The models a list shows unless all are asked for."""
    return [name for name, line in _lines().items() if '"shown": true' in line]


def source(name: str) -> str:
    """The Hugging Face repository whose config.json the bundled facts were read from."""
    return str(json.loads(_lines()[name])["source"])


def bundled(name: str) -> Model:
    """The bundled model of that name."""
    entry = json.loads(_lines()[name])
    return parse_config(entry["config"], name=name, file=f"bundled model {name}", origin="bundled")


def resolve(name: str) -> Model:
    """A model from a bundled name; a config.json, a folder that holds one, a GGUF or safetensors file; or one that
    Ollama, LM Studio or the Hugging Face cache keeps on this machine.
    """
    path = Path(name)
    if name.endswith(".gguf") or _is_gguf(path):
        from .gguf import read_gguf
        from .local.lmstudio import file_of

        return read_gguf(_existing(file_of(name) or path))
    if name.endswith((".safetensors", ".safetensors.index.json")):
        from .safetensors import read_safetensors

        return read_safetensors(_existing(path))
    if name.endswith(".json"):
        return read_config(_existing(path))
    if name and os.path.isdir(path):  # noqa: PTH112 - Path.is_dir raises on a name too long
        from .local.huggingface import read_folder

        return read_folder(path)
    key = name.strip().lower().replace("_", "-").rsplit("/", 1)[-1]
    lines = _lines()
    for candidate in (key, key.removeprefix("meta-"), key.removesuffix("-instruct"), key.removesuffix("-v0.1")):
        if candidate in lines:
            return bundled(candidate)
    if os.path.exists(path) or name.startswith((".", "/", "~")) or not key:  # noqa: PTH110 - as above
        remedy = "give a config.json or its folder, a .gguf or .safetensors file, or a bundled name"
        raise InputError("not a model that can be read", file=name or "(empty name)", remedy=remedy)
    from .local import find

    found = find(name, list(lines))
    if found is not None:
        return found
    raise UnknownNameError("model", name, lines, listing="roofplan models list")


def _is_gguf(path: Path) -> bool:
    """Whether a file of any name is GGUF by its first bytes, as Ollama's blobs are."""
    try:
        with path.open("rb") as stream:
            return stream.read(4) == b"GGUF"
    except (OSError, ValueError):
        return False


def _existing(path: Path) -> Path:
    if not os.path.isfile(path):  # noqa: PTH113 - Path.is_file raises on a name too long
        raise InputError("no such file", file=str(path), remedy="give a config.json, a .gguf file or a bundled name")
    return path
