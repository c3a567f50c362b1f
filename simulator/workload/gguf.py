"""Read a GGUF header: metadata, and the exact bytes of every tensor. Tensor data is never touched.

Layout after the GGUF specification (ggml-org/ggml, docs/gguf.md): magic, version, counts, key-value pairs,
tensor descriptions, padding to `general.alignment`, tensor data. Versions 2 and 3, little-endian.
"""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ...errors import InputError
from .formats import GGML_TYPES, GgmlType

if TYPE_CHECKING:
    from .model import Model

MAGIC = b"GGUF"
MAX_PAIRS, MAX_TENSORS, MAX_DIMS, MAX_STRING = 1 << 16, 1 << 20, 4, 1 << 24
MAX_LAYERS, MAX_WIDTH = 4096, 1 << 26
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_SHARD = re.compile(r"^(.*)-(\d{5})-of-(\d{5})\.gguf$")


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


def read_gguf(path: Path, name: str | None = None) -> Model:
    """The model a GGUF file holds, with the bytes of every tensor as stored. All shards of a split are read.

    It is called by the file's name unless `name` says otherwise.
    """
    from .gguf_model import model_of

    return model_of([read_header(shard) for shard in _shards(path)], name or path.stem)


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
