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
from ...errors import UnknownNameError


class Scope(IntEnum):
    """What a linear layer belongs to: the routed experts, dense and shared feed-forwards, or the token mixers."""

    EXPERTS = 1
    FEEDFORWARD = 2
    LINEAR = 3


class WeightFormat(NamedTuple):
    """How a weight matrix is stored and computed.

    `compute` is the input format of the matrix instructions where the device has it; a narrower storage than
    `compute` means weights are widened on the fly (weight-only quantisation). `block_scaled` weights have one scale
    a block of rows and columns, which the product applies as it goes: another kernel than one scale a tensor.
    `exceptions` are patterns of module names with the format those have instead (None: left wide), the first that
    fits counts (`mixture.py`). A `whole` format narrows embedding and head too; if its name is that of a
    GGUF file type, in the mixture of tensor types that llama.cpp chooses (`gguf_types.py`).
    """

    name: str
    bits_per_weight: float
    compute: DType
    block_scaled: bool = False
    exceptions: tuple[tuple[str, WeightFormat | None], ...] = ()
    whole: bool = False

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


def weight_format(name: str) -> WeightFormat:
    """The format of that name: one of `FORMATS`, or a GGUF file type by llama.cpp's name (Q4_K_M, IQ4_XS, ...)."""
    plain = {"f32": "fp32", "f16": "fp16"}.get(name.lower(), name.lower())
    if plain in FORMATS:
        return FORMATS[plain]
    from .gguf_types import FILE_TYPES, file_type, format_of

    key = file_type(name)
    if key is None:
        raise UnknownNameError("weight format", name, (*FORMATS, *FILE_TYPES), listing="roofplan fits --help")
    return format_of(key)


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
            (40, "NVFP4", 64, 36),
            (41, "Q1_0", 128, 18),
        )
    }
)


def quantised_checkpoint(config: Mapping[str, object], file: str) -> WeightFormat:
    """The format a config.json's `quantization_config` declares (`quantised.py`); refused by name if not known."""
    from .quantised import checkpoint_format

    return checkpoint_format(config, file)
