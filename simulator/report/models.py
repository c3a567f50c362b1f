"""Models as answers: the list and the tensor table."""

from __future__ import annotations

import dataclasses

from ...errors import UnknownNameError
from .. import catalogue as a
from ..workload import zoo
from ..workload.model import Model
from ..workload.network import Conv, Layer, Linear, Pipeline

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
        origin=_origin(model),
        oracle=_oracle(model),
    )


def _origin(model: Model | Pipeline) -> str:
    return model.origin if model.origin != "bundled" else f"bundled facts of {zoo.source(model.name)}"


def _oracle(model: Model | Pipeline) -> str:
    """What else counted the parameters; nothing did of a user's own file."""
    return zoo.oracle(model.name) if model.origin == "bundled" else ""


def pipeline_row(pipeline: Pipeline) -> a.ModelRow:
    """The size of a model of one pass in its own format; its layers are those of all networks."""
    wide = {stage.network.name for stage in pipeline.stages if stage.wide}
    width = pipeline.native.bytes_per_weight
    return a.ModelRow(
        name=pipeline.name,
        family=pipeline.family,
        parameters=pipeline.parameters,
        active_parameters=pipeline.parameters,
        layers=sum(layer.repeat for n in pipeline.networks for layer in n.layers if layer.parameters),
        max_context=0,
        weight_bytes=sum(n.parameters * (4.0 if n.name in wide else width) for n in pipeline.networks),
        kv_bytes_per_token=0.0,
        origin=_origin(pipeline),
        oracle=_oracle(pipeline),
    )


def list_all(word: str | None = None, family: str | None = None, local: bool = False) -> tuple[a.ModelList, Notes]:
    """Bundled models, or those other programs keep on this machine: whose name has the word, of that family.

    Notes tell which models on disk cannot be read, and why.
    """
    if local:
        models, notes = _local(word)
    else:
        models, notes = [_bundled(name) for name in (*zoo.names(), *zoo.pipelines()) if _matches(name, word)], ()
        if not models and word:
            raise UnknownNameError("model", word, [*zoo.names(), *zoo.pipelines()], listing="roofplan models list")
    families = sorted({model.family for model in models})
    if family is not None:
        models = [model for model in models if _same_family(model.family, family)]
        if not models and families:
            raise UnknownNameError("family", family, families, listing="roofplan models list")
    return a.ModelList(tuple(row(model) for model in models)), notes


def row(model: Model | Pipeline) -> a.ModelRow:
    """A line of a list of models."""
    return pipeline_row(model) if isinstance(model, Pipeline) else model_row(model)


def _bundled(name: str) -> Model | Pipeline:
    return zoo.bundled_pipeline(name) if name in zoo.pipelines() else zoo.bundled(name)


def _matches(name: str, word: str | None) -> bool:
    return word is None or word.lower() in name.lower()


def _same_family(known: str, asked: str) -> bool:
    return known.lower().replace("-", "_") == asked.lower().replace("-", "_")


def _local(word: str | None) -> tuple[list[Model | Pipeline], Notes]:
    """The models on disk by the names they can be asked for; one that cannot be read becomes a note."""
    from ..workload.local import listed, readable

    models: list[Model | Pipeline] = []
    notes = []
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


def sheet(model: Model | Pipeline) -> a.ModelSheet:
    """A model tensor by tensor; of networks layer by layer, a convolution's inputs and taps as columns."""
    return _layers(model) if isinstance(model, Pipeline) else _tensors(model)


def _layers(pipeline: Pipeline) -> a.ModelSheet:
    merged: dict[tuple[str, str, int, int, bool], tuple[int, int, float]] = {}
    for stage in pipeline.stages:
        width = 4.0 if stage.wide else pipeline.native.bytes_per_weight
        for layer in stage.network.layers:
            if not layer.parameters:
                continue
            key = (stage.network.name, layer.name, *_shape(layer))
            count, size, size_bytes = merged.get(key, (0, 0, 0.0))
            size_bytes += layer.parameters * width
            merged[key] = count + layer.repeat, size + layer.parameters, size_bytes
    rows = (
        a.TensorRow(name, network, count, 1, outputs, inputs, bias, size, size_bytes)
        for (network, name, outputs, inputs, bias), (count, size, size_bytes) in merged.items()
    )
    return a.ModelSheet(pipeline_row(pipeline), tuple(rows))


def _shape(layer: Layer) -> tuple[int, int, bool]:
    """Outputs, inputs of one output, and whether there is a bias."""
    match layer:
        case Linear():
            return layer.n, layer.k, layer.bias
        case Conv():
            return layer.out_channels, layer.in_channels // layer.groups * layer.taps, layer.bias
    return 1, layer.parameters // layer.repeat, False


def _tensors(model: Model) -> a.ModelSheet:
    rows = []
    for t in model.tensors:
        layers = model.instances(t)
        name = "model" if t.block is None else model.blocks[t.block].name
        size = model.layer_bytes(t, model.native) * layers
        rows.append(
            a.TensorRow(t.role.value, name, layers, t.copies, t.rows, t.cols, t.bias, t.elements * layers, size)
        )
    return a.ModelSheet(model_row(model), tuple(rows))
