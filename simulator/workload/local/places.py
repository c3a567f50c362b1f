"""What programs that keep models have in common: GGUF files in folders, their file types, the nearest bundled model."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path

from ....errors import InputError
from ..files import names_in
from ..gguf_types import file_type

# What publishers call a file's type: also mixtures of their own (Q4_K_XL, Q6_K_L).
QUANT = re.compile(r"B?F16|F32|(I|T)?Q\d(_[A-Z0-9]+)+|MXFP4")


def ggufs_in(folder: Path) -> list[str]:
    """The models among the GGUF files of a folder: no projectors, of a split the first shard only."""
    found = []
    for name in names_in(folder):
        later = re.search(r"-(\d{5})-of-\d{5}\.gguf$", name)
        if name.endswith(".gguf") and not name.startswith("mmproj") and (later is None or later.group(1) == "00001"):
            found.append(name)
    return found


def quant_of(file: str) -> str:
    """The file type in a file's name (`Qwen3-8B-Q4_K_M.gguf`: Q4_K_M), empty where none is recognised."""
    words = re.split(r"[-.@:]", re.sub(r"(-\d{5}-of-\d{5})?\.gguf$", "", file))
    for word in reversed(words):
        if file_type(word) is not None or QUANT.fullmatch(word.upper()):
            return word.upper()
    return ""


def pick(folder: Path, files: Sequence[str], wanted: str, asked: str) -> Path:
    """The one file of a folder that was asked for by its file type or its name; several must be told apart."""
    matching = [f for f in files if wanted.lower() in (f.lower(), quant_of(f).lower())] if wanted else list(files)
    if len(matching) == 1:
        return folder / matching[0]
    known = [quant_of(f) or f for f in files]
    if not wanted:
        remedy = f"say which: {asked}:{known[0]} (there are {', '.join(known)})"
        raise InputError(f"{len(files)} quantisations of this model are there", file=str(folder), remedy=remedy)
    close = difflib.get_close_matches(wanted.upper(), known, n=3, cutoff=0.4)
    hint = f"did you mean {', '.join(close)}? " if close else ""
    remedy = f"{hint}there are {', '.join(known)}"
    raise InputError("no such quantisation of this model is there", file=str(folder), value=wanted, remedy=remedy)


def nearest(name: str, bundled: Sequence[str]) -> str:
    """The bundled model a name most likely means, with its file type as a flag; empty where none is near.

    Only names of the same family word are near: `llama3.1:8b-instruct-q4_K_M` is compared as `llama3.18b`.
    """
    quant = quant_of(f"{name}.gguf")
    words = name.lower().rsplit("/", 1)[-1].replace("_", "-").replace(":", "-")
    words = words.replace(quant.lower().replace("_", "-"), "") if quant else words
    wanted = _squeezed(re.sub(r"-(gguf|instruct|it|chat|latest)\b", "", words))
    known = {_squeezed(model): model for model in bundled if _family(model) == _family(words)}
    close = difflib.get_close_matches(wanted, known, n=1, cutoff=0.6)
    if not close:
        return ""
    return known[close[0]] + (f" --weights {quant}" if quant and file_type(quant) else "")


def _squeezed(name: str) -> str:
    return name.replace("-", "")


def _family(name: str) -> str:
    """The letters a name starts with: qwen of qwen2.5-7b."""
    found = re.match(r"[a-z]*", name)
    return found.group() if found else ""
