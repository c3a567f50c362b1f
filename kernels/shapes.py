"""Layers of named models, for judging: shapes that no calibration grid holds.

Widths, heads and experts as in the models' config.json; `tests/test_kernels_contract.py` holds them equal to the
bundled models.
"""

from __future__ import annotations

from typing import NamedTuple


class Layers(NamedTuple):
    """What one layer of a model multiplies on one of `tp` devices."""

    name: str
    tp: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int

    @property
    def linear(self) -> tuple[tuple[str, int, int], ...]:
        """Name, n and k of the four products of a layer on one device."""
        heads, kv_heads, inner = self.heads // self.tp, self.kv_heads // self.tp, self.intermediate // self.tp
        return (
            ("qkv", (heads + 2 * kv_heads) * self.head_dim, self.hidden),
            ("output", self.hidden, heads * self.head_dim),
            ("gate and up", 2 * inner, self.hidden),
            ("down", self.hidden, inner),
        )

    @property
    def label(self) -> str:
        """`llama-3.1-70b tp4`."""
        return self.name if self.tp == 1 else f"{self.name} tp{self.tp}"


LLAMA_8B = Layers("llama-3.1-8b", 1, 4096, 14336, 32, 8, 128)
LLAMA_70B_TP4 = Layers("llama-3.1-70b", 4, 8192, 28672, 64, 8, 128)
QWEN_32B = Layers("qwen3-32b", 1, 5120, 25600, 64, 8, 128)
NAMED = (LLAMA_8B, LLAMA_70B_TP4, QWEN_32B)


class ExpertLayer(NamedTuple):
    """The routed experts of one layer of a model."""

    name: str
    hidden: int
    intermediate: int
    experts: int
    top_k: int


MIXTRAL = ExpertLayer("mixtral-8x7b", 4096, 14336, 8, 2)
QWEN_MOE = ExpertLayer("qwen3-30b-a3b", 2048, 768, 128, 8)
EXPERT_LAYERS = (MIXTRAL, QWEN_MOE)
