"""Models as answers: the list and the tensor table."""

from __future__ import annotations

import dataclasses

from ...errors import UnknownNameError
from .. import catalogue as a
from ..workload import zoo
from ..workload.model import Model

Notes = tuple[str, ...]


def model_row(model: Model) -> a.ModelRow:
    """A model's size in its own format; KV cache per token in 16 bits, windows not yet reached."""
    kv = sum(
        b.attention.cached_elements(tp=1) * n
        for b, n in zip(model.blocks, model.layer_counts(), strict=True)
        if b.attention is not None and not b.attention.cross
    )
    return a.ModelRow(
        name=model.name,
        family=model.family,
        parameters=model.parameters,
        active_parameters=model.active_parameters,
        layers=model.layers,
        max_context=model.max_context,
        weight_bytes=model.weight_bytes(model.native),
        kv_bytes_per_token=kv * 2.0,
        origin=model.origin if model.origin != "bundled" else f"bundled facts of {zoo.source(model.name)}",
    )


def list_all(word: str | None = None, family: str | None = None, local: bool = False) -> tuple[a.ModelList, Notes]:
    """Bundled models, or those other programs keep on this machine: whose name has the word, of that family.

    Notes tell which models on disk cannot be read, and why.
    """
    if local:
        models, notes = _local(word)
    else:
        models, notes = [zoo.bundled(name) for name in zoo.names() if _matches(name, word)], ()
        if not models and word:
            raise UnknownNameError("model", word, zoo.names(), listing="roofplan models list")
    families = sorted({model.family for model in models})
    if family is not None:
        models = [model for model in models if _same_family(model.family, family)]
        if not models and families:
            raise UnknownNameError("family", family, families, listing="roofplan models list")
    return a.ModelList(tuple(model_row(model) for model in models)), notes


def _matches(name: str, word: str | None) -> bool:
    return word is None or word.lower() in name.lower()


def _same_family(known: str, asked: str) -> bool:
    return known.lower().replace("-", "_") == asked.lower().replace("-", "_")


def _local(word: str | None) -> tuple[list[Model], Notes]:
    """The models on disk by the names they can be asked for; one that cannot be read becomes a note."""
    from ..workload.local import listed, readable

    models, notes = [], []
    for found in listed():
        if not _matches(found.name, word):
            continue
        model, problem = readable(found)
        if model is None:
            notes.append(f"{found.source}: {found.name} cannot be read: {problem}")
        else:
            models.append(dataclasses.replace(model, name=found.name, origin=f"{found.source}: {model.origin}"))
    if not models:
        notes.append("no model found in Ollama, LM Studio or the Hugging Face cache on this machine")
    return models, tuple(notes)


def sheet(model: Model) -> a.ModelSheet:
    """A model tensor by tensor."""
    rows = []
    for t in model.tensors:
        layers = model.instances(t)
        name = "model" if t.block is None else model.blocks[t.block].name
        size = model.layer_bytes(t, model.native) * layers
        rows.append(
            a.TensorRow(t.role.value, name, layers, t.copies, t.rows, t.cols, t.bias, t.elements * layers, size)
        )
    return a.ModelSheet(model_row(model), tuple(rows))
