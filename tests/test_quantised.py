"""Published quantization_configs, as their repositories have them: bits with scales, and what stays wide where."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roofplan.dtypes import DType
from roofplan.errors import InputError
from roofplan.simulator.workload import zoo
from roofplan.simulator.workload.formats import FORMATS, WeightFormat, quantised_checkpoint
from roofplan.simulator.workload.hf import parse_config
from roofplan.simulator.workload.model import Model, Role

LLAMA_8B, LLAMA_405B, DEEPSEEK = "llama-3.1-8b", "llama-3.1-405b", "deepseek-v3"
# meta-llama/Llama-3.1-405B-Instruct-FP8: attention stays wide, and the first and the last layer altogether.
FBGEMM = {
    "activation_scale_ub": 1200.0,
    "modules_to_not_convert": [
        "lm_head",
        *(f"model.layers.{i}.mlp.{m}_proj" for i in (0, 125) for m in ("down", "gate", "up")),
        *(f"model.layers.{i}.self_attn.{m}_proj" for i in range(126) for m in "kovq"),
    ],
    "quant_method": "fbgemm_fp8",
}
# nvidia/DeepSeek-R1-FP4: attention of every layer stays in bf16.
NVFP4 = {
    "config_groups": {
        "group_0": {
            "input_activations": {"dynamic": False, "num_bits": 4, "type": "float", "group_size": 16},
            "weights": {"dynamic": False, "num_bits": 4, "type": "float", "group_size": 16},
            "targets": ["Linear"],
        }
    },
    "ignore": ["lm_head", *(f"model.layers.{i}.self_attn*" for i in range(61)), "model.layers.61*"],
    "quant_algo": "NVFP4",
    "producer": {"name": "modelopt", "version": "0.29.0"},
    "quant_method": "modelopt",
}


def read(name: str, quantisation: dict[str, Any]) -> Model:
    entry = next(json.loads(line) for line in zoo.ZOO.read_text().splitlines() if f'"{name}"' in line)
    config = {k: v for k, v in entry["config"].items() if k != "quantization_config"}
    return parse_config(config | {"quantization_config": quantisation}, name=name, file="config.json")


PUBLISHED: list[tuple[str, dict[str, Any], str, float]] = [
    (
        "unsloth/Meta-Llama-3.1-8B-Instruct-bnb-4bit",
        {
            "_load_in_4bit": True, "_load_in_8bit": False, "bnb_4bit_compute_dtype": "bfloat16",
            "bnb_4bit_quant_storage": "uint8", "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True,
            "llm_int8_enable_fp32_cpu_offload": False, "llm_int8_has_fp16_weight": False,
            "llm_int8_skip_modules": None, "llm_int8_threshold": 6.0, "load_in_4bit": True, "load_in_8bit": False,
            "quant_method": "bitsandbytes",
        },
        "bnb-nf4-double",
        4 + 8 / 64 + 32 / (64 * 256),
    ),
    (
        "transformers' documentation of bitsandbytes in 4 bits",
        {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4", "quant_method": "bitsandbytes"},
        "bnb-fp4",
        4.5,
    ),
    (
        "transformers' documentation of LLM.int8()",
        {"load_in_8bit": True, "llm_int8_threshold": 6.0, "quant_method": "bitsandbytes"},
        "int8",
        8,
    ),
    (
        "Qwen/Qwen3-8B-AWQ",
        {
            "backend": "autoawq", "bits": 4, "do_fuse": False, "exllama_config": None, "fuse_max_seq_len": None,
            "group_size": 128, "modules_to_fuse": None, "modules_to_not_convert": None, "quant_method": "awq",
            "version": "gemm", "zero_point": True,
        },
        "int4",
        4 + 20 / 128,
    ),
    (
        "Qwen/Qwen2.5-7B-Instruct-GPTQ-Int8",
        {
            "bits": 8, "damp_percent": 0.01, "desc_act": False, "group_size": 128, "quant_method": "gptq",
            "static_groups": False, "sym": True, "true_sequential": True,
        },
        "int8-g128",
        8 + 24 / 128,
    ),
    (
        "mobiuslabsgmbh/Llama-3.1-8b-instruct_4bitgs64_hqq_calib",
        {
            "quant_config": {
                "offload_meta": False, "scale_quant_params": None, "zero_quant_params": None,
                "weight_quant_params": {
                    "axis": 1, "channel_wise": True, "group_size": 64, "nbits": 4, "optimize": True,
                    "round_zero": True, "view_as_float": False,
                },
            },
            "quant_method": "hqq",
            "skip_modules": ["lm_head"],
        },
        "hqq4-g64",
        4.5,
    ),
    (
        "pytorch/Qwen3-8B-INT4",
        {
            "include_input_output_embeddings": False, "modules_to_not_convert": None, "quant_method": "torchao",
            "quant_type": {
                "default": {
                    "_data": {"group_size": 128, "use_hqq": True}, "_type": "Int4WeightOnlyConfig", "_version": 1,
                }
            },
            "quant_type_kwargs": {},
        },
        "torchao-int4-g128",
        4.25,
    ),
    (
        "diffusers' test of torchao",
        {"quant_method": "torchao", "quant_type": "int4_weight_only", "quant_type_kwargs": {"group_size": 8}},
        "torchao-int4-g8",
        8,
    ),
    (
        "pytorch/Phi-4-mini-instruct-FP8",
        {
            "quant_method": "torchao",
            "quant_type": {
                "default": {"_data": {}, "_type": "Float8DynamicActivationFloat8WeightConfig", "_version": 1}
            },
        },
        "fp8",
        8,
    ),
    ("nvidia/DeepSeek-R1-FP4", NVFP4, "nvfp4", 4.5),
    (
        "a ModelOpt checkpoint, W4A16",
        {"quant_method": "modelopt", "quant_algo": "W4A16_NVFP4", "group_size": 32, "kv_cache_scheme": None},
        "nvfp4-w4a16",
        4.25,
    ),
    (
        "hf_quant_config.json of ModelOpt's INT4_AWQ",
        {
            "quant_method": "modelopt",
            "quantization": {"quant_algo": "W4A16_AWQ", "group_size": 128, "has_zero_point": False},
        },
        "int4-g128",
        4 + 16 / 128,
    ),
    (
        "RedHatAI/Meta-Llama-3.1-8B-Instruct-quantized.w8a8",
        {
            "config_groups": {
                "group_0": {
                    "input_activations": {"num_bits": 8, "dynamic": True, "strategy": "token", "type": "int"},
                    "targets": ["Linear"],
                    "weights": {"num_bits": 8, "strategy": "channel", "symmetric": True, "type": "int"},
                }
            },
            "format": "int-quantized", "ignore": ["lm_head"], "quant_method": "compressed-tensors",
        },
        "int8",
        8,
    ),
    (
        "a compressed-tensors checkpoint, NVFP4A16",
        {
            "config_groups": {
                "group_0": {
                    "input_activations": None, "targets": ["Linear"],
                    "weights": {"num_bits": 4, "type": "float", "group_size": 16, "strategy": "tensor_group"},
                }
            },
            "format": "nvfp4-pack-quantized", "ignore": ["lm_head"], "quant_method": "compressed-tensors",
        },
        "nvfp4-w4a16",
        4.5,
    ),
    ("mlx-community/Qwen3-8B-4bit", {"group_size": 64, "bits": 4}, "mlx-int4-g64", 4.5),
]  # fmt: skip


@pytest.mark.parametrize(("config", "name", "bits"), [row[1:] for row in PUBLISHED], ids=[row[0] for row in PUBLISHED])
def test_published_configs(config: dict[str, Any], name: str, bits: float) -> None:
    format_ = quantised_checkpoint(config, "config.json")
    assert (format_.name, format_.bits_per_weight) == (name, pytest.approx(bits, abs=1e-12))
    assert format_.weight_only is (format_.bits_per_weight < format_.compute.bits)


@pytest.mark.parametrize(
    ("model", "config", "published"),
    [
        # unsloth/Meta-Llama-3.1-8B-Instruct-bnb-4bit: "model.safetensors: 100% 5.70G/5.70G" in logs of its download.
        (LLAMA_8B, PUBLISHED[0][1], 5.70e9),
        # Qwen/Qwen3-8B-AWQ: 13 files of 6,114,604,278 bytes in a log of its download, 16 MB of them tokenizer.
        ("qwen3-8b", PUBLISHED[3][1], 6.098e9),
    ],
)
def test_checkpoints_weigh_what_their_files_weigh(model: str, config: dict[str, Any], published: float) -> None:
    read_ = read(model, config)
    assert read_.weight_bytes(read_.native) == pytest.approx(published, rel=0.002)


def narrow(model: Model, role: Role, block: int = 0) -> float:
    """Average bits of the role's matrices in a block."""
    tensor = next(t for t in model.tensors if t.role is role and t.block == block)
    return 8 * model.layer_bytes(tensor, model.native) / tensor.elements


def test_fbgemm_leaves_attention_and_two_layers_wide() -> None:
    model = read(LLAMA_405B, FBGEMM)
    assert narrow(model, Role.Q) == narrow(model, Role.O) == 16
    assert narrow(model, Role.UP) == pytest.approx((124 * 8 + 2 * 16) / 126)
    up, q = (next(t for t in model.tensors if t.role is role) for role in (Role.UP, Role.Q))
    assert (model.format_of(up, model.native).name, model.format_of(q, model.native).name) == ("fp8", "bf16")


def test_wildcards_of_modelopt() -> None:
    model = read(DEEPSEEK, NVFP4)
    assert narrow(model, Role.KV_B, 1) == 16 and narrow(model, Role.GATE, 1) == 4.5
    one = read(DEEPSEEK, NVFP4 | {"ignore": ["model.layers.4.self_attn*"]})
    assert narrow(one, Role.KV_B, 1) == pytest.approx((57 * 4.5 + 16) / 58), "the dense block has three layers"


def test_a_mixed_modelopt_checkpoint_narrows_what_it_lists() -> None:
    fp8, nvfp4 = {"quant_algo": "FP8"}, {"quant_algo": "W4A16_NVFP4", "group_size": 16}
    listed = {
        **{f"model.language_model.layers.{i}.self_attn.{m}_proj": fp8 for i in range(32) for m in "qk"},
        **{f"model.layers.{i}.mlp.{m}_proj": nvfp4 for i in range(16) for m in ("up", "down")},
        "lm_head": nvfp4,
    }  # fmt: skip
    model = read(LLAMA_8B, {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "quantized_layers": listed})
    assert [narrow(model, role) for role in (Role.Q, Role.V, Role.GATE)] == [8, 16, 16]
    assert narrow(model, Role.DOWN) == pytest.approx((4.5 + 16) / 2)
    head, embedding = (next(t for t in model.tensors if t.role is r) for r in (Role.LM_HEAD, Role.EMBED))
    assert model.format_of(head, model.native).bits_per_weight == 4.5
    assert model.format_of(embedding, model.native).name == "bf16"


def test_a_compressed_tensors_mix_by_targets() -> None:
    def group(bits: int, targets: list[str], size: int = 128) -> dict[str, Any]:
        weights = {"num_bits": bits, "type": "int", "group_size": size, "symmetric": True}
        return {"weights": weights, "input_activations": None, "targets": targets}

    config = {
        "quant_method": "compressed-tensors",
        "config_groups": {
            "a": group(8, ["re:.*down_proj$"]),
            "b": group(4, ["Linear"]),
            "c": group(8, ["model.layers.0.mlp.up_proj"]),
        },
        "ignore": ["re:.*self_attn\\.(k|v)_proj"],
    }  # fmt: skip
    model = read(LLAMA_8B, config)
    assert [narrow(model, r) for r in (Role.Q, Role.K, Role.GATE, Role.DOWN)] == [4.125, 16, 4.125, 8.125]
    assert narrow(model, Role.UP) == pytest.approx((31 * 4.125 + 8.125) / 32)


def test_gptq_with_modules_of_their_own() -> None:
    config = {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": 128,
        "dynamic": {"-:.*attn": {}, "+:.*down": {"bits": 8}},
    }
    model = read(LLAMA_8B, config)
    assert [narrow(model, r) for r in (Role.Q, Role.UP, Role.DOWN)] == [16, 4 + 20 / 128, 8 + 24 / 128]


def test_routers_of_experts_are_no_gates() -> None:
    """MiniMax lists `gate`, its router, which is a component of no other name."""
    model = zoo.bundled("minimax-m2")
    assert narrow(model, Role.GATE) == pytest.approx(FORMATS["fp8-block"].bits_per_weight)


def test_a_literal_name_takes_in_what_is_below_it() -> None:
    config = {"quant_method": "fp8", "modules_to_not_convert": ["model.layers.3", "self_attn.q_proj"]}
    model = read(LLAMA_8B, config)
    assert narrow(model, Role.Q) == 16 and narrow(model, Role.UP) == pytest.approx((31 * 8 + 16) / 32)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"quant_method": "aqlm"}, "known: fp8, fbgemm_fp8"),
        ({"quant_method": "bitsandbytes"}, "load_in_8bit"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf3"}, "nf3"),
        ({"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 5}}}, "nbits"),
        ({"quant_method": "hqq", "quant_config": {"scale_quant_params": {"nbits": 8}}}, "quantised themselves"),
        ({"quant_method": "torchao", "quant_type": {"default": {"_type": "ModuleFqnToConfig"}}}, "ModuleFqnToConfig"),
        ({"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"}, "must list modules"),
        ({"quant_method": "gptq", "bits": 4, "dynamic": {"+:(": {}}}, "not a regular expression"),
        ({"quant_method": "fp8", "ignore": ["re:["]}, "not a regular expression"),
        ({"quant_method": "awq", "bits": 3}, "4, 8"),
        ({"bits": 4, "group_size": 3}, "group_size"),
    ],
)
def test_what_is_not_known_is_refused_by_name(config: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        quantised_checkpoint(config, "config.json")


@given(st.lists(st.sampled_from([f"model.layers.{i}" for i in range(32)]), unique=True))
def test_every_layer_left_wide_adds_what_it_saves(layers: list[str]) -> None:
    narrowed = read(LLAMA_8B, {"quant_method": "fp8", "modules_to_not_convert": layers})
    matrices = sum(t.elements for t in narrowed.tensors if t.scope is not None)  # of one layer, a byte each
    plain = read(LLAMA_8B, {"quant_method": "fp8"})
    more = narrowed.weight_bytes(narrowed.native) - plain.weight_bytes(plain.native)
    assert more == pytest.approx(len(layers) * matrices)


def test_formats_stay_plain_values() -> None:
    format_ = quantised_checkpoint(FBGEMM, "config.json")
    again = quantised_checkpoint(json.loads(json.dumps(FBGEMM)), "config.json")
    assert format_ == again and hash(format_) == hash(again) and format_ != FORMATS["fp8"]
    assert format_._replace(exceptions=()) == WeightFormat("fp8", 8, DType.FP8)
