"""Models other programs keep on this machine: found by their names, or an error that says how to get them."""

import hashlib
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from roofplan import cli
from roofplan.errors import InputError, UnknownNameError
from roofplan.simulator.report import models as listed
from roofplan.simulator.workload import zoo
from roofplan.simulator.workload.local import places

CONFIG = {
    "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 128,
    "num_key_value_heads": 2, "intermediate_size": 96, "max_position_embeddings": 256, "tie_word_embeddings": False,
}  # fmt: skip
VARIABLES = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "OLLAMA_MODELS")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of the test's own, and none of the variables that name other places."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def gguf_bytes(path: Path, layers: int = 2) -> bytes:
    """A whole small file by the reference writer."""
    writer = gguf.GGUFWriter(path, "llama")
    for add, value in (
        (writer.add_block_count, layers),
        (writer.add_context_length, 512),
        (writer.add_embedding_length, 64),
        (writer.add_head_count, 4),
    ):
        add(value)
    writer.add_tensor("token_embd.weight", np.zeros((100, 64), dtype=np.float32))
    for i in range(layers):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_up", "ffn_gate", "ffn_down"):
            writer.add_tensor(f"blk.{i}.{name}.weight", np.zeros((64, 64), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


@pytest.fixture
def small(tmp_path: Path) -> bytes:
    return gguf_bytes(tmp_path / "made.bin")


def cached(root: Path, name: str, files: dict[str, bytes], revision: str = "a" * 40, main: bool = True) -> Path:
    """A repository in a Hugging Face cache."""
    folder = root / f"models--{name.replace('/', '--')}"
    snapshot = folder / "snapshots" / revision
    snapshot.mkdir(parents=True)
    for file, content in files.items():
        (snapshot / file).write_bytes(content)
    if main:
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / "main").write_text(revision)
    return snapshot


def config(**more: Any) -> bytes:
    return json.dumps(CONFIG | more).encode()


def pulled(root: Path, name: str, content: bytes, host: str = "registry.ollama.ai/library") -> Path:
    """A model as Ollama stores it."""
    digest = hashlib.sha256(content).hexdigest()
    model, tag = name.split(":")
    manifest = root / "manifests" / host / model / tag
    manifest.parent.mkdir(parents=True, exist_ok=True)
    (root / "blobs").mkdir(exist_ok=True)
    (root / "blobs" / f"sha256-{digest}").write_bytes(content)
    layers = [
        {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{digest}", "size": len(content)},
        {"mediaType": "application/vnd.ollama.image.template", "digest": f"sha256:{'0' * 64}", "size": 3},
    ]
    manifest.write_text(json.dumps({"schemaVersion": 2, "layers": layers}))
    return manifest


# ---- Hugging Face cache


@pytest.mark.parametrize(
    ("variable", "below"),
    [
        (None, ".cache/huggingface/hub"),
        ("HF_HUB_CACHE", ""),
        ("HUGGINGFACE_HUB_CACHE", ""),
        ("HF_HOME", "hub"),
        ("XDG_CACHE_HOME", "huggingface/hub"),
    ],
)
def test_every_place_a_cache_may_be(
    home: Path, monkeypatch: pytest.MonkeyPatch, variable: str | None, below: str
) -> None:
    if variable:
        monkeypatch.setenv(variable, str(home / "elsewhere"))
    root = home / ("elsewhere" if variable else "") / below
    snapshot = cached(root, "Acme/Small-1B", {"config.json": config()})
    model = zoo.resolve("Acme/Small-1B")
    assert (model.name, model.layers, model.origin) == ("Small-1B", 2, str(snapshot / "config.json"))
    assert zoo.resolve("acme/small-1b").parameters == model.parameters


def test_the_revision_main_points_at(home: Path) -> None:
    root = home / ".cache/huggingface/hub"
    cached(root, "acme/m", {"config.json": config(num_hidden_layers=5)}, "b" * 40, main=False)
    assert zoo.resolve("acme/m").layers == 5, "the only snapshot there is"
    cached(root, "acme/m", {"config.json": config(num_hidden_layers=3)}, "c" * 40)
    assert zoo.resolve("acme/m").layers == 3
    (root / "models--acme--m/refs/main").write_text("../../../../evil")
    with pytest.raises(InputError, match="not in the local Hugging Face cache"):
        zoo.resolve("acme/m")


def test_an_id_that_is_not_cached_gives_the_command_that_fetches_its_config() -> None:
    with pytest.raises(InputError) as caught:
        zoo.resolve("Qwen/Qwen3-8B-FP8")
    line = str(caught.value)
    assert "`hf download Qwen/Qwen3-8B-FP8 config.json`" in line
    assert "`huggingface-cli download Qwen/Qwen3-8B-FP8 config.json`" in line
    assert line.endswith("nearest bundled model: qwen3-8b")


def test_bundled_names_come_first(home: Path) -> None:
    cached(home / ".cache/huggingface/hub", "Qwen/Qwen3-8B", {"config.json": config()})
    assert zoo.resolve("Qwen/Qwen3-8B").origin == "bundled"


def test_a_repository_of_gguf_files(home: Path, small: bytes) -> None:
    files = {f"Small-1B-{quant}.gguf": small for quant in ("Q4_K_M", "Q8_0")} | {"mmproj-f16.gguf": b"none"}
    cached(home / ".cache/huggingface/hub", "acme/Small-1B-GGUF", files)
    assert zoo.resolve("acme/Small-1B-GGUF:q8_0").name == "acme/Small-1B-GGUF:q8_0"
    with pytest.raises(InputError, match=r"2 quantisations.*acme/Small-1B-GGUF:Q4_K_M \(there are Q4_K_M, Q8_0\)"):
        zoo.resolve("acme/Small-1B-GGUF")
    with pytest.raises(InputError, match=r"did you mean Q4_K_M.*there are Q4_K_M, Q8_0"):
        zoo.resolve("acme/Small-1B-GGUF:Q4_K_S")


def test_a_gguf_repository_that_is_not_cached_names_the_file_to_fetch() -> None:
    with pytest.raises(InputError, match=r'hf download acme/Small-1B-GGUF --include "\*Q4_K_M\*\.gguf"'):
        zoo.resolve("acme/Small-1B-GGUF:Q4_K_M")


# ---- Ollama


@pytest.mark.parametrize("name", ["small:1b", "ollama:small:1b", "Small:1B", "registry.ollama.ai/library/small:1b"])
def test_an_ollama_model_by_its_names(home: Path, small: bytes, name: str) -> None:
    pulled(home / ".ollama/models", "small:1b", small)
    model = zoo.resolve(name)
    assert (model.layers, model.hidden, model.vocab) == (2, 64, 100) and model.name.lower() == "small:1b"
    assert zoo.resolve(model.origin).parameters == model.parameters, "the blob has no suffix, and is read all the same"


def test_ollama_elsewhere_with_hosts_namespaces_and_latest(
    home: Path, monkeypatch: pytest.MonkeyPatch, small: bytes
) -> None:
    root = home / "models"
    monkeypatch.setenv("OLLAMA_MODELS", str(root))
    pulled(root, "small:latest", small)
    pulled(root, "Small-1B-GGUF:Q4_K_M", small, "hf.co/bartowski")
    pulled(root, "tuned:2b", small, "registry.ollama.ai/me")
    assert zoo.resolve("small").name == zoo.resolve("ollama:small").name == "small:latest"
    assert zoo.resolve("hf.co/bartowski/Small-1B-GGUF:Q4_K_M").layers == 2
    assert zoo.resolve("me/tuned:2b").name == "me/tuned:2b"


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("llama3.1:8b-instruct-q4_K_M", "llama-3.1-8b --weights Q4_K_M"),
        ("llama3.1:70b", "llama-3.1-70b"),
        ("qwen3:30b-a3b", "qwen3-30b-a3b"),
        ("gpt-oss:20b", "gpt-oss-20b"),
        ("mixtral:8x7b", "mixtral-8x7b"),
        ("deepseek-r1:671b", "deepseek-r1"),
        ("hf.co/bartowski/Qwen2.5-7B-Instruct-GGUF:Q6_K", "qwen2.5-7b --weights Q6_K"),
        ("ollama:gemma2:9b-instruct-q8_0", "gemma-2-9b --weights Q8_0"),
    ],
)
def test_an_ollama_model_that_is_not_installed(name: str, near: str) -> None:
    with pytest.raises(InputError) as caught:
        zoo.resolve(name)
    asked = name.removeprefix("ollama:")
    assert str(caught.value).endswith(f"`ollama pull {asked}` fetches it; nearest bundled model: {near}")
    assert zoo.resolve(near.split()[0]).origin == "bundled"


def test_a_name_like_nothing_bundled_has_no_nearest() -> None:
    with pytest.raises(InputError, match=r"`ollama pull zzyzx:1b` fetches it$"):
        zoo.resolve("zzyzx:1b")


def test_a_blob_that_is_gone(home: Path, small: bytes) -> None:
    pulled(home / ".ollama/models", "small:1b", small)
    next((home / ".ollama/models/blobs").iterdir()).unlink()
    with pytest.raises(InputError, match=r"blobs.sha256-.*missing; `ollama pull small:1b`"):
        zoo.resolve("small:1b")


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        (b"", "not a manifest"),
        (b"[1, 2]", "must have one layer"),
        (b'{"layers": [7, null]}', "must have one layer"),
        (b'{"layers": [{"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:../../x"}]}', "one layer"),
        (b'{"layers": [{"mediaType": "application/vnd.ollama.image.tensor"}]}', "tensor by tensor"),
        (b"\xff\xfe", "not a manifest"),
        (b"[" * 100_000, "not a manifest"),
        (b" " * (1 << 21), "larger than 1 MB"),
    ],
    ids=lambda v: "" if isinstance(v, str) else repr(v[:30]),
)
def test_manifests_that_are_broken(home: Path, small: bytes, manifest: bytes, words: str) -> None:
    pulled(home / ".ollama/models", "small:1b", small).write_bytes(manifest)
    with pytest.raises(InputError, match=words) as caught:
        zoo.resolve("small:1b")
    assert "1b" in str(caught.value) and str(caught.value).isprintable()


# ---- LM Studio


@pytest.mark.parametrize("root", [".lmstudio/models", ".cache/lm-studio/models", "moved/models"])
def test_lm_studio_by_publisher_repository_and_quantisation(home: Path, small: bytes, root: str) -> None:
    if root.startswith("moved"):
        (home / ".lmstudio-home-pointer").write_text(str(home / "moved"))
    folder = home / root / "acme/Small-1B-GGUF"
    folder.mkdir(parents=True)
    (folder / "Small-1B-Q4_K_M.gguf").write_bytes(small)
    assert zoo.resolve("acme/Small-1B-GGUF").name == "Small-1B-Q4_K_M"
    (folder / "Small-1B-Q8_0.gguf").write_bytes(small)
    for name in ("acme/Small-1B-GGUF:q8_0", "acme/small-1b-gguf@q8_0", "acme/Small-1B-GGUF/Small-1B-Q8_0.gguf"):
        assert zoo.resolve(name).origin == str(folder / "Small-1B-Q8_0.gguf"), name
    assert zoo.resolve("small-1b-gguf:Q8_0").layers == 2
    with pytest.raises(InputError, match=r"2 quantisations.*there are Q4_K_M, Q8_0"):
        zoo.resolve("acme/Small-1B-GGUF")
    with pytest.raises(InputError, match="no such file"):
        zoo.resolve("acme/Small-1B-GGUF/nothing.gguf")


def test_a_folder_of_gguf_files(home: Path, small: bytes) -> None:
    folder = home / "folder"
    folder.mkdir()
    (folder / "a.gguf").write_bytes(small)
    assert zoo.resolve(str(folder)).name == "a"
    (folder / "b.gguf").write_bytes(small)
    with pytest.raises(InputError, match=r"2 GGUF files and no config\.json; name one of them: a\.gguf, b\.gguf"):
        zoo.resolve(str(folder))


# ---- the list


def everywhere(home: Path, small: bytes) -> None:
    pulled(home / ".ollama/models", "small:1b", small)
    folder = home / ".lmstudio/models/acme/Small-2B-GGUF"
    folder.mkdir(parents=True)
    (folder / "Small-2B-Q4_K_M.gguf").write_bytes(small)
    cached(home / ".cache/huggingface/hub", "acme/Config-3B", {"config.json": config()})
    cached(home / ".cache/huggingface/hub", "acme/Files-4B-GGUF", {"Files-4B-Q8_0.gguf": small})


def test_local_models_are_listed_by_names_that_can_be_asked_for(home: Path, small: bytes) -> None:
    everywhere(home, small)
    answer, notes = listed.list_all(local=True)
    names = [row.name for row in answer.rows]
    assert names == ["small:1b", "acme/Small-2B-GGUF:Q4_K_M", "acme/Config-3B", "acme/Files-4B-GGUF:Q8_0"] and not notes
    for row in answer.rows:
        assert zoo.resolve(row.name).parameters == row.parameters, row.name
    assert [row.origin.split(":")[0] for row in answer.rows][:2] == ["Ollama", "LM Studio"]
    found, _ = listed.list_all("small", local=True)
    assert len(found.rows) == 2 and len(listed.list_all(None, "LLAMA", local=True)[0].rows) == 4


def test_what_cannot_be_read_is_told_and_the_rest_listed(home: Path, small: bytes) -> None:
    everywhere(home, small)
    pulled(home / ".ollama/models", "broken:1b", b"GGUF and then nothing")
    cached(home / ".cache/huggingface/hub", "acme/Odd", {"config.json": b"{"})
    answer, notes = listed.list_all(local=True)
    assert len(answer.rows) == 4 and len(notes) == 2
    assert notes[0].startswith("Ollama: broken:1b cannot be read: ") and "acme/Odd cannot be read" in notes[1]


def test_an_empty_machine_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["models", "list", "--local"]) == 0
    assert "no model found in Ollama, LM Studio or the Hugging Face cache" in capsys.readouterr().out


def test_bundled_models_by_word_and_family(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["models", "list", "QWEN3", "--family", "qwen3-moe", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["answer"]["rows"]
    assert {row["family"] for row in rows} == {"qwen3_moe"} and all("qwen3" in row["name"] for row in rows)
    with pytest.raises(UnknownNameError, match="did you mean llama"):
        listed.list_all(family="lama")
    with pytest.raises(UnknownNameError, match="models list"):
        listed.list_all("qwen3-9b")


def test_a_local_model_is_answered_and_can_be_asked_again(
    home: Path, small: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    pulled(home / ".ollama/models", "small:1b", small)
    assert cli.run(["fits", "small:1b", "--gpu", "rtx-4090", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    again = report["answer"]["next_step"].removeprefix("roofplan ").split("   ")[0].split()
    assert report["question"]["model"] == "small:1b" and cli.run(again) == 0


# ---- families nobody described


def test_every_answer_about_a_guessed_family_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIG | {"model_type": "brand-new"}))
    said = "family brand-new is not known: read by its usual fields"
    on = ["--gpu", "h200"]
    for words in (
        ["fits", str(path), *on],
        ["memory", str(path), *on],
        ["explain", str(path), *on],
        ["serve", str(path), *on, "--clients", "2", "--prompt", "64", "--output", "64"],
        ["fits", str(path)],
        ["models", "show", str(path)],
    ):
        cli.run([*words, "--json"])
        assert said in json.loads(capsys.readouterr().out)["warnings"], words


@pytest.mark.parametrize(
    ("file", "quant"),
    [
        ("Qwen3-8B-Q4_K_M.gguf", "Q4_K_M"),
        ("llama-2-7b.Q5_K_S.gguf", "Q5_K_S"),
        ("big-IQ2_XXS-00001-of-00003.gguf", "IQ2_XXS"),
        ("gpt-oss-20b-mxfp4_moe.gguf", "MXFP4_MOE"),
        ("x-bf16.gguf", "BF16"),
        ("Qwen3-30B-A3B-UD-Q4_K_XL.gguf", "Q4_K_XL"),
        ("gpt-oss-20b-MXFP4.gguf", "MXFP4"),
        ("qwen2.5-coder.gguf", ""),
    ],
)
def test_file_types_in_file_names(file: str, quant: str) -> None:
    assert places.quant_of(file) == quant
