"""Read the headers of safetensors files: the exact bytes of every tensor. Tensor data is never touched.

Layout after the format's own description (huggingface/safetensors, README): 8 bytes of header length, little-endian,
a JSON object of that length with dtype, shape and offsets of every tensor, tensor data.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from ...errors import InputError
from ...units import format_bytes
from .files import is_file
from .formats import FORMATS
from .hf import read_config
from .layers import Role, Tensor
from .mixture import MODULES, ROUTED
from .model import Model

if TYPE_CHECKING:
    from .network import Pipeline
    from .pipelines import Size

MAX_HEADER_BYTES = 100_000_000  # the format's own limit (safetensors/src/tensor.rs, MAX_HEADER_SIZE)
MAX_DIMS, MAX_SHARDS = 16, 2000
BITS: Mapping[str, int] = MappingProxyType(
    {
        **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
        **dict.fromkeys(("F32", "I32", "U32"), 32),
        **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
        **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
        **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
        "F4": 4,
    }
)
PLAIN = {"F32": "fp32", "F16": "fp16", "BF16": "bf16"}
AGREES = 0.001  # files and config are taken to mean the same model if their bytes differ by less than this share
ANOTHER_MODEL = 2.0  # and to be of different models if they differ by this factor
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


class StoredTensor(NamedTuple):
    """One tensor as a header describes it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int


def read_header(path: Path) -> tuple[StoredTensor, ...]:
    """The tensors of one safetensors file, checked against the file's own size."""
    file = str(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > MAX_HEADER_BYTES:
                problem = f"absurd: more than {MAX_HEADER_BYTES}"
                raise InputError(problem, file=file, key="header length", value=length)
            if size < 8 + length:
                problem = f"truncated: {size} bytes, and a header of {length} is announced"
                raise InputError(problem, file=file, key="header length", remedy="download it again")
            raw = stream.read(length)
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror or error}", file=file) from None
    entries = _json_object(raw, file, "header")
    tensors = tuple(_tensor(name, entry, file) for name, entry in entries.items() if name != "__metadata__")
    held = sum(t.bytes for t in tensors)
    if held > size - 8 - length:
        problem = f"truncated: {size - 8 - length} of {held} bytes of tensors"
        raise InputError(problem, file=file, key="tensor data", remedy="download it again")
    return tensors


def _json_object(raw: bytes, file: str, what: str) -> dict[str, Any]:
    try:
        value = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError:
        raise InputError(f"the {what} is not UTF-8 text", file=file) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"the {what} is not valid JSON: {error}", file=file) from None
    if not isinstance(value, dict):
        raise InputError(f"the {what} must be a JSON object", file=file, value=value)
    return value


def _tensor(name: str, entry: object, file: str) -> StoredTensor:
    if not isinstance(entry, dict):
        raise InputError("must be an object", file=file, key=name, value=entry)
    dtype, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in BITS:
        raise InputError("unknown dtype", file=file, key=name, value=dtype, remedy="update roofplan")
    if not isinstance(shape, list) or len(shape) > MAX_DIMS or not all(_is_size(n) for n in shape):
        raise InputError("shape must be a list of whole numbers", file=file, key=name, value=shape)
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_size(n) for n in offsets):
        raise InputError("data_offsets must be two whole numbers", file=file, key=name, value=offsets)
    size = offsets[1] - offsets[0]
    if 8 * size != math.prod(shape) * BITS[dtype]:
        raise InputError(f"{size} bytes do not hold {shape} of {dtype}", file=file, key=name)
    return StoredTensor(name, dtype, tuple(shape), size)


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 60


def shards_of(path: Path) -> list[Path]:
    """All files of the checkpoint a .safetensors file or its index belongs to."""
    if path.name.endswith(".json"):
        return _listed(path)
    if re.search(r"-\d{5}-of-\d{5}\.safetensors$", path.name):
        index = path.with_name(re.sub(r"-\d{5}-of-\d{5}\.safetensors$", ".safetensors.index.json", path.name))
        if not is_file(index):
            raise InputError("one of several, and the index that lists them is missing", file=str(index))
        return _listed(index)
    return [path]


def _listed(index: Path) -> list[Path]:
    """The files an index names, each of which must stand beside it."""
    file = str(index)
    try:
        if index.stat().st_size > MAX_HEADER_BYTES:
            raise InputError("larger than 100 MB: not an index", file=file)
        raw = index.read_bytes()
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror or error}", file=file) from None
    weight_map = _json_object(raw, file, "index").get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError("must map tensors to files", file=file, key="weight_map", value=weight_map)
    names = set()
    for name in weight_map.values():
        if not isinstance(name, str) or not re.fullmatch(r"[\w.\-]{1,255}", name) or name.startswith("."):
            raise InputError("must be the name of a file beside it", file=file, key="weight_map", value=name)
        names.add(name)
    if len(names) > MAX_SHARDS:
        raise InputError(f"absurd: more than {MAX_SHARDS} files", file=file, key="weight_map", value=len(names))
    shards = [index.with_name(name) for name in sorted(names)]
    for shard in shards:
        if not is_file(shard):
            raise InputError("this file of the checkpoint is missing", file=str(shard), remedy="download all of them")
    return shards


def checkpoint_in(folder: Path) -> Path | None:
    """The index or the one file of a whole checkpoint in a folder, None where there is none or a part is missing."""
    for name in (INDEX, SINGLE):
        path = folder / name
        if is_file(path):
            try:
                shards_of(path)
            except InputError:
                return None
            return path
    return None


def read_safetensors(path: Path, size: Size | None = None) -> Model | Pipeline:
    """The model of the config.json beside the files, with the bytes of its weights as the files store them.

    What runs as one pass is read from its config alone. `size` is that of its result.
    """
    config = path.with_name("config.json")
    if not is_file(config):
        remedy = "put the config.json of the model beside it: tensors alone do not say what a layer is"
        raise InputError("no such file", file=str(config), remedy=remedy)
    tensors = [t for shard in shards_of(path) for t in read_header(shard)]
    model = read_config(config, size)
    if not isinstance(model, Model):
        return model
    return dataclasses.replace(with_stored(model, tensors, str(path)), origin=str(path))


def with_stored(model: Model, tensors: Iterable[StoredTensor], file: str) -> Model:
    """The model with what its files hold: their format if it is plain and all there, else the bytes of every place.

    Layers behind the last one (which predict further tokens) and a copy of a tied embedding are not loaded.
    """
    kept, left_out, deepest = [], 0, -1
    for t in tensors:
        layer = _layer(t.name)
        ahead = (layer is not None and layer >= model.layers) or re.search(r"(^|\.)mtp\.", t.name) is not None
        unused = ahead or (model.tied and t.name.startswith("lm_head."))
        if unused:
            left_out += t.bytes
            continue
        kept.append(t)
        deepest = max(deepest, -1 if layer is None else layer)
    total = sum(t.bytes for t in kept)
    if deepest + 1 < model.layers or not total:
        problem = f"the files hold {deepest + 1} layers, the config.json beside them says {model.layers}"
        raise InputError(problem, file=file, remedy="is a file missing, or is it the config of another model?")
    model = _as_written(model, kept)
    notes = [f"{format_bytes(left_out)} of its files are not loaded to generate text"] if left_out else []
    implied = model.weight_bytes(model.native)
    if abs(total / implied - 1) < AGREES and model.native.bits_per_weight >= 16:
        return dataclasses.replace(model, notes=(*model.notes, *notes))
    if not 1 / ANOTHER_MODEL < total / implied < ANOTHER_MODEL:
        problem = f"the files hold {format_bytes(total)}, the config.json beside them implies {format_bytes(implied)}"
        raise InputError(problem, file=file, remedy="is it the config of another model?")
    if abs(total / implied - 1) > 0.02:
        notes.append(
            f"its files hold {format_bytes(total)}, its config.json implies {format_bytes(implied)}: the files count"
        )
    return dataclasses.replace(model, stored=_stored(model, kept, total), notes=(*model.notes, *notes))


def _as_written(model: Model, tensors: list[StoredTensor]) -> Model:
    """The model with the plain format most of its bytes are in, where its config says another plain one."""
    if model.native.bits_per_weight < 16:
        return model
    by_dtype = Counter[str]()
    for t in tensors:
        by_dtype[t.dtype] += t.bytes
    dtype = by_dtype.most_common(1)[0][0]
    if dtype not in PLAIN or PLAIN[dtype] == model.native.name:
        return model
    native = FORMATS[PLAIN[dtype]]
    return dataclasses.replace(model, native=native, activation=native.compute)


def _layer(name: str) -> int | None:
    match = re.search(r"(?:^|\.)(?:layers|h|blocks|block)\.(\d{1,6})\.", name)
    return int(match.group(1)) if match and not _beside(name) else None


def _beside(name: str) -> bool:
    """Whether a tensor belongs to what stands before the text model: towers, projectors."""
    return re.search(r"(^|\.)(vision|visual|audio|multi_modal|speech|image)", name) is not None


def _stored(model: Model, tensors: list[StoredTensor], total: int) -> Mapping[tuple[Role, int | None], float]:
    """Bytes by (role, block). Where a matrix cannot be found by name, every place takes its share of the total."""
    places = {(t.role, t.block): t for t in model.tensors}
    stored = defaultdict[tuple[Role, int | None], float](float)
    for t in tensors:
        for place, share in _shares(t.name, model):
            stored[place if place in places else (Role.EXTRA, None)] += t.bytes * share
    matrices = {place for place, t in places.items() if t.scope is not None or t.role in (Role.EMBED, Role.LM_HEAD)}
    if matrices <= stored.keys():
        return MappingProxyType({**dict.fromkeys(places, 0.0), **stored})
    scale = total / model.weight_bytes(model.native)
    by_place = defaultdict[tuple[Role, int | None], float](float)
    for tensor in model.tensors:
        by_place[tensor.role, tensor.block] += scale * model.layer_bytes(tensor, model.native) * model.instances(tensor)
    return MappingProxyType(dict(by_place))


_OUTER = {"embed_tokens": Role.EMBED, "lm_head": Role.LM_HEAD}
_FUSED = {
    "self_attn.qkv_proj": (Role.Q, Role.K, Role.V),
    "mlp.gate_up_proj": (Role.GATE, Role.UP),
    "mlp.experts.gate_up_proj": (Role.GATE, Role.UP),
}


def _by_module() -> Mapping[str, Role]:
    """Module name below its layer to role: all experts of a layer go by the name of the first."""
    named = {name: role for table in (MODULES, ROUTED) for role, names in table.items() for name in names}
    return {name: role for name, role in named.items() if name not in _FUSED}


_ROLES = _by_module()


def _shares(name: str, model: Model) -> Iterator[tuple[tuple[Role, int | None], float]]:
    """The places a stored tensor belongs to; scales and zero points go with the weights they are of."""
    layer = _layer(name)
    if _beside(name):
        yield (Role.TOWER if model.towers else Role.EXTRA, None), 1.0
        return
    if layer is None:
        outer = next((role for word, role in _OUTER.items() if f".{word}." in f".{name}"), Role.EXTRA)
        yield (outer, None), 1.0
        return
    block = model.pattern[layer]
    module = re.sub(r"\.experts\.\d+\.", ".experts.0.", name.split(f".{layer}.", 1)[-1])
    # The last component is the tensor's own: weight, qweight, scales, weight_scale_inv, weight.absmax, ...
    for end in range(module.count("."), 0, -1):
        stem = ".".join(module.split(".")[:end])
        stem = re.sub(r"_(blocks|scales|bias)$", "", stem)
        if stem in _FUSED:
            yield from _split(stem, block, model)
            return
        if stem in _ROLES:
            yield (_ROLES[stem], block), 1.0
            return
    whole = re.sub(r"_(blocks|scales|bias)$", "", module)
    if whole in _FUSED:
        yield from _split(whole, block, model)
    else:
        yield (_ROLES.get(whole, Role.EXTRA), block if whole in _ROLES else None), 1.0


def _split(stem: str, block: int, model: Model) -> Iterator[tuple[tuple[Role, int | None], float]]:
    """A fused projection's bytes over the matrices it holds, by their elements."""
    parts: list[Tensor] = [t for t in model.tensors if t.block == block and t.role in _FUSED[stem]]
    elements = sum(t.elements for t in parts)
    if not elements:
        yield (Role.EXTRA, None), 1.0
    for t in parts:
        yield (t.role, block), t.elements / elements
