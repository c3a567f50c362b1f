"""Towers of models that see or hear: parameters and matrix work against the classes in `transformers`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel
from transformers.models.gemma3n.modeling_gemma3n import Gemma3nAudioEncoder, Gemma3nMultimodalEmbedder

from roofplan.errors import InputError
from roofplan.simulator.workload.families import multimodal
from roofplan.simulator.workload.hf import parse_config
from roofplan.simulator.workload.model import Model
from roofplan.simulator.workload.network import Conv, Linear, Mix, Network

Config = dict[str, Any]
SIDE = 512  # of the nominal image, here: a real one takes torch long

TEXT: Config = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 300,
}  # fmt: skip
SIGHT: Config = {
    "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 84,
    "patch_size": 14,
}  # fmt: skip
QWEN: Config = {"depth": 3, "num_heads": 1, "patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2}
LATER: Config = {
    **QWEN,
    "hidden_size": 24,
    "intermediate_size": 40,
    "out_hidden_size": 32,
    "num_position_embeddings": 36,
}
EXPERTS: Config = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LLAMA4: Config = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 112, "patch_size": 14,
    "intermediate_size": 96, "projector_input_dim": 28, "projector_output_dim": 28, "vision_output_dim": 28,
}  # fmt: skip
MLLAMA: Config = {
    "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_global_layers": 2, "attention_heads": 2,
    "image_size": 56, "patch_size": 14, "vision_output_dim": 48, "intermediate_layers_indices": [1],
    "max_num_tiles": 4, "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1], [2, 2]],
}  # fmt: skip
GEMMA4: Config = {**SIGHT, "num_key_value_heads": 2, "head_dim": 12, "position_embedding_size": 64}
CONFORMER: Config = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "output_proj_dims": 20}


def seeing(family: str, vision: Config, text: Config | None = None, **outer: Any) -> Config:
    """A small config.json of a model with a vision tower."""
    return {"model_type": family, "text_config": {**TEXT, **(text or {})}, "vision_config": vision, **outer}


LLAVA = seeing("llava", {"model_type": "clip_vision_model", **SIGHT}, {"model_type": "llama"})
SIGLIP: Config = {"model_type": "siglip_vision_model", **SIGHT}
PALIGEMMA = seeing("paligemma", SIGLIP, {"model_type": "gemma"}, projection_dim=32)
PIXTRAL = {"model_type": "pixtral", **SIGHT, "head_dim": 12}
GEMMA4_TEXT = {"model_type": "gemma4_text", "hidden_size_per_layer_input": 0, "global_head_dim": 16}
CONFIGS: dict[str, Config] = {
    "llava": LLAVA,
    "llava, two layers read": LLAVA | {"vision_feature_layer": [-2, -1]},
    "llava, no bias": LLAVA | {"multimodal_projector_bias": False},
    "llava-next": LLAVA | {"model_type": "llava_next"},
    "paligemma": PALIGEMMA,
    "paligemma, no head": PALIGEMMA | {"vision_config": {**SIGLIP, "vision_use_head": False}},
    "gemma3": PALIGEMMA
    | {"model_type": "gemma3", "text_config": {**TEXT, "model_type": "gemma3_text"}, "mm_tokens_per_image": 9},
    "mistral3": seeing("mistral3", PIXTRAL, {"model_type": "mistral"}, tie_word_embeddings=False),
    "mistral3, bias": seeing(
        "mistral3", PIXTRAL, {"model_type": "mistral", "tie_word_embeddings": False}, multimodal_projector_bias=True
    ),
    "qwen2-vl": {"model_type": "qwen2_vl", **TEXT, "vision_config": {**QWEN, "embed_dim": 24, "hidden_size": 32}},
    "qwen2.5-vl": {
        "model_type": "qwen2_5_vl",
        **TEXT,
        "vision_config": {
            **QWEN, "hidden_size": 24, "intermediate_size": 40, "out_hidden_size": 32, "window_size": 128,
            "fullatt_block_indexes": [1],
        },
    },
    "qwen3-vl": seeing("qwen3_vl", {**LATER, "deepstack_visual_indexes": [0, 2]}, {"model_type": "qwen3_vl_text"}),
    "qwen3-vl-moe": seeing(
        "qwen3_vl_moe",
        {**LATER, "deepstack_visual_indexes": [0]},
        {"model_type": "qwen3_vl_moe_text", **EXPERTS},
        tie_word_embeddings=True,
    ),
    "qwen3.5": seeing("qwen3_5", LATER, {"model_type": "qwen3_5_text"}),
    "qwen3.5-moe": seeing("qwen3_5_moe", LATER, {"model_type": "qwen3_5_moe_text", **EXPERTS}),
    "llama4": seeing(
        "llama4", LLAMA4, {"model_type": "llama4_text", "num_local_experts": 2, "intermediate_size_mlp": 64}
    ),
    "mllama": seeing(
        "mllama", MLLAMA, {"model_type": "mllama_text_model", "cross_attention_layers": [1], "pad_token_id": 0}
    ),
    "gemma4": seeing("gemma4", {"model_type": "gemma4_vision", **GEMMA4}, GEMMA4_TEXT, audio_config=CONFORMER),
    "gemma4, no sound": seeing(
        "gemma4", {"model_type": "gemma4_vision", **GEMMA4, "attention_bias": True}, GEMMA4_TEXT, audio_config=None
    ),
}  # fmt: skip


def ours(config: Config) -> Model:
    return parse_config(config, name="small", file="config.json")


def theirs(config: Config) -> PreTrainedModel:
    keys = {k: v for k, v in config.items() if k != "model_type"}
    text = config.get("text_config", {})
    tied = {k: text[k] for k in ("tie_word_embeddings",) if k in text}
    settings = CONFIG_MAPPING[config["model_type"]](**{**tied, **keys})
    return AutoModelForImageTextToText.from_config(settings, attn_implementation="eager").eval()


@pytest.mark.parametrize("name", CONFIGS)
def test_small_parameters(name: str) -> None:
    with torch.device("meta"):
        model = theirs(CONFIGS[name])
    counted = ours(CONFIGS[name])
    assert counted.parameters == sum(p.numel() for p in model.parameters())
    assert counted.towers and not counted.generic


# ---- work


def flops(network: Network) -> float:
    """Two for each multiplication and addition of the products; an attention's are those of scores and sums."""
    total = 0.0
    for layer in network.layers:
        match layer:
            case Linear():
                total += 2 * layer.repeat * layer.k * layer.n * layer.tokens
            case Conv():
                weights = layer.parameters - (layer.repeat * layer.out_channels if layer.bias else 0)
                total += 2 * weights * layer.height * layer.width * layer.depth
            case Mix():
                total += 4 * layer.repeat * layer.heads * layer.head_dim * layer.queries * layer.keys
    return total


def square(model: PreTrainedModel) -> object:
    side = model.config.vision_config.image_size
    return model.model.get_image_features(pixel_values=torch.zeros(1, 3, side, side))


def grid(model: PreTrainedModel) -> object:
    across = SIDE // 16
    pixels, rows = torch.zeros(across**2, 3 * 2 * 16 * 16), torch.tensor([[1, across, across]])
    return model.model.get_image_features(pixels, rows)


def nominal(model: PreTrainedModel) -> object:
    side = SIDE // 28 * 28
    return model.model.get_image_features(torch.zeros(1, 3, side, side), image_sizes=torch.tensor([[side, side]]))


def one_tile(model: PreTrainedModel) -> object:
    seen = model.vision_model(torch.zeros(1, 3, 112, 112)).last_hidden_state
    return model.multi_modal_projector(seen)


def four_tiles(model: PreTrainedModel) -> object:
    vision = model.model.vision_model
    ratios = torch.ones(1, 1, dtype=torch.long)
    seen = vision(torch.zeros(1, 1, 4, 3, 56, 56), ratios, torch.ones(1, 1, 4, dtype=torch.long))
    return model.model.multi_modal_projector(seen.last_hidden_state)


def any_shape(model: PreTrainedModel) -> object:
    places = torch.stack(torch.meshgrid(torch.arange(42), torch.arange(60), indexing="ij"), -1).reshape(1, 2520, 2)
    return model.model.get_image_features(torch.zeros(1, 2520, 3 * 14 * 14), places)


RUNS: dict[str, Callable[[PreTrainedModel], object]] = {
    "llava": square, "paligemma": square, "gemma3": square, "mistral3": nominal, "qwen2-vl": grid, "qwen2.5-vl": grid,
    "qwen3-vl": grid, "qwen3.5": grid, "llama4": one_tile, "mllama": four_tiles, "gemma4": any_shape,
}  # fmt: skip


@pytest.mark.parametrize("name", RUNS)
def test_flops_of_seeing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multimodal, "NOMINAL_SIDE", SIDE)
    model = theirs(CONFIGS[name])
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        RUNS[name](model)
    # The class of Gemma 4 pools by a product with ones and zeros, that of Llama 3.2 makes its mask by one.
    extra = {"gemma4": 2 * 2520 * 280 * GEMMA4["hidden_size"], "mllama": 2 * (4 * 24) ** 2}.get(name, 0)
    assert flops(ours(CONFIGS[name]).towers[0]) == pytest.approx(counter.get_total_flops() - extra, rel=1e-9)


def test_flops_of_hearing() -> None:
    """Chunks are padded, and scores against relative positions are not counted: little beside the products."""
    config = CONFIGS["gemma4"] | {"audio_config": {**CONFORMER, "hidden_size": 256}}
    model = theirs(config)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.model.get_audio_features(torch.zeros(1, 3000, 128), torch.ones(1, 3000, dtype=torch.bool))
    assert flops(ours(config).towers[1]) == pytest.approx(counter.get_total_flops(), rel=2e-3)


def test_what_gemma_3n_hears_and_reads_equals_its_classes() -> None:
    """Its vision tower is no class of `transformers` (the whole is held to a published total); the rest is."""
    text = {"model_type": "gemma3n_text", "num_kv_shared_layers": 2, "num_hidden_layers": 5, "hidden_size": 32}
    text |= {"intermediate_size": [40, 40, 40, 40, 60], "vocab_size": 300, "vocab_size_per_layer_input": 280}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "altup_num_inputs": 3}
    text |= {"layer_types": [f"{kind}_attention" for kind in ("sliding", "full", "sliding", "sliding", "full")]}
    audio = {"hidden_size": 24, "conf_num_hidden_layers": 2, "conf_num_attention_heads": 2, "vocab_size": 7}
    config = {"model_type": "gemma3n", "text_config": text, "audio_config": audio}
    with torch.device("meta"):
        settings = CONFIG_MAPPING["gemma3n"](text_config=text, audio_config=audio)
        parts = AutoModelForCausalLM.from_config(settings.text_config), Gemma3nAudioEncoder(settings.audio_config)
        parts += (Gemma3nMultimodalEmbedder(settings.audio_config, settings.text_config),)
    assert ours(config).parameters == sum(p.numel() for part in parts for p in part.parameters())


def test_towers_nobody_described_are_said_to_be_missing() -> None:
    config = {**LLAVA, "model_type": "seer"}
    assert ours(config).generic and not ours(config).towers
    assert not ours(CONFIGS["llava"]).generic


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("vision_config", "patch_size", 0),
        ("vision_config", "hidden_size", "wide"),
        ("vision_config", "num_attention_heads", 5),
        ("audio_config", "subsampling_conv_channels", [128]),
        ("audio_config", "num_attention_heads", 7),
    ],
)
def test_what_a_tower_lacks_is_named(section: str, key: str, value: object) -> None:
    config = CONFIGS["gemma4" if section == "audio_config" else "llava"]
    with pytest.raises(InputError, match=key):
        ours(config | {section: {**config[section], key: value}})
