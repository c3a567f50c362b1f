"""The local cache of Hugging Face: models--ORG--NAME/snapshots/REVISION, the revision in refs/main.

Places after huggingface_hub's `constants.py`; nothing is fetched, and a missing config is asked for by its command.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ....errors import InputError
from .. import files
from ..gguf import read_gguf
from ..hf import read_config
from ..model import Model
from ..safetensors import checkpoint_in, read_safetensors
from ..zoo import PIPELINE_INDEX
from . import places

if TYPE_CHECKING:
    from ..network import Pipeline
    from ..pipelines import Size

ID = re.compile(r"[A-Za-z0-9][\w.\-]{0,95}/[A-Za-z0-9][\w.\-]{0,95}")


def roots() -> list[Path]:
    """The folders a cache may be in, most specific first."""
    stated = [os.environ.get("HF_HUB_CACHE"), os.environ.get("HUGGINGFACE_HUB_CACHE")]
    found = [Path(value) for value in stated if value]
    if value := os.environ.get("HF_HOME"):
        found.append(Path(value) / "hub")
    if value := os.environ.get("XDG_CACHE_HOME"):
        found.append(Path(value) / "huggingface" / "hub")
    return list(dict.fromkeys([*found, files.home(".cache", "huggingface", "hub")]))


def is_id(name: str) -> bool:
    """Whether it looks like ORG/NAME, with or without a file type behind a colon."""
    return ID.fullmatch(name.partition(":")[0]) is not None


def find_installed(name: str, size: Size | None = None) -> Model | Pipeline | None:
    """The model of a cached snapshot, by its id; of a repository of GGUF files the one of the file type asked for."""
    if not is_id(name):
        return None
    repository, _, quant = name.partition(":")
    for root in roots():
        folder = _repository(root, repository)
        snapshot = None if folder is None else _snapshot(folder)
        if snapshot is not None:
            return _read(snapshot, name, quant, size)
    return None


def _repository(root: Path, repository: str) -> Path | None:
    wanted = f"models--{repository.replace('/', '--')}"
    if files.is_dir(root / wanted):
        return root / wanted
    return next((root / name for name in files.names_in(root) if name.lower() == wanted.lower()), None)


def _snapshot(folder: Path) -> Path | None:
    """The snapshot refs/main points at, or the only one; None where there is no snapshot."""
    try:
        revision = (folder / "refs" / "main").read_bytes()[:100].decode("utf-8", errors="replace").strip()
    except (OSError, ValueError):
        revision = ""
    if re.fullmatch(r"[\w.\-]+", revision) and not revision.startswith(".") and _holds(folder, revision):
        return folder / "snapshots" / revision
    known = [name for name in files.names_in(folder / "snapshots") if _holds(folder, name)]
    return folder / "snapshots" / known[0] if len(known) == 1 else None


def _holds(folder: Path, revision: str) -> bool:
    snapshot = folder / "snapshots" / revision
    return _described(snapshot) or bool(places.ggufs_in(snapshot))


def _described(folder: Path) -> bool:
    """Whether a config.json, or the index of a pipeline, says what the folder holds."""
    return any(files.is_file(folder / file) for file in ("config.json", PIPELINE_INDEX))


def _read(snapshot: Path, name: str, quant: str, size: Size | None = None) -> Model | Pipeline:
    ggufs = places.ggufs_in(snapshot)
    if ggufs and (quant or not _described(snapshot)):
        return read_gguf(places.pick(snapshot, ggufs, quant, name.partition(":")[0]), name)
    if quant:
        raise InputError("no GGUF file of this model is in the cache", file=str(snapshot), value=quant)
    model = read_folder(snapshot, size)
    return dataclasses.replace(model, name=name.rsplit("/", 1)[-1])


def read_folder(folder: Path, size: Size | None = None) -> Model | Pipeline:
    """The model of a folder with a config.json, or with nothing but GGUF files.

    A whole checkpoint beside the config says what its weights really weigh. `size` is that of a result of one pass. A
    folder with an index of diffusers is a pipeline, whatever single files lie beside it.
    """
    if files.is_file(folder / PIPELINE_INDEX):
        from .diffusers import read_pipeline

        return read_pipeline(folder, size)
    weights, config, ggufs = checkpoint_in(folder), folder / "config.json", places.ggufs_in(folder)
    if weights is not None:
        return read_safetensors(weights, size)
    if ggufs and not files.is_file(config):
        if len(ggufs) > 1:
            remedy = f"name one of them: {', '.join(ggufs)}"
            raise InputError(f"{len(ggufs)} GGUF files and no config.json", file=str(folder), remedy=remedy)
        return read_gguf(folder / ggufs[0])
    if not files.is_file(config):
        remedy = "give a config.json, a .gguf file or a bundled name"
        raise InputError("no such file", file=str(config), remedy=remedy)
    return read_config(config, size)


def not_cached(name: str, bundled: Sequence[str]) -> InputError:
    """The error about an id that is in no cache: the command that fetches its config alone."""
    repository, _, quant = name.partition(":")
    file = f'--include "*{quant}*.gguf"' if quant else "config.json"
    near = places.nearest(name, bundled)
    remedy = f"`hf download {repository} {file}` fetches it (older: `huggingface-cli download {repository} {file}`)"
    if not quant:
        remedy += '; of a pipeline of diffusers, `--include "*.json"` does'
    if near:
        remedy += f"; nearest bundled model: {near}"
    what = "no such path, and not in the local Hugging Face cache"
    return InputError(what, file=name, remedy=remedy)


def installed() -> Iterator[tuple[str, Callable[[], Model | Pipeline]]]:
    """Every cached model with a config.json or GGUF files."""
    seen = set()
    for root in roots():
        for folder in files.names_in(root):
            parts = folder.split("--")
            name = "/".join(parts[1:])
            snapshot = _snapshot(root / folder) if parts[0] == "models" and is_id(name) else None
            if snapshot is None or name in seen:
                continue
            seen.add(name)
            quants = [places.quant_of(file) or file for file in places.ggufs_in(snapshot)]
            if quants and not _described(snapshot):
                for quant in quants:
                    asked = f"{name}:{quant}"
                    yield asked, functools.partial(_read, snapshot, asked, quant)
            else:
                yield name, functools.partial(_read, snapshot, name, "")
