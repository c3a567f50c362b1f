"""Read a Hugging Face `config.json`: find its family, or read it by the usual field names and say so."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ...errors import InputError
from .families import ALIASES, MODULES
from .families.reader import Reader
from .model import Model

if TYPE_CHECKING:
    from .network import Pipeline
    from .pipelines import Size

MAX_CONFIG_BYTES = 4_000_000
# What a config of several parts may state beside its text model.
BESIDE = ("quantization_config", "torch_dtype", "dtype", "tie_word_embeddings")


def read_config(path: Path, size: Size | None = None) -> Model | Pipeline:
    """The model a config.json describes; the name is that of the file's folder. `size`: see `parse_any`."""
    stem = path.resolve().parent.name if path.stem == "config" else path.stem
    return parse_any(read_json(path), name=stem or "model", file=str(path), size=size)


def read_json(path: Path) -> object:
    """What a config.json holds, or an error that says why it cannot be one."""
    file = str(path)
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise InputError("larger than 4 MB: not a config.json", file=file)
        return json.loads(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=file) from None
    except UnicodeDecodeError:
        raise InputError("not UTF-8 text", file=file, remedy="give the model's config.json") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"not valid JSON: {error}", file=file, remedy="give the model's config.json") from None


def parse_any(
    config: object, *, name: str, file: str, origin: str | None = None, size: Size | None = None
) -> Model | Pipeline:
    """A decoder, or what runs as one pass: an encoder, or a pipeline of `components`.

    `size` is that of a result of one pass where it is not the one it was made for.
    """
    if _may_be_one_pass(config):
        from .pipelines import is_one_pass, parse_pipeline

        if isinstance(config, dict) and is_one_pass(config):
            return parse_pipeline(config, name=name, file=file, origin=origin, size=size)
    if isinstance(config, dict) and "_class_name" in config:
        remedy = "give the folder that holds model_index.json"
        problem = "one part of a pipeline of diffusers"
        raise InputError(problem, file=file, key="_class_name", value=config["_class_name"], remedy=remedy)
    if size is not None:
        size.refuse(f"{name}, which writes token by token", "width", "frames", "steps")
    return parse_config(config, name=name, file=file, origin=origin)


def _may_be_one_pass(config: object) -> bool:
    """Whether it pays to load the readers of one-pass models; a decoder's own family is answer enough."""
    if not isinstance(config, dict):
        return False
    kind, classes = config.get("model_type"), config.get("architectures")
    known = isinstance(kind, str) and ALIASES.get(kind, kind) in MODULES
    return not known or "components" in config or (isinstance(classes, list) and "Encoder" in str(classes[:1]))


def parse_config(config: object, *, name: str, file: str, origin: str | None = None) -> Model:
    """The model a parsed config describes; `file` is what messages name."""
    if not isinstance(config, dict):
        raise InputError("must be a JSON object", file=file, value=config)
    model_type = config.get("model_type")
    if "text_config" not in config and not isinstance(model_type, str):
        raise InputError("missing: the model family", file=file, key="model_type", value=model_type)
    text = text_config(config)
    model_type = text.get("model_type")
    if not isinstance(model_type, str):
        raise InputError("missing: the model family", file=file, key="model_type", value=model_type)
    family = ALIASES.get(model_type, model_type)
    reader = Reader(text, MappingProxyType({}), file, family, name, origin or file)
    module = import_module(f".families.{MODULES.get(family, 'generic')}", __package__)
    model: Model = module.read(reader)
    return _with_towers(config, model, reader)


def _with_towers(config: Mapping[str, Any], model: Model, text: Reader) -> Model:
    """The model with what it sees or hears with, where the config describes that beside the text model."""
    if all(config.get(key) is None for key in ("vision_config", "audio_config")):
        return model
    from .families.multimodal import with_towers

    outer = config.get("model_type")
    return with_towers(text._replace(config=config, family=outer if isinstance(outer, str) else ""), model)


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a config that describes the text model: of models that also see or hear the `text_config`.

    Format and quantisation may stand beside it.
    """
    text = config.get("text_config")
    if not isinstance(text, dict):
        return config
    return {**{k: config[k] for k in BESIDE if k in config}, **text}
