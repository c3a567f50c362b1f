"""The families that vary Llama: norms, biases, windows, experts and latent attention, one row of facts each.

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


def _defaults(**values: Any) -> Mapping[str, Any]:
    return MappingProxyType(values)


# What the later configuration classes make of `mlp_layer_types` where a config has neither.
DENSE_FIRST = {"first_k_dense_replace": 3}
LATENT = {"q_lora_rank": 1536, "kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128}
FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "llama": Family(
            _defaults(max_position_embeddings=2048, num_key_value_heads=None, head_dim=None, mlp_bias=False),
            qkv_bias_key="attention_bias",
            out_bias=True,
            mlp_bias_key="mlp_bias",
        ),
        "mistral": Family(
            _defaults(max_position_embeddings=131072, num_key_value_heads=8, head_dim=None, sliding_window=4096)
        ),
        "mixtral": Family(
            _defaults(
                max_position_embeddings=131072,
                num_key_value_heads=8,
                head_dim=None,
                sliding_window=None,
                num_local_experts=8,
                num_experts_per_tok=2,
            ),
            moe=True,
            experts_key="num_local_experts",
            expert_width_key="intermediate_size",
        ),
        "qwen2": Family(
            _defaults(
                max_position_embeddings=32768,
                num_key_value_heads=32,
                sliding_window=4096,
                use_sliding_window=False,
                max_window_layers=28,
            ),
            qkv_bias=True,
            gated_window=True,
        ),
        "qwen2_moe": Family(
            _defaults(
                max_position_embeddings=32768,
                num_key_value_heads=16,
                sliding_window=4096,
                use_sliding_window=False,
                max_window_layers=28,
                decoder_sparse_step=1,
                moe_intermediate_size=1408,
                shared_expert_intermediate_size=5632,
                num_experts=60,
                num_experts_per_tok=4,
                mlp_only_layers=None,
            ),
            qkv_bias_key="qkv_bias",
            qkv_bias=True,
            gated_window=True,
            moe=True,
            shared_key="shared_expert_intermediate_size",
            shared_is_width=True,
            shared_switch=True,
        ),
        "qwen3": Family(
            _defaults(
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
        "qwen3_moe": Family(
            _defaults(
                max_position_embeddings=32768,
                num_key_value_heads=4,
                head_dim=None,
                sliding_window=4096,
                use_sliding_window=False,
                decoder_sparse_step=1,
                moe_intermediate_size=768,
                num_experts=128,
                num_experts_per_tok=8,
                mlp_only_layers=None,
            ),
            qkv_bias_key="attention_bias",
            out_bias=True,
            qk_norm=True,
            moe=True,
            gated_window=True,
        ),
        "deepseek_v2": Family(
            _defaults(
                max_position_embeddings=2048,
                **LATENT,
                first_k_dense_replace=0,
                n_routed_experts=64,
                n_shared_experts=2,
                num_experts_per_tok=None,
                moe_intermediate_size=1407,
            ),
            qkv_bias_key="attention_bias",
            latent=True,
            moe=True,
            experts_key="n_routed_experts",
            shared_key="n_shared_experts",
            dense_first_key="first_k_dense_replace",
        ),
        "deepseek_v3": Family(
            _defaults(
                max_position_embeddings=4096,
                **LATENT,
                first_k_dense_replace=3,
                n_routed_experts=256,
                n_shared_experts=1,
                num_experts_per_tok=8,
                moe_intermediate_size=2048,
            ),
            qkv_bias_key="attention_bias",
            latent=True,
            moe=True,
            experts_key="n_routed_experts",
            shared_key="n_shared_experts",
            dense_first_key="first_k_dense_replace",
        ),
        "deepseek_v32": Family(
            _defaults(
                max_position_embeddings=163840,
                **LATENT,
                n_routed_experts=256,
                n_shared_experts=1,
                num_experts_per_tok=8,
                moe_intermediate_size=2048,
                index_head_dim=128,
                index_n_heads=64,
            ),
            qkv_bias_key="attention_bias",
            latent=True,
            indexed=True,
            moe=True,
            experts_key="n_routed_experts",
            shared_key="n_shared_experts",
            dense_first_key="first_k_dense_replace",
        ),
        "glm_moe_dsa": Family(
            _defaults(
                max_position_embeddings=202752,
                **(LATENT | {"q_lora_rank": 2048, "qk_nope_head_dim": 192, "v_head_dim": 256}),
                n_routed_experts=256,
                n_shared_experts=1,
                num_experts_per_tok=8,
                moe_intermediate_size=2048,
                index_head_dim=128,
                index_n_heads=32,
            ),
            qkv_bias_key="attention_bias",
            latent=True,
            indexed=True,
            moe=True,
            experts_key="n_routed_experts",
            shared_key="n_shared_experts",
            dense_first_key="first_k_dense_replace",
        ),
        "glm4_moe_lite": Family(
            _defaults(
                max_position_embeddings=202752,
                **(LATENT | {"q_lora_rank": 768, "qk_nope_head_dim": 192, "v_head_dim": 256}),
                n_routed_experts=64,
                n_shared_experts=1,
                num_experts_per_tok=4,
                moe_intermediate_size=1536,
            ),
            qkv_bias_key="attention_bias",
            latent=True,
            moe=True,
            experts_key="n_routed_experts",
            shared_key="n_shared_experts",
            dense_first_key="first_k_dense_replace",
        ),
        "gpt_oss": Family(
            _defaults(
                max_position_embeddings=131072,
                num_key_value_heads=8,
                head_dim=64,
                sliding_window=128,
                num_local_experts=128,
                num_experts_per_tok=4,
            ),
            qkv_bias_key="attention_bias",
            qkv_bias=True,
            out_bias=True,
            sinks=True,
            moe=True,
            expert_bias=True,
            experts_key="num_local_experts",
            expert_width_key="intermediate_size",
            window_period=2,
        ),
        "minimax_m2": Family(
            _defaults(
                max_position_embeddings=196608,
                num_key_value_heads=8,
                head_dim=128,
                num_local_experts=256,
                num_experts_per_tok=8,
            ),
            qk_norm=True,
            whole_norm=True,
            windowless=True,
            moe=True,
            experts_key="num_local_experts",
            expert_width_key="intermediate_size",
        ),
        "gemma": Family(
            _defaults(max_position_embeddings=8192, num_key_value_heads=16, head_dim=256),
            qkv_bias_key="attention_bias",
            out_bias=True,
            windowless=True,
            tied=True,
        ),
        "gemma2": Family(
            _defaults(max_position_embeddings=8192, num_key_value_heads=4, head_dim=256, sliding_window=4096),
            qkv_bias_key="attention_bias",
            out_bias=True,
            norms=SANDWICH,
            window_period=2,
            tied=True,
        ),
        "gemma3_text": Family(
            _defaults(
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
            _defaults(max_position_embeddings=8192, num_key_value_heads=None, head_dim=None),
            qkv_bias_key="attention_bias",
            out_bias=True,
            qk_norm_key="use_qk_norm",
            whole_norm=True,
            norms=Norms(1, 0),
            parallel=True,
            windowless=True,
            tied=True,
        ),
        "cohere2": Family(
            _defaults(max_position_embeddings=8192, num_key_value_heads=None, head_dim=None, sliding_window=4096),
            qkv_bias_key="attention_bias",
            out_bias=True,
            norms=Norms(1, 0),
            parallel=True,
            window_period=4,
            tied=True,
        ),
        "olmo": Family(
            _defaults(max_position_embeddings=2048, num_key_value_heads=None, head_dim=None),
            qkv_bias_key="attention_bias",
            out_bias=True,
            norms=Norms(vectors=0),
            windowless=True,
        ),
        "olmo2": Family(
            _defaults(max_position_embeddings=2048, num_key_value_heads=None, head_dim=None),
            qkv_bias_key="attention_bias",
            out_bias=True,
            qk_norm=True,
            whole_norm=True,
            windowless=True,
        ),
        "olmo3": Family(
            _defaults(max_position_embeddings=2048, num_key_value_heads=None, head_dim=None, sliding_window=4096),
            qkv_bias_key="attention_bias",
            out_bias=True,
            qk_norm=True,
            whole_norm=True,
            window_period=4,
        ),
        "olmoe": Family(
            _defaults(
                max_position_embeddings=4096,
                num_key_value_heads=None,
                head_dim=None,
                num_experts=64,
                num_experts_per_tok=8,
            ),
            qkv_bias_key="attention_bias",
            out_bias=True,
            qk_norm=True,
            whole_norm=True,
            windowless=True,
            moe=True,
            expert_width_key="intermediate_size",
        ),
        "granite": Family(
            _defaults(max_position_embeddings=2048, num_key_value_heads=None, head_dim=None, mlp_bias=False),
            qkv_bias_key="attention_bias",
            out_bias=True,
            mlp_bias_key="mlp_bias",
            windowless=True,
        ),
        "granitemoe": Family(
            _defaults(
                max_position_embeddings=2048,
                num_key_value_heads=None,
                head_dim=None,
                num_local_experts=8,
                num_experts_per_tok=2,
            ),
            qkv_bias_key="attention_bias",
            out_bias=True,
            windowless=True,
            moe=True,
            experts_key="num_local_experts",
            expert_width_key="intermediate_size",
        ),
        "phi3": Family(
            _defaults(max_position_embeddings=4096, num_key_value_heads=None, head_dim=None, sliding_window=None)
        ),
        "phimoe": Family(
            _defaults(
                max_position_embeddings=131072,
                num_key_value_heads=8,
                head_dim=None,
                sliding_window=None,
                num_local_experts=16,
                num_experts_per_tok=2,
            ),
            qkv_bias_key="attention_bias",
            out_bias=True,
            norms=LAYER_NORM,
            head_bias_key="lm_head_bias",
            moe=True,
            experts_key="num_local_experts",
            expert_width_key="intermediate_size",
        ),
        "glm": Family(
            _defaults(max_position_embeddings=131072, num_key_value_heads=2, head_dim=128),
            qkv_bias_key="attention_bias",
            qkv_bias=True,
            windowless=True,
        ),
        "glm4": Family(
            _defaults(max_position_embeddings=131072, num_key_value_heads=2, head_dim=128),
            qkv_bias_key="attention_bias",
            qkv_bias=True,
            norms=SANDWICH,
            windowless=True,
        ),
        "glm4_moe": Family(
            _defaults(
                max_position_embeddings=131072,
                num_key_value_heads=8,
                head_dim=None,
                first_k_dense_replace=1,
                n_routed_experts=128,
                n_shared_experts=1,
                num_experts_per_tok=8,
                moe_intermediate_size=1408,
            ),
            qkv_bias_key="attention_bias",
            qk_norm_key="use_qk_norm",
            windowless=True,
            moe=True,
            experts_key="n_routed_experts",
            shared_key="n_shared_experts",
            dense_first_key="first_k_dense_replace",
        ),
        "smollm3": Family(
            _defaults(max_position_embeddings=32768, num_key_value_heads=4, head_dim=None, mlp_bias=False),
            qkv_bias_key="attention_bias",
            out_bias=True,
            mlp_bias_key="mlp_bias",
            windowless=True,
            tied=True,
        ),
        "exaone4": Family(
            _defaults(max_position_embeddings=2048, num_key_value_heads=32, head_dim=None, sliding_window=4096),
            qk_norm=True,
            window_period=4,
        ),
        "seed_oss": Family(
            _defaults(max_position_embeddings=524288, num_key_value_heads=8, head_dim=128, mlp_bias=False),
            qkv_bias_key="attention_bias",
            qkv_bias=True,
            mlp_bias_key="mlp_bias",
            windowless=True,
        ),
        "ernie4_5": Family(
            _defaults(max_position_embeddings=131072, num_key_value_heads=2, head_dim=128),
            qkv_bias_key="use_bias",
            out_bias=True,
            mlp_bias_key="use_bias",
            windowless=True,
            tied=True,
        ),
        "ernie4_5_moe": Family(
            _defaults(
                max_position_embeddings=131072,
                num_key_value_heads=4,
                head_dim=None,
                moe_num_experts=64,
                moe_k=6,
                moe_num_shared_experts=2,
                moe_intermediate_size=1536,
                moe_layer_start_index=1,
            ),
            qkv_bias_key="use_bias",
            out_bias=True,
            mlp_bias_key="use_bias",
            windowless=True,
            tied=True,
            moe=True,
            experts_key="moe_num_experts",
            top_k_key="moe_k",
            shared_key="moe_num_shared_experts",
            dense_first_key="moe_layer_start_index",
            correction=True,
        ),
        "stablelm": Family(
            _defaults(max_position_embeddings=4096, num_key_value_heads=32, head_dim=None, use_parallel_residual=False),
            qkv_bias_key="use_qkv_bias",
            qk_norm_key="qk_layernorm",
            whole_norm=True,
            norms=LAYER_NORM,
            windowless=True,
        ),
        "starcoder2": Family(
            _defaults(max_position_embeddings=4096, num_key_value_heads=2, head_dim=None, sliding_window=None),
            qkv_bias_key="use_bias",
            qkv_bias=True,
            out_bias=True,
            norms=LAYER_NORM,
            gated=False,
            mlp_bias_key="use_bias",
            tied=True,
        ),
        "llama4_text": Family(
            _defaults(
                max_position_embeddings=131072,
                num_key_value_heads=8,
                head_dim=128,
                num_local_experts=16,
                num_experts_per_tok=1,
                interleave_moe_layer_step=1,
                attention_chunk_size=8192,
                no_rope_layer_interval=4,
            ),
            qkv_bias_key="attention_bias",
            out_bias=True,
            window_period=4,
            window_key="attention_chunk_size",
            moe=True,
            experts_key="num_local_experts",
            expert_width_key="intermediate_size",
            dense_width_key="intermediate_size_mlp",
            shared_key="intermediate_size",
            shared_is_width=True,
        ),
    }
)
