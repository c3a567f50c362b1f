"""Which function reads which network of one pass, by `model_type`, by class of transformers or of diffusers.

Modules are named, not imported: a question loads only what it asks about.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from .reader import Reader


class Whole(NamedTuple):
    """A model by its own config.json: its networks, what a pass gives, and how long an input is.

    Text models read `tokens` unless asked otherwise, at most as many as the first of `limit_keys` that is stated says
    (less `padding` rows that no token uses).
    """

    makers: tuple[tuple[str, str], ...]
    result: str
    reads_text: bool = False
    limit_keys: tuple[str, ...] = ()
    padding: int = 0
    tokens: int = 512
    defaults: Mapping[str, Any] = MappingProxyType({})
    images: str | None = None
    sound: str | None = None

    def size(self, get: Reader) -> str:
        """The size of an input, in words."""
        part = get if self.images is None else get.section(self.images)
        side = part.config.get("image_size", 224)
        return f"{side}x{side}" if isinstance(side, int) and self.sound is None else self.sound or "one input"


class Decoder(NamedTuple):
    """An autoencoder: its function, the one that tells pixels a latent pixel, and frames a latent frame."""

    module: str
    function: str
    factor: str
    frames: int = 1


def _text(function: str, *limit_keys: str, **rest: Any) -> Whole:
    return Whole((("encoders", function),), "text", reads_text=True, limit_keys=limit_keys, **rest)


def _pair(vision: str, text: str) -> Whole:
    return Whole((("one_input", vision), ("one_input", text)), "pair", images="vision_config")


POSITIONS = MappingProxyType({"max_position_embeddings": 512})
CLIP_POSITIONS = MappingProxyType({"max_position_embeddings": 77})
WHOLE: Mapping[str, Whole] = MappingProxyType(
    {
        "bert": _text("bert", "max_position_embeddings", defaults=POSITIONS),
        "roberta": _text("bert", "max_position_embeddings", padding=2, defaults=POSITIONS),
        "xlm-roberta": _text("bert", "max_position_embeddings", padding=2, defaults=POSITIONS),
        "distilbert": _text("distilbert", "max_position_embeddings", defaults=POSITIONS),
        "nomic_bert": _text(
            "nomic", "n_positions", "max_position_embeddings", defaults=MappingProxyType({"n_positions": 2048})
        ),
        "modernbert": _text(
            "modernbert", "max_position_embeddings", defaults=MappingProxyType({"max_position_embeddings": 8192})
        ),
        "deberta-v2": _text("deberta"),
        "clip_text_model": _text("clip_text", "max_position_embeddings", tokens=77, defaults=CLIP_POSITIONS),
        "t5_encoder": _text("t5_encoder"),
        "vit": Whole((("one_input", "vit"),), "image"),
        "dinov2": Whole((("one_input", "dinov2"),), "image"),
        "clip": _pair("clip_images", "clip_texts"),
        "siglip": Whole(
            (("one_input", "siglip_images"), ("one_input", "siglip_texts")), "pair", images="vision_config"
        ),
        "sam": Whole((("one_input", "sam_images"), ("one_input", "sam_masks")), "image", images="vision_config"),
        "wav2vec2": Whole((("audio", "wav2vec2"),), "clip", sound="10 s of sound"),
    }
)
ENCODER_CLASSES = ("T5EncoderModel", "MT5EncoderModel", "UMT5EncoderModel")
TEXT_CLASSES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "CLIPTextModel": ("encoders", "clip_text"),
        "CLIPTextModelWithProjection": ("encoders", "clip_text_projected"),
        **dict.fromkeys(ENCODER_CLASSES, ("encoders", "t5_encoder")),
    }
)
DENOISERS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "UNet2DConditionModel": ("diffusion_unet", "read"),
        "DiTTransformer2DModel": ("diffusion_transformers", "dit"),
        "PixArtTransformer2DModel": ("diffusion_transformers", "pixart"),
        "SanaTransformer2DModel": ("diffusion_transformers", "sana"),
        "WanTransformer3DModel": ("diffusion_transformers", "wan"),
        "LTXVideoTransformer3DModel": ("diffusion_transformers", "ltx"),
        "SD3Transformer2DModel": ("diffusion_joint", "sd3"),
        "FluxTransformer2DModel": ("diffusion_joint", "flux"),
        "Flux2Transformer2DModel": ("diffusion_joint", "flux2"),
        "QwenImageTransformer2DModel": ("diffusion_joint", "qwen_image"),
        "HunyuanVideoTransformer3DModel": ("diffusion_joint", "hunyuan"),
        "CogVideoXTransformer3DModel": ("diffusion_joint", "cogvideox"),
        "ZImageTransformer2DModel": ("diffusion_joint", "z_image"),
    }
)
AUTOENCODERS: Mapping[str, Decoder] = MappingProxyType(
    {
        "AutoencoderKL": Decoder("autoencoders", "kl", "kl_factor"),
        "AutoencoderKLFlux2": Decoder("autoencoders", "kl", "kl_factor"),
        "AutoencoderDC": Decoder("autoencoders", "dc", "dc_factor"),
        "AutoencoderKLWan": Decoder("video_autoencoders", "wan", "wan_factor", 4),
        "AutoencoderKLQwenImage": Decoder("video_autoencoders", "wan", "wan_factor", 4),
    }
)
