"""Operators as column tables: what is computed, before anything is known about how long it takes.

One class per operator class. Every numeric column has a leading row axis and behind it the axes of the scenario's
grid, kept at size 1 where a number does not depend on them: nothing is broadcast before it is costed. Identical
layers are one row; `count` (rows, stages) says how often a row runs on each pipeline stage.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np
import numpy.typing as npt

from ..dtypes import DType
from .estimate import Array

Column = npt.ArrayLike
NO_WINDOW = 2.0**50  # attention that sees every key before it


class KernelName(StrEnum):
    """The kernel a calibration belongs to. Kernel identity, not only the dtype, decides the speed."""

    GEMM = "gemm"
    GEMM_BLOCK_SCALED = "gemm-block-scaled"
    GEMM_WEIGHT_ONLY = "gemm-weight-only"
    ATTENTION_PREFILL = "attention-prefill"
    ATTENTION_DECODE = "attention-decode"
    MLA_PREFILL = "mla-prefill"
    MLA_DECODE = "mla-decode"
    EXPERTS = "experts"
    EXPERTS_BLOCK_SCALED = "experts-block-scaled"
    EXPERTS_WEIGHT_ONLY = "experts-weight-only"
    ELEMENTWISE = "elementwise"
    CONVOLUTION = "convolution"
    SCAN = "scan"
    ALL_REDUCE = "all-reduce"
    ALL_GATHER = "all-gather"
    REDUCE_SCATTER = "reduce-scatter"
    ALL_TO_ALL = "all-to-all"
    SEND = "send"
    HOST_COPY = "host-copy"


MULTIPLIES_AS_STORED = (
    KernelName.GEMM,
    KernelName.GEMM_BLOCK_SCALED,
    KernelName.EXPERTS,
    KernelName.EXPERTS_BLOCK_SCALED,
    KernelName.CONVOLUTION,
)


class Kernel(NamedTuple):
    """Name and number format: with device, engine and version the key of a calibration."""

    name: KernelName
    dtype: DType

    @property
    def arithmetic(self) -> DType:
        """The format whose peak rate bounds it: weight-only kernels and attention multiply in 16 bits, or in fp32."""
        return self.dtype if self.name in MULTIPLIES_AS_STORED or self.dtype is DType.FP32 else DType.BF16

    def __str__(self) -> str:
        return f"{self.name}/{self.dtype}"


@dataclass(frozen=True, eq=False)
class Table:
    """Columns every operator class has: what a row is called, the layer class it serves and how often it runs."""

    label: tuple[str, ...]
    layer: tuple[str, ...]
    count: Array
    kernel: Kernel

    def take(self, rows: npt.NDArray[np.int64]) -> Self:
        """The table of these rows only."""
        columns = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "kernel"}
        picked: dict[str, Any] = {
            name: tuple(value[i] for i in rows) if isinstance(value, tuple) else value[rows]
            for name, value in columns.items()
        }
        return dataclasses.replace(self, **picked)

    def repeated(self, times: float) -> Self:
        """The table of as many repetitions of the same work."""
        return dataclasses.replace(self, count=self.count * times)


@dataclass(frozen=True, eq=False)
class Gemm(Table):
    """(m, k) x (k, n). `weight_bytes` is what the weight matrix occupies, scales included."""

    m: Array
    n: Array
    k: Array
    weight_bytes: Array
    activation_bytes: Array
    output_bytes: Array


@dataclass(frozen=True, eq=False)
class Attention(Table):
    """Flash attention: `sequences` of `new_tokens` queries against `kv_tokens` keys, causal, `window` limits them."""

    sequences: Array
    new_tokens: Array
    kv_tokens: Array
    heads: Array
    kv_heads: Array
    head_dim: Array
    window: Array
    kv_bytes: Array
    activation_bytes: Array


@dataclass(frozen=True, eq=False)
class Bidirectional(Attention):
    """The same where every query sees every one of the `kv_tokens` keys: encoders, denoisers, attention across."""


@dataclass(frozen=True, eq=False)
class LatentAttention(Table):
    """Multi-head latent attention: one latent of `latent` + `rope` elements a token is all that is cached.

    Prefill multiplies expanded heads (`nope` + `rope` wide queries and keys, `value` wide values); decode lets every
    head read the latent itself.
    """

    sequences: Array
    new_tokens: Array
    kv_tokens: Array
    heads: Array
    latent: Array
    rope: Array
    nope: Array
    value: Array
    kv_bytes: Array
    activation_bytes: Array


@dataclass(frozen=True, eq=False)
class Experts(Table):
    """A fused mixture-of-experts feed-forward on one of `ranks` expert-parallel ranks; each token passes `top_k`.

    `tokens` are those of all ranks together; `experts` those of the layer, of which a rank holds `experts / ranks`.
    `routing_alpha` is the exponent of the power law over experts, 0 for uniform
    routing, -1 for loads that are all alike.
    """

    tokens: Array
    hidden: Array
    intermediate: Array
    experts: Array
    top_k: Array
    ranks: Array
    routing_alpha: Array
    expert_bytes: Array
    activation_bytes: Array


@dataclass(frozen=True, eq=False)
class Elementwise(Table):
    """Norms, rotary embedding, activations, residual adds, look-ups: bytes in and out, `launches` kernels."""

    read_bytes: Array
    write_bytes: Array
    launches: Array


@dataclass(frozen=True, eq=False)
class Convolution(Table):
    """A 2-D convolution with groups: output (images, out_channels, height, width)."""

    images: Array
    in_channels: Array
    out_channels: Array
    height: Array
    width: Array
    kernel_height: Array
    kernel_width: Array
    groups: Array
    element_bytes: Array


@dataclass(frozen=True, eq=False)
class Collective(Table):
    """Communication of `message_bytes` (a rank's buffer) among `ranks` devices of one node."""

    message_bytes: Array
    ranks: Array


@dataclass(frozen=True, eq=False)
class Copy(Table):
    """A copy of `copy_bytes` between a device and its host, one direction."""

    copy_bytes: Array


TableT = TypeVar("TableT", bound=Table)
TEXT_COLUMNS = ("label", "layer")


def one_row(cls: type[TableT], label: str, layer: str, count: Column, kernel: Kernel, **columns: Column) -> TableT:
    """A table of one row; every column gets the leading row axis."""
    rows: dict[str, Any] = {name: np.asarray(value, dtype=float)[None] for name, value in columns.items()}
    return cls((label,), (layer,), np.atleast_1d(np.asarray(count, dtype=float))[None], kernel, **rows)


def concatenate(tables: list[TableT]) -> TableT:
    """Rows of several tables of one class and kernel as one table; columns are broadcast only where rows really differ.

    All numeric columns but `count` get the same number of axes, so that rows never line up with grid axes.
    """
    first, columns = tables[0], dict[str, Any]()
    numeric = [f.name for f in dataclasses.fields(first) if f.name not in (*TEXT_COLUMNS, "kernel", "count")]
    ndim = max(getattr(table, name).ndim for table in tables for name in numeric)
    for name in numeric:
        values = [_with_axes(getattr(table, name), ndim) for table in tables]
        shapes = {v.shape[1:] for v in values}
        if len(shapes) > 1:
            shape = np.broadcast_shapes(*shapes)
            values = [np.broadcast_to(v, (v.shape[0], *shape)) for v in values]
        columns[name] = np.concatenate(values) if len(values) > 1 else values[0]
    texts = {name: tuple(t for table in tables for t in getattr(table, name)) for name in TEXT_COLUMNS}
    return type(first)(**texts, kernel=first.kernel, count=np.concatenate([t.count for t in tables]), **columns)


def _with_axes(column: Array, ndim: int) -> Array:
    """The column with its row axis first and size-1 axes inserted behind it up to `ndim`."""
    if column.ndim == ndim:
        return column
    return column.reshape(column.shape[0], *([1] * (ndim - column.ndim)), *column.shape[1:])


@dataclass(frozen=True, eq=False)
class Operators:
    """All operators of one step: one table per operator class and kernel, in order of first use."""

    tables: tuple[Table, ...]

    @staticmethod
    def of(rows: Iterable[Table]) -> Operators:
        """Collect one-row tables into one table per class and kernel."""
        groups: dict[tuple[type[Table], Kernel], list[Table]] = {}
        for row in rows:
            groups.setdefault((type(row), row.kernel), []).append(row)
        return Operators(tuple(concatenate(group) for group in groups.values()))
