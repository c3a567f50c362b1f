"""Read a Hugging Face `config.json` of the Llama, Mistral, Mixtral, Qwen2, Qwen3, Qwen3-MoE, DeepSeek-V3, gpt-oss and
MiniMax-M2 families.

A key that a config leaves out takes the default of that family's configuration class in `transformers`
(a test holds the table below equal to those classes). Everything else a family needs must be there.

Left out: layers that only predict further tokens (`num_nextn_predict_layers` of DeepSeek, `num_mtp_modules` of
MiniMax), which plain decoding does not run, and the encoders of models that also see (only their `text_config` is
read). Partial rotary embedding changes nothing that is counted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from ...dtypes import DType
from ...errors import InputError
from .formats import FORMATS, WeightFormat, quantised_checkpoint
from .model import Attention, Block, Experts, LatentAttention, Mlp, Model, blocks_of

MAX_CONFIG_BYTES = 4_000_000
LIMIT = {
    "num_hidden_layers": 4096,
    "hidden_size": 2**20,
    "vocab_size": 2**26,
    "num_experts": 65536,
    "num_local_experts": 65536,
    "n_routed_experts": 65536,
    "n_shared_experts": 65536,
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"), 2**20),
}
MAX_INTEGER = 2**31
ATTENTION_KINDS = ("full_attention", "sliding_attention")


class Family(NamedTuple):
    """What distinguishes a model family: defaults of its configuration class and the shape of its layers.

    `qkv_bias` is what holds where the config has no `qkv_bias_key`, or the family none.
    """

    defaults: Mapping[str, Any]
    qkv_bias_key: str | None = None
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: bool = False
    whole_norm: bool = False
    sinks: bool = False
    latent: bool = False
    moe: bool = False
    expert_bias: bool = False
    experts_key: str = "num_experts"
    expert_width_key: str = "moe_intermediate_size"
    gated_window: bool = False
    alternating_window: bool = False


def _defaults(**values: Any) -> Mapping[str, Any]:
    return MappingProxyType(values)


FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "llama": Family(
            _defaults(max_position_embeddings=2048, num_key_value_heads=None, head_dim=None, mlp_bias=False),
            qkv_bias_key="attention_bias",
            out_bias=True,
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
        "deepseek_v3": Family(
            _defaults(
                max_position_embeddings=4096,
                q_lora_rank=1536,
                kv_lora_rank=512,
                qk_rope_head_dim=64,
                qk_nope_head_dim=128,
                v_head_dim=128,
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
            alternating_window=True,
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
            moe=True,
            experts_key="num_local_experts",
            expert_width_key="intermediate_size",
        ),
    }
)
ALIASES: Mapping[str, str] = MappingProxyType({"kimi_k2": "deepseek_v3"})  # Kimi-K2 runs DeepSeek-V3's classes


def read_config(path: Path) -> Model:
    """The model a config.json describes; the name is that of the file's folder."""
    file = str(path)
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise InputError("larger than 4 MB: not a config.json", file=file)
        config = json.loads(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=file) from None
    except UnicodeDecodeError:
        raise InputError("not UTF-8 text", file=file, remedy="give the model's config.json") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"not valid JSON: {error}", file=file, remedy="give the model's config.json") from None
    stem = path.resolve().parent.name if path.stem == "config" else path.stem
    return parse_config(config, name=stem or "model", file=file)


def parse_config(config: object, *, name: str, file: str, origin: str | None = None) -> Model:
    """The model a parsed config describes; `file` is what messages name."""
    if not isinstance(config, dict):
        raise InputError("must be a JSON object", file=file, value=config)
    config = _text_config(config)
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise InputError("missing: the model family", file=file, key="model_type", value=model_type)
    family_name = ALIASES.get(model_type, model_type)
    if family_name not in FAMILIES:
        known = ", ".join((*FAMILIES, *ALIASES))
        raise InputError("unknown family", file=file, key="model_type", value=model_type, remedy=f"known: {known}")
    family = FAMILIES[family_name]
    get = _Reader(config, family, file)
    hidden, layers = get.integer("hidden_size"), get.integer("num_hidden_layers")
    attention = _latent_attention(get, family) if family.latent else _attention(get, family, hidden)
    dense = Mlp(get.integer("intermediate_size"), get.flag("mlp_bias", False) if family_name == "llama" else False)
    windows = _windows(get, family, layers)
    experts = _experts(get, family) if family.moe else None
    sparse = _sparse_layers(get, family, layers)
    per_layer = [_block(attention, windows[i], experts if i in sparse and experts else dense) for i in range(layers)]
    blocks, pattern = blocks_of(per_layer)
    native, activation = _formats(config, file)
    return Model(
        name=name,
        family=family_name,
        hidden=hidden,
        vocab=get.integer("vocab_size"),
        blocks=blocks,
        pattern=pattern,
        tied=get.flag("tie_word_embeddings", False),
        max_context=get.integer("max_position_embeddings"),
        native=native,
        activation=activation,
        origin=origin or file,
    )


def _text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a config that describes the text model: of models that also see (Kimi-K2.5) the `text_config`.

    Format and quantisation may stand beside it.
    """
    text, family = config.get("text_config"), config.get("model_type")
    if not isinstance(text, dict) or (isinstance(family, str) and ALIASES.get(family, family) in FAMILIES):
        return config
    beside = {k: config[k] for k in ("quantization_config", "torch_dtype", "dtype") if k in config}
    return {**beside, **text}


class _Reader(NamedTuple):
    """Typed access to a config with the family's defaults; every complaint names file and key."""

    config: Mapping[str, Any]
    family: Family
    file: str

    def _raw(self, key: str) -> Any:
        if key in self.config:
            return self.config[key]
        if key in self.family.defaults:
            return self.family.defaults[key]
        raise InputError("missing", file=self.file, key=key, remedy="a config.json of this family always states it")

    def optional(self, key: str) -> int | None:
        """A positive whole number, or None where the config says null or the family has no default."""
        if key not in self.config and key not in self.family.defaults:
            return None
        return None if self._raw(key) is None else self.integer(key)

    def integer(self, key: str) -> int:
        """A positive whole number within the limits of sense."""
        value = self._raw(key)
        if isinstance(value, float) and math.isfinite(value) and value == int(value):
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise InputError("must be a whole number", file=self.file, key=key, value=value)
        if not 1 <= value <= LIMIT.get(key, MAX_INTEGER):
            raise InputError(
                f"must lie between 1 and {LIMIT.get(key, MAX_INTEGER)}", file=self.file, key=key, value=value
            )
        return value

    def count(self, key: str) -> int:
        """A whole number that may be 0 (or null, which means 0)."""
        value = self._raw(key)
        return 0 if value is None or (value == 0 and not isinstance(value, bool)) else self.integer(key)

    def layer_types(self, layers: int) -> list[str] | None:
        """The kind of attention of each layer, where the config states it."""
        value = self.config.get("layer_types")
        if value is None:
            return None
        if not isinstance(value, list) or len(value) != layers or any(v not in ATTENTION_KINDS for v in value):
            problem = f"must name {' or '.join(ATTENTION_KINDS)} for each of {layers} layers"
            raise InputError(problem, file=self.file, key="layer_types", value=value)
        return value

    def flag(self, key: str, default: bool) -> bool:
        """true or false."""
        value = self.config.get(key, default)
        if not isinstance(value, bool):
            raise InputError("must be true or false", file=self.file, key=key, value=value)
        return value

    def layer_list(self, key: str, layers: int) -> list[int]:
        """A list of layer numbers."""
        value = self.config.get(key)
        value = [] if value is None else value
        ok = isinstance(value, list) and all(isinstance(v, int) and not isinstance(v, bool) for v in value)
        if not ok or any(not 0 <= v < layers for v in value):
            raise InputError("must be a list of layer numbers", file=self.file, key=key, value=value)
        return list(value)


def _exact_head_dim(hidden: int, heads: int, file: str) -> int:
    if hidden % heads:
        raise InputError(
            f"hidden_size = {hidden} is not a multiple of it and head_dim is not given",
            file=file,
            key="num_attention_heads",
            value=heads,
        )
    return hidden // heads


def _attention(get: _Reader, family: Family, hidden: int) -> Attention:
    heads = get.integer("num_attention_heads")
    kv_heads = get.optional("num_key_value_heads") or heads
    head_dim = get.optional("head_dim") or _exact_head_dim(hidden, heads, get.file)
    if heads % kv_heads:
        raise InputError(
            f"num_attention_heads = {heads} is not a multiple", file=get.file, key="num_key_value_heads", value=kv_heads
        )
    bias = get.flag(family.qkv_bias_key, family.qkv_bias) if family.qkv_bias_key else family.qkv_bias
    return Attention(
        heads,
        kv_heads,
        head_dim,
        qkv_bias=bias,
        out_bias=bias and family.out_bias,
        qk_norm=family.qk_norm,
        whole_norm=family.whole_norm,
        sinks=family.sinks,
    )


def _latent_attention(get: _Reader, family: Family) -> LatentAttention:
    return LatentAttention(
        heads=get.integer("num_attention_heads"),
        query_latent=get.optional("q_lora_rank"),
        latent=get.integer("kv_lora_rank"),
        rope=get.integer("qk_rope_head_dim"),
        nope=get.integer("qk_nope_head_dim"),
        value=get.integer("v_head_dim"),
        bias=get.flag(family.qkv_bias_key, family.qkv_bias) if family.qkv_bias_key else family.qkv_bias,
    )


def _windows(get: _Reader, family: Family, layers: int) -> list[int | None]:
    """The sliding window of each layer. Mistral and Mixtral use it in every layer, Qwen only where
    `use_sliding_window` says so: from layer `max_window_layers` on unless `layer_types` lists them (qwen3_moe: all).
    gpt-oss uses it in every other layer, the first included, unless `layer_types` lists them. MiniMax and latent
    attention know none.
    """
    if family.latent or family.whole_norm:
        return [None] * layers
    window = get.optional("sliding_window")
    if family.alternating_window:
        stated = get.layer_types(layers)
        kinds = [ATTENTION_KINDS[1 - i % 2] for i in range(layers)] if stated is None else stated
        return [window if kind == ATTENTION_KINDS[1] else None for kind in kinds]
    if family.gated_window:
        if window is None or not get.flag("use_sliding_window", False):
            return [None] * layers
        if "max_window_layers" not in family.defaults:
            return [window] * layers
        types = get.layer_types(layers)
        if types is not None:
            return [window if kind == ATTENTION_KINDS[1] else None for kind in types]
        first = get.count("max_window_layers")
        return [window if i >= first else None for i in range(layers)]
    return [window] * layers


def _experts(get: _Reader, family: Family) -> Experts:
    width = get.integer(family.expert_width_key)
    shared = get.count("n_shared_experts") if "n_shared_experts" in family.defaults else 0
    experts = Experts(
        get.integer(family.experts_key),
        get.integer("num_experts_per_tok"),
        width,
        shared=shared * width,
        bias=family.expert_bias,
    )
    if experts.top_k > experts.experts:
        raise InputError(
            f"more than the {experts.experts} experts there are",
            file=get.file,
            key="num_experts_per_tok",
            value=experts.top_k,
        )
    return experts


def _sparse_layers(get: _Reader, family: Family, layers: int) -> set[int]:
    """Layers with experts: all for Mixtral, gpt-oss and MiniMax; for DeepSeek all but the first
    `first_k_dense_replace`; for Qwen-MoE every `decoder_sparse_step`-th not in `mlp_only_layers`.
    """
    if not family.moe:
        return set()
    if "first_k_dense_replace" in family.defaults:
        return set(range(get.count("first_k_dense_replace"), layers))
    if "decoder_sparse_step" not in family.defaults:
        return set(range(layers))
    step, dense = get.integer("decoder_sparse_step"), set(get.layer_list("mlp_only_layers", layers))
    return {i for i in range(layers) if i not in dense and (i + 1) % step == 0}


def _block(attention: Attention | LatentAttention, window: int | None, ffn: Mlp | Experts) -> Block:
    if window is not None and isinstance(attention, Attention):
        attention = attention._replace(window=window)
    kind = "moe" if isinstance(ffn, Experts) else "dense"
    return Block(kind if window is None else f"{kind}-window", attention, ffn)


def _formats(config: Mapping[str, Any], file: str) -> tuple[WeightFormat, DType]:
    """Storage format of the checkpoint and format of its activations."""
    names = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
    stated = config.get("torch_dtype")
    stated = config.get("dtype") if stated is None else stated
    stated = "bfloat16" if stated is None else stated
    if not isinstance(stated, str) or stated.removeprefix("torch.") not in names:
        raise InputError(f"must be one of {', '.join(names)}", file=file, key="torch_dtype", value=stated)
    native = FORMATS[names[stated.removeprefix("torch.")]]
    quantisation = config.get("quantization_config")
    if quantisation is None:
        return native, native.compute
    if not isinstance(quantisation, dict):
        raise InputError("must be an object", file=file, key="quantization_config", value=quantisation)
    return quantised_checkpoint(quantisation, file), native.compute
