"""Models as answers: the list and the tensor table."""

from __future__ import annotations

from .. import catalogue as a
from ..workload import zoo
from ..workload.model import Model
from ..workload.network import Conv, Layer, Linear, Pipeline


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


def list_all() -> a.ModelList:
    """Every bundled model: those that write token by token, then those of one pass."""
    passes = (pipeline_row(zoo.bundled_pipeline(name)) for name in zoo.pipelines())
    return a.ModelList((*(model_row(zoo.bundled(name)) for name in zoo.names()), *passes))


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
