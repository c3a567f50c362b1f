"""The `quantization_config` of a checkpoint's config.json as a weight format, scales and exceptions included.

Every method states what it stores: payload, scales and zero points of a group, and the modules it leaves alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ...dtypes import DType
from ...errors import InputError
from .formats import FORMATS, WeightFormat, block_scaled_fp8, grouped

KEY = "quantization_config"
Exceptions = tuple[tuple[str, WeightFormat | None], ...]
# Where methods list the modules they leave wide.
WIDE_KEYS = (
    "modules_to_not_convert",  # transformers: fp8, mxfp4, fbgemm_fp8, awq, torchao
    "ignored_layers",  # vLLM's fp8
    "ignore",  # compressed-tensors, modelopt
    "exclude_modules",  # modelopt's hf_quant_config.json
    "llm_int8_skip_modules",  # bitsandbytes
    "skip_modules",  # hqq
)
NEVER_NARROWED = ("lm_head", "model.embed_tokens", "embed_tokens")
MAX_PATTERN = 1000
# bitsandbytes quantises blocks of 64 weights and, the second time, 256 of their scales (QLoRA, arXiv 2305.14314,
# section 3; `blocksize=64` and `nested_blocksize=256` in bitsandbytes/functional.py).
BNB_BLOCK, BNB_NESTED = 64, 256
NVFP4_W4A16 = WeightFormat("nvfp4-w4a16", grouped(4, 16, scale_bits=8, zero_bits=0), DType.BF16)
MXFP4_W4A16 = WeightFormat("mxfp4-w4a16", grouped(4, 32, scale_bits=8, zero_bits=0), DType.BF16)
FP8_W8A16 = WeightFormat("fp8-w8a16", 8, DType.BF16)
INT8_W8A16 = WeightFormat("int8-w8a16", 8, DType.BF16)


class Config(NamedTuple):
    """A quantization_config and the file that messages name."""

    values: Mapping[str, Any]
    file: str

    def get(self, key: str) -> Any:
        """The value under a key, None where there is none."""
        return self.values.get(key)

    def refuse(self, problem: str, key: str, value: object = None, remedy: str | None = None) -> InputError:
        """The error to raise about a key."""
        return InputError(problem, file=self.file, key=f"{KEY}.{key}", value=value, remedy=remedy)

    def number(self, key: str, default: int | None = None) -> int:
        """A whole number."""
        value = self.values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.refuse("must be a whole number", key, value)
        return value

    def section(self, key: str) -> Config:
        """An object inside the config as one of its own; empty where there is none."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, Mapping):
            raise self.refuse("must be an object", key, value)
        return self._replace(values=value or {})


def checkpoint_format(values: Mapping[str, object], file: str) -> WeightFormat:
    """The weight format a `quantization_config` declares; refused by name where it is not known."""
    config = Config(values, file)
    if isinstance(config.get("quantization"), Mapping):  # modelopt's hf_quant_config.json nests it
        config = config._replace(values={**values, **config.get("quantization")})
    method = config.get("quant_method")
    if method is None and config.get("bits") is not None:
        return _mlx(config)
    name = method.lower().replace("-", "_") if isinstance(method, str) else ""
    if name not in METHODS:
        remedy = f"known: {', '.join(METHODS)}; or take the entry out and pin --weights"
        raise config.refuse("unknown quantisation method", "quant_method", method, remedy)
    format_ = METHODS[name](config)
    return format_._replace(exceptions=(*left_wide(config), *format_.exceptions))


def left_wide(config: Config) -> Exceptions:
    """The modules the config leaves alone, each pattern with None; embeddings and head never are anything else."""
    names = []
    for key in WIDE_KEYS:
        listed = config.get(key)
        for name in listed if isinstance(listed, list) else ():
            if isinstance(name, str) and name not in NEVER_NARROWED:
                names.append(_checked(name, config, key))
    return tuple((name, None) for name in dict.fromkeys(names))


def _checked(pattern: str, config: Config, key: str) -> str:
    if len(pattern) > MAX_PATTERN:
        raise config.refuse(f"a pattern longer than {MAX_PATTERN} characters", key, pattern)
    if pattern.startswith("re:"):
        try:
            re.compile(pattern[3:])
        except (re.error, RecursionError, OverflowError) as error:
            raise config.refuse(f"not a regular expression: {error}", key, pattern) from None
    return pattern


def _fp8(config: Config) -> WeightFormat:
    """FP8 by block where the config gives a block, else one scale a tensor or channel, which weighs nothing."""
    block = config.get("weight_block_size")
    if block is None:
        return FORMATS["fp8"]
    sides = block if isinstance(block, list) and len(block) == 2 else [None, None]
    rows, cols = (side if isinstance(side, int) and not isinstance(side, bool) else 0 for side in sides)
    if not (1 <= rows <= 65536 and 1 <= cols <= 65536):
        raise config.refuse("must be two whole numbers from 1 to 65536", "weight_block_size", block)
    return block_scaled_fp8(rows, cols)


def _fbgemm_fp8(config: Config) -> WeightFormat:
    """FP8 with one scale a row (transformers, `FbgemmFp8Linear`), which weighs nothing."""
    return FORMATS["fp8"]


def _mxfp4(config: Config) -> WeightFormat:
    """OCP microscaling: an 8-bit exponent for 32 elements."""
    return FORMATS["mxfp4"]


def _integer(bits: int, group: int, scale_bits: int = 16, zero_bits: int | None = None) -> WeightFormat:
    """Whole numbers in groups, widened on the fly; a group of -1 is a whole row, whose scale weighs nothing."""
    if group == -1:
        return WeightFormat(f"int{bits}-channel", bits, DType.BF16)
    return WeightFormat(f"int{bits}-g{group}", grouped(bits, group, scale_bits, zero_bits), DType.BF16)


def _bits_and_group(config: Config, widths: tuple[int, ...], default_group: int = 128) -> tuple[int, int]:
    bits, group = config.get("bits"), config.values.get("group_size", default_group)
    whole = all(isinstance(n, int) and not isinstance(n, bool) for n in (bits, group))
    if not whole or bits not in widths or not (group == -1 or 8 <= group <= 65536):
        known = ", ".join(map(str, widths))
        raise config.refuse(f"needs bits of {known} and a group_size of 8 or more (-1: a row)", "bits", bits)
    return int(bits), int(group)


def _zero_pointed(bits: int, group: int) -> WeightFormat:
    """A 16-bit scale and a zero point of the weights' width for a group; the usual one is `int4` itself."""
    return FORMATS["int4"] if (bits, group) == (4, 128) else _integer(bits, group)


def _awq(config: Config) -> WeightFormat:
    """AWQ (AutoAWQ, `WQLinear_GEMM`)."""
    return _zero_pointed(*_bits_and_group(config, (4, 8)))


def _gptq(config: Config) -> WeightFormat:
    """GPTQ: as AWQ; GPTQModel's `dynamic` gives modules of their own ("+:") or leaves them alone ("-:")."""
    base = _zero_pointed(*_bits_and_group(config, (2, 3, 4, 8)))
    rules: list[tuple[str, WeightFormat | None]] = []
    for pattern, change in config.section("dynamic").values.items():
        if not isinstance(pattern, str) or not isinstance(change, Mapping):
            raise config.refuse("must map patterns to objects", "dynamic", pattern)
        regex = _checked(f"re:{pattern.removeprefix('+:').removeprefix('-:')}", config, "dynamic")
        changed = config._replace(values={**config.values, **change})
        own = None if pattern.startswith("-:") else _zero_pointed(*_bits_and_group(changed, (2, 3, 4, 8)))
        rules.append((regex, own))
    return base._replace(exceptions=tuple(rules))


def _bitsandbytes(config: Config) -> WeightFormat:
    """NF4 or FP4 with a 32-bit scale for 64 weights, itself in 8 bits if quantised twice; or LLM.int8()."""
    if config.get("load_in_8bit") is True:  # a scale for each row (arXiv 2208.07339); outliers stay in 16 bits
        return FORMATS["int8"]
    kind = config.values.get("bnb_4bit_quant_type", "fp4")
    if config.get("load_in_4bit") is not True or kind not in ("nf4", "fp4"):
        raise config.refuse("must be load_in_8bit, or load_in_4bit with nf4 or fp4", "bnb_4bit_quant_type", kind)
    if config.get("bnb_4bit_use_double_quant") is True:
        return WeightFormat(f"bnb-{kind}-double", 4 + 8 / BNB_BLOCK + 32 / (BNB_BLOCK * BNB_NESTED), DType.BF16)
    return WeightFormat(f"bnb-{kind}", 4 + 32 / BNB_BLOCK, DType.BF16)


def _hqq(config: Config) -> WeightFormat:
    """HQQ: a 16-bit scale and a 16-bit zero point for a group (mobiusml/hqq, `BaseQuantizeConfig`)."""
    inner = config.section("quant_config")
    if inner.get("scale_quant_params") or inner.get("zero_quant_params"):
        raise config.refuse("scales or zero points that are quantised themselves are not known", "quant_config")
    weights = inner.section("weight_quant_params")
    bits, group = weights.number("nbits"), weights.number("group_size", 64)
    if bits not in (1, 2, 3, 4, 8) or not 8 <= group <= 65536:
        raise config.refuse("needs nbits of 1, 2, 3, 4 or 8 and a group_size of 8 or more", "quant_config", bits)
    stored = {3: 3.2}.get(bits, bits)  # ten 3-bit numbers to 32 bits (hqq, `BitPack.pack_3bit_32`)
    return WeightFormat(f"hqq{bits}-g{group}", stored + 32 / group, DType.BF16)


def _torchao(config: Config) -> WeightFormat:
    """torchao's plain kinds, in the old spelling (`int4_weight_only`) and the new (`Int4WeightOnlyConfig`)."""
    kind, arguments = config.get("quant_type"), config.section("quant_type_kwargs")
    if isinstance(kind, Mapping):
        default = config.section("quant_type").section("default")
        kind, arguments = default.get("_type"), default.section("_data")
    plain = re.sub(r"(?<!^)(?=[A-Z])", "_", kind).lower().removesuffix("_config") if isinstance(kind, str) else ""
    if plain == "int4_weight_only":  # scale and zero point in 16 bits each (`quantize_affine`, tinygemm layout)
        group = arguments.number("group_size", 128)
        if not 8 <= group <= 65536:
            raise config.refuse("group_size must be 8 or more", "quant_type", group)
        return WeightFormat(f"torchao-int4-g{group}", 4 + 32 / group, DType.BF16)
    known = {
        "int8_weight_only": INT8_W8A16,
        "int8_dynamic_activation_int8_weight": FORMATS["int8"],
        "float8_weight_only": FP8_W8A16,
        "float8_dynamic_activation_float8_weight": FORMATS["fp8"],
        "float8_static_activation_float8_weight": FORMATS["fp8"],
    }
    if plain not in known:
        remedy = f"known: int4_weight_only, {', '.join(known)}"
        raise config.refuse("unknown kind of weights", "quant_type", kind, remedy)
    return known[plain]


def _modelopt_algorithm(config: Config, algorithm: object, group: object) -> WeightFormat:
    """NVIDIA Model Optimizer's names (modelopt/torch/export/quant_utils.py); NVFP4 has an fp8 scale for a group."""
    size = group if isinstance(group, int) and not isinstance(group, bool) and 8 <= group <= 65536 else None
    nvfp4_bits = grouped(4, size or 16, scale_bits=8, zero_bits=0)
    known = {
        "FP8": FORMATS["fp8"],
        "FP8_PER_CHANNEL_PER_TOKEN": FORMATS["fp8"],
        "FP8_PB_WO": FORMATS["fp8-block"],
        "NVFP4": FORMATS["nvfp4"]._replace(bits_per_weight=nvfp4_bits),
        "NVFP4_AWQ": FORMATS["nvfp4"]._replace(bits_per_weight=nvfp4_bits),
        "W4A16_NVFP4": NVFP4_W4A16._replace(bits_per_weight=nvfp4_bits),
        "MXFP8": WeightFormat("mxfp8", 8 + 8 / 32, DType.FP8),
        "W4A16_AWQ": _integer(4, size or 128, zero_bits=0),
        "W8A8_SQ_PER_CHANNEL": FORMATS["int8"],
    }
    if not isinstance(algorithm, str) or algorithm not in known:
        raise config.refuse("unknown algorithm", "quant_algo", algorithm, f"known: {', '.join(known)}, MIXED_PRECISION")
    return known[algorithm]


def _modelopt(config: Config) -> WeightFormat:
    """One algorithm for all linear layers, or a list of modules with one each; the rest of those stays wide."""
    if config.get("quant_algo") != "MIXED_PRECISION":
        return _modelopt_algorithm(config, config.get("quant_algo"), config.get("group_size"))
    rules: dict[str, WeightFormat] = {}
    for module, how in config.section("quantized_layers").values.items():
        if not isinstance(module, str) or not isinstance(how, Mapping):
            raise config.refuse("must map modules to objects", "quantized_layers", module)
        if re.search(r"\.experts\.[1-9]", module):
            continue  # all experts of a layer are alike; the first stands for them
        algorithm, group = how.get("quant_algo"), how.get("group_size")
        rules[_checked(module, config, "quantized_layers")] = _modelopt_algorithm(config, algorithm, group)
    if not rules:
        raise config.refuse("must list modules", "quantized_layers")
    narrowest = min(rules.values(), key=lambda f: f.bits_per_weight)
    return narrowest._replace(name="modelopt-mixed", exceptions=(*rules.items(), ("re:.*", None)))


def _compressed_tensors(config: Config) -> WeightFormat:
    """Groups of modules with one kind of weights each; names count before patterns, patterns before the class Linear.

    compressed-tensors, `QuantizationScheme` and `match_targets`.
    """
    by_class: list[WeightFormat] = []
    by_name: list[tuple[str, WeightFormat | None]] = []
    for name, group in config.section("config_groups").values.items():
        if not isinstance(name, str) or not isinstance(group, Mapping):
            raise config.refuse("must map names to objects", "config_groups", name)
        format_ = _group_format(config._replace(values=group))
        targets = group.get("targets", ["Linear"])
        for target in targets if isinstance(targets, list) else ["Linear"]:
            if not isinstance(target, str):
                raise config.refuse("targets must be names", "config_groups", target)
            if target[:1].isupper():  # a class
                by_class.append(format_)
            else:
                by_name.append((_checked(target, config, "config_groups"), format_))
    if len(set(by_class)) > 1 or not (by_class or by_name):
        raise config.refuse("must describe one kind of weights for all linear layers", "config_groups")
    exceptions = tuple(sorted(by_name, key=lambda rule: rule[0].startswith("re:")))
    if by_class:
        return by_class[0]._replace(exceptions=exceptions)
    formats = {f for _, f in by_name if f is not None}
    narrowest = min(formats, key=lambda f: f.bits_per_weight)
    return narrowest._replace(exceptions=(*exceptions, ("re:.*", None)))


def _group_format(group: Config) -> WeightFormat:
    """The weights of one group: whole numbers of 4 or 8 bits, fp8, or 4-bit floats in groups of 16 or 32."""
    weights = group.section("weights")
    kind, bits, size = (weights.get(key) for key in ("type", "num_bits", "group_size"))
    # A group that says its activations are not quantised is weight-only; older files leave the key out.
    weight_only = "input_activations" in group.values and group.get("input_activations") is None
    sized = isinstance(size, int) and not isinstance(size, bool) and 8 <= size <= 65536
    match kind, bits:
        case "int", 4 | 8 if sized:
            zero_bits = bits if weights.get("symmetric") is False else 0
            return _integer(int(bits), size, zero_bits=int(zero_bits))
        case "int", 8 if weights.get("strategy") in ("channel", "tensor"):
            return INT8_W8A16 if weight_only else FORMATS["int8"]
        case "int", 4 if weights.get("strategy") == "channel":
            return _integer(4, -1)
        case "float", 8:
            block = weights.get("block_structure")
            if weights.get("strategy") == "block" and block is not None:
                return _fp8(weights._replace(values={"weight_block_size": block}))
            return FP8_W8A16 if weight_only else FORMATS["fp8"]
        case "float", 4 if size == 16:
            return NVFP4_W4A16 if weight_only else FORMATS["nvfp4"]
        case "float", 4 if size == 32:
            return MXFP4_W4A16 if weight_only else FORMATS["mxfp4"]
    remedy = "known: int 4 or 8 by group or channel, float 8, float 4 with groups of 16 or 32"
    raise group.refuse("unknown kind of weights", "config_groups", dict(weights.values), remedy)


def _mlx(config: Config) -> WeightFormat:
    """MLX: a 16-bit scale and a 16-bit bias for a group, embeddings and head too (mlx_lm, `quantize_model`)."""
    bits, group = _bits_and_group(config, (2, 3, 4, 5, 6, 8), 64)
    base = WeightFormat(f"mlx-int{bits}-g{group}", bits + 32 / group, DType.BF16, whole=True)
    if config.get("mode") == "mxfp4":
        base = base._replace(name="mlx-mxfp4", bits_per_weight=grouped(4, 32, scale_bits=8, zero_bits=0))
    rules: list[tuple[str, WeightFormat | None]] = []
    for module, own in config.values.items():
        if own is False:
            rules.append((_checked(str(module), config, "bits"), None))
        elif isinstance(own, Mapping):
            bits, group = _bits_and_group(config._replace(values={**config.values, **own}), (2, 3, 4, 5, 6, 8), 64)
            changed = base._replace(name=f"mlx-int{bits}-g{group}", bits_per_weight=bits + 32 / group)
            rules.append((_checked(str(module), config, "bits"), changed))
    return base._replace(exceptions=tuple(rules))


METHODS: Mapping[str, Callable[[Config], WeightFormat]] = {
    "fp8": _fp8,
    "fbgemm_fp8": _fbgemm_fp8,
    "mxfp4": _mxfp4,
    "awq": _awq,
    "gptq": _gptq,
    "auto_round": _gptq,
    "bitsandbytes": _bitsandbytes,
    "hqq": _hqq,
    "torchao": _torchao,
    "modelopt": _modelopt,
    "modelopt_fp4": _modelopt,
    "compressed_tensors": _compressed_tensors,
}
