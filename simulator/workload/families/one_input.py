"""Models of images, and of images with text, by their own config.json: each network over one input."""

from __future__ import annotations

from dataclasses import replace

from ..network import Network, Pointwise
from . import segment, vision
from .encoders import clip_text, siglip_text
from .reader import Reader


def vit(get: Reader, _tokens: int) -> Network:
    """ViT with its pooler."""
    return vision.vit(get)


def dinov2(get: Reader, _tokens: int) -> Network:
    """DINOv2 at the size its positions were made for."""
    return segment.dinov2(get)


def _named(network: Network, name: str, scalars: int = 0) -> Network:
    """The network under its own name, and with learned numbers that belong to no layer."""
    extra = (Pointwise("logit scale", scalars, 0),) if scalars else ()
    return replace(network, name=name, layers=(*network.layers, *extra))


def clip_images(get: Reader, _tokens: int) -> Network:
    """CLIP's vision half with its projection; the scale of the logits stands with it."""
    width = get.assuming(projection_dim=512).integer("projection_dim")
    return _named(vision.clip_vision(get.section("vision_config"), projection=width), "vision", 1)


def clip_texts(get: Reader, _tokens: int) -> Network:
    """CLIP's text half with its projection, at its full length."""
    width = get.assuming(projection_dim=512).integer("projection_dim")
    text = get.section("text_config")
    text = text._replace(config={**text.config, "projection_dim": width}).assuming(max_position_embeddings=77)
    return _named(clip_text(text, text.integer("max_position_embeddings"), projected=True), "text")


def siglip_images(get: Reader, _tokens: int) -> Network:
    """SigLIP's vision half; scale and bias of the logits stand with it."""
    return _named(vision.siglip_vision(get.section("vision_config")), "vision", 2)


def siglip_texts(get: Reader, _tokens: int) -> Network:
    """SigLIP's text half at its full length."""
    text = get.section("text_config").assuming(max_position_embeddings=64)
    return _named(siglip_text(text, text.integer("max_position_embeddings")), "text")


def sam_images(get: Reader, _tokens: int) -> Network:
    """SAM's image encoder."""
    return _named(segment.sam_vision(get), "image encoder")


def sam_masks(get: Reader, _tokens: int) -> Network:
    """SAM's prompt encoder and mask decoder for one point."""
    return _named(segment.sam_mask(get), "mask decoder")
