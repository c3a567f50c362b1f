"""Pipelines in folders as diffusers saves them: read network by network, run like the bundled one most like them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from transformers import CONFIG_MAPPING

from roofplan import api, cli
from roofplan.errors import InputError
from roofplan.simulator.workload import zoo
from roofplan.simulator.workload.network import Pipeline
from roofplan.simulator.workload.pipelines import Size

VARIABLES = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "OLLAMA_MODELS")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of the test's own, and none of the variables that name other places."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    return tmp_path


def saved(line: str, folder: Path) -> Path:
    """A bundled pipeline as the libraries save one: every config with all keys of its class, tokenizers beside it."""
    index: dict[str, Any] = {"_class_name": "Pipeline", "_diffusers_version": diffusers.__version__}
    for name, part in zoo.components(line)[0].items():
        if "_class_name" in part:
            keys = {"addition_time_embed_dim": 256, **part} if name == "unet" else part
            with torch.device("meta"):
                getattr(diffusers, part["_class_name"]).from_config(keys).save_config(folder / name)
            index[name] = ["diffusers", part["_class_name"]]
        else:
            settings = CONFIG_MAPPING[part["model_type"]](**{k: v for k, v in part.items() if k != "model_type"})
            settings.save_pretrained(folder / name)
            index[name] = ["transformers", part["architectures"][0]]
    for name in ("scheduler", "tokenizer"):
        (folder / name).mkdir()
        (folder / name / f"{name}_config.json").write_text("{}")
        index[name] = ["diffusers", "Other"]
    index |= {"feature_extractor": [None, None], "requires_safety_checker": True}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def resolved(name: Path | str, size: Size | None = None) -> Pipeline:
    found = api.load_any(str(name), size)
    assert isinstance(found, Pipeline)
    return found


@pytest.mark.parametrize(
    "line", ["sd-2.1", "sdxl", "sd3-medium", "flux.1-schnell", "pixart-sigma", "wan2.2-t2v-a14b", "z-image-turbo"]
)
def test_a_saved_pipeline_is_the_bundled_one(line: str, tmp_path: Path) -> None:
    found, bundled = resolved(saved(line, tmp_path / "mine")), zoo.bundled_pipeline(line)
    assert found.name == "mine" and found.origin == str(tmp_path / "mine")
    assert found.stages == bundled.stages and found.native == bundled.native and found.size == bundled.size
    assert found.warnings == (f"steps, guidance, text and size are those of {line} where not asked otherwise",)


def test_by_its_index_and_with_another_size(tmp_path: Path) -> None:
    folder, size = saved("sd-1.5", tmp_path / "mine"), Size(width=768, height=512, steps=20)
    assert resolved(folder / "model_index.json", size).stages == zoo.bundled_pipeline("sd-1.5", size).stages


def test_a_changed_network_is_read_as_it_is(tmp_path: Path) -> None:
    folder = saved("sd-1.5", tmp_path / "mine")
    config = json.loads((folder / "unet/config.json").read_text())
    (folder / "unet/config.json").write_text(json.dumps(config | {"in_channels": 9}))  # as for inpainting
    more = 5 * 3 * 3 * 320
    assert resolved(folder).parameters == zoo.bundled_pipeline("sd-1.5").parameters + more


def test_what_does_not_run_is_left_out_and_said(tmp_path: Path) -> None:
    folder = saved("sd-1.5", tmp_path / "mine")
    index = json.loads((folder / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    (folder / "model_index.json").write_text(json.dumps(index))
    assert len(resolved(folder).warnings) == 1, "it is named but not there"
    (folder / "safety_checker").mkdir()
    (folder / "safety_checker/config.json").write_text('{"model_type": "clip"}')
    assert resolved(folder).warnings[1] == "left out: safety_checker"


def test_one_in_the_cache_by_its_id(home: Path) -> None:
    snapshot = home / ".cache/huggingface/hub/models--acme--painter/snapshots" / ("a" * 40)
    snapshot.parent.mkdir(parents=True)
    saved("sdxl", snapshot)
    (snapshot / "single_file.safetensors").write_bytes(b"not read")
    assert resolved("acme/painter").name == "painter"


def test_the_repository_of_a_bundled_pipeline_is_that_pipeline() -> None:
    assert resolved("stabilityai/stable-diffusion-xl-base-1.0").name == "sdxl"


def test_one_that_is_not_cached_gives_the_command_that_fetches_it() -> None:
    with pytest.raises(InputError, match=r'`hf download acme/painter config.json`.*`--include "\*\.json"`'):
        zoo.resolve("acme/painter")


def test_a_part_of_a_pipeline_asks_for_the_whole(tmp_path: Path) -> None:
    folder = saved("sd-1.5", tmp_path / "mine")
    for part in (folder / "unet", folder / "vae/config.json"):
        with pytest.raises(InputError, match=r"one part of a pipeline.*give the folder that holds model_index\.json"):
            zoo.resolve(str(part))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"unet": ["diffusers", "UNet3DConditionModel"]}, "not known together.*there are:.*unet UNet3DConditionModel"),
        ({"unet": [None, None]}, "not known together.*there are: text_encoder CLIPTextModel, vae AutoencoderKL;"),
        ({"prior": ["diffusers", "SD3Transformer2DModel"]}, "not known together.*prior SD3Transformer2DModel"),
        ([], "must be a JSON object"),
        (None, "must be a JSON object"),
    ],
)
def test_what_is_not_known_is_named(
    damage: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = saved("sd-1.5", tmp_path / "mine")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | damage if isinstance(damage, dict) else damage))
    if isinstance(damage, dict):
        for name, (library, kind) in damage.items():
            shutil.rmtree(folder / name, ignore_errors=True)
            if library:
                (folder / name).mkdir()
                (folder / name / "config.json").write_text(json.dumps({"_class_name": kind}))
    with pytest.raises(InputError, match=message):
        zoo.resolve(str(folder))
    assert cli.run(["fits", str(folder), "--gpu", "h200"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_network_without_its_config_is_named(tmp_path: Path) -> None:
    folder = saved("sd-1.5", tmp_path / "mine")
    (folder / "vae/config.json").write_text("{")
    with pytest.raises(InputError, match=r"vae/config.json: not valid JSON"):
        zoo.resolve(str(folder))


def test_the_answer_says_what_was_assumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = saved("sd-1.5", tmp_path / "mine")
    assert cli.run(["fits", str(folder), "--gpu", "h200", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert "steps, guidance, text and size are those of sd-1.5 where not asked otherwise" in answer["warnings"]
    assert str(folder) in answer["answer"]["next_step"]
    assert cli.run(["models", "show", str(folder)]) == 0
    assert "those of sd-1.5" in capsys.readouterr().out
