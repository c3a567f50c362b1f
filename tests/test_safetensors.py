"""Safetensors headers: by the reference package or at full size without data, read back to the byte, and damaged."""

import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from roofplan.errors import InputError
from roofplan.simulator.planner.domain import weight_choices
from roofplan.simulator.workload import zoo
from roofplan.simulator.workload.layers import Role
from roofplan.simulator.workload.safetensors import BITS, StoredTensor, read_header, read_safetensors, with_stored

Entries = dict[str, tuple[str, tuple[int, ...]]]
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128}
TINY = {
    "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 128,
    "num_key_value_heads": 2, "intermediate_size": 96, "max_position_embeddings": 256, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}  # fmt: skip


def write(path: Path, entries: Entries, more: bytes = b"") -> int:
    """A file of these tensors whose data is a hole; returns the bytes of its tensors."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, (dtype, shape) in entries.items():
        size = math.prod(shape) * BITS[dtype] // 8
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    raw = json.dumps(header).encode() + more
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(raw)) + raw)
        stream.truncate(8 + len(raw) + at)
    return at


def llama(config: dict[str, Any], linear: str = "plain") -> Entries:
    """Tensors of a Llama as `transformers`, AutoAWQ or bitsandbytes name and shape them."""
    hidden, ffn, vocab = (config[k] for k in ("hidden_size", "intermediate_size", "vocab_size"))
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    kv = hidden // heads * kv_heads
    entries: Entries = {
        "model.embed_tokens.weight": ("BF16", (vocab, hidden)),
        "model.norm.weight": ("BF16", (hidden,)),
    }
    entries |= {} if config.get("tie_word_embeddings") else {"lm_head.weight": ("BF16", (vocab, hidden))}
    shapes = {
        "self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (kv, hidden), "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, hidden), "mlp.gate_proj": (ffn, hidden), "mlp.up_proj": (ffn, hidden),
        "mlp.down_proj": (hidden, ffn),
    }  # fmt: skip
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            entries[f"{layer}.{norm}.weight"] = ("BF16", (hidden,))
        for name, (rows, cols) in shapes.items():
            module = f"{layer}.{name}"
            if linear == "awq":
                entries[f"{module}.qweight"] = ("I32", (cols, rows // 8))
                entries[f"{module}.qzeros"] = ("I32", (cols // 128, rows // 8))
                entries[f"{module}.scales"] = ("F16", (cols // 128, rows))
            else:
                entries[f"{module}.weight"] = ("BF16", (rows, cols))
    return entries


def checkpoint(folder: Path, config: dict[str, Any], entries: Entries, shards: int = 1) -> tuple[Path, int]:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if shards == 1:
        path = folder / "model.safetensors"
        return path, write(path, entries)
    names, total, weight_map = list(entries), 0, {}
    for i in range(shards):
        part = {n: entries[n] for n in names[i::shards]}
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        total += write(folder / file, part)
        weight_map |= dict.fromkeys(part, file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}))
    return index, total


def bundled(name: str, **more: Any) -> dict[str, Any]:
    entry = next(json.loads(line) for line in zoo.ZOO.read_text().splitlines() if f'"{name}"' in line)
    config: dict[str, Any] = entry["config"]
    return config | more


def test_a_checkpoint_as_transformers_saves_it(tmp_path: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**{k: v for k, v in TINY.items() if k not in ("model_type", "torch_dtype")})
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path, max_shard_size="40KB")
    index = tmp_path / "model.safetensors.index.json"
    stored = [t for shard in sorted(tmp_path.glob("*.safetensors")) for t in read_header(shard)]
    model = read_safetensors(index)
    assert len(list(tmp_path.glob("*.safetensors"))) > 3 and len(stored) == 3 * 9 + 3
    assert model.weight_bytes(model.native) == sum(t.bytes for t in stored)
    assert json.loads(index.read_text())["metadata"]["total_size"] == sum(t.bytes for t in stored)
    assert model.warnings == () and len(weight_choices(model)) > 1, "a 16-bit checkpoint can still be narrowed"
    assert model.native.name == "bf16" and zoo.resolve(str(tmp_path)).parameters == model.parameters


def test_files_in_another_plain_format_than_the_config_says(tmp_path: Path) -> None:
    wide = {name: ("F32", shape) for name, (_, shape) in llama(TINY).items()}
    path, total = checkpoint(tmp_path, TINY, wide)
    model = read_safetensors(path)
    assert model.native.name == "fp32" and model.weight_bytes(model.native) == total and not model.warnings


@pytest.mark.parametrize("shards", [1, 4])
def test_a_quantised_checkpoint_of_full_size(tmp_path: Path, shards: int) -> None:
    config = bundled("llama-3.1-8b", quantization_config=AWQ)
    path, total = checkpoint(tmp_path, config, llama(config, "awq"), shards)
    model = read_safetensors(path)
    assert model.weight_bytes(model.native) == total and not model.warnings
    q = 32 * 4096 * 4096
    assert model.stored[Role.Q, 0] == pytest.approx(q * (4 + 20 / 128) / 8)
    assert weight_choices(model) == (model.native,) and model.native.name == "int4"
    for name in (str(path), str(tmp_path), str(next(tmp_path.glob("*.safetensors")))):
        assert zoo.resolve(name).weight_bytes(model.native) == total
    assert zoo.resolve(str(path)).origin == str(path)


def test_experts_and_fused_projections_of_gpt_oss(tmp_path: Path) -> None:
    config = bundled("gpt-oss-20b")
    hidden, experts, layers = config["hidden_size"], config["num_local_experts"], config["num_hidden_layers"]
    wide = llama(config)
    entries: Entries = {k: v for k, v in wide.items() if ".mlp." not in k and "self_attn" not in k}
    for i in range(layers):
        for name, rows, cols in (("q", 4096, hidden), ("k", 512, hidden), ("v", 512, hidden), ("o", hidden, 4096)):
            entries[f"model.layers.{i}.self_attn.{name}_proj.weight"] = ("BF16", (rows, cols))
        for name, rows in (("gate_up", 2 * hidden), ("down", hidden)):
            stem = f"model.layers.{i}.mlp.experts.{name}_proj"
            entries[f"{stem}_blocks"] = ("U8", (experts, rows, hidden // 32, 16))
            entries[f"{stem}_scales"] = ("U8", (experts, rows, hidden // 32))
            entries[f"{stem}_bias"] = ("BF16", (experts, rows))
    path, total = checkpoint(tmp_path, config, entries)
    model = read_safetensors(path)
    assert model.weight_bytes(model.native) == pytest.approx(total, rel=1e-12)
    assert model.stored[Role.GATE, 0] == model.stored[Role.UP, 0] > 0
    assert model.format_of(next(t for t in model.tensors if t.role is Role.Q), model.native).name == "bf16"


def test_what_is_not_loaded_is_not_counted_and_said(tmp_path: Path) -> None:
    """Layers that only predict further tokens, and the copy of a tied embedding."""
    config = TINY | {"tie_word_embeddings": True}
    ahead: Entries = {"model.layers.3.mlp.up_proj.weight": ("BF16", (96, 64)), "mtp.fc.weight": ("BF16", (64, 64))}
    path, total = checkpoint(tmp_path, config, llama(config) | ahead | {"lm_head.weight": ("BF16", (128, 64))})
    model = read_safetensors(path)
    left_out = 2 * (96 * 64 + 64 * 64 + 128 * 64)
    assert model.weight_bytes(model.native) == total - left_out
    assert model.warnings == ("36.9 kB of its files are not loaded to generate text",) and left_out == 36864


def test_a_tower_of_another_kind_counts_as_extra_and_is_told(tmp_path: Path) -> None:
    seeing = llama(TINY) | {f"model.vision_tower.layers.{i}.fc.weight": ("BF16", (64, 64)) for i in range(9)}
    path, total = checkpoint(tmp_path, TINY, seeing)
    model = read_safetensors(path)
    assert model.weight_bytes(model.native) == total and model.stored[Role.EXTRA, None] >= 9 * 2 * 64 * 64
    assert "the files count" in model.warnings[0]


def test_names_nobody_knows_share_out_the_total(tmp_path: Path) -> None:
    strange = {name.replace("_proj", "_matrix"): entry for name, entry in llama(TINY).items()}
    strange["model.layers.0.adapter.weight"] = ("BF16", (64, 300))
    path, total = checkpoint(tmp_path, TINY, strange)
    model = read_safetensors(path)
    assert model.weight_bytes(model.native) == pytest.approx(total)
    assert (Role.EXTRA, None) not in model.stored


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_hidden_layers": 4}, "the files hold 3 layers"),
        ({"hidden_size": 256}, "is it the config of another model"),
        ({"model_type": "unheard-of", "hidden_size": None}, "lacks hidden_size"),
    ],
)
def test_a_config_of_another_model_is_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    path, _ = checkpoint(tmp_path, TINY | change, llama(TINY))
    with pytest.raises(InputError, match=words):
        read_safetensors(path)


def test_tensors_without_a_config_say_what_is_missing(tmp_path: Path) -> None:
    path, _ = checkpoint(tmp_path, TINY, llama(TINY))
    (tmp_path / "config.json").unlink()
    for name in (path, tmp_path):
        with pytest.raises(InputError, match=r"config\.json: no such file; put the config\.json"):
            zoo.resolve(str(name))


def test_a_missing_shard_is_named_and_a_folder_does_without(tmp_path: Path) -> None:
    index, _ = checkpoint(tmp_path, TINY, llama(TINY), shards=3)
    gone = tmp_path / "model-00002-of-00003.safetensors"
    gone.unlink()
    with pytest.raises(InputError, match=gone.name):
        read_safetensors(index)
    assert not zoo.resolve(str(tmp_path)).stored, "its config alone is enough"
    index.unlink()
    with pytest.raises(InputError, match="the index that lists them is missing"):
        read_safetensors(tmp_path / "model-00001-of-00003.safetensors")


# ---- damage


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return checkpoint(tmp_path, TINY, llama(TINY))[0]


def refused(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_header(path)
    line = str(caught.value)
    assert path.name in line and line.isprintable() and len(line) < 1000
    return line


def test_truncated_anywhere(whole: Path) -> None:
    data = whole.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    for at in {0, 1, 7, 8, 9, *range(8, 8 + length, 97), 8 + length, len(data) - 1}:
        whole.write_bytes(data[:at])
        assert "truncated" in refused(whole), at


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (struct.pack("<Q", 2**63) + b"{}", "absurd"),
        (struct.pack("<Q", 100_000_001) + b"{}", "absurd"),
        (struct.pack("<Q", 3) + b"{}", "truncated"),
        (struct.pack("<Q", 2) + b"[]", "must be a JSON object"),
        (struct.pack("<Q", 2) + b"\xff\xff", "not UTF-8"),
        (struct.pack("<Q", 2) + b"{,", "not valid JSON"),
        (struct.pack("<Q", 200_000) + b"[" * 200_000, "not valid JSON"),
    ],
)
def test_headers_that_are_none(tmp_path: Path, raw: bytes, words: str) -> None:
    path = tmp_path / "broken.safetensors"
    path.write_bytes(raw)
    assert words in refused(path)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (None, "must be an object"),
        ({"dtype": "Q4", "shape": [2], "data_offsets": [0, 1]}, "unknown dtype"),
        ({"dtype": "F16", "shape": [-2], "data_offsets": [0, 4]}, "shape must be"),
        ({"dtype": "F16", "shape": [True], "data_offsets": [0, 2]}, "shape must be"),
        ({"dtype": "F16", "shape": [1] * 40, "data_offsets": [0, 2]}, "shape must be"),
        ({"dtype": "F16", "shape": [2], "data_offsets": [0]}, "data_offsets must be"),
        ({"dtype": "F16", "shape": [2], "data_offsets": [4, 0]}, "do not hold"),
        ({"dtype": "F16", "shape": [3], "data_offsets": [0, 4]}, "do not hold"),
        ({"dtype": "F16", "shape": [2**59, 2**59], "data_offsets": [0, 4]}, "do not hold"),
        ({"dtype": "F16", "shape": [500], "data_offsets": [0, 1000]}, "truncated"),
    ],
    ids=lambda v: "" if isinstance(v, str) else repr(v)[:40],
)
def test_entries_that_are_wrong(tmp_path: Path, entry: Any, words: str) -> None:
    path, raw = tmp_path / "broken.safetensors", json.dumps({"x.weight": entry}).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(4))
    assert words in refused(path)


@pytest.mark.parametrize(
    "weight_map",
    [
        None,
        {},
        {"a": 3},
        {"a": "../../etc/passwd"},
        {"a": "/etc/passwd"},
        {"a": ".."},
        {"a": "x" * 300},
        {"a": "b\x00c"},
    ],
    ids=repr,
)
def test_an_index_names_files_beside_it_and_nothing_else(tmp_path: Path, weight_map: Any) -> None:
    index, _ = checkpoint(tmp_path, TINY, llama(TINY), shards=2)
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(InputError, match="weight_map"):
        read_safetensors(index)


def test_nothing_is_lost_or_counted_twice() -> None:
    """Whatever the names are, the bytes of the model are those of its files."""
    config = bundled("mixtral-8x7b")
    model = zoo.bundled("mixtral-8x7b")

    def tensors() -> Iterator[StoredTensor]:
        for name, (dtype, shape) in llama(config).items():
            yield StoredTensor(name, dtype, shape, math.prod(shape) * 2)
        for i in range(32):
            for e in range(8):
                for w, shape in (("w1", (14336, 4096)), ("w2", (4096, 14336)), ("w3", (14336, 4096))):
                    name = f"model.layers.{i}.block_sparse_moe.experts.{e}.{w}.weight"
                    yield StoredTensor(name, "BF16", shape, math.prod(shape) * 2)
            yield StoredTensor(f"model.layers.{i}.block_sparse_moe.gate.weight", "BF16", (8, 4096), 65536)

    held = [t for t in tensors() if ".mlp." not in t.name]
    read = with_stored(model, held, "x")
    assert not read.stored and sum(t.bytes for t in held) == model.weight_bytes(model.native)
    narrow = with_stored(model, [t._replace(bytes=t.bytes * 3 // 4) for t in held], "x")
    assert narrow.weight_bytes(model.native) == sum(t.bytes * 3 // 4 for t in held)
