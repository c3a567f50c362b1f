"""The command line as a user and a script see it: answers, exit codes, the JSON contract, one clear line for errors."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from roofplan import cli
from roofplan.errors import ExitCode
from roofplan.simulator.report import contract, schema

SCHEMA = json.loads(contract.schema_text())
ANSWERS = [
    ["fits", "--gpu", "rtx-4090"],
    ["fits", "--gpu", "rtx-4090", "--ram", "64GB"],
    ["fits", "llama-3.1-70b", "--gpu", "2xh100-sxm", "--context", "32k", "--batch", "8"],
    ["fits", "mixtral-8x7b", "--gpu", "rtx-4090", "--ram", "8GB"],
    ["fits", "qwen3-32b"],
    ["fits", "llama-3.1-8b", "--vram", "24GB", "--bandwidth", "1TB/s"],
    ["explain", "qwen3-32b", "--gpu", "h200", "--batch", "16", "--context", "8k"],
    ["explain", "qwen3-30b-a3b", "--gpu", "8xh200", "--tp", "2", "--pp", "4", "--step", "prefill"],
    ["memory", "mixtral-8x7b", "--gpu", "2xa100-80gb", "--context", "32k"],
    ["memory", "qwen3-30b-a3b", "--gpu", "4xh200", "--tp", "4", "--ep", "2", "--engine", "trtllm"],
    ["serve", "llama-3.1-70b", "--gpu", "2xh100-sxm", "--clients", "32", "--prompt", "1k", "--output", "512"],
    ["serve", "llama-3.1-8b", "--gpu", "l40s", "--clients", "2k", "--prompt", "4k", "--output", "64", "--alike"],
    ["serve", "llama-3.1-70b", "--gpu", "rtx-4090", "--clients", "2", "--prompt", "1k", "--output", "512"],
    ["sweep", "llama-3.1-8b", "--gpu", "h200,2xl40s", "--batch", "1:8", "--context", "8k:32k", "--kv", "bf16,fp8"],
    ["hw", "list"],
    ["hw", "list", "rtx", "--kind", "gpu"],
    ["hw", "show", "h200"],
    ["hw", "show", "dgx-h200"],
    ["hw", "show", "nvlink4"],
    ["hw", "lint"],
    ["hw", "compare", "h200", "h100-sxm"],
    ["hw", "compare", "rtx-4090", "m2-max-64gb", "mi300x", "tpu-v5e"],
    ["fits", "llama-3.1-8b", "--gpu", "m2-max-64gb"],
    ["fits", "llama-3.1-8b", "--gpu", "p5.48xlarge"],
    ["models", "list"],
    ["models", "show", "qwen3-30b-a3b"],
    ["records", "schema"],
    ["validate", "--kernels", "--device", "a100-80gb", "--engine", "vllm"],
]
NO = [
    ["fits", "mixtral-8x7b", "--gpu", "rtx-4090", "--ram", "8GB"],
    ["serve", "llama-3.1-70b", "--gpu", "rtx-4090", "--clients", "2", "--prompt", "1k", "--output", "512"],
]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.run(list(arguments))
    out, err = capsys.readouterr()
    return code, out, err


def shell(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **environment}
    return subprocess.run([sys.executable, "-m", "roofplan", *arguments], capture_output=True, text=True, env=env)


@pytest.mark.parametrize("arguments", ANSWERS, ids=" ".join)
def test_json_of_every_command_follows_the_schema(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, *arguments, "--json")
    assert code == (ExitCode.NO if arguments in NO else ExitCode.YES)
    assert err == ""
    report = json.loads(out)
    jsonschema.validate(report, SCHEMA)
    assert report["schema"] == {"name": "roofplan", "version": 1}


@pytest.mark.parametrize("arguments", ANSWERS, ids=" ".join)
def test_the_table_says_the_same_as_the_json(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    _, out, err = run(capsys, *arguments)
    assert err == ""
    assert out.endswith("\n")
    assert "\x1b" not in out, "no colours in a pipe"
    assert all(line == line.rstrip() for line in out.splitlines())
    _, data, _ = run(capsys, *arguments, "--json")
    verdict = json.loads(data)["answer"].get("verdict")
    if verdict is not None:
        assert verdict in out.splitlines()[0]


def test_the_committed_schema_is_the_generated_one() -> None:
    assert contract.schema_text() == schema.text(), "run: python -m roofplan.simulator.report.schema"


def test_the_schema_refuses_what_is_not_an_answer(capsys: pytest.CaptureFixture[str]) -> None:
    report = json.loads(run(capsys, "fits", "llama-3.1-8b", "--gpu", "h200", "--json")[1])
    del report["answer"]["verdict"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(report, SCHEMA)


def test_json_carries_question_evidence_and_hashes(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(
        capsys, "fits", "llama-3.1-70b", "--gpu", "2xh100-sxm", "--context", "32k", "--batch", "8", "--json"
    )
    report = json.loads(out)
    assert report["question"]["context"] == 32768
    assert report["question"]["layout"]["devices"] == 2
    assert abs(sum(t["share"] for t in report["evidence"]["tiers"]) - 1) < 1e-9
    assert all(len(c["file_sha256"]) == 12 for c in report["evidence"]["calibrations"])
    rate = report["answer"]["tokens_per_s_user"]
    assert rate["low"] < rate["value"] < rate["high"]


BAD = [
    (["fits", "nosuch-model"], "nosuch-model", "models list"),
    (["fits", "llama-3.1-8b", "--gpu", "h300"], "h300", "did you mean"),
    (["fits", "llama-3.1-8b", "--gpu", "0xh200"], "number of devices", "0"),
    (["fits", "llama-3.1-8b", "--gpu", "99999xh200"], "number of devices", "99999"),
    (["fits", "llama-3.1-8b", "--gpu", "missing.toml"], "missing.toml", "no such file"),
    (["fits", "missing/config.json"], "missing/config.json", "no such file"),
    (["fits", "missing.gguf", "--gpu", "h200"], "missing.gguf", "no such file"),
    (["fits", "llama-3.1-8b", "--gpu", "h200", "--ram", "64"], "--ram", "64GB"),
    (["fits", "llama-3.1-8b", "--gpu", "h200", "--context", "-5"], "--context", "-5"),
    (["fits", "llama-3.1-8b", "--gpu", "h200", "--context", "nan"], "--context", "nan"),
    (["fits", "llama-3.1-8b", "--gpu", "h200", "--context", "0"], "--context", "0"),
    (["fits", "llama-3.1-8b", "--gpu", "h200", "--batch", "1e30"], "--batch", "1e30"),
    (["fits", "llama-3.1-8b", "--gpu", "h200", "--batch", "2.5"], "--batch", "whole"),
    (["fits", "llama-3.1-8b", "--gpu", "h200", "--prompt", "9k", "--context", "8k"], "--prompt", "8192"),
    (["fits", "llama-3.1-8b", "--gpu", "h200", "--weights", "bf61"], "bf61", "did you mean bf16"),
    (["fits", "llama-3.1-8b", "--gpu", "h200", "--kv", "int3"], "int3", "KV"),
    (["fits", "llama-3.1-8b", "--gpu", "h200", "--tp", "3"], "--tp", "--gpu 3xh200"),
    (["fits", "llama-3.1-8b", "--gpu", "h200", "--tp", "2"], "there are 1", "--gpu 2xh200"),
    (["fits", "llama-3.1-8b", "--gpu", "8xh200", "--tp", "3"], "--tp", "32 heads"),
    (["fits", "llama-3.1-8b", "--gpu", "h200", "--tp", "0"], "--tp", "0"),
    (["fits", "llama-3.1-8b", "--gpu", "h200", "--memory-utilization", "nan"], "--memory-utilization", "nan"),
    (["fits", "llama-3.1-8b", "--gpu", "h200", "--memory-utilization", "1.5"], "--memory-utilization", "1.5"),
    (["fits", "llama-3.1-8b", "--vram", "24GB"], "--bandwidth", "missing"),
    (["fits", "llama-3.1-8b", "--vram", "24GB", "--bandwidth", "1TB"], "--bandwidth", "GB/s"),
    (["fits", "llama-3.1-8b", "--gpu", "h200", "--vram", "24GB", "--bandwidth", "1TB/s"], "--vram", "already"),
    (["fits", "llama-3.1-8b", "--gpu", "h200", "--host", "nowhere"], "nowhere", "hw list"),
    (["fits", "llama-3.1-8b", "--gpu", "h200", "--calibration", "/nonexistent"], "/nonexistent", "no such"),
    (["fits", "llama-3.1-8b", "--gpu", "h200", "--engine", "vlm"], "vlm", "did you mean vllm"),
    (["fits", "llama-3.1-8b", "--gpu", "2xh200", "--ep", "2"], "--ep", "no experts"),
    (["fits", "qwen3-30b-a3b", "--gpu", "h200", "--ep", "2"], "--ep", "--gpu 2xh200"),
    (["memory", "qwen3-30b-a3b", "--gpu", "4xh200", "--tp", "4", "--ep", "3"], "--ep", "divisor"),
    (["serve", "llama-3.1-8b", "--gpu", "h200", "--prompt", "1k", "--output", "9"], "--clients", "--help"),
    (["serve", "llama-3.1-8b", "--clients", "0", "--prompt", "1k", "--output", "9"], "--clients", "between 1"),
    (
        ["serve", "llama-3.1-8b", "--gpu", "h200", "--clients", "70k", "--prompt", "1k", "--output", "9"],
        "--clients",
        "65,536",
    ),
    (["serve", "llama-3.1-8b", "--gpu", "h200", "--clients", "4", "--prompt", "-1", "--output", "9"], "--prompt", "-1"),
    (
        ["serve", "llama-3.1-8b", "--gpu", "h200", "--clients", "4", "--prompt", "1k", "--output", "1"],
        "--output",
        "2 or more",
    ),
    (["explain", "llama-3.1-8b", "--gpu", "h200", "--plot", "x.gif"], "--plot", ".png"),
    (["explain", "llama-3.1-8b", "--gpu", "h200", "--step", "train"], "step", "decode"),
    (["fits", "--bogus"], "--bogus", "--help"),
    (["bogus"], "bogus", "--help"),
    (["memory"], "model", "--help"),
    (["hw", "show", "nvlink9"], "nvlink9", "hw list"),
]


@pytest.mark.parametrize(("arguments", "names", "teaches"), BAD, ids=[" ".join(b[0]) for b in BAD])
def test_bad_input_gets_one_clear_line(
    arguments: list[str], names: str, teaches: str, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *arguments)
    assert code == ExitCode.BAD_INPUT
    assert out == ""
    assert err.startswith("roofplan: ")
    assert err.count("\n") == 1
    assert names.lower() in err.lower()
    assert teaches.lower() in err.lower()
    assert list(tmp_path.iterdir()) == [], "nothing written"


def test_errors_are_json_objects_too(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "fits", "nosuch", "--gpu", "h200", "--json")
    report = json.loads(out)
    jsonschema.validate(report, SCHEMA)
    assert code == report["error"]["code"] == ExitCode.BAD_INPUT
    assert report["error"]["message"] in err


def test_a_crash_is_70_and_never_a_no(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("as if a formula broke")

    monkeypatch.setattr("roofplan.api.ask_fit", broken)
    code, out, err = run(capsys, "fits", "llama-3.1-8b", "--gpu", "h200")
    assert (code, out) == (ExitCode.INTERNAL, "")
    assert err.count("\n") == 1
    assert "ZeroDivisionError" in err
    assert "Traceback" not in err


def test_an_interrupt_is_130(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("roofplan.api.ask_fit", interrupted)
    assert run(capsys, "fits", "llama-3.1-8b", "--gpu", "h200") == (130, "", "roofplan: interrupted\n")


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_a_full_or_closed_standard_output_is_no_no() -> None:
    for redirect, code in (
        (">/dev/full", 3),
        ("--json >/dev/full", 3),
        (">&-", 3),
        ("| true; exit ${PIPESTATUS[0]}", 141),
    ):
        command = f"{sys.executable} -m roofplan fits --gpu h200 {redirect}"
        result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, preexec_fn=_default_sigpipe)
        assert result.returncode == code, redirect
        assert "Traceback" not in result.stderr
        assert result.stderr.count("\n") == (code == 3)


@pytest.mark.parametrize("arguments", [[], ["hw"], ["models"], ["records"]], ids=str)
def test_a_bare_command_prints_its_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, *arguments)
    assert (code, err) == (ExitCode.YES, "")
    assert out.startswith(("Usage", " Usage", "\n"))
    assert out.count("\n") > 5


FOLLOWED = [
    ["fits", "llama-3.1-70b", "--gpu", "2xh100-sxm", "--context", "32k", "--batch", "8"],
    ["fits", "qwen3-32b", "--gpu", "h100-sxm", "--weights", "bf16", "--kv", "bf16", "--batch", "8"],
    ["fits", "llama-3.1-8b", "--vram", "24GB", "--bandwidth", "1TB/s", "--memory-utilization", "0.8"],
    ["fits", "llama-3.1-70b", "--gpu", "h100-sxm", "--weights", "bf16", "--tp", "1", "--pp", "1"],
    ["fits", "mixtral-8x7b", "--gpu", "rtx-4090", "--ram", "64GB", "--max-batched-tokens", "4k"],
    ["fits", "qwen3-30b-a3b", "--gpu", "rtx-4090", "--context", "16k", "--batch", "4", "--prompt", "2k"],
    ["fits", "qwen3-30b-a3b", "--gpu", "4xh200", "--tp", "4", "--ep", "2", "--engine", "sglang"],
    [
        "fits",
        "qwen3-8b",
        "--gpu",
        "rtx-4090",
        "--weights",
        "bf16",
        "--batch",
        "2k",
        "--context",
        "40k",
        "--prompt",
        "40000",
    ],
]


@pytest.mark.parametrize("arguments", FOLLOWED, ids=" ".join)
def test_what_is_offered_can_be_followed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The next step asks the same question; every remedy with flags, put in place, surely fits."""
    report = json.loads(run(capsys, *arguments, "--json")[1])
    follow = report["answer"]["next_step"].split("   (")[0].split()[1:]
    again = json.loads(run(capsys, *follow, "--json")[1])
    assert {k: v for k, v in again["question"].items() if k != "host_memory_bytes"} == {
        k: v for k, v in report["question"].items() if k != "host_memory_bytes"
    }
    for remedy in report["answer"]["remedies"]:
        if not remedy["flags"].startswith("--"):
            continue
        words, dropped = list(arguments), remedy["flags"].split(", without ")
        for name in dropped[1].split(" and ") if len(dropped) > 1 else []:
            del words[words.index(name) : words.index(name) + 2]
        changed = dropped[0].split()
        for name, value in zip(changed[::2], changed[1::2], strict=True):
            if name in words:
                words[words.index(name) + 1] = value
            else:
                words += [name, value]
        _, out, err = run(capsys, *words, "--json")
        assert err == "" and json.loads(out)["answer"]["verdict"] == "surely", (remedy, words)


def test_lists_honour_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    def verdicts(*more: str) -> list[tuple[str, str]]:
        rows = json.loads(run(capsys, "fits", "--gpu", "rtx-4090", *more, "--json")[1])["answer"]["rows"]
        return [(r["verdict"], r["weights"]) for r in rows]

    assert verdicts("--memory-utilization", "0.5") != verdicts()
    assert verdicts("--weights", "int4") != verdicts()
    pinned = json.loads(run(capsys, "fits", "--gpu", "rtx-4090", "--weights", "int4", "--json")[1])
    assert {r["weights"] for r in pinned["answer"]["rows"] if r["model"] == "deepseek-v3"} == {"fp8-block"}
    assert any("in their own format: deepseek-v3" in w for w in pinned["warnings"])
    _, out, _ = run(capsys, "fits", "--gpu", "8xh200", "--tp", "8", "--json")
    rows = {r["model"]: r for r in json.loads(out)["answer"]["rows"]}
    assert rows["qwen2.5-7b"]["note"] == "layout", "28 heads do not divide by 8; the others still answer"
    assert rows["llama-3.1-8b"]["layout"]["tp"] == 8
    _, out, _ = run(capsys, "fits", "--gpu", "h200", "--context", "128k", "--json")
    assert any("mixtral-8x7b 32,768" in w for w in json.loads(out)["warnings"])


def test_a_no_promises_no_speed(capsys: pytest.CaptureFixture[str]) -> None:
    answer = json.loads(run(capsys, "fits", "llama-3.1-70b", "--gpu", "rtx-4090", "--json")[1])["answer"]
    for name in ("prefill", "decode_step", "tokens_per_s_user", "tokens_per_s_total", "swap"):
        assert answer[name]["value"] is None and answer[name]["reason"] == "does not fit"


def test_explain_agrees_with_fits(capsys: pytest.CaptureFixture[str]) -> None:
    question = ["llama-3.1-70b", "--gpu", "2xh100-sxm", "--context", "32k", "--batch", "8", "--json"]
    fitted = json.loads(run(capsys, "fits", *question)[1])["answer"]
    explained = json.loads(run(capsys, "explain", *question)[1])["answer"]
    assert explained["total"]["value"] == pytest.approx(fitted["decode_step"]["value"])
    assert sum(r["share"] for r in explained["rows"]) == pytest.approx(1.0)
    prefill = json.loads(run(capsys, "explain", *question, "--step", "prefill")[1])["answer"]
    assert prefill["step_tokens"] == 8192, "one step of the engine, never more than it batches"
    alone = ["explain", "llama-3.1-8b", "--gpu", "h200", "--context", "4k", "--step", "prefill", "--json"]
    explained = json.loads(run(capsys, *alone)[1])["answer"]["total"]["value"]
    fitted = json.loads(run(capsys, "fits", *alone[1:6], "--json")[1])["answer"]["prefill"]["value"]
    assert explained == pytest.approx(fitted), "a prompt of one chunk"


def test_engines_have_their_own_calibrations_and_name_where_others_answer(capsys: pytest.CaptureFixture[str]) -> None:
    def asked(*words: str) -> dict[str, Any]:
        return json.loads(run(capsys, *words, "--json")[1])

    question = ["fits", "deepseek-v3", "--gpu", "8xh200"]
    ours, theirs = asked(*question), asked(*question, "--engine", "sglang")
    assert (ours["question"]["engine"], theirs["question"]["engine"]) == ("vllm", "sglang")
    assert ours["answer"]["decode_step"] != theirs["answer"]["decode_step"]
    assert any("/sglang-" in c["id"] and c["tier"] == "calibrated" for c in theirs["evidence"]["calibrations"])
    assert any("no measurement of sglang on h200" in c["reason"] for c in theirs["evidence"]["calibrations"])
    for words in (["fits", "--gpu", "rtx-4090"], ["fits", "llama-3.1-8b", "--gpu", "rtx-4090"]):
        shown = [line for line in run(capsys, *words)[1].splitlines() if line.startswith("evidence: ")]
        assert any("nearest relative of rtx-4090 is l40s (vllm-" in line and "gemm/bf16" in line for line in shown)
        assert {c["tier"] for c in asked(*words)["evidence"]["calibrations"]} == {"transferred"}
    assert {c["tier"] for c in asked("fits", "--gpu", "b200")["evidence"]["calibrations"]} >= {"calibrated"}


def test_the_next_step_of_serve_opens_its_decode_step(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["serve", "qwen3-30b-a3b", "--gpu", "4xh200", "--tp", "4", "--ep", "2", "--engine", "sglang"]
    report = json.loads(run(capsys, *words, "--clients", "64", "--prompt", "2k", "--output", "1k", "--json")[1])
    follow = report["answer"]["next_step"].split("   (")[0].split()[1:]
    again = json.loads(run(capsys, *follow, "--json")[1])
    for name in ("weights", "kv", "layout", "engine"):
        assert again["question"][name] == report["question"][name]
    assert again["answer"]["total"]["value"] == pytest.approx(report["answer"]["decode_step"]["value"], rel=0.02)


def test_a_narrow_terminal_gets_whole_lines() -> None:
    lines = shell("fits", "--gpu", "rtx-4090", COLUMNS="60").stdout.splitlines()
    assert lines[0].startswith("model") and lines[0].endswith("evidence")


def test_a_closed_pipe_is_silent() -> None:
    command = f"{sys.executable} -m roofplan fits --gpu h200 | head -1; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, preexec_fn=_default_sigpipe)
    assert result.stdout.startswith("model")
    assert "Traceback" not in result.stderr


def _default_sigpipe() -> None:
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)


def test_plots_are_written_and_look_like_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    roof, map_ = tmp_path / "roof.png", tmp_path / "map.svg"
    assert run(capsys, "explain", "qwen3-32b", "--gpu", "h200", "--plot", str(roof))[0] == 0
    assert run(capsys, "memory", "mixtral-8x7b", "--gpu", "2xa100-80gb", "--plot", str(map_))[0] == 0
    assert roof.read_bytes().startswith(b"\x89PNG")
    assert "weights" in map_.read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["map.svg", "roof.png"], "no partial files"


def test_an_unwritable_plot_leaves_the_old_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "roof.png"
    old.write_bytes(b"old")
    code, _, err = run(capsys, "explain", "qwen3-32b", "--gpu", "h200", "--plot", str(tmp_path / "nowhere" / "x.png"))
    assert (code, err.count("\n")) == (ExitCode.SURROUNDINGS, 1)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    code, out, err = run(capsys, "explain", "qwen3-32b", "--gpu", "h200", "--plot", str(old))
    assert (code, out) == (ExitCode.SURROUNDINGS, "")
    assert "No space left" in err
    assert old.read_bytes() == b"old"


def test_without_matplotlib_a_plot_names_the_extra(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, _, err = run(capsys, "explain", "qwen3-32b", "--gpu", "h200", "--plot", str(tmp_path / "x.png"))
    assert code == ExitCode.SURROUNDINGS
    assert "roofplan[plot]" in err


def test_the_tools_own_findings_are_a_no(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, text, _ = run(capsys, "hw", "show", "rtx-4090", "--toml")
    mine = tmp_path / "my-gpu.toml"
    mine.write_text(text)
    assert run(capsys, "hw", "lint", str(mine))[0] == ExitCode.YES
    assert run(capsys, "fits", "llama-3.1-8b", "--gpu", str(mine))[0] == ExitCode.YES
    assert run(capsys, "fits", "llama-3.1-8b", "--gpu", f"2x{mine}")[0] == ExitCode.YES
    mine.write_text(text.replace("value = 165.2e12, source", "value = 330.4e12, source"))
    code, out, _ = run(capsys, "hw", "lint", str(mine))
    assert code == ExitCode.NO
    assert "sparse rate used as dense" in out


def test_version_and_help_and_module() -> None:
    assert shell("--version").stdout.startswith("roofplan 0.")
    assert "data of 20" in shell("--version").stdout
    commands = ["fits", "explain", "memory", "serve", "sweep", "hw", "models", "calibrate", "validate"]
    for words in ("", *commands, "hw compare", "hw new"):
        text = shell(*words.split(), "--help").stdout
        assert "Usage" in text
    assert "roofplan fits ./model-Q4_K_M.gguf --gpu rtx-4090" in shell("fits", "--help").stdout
    assert "Exit codes" in shell("--help").stdout


def test_colour_only_where_it_is_wanted() -> None:
    coloured = shell("fits", "llama-3.1-8b", "--gpu", "h200", FORCE_COLOR="1").stdout
    plain = shell("fits", "llama-3.1-8b", "--gpu", "h200", NO_COLOR="1", FORCE_COLOR="1").stdout
    assert "\x1b[" in coloured
    assert "\x1b[32m" not in plain and "\x1b[1;32m" not in plain


def test_a_pipe_is_never_cut_to_a_terminals_width() -> None:
    lines = shell("explain", "mixtral-8x7b", "--gpu", "2xa100-80gb", COLUMNS="40").stdout.splitlines()
    header = next(line for line in lines if line.startswith("operator"))
    assert header.endswith("evidence")
    assert max(map(len, lines)) > 100


def test_completion_knows_models_and_devices() -> None:
    def complete(words: str) -> str:
        count = len(words.split(" ")) - 1
        env = {"_ROOFPLAN_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(count)}
        return shell(**env).stdout

    assert "qwen3-32b" in complete("roofplan explain qwen3")
    assert "rtx-4090" in complete("roofplan fits --gpu rtx")


FORBIDDEN = {
    "scipy",
    "pandas",
    "matplotlib",
    "pulp",
    "pyarrow",
    "pydantic",
    "torch",
    "triton",
    "hypothesis",
    "jsonschema",
}


@pytest.mark.parametrize(
    "arguments", [["fits", "--gpu", "h200", "--json"], ["fits", "--gpu", "h200"], ["models", "list"]], ids=" ".join
)
def test_query_paths_import_nothing_heavy(arguments: list[str]) -> None:
    program = (
        "import sys, io, contextlib\n"
        "from roofplan import cli\n"
        f"with contextlib.redirect_stdout(io.StringIO()): cli.run({arguments!r})\n"
        "print(sorted({name.split('.')[0] for name in sys.modules}))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(eval(result.stdout))
    assert not loaded & FORBIDDEN
    assert ("rich" in loaded) == ("--json" not in arguments), "rich only where a table is printed"
    assert "pynvml" not in loaded, "a named device needs no driver"


def test_only_the_hardware_asked_for_is_parsed() -> None:
    program = (
        "import tomllib, pathlib\n"
        "read = []\n"
        "original = pathlib.Path.read_bytes\n"
        "pathlib.Path.read_bytes = lambda self: (read.append(self.name), original(self))[1]\n"
        "from roofplan import api\n"
        "fleet, _ = api.load_fleet('h200')\n"
        "print(sorted(read))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert eval(result.stdout) == ["h200.toml", "nvlink4.toml", "pcie5-x16.toml"]


def test_importing_the_package_imports_nothing_else() -> None:
    program = "import sys; before = set(sys.modules); import roofplan; print(sorted(set(sys.modules) - before))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = eval(result.stdout)
    assert [name for name in loaded if name.split(".")[0] == "roofplan"] == ["roofplan"]
    assert not {"numpy", "typer", "rich"} & set(loaded)
