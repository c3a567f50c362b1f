"""What the README shows runs and says what it shows."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from roofplan import cli
from roofplan.calibrate.validate import ANCHORS

README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"```sh\n(.*?)```", README, re.S)
LINES = [line for block in BLOCKS for line in block.splitlines() if line.startswith("roofplan ")]
COMMANDS = [shlex.split(line, comments=True)[1:] for line in LINES]
SKIPPED = [["calibrate"], ["validate", "--from"]]  # minutes, and the extra `silicon`; both have tests of their own


def skipped(words: list[str]) -> bool:
    nothing_ships = words == ["validate"] and not any(ANCHORS.glob("*.csv"))
    calibrated = any(word.startswith("mine/") for word in words)  # what `calibrate` writes: run by its own test
    return nothing_ships or calibrated or any(words[: len(beginning)] == beginning for beginning in SKIPPED)


def files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The files the commands name, in the folder they run in."""
    from test_gguf import T, shapes_of, write

    zoo = (Path(cli.__file__).parent / "simulator" / "workload" / "zoo.jsonl").read_text().splitlines()
    (tmp_path / "config.json").write_text(json.dumps(json.loads(zoo[0])["config"]))
    cli.run(["hw", "show", "rtx-4090", "--toml"])
    (tmp_path / "my-gpu.toml").write_text(capsys.readouterr().out)
    result = Path(__file__).parent / "data" / "importers" / "vllm_bench_0_10.json"
    (tmp_path / "result.json").write_text(result.read_text())
    row = "h200,gemm,bf16,180,us,4096,4096,4096,12.8,cublas sweep"
    (tmp_path / "mine.csv").write_text(f"device,kernel,dtype,value,unit,m,n,k,version,source\n{row}\n")
    write(tmp_path / "model-Q4_K_M.gguf", "llama", shapes_of("llama"), T.F16)


@pytest.mark.parametrize("words", [c for c in COMMANDS if not skipped(c)], ids=" ".join)
def test_every_command_of_the_readme_runs(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    files(tmp_path, capsys)
    monkeypatch.chdir(tmp_path)
    code = cli.run(words)
    out, err = capsys.readouterr()
    assert code == 0 and out
    assert err == "" or words[0] == "validate"  # which says what it is at where the machine is slow


def test_the_readme_shows_what_the_tool_prints(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (
        ["fits", "llama-3.1-70b", "--gpu", "2xh100-sxm", "--context", "32k", "--batch", "8"],
        ["serve", "llama-3.1-70b", "--gpu", "2xh100-sxm", "--clients", "32", "--prompt", "1k", "--output", "512"],
        ["sweep", "llama-3.1-8b", "--gpu", "rtx-4090,h200", "--weights", "bf16,fp8"],
        ["fits", "qwen3-30b-a3b", "--gpu", "rtx-3060", "--ram", "32GB", "--weights", "q4_k_m"],
        ["fits", "sdxl", "--gpu", "rtx-3060"],
    ):
        cli.run(words)
        assert capsys.readouterr().out.strip() in README
    cli.run(["fits", "--gpu", "rtx-4090"])
    shown = capsys.readouterr().out.splitlines()
    assert "\n".join(shown[:4]) in README and shown[-1] in README


def test_accuracy_figures_are_those_of_the_calibration_files() -> None:
    from roofplan.calibrate import store

    pair = r" (\d+) / (\d+) \|"
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \| (\w+) \| ([\d,]+) / ([\d,]+) \|" + 3 * pair + "$", README, re.M)
    names = {"H200": "h200", "H100": "h100-sxm", "B200": "b200", "A100": "a100-80gb", "L40S": "l40s"}
    names["RTX PRO 6000"] = "rtx-pro-6000"
    assert len(rows) >= 15
    for device, kernel, engine, *figures in rows:
        entries = store.read(store.BUNDLED / f"{names[device]}.json")
        [found] = [c for c in entries if (str(c.kernel), c.engine) == (kernel, engine)]
        a, p = found.accuracy, found.provenance
        assert a is not None
        ours = [p.fit_rows, p.held_out_rows, a.mape, a.median, a.three_mape, a.three_median, a.pure_mape, a.pure_median]
        assert [int(f.replace(",", "")) for f in figures] == [round(v) for v in ours], (device, kernel, engine)
