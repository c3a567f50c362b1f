"""Families of models by the `model_type` of their config.json, one file for each kind; only the one asked for loads."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

# The module of this package that reads a family: its function `read(get)` gives the model.
LLAMA_LIKE = (
    "llama", "mistral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "deepseek_v2", "deepseek_v3", "gpt_oss",
    "minimax_m2", "gemma", "gemma2", "gemma3_text", "cohere", "cohere2", "olmo", "olmo2", "olmo3", "olmoe", "granite",
    "granitemoe", "phi3", "phimoe", "glm", "glm4", "glm4_moe", "glm4_moe_lite", "smollm3", "exaone4", "seed_oss",
    "ernie4_5", "ernie4_5_moe", "stablelm", "starcoder2", "deepseek_v32", "glm_moe_dsa", "llama4_text", "ministral3",
    "nemotron", "hunyuan_v1_moe", "deepseek",
)  # fmt: skip
GPT_LIKE = ("gpt2", "gptj", "gpt_neox", "gpt_bigcode", "opt", "bloom", "falcon", "phi", "mpt")
SINGLE = ("dbrx", "chatglm", "mimo_v2_flash", "mllama_text_model")
RECURRENT = (
    "mamba", "falcon_mamba", "mamba2", "jamba", "nemotron_h", "granitemoehybrid", "qwen3_next", "qwen3_5_text",
    "qwen3_5_moe_text", "minimax", "recurrent_gemma", "lfm2", "kimi_linear",
)  # fmt: skip
GEMMA = ("gemma3n_text", "gemma4_text")
SEQ2SEQ = ("t5", "mt5", "umt5", "bart", "whisper")
MODULES: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(LLAMA_LIKE, "llama"),
        **dict.fromkeys(GPT_LIKE, "gpt"),
        **dict.fromkeys(RECURRENT, "recurrent"),
        **dict.fromkeys(SINGLE, "single"),
        **dict.fromkeys(GEMMA, "gemma"),
        **dict.fromkeys(SEQ2SEQ, "seq2seq"),
    }
)
# Other names the same classes go by.
ALIASES: Mapping[str, str] = MappingProxyType(
    {
        "kimi_k2": "deepseek_v3",  # Kimi-K2 runs DeepSeek-V3's classes
        "RefinedWeb": "falcon",
        "RefinedWebModel": "falcon",
        "minimax_text_01": "minimax",
        "minimax_m1": "minimax",
        "qwen3_5": "qwen3_5_text",
        "qwen3_5_moe": "qwen3_5_moe_text",
        "internlm2": "llama",  # one product for q, k and v
        "baichuan": "llama",  # the same, and ALiBi instead of rotary positions
        "qwen2_vl": "qwen2",
        "qwen2_vl_text": "qwen2",
        "qwen2_5_vl": "qwen2",
        "qwen2_5_vl_text": "qwen2",
        "qwen3_vl_text": "qwen3",
        "qwen3_vl_moe_text": "qwen3_moe",
        "gemma3": "gemma3_text",
        "gemma3n": "gemma3n_text",
        "gemma4": "gemma4_text",
        "llama4": "llama4_text",
    }
)
