"""Networks of one pass against the classes of `diffusers` and `transformers`: parameters, FLOPs, live activations."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable
from importlib import import_module
from types import MappingProxyType
from typing import Any, NamedTuple

import diffusers
import numpy as np
import pytest
import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from transformers import CONFIG_MAPPING

from roofplan.dtypes import DType
from roofplan.hwspecs.load import load_fleet
from roofplan.simulator.costs import attention, convolution, gemm
from roofplan.simulator.lowering.decoder import lower
from roofplan.simulator.lowering.network import Setting, network_operators
from roofplan.simulator.operators import Attention, Bidirectional, Convolution, Gemm
from roofplan.simulator.scenario import Numerics, Phase, Scenario, Step
from roofplan.simulator.workload import zoo
from roofplan.simulator.workload.families import one_pass
from roofplan.simulator.workload.families.pieces import Canvas
from roofplan.simulator.workload.families.reader import Reader
from roofplan.simulator.workload.formats import FORMATS
from roofplan.simulator.workload.hf import parse_config
from roofplan.simulator.workload.network import Network
from roofplan.simulator.workload.pipelines import Size, parse_pipeline

Config = dict[str, Any]
LINES: list[Config] = [json.loads(line) for line in zoo.ZOO.read_text(encoding="utf-8").splitlines()]
PIPELINES = {e["name"]: e for e in LINES if "components" in e}
# Two lines of one pass or more share their text encoders and autoencoders: each distinct network is built once.
DISTINCT = {json.dumps(part): (e["name"], name) for e in PIPELINES.values() for name, part in e["components"].items()}


def built(part: Config, kind: str | None = None, device: str = "meta") -> torch.nn.Module:
    """The class a config names (of `kind` where given), without values unless on another device."""
    with torch.device(device):
        if "_class_name" in part:
            known = part if "UNet" not in part["_class_name"] else {"addition_time_embed_dim": 256, **part}
            module = getattr(diffusers, part["_class_name"]).from_config(known)
        else:
            keys = {k: v for k, v in part.items() if k != "model_type"}
            settings = CONFIG_MAPPING[part["model_type"]](**keys)
            kind = kind or part["architectures"][0]
            module = getattr(transformers, kind)._from_config(settings, attn_implementation="eager")
    return module.eval().requires_grad_(False)


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# ---- parameters


@pytest.mark.parametrize(("line", "name"), DISTINCT.values())
def test_parameters_of_a_component(line: str, name: str) -> None:
    assert PIPELINES[line]["oracle"] == "diffusers"
    [ours] = [network for network in zoo.bundled_pipeline(line).networks if network.name == name]
    theirs = built(PIPELINES[line]["components"][name])
    assert ours.parameters == count(theirs)
    tables = sum(b.numel() for b in theirs.buffers())
    assert ours.buffers in (0, tables), "what is stated beside the parameters is what the class keeps there"


@pytest.mark.parametrize("name", [e["name"] for e in LINES if "oracle_class" in e])
def test_parameters_of_a_class(name: str) -> None:
    """Encoders and encoder-decoders: the class is named in the line, as a checkpoint's own may add a head."""
    [line] = [e for e in LINES if e["name"] == name]
    read = zoo.bundled_pipeline if name in zoo.pipelines() else zoo.bundled
    assert read(name).parameters == count(built(line["config"], line["oracle_class"]))


def test_every_line_of_one_pass_has_an_oracle() -> None:
    for name in zoo.pipelines():
        [line] = [e for e in LINES if e["name"] == name]
        assert ("oracle_class" in line) == (line["oracle"] == "transformers"), name
        assert ("components" in line) == (line["oracle"] == "diffusers"), name


# ---- FLOPs of small networks


class Case(NamedTuple):
    """A small config, what the network works on, and how its class is called."""

    part: Config
    canvas: Canvas
    call: Callable[[Any], object]


def z(*shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
    return torch.zeros(*shape, device="meta", dtype=dtype)


def index(*shape: int) -> torch.Tensor:
    return z(*shape, dtype=torch.long)


UNET: Config = {
    "_class_name": "UNet2DConditionModel", "sample_size": 16, "block_out_channels": [32, 64], "norm_num_groups": 8,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"], "cross_attention_dim": 48,
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"], "attention_head_dim": 4,
}  # fmt: skip
UNET_XL = UNET | {
    "block_out_channels": [32, 64, 96], "transformer_layers_per_block": [1, 2, 3], "attention_head_dim": [2, 4, 6],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"], "use_linear_projection": True,
    "addition_embed_type": "text_time", "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 68,
}  # fmt: skip
BLOCKS: Config = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16}
DIT = BLOCKS | {
    "_class_name": "DiTTransformer2DModel", "in_channels": 4, "out_channels": 8, "sample_size": 8, "patch_size": 2,
    "num_embeds_ada_norm": 10, "norm_type": "ada_norm_zero", "attention_bias": True,
}  # fmt: skip
PIXART = BLOCKS | {
    "_class_name": "PixArtTransformer2DModel", "in_channels": 4, "out_channels": 8, "cross_attention_dim": 48,
    "caption_channels": 40, "sample_size": 8, "patch_size": 2, "use_additional_conditions": False,
    "num_attention_heads": 3,
}  # fmt: skip
SANA = BLOCKS | {
    "_class_name": "SanaTransformer2DModel", "in_channels": 8, "out_channels": 8, "num_cross_attention_heads": 2,
    "cross_attention_head_dim": 16, "cross_attention_dim": 32, "caption_channels": 24, "mlp_ratio": 2.5,
    "sample_size": 8, "patch_size": 1,
}  # fmt: skip
SD3 = BLOCKS | {
    "_class_name": "SD3Transformer2DModel", "sample_size": 8, "patch_size": 2, "in_channels": 4, "out_channels": 4,
    "num_layers": 3, "joint_attention_dim": 40, "caption_projection_dim": 32, "pooled_projection_dim": 24,
    "pos_embed_max_size": 12,
}  # fmt: skip
FLUX = BLOCKS | {
    "_class_name": "FluxTransformer2DModel", "in_channels": 16, "num_single_layers": 2, "joint_attention_dim": 40,
    "pooled_projection_dim": 24, "guidance_embeds": True, "axes_dims_rope": [4, 4, 8],
}  # fmt: skip
FLUX2 = BLOCKS | {
    "_class_name": "Flux2Transformer2DModel", "in_channels": 16, "num_single_layers": 2, "joint_attention_dim": 40,
    "axes_dims_rope": [4, 4, 4, 4],
}  # fmt: skip
QWEN = BLOCKS | {
    "_class_name": "QwenImageTransformer2DModel", "patch_size": 2, "in_channels": 16, "out_channels": 4,
    "joint_attention_dim": 40, "axes_dims_rope": [4, 4, 8],
}  # fmt: skip
WAN = BLOCKS | {
    "_class_name": "WanTransformer3DModel", "patch_size": [1, 2, 2], "in_channels": 4, "out_channels": 4,
    "text_dim": 40, "freq_dim": 16, "ffn_dim": 56, "cross_attn_norm": True, "qk_norm": "rms_norm_across_heads",
}  # fmt: skip
LTX = BLOCKS | {
    "_class_name": "LTXVideoTransformer3DModel", "in_channels": 8, "out_channels": 8, "cross_attention_dim": 32,
    "caption_channels": 40,
}  # fmt: skip
HUNYUAN = BLOCKS | {
    "_class_name": "HunyuanVideoTransformer3DModel", "in_channels": 4, "out_channels": 4, "num_single_layers": 2,
    "num_refiner_layers": 1, "patch_size": 2, "patch_size_t": 1, "text_embed_dim": 40, "pooled_projection_dim": 24,
    "rope_axes_dim": [4, 4, 8],
}  # fmt: skip
COGVIDEOX = BLOCKS | {
    "_class_name": "CogVideoXTransformer3DModel", "in_channels": 4, "out_channels": 4, "text_embed_dim": 40,
    "time_embed_dim": 24, "patch_size": 2, "sample_width": 12, "sample_height": 8, "sample_frames": 9,
    "max_text_seq_length": 5,
}  # fmt: skip
Z_IMAGE: Config = {
    "_class_name": "ZImageTransformer2DModel", "in_channels": 4, "dim": 48, "n_layers": 2, "n_refiner_layers": 1,
    "n_heads": 3, "n_kv_heads": 3, "cap_feat_dim": 40, "axes_dims": [4, 4, 8], "axes_lens": [64, 64, 64],
}  # fmt: skip
KL: Config = {
    "_class_name": "AutoencoderKL", "block_out_channels": [16, 32], "layers_per_block": 2, "norm_num_groups": 8,
    "down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2,
}  # fmt: skip
KINDS = ["ResBlock", "EfficientViTBlock"]
DC: Config = {
    "_class_name": "AutoencoderDC", "latent_channels": 8, "attention_head_dim": 8, "encoder_block_types": KINDS,
    "decoder_block_types": KINDS, "encoder_block_out_channels": [16, 32], "decoder_block_out_channels": [16, 32],
    "encoder_layers_per_block": [1, 1], "decoder_layers_per_block": [1, 2], "encoder_qkv_multiscales": [[], [5]],
    "decoder_qkv_multiscales": [[], [5]], "upsample_block_type": "interpolate", "downsample_block_type": "Conv",
}  # fmt: skip
WAN_VAE: Config = {
    "_class_name": "AutoencoderKLWan", "base_dim": 8, "z_dim": 4, "dim_mult": [1, 2, 4], "num_res_blocks": 1,
    "temperal_downsample": [False, True],
}  # fmt: skip
WAN_VAE_2 = WAN_VAE | {
    "is_residual": True, "dim_mult": [1, 2, 4, 4], "temperal_downsample": [False, True, True], "patch_size": 2,
    "decoder_base_dim": 16, "in_channels": 12, "out_channels": 12,
}  # fmt: skip
IMAGE, FRAMES = Canvas(8, 12, 1, 5), Canvas(8, 12, 3, 5)
SHUFFLED = {"upsample_block_type": "pixel_shuffle", "downsample_block_type": "pixel_unshuffle"}


def sd3_call(m: Any) -> object:
    return m(z(1, 4, 8, 12), z(1, 5, 40), z(1, 24), z(1))


def packed(m: Any, **more: Any) -> object:
    return m(hidden_states=z(1, 24, 16), encoder_hidden_states=z(1, 5, 40), timestep=z(1), **more)


NETWORKS: dict[str, Case] = {
    "unet": Case(UNET, Canvas(16, 16, 1, 7), lambda m: m(z(1, 4, 16, 16), z(1), z(1, 7, 48))),
    "unet of SDXL, odd halves": Case(
        UNET_XL,
        Canvas(18, 22, 1, 7),
        lambda m: m(
            z(1, 4, 18, 22), z(1), z(1, 7, 48), added_cond_kwargs={"text_embeds": z(1, 20), "time_ids": z(1, 6)}
        ),
    ),
    "dit": Case(DIT, Canvas(8, 8), lambda m: m(z(1, 4, 8, 8), index(1), class_labels=index(1))),
    "pixart": Case(
        PIXART,
        IMAGE,
        lambda m: m(z(1, 4, 8, 12), z(1, 5, 40), z(1), added_cond_kwargs={"resolution": None, "aspect_ratio": None}),
    ),
    "sana": Case(SANA, IMAGE, lambda m: m(z(1, 8, 8, 12), z(1, 5, 24), z(1))),
    "sd3": Case(SD3, IMAGE, sd3_call),
    "sd3.5": Case(SD3 | {"dual_attention_layers": [0, 1], "qk_norm": "rms_norm"}, IMAGE, sd3_call),
    "flux": Case(
        FLUX,
        IMAGE,
        lambda m: packed(m, pooled_projections=z(1, 24), img_ids=z(24, 3), txt_ids=z(5, 3), guidance=z(1)),
    ),
    "flux.2": Case(FLUX2, IMAGE, lambda m: packed(m, img_ids=z(1, 24, 4), txt_ids=z(1, 5, 4), guidance=z(1))),
    "qwen-image": Case(QWEN, IMAGE, lambda m: packed(m, img_shapes=[(1, 4, 6)])),
    "wan": Case(WAN, FRAMES, lambda m: m(z(1, 4, 3, 8, 12), z(1), z(1, 5, 40))),
    "ltx": Case(
        LTX,
        Canvas(4, 6, 3, 5),
        lambda m: m(z(1, 72, 8), z(1, 5, 40), z(1), None, num_frames=3, height=4, width=6),
    ),
    "hunyuan": Case(HUNYUAN, FRAMES, lambda m: m(z(1, 4, 3, 8, 12), z(1), z(1, 5, 40), z(1, 5), z(1, 24), z(1))),
    "cogvideox": Case(COGVIDEOX, FRAMES, lambda m: m(z(1, 3, 4, 8, 12), z(1, 5, 40), z(1))),
    # Its image and its text are padded to whole 32 tokens: these need none.
    "z-image": Case(Z_IMAGE, Canvas(16, 16, 1, 32), lambda m: m([z(4, 1, 16, 16)], z(1), [z(32, 40)])),
    "kl": Case(KL, Canvas(6, 8), lambda m: m.decode(z(1, 4, 6, 8))),
    "dc": Case(DC, Canvas(6, 8), lambda m: m.decode(z(1, 8, 6, 8))),
    "dc, shuffled": Case(DC | SHUFFLED, Canvas(6, 8), lambda m: m.decode(z(1, 8, 6, 8))),
    "autoencoder of wan": Case(WAN_VAE, Canvas(4, 6, 3), lambda m: m.decode(z(1, 4, 3, 4, 6))),
    "autoencoder of wan 2.2": Case(WAN_VAE_2, Canvas(4, 6, 3), lambda m: m.decode(z(1, 4, 3, 4, 6))),
    "autoencoder of qwen-image": Case(
        WAN_VAE | {"_class_name": "AutoencoderKLQwenImage"}, Canvas(4, 6), lambda m: m.decode(z(1, 4, 1, 4, 6))
    ),
}


def ours(part: Config, canvas: Canvas) -> Network:
    """The network of a component of diffusers."""
    kind = part["_class_name"]
    decoder = one_pass.AUTOENCODERS.get(kind)
    module, function = one_pass.DENOISERS[kind] if decoder is None else (decoder.module, decoder.function)
    get = Reader(part, MappingProxyType({}), "config.json", "", "small", "config.json")
    made: Network = getattr(import_module(f"roofplan.simulator.workload.families.{module}"), function)(get, canvas)
    return made


def our_flops(network: Network, inputs: int = 1) -> float:
    """FLOPs of the operators it is lowered to."""
    formulas: dict[type, Callable[[Any], Any]] = {
        Gemm: gemm.flops, Convolution: convolution.flops, Bidirectional: attention.flops,
    }  # fmt: skip
    setting = Setting(load_fleet("h200").device, FORMATS["bf16"], DType.BF16)
    tables = [t for t in network_operators(network, setting, inputs).tables if type(t) in formulas]
    return sum(float((formulas[type(t)](t).reshape(-1) * t.count.sum(axis=1)).sum()) for t in tables)


def torch_flops(call: Callable[[], object], device: str = "meta") -> int:
    """What torch counts of products, convolutions and attention."""
    with torch.no_grad(), torch.device(device), FlopCounterMode(display=False) as counter:
        call()
    assert counter.get_total_flops() > 0
    return int(counter.get_total_flops())


@pytest.mark.parametrize("name", NETWORKS)
def test_parameters_and_flops_of_a_small_network(name: str) -> None:
    case = NETWORKS[name]
    theirs, network = built(case.part), ours(case.part, case.canvas)
    assert network.parameters == count(theirs)
    assert our_flops(network) == torch_flops(lambda: case.call(theirs))
    assert our_flops(network, 3) == 3 * our_flops(network)


TEXT: Config = {
    "hidden_size": 32, "intermediate_size": 72, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 90,
    "max_position_embeddings": 16,
}  # fmt: skip
ROBERTA = TEXT | {"max_position_embeddings": 18, "type_vocab_size": 1, "pad_token_id": 1}
SIGHT: Config = {
    "hidden_size": 32, "intermediate_size": 72, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
ENDS: Config = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
MODERN = TEXT | ENDS | {"cls_token_id": 1, "sep_token_id": 2, "local_attention": 32}
DEBERTA = TEXT | {
    "position_buckets": 8, "relative_attention": True, "share_att_key": True, "pos_att_type": ["p2c", "c2p"],
    "norm_rel_ebd": "layer_norm", "position_biased_input": False, "type_vocab_size": 0, "max_relative_positions": -1,
}  # fmt: skip
DISTIL: Config = {
    "dim": 32, "hidden_dim": 72, "n_layers": 3, "n_heads": 4, "vocab_size": 90, "max_position_embeddings": 16,
}  # fmt: skip
T5: Config = {"d_model": 32, "d_kv": 8, "d_ff": 72, "num_layers": 3, "num_heads": 4, "vocab_size": 90}
SAM: Config = {
    "vision_config": {
        "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "mlp_dim": 72, "output_channels": 16,
        "image_size": 80, "patch_size": 8, "window_size": 4, "global_attn_indexes": [1], "num_pos_feats": 8,
    },
    "prompt_encoder_config": {"hidden_size": 16, "image_size": 80, "patch_size": 8, "mask_input_channels": 8},
    "mask_decoder_config": {
        "hidden_size": 16, "mlp_dim": 40, "num_attention_heads": 2, "iou_head_hidden_dim": 24,
    },
}  # fmt: skip
SOUND: Config = {
    "hidden_size": 32, "intermediate_size": 72, "num_hidden_layers": 2, "num_attention_heads": 4,
    "conv_dim": [16, 16], "conv_kernel": [10, 3], "conv_stride": [100, 80], "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4, "num_feat_extract_layers": 2,
}  # fmt: skip
LENGTH = 16


def read(m: Any) -> object:
    return m(index(1, LENGTH))


def seen(m: Any) -> object:
    return m(z(1, 3, 32, 32))


def compared(m: Any) -> object:
    return m(index(1, LENGTH), z(1, 3, 32, 32))


def pair(family: str, **more: Any) -> Config:
    text = TEXT | ENDS | {"model_type": f"{family}_text_model", "projection_dim": 24}
    return {"text_config": text, "vision_config": {"model_type": f"{family}_vision_model", **SIGHT}, **more}


class Whole(NamedTuple):
    """A small config of transformers, its class, how it is called, and FLOPs of it that are left out on purpose."""

    config: Config
    kind: str
    call: Callable[[Any], object] = read
    left_out: int = 0


ENCODERS: dict[str, Whole] = {
    "bert": Whole(TEXT, "BertModel"),
    "roberta": Whole(ROBERTA, "RobertaModel"),
    "xlm-roberta": Whole(ROBERTA, "XLMRobertaModel"),
    "distilbert": Whole(DISTIL, "DistilBertModel"),
    "nomic_bert": Whole(TEXT, "NomicBertModel"),
    "modernbert": Whole(MODERN, "ModernBertModel"),
    "clip_text_model": Whole(TEXT | ENDS, "CLIPTextModel"),
    "t5": Whole(T5 | {"architectures": ["T5EncoderModel"]}, "T5EncoderModel"),
    "umt5": Whole(T5 | {"architectures": ["UMT5EncoderModel"], "feed_forward_proj": "gated-gelu"}, "UMT5EncoderModel"),
    "vit": Whole(SIGHT, "ViTModel", seen),
    "dinov2": Whole(SIGHT | {"mlp_ratio": 4}, "Dinov2Model", seen),
    "dinov2 gated": Whole(SIGHT | {"mlp_ratio": 4, "use_swiglu_ffn": True}, "Dinov2Model", seen),
    # One product of the text's vector with the image's.
    "clip": Whole(pair("clip", projection_dim=24), "CLIPModel", compared, 2 * 24),
    "siglip": Whole(pair("siglip"), "SiglipModel", compared, 2 * 32),
    # Sinusoids of the 100 patches and two points, from two coordinates each.
    "sam": Whole(
        SAM,
        "SamModel",
        lambda m: m(z(1, 3, 80, 80), input_points=z(1, 1, 1, 2), input_labels=index(1, 1, 1)),
        2 * 102 * 2 * 8,
    ),
    # The convolution of positions makes one frame more, which is cut off again.
    "wav2vec2": Whole(SOUND, "Wav2Vec2Model", lambda m: m(z(1, 160_000)), 2 * 32 * 8 * 8),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_parameters_and_flops_of_a_small_encoder(name: str) -> None:
    case = ENCODERS[name]
    config = {"model_type": name.split()[0], **case.config}
    reads = case.call is read
    small = parse_pipeline(config, name="small", file="config.json", size=Size(tokens=LENGTH) if reads else None)
    theirs = built(config, case.kind)
    assert small.parameters == count(theirs)
    counted = torch_flops(lambda: case.call(theirs)) - case.left_out
    assert sum(our_flops(network) for network in small.networks) == counted


@pytest.mark.parametrize("family", ["bert", "distilbert", "nomic_bert", "vit", "dinov2", "clip_text_model"])
def test_what_a_config_leaves_out_is_as_the_class_assumes(family: str) -> None:
    kind = "".join(w.capitalize() for w in family.removesuffix("_text_model").split("_"))
    kind = {"Distilbert": "DistilBertModel", "Vit": "ViTModel", "Clip": "CLIPTextModel"}.get(kind, f"{kind}Model")
    small = parse_pipeline({"model_type": family}, name="small", file="config.json")
    assert small.parameters == count(built({"model_type": family}, kind))


@pytest.mark.parametrize("kind", ["T5EncoderModel", "MT5EncoderModel", "UMT5EncoderModel"])
def test_what_a_config_of_t5_leaves_out_is_as_the_class_assumes(kind: str) -> None:
    config = {"model_type": kind.removesuffix("EncoderModel").lower(), "architectures": [kind]}
    assert parse_pipeline(config, name="small", file="config.json").parameters == count(built(config))


def test_flops_of_relative_positions_both_ways() -> None:
    """DeBERTa looks at values to place its positions, so it runs for real."""
    config = {"model_type": "deberta-v2", **DEBERTA}
    small = parse_pipeline(config, name="small", file="config.json", size=Size(tokens=LENGTH))
    theirs = built(config, "DebertaV2Model", "cpu")
    ids, mask = torch.zeros(1, LENGTH, dtype=torch.long), torch.ones(1, LENGTH, dtype=torch.long)
    assert small.parameters == count(theirs)
    assert our_flops(small.networks[0]) == torch_flops(lambda: theirs(ids, mask), "cpu")


@pytest.mark.parametrize("window", [4, 8])
def test_a_window_saves_its_share_of_the_scores(window: int) -> None:
    """Eager attention multiplies all pairs; a query of ModernBERT's local layers sees window + 1 keys."""
    whole = {"model_type": "modernbert", **MODERN}
    wide, narrow = (
        parse_pipeline(whole | {"local_attention": n}, name="small", file="f", size=Size(tokens=LENGTH))
        for n in (32, window)
    )
    saved = 2 * 4 * 32 * LENGTH * (LENGTH - window - 1)  # in two layers of three
    assert our_flops(wide.networks[0]) - our_flops(narrow.networks[0]) == saved


SOURCES: dict[str, tuple[Config, str]] = {
    "t5": (T5 | {"n_positions": LENGTH}, "T5ForConditionalGeneration"),
    "umt5": (T5 | {"n_positions": LENGTH, "tie_word_embeddings": True}, "UMT5ForConditionalGeneration"),
    "bart": (
        {
            "d_model": 32, "encoder_layers": 3, "decoder_layers": 2, "encoder_attention_heads": 4,
            "decoder_attention_heads": 2, "encoder_ffn_dim": 72, "decoder_ffn_dim": 56, "vocab_size": 90,
            "max_position_embeddings": LENGTH, **ENDS, "decoder_start_token_id": 2, "forced_eos_token_id": 2,
        },
        "BartForConditionalGeneration",
    ),
    "whisper": (
        {
            "d_model": 32, "encoder_layers": 3, "decoder_layers": 2, "encoder_attention_heads": 4,
            "decoder_attention_heads": 2, "encoder_ffn_dim": 72, "decoder_ffn_dim": 56, "vocab_size": 90,
            "num_mel_bins": 10, "max_source_positions": LENGTH, "max_target_positions": 12, **ENDS,
            "decoder_start_token_id": 1, "begin_suppress_tokens": None, "suppress_tokens": None,
        },
        "WhisperForConditionalGeneration",
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", SOURCES)
def test_encoder_of_an_encoder_decoder(family: str) -> None:
    config, kind = {"model_type": family, **SOURCES[family][0]}, SOURCES[family][1]
    small, theirs = parse_config(config, name="small", file="config.json"), built(config, kind)
    assert small.parameters == count(theirs)
    source = z(1, 10, 2 * LENGTH) if family == "whisper" else index(1, LENGTH)
    assert our_flops(small.towers[0]) == torch_flops(lambda: theirs.get_encoder()(source))


@pytest.mark.parametrize("family", SOURCES)
@pytest.mark.parametrize("sequences", [1, 3])
def test_flops_of_a_source_and_a_first_answer(family: str, sequences: int) -> None:
    """Encoder, keys and values of its tokens, and eight tokens of the decoder that see each other and the source.

    Eager attention scores all pairs of the eight, causal attention the share that is kept of them.
    """
    config, kind = {"model_type": family, **SOURCES[family][0]}, SOURCES[family][1]
    model, theirs = parse_config(config, name="small", file="config.json"), built(config, kind)
    scenario = Scenario(model, load_fleet("h200"), sequences, 8, 8, Numerics(FORMATS["bf16"], DType.BF16))
    step = Step(Phase.PREFILL, sequences, 8, 0, logit_tokens=8 * sequences)
    flops = {Gemm: 0.0, Convolution: 0.0, Attention: 0.0, Bidirectional: 0.0}
    for table in lower(scenario, step).operators.tables:
        if type(table) in flops:
            formula = {Gemm: gemm.flops, Convolution: convolution.flops}.get(type(table), attention.flops)
            flops[type(table)] += float((formula(table).reshape(-1) * table.count.sum(axis=1)).sum())
    causal = float(attention.causal_factor(np.asarray(8.0), np.asarray(8.0)))
    total = flops[Gemm] + flops[Convolution] + flops[Attention] / causal + flops[Bidirectional]
    source = z(sequences, 10, 2 * LENGTH) if family == "whisper" else index(sequences, LENGTH)
    mask = z(sequences, 1, 8, 8)  # ready-made: building one looks at values
    assert total == torch_flops(
        lambda: theirs(source, decoder_input_ids=index(sequences, 8), decoder_attention_mask=mask, use_cache=False)
    )


# ---- live activations


class LiveBytes(TorchDispatchMode):
    """Bytes of the storages that came into being since, from creation until Python and torch have let go of them."""

    def __init__(self, existing: list[torch.Tensor]) -> None:
        super().__init__()
        self.existing = {t.untyped_storage()._cdata for t in existing}
        self.sizes: dict[int, int] = {}
        self.live = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._follow(tensor.untyped_storage())
        self.peak = max(self.peak, self.live)
        return out

    def _follow(self, storage: torch.UntypedStorage) -> None:
        address = storage._cdata
        if address not in self.existing and address not in self.sizes:
            self.sizes[address] = storage.nbytes()
            self.live += storage.nbytes()
            weakref.finalize(storage, self._release, address)

    def _release(self, address: int) -> None:
        self.live -= self.sizes.pop(address)


def one_kernel(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    """Memory of a fused attention: its output alone, heads inside tokens (the meta device would make scores)."""
    shape = query.shape[0], query.shape[2], query.shape[1], value.shape[3]
    return query.new_empty(shape).transpose(1, 2)


def h(*shape: int) -> torch.Tensor:
    return z(*shape, dtype=torch.bfloat16)


EXACT, NEAR = 0.005, 0.06  # of the peak; NEAR: what a few small tensors more or less that live on make
LIVE: dict[tuple[str, str], tuple[float, Canvas, Callable[[Any], object]]] = {
    ("sd-1.5", "unet"): (EXACT, Canvas(64, 64, 1, 77), lambda m: m(h(1, 4, 64, 64), h(1), h(1, 77, 768))),
    ("sdxl", "unet"): (
        EXACT,
        Canvas(128, 128, 1, 77),
        lambda m: m(
            h(1, 4, 128, 128), h(1), h(1, 77, 2048), added_cond_kwargs={"text_embeds": h(1, 1280), "time_ids": h(1, 6)}
        ),
    ),
    ("sdxl", "vae"): (EXACT, Canvas(128, 128), lambda m: m.decode(h(1, 4, 128, 128))),
    ("sana-1.6b-1024", "vae"): (EXACT, Canvas(32, 32), lambda m: m.decode(h(1, 32, 32, 32))),
    ("sana-1.6b-1024", "transformer"): (
        NEAR, Canvas(32, 32, 1, 300), lambda m: m(h(1, 32, 32, 32), h(1, 300, 2304), h(1))
    ),
    ("dit-xl-2-256", "transformer"): (
        EXACT, Canvas(32, 32), lambda m: m(h(1, 4, 32, 32), index(1), class_labels=index(1))
    ),
    ("sd3-medium", "transformer"): (
        NEAR, Canvas(128, 128, 1, 333), lambda m: m(h(1, 16, 128, 128), h(1, 333, 4096), h(1, 2048), h(1))
    ),
    ("flux.1-dev", "transformer"): (
        NEAR,
        Canvas(128, 128, 1, 512),
        lambda m: m(
            h(1, 4096, 64), h(1, 512, 4096), h(1, 768), h(1), h(4096, 3), h(512, 3), guidance=h(1)
        ),
    ),
    ("wan2.1-t2v-1.3b", "transformer"): (
        NEAR, Canvas(60, 104, 21, 512), lambda m: m(h(1, 16, 21, 60, 104), h(1), h(1, 512, 4096))
    ),
    ("wan2.1-t2v-1.3b", "vae"): (NEAR, Canvas(60, 104, 3), lambda m: m.decode(h(1, 16, 3, 60, 104))),
}  # fmt: skip


@pytest.mark.parametrize(("line", "name"), LIVE)
def test_live_activations(line: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is alive together in eager PyTorch on the meta device, inputs included, as every layer is listed."""
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", one_kernel)
    tolerance, canvas, call = LIVE[line, name]
    part = PIPELINES[line]["components"][name]
    theirs = built(part)
    for tensor in (*theirs.parameters(), *theirs.buffers()):
        if tensor.is_floating_point():
            tensor.data = tensor.data.bfloat16()
    mode = LiveBytes([*theirs.parameters(), *theirs.buffers()])
    with torch.no_grad(), torch.device("meta"), mode:
        call(theirs)
    assert ours(part, canvas).peak_elements * 2 == pytest.approx(mode.peak, rel=tolerance)
