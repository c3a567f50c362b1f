"""Sweeps say what single questions say, at every point, in every form they are written in."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import roofplan
from roofplan import api, cli, sweeps
from roofplan.errors import ExitCode, InputError, SurroundingsError
from roofplan.simulator.answers import SweepAnswer, SweepColumns
from roofplan.simulator.estimate import Tier
from roofplan.simulator.explain import CAUSES, shares
from roofplan.simulator.inference import decode_in_detail, prefill
from roofplan.simulator.memory import ledger
from roofplan.simulator.planner import fit
from roofplan.simulator.planner.fit import Offload, Verdict, Wishes
from roofplan.simulator.report import contract, progress, sweep_files
from roofplan.simulator.report.sweep_account import axes_of
from roofplan.simulator.scenario import Scenario
from roofplan.simulator.sweep import sweep
from roofplan.simulator.workload import zoo
from roofplan.simulator.workload.formats import kv_format, weight_format
from roofplan.units import parse_counts

SMALL = [
    "llama-3.1-8b",
    "--gpu",
    "rtx-4090,2xh100-sxm",
    "--batch",
    "1:64",
    "--context",
    "1k:128k",
    "--weights",
    "bf16,int4",
]
SCHEMA = json.loads(contract.schema_text())


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = cli.run(["sweep", *map(str, arguments)])
    return code, *capsys.readouterr()


@pytest.fixture(scope="module")
def report() -> Any:
    fleets = [api.load_fleet(name)[0] for name in ("rtx-4090", "2xh100-sxm")]
    formats = [weight_format("bf16"), weight_format("int4")]
    asked = sweeps.make_sweep(api.load_model("llama-3.1-8b"), fleets, batch="1:64", context="1k:128k", weights=formats)
    return sweeps.ask_sweep(asked)


# Ranges


@given(first=st.integers(1, 2**20), length=st.integers(0, 19), beyond=st.floats(0, 0.999))
def test_a_range_doubles_up_to_its_end(first: int, length: int, beyond: float) -> None:
    last = first * 2**length
    end = last + int(last * beyond)
    [found] = parse_counts(f"{first}:{end}", "--batch")
    assert list(found) == [first * 2**i for i in range(length + 1)]


@given(first=st.integers(1, 10**6), more=st.integers(0, 10**6), step=st.integers(1, 10**5))
def test_a_range_with_a_step_reaches_its_end_if_the_steps_do(first: int, more: int, step: int) -> None:
    [found] = parse_counts(f"{first}:{first + more}:{step}", "--batch")
    assert found[0] == first and set(np.diff(found)) <= {step}
    assert first + more - step < found[-1] <= first + more


@given(st.lists(st.tuples(st.integers(1, 500), st.integers(0, 500), st.integers(0, 50)), min_size=1, max_size=5))
def test_a_list_is_all_its_parts_ascending_and_once(parts: list[tuple[int, int, int]]) -> None:
    texts = [f"{a}:{a + more}" + (f":{step}" if step else "") for a, more, step in parts]
    together = {n for text in texts for part in parse_counts(text, "--batch") for n in part}
    assert sweeps._values(",".join(texts), "--batch").tolist() == sorted(together)


def test_suffixes_and_plain_numbers() -> None:
    assert sweeps._values("1k:8k", "--context").tolist() == [1024, 2048, 4096, 8192]
    assert sweeps._values("1k:3k:1k,7", "--context").tolist() == [7, 1024, 2048, 3072]
    for same in (5, "5", [5.0], (5, 5), np.array([5]), range(5, 6)):
        assert sweeps._values(same, "batch").tolist() == [5]


@pytest.mark.parametrize(
    ("text", "teaches"),
    [
        ("256:1", "write 1:256"),
        ("8k:1k:1k", "write 1k:8k:1k"),
        ("1:", "1:256"),
        (":8", "1:256"),
        ("1,,2", "list"),
        ("", "list"),
        ("1:2:3:4", "1k:8k:1k"),
        ("0", "between 1"),
        ("0:8", "between 1"),
        ("1:8:0", "between 1"),
        ("-1", "not a quantity"),
        ("nan", "not a quantity"),
        ("inf:8", "not a quantity"),
        ("1.5:8", "whole"),
        ("1:8:1.5", "whole"),
        ("1e30", "between 1"),
    ],
)
def test_bad_ranges_are_one_line_that_teaches(text: str, teaches: str) -> None:
    with pytest.raises(InputError) as caught:
        sweeps._values(text, "--batch")
    assert str(caught.value).startswith("--batch: ") and teaches in str(caught.value)


@pytest.mark.parametrize(
    "values", [[], [0], [-1], [1.5], [math.nan], [math.inf], ["a"], [None], None, [[1], [2, 3]], 0]
)
def test_bad_values_from_python(values: Any) -> None:
    with pytest.raises(InputError, match=r"--batch: must"):
        sweeps._values(values, "--batch")


@pytest.mark.parametrize(
    ("batch", "context", "count"),
    [
        ("1:1000:1", "1:30000:1", "90,000,000"),
        ("1:1m:1", "1:128k:1", "412,316,860,416"),
        ("1:1e12:1", "8", "1,000,000,000,000"),
    ],
)
def test_huge_grids_are_refused_with_their_count(batch: str, context: str, count: str) -> None:
    with pytest.raises(InputError, match=f"{count} points; a sweep has at most 20,000,000"):
        sweeps.make_sweep(zoo.bundled("llama-3.1-8b"), [api.load_fleet("h200")[0]] * 1, batch=batch, context=context)


# A sweep is its points


ASKED = st.tuples(
    st.sampled_from(["llama-3.1-8b", "qwen3-30b-a3b", "gpt-oss-20b", "deepseek-v3", "granite-4.0-h-tiny", "opt-66b"]),
    st.sampled_from(["rtx-4090", "2xl40s", "4xh100-sxm", "8xh200", "2xmi300x"]),
    st.sampled_from(["vllm", "sglang"]),
)


@settings(max_examples=25)
@given(
    asked=ASKED,
    batches=st.lists(st.integers(1, 600), min_size=1, max_size=3),
    contexts=st.lists(st.integers(1, 40_000), min_size=1, max_size=3),
    choice=st.integers(0, 5),
)
def test_every_point_is_what_fits_answers(
    asked: tuple[str, str, str], batches: list[int], contexts: list[int], choice: int
) -> None:
    """Also decode, prefill and the ledger of that layout."""
    name, gpu, engine = asked
    model, (fleet, _) = zoo.bundled(name), api.load_fleet(gpu)
    contexts = [min(c, model.max_context) for c in contexts]
    choices = fit.precisions(model)
    numerics = choices[choice % len(choices)]
    calibrations = api.load_calibrations(fleet, engine=engine)
    batch, context = np.array(batches, float)[:, None], np.array(contexts, float)[None, :]
    grid = Scenario(model, fleet, batch, context, context, numerics)
    layouts = fit.layouts_of(grid, Wishes())
    whole = sweep(grid, calibrations, layouts)
    for i, b in enumerate(batches):
        for j, c in enumerate(contexts):
            point = grid.but(batch=b, context=c, prompt=c)
            _, chosen, _ = fit.choose(point, Wishes(numerics.weights, numerics.kv), calibrations)
            assert whole.verdict[i, j] == chosen.verdict
            assert layouts[whole.layout[i, j]] == chosen.scenario.sharding
            (step, operators), memory = decode_in_detail(chosen.scenario, calibrations), ledger(chosen.scenario)
            first = prefill(chosen.scenario, calibrations)
            figures = (step.time_s, step.low_s, step.high_s, first.time_s, first.low_s, first.high_s)
            bytes_ = (memory.total_bytes(), memory.low_bytes(), memory.high_bytes())
            expected = [float(f) for f in figures] + [float(b.max()) for b in bytes_]
            np.testing.assert_allclose([column[i, j] for column in whole[:9]], expected, rtol=1e-12)
            assert whole.tier[i, j] == step.weakest_tier()
            assert CAUSES[whole.cause[i, j]] == shares(operators)[0].name


def test_the_weakest_tier_is_that_of_the_evidence() -> None:
    """On a device whose calibrations are partly borrowed, against the shares of the evidence."""
    fleet, _ = api.load_fleet("h200")
    scenario = api.make_scenario(zoo.bundled("llama-3.1-8b"), fleet)
    scenario = scenario.but(numerics=scenario.numerics._replace(weights=weight_format("int4")))
    seen = set()
    for context in (64, 1024, 8192, 131_072):
        step = decode_in_detail(scenario.but(batch=16, context=context, prompt=64), api.load_calibrations(fleet)).step
        tiers = [tier for tier, share in step.evidence().items() if share > 0.05]
        assert step.weakest_tier() is max(tiers)
        seen.add(max(tiers))
    assert len(Tier) > len(seen) >= 1


def test_columns_are_what_fits_prints(report: Any) -> None:
    answer = report.answer
    batches, contexts = axes_of(answer)
    frame = sweep_files.frame(report)
    assert len(frame) == answer.points == 4 * 7 * 8
    for b, c in ((1, 1024), (16, 8192), (64, 131_072), (2, 32_768)):
        for index, series in enumerate(answer.series):
            row = frame.iloc[(index * 7 + list(batches).index(b)) * 8 + list(contexts).index(c)]
            assert (row["device"], row["device_count"], row["weights"]) == (*series[:2], series.weights)
            assert (row["batch"], row["context_tokens"], row["prompt_tokens"]) == (b, c, c)
            fleet, _ = api.load_fleet(f"{series.device_count}x{series.device}")
            scenario = api.make_scenario(api.load_model("llama-3.1-8b"), fleet, batch=b, context=c)
            wishes = Wishes(weight_format(series.weights), kv_format(series.kv), offload=Offload.NEVER)
            fits = api.ask_fit(scenario, api.load_calibrations(fleet), wishes)
            one, layout = fits.answer, fits.question.layout
            assert row["verdict"] == one.verdict
            assert (row["tp"], row["pp"], row["ep"]) == layout[:3]
            for column, q in (
                ("needed{}_bytes", one.needed),
                ("decode{}_s", one.decode_step),
                ("prefill{}_s", one.prefill),
            ):
                _same(row, q, column)
            _same(row, one.tokens_per_s_user, "tokens_per_s_user{}")
            _same(row, one.tokens_per_s_total, "tokens_per_s_total{}")
            assert row["binds"] == (one.shares[0].name if one.shares else "memory")
            assert row["evidence"] == (fits.evidence.weakest if fits.evidence else "")


def _same(row: pd.Series, q: Any, name: str) -> None:
    found = [row[name.format(part)] for part in ("", "_low", "_high")]
    expected = [math.nan if value is None else value for value in (q.value, q.low, q.high)]
    np.testing.assert_allclose(np.array(found, float), expected, rtol=1e-12)


def test_a_pinned_layout_is_kept_and_a_fixed_prompt_too() -> None:
    found = roofplan.sweep(
        "qwen3-30b-a3b", "4xh200", batch=[1, 64], context="4k:16k", prompt=512, tp=2, pp=2, weights="fp8"
    )
    assert set(zip(found["tp"], found["pp"], found["ep"], strict=True)) == {(2, 2, 1)}
    assert set(found["prompt_tokens"]) == {512}
    assert found["prefill_s"].nunique() == 1, "the time of one prompt does not depend on who decodes"
    with pytest.raises(InputError, match="--gpu 2xh200"):
        roofplan.sweep("qwen3-30b-a3b", "4xh200,h200", tp=2)


def test_contexts_beyond_the_model_are_left_out_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="up to 131,072: 1 longer left out, 262,144 first"):
        found = roofplan.sweep("llama-3.1-8b", "h200", batch=1, context="64k:256k", weights="bf16")
    assert found["context_tokens"].tolist() == [65_536, 131_072]
    with pytest.raises(InputError, match="none is left"):
        roofplan.sweep("llama-3.1-8b", "h200", context="256k")
    short = roofplan.sweep("gpt2-xl", "h200", batch=1)
    assert set(short["context_tokens"]) == {1024}, "the default ends where the model does"


def test_formats_and_devices_are_taken_once_and_quantised_models_as_they_are() -> None:
    found = roofplan.sweep("llama-3.1-8b", ["h200", "h200", " l40s"], batch=1, context=1024, weights=["fp8", "fp8"])
    assert list(zip(found["device"], found["weights"], strict=True)) == [("h200", "fp8"), ("l40s", "fp8")]
    assert set(roofplan.sweep("gpt-oss-20b", "h200", batch=1, context=1024)["weights"]) == {"mxfp4"}
    with pytest.raises(InputError, match="--weights"):
        roofplan.sweep("gpt-oss-20b", "h200", weights="int4")
    for wrong in ("", "h200,,l40s", ["h200", ""], [3]):
        with pytest.raises(InputError, match="--gpu: must be a name"):
            roofplan.sweep("llama-3.1-8b", wrong)


# What is written


def test_the_frame_is_tidy_and_typed(report: Any) -> None:
    frame = sweep_files.frame(report)
    assert list(frame.columns) == list(SweepColumns._fields)
    assert frame["verdict"].cat.ordered and (frame["verdict"] >= "tight").sum() == (frame["verdict"] != "no").sum()
    no = frame["verdict"] == "no"
    speeds = [c for c in frame if c.startswith(("decode", "prefill", "tokens"))]
    assert frame.loc[no, speeds].isna().all(axis=None) and frame.loc[~no, speeds].notna().all(axis=None)
    assert 0 < no.sum() < len(frame)
    assert frame["needed_bytes"].notna().all()
    np.testing.assert_allclose(frame["tokens_per_s_total"], frame["batch"] * frame["tokens_per_s_user"], rtol=1e-12)


def test_csv_reads_back_as_the_same_numbers(tmp_path: Path, report: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep_files, "ROWS", 100)
    path, done = tmp_path / "sweep.csv", []
    sweep_files.write_csv(report, path, done.append)
    assert sum(done) == report.answer.points and len(done) == 3
    frame = sweep_files.frame(report)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(frame.columns)
    for name, column in frame.items():
        read = [row[name] for row in rows]
        if column.dtype.kind == "f":
            assert np.array_equal([float(text or "nan") for text in read], column, equal_nan=True)
        else:
            assert read == column.astype(str).tolist()
    again = pd.read_csv(path, keep_default_na=True)
    assert np.array_equal(again["decode_s"], frame["decode_s"], equal_nan=True)


def test_parquet_reads_back_as_the_same_frame(tmp_path: Path, report: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep_files, "ROWS", 100)
    path = tmp_path / "sweep.parquet"
    sweep_files.write_parquet(report, path, lambda _: None)
    again, frame = pd.read_parquet(path), sweep_files.frame(report)
    words = [name for name in frame if frame[name].dtype == "category"]
    pd.testing.assert_frame_equal(again.drop(columns=words), frame.drop(columns=words), check_exact=True)
    for name in words:
        assert again[name].astype(str).tolist() == frame[name].astype(str).tolist()


def test_json_are_columns_that_follow_the_schema(capsys: pytest.CaptureFixture[str], report: Any) -> None:
    code, out, err = run(capsys, *SMALL, "--json")
    assert (code, err) == (ExitCode.YES, "")
    found = json.loads(out)
    jsonschema.validate(found, SCHEMA)
    columns = found["answer"]["columns"]
    assert {len(column) for column in columns.values()} == {found["answer"]["points"]} == {4 * 7 * 8}
    frame = sweep_files.frame(report)
    for name, column in columns.items():
        expected = [None if isinstance(v, float) and math.isnan(v) else v for v in frame[name].tolist()]
        assert column == expected, name
    assert [s["evidence"]["weakest"] for s in found["answer"]["series"]][:2] == ["transferred"] * 2
    assert all(len(c["file_sha256"]) == 12 for s in found["answer"]["series"] for c in s["evidence"]["calibrations"])
    columns["decode_s"][0] = "fast"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(found, SCHEMA)


def test_the_table_is_short_and_says_what_the_columns_say(capsys: pytest.CaptureFixture[str], report: Any) -> None:
    code, out, err = run(capsys, *SMALL)
    assert (code, err) == (ExitCode.YES, "")
    lines, frame = out.splitlines(), sweep_files.frame(report)
    assert len(lines) < 25
    assert f"{(frame['verdict'] != 'no').sum()} of 224 points fit" in lines[0]
    header, *users = lines[lines.index("most users, of those asked about, that surely fit, by context") + 1 :][:5]
    shown = [int(word.replace(",", "")) for word in header.split()[4:]]
    assert shown == [1024, 4096, 16_384, 32_768, 131_072]
    for line, (_, series) in zip(
        users, frame.groupby(["device_count", "weights"], observed=True, sort=False), strict=True
    ):
        for word, context in zip(line.replace(" tight", "-tight").split()[-5:], shown, strict=True):
            at = series[series["context_tokens"] == context]
            sure, tight = (at.loc[at["verdict"] == v, "batch"].max() for v in ("surely", "tight"))
            assert word == (f"{sure:.0f}" if sure == sure else f"{tight:.0f}-tight" if tight == tight else "-")


def test_where_nothing_fits_the_answer_is_no(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["llama-3.1-70b", "--gpu", "rtx-4090", "--batch", "1:4", "--context", "1k:4k"]
    code, out, _ = run(capsys, *words)
    assert code == ExitCode.NO and "0 of 27 points fit" in out
    code, out, _ = run(capsys, *words, "--json")
    found = json.loads(out)
    jsonschema.validate(found, SCHEMA)
    assert code == ExitCode.NO
    assert set(found["answer"]["columns"]["binds"]) == {"memory"}
    assert {s["evidence"] for s in found["answer"]["series"]} == {None}


# What goes wrong


@pytest.mark.parametrize(
    ("words", "names", "teaches"),
    [
        (["--batch", "256:1"], "--batch", "1:256"),
        (["--batch", "1:"], "--batch", "1:256"),
        (["--context", "0"], "--context", "between 1"),
        (["--context", "nan"], "--context", "32k"),
        (["--context", "256k"], "--context", "131,072"),
        (["--prompt", "4k"], "--prompt", "1,024"),
        (["--batch", "1:1m:1", "--context", "1:128k:1"], "412,316,860,416", "20,000,000"),
        (["--batch", "1:1000:1", "--context", "1:100000:50", "--json"], "--json", "--csv"),
        (["--gpu", "h200,h300"], "h300", "did you mean"),
        (["--gpu", ","], "--gpu", "list of names"),
        (["--weights", "fp8,bf61"], "bf61", "did you mean bf16"),
        (["--kv", "int3"], "int3", "KV"),
        (["--tp", "2"], "--tp", "2xh200"),
        (["--plot", "x.gif"], "--plot", ".png"),
        (["--csv", "a", "--parquet", "./a"], "--parquet", "--csv"),
        (["--gpu", "h200,l40s,l4,a30,rtx-4090", "--plot", "x.png"], "--gpu", "at most 4"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input_is_one_line_and_writes_nothing(
    words: list[str], names: str, teaches: str, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    code, _, err = run(capsys, "llama-3.1-8b", *(() if "--gpu" in words else ("--gpu", "h200")), *words)
    assert code == ExitCode.BAD_INPUT
    assert err.startswith("roofplan: ") and err.count("\n") == 1
    assert names in err and teaches in err
    assert list(tmp_path.iterdir()) == []


def test_a_model_file_is_not_overwritten(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(old := "{}")
    code, _, err = run(capsys, path, "--gpu", "h200", "--csv", path)
    assert code == ExitCode.BAD_INPUT and "would overwrite what MODEL names" in err
    assert path.read_text() == old


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_an_interrupt_leaves_nothing_half_written(
    kind: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, ticks = tmp_path / f"sweep.{kind}", []
    path.write_text("old")
    monkeypatch.setattr(sweep_files, "ROWS", 10)

    def bar(_: object, what: str, total: int) -> Any:
        def tick(_: int) -> None:
            ticks.append(what)
            if ticks.count("rows") == 2:
                raise KeyboardInterrupt

        return tick

    monkeypatch.setattr(progress.Bars, "bar", bar)
    assert run(capsys, *SMALL, f"--{kind}", path) == (130, "", "roofplan: interrupted\n")
    assert ticks.count("rows") == 2
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", ["csv", "parquet", "plot"])
def test_a_place_that_cannot_be_written_is_seen_before_the_work(
    kind: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeps, "ask_sweep", lambda *_: pytest.fail("worked for nothing"))
    for path in (tmp_path / "nowhere" / "x.png", tmp_path / "folder.png"):
        (tmp_path / "folder.png").mkdir(exist_ok=True)
        code, out, err = run(capsys, *SMALL, f"--{kind}", path)
        assert (code, out, err.count("\n")) == (ExitCode.SURROUNDINGS, "", 1)
        assert f"--{kind}" in err


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX limits")
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_full_disk_is_one_line_and_leaves_the_old_file(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"sweep.{kind}"
    path.write_text("old")
    program = (
        "import resource, sys; from roofplan import cli\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "sys.exit(cli.run(sys.argv[1:]))"
    )
    words = ["sweep", *SMALL, f"--{kind}", str(path)]
    shown = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True)
    assert (shown.returncode, shown.stdout, shown.stderr.count("\n")) == (ExitCode.SURROUNDINGS, "", 1)
    assert "File too large" in shown.stderr and str(path) in shown.stderr
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_missing_package_names_the_extra(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    code, _, err = run(capsys, *SMALL, "--parquet", tmp_path / "x.parquet")
    assert (code, err.count("\n")) == (ExitCode.SURROUNDINGS, 1)
    assert "pyarrow is not installed; pip install 'roofplan[frames]'" in err
    with pytest.raises(SurroundingsError, match=r"pandas is not installed; pip install 'roofplan\[frames\]'"):
        roofplan.sweep("llama-3.1-8b", "h200")
    assert list(tmp_path.iterdir()) == []


# Manners


def imported(program: str) -> set[str]:
    ending = "\nimport sys; print(sorted({name.split('.')[0] for name in sys.modules}))"
    shown = subprocess.run([sys.executable, "-c", program + ending], capture_output=True, text=True, check=True)
    return set(eval(shown.stdout.splitlines()[-1]))


HEAVY = {"pandas", "pyarrow", "matplotlib", "scipy", "torch", "pydantic"}


@pytest.mark.parametrize(
    ("words", "needs"),
    [((), set()), (("--json",), set()), (("--csv",), set()), (("--parquet",), {"pyarrow", "pandas"})],
)
def test_only_what_is_asked_for_is_imported(words: tuple[str, ...], needs: set[str], tmp_path: Path) -> None:
    target = [str(tmp_path / "x")] if words and words != ("--json",) else []
    program = f"from roofplan import cli; assert cli.run({['sweep', *SMALL, *words, *target]!r}) == 0"
    assert imported(program) & HEAVY == needs, "pyarrow itself loads pandas where it is"


def test_python_imports_pandas_only_for_a_frame() -> None:
    answer = "q = roofplan.make_sweep(roofplan.load_model('llama-3.1-8b'), [roofplan.load_fleet('h200')[0]], batch=1)"
    assert not imported(f"import roofplan; {answer}; roofplan.ask_sweep(q)") & HEAVY
    found = imported("import roofplan; roofplan.sweep('llama-3.1-8b', 'h200', batch=1, context=1024)")
    assert "pandas" in found and "matplotlib" not in found


def test_progress_only_in_a_terminal_and_only_after_a_while(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "PATIENCE_S", 0.0)
    assert run(capsys, *SMALL)[2] == "", "no terminal"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress.Bars() as bars:
        tick = bars.bar("points", 20)
        tick(5)
    assert "points" in (shown := capsys.readouterr().err) and "5/20" in shown
    monkeypatch.setattr(progress, "PATIENCE_S", 60.0)
    assert run(capsys, *SMALL)[2] == "", "soon done"


def test_points_are_counted_as_they_are_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("roofplan.simulator.sweep.BLOCK_POINTS", 50)
    asked = sweeps.make_sweep(
        zoo.bundled("llama-3.1-8b"), [api.load_fleet("h200")[0]], batch="1:20:1", context="1k:64k:1k"
    )
    done: list[int] = []
    whole = sweep_files.frame(sweeps.ask_sweep(asked, done.append))
    assert sum(done) == asked.points == 3 * 20 * 64 and len(done) > 50
    monkeypatch.setattr(sweeps, "POINTS_AT_ONCE", 3 * 64)
    again = sweep_files.frame(sweeps.ask_sweep(asked))
    pd.testing.assert_frame_equal(whole, again, check_exact=False, rtol=1e-12)


def test_a_million_points_are_cut_into_blocks_and_stay_the_same() -> None:
    frame = roofplan.sweep("llama-3.1-8b", "h200", batch="1:500:1", context="128:128000:128", weights="bf16")
    assert len(frame) == 500_000
    some = frame.iloc[[0, 123_456, 31_999, 32_000, 499_999]]
    for row in some.itertuples():
        one = roofplan.sweep(
            "llama-3.1-8b", "h200", batch=int(row.batch), context=int(row.context_tokens), weights="bf16"
        )
        for name in ("verdict", "binds", "evidence", "tp"):
            assert one[name].iloc[0] == getattr(row, name)
        for name in ("needed_bytes", "decode_s", "decode_high_s", "prefill_s", "tokens_per_s_total_low"):
            np.testing.assert_allclose(one[name].iloc[0], getattr(row, name), rtol=1e-12)


def test_answers_are_the_public_ones(report: Any) -> None:
    assert isinstance(report.answer, SweepAnswer)
    assert {"ask_sweep", "make_sweep", "sweep"} <= set(dir(roofplan))
    assert report.answer.columns.verdict.names == tuple(v.label for v in Verdict)
