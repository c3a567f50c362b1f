"""Lower a network of one pass: its layers as the operators that decoders are made of, equal ones in one row.

Nothing is merged or fused: a product is a kernel, a norm another. What a compiler fuses would run faster, what eager
execution waits for the host is not in it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from ...dtypes import DType
from ...hwspecs.device import Device
from ..estimate import Array
from ..operators import (
    NO_WINDOW,
    Bidirectional,
    Convolution,
    Elementwise,
    Gemm,
    Kernel,
    KernelName,
    Operators,
    Table,
    TableT,
)
from ..workload.formats import FORMATS, WeightFormat
from ..workload.network import Conv, Layer, Linear, Mix, Network, Pointwise
from .linear import NARROW_INPUT, linear_kernel
from .program import Shard

LayerT = TypeVar("LayerT", Linear, Conv, Mix, Pointwise)


class Setting(NamedTuple):
    """How a network runs: device, format of its narrowed weights, format of everything else, its name in tables."""

    device: Device
    weights: WeightFormat
    activation: DType
    network: str = ""

    def for_wide(self) -> Setting:
        """The same in fp32 throughout."""
        return self._replace(weights=FORMATS["fp32"], activation=DType.FP32)

    @property
    def outside(self) -> WeightFormat:
        """Format of weights that are not narrowed."""
        return FORMATS[self.activation.value]

    def of(self, layer: Linear) -> WeightFormat:
        """Format of a product's weights."""
        return self.weights if layer.narrowed and self.weights.bits_per_weight < 16 else self.outside


def network_operators(network: Network, setting: Setting, inputs: npt.ArrayLike, passes: float = 1.0) -> Operators:
    """Operators of `passes` passes of a network over `inputs` inputs each; inputs may be an array."""
    batch, setting = np.asarray(inputs, float), setting._replace(network=network.name)
    running = network.running
    products = _merged(running, Linear)
    by_kernel: dict[tuple[Kernel, WeightFormat], list[tuple[Linear, float]]] = {}
    for layer, times in products:
        stored = setting.of(layer)
        kernel = linear_kernel(stored, setting.device, setting.activation)
        by_kernel.setdefault((kernel, stored), []).append((layer, times))
    tables: list[Table] = [_gemm(rows, kernel, stored, setting, batch) for (kernel, stored), rows in by_kernel.items()]
    if convolutions := _merged(running, Conv):
        tables.append(_convolution(convolutions, setting, batch))
    if mixed := _merged(running, Mix):
        tables.append(_attention(mixed, setting, batch))
    if passed_over := _merged(running, Pointwise):
        tables.append(_elementwise(passed_over, setting, batch))
    return Operators(tuple(t.repeated(passes) for t in tables))


def source_operators(shard: Shard) -> list[Table]:
    """The encoder over the sources of the sequences whose first tokens a step takes in, whole on the first stage."""
    scenario, model = shard.scenario, shard.scenario.model
    sources = sum((part.first_sequences for part in shard.step.parts), start=np.zeros(()))
    if not model.reads_source or not np.any(sources > 0):
        return []
    setting = Setting(scenario.fleet.device, model.unquantised, shard.activation)
    tables = (t for tower in model.towers for t in network_operators(tower, setting, sources).tables)
    return [replace(t, count=t.count * shard.on_stage(0)) for t in tables]


def _merged(layers: Iterable[Layer], kind: type[LayerT]) -> list[tuple[LayerT, float]]:
    """Layers of a kind that run, each distinct one once with how often."""
    times: Counter[LayerT] = Counter()
    for layer in layers:
        if isinstance(layer, kind) and layer.output_elements > 0:
            times[layer._replace(repeat=1, held=0.0)] += layer.repeat
    return list(times.items())


class _Rows(NamedTuple):
    """Columns of a table over equal layers: numbers of a layer, and the same times the batch."""

    batch: Array

    def each(self, values: Iterable[float]) -> Array:
        """One number a row."""
        column = np.asarray(list(values), float)
        return column.reshape(-1, *([1] * self.batch.ndim))

    def batched(self, values: Iterable[float]) -> Array:
        """One number a row, for the whole batch."""
        return np.asarray(self.each(values) * self.batch)


def _table(
    cls: type[TableT], rows: list[tuple[LayerT, float]], setting: Setting, kernel: Kernel, **columns: Array
) -> TableT:
    """A table of these rows on one device."""
    labels = tuple(layer.name for layer, _ in rows)
    count = np.asarray([times for _, times in rows], float)[:, None]
    return cls(labels, (setting.network,) * len(rows), count, kernel, **columns)


def _gemm(
    rows: list[tuple[Linear, float]], kernel: Kernel, stored: WeightFormat, setting: Setting, batch: Array
) -> Gemm:
    layers, make = [layer for layer, _ in rows], _Rows(batch)
    narrow = kernel.name is not KernelName.GEMM_WEIGHT_ONLY and kernel.dtype in NARROW_INPUT
    wide = setting.activation.bytes
    weights = (x.k * x.n * stored.bytes_per_weight + (x.n * wide if x.bias else 0.0) for x in layers)
    return _table(
        Gemm,
        rows,
        setting,
        kernel,
        m=make.batched(x.tokens for x in layers),
        n=make.each(x.n for x in layers),
        k=make.each(x.k for x in layers),
        weight_bytes=make.each(weights),
        activation_bytes=make.each(kernel.dtype.bytes if narrow else wide for _ in layers),
        output_bytes=make.each(wide for _ in layers),
    )


def _convolution(rows: list[tuple[Conv, float]], setting: Setting, batch: Array) -> Convolution:
    """Frames count as images; a kernel over several frames as one that is so much taller: the same work and traffic.

    In fp32 convolutions run as TF32 where the device can (PyTorch's default, unlike that of its matrix products).
    """
    layers, make = [layer for layer, _ in rows], _Rows(batch)
    dtype = setting.activation
    if dtype is DType.FP32 and setting.device.computes(DType.TF32):
        dtype = DType.TF32
    return _table(
        Convolution,
        rows,
        setting,
        Kernel(KernelName.CONVOLUTION, dtype),
        images=make.batched(x.depth for x in layers),
        in_channels=make.each(x.in_channels for x in layers),
        out_channels=make.each(x.out_channels for x in layers),
        height=make.each(x.height for x in layers),
        width=make.each(x.width for x in layers),
        kernel_height=make.each(x.side * x.span for x in layers),
        kernel_width=make.each(x.side if x.side_width is None else x.side_width for x in layers),
        groups=make.each(x.groups for x in layers),
        element_bytes=make.each(setting.activation.bytes for _ in layers),
    )


def _attention(rows: list[tuple[Mix, float]], setting: Setting, batch: Array) -> Bidirectional:
    layers, make = [layer for layer, _ in rows], _Rows(batch)
    width = make.each(setting.activation.bytes for _ in layers)
    heads = make.each(x.heads for x in layers)
    return _table(
        Bidirectional,
        rows,
        setting,
        Kernel(KernelName.ATTENTION_PREFILL, setting.activation),
        sequences=make.batched(1.0 for _ in layers),
        new_tokens=make.each(x.queries for x in layers),
        kv_tokens=make.each(x.keys for x in layers),
        heads=heads,
        kv_heads=heads,
        head_dim=make.each(x.head_dim for x in layers),
        window=make.each(NO_WINDOW for _ in layers),
        kv_bytes=width,
        activation_bytes=width,
    )


def _elementwise(rows: list[tuple[Pointwise, float]], setting: Setting, batch: Array) -> Elementwise:
    layers, make, width = [layer for layer, _ in rows], _Rows(batch), setting.activation.bytes
    return _table(
        Elementwise,
        rows,
        setting,
        Kernel(KernelName.ELEMENTWISE, setting.activation),
        read_bytes=make.batched(x.inputs * x.elements * width for x in layers),
        write_bytes=make.batched(x.elements * width for x in layers),
        launches=make.each(1.0 for _ in layers),
    )
