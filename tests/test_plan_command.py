"""`roofplan plan` as a person meets it: answers, words, limits, nonsense."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from roofplan import cli
from roofplan.errors import ExitCode

SCHEMA = json.loads((Path(cli.__file__).parent / "simulator" / "report" / "schema.json").read_text())
SMALL = ["plan", "llama-3.1-8b", "--gpu", "rtx-4090", "--prompt", "512", "--output", "128", "--no-why"]


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = cli.run([str(w) for w in words])
    out, err = capsys.readouterr()
    return code, out, err


def answer(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    code, out, err = run(capsys, *words, "--json")
    assert err == "" and code in (ExitCode.YES, ExitCode.NO)
    report = json.loads(out)
    jsonschema.validate(report, SCHEMA)
    assert (report["answer"]["verdict"] == "no") == (code == ExitCode.NO)
    return report["answer"]


def test_the_answer_has_its_proof_and_its_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, *SMALL[:-1])
    assert code == ExitCode.YES
    for words in (
        "what binds",
        "proof",
        "no plan of the domain is better",
        "what would change it",
        "refute it:",
        "next:",
    ):
        assert words in out


def test_json_follows_the_schema(capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(capsys, *SMALL, "--goal", "throughput,latency", "--tpot-ms", "40")
    proof = found["proof"]
    assert proof["bound"] <= proof["goal"] * (1 + 1e-9) and proof["gap"] < 0.05 and "HiGHS" in proof["solver"]
    assert found["front"] and found["timeline"] and found["domain"]
    assert found["plan"]["time_per_output_token"]["value"] <= 0.040
    users = [row["users"] * row["replicas"] for row in found["front"]]
    assert users == sorted(users, reverse=True) and len(set(users)) == len(users)
    speeds = [row["tokens_per_s_total"]["value"] for row in found["front"]]
    assert speeds == sorted(speeds, reverse=True)


def test_where_nothing_fits_the_smallest_changes_are_named_and_are_enough(capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "plan",
        "llama-3.1-8b",
        "--gpu",
        "rtx-4060",
        "--max-ppl-increase",
        "0%",
        "--prompt",
        "512",
        "--output",
        "64",
    ]
    found = answer(capsys, *words)
    assert found["verdict"] == "no" and found["changes"]
    for change in found["changes"]:
        flags = change["ask"].split()
        again = list(words)
        for key, value in zip(flags[::2], flags[1::2], strict=True):
            if key in again:
                again[again.index(key) + 1] = value
            else:
                again += [key, value]
        assert answer(capsys, *again, "--no-why")["verdict"] == "yes", change["change"]


def test_money_power_and_devices_limit_what_is_used(capsys: pytest.CaptureFixture[str]) -> None:
    base = ["plan", "llama-3.1-8b", "--gpu", "4xl40s", "--prompt", "512", "--output", "128", "--no-why"]
    price = ["--price", "l40s=1USD/h"]
    assert answer(capsys, *base)["plan"]["devices"] == 4
    assert answer(capsys, *base, "--max-gpus", "2")["plan"]["devices"] <= 2
    assert answer(capsys, *base, "--max-power", "800W")["plan"]["devices"] <= 2
    assert answer(capsys, *base, *price, "--max-cost", "3USD/h")["plan"]["devices"] <= 3
    cheap = answer(capsys, *base, *price, "--goal", "cost")["plan"]
    assert cheap["money_per_million_tokens"] > 0
    assert answer(capsys, *base, "--goal", "energy")["plan"]["joules_per_token"] > 0


def test_nodes_multiply_replicas(capsys: pytest.CaptureFixture[str]) -> None:
    one, four = (
        answer(capsys, "plan", "llama-3.1-8b", "--gpu", gpu, "--prompt", "512", "--output", "128", "--no-why")
        for gpu in ("2xl40s", "4x2xl40s")
    )
    assert four["plan"]["devices"] == 8
    assert four["plan"]["tokens_per_s_total"]["value"] == pytest.approx(4 * one["plan"]["tokens_per_s_total"]["value"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--goal", "speed"], "unknown goal"),
        (["--goal", "latency,latency"], "--goal"),
        (["--goal", "latency,cost,energy"], "--goal"),
        (["--goal", "cost"], "--price"),
        (["--price", "cheap"], "--price"),
        (["--price", "h200=3.5"], "3.5USD/h"),
        (["--max-cost", "-3USD/h"], "--max-cost"),
        (["--max-power", "700"], "--max-power"),
        (["--max-ppl-increase", "0.03"], "--max-ppl-increase"),
        (["--max-ppl-increase", "-1%"], "--max-ppl-increase"),
        (["--tpot-ms", "0"], "--tpot-ms"),
        (["--tpot-ms", "nan"], "--tpot-ms"),
        (["--ttft-service-ms", "-5"], "--ttft-service-ms"),
        (["--max-gpus", "0"], "--max-gpus"),
        (["--prompt", "0"], "--prompt"),
        (["--output", "1M"], "--prompt"),
        (["--gpu", "0x8xh200"], "--gpu"),
        (["--gpu", "2x8xh20000"], "did you mean"),
        (["--weights", "int3"], "unknown weight format"),
        (["--emit", "tensorflow"], "--emit"),
        (["--plot", "plan.txt"], "--plot"),
    ],
)  # fmt: skip
def test_nonsense_is_one_clear_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = [*SMALL]
    for key, value in zip(words[::2], words[1::2], strict=True):
        if key in given:
            given[given.index(key) + 1] = value
        else:
            given += [key, value]
    code, out, err = run(capsys, *given)
    assert code == ExitCode.BAD_INPUT and out == ""
    assert err.count("\n") == 1 and said in err and "Traceback" not in err


def test_the_picture_is_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "plan.png"
    code, _, _ = run(capsys, *SMALL, "--goal", "throughput,latency", "--plot", path)
    assert code == ExitCode.YES and path.stat().st_size > 20_000


@pytest.mark.parametrize("engine", ["vllm", "sglang", "trtllm", "llama.cpp"])
def test_plans_are_emitted_as_flags(engine: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(capsys, *SMALL, "--emit", engine)
    if found["verdict"] == "yes":
        lines = "\n".join(found["emitted"])
        assert "measure it:" in lines and "--" in found["emitted"][0]


def test_unlike_devices_are_a_pipeline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "plan.png"
    words = ["plan", "llama-3.1-70b", "--gpus", "2xrtx-3090,rtx-4090", "--link", "pcie4x8", "--goal", "latency"]
    found = answer(capsys, *words, "--plot", path)
    assert found["verdict"] == "yes" and path.stat().st_size > 10_000
    assert sum(row["layers"] for row in found["layers"]) == 80
    assert {row["where"].split()[0] for row in found["layers"]} == {"rtx-3090", "rtx-4090"}
    code, out, _ = run(capsys, "plan", "llama-3.1-405b", "--gpus", "rtx-3090;rtx-4090", "--plot", path)
    assert code == ExitCode.NO and "no plan" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--gpus", "2xrtx-3090,rtx-4099"], "did you mean"),
        (["--gpus", "0xrtx-3090"], "at least 1"),
        (["--gpus", ""], "--gpus"),
        (["--gpus", "rtx-3090", "--link", "pcie9"], "unknown link"),
        (["--gpus", "rtx-3090", "--gpu", "h200"], "--gpus"),
        (["--link", "pcie4x8"], "--gpus"),
        (["--gpus", "rtx-3090", "--goal", "cost", "--price", "1USD/h"], "--price"),
            (["--gpus", "rtx-3090", "--goal", "energy"], "goal"),
    ],
)  # fmt: skip
def test_nonsense_about_unlike_devices_is_one_clear_line(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, "plan", "llama-3.1-8b", *words)
    assert code == ExitCode.BAD_INPUT and out == ""
    assert err.count("\n") == 1 and said in err


# ---- what if


@pytest.mark.parametrize("thing", ["hbm=+24GB", "bandwidth=+500GB/s", "ram=+64GB", "link=+32GB/s", "gpus=+1"])
def test_what_is_imagined_is_the_same_question_with_more_of_it(thing: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The answer is the one of the question asked so from the start, where it can be."""
    asked = ["plan", "qwen2.5-32b", "--prompt", "512", "--output", "64", "--no-why"]
    (change,) = answer(capsys, *asked, "--gpu", "rtx-4090", "--ram", "32GB", "--what-if", thing)["changes"]
    assert change["change"] == f"what if {thing}" and change["gain"] >= 0
    same = {"ram=+64GB": ("rtx-4090", "96GB"), "gpus=+1": ("2xrtx-4090", "32GB")}.get(thing)
    if same is not None:
        told = answer(capsys, *asked, "--gpu", same[0], "--ram", same[1])
        assert told["plan"]["goal"] == pytest.approx(change["goal"], rel=0.02)


def test_what_is_imagined_away_is_worse(capsys: pytest.CaptureFixture[str]) -> None:
    less = ("--what-if", "bandwidth=-500GB/s", "--what-if", "hbm=-10GB")
    assert all(change["gain"] < -0.05 for change in answer(capsys, *SMALL, *less)["changes"])
    assert "worse" in run(capsys, *SMALL, *less)[1]


@pytest.mark.parametrize(
    "wrong", ["hbm", "hbm=24GB", "gpu=+1", "gpus=-1", "hbm=-1TB", "ram=+x", "link=-1TB/s", "gpus=+1.5"]
)
def test_what_cannot_be_imagined_is_refused(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, *SMALL, "--what-if", wrong)
    assert code == ExitCode.BAD_INPUT and "--what-if" in err and err.count("\n") == 1


# ---- what does not go together


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--max-cost", "3USD/h"], "--price"),
        (["--max-cost", "3EUR/h", "--price", "2USD/h"], "currency"),
        (["--price", "h200=3USD/h", "--goal", "cost"], "rtx-4090=3.5USD/h"),
        (["--cxl", "256GB"], "--ram"),
        (["--nvme", "7GB/s"], "--ram"),
        (["--network", "wifi-5"], "--gpus"),
        (["--tp", "3"], "--tp"),
        (["--draft", "qwen3-0.6b", "--acceptance", "70%"], "vocabulary"),
        (["--draft", "nope", "--acceptance", "70%"], "--draft"),
        (["--draft", "llama-3.2-1b", "--acceptance", "170%"], "100%"),
        (["--draft", "llama-3.2-1b", "--acceptance", "70%", "--emit", "vllm"], "sglang"),
        (["--emit", "trtllm", "--gpu", "mi300x"], "no kernels"),
        (["--emit", "vllm", "--gpu", "m2-max-64gb"], "no kernels"),
        (["--gpus", "rtx-3090,rtx-4090", "--sensitivity", "none.csv"], "--sensitivity"),
        (["--gpus", "rtx-3090,rtx-4090", "--network", "wifi-5"], "--network"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_one_clear_line(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu = [] if {"--gpu", "--gpus"} & set(words) else ["--gpu", "rtx-4090"]
    code, out, err = run(capsys, "plan", "llama-3.1-8b", *gpu, "--no-why", *words)
    assert code == ExitCode.BAD_INPUT and out == ""
    assert err.count("\n") == 1 and said in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tpot-ms", "0.001"], "a token takes at least"),
        (["--ttft-service-ms", "1"], "the first token takes at least"),
        (["--max-power", "100W"], "not one device"),
        (["--vram", "5GB", "--bandwidth", "1TB/s"], "the narrowest layers"),
    ],
)
def test_a_no_names_the_limit_that_keeps_it(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    gpu = [] if "--vram" in words else ["--gpu", "rtx-4090"]
    code, out, _ = run(capsys, "plan", "llama-3.1-8b", *gpu, "--prompt", "512", "--output", "64", "--no-why", *words)
    assert code == ExitCode.NO and said in out


def test_the_next_command_is_the_plan_again(capsys: pytest.CaptureFixture[str]) -> None:
    """The server of a plan in one format has its pace; a mixed plan names the command that writes it."""
    told = answer(capsys, "plan", "qwen3-32b", "--gpu", "2xl40s", "--prompt", "512", "--output", "64", "--no-why",
                  "--weights", "fp8")  # fmt: skip
    words = told["next_step"].removeprefix("roofplan ").split("   (")[0].split()
    assert words[0] == "serve" and "--weights" in words and "--engine" in words
    _, out, _ = run(capsys, *words, "--json")
    served = json.loads(out)["answer"]
    replicas = told["plan"]["replicas"]
    assert served["tokens_per_s_total"]["value"] * replicas == pytest.approx(
        told["plan"]["tokens_per_s_total"]["value"], rel=1e-3
    )
    mixed = answer(capsys, "plan", "llama-3.1-8b", "--gpu", "rtx-4090", "--goal", "latency", "--no-why")
    assert len({layer["weights"] for layer in mixed["layers"]}) > 1 and "--emit" in mixed["next_step"]


def test_serving_leaves_everything_on_the_devices(capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "llama-3.1-70b",
        "--gpu",
        "rtx-4090",
        "--ram",
        "128GB",
        "--clients",
        "1",
        "--prompt",
        "1k",
        "--output",
        "64",
    ]
    code, out, _ = run(capsys, "serve", *words)
    assert code == ExitCode.NO and "surely" not in out
    code, _, err = run(capsys, "serve", *words, "--offload", "layers")
    assert code == ExitCode.BAD_INPUT and "roofplan plan" in err


def test_stages_are_even_where_that_is_as_good(capsys: pytest.CaptureFixture[str]) -> None:
    told = answer(capsys, "plan", "qwen3-32b", "--gpu", "2xrtx-4090", "--engine", "llama.cpp", "--weights", "q4_k_m",
                  "--kv", "int8", "--tp", "1", "--pp", "2", "--goal", "latency", "--no-why")  # fmt: skip
    assert [layer["layers"] for layer in told["layers"]] == [32, 32]
