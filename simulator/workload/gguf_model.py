"""From a GGUF header to a model: what a layer is, is read off the tensors it has and their shapes.

Metadata names the architecture, counts layers and heads and gives windows; biases, norms, fused projections, experts,
latent attention and recurrences show in the tensors themselves (names: llama.cpp, gguf-py/gguf/constants.py). An
architecture nobody listed here is read the same way and says so; what lacks the usual keys is refused.
"""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from ...dtypes import DType
from ...errors import InputError
from .formats import FORMATS, WeightFormat
from .gguf import MAX_LAYERS, MAX_WIDTH, GgufFile, GgufTensor
from .gguf_layers import Layer, block_of
from .layers import Role, blocks_of
from .model import Model

# Architectures whose files were looked at, and the family of `transformers` each is.
ARCHITECTURES: Mapping[str, str] = MappingProxyType(
    {
        **{
            name: name
            for name in (
                "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "phi3", "phimoe", "glm4", "starcoder2",
                "falcon", "gpt2", "gptj", "bloom", "mpt", "stablelm", "cohere2", "olmo", "olmo2", "olmoe", "granite",
                "granitemoe", "minicpm", "exaone", "exaone4", "mamba", "mamba2", "jamba", "nemotron", "nemotron_h",
                "smollm3", "seed_oss", "ernie4_5", "lfm2", "internlm2", "baichuan",
            )
        },
        "mistral3": "mistral", "qwen2moe": "qwen2_moe", "qwen2vl": "qwen2", "qwen3moe": "qwen3_moe", "qwen3vl": "qwen3",
        "qwen3vlmoe": "qwen3_moe", "qwen3next": "qwen3_next", "qwen35": "qwen3_5_text", "qwen35moe": "qwen3_5_moe_text",
        "gemma3": "gemma3_text", "phi2": "phi", "deepseek": "deepseek", "deepseek2": "deepseek_v2",
        "glm4moe": "glm4_moe", "gpt-oss": "gpt_oss", "llama4": "llama4_text", "starcoder": "gpt_bigcode",
        "gptneox": "gpt_neox", "command-r": "cohere", "granitehybrid": "granitemoehybrid",
        "nemotron_h_moe": "nemotron_h", "ernie4_5-moe": "ernie4_5_moe", "minimax-m2": "minimax_m2", "chatglm": "glm",
    }
)  # fmt: skip
# Every so many layers one sees everything, where the file does not say so itself (llama.cpp, `set_swa_pattern`).
WINDOW_PERIODS = {"gemma2": 2, "gemma3": 6, "gpt-oss": 2, "cohere2": 4, "llama4": 4, "exaone4": 4, "olmo2": 4}
LLAMA4_CHUNK = 8192  # tokens; llama.cpp sets it where the file does not (src/llama-model.cpp)
OUTER = {
    "token_embd": Role.EMBED,
    "position_embd": Role.POSITIONS,
    "token_embd_norm": Role.EMBED_NORM,
    "output": Role.LM_HEAD,
    "output_norm": Role.FINAL_NORM,
}


@dataclass(frozen=True)
class Meta:
    """Typed access to `<architecture>.<key>` metadata."""

    file: str
    metadata: Mapping[str, Any]
    architecture: str

    def key(self, key: str) -> str:
        """The full name of a key."""
        return f"{self.architecture}.{key}"

    def has(self, key: str) -> bool:
        """Whether the file states the key."""
        return self.key(key) in self.metadata

    def raw(self, key: str) -> Any:
        """The value as it stands, None where there is none."""
        return self.metadata.get(self.key(key))

    def integer(self, key: str, default: int | None = None, limit: int = MAX_WIDTH) -> int:
        """A positive whole number; a list with one value for all layers counts as that value."""
        value = self.metadata.get(self.key(key), default)
        if isinstance(value, list) and value and len(set(value)) == 1:
            value = value[0]
        if value is None:
            raise InputError("missing", file=self.file, key=self.key(key))
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= limit:
            raise InputError(
                f"must be a whole number from 1 to {limit}", file=self.file, key=self.key(key), value=value
            )
        return value

    def per_layer(self, key: str, layers: int, default: int) -> list[int]:
        """A whole number for each layer, which may be 0 where the file lists them (a layer without attention)."""
        value = self.raw(key)
        if not isinstance(value, list):
            return [self.integer(key, default, 65536)] * layers
        whole = all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n <= 65536 for n in value)
        if len(value) < layers or not whole:
            raise InputError(f"must give a whole number for each of {layers} layers", file=self.file, key=self.key(key))
        return value[:layers]


def model_of(files: list[GgufFile], name: str) -> Model:
    """The model the headers of all shards describe."""
    first = files[0]
    architecture = first.metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise InputError("missing", file=first.path, key="general.architecture")
    meta = Meta(first.path, first.metadata, architecture)
    tensors = {t.name: t for f in files for t in f.tensors}
    _refuse_what_is_no_decoder(meta, tensors)
    layers = meta.integer("block_count", limit=MAX_LAYERS)
    ahead = meta.raw("nextn_predict_layers")  # layers that only predict further tokens
    if isinstance(ahead, int) and not isinstance(ahead, bool) and 0 < ahead < layers:
        layers -= ahead
    embedding = tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        remedy = "is this a text model?"
        raise InputError("missing or not a matrix", file=meta.file, key="token_embd.weight", remedy=remedy)
    hidden = meta.integer("embedding_length")
    found = _layers(meta, tensors, layers, hidden)
    blocks, pattern = blocks_of([block_of(layer) for layer in found])
    if all(block.attention is None for block in blocks):
        problem, remedy = "no attention weights (blk.N.attn_q.weight)", "is this a text model?"
        raise InputError(problem, file=meta.file, remedy=remedy)
    model = Model(
        name=name,
        family=ARCHITECTURES.get(architecture, architecture),
        hidden=hidden,
        vocab=embedding.shape[1],
        blocks=blocks,
        pattern=pattern,
        tied="output.weight" not in tensors,
        max_context=meta.integer("context_length", 4096, limit=1 << 31),
        native=_average(tensors),
        activation=DType.BF16,
        origin=meta.file,
        positions=_rows(tensors.get("position_embd.weight")),
        norm_vectors=_vectors(tensors, "token_embd_norm" if _ends_in_embd_norm(meta) else "output_norm"),
        embed_norm_vectors=0 if _ends_in_embd_norm(meta) else _vectors(tensors, "token_embd_norm"),
        head_bias="output.bias" in tensors and "output.weight" in tensors,
        generic=architecture not in ARCHITECTURES,
    )
    return dataclasses.replace(model, stored=_stored(files, found, model))


def _refuse_what_is_no_decoder(meta: Meta, tensors: Mapping[str, GgufTensor]) -> None:
    """Encoders by name; what nobody listed here and has not the usual keys either by what it lacks."""
    if meta.raw("attention.causal") is False:
        problem, remedy = "an encoder: it generates no text", "give a text-generation model"
        raise InputError(problem, file=meta.file, key="general.architecture", value=meta.architecture, remedy=remedy)
    if meta.architecture in ARCHITECTURES:
        return
    missing = [meta.key(k) for k in ("block_count", "embedding_length", "attention.head_count") if not meta.has(k)]
    if not any(re.match(r"blk\.\d+\.attn_(q|qkv|kv_a_mqa)\.weight$", name) for name in tensors):
        missing.append("blk.N.attn_q.weight")
    if missing:
        raise InputError(
            f"unknown architecture, and not one to read by the usual keys: it lacks {', '.join(missing)}",
            file=meta.file,
            key="general.architecture",
            value=meta.architecture,
            remedy=f"known: {', '.join(ARCHITECTURES)}",
        )


def _layers(meta: Meta, tensors: Mapping[str, GgufTensor], layers: int, hidden: int) -> list[Layer]:
    """Each layer's tensors by their name within it, with its heads and window."""
    own: list[dict[str, GgufTensor]] = [{} for _ in range(layers)]
    for name, tensor in tensors.items():
        if (match := re.match(r"^blk\.(\d{1,9})\.(.+)$", name)) and int(match.group(1)) < layers:
            own[int(match.group(1))][match.group(2)] = tensor
    headless = meta.raw("attention.head_count") == 0  # nothing but recurrences
    heads = [0] * layers if headless else meta.per_layer("attention.head_count", layers, 0)
    stated = meta.has("attention.head_count_kv") and not headless
    kv_heads = meta.per_layer("attention.head_count_kv", layers, 0) if stated else heads
    windows = _windows(meta, layers)
    borrowed = meta.raw("attention.shared_kv_layers")
    first_borrowing = layers - borrowed if isinstance(borrowed, int) and 0 < borrowed < layers else layers
    return [
        Layer(meta, i, own[i], hidden, heads[i], kv_heads[i], windows[i], i >= first_borrowing) for i in range(layers)
    ]


def _windows(meta: Meta, layers: int) -> list[int | None]:
    """The sliding window of each layer: by the file's own list or period, else by its architecture's period."""
    window = meta.raw("attention.sliding_window")
    if window is None and meta.architecture == "llama4":
        window = LLAMA4_CHUNK
    if isinstance(window, bool) or not isinstance(window, int) or window <= 0:
        return [None] * layers
    pattern = meta.raw("attention.sliding_window_pattern")
    if isinstance(pattern, list) and len(pattern) >= layers and all(isinstance(p, bool) for p in pattern):
        return [window if slides else None for slides in pattern[:layers]]
    period = pattern if isinstance(pattern, int) and not isinstance(pattern, bool) else None
    period = period if period is not None else WINDOW_PERIODS.get(meta.architecture, 0)
    return [None if period > 0 and (i + 1) % period == 0 else window for i in range(layers)]


def _ends_in_embd_norm(meta: Meta) -> bool:
    """LFM2 stores its final norm under the name of a norm behind the embedding."""
    return meta.architecture.startswith("lfm2")


def _rows(tensor: GgufTensor | None) -> int:
    return tensor.shape[1] if tensor is not None and len(tensor.shape) == 2 else 0


def _vectors(tensors: Mapping[str, GgufTensor], stem: str) -> int:
    """How many vectors a norm has: scale, and shift where it is a layer norm."""
    return (f"{stem}.weight" in tensors) + (f"{stem}.bias" in tensors)


def _stored(files: list[GgufFile], layers: list[Layer], model: Model) -> Mapping[tuple[Role, int | None], float]:
    """Bytes by (role, block) over all layers; what has no place in the model counts as EXTRA, never dropped."""
    places, total = {(t.role, t.block) for t in model.tensors}, defaultdict[tuple[Role, int | None], float](float)
    for f in files:
        for t in f.tensors:
            for place, share in _shares(t, layers, model):
                total[place if place in places else (Role.EXTRA, None)] += t.bytes * share
    return MappingProxyType(dict(total))


def _shares(tensor: GgufTensor, layers: list[Layer], model: Model) -> Iterator[tuple[tuple[Role, int | None], float]]:
    """The places a tensor's bytes belong to: one, or several where projections are fused."""
    if match := re.match(r"^blk\.(\d{1,9})\.(.+)$", tensor.name):
        index = int(match.group(1))
        roles = layers[index].roles_of(match.group(2)) if index < len(layers) else ((Role.EXTRA, 1.0),)
        for role, share in roles:
            yield (role, None if role is Role.EXTRA else model.pattern[index]), share
        return
    role = OUTER.get(tensor.name.removesuffix(".weight").removesuffix(".bias"), Role.EXTRA)
    if role is Role.EMBED_NORM and not model.embed_norm_vectors:
        role = Role.FINAL_NORM
    yield (role, None), 1.0


def _average(tensors: Mapping[str, GgufTensor]) -> WeightFormat:
    """The file as one format: true average bits per weight, named after the type most weights have."""
    by_type: dict[str, int] = defaultdict(int)
    for t in tensors.values():
        by_type[t.type.name] += t.elements
    bits = 8 * sum(t.bytes for t in tensors.values()) / sum(by_type.values())
    name = max(by_type, key=lambda k: by_type[k])
    plain = {"F32": "fp32", "F16": "fp16", "BF16": "bf16"}
    if name in plain:
        return FORMATS[plain[name]]
    return WeightFormat(f"gguf-{name.lower()}", bits, DType.BF16, whole=True)
