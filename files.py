"""Files that roofplan writes: in place completely or not at all, and known to be writable before any work is done."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from .errors import InputError, SurroundingsError

Paths = Mapping[str, Path | None]
"""Files by the option that names them; None where it was not given."""


@contextlib.contextmanager
def replacing(path: Path, key: str | None = None) -> Iterator[BinaryIO]:
    """A new file that takes the place of `path` when the block ends; after any failure `path` is as it was.

    It is written in the same folder, which is made if need be, and is on the disk before one rename puts it in place.
    A link stays and the file it names is replaced.
    """
    place = Path(os.path.realpath(path))
    temporary = place.with_name(f".roofplan.{os.getpid()}.{os.urandom(4).hex()}.partial")
    try:
        if place.exists() and not place.is_file():
            raise OSError(None, "not a regular file")
        place.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(place)
    except BaseException as error:  # an interrupt leaves nothing behind either
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            problem = f"cannot be written: {error.strerror or error}"
            raise SurroundingsError(problem, file=str(path), key=key) from None
        raise


def write_text(path: Path, text: str, key: str | None = None) -> None:
    """Put `text` at `path` completely or not at all."""
    with replacing(path, key) as file:
        file.write(text.encode())


def check(wanted: Paths, read: Paths | None = None) -> None:
    """Refuse now what could not be written later, and what would overwrite a file that is read or written as well."""
    taken = {}
    for key, path in (read or {}).items():
        if path is not None and os.path.exists(path):  # noqa: PTH110 - Path.exists raises on a name too long
            taken[os.path.realpath(path)] = key
    for key, path in wanted.items():
        if path is None:
            continue
        if (other := taken.setdefault(os.path.realpath(path), key)) != key:
            raise InputError(f"would overwrite what {other} names", key=key, value=str(path))
        try:
            _try(path, key)
        except OSError as error:
            problem = f"cannot be written to: {error.strerror}"
            raise SurroundingsError(problem, file=str(path.parent), key=key) from None


def _try(path: Path, key: str) -> None:
    """Look whether a file could be put at `path`."""
    import tempfile

    if path.exists() and not path.is_file():
        problem = "is a folder" if path.is_dir() else "not a regular file"
        raise SurroundingsError(problem, file=str(path), key=key)
    if not path.parent.is_dir():
        raise SurroundingsError("no such folder", file=str(path.parent), key=key)
    with tempfile.TemporaryFile(dir=path.parent):
        pass
