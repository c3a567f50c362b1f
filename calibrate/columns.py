"""The columns of a record file: what each means, which kernel needs it, and what a blank one stands for.

The shape columns of a kernel are the numeric columns of its operator table (`simulator/operators.py`), under the same
names but one: the `value` of latent attention is `value_dim` here, because `value` is the measurement.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from enum import StrEnum
from functools import cache
from types import MappingProxyType
from typing import NamedTuple

from ..simulator.operators import (
    Attention,
    Collective,
    Convolution,
    Copy,
    Elementwise,
    Experts,
    Gemm,
    Kernel,
    KernelName,
    LatentAttention,
    Table,
)


class Quantity(StrEnum):
    """What is measured of a whole system rather than of one kernel."""

    DECODE_STEP = "decode-step"
    PREFILL = "prefill"
    KV_TOKENS = "kv-tokens"


QUANTITIES = frozenset(Quantity)


class Column(NamedTuple):
    """One column of a record file."""

    name: str
    unit: str
    meaning: str
    numeric: bool = True


REQUIRED = ("device", "kernel", "dtype", "value", "unit")
TEXTS = ("model", "weights", "kv", "engine", "version", "cache", "source", "date", "note")
SPREAD = ("p10", "p90")
SYSTEM = ("tp", "pp", "ep", "batch", "context", "prompt", "output")

COLUMNS: tuple[Column, ...] = (
    Column("device", "text", "hardware key (`roofplan hw list`), such as h200", False),
    Column("kernel", "text", f"kernel ({', '.join(KernelName)}) or quantity ({', '.join(Quantity)})", False),
    Column("dtype", "text", "number format of the kernel; of a whole system that of its activations", False),
    Column("value", "see unit", "the measurement: a time, a KV cache capacity, or the speed of one user"),
    Column("unit", "text", "s, ms, us or ns; tokens for kv-tokens; tokens/s (each user's) for decode-step", False),
    Column("p10", "as value", "10th percentile of the measurement"),
    Column("p90", "as value", "90th percentile of the measurement"),
    Column("engine", "text", "software that ran it, such as vllm, llama.cpp or cublas", False),
    Column("version", "text", "version of that software", False),
    Column(
        "cache", "text", "cold: other work swept it before each run; reused: one operator in a loop; blank: cold", False
    ),
    Column("source", "text", "where the number comes from: a file, a log, a page", False),
    Column("date", "text", "when it was measured, YYYY-MM-DD", False),
    Column("note", "text", "anything a reader must know", False),
    Column("model", "text", "model of a whole-system row: bundled name, repository or file name", False),
    Column("weights", "text", "weight format: bf16, fp8, int4, q4_k_m, ...", False),
    Column("kv", "text", "KV cache format", False),
    Column("tp", "1", "tensor-parallel degree; blank: 1"),
    Column("pp", "1", "pipeline stages; blank: 1"),
    Column("ep", "1", "expert-parallel degree; blank: 1"),
    Column("batch", "1", "users served at once"),
    Column(
        "context", "token", "KV cache of each user: decode its mean, prefill at its end, kv-tokens the longest allowed"
    ),
    Column("prompt", "token", "tokens of the prompt, without what was cached before"),
    Column("output", "token", "tokens each user was given"),
    Column("m", "1", "rows of the product (tokens)"),
    Column("n", "1", "columns of the product"),
    Column("k", "1", "length of the reduction"),
    Column("sequences", "1", "sequences in the batch"),
    Column("new_tokens", "token", "queries of each sequence; 1 in decode"),
    Column("kv_tokens", "token", "keys of each sequence, the new ones included"),
    Column("heads", "1", "query heads on this device"),
    Column("kv_heads", "1", "key and value heads on this device"),
    Column("head_dim", "1", "elements of a head"),
    Column("window", "token", "sliding window; blank: none"),
    Column("latent", "1", "elements of the cached latent of latent attention"),
    Column("rope", "1", "elements of its rotary part"),
    Column("nope", "1", "elements of a head's part without rotary embedding"),
    Column("value_dim", "1", "elements of a head's values in latent attention"),
    Column("tokens", "token", "tokens of all expert-parallel ranks together"),
    Column("hidden", "1", "width of the layer"),
    Column("intermediate", "1", "width of an expert"),
    Column("experts", "1", "experts of the layer"),
    Column("top_k", "1", "experts each token passes"),
    Column("ranks", "1", "devices taking part; blank for experts: 1"),
    Column("routing_alpha", "1", "exponent of the power law over experts; blank: 0, uniform; -1: all alike"),
    Column("images", "1", "images of a convolution"),
    Column("in_channels", "1", "input channels"),
    Column("out_channels", "1", "output channels"),
    Column("height", "1", "rows of the output"),
    Column("width", "1", "columns of the output"),
    Column("kernel_height", "1", "rows of the filter"),
    Column("kernel_width", "1", "columns of the filter"),
    Column("groups", "1", "groups of channels; blank: 1"),
    Column("message_bytes", "B", "a rank's buffer; of an all-gather the gathered one"),
    Column("copy_bytes", "B", "bytes copied in one direction"),
    Column("read_bytes", "B", "bytes read"),
    Column("write_bytes", "B", "bytes written"),
    Column("launches", "1", "kernels launched; blank: 1"),
    Column("weight_bytes", "B", "bytes of the weight matrix, scales included; blank: n k elements of the dtype"),
    Column("expert_bytes", "B", "bytes of one expert; blank: 3 hidden intermediate elements of the dtype"),
    Column("activation_bytes", "B", "bytes of one activation; blank: as the kernel multiplies (attention, experts: 2)"),
    Column("output_bytes", "B", "bytes of one output; blank: 2, or 4 and more where the kernel multiplies so"),
    Column("kv_bytes", "B", "bytes of one cached element; blank: the dtype's"),
    Column("element_bytes", "B", "bytes of one element; blank: the dtype's"),
)
BY_NAME: Mapping[str, Column] = MappingProxyType({c.name: c for c in COLUMNS})
ORDER: Mapping[str, int] = MappingProxyType({c.name: i for i, c in enumerate(COLUMNS)})

MAY_BE_NEGATIVE = frozenset({"routing_alpha"})
MAY_BE_ZERO = frozenset({"read_bytes", "write_bytes", "rope", "nope", "prompt", "context"})
LEAST, MOST = 1e-12, 1e18  # of any number but zero
LIMITS: Mapping[str, float] = MappingProxyType({"experts": 4096.0, "top_k": 4096.0, "routing_alpha": 10.0})
FRACTIONS = frozenset(
    {"routing_alpha", "weight_bytes", "expert_bytes", "activation_bytes", "output_bytes", "kv_bytes", "element_bytes"}
)

_CLASSES: Mapping[KernelName, type[Table]] = MappingProxyType(
    {
        KernelName.GEMM: Gemm,
        KernelName.GEMM_BLOCK_SCALED: Gemm,
        KernelName.GEMM_WEIGHT_ONLY: Gemm,
        KernelName.ATTENTION_PREFILL: Attention,
        KernelName.ATTENTION_DECODE: Attention,
        KernelName.MLA_PREFILL: LatentAttention,
        KernelName.MLA_DECODE: LatentAttention,
        KernelName.EXPERTS: Experts,
        KernelName.EXPERTS_BLOCK_SCALED: Experts,
        KernelName.EXPERTS_WEIGHT_ONLY: Experts,
        KernelName.ELEMENTWISE: Elementwise,
        KernelName.CONVOLUTION: Convolution,
        KernelName.SCAN: Elementwise,
        KernelName.ALL_REDUCE: Collective,
        KernelName.ALL_GATHER: Collective,
        KernelName.REDUCE_SCATTER: Collective,
        KernelName.ALL_TO_ALL: Collective,
        KernelName.SEND: Collective,
        KernelName.HOST_COPY: Copy,
    }
)

Shape = Mapping[str, float]
Default = Callable[[Shape, Kernel], float]
NO_WINDOW = 2.0**50  # that of `simulator/lowering/attention.py`, which would load the whole lowering; a test holds it

# What a blank column stands for, from the row's other columns and the kernel; columns not listed must be given.
DEFAULTS: Mapping[tuple[type[Table], str], Default] = MappingProxyType(
    {
        (Gemm, "weight_bytes"): lambda shape, kernel: shape["n"] * shape["k"] * kernel.dtype.bytes,
        (Gemm, "activation_bytes"): lambda _, kernel: kernel.arithmetic.bytes,
        (Gemm, "output_bytes"): lambda _, kernel: max(2.0, kernel.arithmetic.bytes),
        (Attention, "window"): lambda *_: NO_WINDOW,
        (Attention, "kv_bytes"): lambda _, kernel: kernel.dtype.bytes,
        (Attention, "activation_bytes"): lambda *_: 2.0,
        (LatentAttention, "kv_bytes"): lambda _, kernel: kernel.dtype.bytes,
        (LatentAttention, "activation_bytes"): lambda *_: 2.0,
        (Experts, "ranks"): lambda *_: 1.0,
        (Experts, "routing_alpha"): lambda *_: 0.0,
        (Experts, "expert_bytes"): lambda s, kernel: 3.0 * s["hidden"] * s["intermediate"] * kernel.dtype.bytes,
        (Experts, "activation_bytes"): lambda *_: 2.0,
        (Elementwise, "launches"): lambda *_: 1.0,
        (Convolution, "groups"): lambda *_: 1.0,
        (Convolution, "element_bytes"): lambda _, kernel: kernel.dtype.bytes,
    }
)

SYSTEM_NEEDS: Mapping[Quantity, tuple[str, ...]] = MappingProxyType(
    {
        Quantity.DECODE_STEP: ("model", "batch", "context"),
        Quantity.PREFILL: ("model", "prompt"),
        Quantity.KV_TOKENS: ("model",),
    }
)


def table_class(name: KernelName) -> type[Table]:
    """The operator table rows of a kernel belong to."""
    return _CLASSES[name]


@cache
def shape_columns(name: KernelName) -> tuple[tuple[str, str], ...]:
    """Column of a record file and field of the operator table, for every numeric column of the kernel's table."""
    own = {f.name for f in dataclasses.fields(Table)}
    fields = [f.name for f in dataclasses.fields(_CLASSES[name]) if f.name not in own]
    return tuple(("value_dim" if field == "value" else field, field) for field in fields)


@cache
def allowed(kernel: str) -> frozenset[str]:
    """The shape columns a row of this kernel or quantity may fill."""
    if kernel in QUANTITIES:
        return frozenset(SYSTEM)
    return frozenset(column for column, _ in shape_columns(KernelName(kernel)))


@cache
def needed(kernel: str) -> tuple[str, ...]:
    """The columns a row of this kernel or quantity must fill besides those of every row."""
    if kernel in QUANTITIES:
        return SYSTEM_NEEDS[Quantity(kernel)]
    cls = _CLASSES[KernelName(kernel)]
    return tuple(column for column, field in shape_columns(KernelName(kernel)) if (cls, field) not in DEFAULTS)


def filled(shape: Shape, kernel: Kernel) -> dict[str, float]:
    """Every field of the operator table of one kernel row, blanks replaced by what they stand for."""
    cls = _CLASSES[kernel.name]
    return {
        field: shape[column] if column in shape else DEFAULTS[cls, field](shape, kernel)
        for column, field in shape_columns(kernel.name)
    }
