"""Formats that differ between layers of one kind: GGUF file types, and checkpoints with exceptions by module name."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import translate
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

from .formats import WeightFormat
from .gguf_types import F32_BYTES, FILE_TYPES, tensor_types
from .layers import Role, Tensor
from .tensors import matrix_bytes

if TYPE_CHECKING:
    from .model import Model


class Mixed(NamedTuple):
    """A tensor over the layers of its block: average bytes of a layer's copies, and the format of most of them."""

    bytes: float
    format: WeightFormat


def mixture(model: Model, format_: WeightFormat) -> Mapping[Tensor, Mixed]:
    """Every tensor of the model in a format that is not one width throughout."""
    if format_.whole and format_.name in FILE_TYPES:
        return _file_type(model, format_)
    return _by_module(model, format_)


def _file_type(model: Model, format_: WeightFormat) -> Mapping[Tensor, Mixed]:
    """A GGUF file of that type."""
    total: dict[Tensor, float] = defaultdict(float)
    for tensor, type_ in tensor_types(model, format_.name):
        width = F32_BYTES if type_ is None else type_.bits_per_weight / 8
        biases = tensor.copies * tensor.rows if tensor.bias else 0
        total[tensor] += tensor.copies * tensor.rows * tensor.cols * width + biases * F32_BYTES
    alike = Counter(model.tensors)
    return {t: Mixed(size / alike[t] / model.instances(t), format_) for t, size in total.items()}


def _by_module(model: Model, format_: WeightFormat) -> Mapping[Tensor, Mixed]:
    """A checkpoint whose exceptions are looked up by the module names its layers have in `transformers`."""
    rules, wide = Rules(format_.exceptions), model.unquantised
    result = {}
    for t in model.tensors:
        layers: list[int | None] = [None]
        if t.block is not None:
            layers = [i for i, block in enumerate(model.pattern) if block == t.block]
        usual = format_ if t.scope is not None or (format_.whole and t.role in OUTER) else wide
        chosen = [usual] * len(layers)
        if t.scope is not None or t.role in OUTER:
            chosen = [rules.format_of(module_names(t, i), usual) or wide for i in layers]
        size = sum(matrix_bytes(t, f, wide) for f in chosen) / len(layers)
        result[t] = Mixed(size, Counter(chosen).most_common(1)[0][0])
    return result


class Rules:
    """The exceptions of a format, made fast to look up: literal names, wildcards and regular expressions.

    A literal name or a wildcard also takes in everything below it; a literal may leave out what stands above it.
    """

    def __init__(self, exceptions: Iterable[tuple[str, WeightFormat | None]]) -> None:
        self.groups: list[tuple[set[str], list[re.Pattern[str]], WeightFormat | None]] = []
        for format_, rules in groupby(exceptions, key=lambda rule: rule[1]):
            patterns = [_common(pattern) for pattern, _ in rules]
            literals = {p for p in patterns if "*" not in p and not p.startswith("re:")}
            wild = [translate(p) for q in patterns if "*" in q and not q.startswith("re:") for p in (q, f"{q}.*")]
            compiled = [re.compile(p[3:]) for p in patterns if p.startswith("re:")]
            if wild:
                compiled.append(re.compile("|".join(wild)))
            self.groups.append((literals, compiled, format_))

    def format_of(self, names: Sequence[str], usual: WeightFormat) -> WeightFormat | None:
        """The format of a module that goes by any of these names (None: left wide)."""
        runs = {run for name in names for run in _runs(name)}
        for literals, compiled, format_ in self.groups:
            if not runs.isdisjoint(literals) or any(p.match(n) for p in compiled for n in names):
                return format_
        return usual


def _common(pattern: str) -> str:
    """The pattern without what models of several parts put before the names of their text model."""
    for prefix in ("language_model.model.", "model.language_model."):
        pattern = pattern.replace(prefix, "model.")
    return pattern


def _runs(name: str) -> Iterator[str]:
    """All runs of whole components of a dotted name."""
    parts = name.split(".")
    for start in range(len(parts)):
        for end in range(start + 1, len(parts) + 1):
            yield ".".join(parts[start:end])


# What a matrix is called below its layer in `transformers`; several where families differ or engines fuse.
OUTER = {Role.EMBED: ("model.embed_tokens",), Role.LM_HEAD: ("lm_head",)}
MODULES: Mapping[Role, tuple[str, ...]] = {
    Role.Q: ("self_attn.q_proj", "self_attn.qkv_proj"),
    Role.K: ("self_attn.k_proj", "self_attn.qkv_proj"),
    Role.V: ("self_attn.v_proj", "self_attn.qkv_proj"),
    Role.O: ("self_attn.o_proj",),
    Role.Q_A: ("self_attn.q_a_proj", "self_attn.fused_qkv_a_proj"),
    Role.Q_B: ("self_attn.q_b_proj",),
    Role.KV_A: ("self_attn.kv_a_proj_with_mqa", "self_attn.fused_qkv_a_proj"),
    Role.KV_B: ("self_attn.kv_b_proj",),
    Role.CROSS_Q: ("cross_attn.q_proj",),
    Role.CROSS_K: ("cross_attn.k_proj",),
    Role.CROSS_V: ("cross_attn.v_proj",),
    Role.CROSS_O: ("cross_attn.o_proj",),
    Role.MIX_IN: ("linear_attn.in_proj_qkvz", "linear_attn.in_proj_qkv", "mamba.in_proj", "mixer.in_proj"),
    Role.MIX_NARROW: ("mamba.x_proj", "mixer.x_proj", "mamba.dt_proj"),
    Role.MIX_OUT: ("linear_attn.out_proj", "mamba.out_proj", "mixer.out_proj"),
    Role.GATE: ("mlp.gate_proj", "mlp.gate_up_proj"),
    Role.UP: ("mlp.up_proj", "mlp.gate_up_proj"),
    Role.DOWN: ("mlp.down_proj",),
    Role.SHARED_GATE: ("mlp.shared_experts.gate_proj", "mlp.shared_expert.gate_proj", "shared_experts.gate_proj"),
    Role.SHARED_UP: ("mlp.shared_experts.up_proj", "mlp.shared_expert.up_proj", "shared_experts.up_proj"),
    Role.SHARED_DOWN: ("mlp.shared_experts.down_proj", "mlp.shared_expert.down_proj", "shared_experts.down_proj"),
}
ROUTED: Mapping[Role, tuple[str, ...]] = {
    Role.GATE: ("mlp.experts.0.gate_proj", "block_sparse_moe.experts.0.w1", "mlp.experts.gate_up_proj"),
    Role.UP: ("mlp.experts.0.up_proj", "block_sparse_moe.experts.0.w3", "mlp.experts.gate_up_proj"),
    Role.DOWN: ("mlp.experts.0.down_proj", "block_sparse_moe.experts.0.w2", "mlp.experts.down_proj"),
}


def module_names(tensor: Tensor, layer: int | None) -> tuple[str, ...]:
    """The names a matrix goes by in a layer of its block (None: outside the layers)."""
    if layer is None:
        return OUTER.get(tensor.role, ())
    below = (ROUTED if tensor.routed else MODULES).get(tensor.role, ())
    return tuple(f"model.layers.{layer}.{name}" for name in below)
