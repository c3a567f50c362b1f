"""Models of LM Studio: PUBLISHER/REPOSITORY with GGUF files of one or more quantisations, or an MLX checkpoint.

Folders after LM Studio's documentation (lmstudio.ai/docs/app/basics/import-model): ~/.lmstudio/models since 0.3,
~/.cache/lm-studio/models before; ~/.lmstudio-home-pointer names another home.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from .. import files
from ..gguf import read_gguf
from ..model import Model
from . import places
from .huggingface import read_folder

if TYPE_CHECKING:
    from ..network import Pipeline
    from ..pipelines import Size

PART = re.compile(r"[\w][\w.\- ]{0,127}")


def roots() -> list[Path]:
    """The folders models may be in."""
    found = [files.home(".lmstudio", "models"), files.home(".cache", "lm-studio", "models")]
    try:
        moved = files.home(".lmstudio-home-pointer").read_bytes()[:4096].decode("utf-8").strip()
    except (OSError, ValueError):
        moved = ""
    return [Path(moved) / "models", *found] if moved else found


def find_installed(name: str, size: Size | None = None) -> Model | Pipeline | None:
    """The model of PUBLISHER/REPOSITORY, with :Q4_K_M (or LM Studio's own @q4_k_m) where there are several.

    The publisher may be left out where one repository has that name.
    """
    path, _, quant = name.replace("@", ":").partition(":")
    parts = path.split("/")
    if not 1 <= len(parts) <= 2 or not all(PART.fullmatch(part) for part in parts):
        return None
    for publisher, repository, folder in _repositories():
        same = [publisher.lower(), repository.lower()] == [p.lower() for p in parts]
        if same or (len(parts) == 1 and repository.lower() == parts[0].lower()):
            return _read(folder, f"{publisher}/{repository}", quant, size)
    return None


def file_of(name: str) -> Path | None:
    """The file of PUBLISHER/REPOSITORY/FILE.gguf, None where the name is a path of its own or there is no such file."""
    parts = name.split("/")
    if files.is_file(Path(name)) or len(parts) != 3 or not all(PART.fullmatch(part) for part in parts):
        return None
    return next((root.joinpath(*parts) for root in roots() if files.is_file(root.joinpath(*parts))), None)


def _repositories() -> Iterator[tuple[str, str, Path]]:
    for root in roots():
        for publisher in files.names_in(root):
            for repository in files.names_in(root / publisher):
                folder = root / publisher / repository
                if places.ggufs_in(folder) or files.is_file(folder / "config.json"):
                    yield publisher, repository, folder


def _read(folder: Path, name: str, quant: str, size: Size | None = None) -> Model | Pipeline:
    ggufs = places.ggufs_in(folder)
    if not ggufs:
        return dataclasses.replace(read_folder(folder, size), name=name.rsplit("/", 1)[-1])
    chosen = places.pick(folder, ggufs, quant, name)
    return read_gguf(chosen, chosen.stem)


def installed() -> Iterator[tuple[str, Callable[[], Model | Pipeline]]]:
    """Every quantisation of every repository."""
    for publisher, repository, folder in _repositories():
        name, ggufs = f"{publisher}/{repository}", places.ggufs_in(folder)
        for file in ggufs:
            quant = places.quant_of(file) or file
            yield f"{name}:{quant}", functools.partial(_read, folder, name, file)
        if not ggufs:
            yield name, functools.partial(_read, folder, name, "")
