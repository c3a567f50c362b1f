"""Read a GGUF header: metadata, and the exact bytes of every tensor. Tensor data is never touched.

Layout after the GGUF specification (ggml-org/ggml, docs/gguf.md): magic, version, counts, key-value pairs,
tensor descriptions, padding to `general.alignment`, tensor data. Versions 2 and 3, little-endian.
"""

from __future__ import annotations

import dataclasses
import mmap
import re
import struct
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ...dtypes import DType
from ...errors import InputError
from .formats import FORMATS, GGML_TYPES, GgmlType, WeightFormat
from .model import Attention, Block, Experts, Mlp, Model, Role, blocks_of

MAGIC = b"GGUF"
MAX_PAIRS, MAX_TENSORS, MAX_DIMS, MAX_STRING = 1 << 16, 1 << 20, 4, 1 << 24
MAX_LAYERS, MAX_WIDTH = 4096, 1 << 26
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_SHARD = re.compile(r"^(.*)-(\d{5})-of-(\d{5})\.gguf$")

ARCHITECTURES = {"llama": "llama", "mistral": "mistral", "qwen2": "qwen2", "qwen3": "qwen3", "qwen3moe": "qwen3_moe"}
_ROLES = {
    "token_embd": Role.EMBED,
    "output": Role.LM_HEAD,
    "output_norm": Role.FINAL_NORM,
    "attn_q": Role.Q,
    "attn_k": Role.K,
    "attn_v": Role.V,
    "attn_output": Role.O,
    "attn_q_norm": Role.Q_NORM,
    "attn_k_norm": Role.K_NORM,
    "attn_norm": Role.ATTENTION_NORM,
    "ffn_norm": Role.FFN_NORM,
    "ffn_gate": Role.GATE,
    "ffn_up": Role.UP,
    "ffn_down": Role.DOWN,
    "ffn_gate_inp": Role.ROUTER,
    "ffn_gate_exps": Role.GATE,
    "ffn_up_exps": Role.UP,
    "ffn_down_exps": Role.DOWN,
}


@dataclass(frozen=True)
class GgufTensor:
    """One tensor as the header describes it; `shape` has the contiguous dimension first, as ggml does."""

    name: str
    shape: tuple[int, ...]
    type: GgmlType
    offset: int

    @property
    def elements(self) -> int:
        """Number of elements."""
        product = 1
        for n in self.shape:
            product *= n
        return product

    @property
    def bytes(self) -> int:
        """Bytes in the file, before padding to the alignment."""
        return self.elements // self.type.block_elements * self.type.block_bytes


@dataclass(frozen=True)
class GgufFile:
    """A header: metadata, tensors and where the tensor data begins."""

    path: str
    metadata: Mapping[str, Any]
    tensors: tuple[GgufTensor, ...]
    alignment: int
    data_offset: int

    @property
    def expected_bytes(self) -> int:
        """Size the file must have for its tensors to be complete."""
        return self.data_offset + max((t.offset + t.bytes for t in self.tensors), default=0)


class _Cursor:
    """Bounds-checked little-endian reads; every failure names file, field and position."""

    def __init__(self, data: Any, file: str) -> None:
        self.data, self.file, self.at = data, file, 0

    def take(self, code: str, key: str) -> Any:
        size = struct.calcsize("<" + code)
        if self.at + size > len(self.data):
            raise InputError(
                f"truncated: the header ends at byte {len(self.data)} while reading it",
                file=self.file,
                key=key,
                remedy="download the file again",
            )
        (value,) = struct.unpack_from("<" + code, self.data, self.at)
        self.at += size
        return value

    def count(self, code: str, key: str, limit: int) -> int:
        value = int(self.take(code, key))
        if value > limit:
            raise InputError(f"absurd: more than {limit}", file=self.file, key=key, value=value)
        return value

    def skip(self, size: int, key: str) -> None:
        if self.at + size > len(self.data):
            raise InputError(
                f"truncated: {size} bytes announced, {len(self.data) - self.at} left", file=self.file, key=key
            )
        self.at += size

    def string(self, key: str, keep: bool = True) -> str:
        size = self.count("Q", key, MAX_STRING)
        start = self.at
        self.skip(size, key)
        return bytes(self.data[start : self.at]).decode("utf-8", errors="replace") if keep else ""


def read_header(path: Path) -> GgufFile:
    """The header of one GGUF file, checked against the file's own size."""
    file = str(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            if size < 24:
                raise InputError(f"truncated: {size} bytes is less than a GGUF header", file=file)
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
                header = _parse(_Cursor(data, file))
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror or error}", file=file) from None
    if header.expected_bytes > size:
        raise InputError(
            f"truncated: {size} of {header.expected_bytes} bytes",
            file=file,
            key="tensor data",
            remedy="download it again",
        )
    return header


def _parse(cursor: _Cursor) -> GgufFile:
    file = cursor.file
    magic = bytes(cursor.data[:4])
    cursor.at = 4
    if magic != MAGIC:
        raise InputError("not a GGUF file", file=file, key="magic", value=magic)
    version = cursor.take("I", "version")
    if version not in (2, 3):
        remedy = "convert it with a current llama.cpp (big-endian files are not read)"
        raise InputError("version must be 2 or 3", file=file, key="version", value=version, remedy=remedy)
    tensor_count = cursor.count("Q", "tensor_count", MAX_TENSORS)
    pair_count = cursor.count("Q", "metadata_kv_count", MAX_PAIRS)
    metadata: dict[str, Any] = {}
    for i in range(pair_count):
        key = cursor.string(f"metadata key {i}")
        metadata[key] = _value(cursor, key, cursor.take("I", key))
    tensors = tuple(_tensor(cursor, i) for i in range(tensor_count))
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 20 or alignment & (alignment - 1):
        raise InputError("must be a power of two", file=file, key="general.alignment", value=alignment)
    data_offset = -(-cursor.at // alignment) * alignment
    return GgufFile(file, MappingProxyType(metadata), tensors, alignment, data_offset)


def _value(cursor: _Cursor, key: str, kind: int, depth: int = 0) -> Any:
    """A metadata value. Arrays are returned as their length: roofplan needs no vocabulary."""
    if kind in _SCALARS:
        return cursor.take(_SCALARS[kind], key)
    if kind == _STRING:
        return cursor.string(key)
    if kind != _ARRAY or depth > 4:
        raise InputError("unknown type of metadata value", file=cursor.file, key=key, value=kind)
    inner, length = cursor.take("I", key), cursor.take("Q", key)
    if inner in _SCALARS:
        values_at = cursor.at
        cursor.skip(length * struct.calcsize("<" + _SCALARS[inner]), key)
        if length <= MAX_LAYERS:  # per-layer settings such as attention.head_count_kv
            return list(struct.unpack_from(f"<{length}{_SCALARS[inner]}", cursor.data, values_at))
        return range(length)
    if length > len(cursor.data):
        raise InputError("absurd: longer than the file", file=cursor.file, key=key, value=length)
    for _ in range(length):
        if inner == _STRING:
            cursor.string(key, keep=False)
        else:
            _value(cursor, key, inner, depth + 1)
    return range(length)


def _tensor(cursor: _Cursor, index: int) -> GgufTensor:
    name = cursor.string(f"tensor name {index}")
    dims = cursor.count("I", name, MAX_DIMS)
    shape = tuple(cursor.count("Q", name, MAX_WIDTH) for _ in range(dims))
    number = cursor.take("I", name)
    offset = cursor.take("Q", name)
    if number not in GGML_TYPES:
        raise InputError("unknown tensor type", file=cursor.file, key=name, value=number, remedy="update roofplan")
    if not shape or min(shape) < 1:
        raise InputError("empty shape", file=cursor.file, key=name, value=shape)
    tensor = GgufTensor(name, shape, GGML_TYPES[number], offset)
    if shape[0] % tensor.type.block_elements:
        raise InputError(
            f"row is not a multiple of {tensor.type.block_elements}, the block of {tensor.type.name}",
            file=cursor.file,
            key=name,
            value=shape,
        )
    return tensor


def read_gguf(path: Path) -> Model:
    """The model a GGUF file holds, with the bytes of every tensor as stored. All shards of a split are read."""
    files = [read_header(shard) for shard in _shards(path)]
    return _model(files)


def _shards(path: Path) -> list[Path]:
    match = _SHARD.match(path.name)
    if not match:
        return [path]
    total = int(match.group(3))
    if not 1 <= total <= 1000:
        raise InputError("absurd number of shards", file=str(path), key="file name", value=total)
    shards = [path.with_name(f"{match.group(1)}-{i:05d}-of-{total:05d}.gguf") for i in range(1, total + 1)]
    for shard in shards:
        if not shard.is_file():
            raise InputError("this shard of the split model is missing", file=str(shard), remedy="download all shards")
    return shards


@dataclass(frozen=True)
class _Meta:
    """Typed access to `<architecture>.<key>` metadata."""

    file: str
    metadata: Mapping[str, Any]
    architecture: str

    def integer(self, key: str, default: int | None = None, limit: int = MAX_WIDTH) -> int:
        name = f"{self.architecture}.{key}"
        value = self.metadata.get(name, default)
        if isinstance(value, list) and value and len(set(value)) == 1:
            value = value[0]
        if value is None:
            raise InputError("missing", file=self.file, key=name)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= limit:
            raise InputError(f"must be a whole number from 1 to {limit}", file=self.file, key=name, value=value)
        return value


def _model(files: list[GgufFile]) -> Model:
    first = files[0]
    metadata, file = first.metadata, first.path
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise InputError("missing", file=file, key="general.architecture")
    if architecture not in ARCHITECTURES:
        raise InputError(
            "unknown architecture",
            file=file,
            key="general.architecture",
            value=architecture,
            remedy=f"known: {', '.join(ARCHITECTURES)}",
        )
    meta = _Meta(file, metadata, architecture)
    tensors = {t.name: t for f in files for t in f.tensors}
    layers = meta.integer("block_count", limit=MAX_LAYERS)
    hidden, heads = meta.integer("embedding_length"), meta.integer("attention.head_count", limit=65536)
    kv_heads = meta.integer("attention.head_count_kv", heads, limit=65536)
    if heads % kv_heads:
        raise InputError("not a divisor of the heads", file=file, key="attention.head_count_kv", value=kv_heads)
    head_dim = meta.integer("attention.key_length", max(1, hidden // heads), limit=65536)
    embedding = tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise InputError("missing or not a matrix", file=file, key="token_embd.weight", remedy="is this a text model?")
    window = metadata.get(f"{architecture}.attention.sliding_window")
    per_layer = []
    for i in range(layers):
        attention = Attention(
            heads,
            kv_heads,
            head_dim,
            qkv_bias=f"blk.{i}.attn_q.bias" in tensors,
            out_bias=f"blk.{i}.attn_output.bias" in tensors,
            qk_norm=f"blk.{i}.attn_q_norm.weight" in tensors,
            window=window if isinstance(window, int) and not isinstance(window, bool) and window > 0 else None,
        )
        per_layer.append(_block(meta, attention, f"blk.{i}." + "{}_exps.weight", tensors))
    blocks, pattern = blocks_of(per_layer)
    stored = _stored(files, pattern, file)
    model = Model(
        name=Path(file).stem,
        family=ARCHITECTURES[architecture],
        hidden=hidden,
        vocab=embedding.shape[1],
        blocks=blocks,
        pattern=pattern,
        tied="output.weight" not in tensors,
        max_context=meta.integer("context_length", 4096, limit=1 << 31),
        native=_average(tensors),
        activation=DType.BF16,
        origin=file,
    )
    return dataclasses.replace(model, stored=_placed(stored, model))


def _placed(stored: Mapping[tuple[Role, int | None], float], model: Model) -> Mapping[tuple[Role, int | None], float]:
    """The stored bytes, those of a known role in a place the model has no such tensor counted as EXTRA."""
    places, total = {(t.role, t.block) for t in model.tensors}, defaultdict[tuple[Role, int | None], float](float)
    for place, size in stored.items():
        total[place if place in places else (Role.EXTRA, None)] += size
    return MappingProxyType(dict(total))


def _block(meta: _Meta, attention: Attention, experts: str, tensors: Mapping[str, GgufTensor]) -> Block:
    gate = tensors.get(experts.format("ffn_gate"))
    if gate is None and f"{meta.architecture}.expert_count" in meta.metadata:
        remedy = "convert it with a current llama.cpp, which stores the experts of a layer as one tensor"
        raise InputError("experts without ffn_gate_exps", file=meta.file, key="expert_count", remedy=remedy)
    if gate is None:
        return Block("dense", attention, Mlp(meta.integer("feed_forward_length")))
    count, top_k = meta.integer("expert_count", limit=65536), meta.integer("expert_used_count", limit=65536)
    if top_k > count or len(gate.shape) != 3:
        raise InputError("experts used exceed experts stored", file=meta.file, key="expert_used_count", value=top_k)
    width = meta.integer("expert_feed_forward_length", gate.shape[1])
    return Block("moe", attention, Experts(count, top_k, width))


def _stored(files: list[GgufFile], pattern: tuple[int, ...], file: str) -> Mapping[tuple[Role, int | None], float]:
    """Bytes by (role, block) over all layers; tensors of unknown role are counted as EXTRA, never dropped."""
    total: dict[tuple[Role, int | None], float] = defaultdict(float)
    for f in files:
        for t in f.tensors:
            layer, stem = None, t.name
            if match := re.match(r"^blk\.(\d{1,9})\.(.+)$", t.name):
                layer, stem = int(match.group(1)), match.group(2)
            role = _ROLES.get(stem.removesuffix(".weight").removesuffix(".bias"))
            if layer is not None and layer >= len(pattern):
                role = None  # prediction heads stored behind the last layer
            key = (Role.EXTRA, None) if role is None else (role, None if layer is None else pattern[layer])
            total[key] += t.bytes
    if not any(role is Role.Q for role, _ in total):
        raise InputError("no attention weights (blk.N.attn_q.weight)", file=file, remedy="is this a text model?")
    return MappingProxyType(dict(total))


def _average(tensors: Mapping[str, GgufTensor]) -> WeightFormat:
    """The file as one format: true average bits per weight, named after the type most weights have."""
    by_type: dict[str, int] = defaultdict(int)
    for t in tensors.values():
        by_type[t.type.name] += t.elements
    bits = 8 * sum(t.bytes for t in tensors.values()) / sum(by_type.values())
    name = max(by_type, key=lambda k: by_type[k])
    plain = {"F32": "fp32", "F16": "fp16", "BF16": "bf16"}
    return FORMATS[plain[name]] if name in plain else WeightFormat(f"gguf-{name.lower()}", bits, DType.BF16)
