"""Models a user has on disk, found by the names other programs give them; nothing is ever fetched.

`find` turns such a name into a model, `listed` walks what is there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ....errors import InputError
from ..model import Model
from . import huggingface, lmstudio, ollama

if TYPE_CHECKING:
    from ..network import Pipeline
    from ..pipelines import Size

FINDERS = (lmstudio.find_installed, huggingface.find_installed, ollama.find_installed)
SOURCES = {
    "Ollama": ollama.installed,
    "LM Studio": lmstudio.installed,
    "Hugging Face cache": huggingface.installed,
}


class Found(NamedTuple):
    """A model on disk: the name to ask for it by, the program it belongs to, and how to read it."""

    name: str
    source: str
    read: Callable[[], Model | Pipeline]


def find(name: str, bundled: Sequence[str], size: Size | None = None) -> Model | Pipeline | None:
    """The model of that name on this machine, or None where it is not a name these programs use.

    A name that one of them would understand but that is not there is an error that says how to get it.
    """
    if name.startswith(ollama.PREFIX):
        return ollama.find(name.removeprefix(ollama.PREFIX), bundled)
    for find_installed in FINDERS:
        model = find_installed(name, size)
        if model is not None:
            return model
    if ollama.is_name(name):
        raise ollama.not_installed(name, bundled)
    if huggingface.is_id(name):
        raise huggingface.not_cached(name, bundled)
    return None


def listed() -> Iterator[Found]:
    """Every model these programs keep on this machine, by program and name."""
    for source, installed in SOURCES.items():
        for name, read in installed():
            yield Found(name, source, read)


def readable(found: Found) -> tuple[Model | Pipeline | None, str]:
    """The model, or the reason why it cannot be read."""
    try:
        return found.read(), ""
    except InputError as error:
        return None, error.line()
