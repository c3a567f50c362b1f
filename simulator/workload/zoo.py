"""The bundled models and the one place where a model name or path becomes a `Model` or a `Pipeline`.

The zoo is one file, a config.json of facts per line with its name first, so that one model costs one line.
"""

from __future__ import annotations

import json
import os.path
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import InputError, UnknownNameError
from .hf import parse_config, read_config
from .model import Model

if TYPE_CHECKING:
    from .network import Pipeline
    from .pipelines import Size

ZOO = Path(__file__).parent / "zoo.jsonl"
PIPELINE_INDEX = "model_index.json"  # what a folder of diffusers begins with
ONE_PASS = '"kind": "one pass"'  # what the line of a model that runs as one pass says


def _lines() -> dict[str, str]:
    """Name to line, without parsing the lines."""
    lines = ZOO.read_text(encoding="utf-8").splitlines()
    return {line.split('"', 4)[3]: line for line in lines if line}


def names() -> list[str]:
    """Bundled models that write token by token, in the order of the file: by family, then size."""
    return [name for name, line in _lines().items() if ONE_PASS not in line]


def pipelines() -> list[str]:
    """Bundled models that run as one pass: encoders, and pipelines that make images and clips."""
    return [name for name, line in _lines().items() if ONE_PASS in line]


def shown() -> list[str]:
    """The models a list shows unless all are asked for."""
    return [name for name, line in _lines().items() if '"shown": true' in line]


def source(name: str) -> str:
    """The Hugging Face repository whose config.json the bundled facts were read from."""
    return str(json.loads(_lines()[name])["source"])


def oracle(name: str) -> str:
    """What the model's parameters were counted with: a library's class on the meta device, or the published total."""
    return str(json.loads(_lines()[name])["oracle"])


def bundled(name: str) -> Model:
    """The bundled decoder of that name."""
    entry = json.loads(_lines()[name])
    return parse_config(entry["config"], name=name, file=f"bundled model {name}", origin="bundled")


def bundled_pipeline(name: str, size: Size | None = None) -> Pipeline:
    """The bundled model of one pass of that name."""
    from .pipelines import parse_pipeline

    entry = json.loads(_lines()[name])
    config = entry["config"] if "config" in entry else {key: entry[key] for key in ("components", "run")}
    return parse_pipeline(config, name=name, file=f"bundled model {name}", origin="bundled", size=size)


def components(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Configs of the networks of a bundled pipeline, and how they run; nothing of an encoder."""
    entry = json.loads(_lines()[name])
    return entry.get("components", {}), entry.get("run", {})


def resolve(name: str, size: Size | None = None) -> Model | Pipeline:
    """A model from a bundled name; a config.json, a folder that holds one, a GGUF or safetensors file; or one that
    Ollama, LM Studio or the Hugging Face cache keeps on this machine. `size` is that of a result of one pass.
    """
    path = Path(name)
    if name.endswith(".gguf") or _is_gguf(path):
        from .gguf import read_gguf
        from .local.lmstudio import file_of

        return read_gguf(_existing(file_of(name) or path))
    if name.endswith((".safetensors", ".safetensors.index.json")):
        from .safetensors import read_safetensors

        return read_safetensors(_existing(path))
    if path.name == PIPELINE_INDEX:
        from .local.huggingface import read_folder

        return read_folder(_existing(path).parent, size)
    if name.endswith(".json"):
        return read_config(_existing(path), size)
    if name and os.path.isdir(path):  # noqa: PTH112 - Path.is_dir raises on a name too long
        from .local.huggingface import read_folder

        return read_folder(path, size)
    key = name.strip().lower().replace("_", "-").rsplit("/", 1)[-1]
    lines = _lines()
    shorter = (key.removeprefix("meta-"), key.removesuffix("-instruct"), key.removesuffix("-v0.1"))
    for candidate in (key, *shorter, _of_source(name, lines)):
        if candidate in lines:
            if ONE_PASS in lines[candidate]:
                return bundled_pipeline(candidate, size)
            if size is not None:
                size.refuse(f"{candidate}, which writes token by token", "width", "frames", "steps")
            return bundled(candidate)
    if os.path.exists(path) or name.startswith((".", "/", "~")) or not key:  # noqa: PTH110 - as above
        remedy = "give a config.json or its folder, a .gguf or .safetensors file, or a bundled name"
        raise InputError("not a model that can be read", file=name or "(empty name)", remedy=remedy)
    from .local import find

    found = find(name, list(lines), size)
    if found is not None:
        return found
    raise UnknownNameError("model", name, lines, listing="roofplan models list")


def _of_source(name: str, lines: dict[str, str]) -> str:
    """The bundled model whose facts come from the repository ORG/NAME; empty where there is none."""
    stated = f'"source": {json.dumps(name.strip())},'
    return next((model for model, line in lines.items() if stated in line), "") if "/" in name else ""


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
