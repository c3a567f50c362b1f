"""Number formats as hardware and models name them."""

from __future__ import annotations

from enum import StrEnum


class DType(StrEnum):
    """A number format of arithmetic or storage."""

    FP64 = "fp64"
    FP32 = "fp32"
    TF32 = "tf32"
    FP16 = "fp16"
    BF16 = "bf16"
    FP8 = "fp8"
    INT8 = "int8"
    FP4 = "fp4"
    INT4 = "int4"

    @property
    def bits(self) -> int:
        """Bits one element occupies in memory (TF32 is stored as 32)."""
        return _BITS[self.value]

    @property
    def bytes(self) -> float:
        """Bytes one element occupies in memory."""
        return self.bits / 8


_BITS = {"fp64": 64, "fp32": 32, "tf32": 32, "fp16": 16, "bf16": 16, "fp8": 8, "int8": 8, "fp4": 4, "int4": 4}
