"""Typed access to a config.json: a family's defaults behind it, every complaint with file and key."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ....dtypes import DType
from ....errors import InputError
from ..formats import FORMATS, WeightFormat, quantised_checkpoint
from ..layers import Block, blocks_of
from ..model import Model

MAX_INTEGER = 2**31
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "depth", "conf_num_hidden_layers")
# Of networks of one pass, by level or by kind of block.
BLOCKS = (
    "layers_per_block", "encoder_layers_per_block", "decoder_layers_per_block", "transformer_layers_per_block",
    "num_res_blocks", "num_single_layers", "num_refiner_layers", "n_refiner_layers", "num_decoder_layers",
    "encoder_layers", "decoder_layers", "iou_head_depth",
)  # fmt: skip
PIXELS = ("patch_size", "temporal_patch_size", "num_channels", "in_channels", "in_chans", "spatial_merge_size")
LIMIT = {
    **dict.fromkeys((*LAYERS, *BLOCKS, "num_global_layers", *PIXELS), 4096),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "embed_dim", "image_size"), 2**20),
    **dict.fromkeys(("head_dim", "global_head_dim", "num_attention_heads", "num_heads"), 2**20),
    "vocab_size": 2**26,
    "altup_num_inputs": 16,
    **dict.fromkeys(
        ("num_experts", "num_local_experts", "n_routed_experts", "n_shared_experts", "moe_num_experts"), 65536
    ),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"), 2**20),
}
REQUIRED = object()


class Reader(NamedTuple):
    """A config, the defaults of its family's configuration class, and the file that messages name."""

    config: Mapping[str, Any]
    defaults: Mapping[str, Any]
    file: str
    family: str
    name: str
    origin: str

    def assuming(self, **defaults: Any) -> Reader:
        """The same with further defaults for what the config leaves out."""
        return self._replace(defaults={**self.defaults, **defaults})

    def _raw(self, key: str) -> Any:
        if key in self.config:
            return self.config[key]
        if key in self.defaults:
            return self.defaults[key]
        raise InputError("missing", file=self.file, key=key, remedy="a config.json of this family always states it")

    def has(self, key: str) -> bool:
        """Whether the config itself states the key with a value."""
        return self.config.get(key) is not None

    def optional(self, key: str) -> int | None:
        """A positive whole number, or None where the config says null or the family has no default."""
        if key not in self.config and key not in self.defaults:
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

    def first(self, *keys: str) -> int:
        """The number under the first of several names a family knows it by: of those stated, else of those assumed."""
        known = [key for place in (self.config, self.defaults) for key in keys if key in place]
        return self.integer(known[0] if known else keys[0])

    def count(self, key: str) -> int:
        """A whole number that may be 0 (or null, which means 0)."""
        value = self._raw(key)
        return 0 if value is None or (value == 0 and not isinstance(value, bool)) else self.integer(key)

    def flag(self, key: str, default: bool = False) -> bool:
        """true or false."""
        value = self.config[key] if key in self.config else self.defaults.get(key, default)
        if not isinstance(value, bool):
            raise InputError("must be true or false", file=self.file, key=key, value=value)
        return value

    def number(self, key: str, default: float, most: float) -> float:
        """A number above 0 and not above `most`."""
        value = self.config.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= most:
            raise InputError(f"must lie above 0 and not above {most:g}", file=self.file, key=key, value=value)
        return float(value)

    def words(self, key: str, known: Sequence[str], length: int | None = None) -> list[str] | None:
        """A list of known words, `length` of them, or None where the config does not state it."""
        value = self.config.get(key, self.defaults.get(key))
        if value is None:
            return None
        right = isinstance(value, list) and (length is None or len(value) == length)
        if not right or any(v not in known for v in value):
            many = "" if length is None else f" for each of {length} layers"
            raise InputError(f"must name {' or '.join(known)}{many}", file=self.file, key=key, value=value)
        return list(value)

    def integers(self, key: str, length: int) -> list[int]:
        """A whole number for each layer: a list, or one for all of them."""
        value = self._raw(key)
        if not isinstance(value, list):
            return [self.integer(key)] * length
        if len(value) != length:
            raise InputError(f"must be one or {length} whole numbers", file=self.file, key=key, value=value)
        return [self._replace(config={key: one}).integer(key) for one in value]

    def choices(self, key: str, length: int) -> list[bool] | None:
        """A list of 0 and 1, one for each layer, or None where the config does not state it."""
        value = self.config.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) != length or any(v not in (0, 1) for v in value):
            raise InputError(f"must be 0 or 1 for each of {length} layers", file=self.file, key=key, value=value)
        return [bool(v) for v in value]

    def word(self, key: str, known: Sequence[str]) -> str | None:
        """One of the known words, or None where the config says null or the family has no default."""
        value = self.config.get(key, self.defaults.get(key))
        if value is not None and value not in known:
            raise InputError(f"must be {' or '.join(known)}", file=self.file, key=key, value=value)
        return None if value is None else str(value)

    def only(self, key: str, value: object) -> None:
        """Refuse any other value: the family is known with this one alone."""
        stated = self.config.get(key, self.defaults.get(key, value))
        if stated != value:
            raise InputError(f"known of a {self.family} is only {value}", file=self.file, key=key, value=stated)

    def several(self, key: str, length: int | None = None) -> list[int]:
        """A list of positive whole numbers, `length` of them."""
        value = self._raw(key)
        if not isinstance(value, list) or not value or (length is not None and len(value) != length):
            many = "" if length is None else f"{length} "
            raise InputError(f"must be a list of {many}whole numbers", file=self.file, key=key, value=value)
        return self.integers(key, len(value))

    def ratio(self, key: str, default: float) -> float:
        """A positive number, whole or not."""
        value = self.config.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MAX_INTEGER:
            raise InputError("must be a positive number", file=self.file, key=key, value=value)
        return float(value)

    def layer_list(self, key: str, layers: int, first: int = 0) -> list[int]:
        """A list of layer numbers, counted from `first`."""
        value = self.config.get(key, self.defaults.get(key))
        value = [] if value is None else value
        ok = isinstance(value, list) and all(isinstance(v, int) and not isinstance(v, bool) for v in value)
        if not ok or any(not first <= v < first + layers for v in value):
            raise InputError("must be a list of layer numbers", file=self.file, key=key, value=value)
        return list(value)

    def section(self, key: str) -> Reader:
        """An object inside the config as a config of its own."""
        value = self.config.get(key)
        if not isinstance(value, dict):
            raise InputError("must be an object", file=self.file, key=key, value=value)
        return self._replace(config=value, defaults={})

    def divided(self, total: int, heads_key: str, heads: int) -> int:
        """Width of one of `heads` parts of `total`, which must divide it."""
        if total % heads:
            problem = f"a width of {total} is not a multiple of it and head_dim is not given"
            raise InputError(problem, file=self.file, key=heads_key, value=heads)
        return total // heads

    def kv_heads(self, key: str, heads: int, default: int) -> int:
        """KV heads: stated or the default; they must divide the heads."""
        kv_heads = self.optional(key) or default
        if heads % kv_heads:
            raise InputError(f"{heads} heads are not a multiple", file=self.file, key=key, value=kv_heads)
        return kv_heads

    def top_k(self, key: str, experts: int) -> int:
        """Experts a token passes, of which there cannot be more than there are; a list says the same of all layers."""
        stated = self._raw(key)
        one = isinstance(stated, list) and len(stated) > 0 and all(v == stated[0] for v in stated)
        top_k = self._replace(config={**self.config, key: stated[0]}).integer(key) if one else self.integer(key)
        if top_k > experts:
            raise InputError(f"more than the {experts} experts there are", file=self.file, key=key, value=top_k)
        return top_k

    def formats(self) -> tuple[WeightFormat, DType]:
        """Storage format of the checkpoint and format of its activations."""
        names = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
        stated = self.config.get("torch_dtype")
        stated = self.config.get("dtype") if stated is None else stated
        stated = "bfloat16" if stated is None else stated
        if not isinstance(stated, str) or stated.removeprefix("torch.") not in names:
            problem = f"must be one of {', '.join(names)}"
            raise InputError(problem, file=self.file, key="torch_dtype", value=stated)
        native = FORMATS[names[stated.removeprefix("torch.")]]
        quantisation = self.config.get("quantization_config")
        if quantisation is None:
            return native, native.compute
        if not isinstance(quantisation, dict):
            raise InputError("must be an object", file=self.file, key="quantization_config", value=quantisation)
        return quantised_checkpoint(quantisation, self.file), native.compute

    def model(self, hidden: int, per_layer: list[Block], *, max_context: int, tied: bool, **outer: Any) -> Model:
        """The model of these layers in this order; `outer` are further fields of `Model`."""
        blocks, pattern = blocks_of(per_layer)
        native, activation = self.formats()
        return Model(
            name=self.name,
            family=self.family,
            hidden=hidden,
            vocab=self.integer("vocab_size"),
            blocks=blocks,
            pattern=pattern,
            tied=tied,
            max_context=max_context,
            native=native,
            activation=activation,
            origin=self.origin,
            **outer,
        )
