"""Models as answers: the list and the tensor table."""

from __future__ import annotations

from .. import catalogue as a
from ..workload import zoo
from ..workload.model import Model


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


def list_all() -> a.ModelList:
    """Every bundled model."""
    return a.ModelList(tuple(model_row(zoo.bundled(name)) for name in zoo.names()))


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
