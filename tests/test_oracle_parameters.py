"""Parameter counts, class defaults and attention windows against `transformers` itself, on the meta device."""

from __future__ import annotations

import inspect
import json
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedConfig

from roofplan.simulator.workload import zoo
from roofplan.simulator.workload.families import ALIASES
from roofplan.simulator.workload.families.llama import FAMILIES
from roofplan.simulator.workload.hf import parse_config
from roofplan.simulator.workload.model import Model

Config = dict[str, Any]

SMALL: Config = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 320,
}
DENSE = ("llama", "mistral", "qwen2", "qwen3")
QWEN = ("qwen2", "qwen3", "qwen3_moe")
EXPERT_KEYS = {
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 40},
    "deepseek_v3": {
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 40,
        "q_lora_rank": 24,
        "kv_lora_rank": 20,
        "qk_nope_head_dim": 12,
        "qk_rope_head_dim": 6,
        "v_head_dim": 10,
        "first_k_dense_replace": 1,
    },
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "minimax_m2": {"num_local_experts": 4, "num_experts_per_tok": 2},
}
ABSENT = "absent"  # the key is left out, so that the default of the class counts

COMMON: tuple[Config, ...] = (
    {},
    {"tie_word_embeddings": True},
    {"tie_word_embeddings": False, "vocab_size": 321},
    {"num_key_value_heads": ABSENT, "num_attention_heads": 32, "hidden_size": 128},
    {"num_key_value_heads": ABSENT, "num_attention_heads": 64, "hidden_size": 256, "head_dim": 8},
    {"num_key_value_heads": 8},
    {"num_key_value_heads": 1, "num_attention_heads": 3, "hidden_size": 48},
    {"head_dim": 24},
    {"head_dim": 4, "tie_word_embeddings": True},
    {"num_hidden_layers": 1},
    {"attention_bias": True},
    {"attention_bias": True, "head_dim": 20, "tie_word_embeddings": True},
    {"mlp_bias": True},
    {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 4},
    {"intermediate_size": 1000, "hidden_size": 8, "num_attention_heads": 2},
    {"sliding_window": 16},
    {"sliding_window": None},
    {"sliding_window": ABSENT},
)
NULLS: tuple[Config, ...] = ({"num_key_value_heads": None}, {"head_dim": None})
NULLS_OF = {  # the other classes refuse null for these keys
    "llama": NULLS,
    "mistral": NULLS[1:],
    "mixtral": NULLS[1:],
    "qwen2": NULLS[:1],
    "qwen3": NULLS[:1],
    "qwen3_moe": (),
    "deepseek_v3": NULLS[:1],
    "gpt_oss": (),
    "minimax_m2": (),
}
GATED_WINDOWS: tuple[Config, ...] = (
    {"use_sliding_window": True},
    {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 2},
    {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 0},
    {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 9},
    {"use_sliding_window": True, "sliding_window": 16, "num_hidden_layers": 30},
    {"use_sliding_window": True, "sliding_window": None, "max_window_layers": 0},
    {"use_sliding_window": False, "sliding_window": 16, "max_window_layers": 0},
)
SPARSE: dict[str, tuple[Config, ...]] = {
    "mixtral": (
        {"num_local_experts": ABSENT, "num_experts_per_tok": ABSENT},
        {"num_local_experts": 3, "num_experts_per_tok": 3},
        {"num_local_experts": 1, "num_experts_per_tok": 1, "tie_word_embeddings": True},
    ),
    "qwen3_moe": (
        {"num_experts": ABSENT, "num_experts_per_tok": ABSENT, "moe_intermediate_size": ABSENT},
        {"num_experts": 7, "num_experts_per_tok": 7},
        {"decoder_sparse_step": 2},
        {"decoder_sparse_step": 3, "num_hidden_layers": 7},
        {"decoder_sparse_step": 9},
        {"mlp_only_layers": [0]},
        {"mlp_only_layers": [0, 3], "attention_bias": True},
        {"mlp_only_layers": [0, 1, 2, 3]},
        {"mlp_only_layers": None},
        {"mlp_only_layers": [1], "decoder_sparse_step": 2, "num_hidden_layers": 6},
    ),
    "deepseek_v3": (
        {"q_lora_rank": None},
        {"q_lora_rank": None, "attention_bias": True},
        dict.fromkeys(EXPERT_KEYS["deepseek_v3"], ABSENT) | {"num_hidden_layers": 5},
        {"first_k_dense_replace": 0},
        {"first_k_dense_replace": 9},
        {"n_shared_experts": 3},
        {"num_nextn_predict_layers": 3},
        {"v_head_dim": 31, "kv_lora_rank": 7},
    ),
    "gpt_oss": (
        {"attention_bias": False},
        {"num_local_experts": ABSENT, "num_experts_per_tok": ABSENT, "head_dim": ABSENT},
        {"num_hidden_layers": 5, "sliding_window": 7},
        {"layer_types": ["full_attention"] * 3 + ["sliding_attention"]},
    ),
    "minimax_m2": (
        {"num_local_experts": ABSENT, "num_experts_per_tok": ABSENT, "head_dim": ABSENT},
        {"rotary_dim": 4},
    ),
}


def small(family: str, changes: Config) -> Config:
    """A config.json of the family with a handful of parameters; a change to `ABSENT` leaves the key out."""
    config = {"model_type": family, **SMALL, **EXPERT_KEYS.get(family, {}), **changes}
    return {key: value for key, value in config.items() if not (isinstance(value, str) and value == ABSENT)}


def variants() -> list[Config]:
    """All small configurations of all families."""
    found = []
    for family in NULLS_OF:
        gated = GATED_WINDOWS if family in QWEN else ()
        found += [small(family, c) for c in (*COMMON, *NULLS_OF[family], *gated, *SPARSE.get(family, ()))]
    return found


def label(config: Config) -> str:
    """What a small configuration changes, for the name of its test."""
    base = {**SMALL, **EXPERT_KEYS.get(config["model_type"], {})}
    parts = [f"{k}={v}" for k, v in config.items() if k != "model_type" and base.get(k, ABSENT) != v]
    parts += [f"no-{k}" for k in base if k not in config]
    return "-".join([config["model_type"], *parts])


def bundled(name: str) -> Config:
    """The config.json of a bundled model, read without roofplan's parser."""
    entries = map(json.loads, zoo.ZOO.read_text(encoding="utf-8").splitlines())
    return next(dict(e["config"]) for e in entries if e["name"] == name)


# Families without a class of their own: one that holds the same tensors, and what it calls their keys.
CHATGLM = {
    "num_layers": "num_hidden_layers",
    "ffn_hidden_size": "intermediate_size",
    "multi_query_group_num": "num_key_value_heads",
    "kv_channels": "head_dim",
    "padded_vocab_size": "vocab_size",
    "add_qkv_bias": "attention_bias",
}
STAND_IN: dict[str, tuple[str, dict[str, str]]] = {
    "internlm2": ("llama", {}),
    "baichuan": ("llama", {}),
    "chatglm": ("glm", CHATGLM),
}


def class_config(config: Config) -> PreTrainedConfig:
    """What `transformers` makes of a config.json; how a checkpoint is quantised changes no count.

    A checkpoint's head is tied or not as its text config says, where the config around it does not.
    """
    family, renamed = STAND_IN.get(config["model_type"], (config["model_type"], {}))
    family = family if "vision_config" in config else ALIASES.get(family, family)
    keys = {renamed.get(k, k): v for k, v in config.items() if k not in ("model_type", "quantization_config")}
    text = config.get("text_config", {})
    tied = {k: text[k] for k in ("tie_word_embeddings",) if k in text}
    if family == "glm":
        keys["pad_token_id"] = 0  # the class's own lies outside a smaller vocabulary
    return CONFIG_MAPPING[family](**{**tied, **keys})


def parameters(config: Config) -> int:
    """Unique parameters of the `transformers` model; `parameters()` yields tied weights once."""
    auto = AutoModelForImageTextToText if "vision_config" in config else AutoModelForCausalLM
    with torch.device("meta"):
        model = auto.from_config(class_config(config))
    assert all(p.device.type == "meta" for p in model.parameters())
    return sum(p.numel() for p in model.parameters())


def windows(config: PreTrainedConfig) -> list[int | None]:
    """The sliding window of each layer as the model classes apply it: by `layer_types` where there are any.

    DeepSeek and MiniMax know no window (their masks are plain causal ones).
    """
    window = None if config.model_type in ("deepseek_v3", "minimax_m2") else getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    return [window if kind == "sliding_attention" else None for kind in types]


def our_windows(model: Model) -> list[int | None]:
    """The sliding window of each layer as roofplan read it."""
    return [model.blocks[i].attention.window for i in model.pattern]


def entries() -> list[Config]:
    """The lines of the zoo as they stand."""
    return [json.loads(line) for line in zoo.ZOO.read_text(encoding="utf-8").splitlines()]


def test_every_line_of_the_zoo_names_its_oracle() -> None:
    assert len(entries()) >= 185
    for entry in entries():
        assert entry["oracle"] in ("transformers", "diffusers", "published"), entry["name"]
        if entry["oracle"] == "published":
            assert entry["parameters"] > 0 and entry["parameters_source"], entry["name"]


def test_models_without_a_class_have_the_published_total() -> None:
    for entry in entries():
        if entry["oracle"] == "published":
            assert zoo.bundled(entry["name"]).parameters == entry["parameters"], entry["name"]


DECODERS = [e["name"] for e in entries() if e["oracle"] == "transformers" and "oracle_class" not in e]


@pytest.mark.parametrize("name", DECODERS)
def test_bundled_parameters(name: str) -> None:
    assert zoo.bundled(name).parameters == parameters(bundled(name))


@pytest.mark.parametrize("name", [e["name"] for e in entries() if e.get("config", {}).get("model_type") in NULLS_OF])
def test_bundled_windows(name: str) -> None:
    assert our_windows(zoo.bundled(name)) == windows(class_config(bundled(name)))


@pytest.mark.parametrize("config", variants(), ids=label)
def test_small_parameters_and_windows(config: Config) -> None:
    model = parse_config(config, name="small", file="config.json")
    assert model.parameters == parameters(config)
    assert our_windows(model) == windows(class_config(config))


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_stated_layer_types_decide_the_windows(family: str) -> None:
    types = ["full_attention", "sliding_attention", "full_attention", "sliding_attention"]
    changes = {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 2, "layer_types": types}
    config = small(family, changes)
    assert windows(class_config(config)) == [None, 16, None, 16]
    assert our_windows(parse_config(config, name="small", file="config.json")) == [None, 16, None, 16]


def test_windows_of_the_module_match_the_config() -> None:
    """The oracle above reads configs; the attention modules of the Qwen classes agree with it."""
    for family in QWEN:
        config = small(family, {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 2})
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(class_config(config))
        assert [layer.self_attn.sliding_window for layer in model.model.layers] == windows(class_config(config))


@pytest.mark.parametrize("family", [f for f in FAMILIES if f in CONFIG_MAPPING])
def test_stated_defaults_are_those_of_the_class(family: str) -> None:
    signature = inspect.signature(CONFIG_MAPPING[family]).parameters
    assert signature["hidden_size"].default is not inspect.Parameter.empty
    for key, value in FAMILIES[family].defaults.items():
        assert value == (signature[key].default if key in signature else None), key


@pytest.mark.parametrize("family", [f for f in FAMILIES if f in CONFIG_MAPPING])
def test_flags_the_reader_assumes_are_those_of_the_class(family: str) -> None:
    signature, ours = inspect.signature(CONFIG_MAPPING[family]).parameters, FAMILIES[family]
    tied = signature["tie_word_embeddings"].default if "tie_word_embeddings" in signature else True
    assert tied is ours.tied
    for key in ("mlp_bias", "use_sliding_window"):
        assert key not in signature or signature[key].default is False, key
    if ours.qkv_bias_key in signature:
        assert signature[ours.qkv_bias_key].default is ours.qkv_bias
    assert ours.mlp_bias_key is None or ours.mlp_bias_key in signature
