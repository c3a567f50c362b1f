"""Models of Ollama: a manifest by host, namespace, name and tag, whose model layer is a GGUF file among the blobs.

Layout after ollama's source (types/model/name.go, server/manifest.go) and docs/faq (where models are stored).
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ....errors import InputError
from .. import files
from ..gguf import read_gguf
from ..model import Model
from . import places

if TYPE_CHECKING:
    from ..pipelines import Size

PREFIX = "ollama:"
HOST, NAMESPACE, TAG = "registry.ollama.ai", "library", "latest"
PART = re.compile(r"[A-Za-z0-9_][\w.\-]{0,79}")
MAX_MANIFEST_BYTES = 1 << 20
MODEL_LAYER = "application/vnd.ollama.image.model"
TENSOR_LAYER = "application/vnd.ollama.image.tensor"


class Name(NamedTuple):
    """A model's full name."""

    host: str
    namespace: str
    model: str
    tag: str

    def __str__(self) -> str:
        """As short as Ollama itself shows it."""
        place = "" if (self.host, self.namespace) == (HOST, NAMESPACE) else f"{self.namespace}/"
        host = "" if self.host == HOST else f"{self.host}/"
        return f"{host}{place}{self.model}:{self.tag}"


def parse(name: str) -> Name | None:
    """[HOST/][NAMESPACE/]MODEL[:TAG], or None where it is no such name."""
    path, _, tag = name.partition(":")
    parts = path.split("/")
    if not 1 <= len(parts) <= 3 or not all(PART.fullmatch(part) for part in (*parts, tag or TAG)):
        return None
    host, namespace = (parts[0] if len(parts) == 3 else HOST), (parts[-2] if len(parts) > 1 else NAMESPACE)
    return Name(host, namespace, parts[-1], tag or TAG)


def is_name(name: str) -> bool:
    """Whether it can only be meant as a name of Ollama: it has a tag, or a host."""
    parsed = parse(name)
    if parsed is None:
        return False
    return ("/" not in name and ":" in name) or (parsed.host != HOST and "." in parsed.host)


def roots() -> list[Path]:
    """The folders models may be in: the stated one, the user's, that of the service on Linux."""
    stated = os.environ.get("OLLAMA_MODELS")
    mine = [Path(stated)] if stated else [files.home(".ollama", "models")]
    return [*mine, Path("/usr/share/ollama/.ollama/models")]


def find(name: str, bundled: Sequence[str]) -> Model:
    """The installed model of a name that is Ollama's beyond doubt."""
    model = find_installed(name)
    if model is None:
        raise not_installed(name, bundled)
    return model


def find_installed(name: str, size: Size | None = None) -> Model | None:
    """The installed model of that name, or None; it writes token by token, so that a `size` says nothing of it."""
    parsed = parse(name)
    if parsed is None:
        return None
    for root in roots():
        manifest = _manifest(root / "manifests", parsed)
        if manifest is not None:
            return _read(root, manifest, str(parsed))
    return None


def _manifest(folder: Path, name: Name) -> Path | None:
    """The manifest of a name; case does not matter, as it does not to Ollama."""
    for part in name:
        exact = folder / part
        if not os.path.exists(exact):  # noqa: PTH110 - Path.exists raises on a name too long
            same = (n for n in files.names_in(folder) if n.lower() == part.lower())
            exact = folder / next(same, part)
        folder = exact
    return folder if files.is_file(folder) else None


def _read(root: Path, manifest: Path, name: str) -> Model:
    blob = root / "blobs" / _model_digest(manifest).replace(":", "-")
    if not files.is_file(blob):
        raise InputError("the file of this model is missing", file=str(blob), remedy=f"`ollama pull {name}`")
    return read_gguf(blob, name)


def _model_digest(manifest: Path) -> str:
    """The digest of the layer that is the model; the others are templates, parameters, projectors."""
    file = str(manifest)
    try:
        if manifest.stat().st_size > MAX_MANIFEST_BYTES:
            raise InputError("larger than 1 MB: not a manifest", file=file)
        content = json.loads(manifest.read_bytes().decode("utf-8"))
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror or error}", file=file) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"not a manifest: {error}", file=file) from None
    layers = content.get("layers") if isinstance(content, dict) else None
    layers = [layer for layer in layers if isinstance(layer, dict)] if isinstance(layers, list) else []
    if any(layer.get("mediaType") == TENSOR_LAYER for layer in layers):
        raise InputError("a model stored tensor by tensor, not as GGUF", file=file, key="layers")
    digests = [layer.get("digest") for layer in layers if layer.get("mediaType") == MODEL_LAYER]
    if len(digests) != 1 or not isinstance(digests[0], str) or not re.fullmatch(r"sha256:[0-9a-f]{64}", digests[0]):
        raise InputError("must have one layer that is a model, with its sha256", file=file, key="layers")
    return digests[0]


def not_installed(name: str, bundled: Sequence[str]) -> InputError:
    """The error about a name that is not installed: how to get it, and what to ask meanwhile."""
    if parse(name) is None:
        return InputError("not a name of Ollama", value=name, remedy="as in ollama:llama3.1:8b")
    near = places.nearest(name, bundled)
    also = f"; nearest bundled model: {near}" if near else ""
    return InputError("not installed in Ollama", file=name, remedy=f"`ollama pull {name}` fetches it{also}")


def installed() -> Iterator[tuple[str, Callable[[], Model]]]:
    """Every model with a manifest."""
    seen = set()
    for root in roots():
        top = root / "manifests"
        for host in files.names_in(top):
            for namespace in files.names_in(top / host):
                for model in files.names_in(top / host / namespace):
                    for tag in files.names_in(top / host / namespace / model):
                        name = str(Name(host, namespace, model, tag))
                        manifest = top / host / namespace / model / tag
                        if name not in seen and files.is_file(manifest):
                            seen.add(name)
                            yield name, functools.partial(_read, root, manifest, name)
