"""The families that vary Llama without experts: norms, biases, windows, one row of facts each.

The defaults are those of each family's configuration class in `transformers` (a test holds them equal).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from ..layers import Norms

SANDWICH = Norms(2, 2)  # a norm before and one behind each half
LAYER_NORM = Norms(vectors=2)


class Family(NamedTuple):
    """What distinguishes a family: defaults of its configuration class and the shape of its layers.

    `qkv_bias` is what holds where the config has no `qkv_bias_key`, or the family none. `window_period`: every so many
    layers one sees everything, the others a window (0: `gated_window` or all alike). `shared_key` names the shared
    experts: how many, or their width where it is a width; `dense_first_key` how many layers start without experts.
    `length_key` names the longest context where the config has that key.
    """

    defaults: Mapping[str, Any]
    qkv_bias_key: str | None = None
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: bool = False
    qk_norm_key: str | None = None
    whole_norm: bool = False
    sinks: bool = False
    latent: bool = False
    indexed: bool = False
    norms: Norms = Norms()
    parallel: bool = False
    gated: bool = True
    mlp_bias_key: str | None = None
    head_bias_key: str | None = None
    tied: bool = False
    windowless: bool = False
    gated_window: bool = False
    window_period: int = 0
    window_key: str = "sliding_window"
    moe: bool = False
    expert_bias: bool = False
    experts_key: str = "num_experts"
    top_k_key: str = "num_experts_per_tok"
    expert_width_key: str = "moe_intermediate_size"
    dense_width_key: str = "intermediate_size"
    shared_key: str | None = None
    shared_is_width: bool = False
    shared_switch: bool = False
    dense_first_key: str | None = None
    correction: bool = False
    length_key: str = "max_position_embeddings"


def defaults(**values: Any) -> Mapping[str, Any]:
    """What the configuration class of a family fills in."""
    return MappingProxyType(values)


DENSE: Mapping[str, Family] = MappingProxyType(
    {
        "llama": Family(
            defaults(max_position_embeddings=2048, num_key_value_heads=None, head_dim=None, mlp_bias=False),
            qkv_bias_key="attention_bias",
            out_bias=True,
            mlp_bias_key="mlp_bias",
        ),
        "mistral": Family(
            defaults(max_position_embeddings=131072, num_key_value_heads=8, head_dim=None, sliding_window=4096)
        ),
        "ministral3": Family(
            defaults(max_position_embeddings=262144, num_key_value_heads=8, head_dim=128, sliding_window=None)
        ),
        "qwen2": Family(
            defaults(
                max_position_embeddings=32768,
                num_key_value_heads=32,
                sliding_window=4096,
                use_sliding_window=False,
                max_window_layers=28,
            ),
            qkv_bias=True,
            gated_window=True,
        ),
        "qwen3": Family(
            defaults(
                max_position_embeddings=32768,
                num_key_value_heads=32,
                head_dim=128,
                sliding_window=4096,
                use_sliding_window=False,
                max_window_layers=28,
            ),
            qkv_bias_key="attention_bias",
            out_bias=True,
            qk_norm=True,
            gated_window=True,
        ),
        "gemma": Family(
            defaults(max_position_embeddings=8192, num_key_value_heads=16, head_dim=256),
            qkv_bias_key="attention_bias",
            out_bias=True,
            windowless=True,
            tied=True,
        ),
        "gemma2": Family(
            defaults(max_position_embeddings=8192, num_key_value_heads=4, head_dim=256, sliding_window=4096),
            qkv_bias_key="attention_bias",
            out_bias=True,
            norms=SANDWICH,
            window_period=2,
            tied=True,
        ),
        "gemma3_text": Family(
            defaults(
                max_position_embeddings=131072,
                num_attention_heads=8,
                num_key_value_heads=4,
                head_dim=256,
                sliding_window=4096,
                vocab_size=262208,
            ),
            qkv_bias_key="attention_bias",
            out_bias=True,
            qk_norm=True,
            norms=SANDWICH,
            window_period=6,
            tied=True,
        ),
        "cohere": Family(
            defaults(max_position_embeddings=8192, num_key_value_heads=None, head_dim=None),
            qkv_bias_key="attention_bias",
            out_bias=True,
            qk_norm_key="use_qk_norm",
            whole_norm=True,
            norms=Norms(1, 0),
            parallel=True,
            windowless=True,
            tied=True,
            length_key="model_max_length",  # rotary positions reach further than max_position_embeddings says
        ),
        "cohere2": Family(
            defaults(max_position_embeddings=8192, num_key_value_heads=None, head_dim=None, sliding_window=4096),
            qkv_bias_key="attention_bias",
            out_bias=True,
            norms=Norms(1, 0),
            parallel=True,
            window_period=4,
            tied=True,
        ),
        "olmo": Family(
            defaults(max_position_embeddings=2048, num_key_value_heads=None, head_dim=None),
            qkv_bias_key="attention_bias",
            out_bias=True,
            norms=Norms(vectors=0),
            windowless=True,
        ),
        "olmo2": Family(
            defaults(max_position_embeddings=2048, num_key_value_heads=None, head_dim=None),
            qkv_bias_key="attention_bias",
            out_bias=True,
            qk_norm=True,
            whole_norm=True,
            windowless=True,
        ),
        "olmo3": Family(
            defaults(max_position_embeddings=2048, num_key_value_heads=None, head_dim=None, sliding_window=4096),
            qkv_bias_key="attention_bias",
            out_bias=True,
            qk_norm=True,
            whole_norm=True,
            window_period=4,
        ),
        "granite": Family(
            defaults(max_position_embeddings=2048, num_key_value_heads=None, head_dim=None, mlp_bias=False),
            qkv_bias_key="attention_bias",
            out_bias=True,
            mlp_bias_key="mlp_bias",
            windowless=True,
        ),
        "phi3": Family(
            defaults(max_position_embeddings=4096, num_key_value_heads=None, head_dim=None, sliding_window=None)
        ),
        "glm": Family(
            defaults(max_position_embeddings=131072, num_key_value_heads=2, head_dim=128),
            qkv_bias_key="attention_bias",
            qkv_bias=True,
            windowless=True,
        ),
        "glm4": Family(
            defaults(max_position_embeddings=131072, num_key_value_heads=2, head_dim=128),
            qkv_bias_key="attention_bias",
            qkv_bias=True,
            norms=SANDWICH,
            windowless=True,
        ),
        "smollm3": Family(
            defaults(max_position_embeddings=32768, num_key_value_heads=4, head_dim=None, mlp_bias=False),
            qkv_bias_key="attention_bias",
            out_bias=True,
            mlp_bias_key="mlp_bias",
            windowless=True,
            tied=True,
        ),
        "exaone4": Family(
            defaults(max_position_embeddings=2048, num_key_value_heads=32, head_dim=None, sliding_window=4096),
            qk_norm=True,
            window_period=4,
        ),
        "seed_oss": Family(
            defaults(max_position_embeddings=524288, num_key_value_heads=8, head_dim=128, mlp_bias=False),
            qkv_bias_key="attention_bias",
            qkv_bias=True,
            mlp_bias_key="mlp_bias",
            windowless=True,
        ),
        "ernie4_5": Family(
            defaults(max_position_embeddings=131072, num_key_value_heads=2, head_dim=128),
            qkv_bias_key="use_bias",
            out_bias=True,
            mlp_bias_key="use_bias",
            windowless=True,
            tied=True,
        ),
        "stablelm": Family(
            defaults(max_position_embeddings=4096, num_key_value_heads=32, head_dim=None, use_parallel_residual=False),
            qkv_bias_key="use_qkv_bias",
            qk_norm_key="qk_layernorm",
            whole_norm=True,
            norms=LAYER_NORM,
            windowless=True,
        ),
        "starcoder2": Family(
            defaults(max_position_embeddings=4096, num_key_value_heads=2, head_dim=None, sliding_window=None),
            qkv_bias_key="use_bias",
            qkv_bias=True,
            out_bias=True,
            norms=LAYER_NORM,
            gated=False,
            mlp_bias_key="use_bias",
            tied=True,
        ),
        "nemotron": Family(
            defaults(max_position_embeddings=4096, num_key_value_heads=None, head_dim=None, mlp_bias=False),
            qkv_bias_key="attention_bias",
            out_bias=True,
            norms=LAYER_NORM,
            gated=False,
            mlp_bias_key="mlp_bias",
            windowless=True,
        ),
    }
)
