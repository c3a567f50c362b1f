"""Storage formats of weights: bits per weight with scales included, and the arithmetic they run in.

Block sizes of the GGML types are those of ggml's `type_traits` table (ggml-org/llama.cpp, ggml/src/ggml.c);
a test holds them equal to the `gguf` package's `GGML_QUANT_SIZES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from types import MappingProxyType
from typing import NamedTuple

from ...dtypes import DType
from ...errors import InputError, UnknownNameError


class Scope(IntEnum):
    """Which matrices a narrow checkpoint narrows; each scope holds the ones before it.

    `FEEDFORWARD` adds dense and shared feed-forwards to the routed experts, `LINEAR` the attention projections.
    """

    EXPERTS = 1
    FEEDFORWARD = 2
    LINEAR = 3


class WeightFormat(NamedTuple):
    """How a weight matrix is stored and computed.

    `compute` is the input format of the matrix instructions where the device has it; a narrower storage than
    `compute` means weights are widened on the fly (weight-only quantisation). `block_scaled` weights have one scale
    a block of rows and columns, which the product applies as it goes: another kernel than one scale a tensor.
    """

    name: str
    bits_per_weight: float
    compute: DType
    block_scaled: bool = False
    scope: Scope = Scope.LINEAR

    @property
    def bytes_per_weight(self) -> float:
        """Bytes of one weight, scales and zero points spread over their group."""
        return self.bits_per_weight / 8

    @property
    def weight_only(self) -> bool:
        """Whether activations stay wider than the stored weights."""
        return self.bits_per_weight < self.compute.bits


def grouped(bits: int, group: int, scale_bits: int = 16, zero_bits: int | None = None) -> float:
    """Bits per weight of group quantisation: payload plus one scale and one zero point for each group.

    AWQ and GPTQ store a 16-bit scale and a `bits`-wide zero point for every `group` weights of a row.
    """
    return bits + (scale_bits + (bits if zero_bits is None else zero_bits)) / group


def block_scaled_fp8(rows: int = 128, cols: int = 128) -> WeightFormat:
    """FP8 with one fp32 scale a block of rows x cols (DeepSeek-V3 report, arXiv 2412.19437, section 3.3)."""
    name = "fp8-block" if (rows, cols) == (128, 128) else f"fp8-block-{rows}x{cols}"
    return WeightFormat(name, 8 + 32 / (rows * cols), DType.FP8, block_scaled=True)


FORMATS: Mapping[str, WeightFormat] = MappingProxyType(
    {
        f.name: f
        for f in (
            WeightFormat("fp32", 32, DType.FP32),
            WeightFormat("bf16", 16, DType.BF16),
            WeightFormat("fp16", 16, DType.FP16),
            WeightFormat("fp8", 8, DType.FP8),
            block_scaled_fp8(),
            WeightFormat("int8", 8, DType.INT8),
            WeightFormat("int4", grouped(4, 128), DType.BF16),
            # OCP Microscaling Formats 1.0: an 8-bit exponent for 32 elements.
            WeightFormat("mxfp4", grouped(4, 32, scale_bits=8, zero_bits=0), DType.FP4),
            # NVIDIA's NVFP4: an fp8 scale for 16 elements; one fp32 scale a tensor weighs nothing.
            WeightFormat("nvfp4", grouped(4, 16, scale_bits=8, zero_bits=0), DType.FP4),
        )
    }
)


STAND_IN_GGUF = {
    "q4_k_m": 4.86,
    "q4_0": 4.6,
    "q8_0": 8.5,
    "q6_k": 6.57,
    "iq4_nl": 4.6,
    "q5_k_m": 5.69,
    "q3_k_m": 3.93,
    "q2_k": 3.0,
}


def weight_format(name: str) -> WeightFormat:
    """The format of that name."""
    if name.lower() in STAND_IN_GGUF:
        return WeightFormat(name, STAND_IN_GGUF[name.lower()], DType.BF16)
    try:
        return FORMATS[name.lower()]
    except KeyError:
        raise UnknownNameError("weight format", name, FORMATS, listing="roofplan fits --help") from None


KV_FORMATS: tuple[DType, ...] = (DType.BF16, DType.FP16, DType.FP8, DType.INT8, DType.INT4)
# Whole-number caches keep a 16-bit scale for 32 elements (ggml's q8_0 and q4_0, what llama.cpp offers); an fp8 cache
# has one scale a tensor (vLLM), which weighs nothing.
KV_ELEMENT_BYTES: Mapping[DType, float] = MappingProxyType({DType.INT8: 34 / 32, DType.INT4: 18 / 32})


def kv_element_bytes(kv: DType) -> float:
    """Bytes one element of the KV cache takes, scales included."""
    return KV_ELEMENT_BYTES.get(kv, kv.bytes)


def kv_format(name: str) -> DType:
    """The KV cache format of that name."""
    if name.lower() not in KV_FORMATS:
        raise UnknownNameError("KV cache format", name, KV_FORMATS, listing="roofplan fits --help")
    return DType(name.lower())


class GgmlType(NamedTuple):
    """A tensor type of ggml: `block_bytes` bytes hold `block_elements` elements."""

    name: str
    block_elements: int
    block_bytes: int

    @property
    def bits_per_weight(self) -> float:
        """True bits per weight, scales and minima included."""
        return 8 * self.block_bytes / self.block_elements


GGML_TYPES: Mapping[int, GgmlType] = MappingProxyType(
    {
        number: GgmlType(name, elements, size)
        for number, name, elements, size in (
            (0, "F32", 1, 4),
            (1, "F16", 1, 2),
            (2, "Q4_0", 32, 18),
            (3, "Q4_1", 32, 20),
            (6, "Q5_0", 32, 22),
            (7, "Q5_1", 32, 24),
            (8, "Q8_0", 32, 34),
            (9, "Q8_1", 32, 40),
            (10, "Q2_K", 256, 84),
            (11, "Q3_K", 256, 110),
            (12, "Q4_K", 256, 144),
            (13, "Q5_K", 256, 176),
            (14, "Q6_K", 256, 210),
            (15, "Q8_K", 256, 292),
            (16, "IQ2_XXS", 256, 66),
            (17, "IQ2_XS", 256, 74),
            (18, "IQ3_XXS", 256, 98),
            (19, "IQ1_S", 256, 50),
            (20, "IQ4_NL", 32, 18),
            (21, "IQ3_S", 256, 110),
            (22, "IQ2_S", 256, 82),
            (23, "IQ4_XS", 256, 136),
            (24, "I8", 1, 1),
            (25, "I16", 1, 2),
            (26, "I32", 1, 4),
            (27, "I64", 1, 8),
            (28, "F64", 1, 8),
            (29, "IQ1_M", 256, 56),
            (30, "BF16", 1, 2),
            (34, "TQ1_0", 256, 54),
            (35, "TQ2_0", 256, 66),
            (39, "MXFP4", 32, 17),
        )
    }
)


def quantised_checkpoint(config: Mapping[str, object], file: str) -> WeightFormat:
    """The format a config.json's `quantization_config` declares; refused by name where it is not known.

    Known: fp8 (per tensor or channel, or with `weight_block_size`), awq and gptq with 4 or 8 bits and a positive
    group, mxfp4, modelopt with NVFP4 or FP8, and compressed-tensors with one kind of weights.
    """
    key, method = "quantization_config", config.get("quant_method")
    scope = _scope(config)
    if method == "fp8":
        return _fp8(config, file)._replace(scope=scope)
    if method == "mxfp4":
        return FORMATS["mxfp4"]._replace(scope=scope)
    if method == "modelopt" and config.get("quant_algo") in ("NVFP4", "FP8"):
        return FORMATS[str(config["quant_algo"]).lower()]._replace(scope=scope)
    if method == "compressed-tensors":
        return _compressed_tensors(config, file)._replace(scope=scope)
    if method in ("awq", "gptq"):
        bits, group = config.get("bits"), config.get("group_size", 128)
        if isinstance(bits, int) and bits in (4, 8) and isinstance(group, int) and 8 <= group <= 65536:
            name = "int4" if (bits, group) == (4, 128) else f"int{bits}-g{group}"
            return WeightFormat(name, grouped(bits, group), DType.BF16)
        raise InputError("awq and gptq need bits 4 or 8 and a group size of 8 or more", file=file, key=key)
    raise InputError(
        "unknown quantisation method",
        file=file,
        key=f"{key}.quant_method",
        value=method,
        remedy="known: fp8, mxfp4, awq, gptq, compressed-tensors, modelopt (NVFP4, FP8); or take the entry out and "
        "pin --weights",
    )


def _scope(config: Mapping[str, object]) -> Scope:
    """What the list of modules left wide leaves to narrow: released checkpoints name attention, then shared experts."""
    wide = [config.get(key) for key in ("modules_to_not_convert", "ignore", "exclude_modules")]
    names = [name for names in wide if isinstance(names, list) for name in names if isinstance(name, str)]
    if not any("self_attn" in name for name in names):
        return Scope.LINEAR
    return Scope.EXPERTS if any("shared_experts" in name for name in names) else Scope.FEEDFORWARD


def _fp8(config: Mapping[str, object], file: str) -> WeightFormat:
    """FP8 by block where the config gives a block, else one scale a tensor or channel, which weighs nothing."""
    block = config.get("weight_block_size")
    if block is None:
        return FORMATS["fp8"]
    sides = block if isinstance(block, list) and len(block) == 2 else [None, None]
    rows, cols = (side if isinstance(side, int) and not isinstance(side, bool) else 0 for side in sides)
    if not (1 <= rows <= 65536 and 1 <= cols <= 65536):
        key = "quantization_config.weight_block_size"
        raise InputError("must be two whole numbers from 1 to 65536", file=file, key=key, value=block)
    return block_scaled_fp8(rows, cols)


def _compressed_tensors(config: Mapping[str, object], file: str) -> WeightFormat:
    """The one kind of weights of a compressed-tensors checkpoint: grouped int4 or int8, fp8, or nvfp4."""
    key = "quantization_config.config_groups"
    groups = config.get("config_groups")
    members = groups.values() if isinstance(groups, dict) else ()
    weights = [group.get("weights") if isinstance(group, dict) else None for group in members]
    kinds = {_kind(kind if isinstance(kind, dict) else {}) for kind in weights}
    if len(kinds) != 1:
        raise InputError("must describe one kind of weights", file=file, key=key)
    [(type_, bits, group, symmetric)] = kinds
    if type_ == "int" and bits in (4, 8) and isinstance(group, int) and 8 <= group <= 65536:
        bits = int(bits)
        zero_bits = bits if symmetric is False else 0
        return WeightFormat(f"int{bits}-g{group}", grouped(bits, group, zero_bits=zero_bits), DType.BF16)
    if type_ == "float" and bits == 8:
        return FORMATS["fp8"]
    if type_ == "float" and bits == 4 and group == 16:
        return FORMATS["nvfp4"]
    remedy = "known: int 4 or 8 with a group size, float 8, float 4 with groups of 16"
    raise InputError("unknown kind of weights", file=file, key=key, value=weights[0], remedy=remedy)


def _kind(weights: Mapping[str, object]) -> tuple[object, ...]:
    """What tells one kind of weights from another; anything but plain values is as good as missing."""
    stated = (weights.get(key) for key in ("type", "num_bits", "group_size", "symmetric"))
    return tuple(value if isinstance(value, str | int) else None for value in stated)
