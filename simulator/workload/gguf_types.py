"""GGUF file types: which tensor type llama.cpp's quantiser gives each tensor of a model in a file called Q4_K_M.

A file type is a mixture: the head in more bits, some attention values and down projections in more bits, norms,
routers and biases in F32. The rules are those of `llama_tensor_get_type` (ggml-org/llama.cpp, src/llama-quant.cpp,
read at commit 007dbbf) with one choice: fused query-key-value matrices follow the rule of the releases up to 2025,
which made nearly all files there are. Files whose name starts with IQ are taken to be made with an importance matrix,
which the narrow ones need; all others without one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from ...dtypes import DType
from .formats import GGML_TYPES, GgmlType, WeightFormat
from .layers import Attention, Experts, Recurrent, Role, Tensor
from .tensors import block_tensors

if TYPE_CHECKING:
    from .model import Model

# File type to the tensor type of what no rule picks out (`llama_ftype_get_default_type`).
FILE_TYPES: Mapping[str, str] = MappingProxyType(
    {
        **{name: name for name in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q6_K", "TQ1_0", "TQ2_0")},
        **dict.fromkeys(("Q2_K", "Q2_K_S"), "Q2_K"),
        **dict.fromkeys(("Q3_K_S", "Q3_K_M", "Q3_K_L"), "Q3_K"),
        **dict.fromkeys(("Q4_K_S", "Q4_K_M"), "Q4_K"),
        **dict.fromkeys(("Q5_K_S", "Q5_K_M"), "Q5_K"),
        **{name: name for name in ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS")},
        "IQ2_S": "IQ2_XS",
        "IQ2_M": "IQ2_S",
        "IQ3_XS": "IQ3_S",
        "IQ3_M": "IQ3_S",
        "MXFP4_MOE": "MXFP4",
    }
)
# Short names llama-quantize takes (tools/quantize/quantize.cpp).
ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}
TYPES: Mapping[str, GgmlType] = MappingProxyType({t.name: t for t in GGML_TYPES.values()})
# Where a row is no multiple of a type's block (`tensor_type_fallback`).
FALLBACKS = {
    **dict.fromkeys(
        ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS"),
        "IQ4_NL",
    ),
    **dict.fromkeys(("Q2_K", "Q3_K", "TQ1_0", "TQ2_0"), "Q4_0"),
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}
# Families whose converted files hold queries, keys and values as one tensor, attn_qkv.
FUSED = frozenset({"gpt2", "gpt_neox", "gpt_bigcode", "bloom", "falcon", "mpt", "phi3"})
VERY_NARROW = frozenset({"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M"})
# What llama.cpp leaves in F32: one-dimensional tensors, routers, learned positions, short convolutions, biases.
F32_BYTES = 4.0
CATEGORIES = {
    Role.Q: "q",
    Role.K: "k",
    Role.V: "v",
    Role.O: "o",
    **dict.fromkeys((Role.DOWN, Role.SHARED_DOWN), "down"),
    **dict.fromkeys((Role.UP, Role.SHARED_UP, Role.GATE, Role.SHARED_GATE), "up"),
}


class Facts(NamedTuple):
    """What the rules ask of a model: its layers, experts, query heads a KV head, and two special cases."""

    layers: int
    attentions: int
    experts: int
    queries_per_kv: int
    falcon: bool
    seventy_b: bool


class Place(NamedTuple):
    """A tensor in the quantiser's eyes: its category, its layer, and how many of the category came before it."""

    category: str
    layer: int
    before: int


def file_type(name: str) -> str | None:
    """The file type a user names, however it is written (`q4_k_m`, `Q4-K-M`), or None."""
    key = name.upper().replace("-", "_")
    key = ALIASES.get(key, key)
    return key if key in FILE_TYPES else None


def format_of(name: str) -> WeightFormat:
    """The weight format of a file type; its bits are those of the type most weights have."""
    return WeightFormat(name, TYPES[FILE_TYPES[name]].bits_per_weight, DType.BF16, whole=True)


def facts_of(model: Model) -> Facts:
    """The facts of a model that the rules depend on."""
    mixers = [model.blocks[i].attention for i in model.pattern]
    # It asks the first layer, which in files of hybrids has no heads at all (but for gated delta rule layers).
    first = mixers[0]
    if isinstance(first, Recurrent) and first.kind == "gated-delta":
        first = next((m for m in mixers if isinstance(m, Attention)), first)
    first = first if isinstance(first, Attention) else None
    experts = max((b.ffn.experts for b in model.blocks if isinstance(b.ffn, Experts)), default=0)
    grouped = first is not None and first.kv_heads < first.heads
    return Facts(
        layers=model.layers,
        attentions=sum(isinstance(m, Attention) and not m.borrows for m in mixers),
        experts=experts,
        queries_per_kv=first.heads // first.kv_heads if first is not None else 0,
        falcon=model.family == "falcon",
        # llama.cpp calls a Llama of 80 layers with grouped queries, and any Qwen2 of 80 layers, its 70B.
        seventy_b=model.layers == 80 and (model.family == "qwen2" or (model.family == "llama" and grouped)),
    )


def tensor_types(model: Model, name: str) -> Iterator[tuple[Tensor, GgmlType | None]]:
    """Every tensor of every layer with its type in a file of that type (None: F32)."""
    facts, before = facts_of(model), Counter[str]()
    for tensor in model.tensors:
        if tensor.block is None:
            yield tensor, _outer_type(name, tensor, model, facts)
    of_block = [tuple(block_tensors(i, block, model.hidden)) for i, block in enumerate(model.blocks)]
    for layer, block in enumerate(model.pattern):
        for tensor in of_block[block]:
            if tensor.scope is None:
                yield tensor, None
                continue
            category = CATEGORIES.get(tensor.role, "other")
            if category in ("q", "k", "v") and model.family in FUSED:
                category = "qkv"
            chosen = _layer_type(name, Place(category, layer, before[category]), facts, tensor)
            if tensor.role not in (Role.GATE, Role.SHARED_GATE):  # counted with `up`, which stands beside it
                before[category] += 1
            yield tensor, _fitting(chosen, tensor)


def _fitting(chosen: str, tensor: Tensor) -> GgmlType:
    if tensor.cols % TYPES[chosen].block_elements:
        chosen = FALLBACKS.get(chosen, "F16")
        if tensor.cols % TYPES[chosen].block_elements:
            chosen = "F16"
    return TYPES[chosen]


def _outer_type(name: str, tensor: Tensor, model: Model, facts: Facts) -> GgmlType | None:
    """Type of a tensor outside the layers: head (or tied embedding), embedding, and what is never narrowed."""
    base = FILE_TYPES[name]
    if tensor.role is Role.LM_HEAD or (tensor.role is Role.EMBED and model.tied):
        if name == "MXFP4_MOE" or facts.falcon or tensor.cols % TYPES[base].block_elements:
            return _fitting("Q8_0", tensor)
        if name in VERY_NARROW or name == "IQ3_XXS":
            return _fitting("Q5_K", tensor)
        return _fitting("Q8_0" if base == "Q8_0" else "Q6_K", tensor)
    if tensor.role is Role.EMBED:
        if name == "MXFP4_MOE":
            return _fitting("Q8_0", tensor)
        if name in ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS"):
            return _fitting("Q2_K", tensor)
        if name in ("IQ2_S", "IQ2_M", "IQ3_XXS"):
            return _fitting("IQ3_S", tensor)
        return _fitting("Q4_K" if name.startswith("TQ") else base, tensor)
    return TYPES["F16"] if tensor.role is Role.TOWER else None  # towers are a file of their own, in 16 bits


def _layer_type(name: str, place: Place, facts: Facts, tensor: Tensor) -> str:
    """Type of a matrix in a layer, before its shape is looked at."""
    if name == "MXFP4_MOE":
        return "MXFP4" if tensor.routed else "Q8_0"
    if name in VERY_NARROW:
        return _very_narrow(name, place, facts)
    match place.category:
        case "v":
            return _value_type(name, place, facts)
        case "k" if facts.experts == 8:
            return "Q8_0"
        case "q" | "k":
            return {"IQ3_XS": "IQ3_XXS", "IQ3_XXS": "IQ2_S"}.get(name, FILE_TYPES[name])
        case "qkv":
            fused = {"Q3_K_M": "Q4_K", "Q3_K_L": "Q4_K", "IQ3_M": "Q4_K", "Q4_K_M": "Q5_K", "Q5_K_M": "Q6_K"}
            return fused.get(name, FILE_TYPES[name])
        case "o":
            return _output_type(name, facts)
        case "down":
            return _down_type(name, place, facts)
        case "up" if name == "IQ3_XS":
            layer = place.layer if facts.experts > 1 else place.before
            return "IQ3_XXS" if facts.layers // 8 <= layer < 7 * facts.layers // 8 else "IQ3_S"
    return FILE_TYPES[name]


def _more_bits(layer: int, layers: int) -> bool:
    """The first and the last eighth of the layers, and every third between them (`use_more_bits`)."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def _very_narrow(name: str, place: Place, facts: Facts) -> str:
    wider = name in ("IQ2_S", "IQ2_M")
    match place.category:
        case "v" if facts.queries_per_kv >= 4 or facts.experts >= 4:
            return "Q4_K"
        case "v":
            return "IQ3_S" if wider else "Q2_K"
        case "k" if facts.experts == 8:
            return "Q4_K"
        case "down" if place.before < facts.layers // 8:
            return "IQ3_S" if wider else "Q2_K"
        case "o" if facts.experts == 8:
            return "Q5_K"
        case "o" if name in ("IQ1_S", "IQ1_M"):
            return "IQ2_XXS"
        case "o" if wider:
            return "IQ3_S"
    return FILE_TYPES[name]


def _value_type(name: str, place: Place, facts: Facts) -> str:
    """Attention values: few where queries are grouped, so more bits for them cost little."""
    chosen, many = FILE_TYPES[name], facts.queries_per_kv >= 4
    match name:
        case "Q2_K":
            chosen = "Q4_K" if many else "Q3_K"
        case "Q2_K_S" | "IQ3_XXS" | "IQ3_XS" | "IQ3_S" if many:
            chosen = "Q4_K"
        case "IQ3_M":
            chosen = "Q4_K"
        case "Q3_K_M":
            chosen = "Q5_K" if place.before < 2 else "Q4_K"
        case "Q3_K_L":
            chosen = "Q5_K"
        case "IQ4_NL" | "IQ4_XS" if many:
            chosen = "Q5_K"
        case "Q4_K_M" | "Q5_K_M" if _more_bits(place.before, facts.attentions):
            chosen = "Q6_K"
        case "Q4_K_S" if place.before < 4:
            chosen = "Q5_K"
    if facts.seventy_b and chosen in ("Q3_K", "Q4_K"):
        chosen = "Q5_K"
    return "Q8_0" if facts.experts == 8 else chosen


def _output_type(name: str, facts: Facts) -> str:
    """The projection behind attention."""
    base = FILE_TYPES[name]
    if facts.falcon:
        return "Q4_K" if name == "Q3_K_L" else base
    if facts.experts == 8:
        narrow = ("Q2_K", "Q3_K_S", "Q3_K_M", "Q4_K_S", "Q4_K_M", "IQ4_NL", "IQ4_XS")
        return "Q5_K" if name in narrow or name.startswith("IQ3") else base
    return {"Q2_K": "Q3_K", "IQ3_XXS": "IQ3_S", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K", "IQ3_M": "Q4_K"}.get(name, base)


def _down_type(name: str, place: Place, facts: Facts) -> str:
    """Down projections, of experts too: the first layers, or those of `use_more_bits`, in more bits."""
    layer, n = (place.layer if facts.experts > 1 else place.before), facts.layers
    more = _more_bits(layer, n)
    match name:
        case "Q2_K":
            return "Q3_K"
        case "Q2_K_S" if layer < n // 8:
            return "Q4_K"
        case "Q3_K_M":
            if layer < n // 16:
                return "Q5_K"
            return "Q4_K" if not facts.falcon or more else "Q3_K"
        case "IQ3_M" if layer < n // 8 or (facts.experts == 8 and more):
            return "Q4_K"
        case "Q3_K_L":
            return "Q4_K" if facts.falcon else "Q5_K"
        case "Q4_K_M" if facts.falcon:
            return "Q6_K" if layer < n // 16 else "Q5_K" if more else "Q4_K"
        case "Q4_K_M" | "Q5_K_M" if more:
            return "Q6_K"
        case "Q4_K_S" if not facts.falcon and layer < n // 8:
            return "Q5_K"
    return FILE_TYPES[name]
