"""GGUF headers written by the reference package, read back to the byte; and every way a file can be broken."""

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as T

from roofplan.errors import InputError
from roofplan.simulator.workload import zoo
from roofplan.simulator.workload.formats import FORMATS, GGML_TYPES
from roofplan.simulator.workload.gguf import read_gguf, read_header
from roofplan.simulator.workload.model import Experts, Mlp, Model, Role

HIDDEN, FFN, EXPERT, VOCAB, LAYERS, HEADS, KV, HEAD = 512, 768, 256, 300, 3, 8, 2, 64
Shapes = dict[str, tuple[int, ...]]


def shapes_of(architecture: str, tied: bool = False, layers: int = LAYERS) -> Shapes:
    """Tensor names and (rows, cols) as llama.cpp's converter writes them for the family."""
    shapes: Shapes = {"token_embd.weight": (VOCAB, HIDDEN), "output_norm.weight": (HIDDEN,)}
    if not tied:
        shapes["output.weight"] = (VOCAB, HIDDEN)
    for i in range(layers):
        layer: Shapes = {
            "attn_norm.weight": (HIDDEN,),
            "attn_q.weight": (HEADS * HEAD, HIDDEN),
            "attn_k.weight": (KV * HEAD, HIDDEN),
            "attn_v.weight": (KV * HEAD, HIDDEN),
            "attn_output.weight": (HIDDEN, HEADS * HEAD),
            "ffn_norm.weight": (HIDDEN,),
        }
        if architecture == "qwen2":
            layer |= {"attn_q.bias": (HEADS * HEAD,), "attn_k.bias": (KV * HEAD,), "attn_v.bias": (KV * HEAD,)}
        if architecture.startswith("qwen3"):
            layer |= {"attn_q_norm.weight": (HEAD,), "attn_k_norm.weight": (HEAD,)}
        if architecture == "qwen3moe":
            layer |= {
                "ffn_gate_inp.weight": (8, HIDDEN),
                "ffn_gate_exps.weight": (8, EXPERT, HIDDEN),
                "ffn_up_exps.weight": (8, EXPERT, HIDDEN),
                "ffn_down_exps.weight": (8, HIDDEN, EXPERT),
            }
        else:
            layer |= {f"ffn_{k}.weight": (FFN, HIDDEN) for k in ("gate", "up")} | {"ffn_down.weight": (HIDDEN, FFN)}
        shapes |= {f"blk.{i}.{name}": shape for name, shape in layer.items()}
    return shapes


def stored_as(shape: tuple[int, ...], kind: T) -> T:
    """llama.cpp leaves norms and biases in F32."""
    return T.F32 if len(shape) == 1 else kind


def size_of(shape: tuple[int, ...], kind: T) -> int:
    block, size = gguf.GGML_QUANT_SIZES[kind]
    return int(np.prod(shape)) // block * size


def write(
    path: Path, architecture: str, shapes: Shapes, kind: T = T.Q8_0, kinds: dict[str, T] | None = None, **more: object
) -> int:
    """A whole file by the reference writer; returns the bytes of its tensors."""
    writer = gguf.GGUFWriter(path, architecture, **more)  # type: ignore[arg-type]
    writer.add_name("test")
    writer.add_block_count(sum(name.endswith(".attn_norm.weight") for name in shapes) or LAYERS)
    writer.add_context_length(4096)
    writer.add_embedding_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV)
    writer.add_key_length(HEAD)
    writer.add_feed_forward_length(FFN)
    if architecture == "qwen3moe":
        writer.add_expert_count(8)
        writer.add_expert_used_count(2)
        writer.add_expert_feed_forward_length(EXPERT)
    writer.add_token_list([f"token {i}" for i in range(VOCAB)])
    writer.add_token_scores([0.5] * 5000)
    writer.add_array("nested.words", ["a", "", "ü"])
    total = 0
    for name, shape in shapes.items():
        chosen = (kinds or {}).get(name) or stored_as(shape, kind)
        size = size_of(shape, chosen)
        raw = np.zeros((*shape[:-1], size // max(1, int(np.prod(shape[:-1])))), dtype=np.uint8)
        writer.add_tensor(name, raw, raw_dtype=chosen)
        total += size
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return total


def check(model: Model, tensor_bytes: int, shapes: Shapes) -> None:
    assert model.weight_bytes(model.native) == tensor_bytes
    assert model.parameters == sum(int(np.prod(s)) for n, s in shapes.items() if not n.startswith("rope"))


KINDS = [T.F32, T.F16, T.BF16, T.Q8_0, T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q2_K, T.Q3_K, T.Q4_K, T.Q5_K, T.Q6_K]
KINDS += [T.IQ4_XS, T.IQ4_NL, T.IQ2_XXS, T.IQ3_S, T.IQ1_M, T.TQ2_0, T.MXFP4]


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.name)
def test_bytes_of_every_common_type(tmp_path: Path, kind: T) -> None:
    path, shapes = tmp_path / "model.gguf", shapes_of("llama")
    total = write(path, "llama", shapes, kind)
    header = read_header(path)
    assert 0 <= path.stat().st_size - header.expected_bytes < header.alignment
    assert sum(t.bytes for t in header.tensors) == total
    for tensor, (name, shape) in zip(header.tensors, shapes.items(), strict=True):
        assert (tensor.name, tensor.shape) == (name, shape[::-1])
        assert tensor.type.name == stored_as(shape, kind).name and tensor.bytes == size_of(
            shape, stored_as(shape, kind)
        )
    model = read_gguf(path)
    check(model, total, shapes)
    plain = {T.F32: "fp32", T.F16: "fp16", T.BF16: "bf16"}
    assert model.native.name == plain.get(kind, f"gguf-{kind.name.lower()}")
    if kind not in plain:
        assert model.native.bits_per_weight == pytest.approx(8 * total / model.parameters)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "qwen3moe"])
@pytest.mark.parametrize("tied", [False, True])
def test_families(tmp_path: Path, architecture: str, tied: bool) -> None:
    path, shapes = tmp_path / "family.gguf", shapes_of(architecture, tied)
    kinds = {"token_embd.weight": T.Q6_K, "output.weight": T.Q6_K, "blk.1.attn_v.weight": T.Q6_K}
    total = write(path, architecture, shapes, T.Q4_K, kinds)
    model = read_gguf(path)
    check(model, total, shapes)
    attention = model.blocks[0].attention
    assert (model.hidden, model.vocab, model.layers, model.max_context) == (HIDDEN, VOCAB, LAYERS, 4096)
    assert (attention.heads, attention.kv_heads, attention.head_dim) == (HEADS, KV, HEAD)
    assert model.tied is tied and attention.qkv_bias is (architecture == "qwen2")
    assert attention.qk_norm is architecture.startswith("qwen3") and not attention.out_bias
    ffn = model.blocks[0].ffn
    assert ffn == (Experts(8, 2, EXPERT) if architecture == "qwen3moe" else Mlp(FFN))
    assert model.family == {"qwen3moe": "qwen3_moe"}.get(architecture, architecture)
    assert (
        len(model.blocks) == 1 and model.origin == str(path) and zoo.resolve(str(path)).parameters == model.parameters
    )
    held = sum(size_of(s, kinds.get(n, T.Q4_K)) for n, s in shapes.items() if n.endswith("attn_v.weight"))
    biases = sum(4 * KV * HEAD for n in shapes if n.endswith("attn_v.bias"))
    assert model.stored[Role.V, 0] == held + biases


def test_the_bytes_follow_the_file_not_a_format_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    total = write(path, "llama", shapes_of("llama"), T.Q4_0)
    model = read_gguf(path)
    assert model.weight_bytes(FORMATS["bf16"]) == model.weight_bytes(FORMATS["fp32"]) == total


def test_unknown_tensors_are_counted_as_extra(tmp_path: Path) -> None:
    path, shapes = tmp_path / "m.gguf", shapes_of("llama")
    total = write(path, "llama", shapes | {"rope_freqs.weight": (32,), "rope_factors_long.weight": (32,)}, T.Q8_0)
    model = read_gguf(path)
    assert model.stored[Role.EXTRA, None] == 256 and model.weight_bytes(model.native) == total


@pytest.mark.parametrize(
    "odd",
    ["blk.0.output.weight", "attn_q.weight", "blk.1.ffn_gate_inp.weight", "output_norm.bias", "blk.99.attn_q.weight"],
)
def test_tensors_in_odd_places_are_counted_too(tmp_path: Path, odd: str) -> None:
    """Their bytes must be loaded wherever they hang: never dropped."""
    path = tmp_path / "m.gguf"
    total = write(path, "llama", shapes_of("llama") | {odd: (64, HIDDEN)}, T.Q8_0)
    model = read_gguf(path)
    assert model.weight_bytes(model.native) == total


def test_every_type_has_the_reference_size() -> None:
    assert len(GGML_TYPES) >= 30
    for number, ours in GGML_TYPES.items():
        kind = T(number)
        assert ours.name == kind.name
        block, size = gguf.GGML_QUANT_SIZES[kind]
        assert (ours.block_elements, ours.block_bytes) == (block, size)
        assert ours.bits_per_weight == 8 * size / block
    assert {k.value for k in gguf.GGML_QUANT_SIZES if k.value < 30} == {n for n in GGML_TYPES if n < 30}


# ---- splits


def split(folder: Path) -> tuple[list[Path], int, Shapes]:
    shapes = shapes_of("llama")
    names = list(shapes)
    total, paths = 0, []
    for i, part in enumerate((names[:9], names[9:]), 1):
        paths.append(folder / f"big-{i:05d}-of-00002.gguf")
        total += write(paths[-1], "llama", {n: shapes[n] for n in part}, T.Q4_K)
    return paths, total, shapes


def test_all_shards_are_read_from_any_of_them(tmp_path: Path) -> None:
    paths, total, shapes = split(tmp_path)
    metadata = read_header(paths[0]).metadata["llama.block_count"]
    shapes = {n: s for n, s in shapes.items() if not n.startswith("blk.") or int(n.split(".")[1]) < metadata}
    for path in paths:
        assert read_gguf(path).weight_bytes(read_gguf(path).native) == total


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    paths, _, _ = split(tmp_path)
    for gone, left in (paths, paths[::-1]):
        data = gone.read_bytes()
        gone.unlink()
        with pytest.raises(InputError, match="missing") as caught:
            read_gguf(left)
        assert gone.name in str(caught.value)
        gone.write_bytes(data)
    with pytest.raises(InputError, match="absurd number of shards"):
        read_gguf(tmp_path / "big-00001-of-99999.gguf")


# ---- damage


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    path = tmp_path / "whole.gguf"
    write(path, "llama", shapes_of("llama", layers=1), T.Q8_0)
    return path


def refused(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_gguf(path)
    line = str(caught.value)
    assert path.name in line and line.isprintable()
    return line


def patched(path: Path, at: int, code: str, value: object) -> Path:
    data = bytearray(path.read_bytes())
    struct.pack_into(code, data, at, value)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("at", "code", "value", "words"),
    [
        (0, "4s", b"GGML", "not a GGUF file"),
        (0, "4s", b"FUGG", "not a GGUF file"),
        (4, "<I", 1, "version must be 2 or 3"),
        (4, "<I", 4, "version must be 2 or 3"),
        (4, ">I", 3, "version must be 2 or 3"),
        (8, "<Q", 2**63, "absurd"),
        (8, "<Q", 2**20, "empty shape"),
        (16, "<Q", 2**40, "absurd"),
        (16, "<Q", 2**16, "metadata key"),
        (24, "<Q", 2**60, "absurd"),
        (24, "<Q", 2**24, "truncated"),
    ],
)
def test_wrong_numbers_in_the_fixed_part(whole: Path, at: int, code: str, value: object, words: str) -> None:
    assert words in refused(patched(whole, at, code, value))


def test_big_endian_files_are_refused_with_a_remedy(tmp_path: Path) -> None:
    path = tmp_path / "big.gguf"
    write(path, "llama", shapes_of("llama"), T.F32, endianess=gguf.GGUFEndian.BIG)
    assert "big-endian files are not read" in refused(path)


def test_truncated_anywhere(whole: Path) -> None:
    data = whole.read_bytes()
    header = read_header(whole)
    points = {*range(64), *range(64, header.data_offset, 13), header.data_offset - 1, header.data_offset}
    points |= {header.data_offset + 1, (header.data_offset + len(data)) // 2, header.expected_bytes - 1}
    for at in sorted(points):
        whole.write_bytes(data[:at])
        assert "truncated" in refused(whole), at
    whole.write_bytes(data[: header.expected_bytes])
    assert read_gguf(whole).layers == 1, "only the final padding may be missing"


def put(path: Path, needle: bytes, offset: int, code: str, value: object) -> Path:
    """Overwrite a number at `offset` behind the first occurrence of `needle`."""
    return patched(path, path.read_bytes().index(needle) + len(needle) + offset, code, value)


@pytest.mark.parametrize(
    ("needle", "offset", "code", "value", "words"),
    [
        (b"blk.0.attn_q.weight", 0, "<I", 5, "absurd"),
        (b"blk.0.attn_q.weight", 0, "<I", 0, "unknown tensor type"),
        (b"blk.0.attn_q.weight", 4, "<Q", 0, "empty shape"),
        (b"blk.0.attn_q.weight", 4, "<Q", 2**40, "absurd"),
        (b"blk.0.attn_q.weight", 4, "<Q", 33, "not a multiple of 32"),
        (b"blk.0.attn_q.weight", 20, "<I", 4, "unknown tensor type"),
        (b"blk.0.attn_q.weight", 20, "<I", 999, "unknown tensor type"),
        (b"blk.0.attn_q.weight", 24, "<Q", 2**63, "truncated"),
        (b"llama.block_count", 4, "<I", 0, "block_count"),
        (b"llama.block_count", 4, "<I", 2**31, "block_count"),
        (b"llama.block_count", 0, "<I", 6, "block_count"),
        (b"llama.block_count", 0, "<I", 77, "unknown type of metadata"),
        (b"llama.attention.head_count_kv", 4, "<I", 3, "not a divisor"),
        (b"llama.attention.head_count_kv", 4, "<I", 0, "head_count_kv"),
        (b"tokenizer.ggml.tokens", 8, "<Q", 2**62, "absurd"),
        (b"tokenizer.ggml.scores", 8, "<Q", 2**62, "truncated"),
        (b"general.architecture", 12, "5s", b"bloom", "bloom"),
    ],
)
def test_damaged_fields_are_named(
    whole: Path, needle: bytes, offset: int, code: str, value: object, words: str
) -> None:
    assert words in refused(put(whole, needle, offset, code, value))


def test_unknown_architectures_name_the_known_ones(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "rwkv7")
    writer.add_block_count(1)
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(InputError, match=r"it lacks rwkv7\.embedding_length, .*attention\.head_count.*known: llama"):
        read_gguf(path)


def test_an_architecture_nobody_listed_is_read_by_the_usual_keys_and_says_so(tmp_path: Path) -> None:
    path, shapes = tmp_path / "m.gguf", shapes_of("qwen3")
    write(path, "qwen3", shapes, T.F16)
    assert not read_gguf(path).warnings
    total = write(path, "new-arch", shapes, T.F16)
    model = read_gguf(path)
    check(model, total, shapes)
    assert model.generic and model.family == "new-arch"
    assert model.warnings == ("family new-arch is not known: read by its usual fields",)


@pytest.mark.parametrize("missing", ["token_embd.weight", "blk.0.attn_q.weight"])
def test_files_that_are_no_text_model(tmp_path: Path, missing: str) -> None:
    path, shapes = tmp_path / "m.gguf", shapes_of("llama", layers=1)
    del shapes[missing]
    write(path, "llama", shapes, T.F16)
    assert "is this a text model?" in refused(path)


def test_alignment_is_honoured_and_checked(tmp_path: Path) -> None:
    path = tmp_path / "aligned.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(4096)
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    header = read_header(path)
    assert header.alignment == 4096 and header.data_offset % 4096 == 0
    assert 0 <= path.stat().st_size - header.expected_bytes < 4096
    for value in (0, 48, 2**31):
        assert "power of two" in refused(put(path, b"general.alignment", 4, "<I", value))
