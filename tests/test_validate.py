"""`roofplan validate`: figures that follow from made-up measurements, bounds as exit codes, every form of output."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

import jsonschema
import numpy as np
import pytest

import roofplan
from roofplan import cli
from roofplan.calibrate import bounds, records, serving, serving_rows, silicon, store, validate, validate_command
from roofplan.calibrate.records import Record
from roofplan.calibrate.serving_rows import ServingRow
from roofplan.calibrate.transfer import Calibrations
from roofplan.calibrate.validate import ALL, Wanted
from roofplan.dtypes import DType
from roofplan.errors import ExitCode, InputError
from roofplan.hwspecs.load import load_fleet
from roofplan.simulator.costs import estimate
from roofplan.simulator.estimate import Z_80
from roofplan.simulator.report import contract, validation, validation_plots
from roofplan.simulator.serving import serve

SCHEMA = json.loads(contract.schema_text())
A100 = Wanted(("a100-80gb",), ("gemm",), ("vllm",))


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = cli.run(["validate", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out, err


def asked(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, Any], list[str]]:
    """Exit code, answer and warnings of a question put with --json."""
    code, out, _ = run(capsys, *arguments, "--json")
    report = json.loads(out)
    jsonschema.validate(report, SCHEMA)
    return code, report["answer"], report["warnings"]


# ---- made-up measurements: our own predictions, off by known factors

GEMM_SHAPES = [{"m": float(m), "n": 4096.0, "k": 4096.0} for m in (1, 8, 64, 512, 4096)]
REDUCE_SHAPES = [{"ranks": 8.0, "message_bytes": float(2**i)} for i in (16, 20, 24)]
OFF = (0.5, -0.5, 1.5, -1.5, 0.0)  # log(predicted / measured) in half-widths of the 80 % interval


def made(kernel: str, shapes: list[dict[str, float]], off: tuple[float, ...], **texts: str) -> list[Record]:
    """Records of an H200 from which the predictions are off by these multiples of their own interval."""
    blank = [
        Record("h200", kernel, DType.BF16, 1.0, "s", tuple(shape.items()), engine="vllm", **{"version": "9.9", **texts})
        for shape in shapes
    ]
    [(table, _, _)] = records.tables(blank)
    priced = estimate(table, load_fleet("8xh200"), Calibrations(load_fleet("8xh200"), validate.shipped(), "vllm"))
    values = priced.time_s * np.exp(-np.array(off) * Z_80 * priced.log_sd)
    return [record._replace(value=float(value)) for record, value in zip(blank, values, strict=True)]


def errors_in_percent(kernel: str, shapes: list[dict[str, float]], off: tuple[float, ...]) -> list[float]:
    """predicted / measured - 1 of those records, from the records and their exact counterparts."""
    exact = made(kernel, shapes, (0.0,) * len(off))
    return [100 * (a.value / b.value - 1) for a, b in zip(exact, made(kernel, shapes, off), strict=True)]


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """Five products, three of them within their interval, and three all-reduces that are met exactly."""
    folder = tmp_path / "measured"
    folder.mkdir()
    path = folder / "mine.csv"
    records.write(path, [*made("gemm", GEMM_SHAPES, OFF), *made("all-reduce", REDUCE_SHAPES, (0.0, 0.0, 0.0))])
    return path


def test_errors_and_coverage_follow_from_the_factors(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, answer, _ = asked(capsys, "--records", mine)
    gemm, reduce = answer["rows"]
    expected = errors_in_percent("gemm", GEMM_SHAPES, OFF)
    size = np.abs(expected)
    assert code == ExitCode.YES
    assert (gemm["device"], gemm["kernel"], gemm["engine"], gemm["version"]) == ("h200", "gemm/bf16", "vllm", "9.9")
    assert (gemm["rows"], gemm["coverage_percent"]) == (5, 60.0)
    assert gemm["mape_percent"] == pytest.approx(size.mean())
    assert gemm["median_percent"] == pytest.approx(np.median(size))
    assert gemm["p90_percent"] == pytest.approx(np.quantile(size, 0.9))
    assert gemm["bias_percent"] == pytest.approx(np.median(expected), abs=1e-9)
    assert gemm["source"].startswith("h200/gemm/bf16/vllm-")
    assert (reduce["rows"], reduce["coverage_percent"]) == (3, 100.0)
    assert reduce["mape_percent"] == pytest.approx(0.0, abs=1e-9)
    [summary] = answer["summaries"]
    assert (summary["cases"], summary["rows"]) == (2, 8)
    assert summary["coverage_percent"] == pytest.approx(100 * 6 / 8), "pooled by rows, not by kernels"


def test_a_kernel_worse_than_three_constants_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Measurements that follow the three constants exactly make any other model the worse one."""
    from roofplan.simulator.calibration import Cache
    from roofplan.simulator.costs import terms

    [(table, _, _)] = records.tables(made("gemm", GEMM_SHAPES, (0.0,) * 5))
    found = Calibrations(load_fleet("8xh200"), validate.shipped(), "vllm").resolve(table.kernel).calibration
    three = terms(table, found.denominators, found.baseline, Cache.COLD).total_s()
    path = tmp_path / "three.csv"
    exact = made("gemm", GEMM_SHAPES, (0.0,) * 5)
    records.write(path, [r._replace(value=float(t)) for r, t in zip(exact, three, strict=True)])
    _, answer, _ = asked(capsys, "--records", path)
    assert answer["rows"][0]["three_constants_mape_percent"] == pytest.approx(0.0, abs=1e-9)
    assert answer["summaries"][0]["worse_than_three_constants"] == ["h200/gemm/bf16/vllm-9.9"]
    _, out, _ = run(capsys, "--records", path)
    assert "1 of 1 worse than three constants: h200/gemm/bf16/vllm-9.9" in out


def test_a_form_whose_rates_the_data_did_not_hold_is_named() -> None:
    case = validate.Case("records", "h200", "gemm/fp8", "vllm", "1", "", ALL, validate.NO_ERRORS)
    bound = ("gemm.compute_fraction", "read_fraction", "floor_s", "write_fraction")
    assert case._replace(at_bound=bound).degenerate == ("gemm.compute_fraction", "read_fraction")
    assert case.degenerate == ()


BOUNDS = [  # one more and one less are a hundredth of a percent on either side of the exact figure
    ("--max-mape gemm={mape_and_more}", [True]),
    ("--max-mape gemm={mape_less_some}", [False]),
    ("--max-median gemm={median_and_more}", [True]),
    ("--max-median gemm={median_less_some}%", [False]),
    ("--max-mape all={mape_less_some}", [False, True]),
    ("--max-mape all={mape_and_more}", [True, True]),
    ("--max-mape all-reduce=0.001 --max-mape GEMM=99", [True, True]),
    ("--min-coverage 75", [True]),
    ("--min-coverage 75.01", [False]),
    ("--max-mape gemm=0 --max-median gemm=0 --min-coverage 0", [False, False, True]),
]


def limits() -> dict[str, float]:
    """The exact figures of the products, and a little to either side."""
    size = np.abs(errors_in_percent("gemm", GEMM_SHAPES, OFF))
    exact = {"mape": float(size.mean()), "median": float(np.median(size))}
    return {f"{k}_and_more": v + 0.01 for k, v in exact.items()} | {
        f"{k}_less_some": v - 0.01 for k, v in exact.items()
    }


@pytest.mark.parametrize(("words", "held"), BOUNDS, ids=[words for words, _ in BOUNDS])
def test_a_broken_bound_is_a_no(words: str, held: list[bool], mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = words.format(**limits()).split()
    code, answer, _ = asked(capsys, "--records", mine, *arguments)
    assert [bound["held"] for bound in answer["bounds"]] == held
    assert code == (ExitCode.YES if all(held) else ExitCode.NO)
    again, out, _ = run(capsys, "--records", mine, *arguments)
    assert again == code
    assert f"{sum(held)} of {len(held)} figures keep their bound" in out
    assert out.count("broken") == held.count(False)


def test_only_whole_kernels_are_held_to_bounds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ten small products far off and ten large ones met: the regime of the small ones is shown, and bounds nothing."""
    shapes = [{"m": float(m), "n": 4096.0, "k": 4096.0} for m in (*range(1, 11), *range(3001, 3011))]
    path = tmp_path / "mine.csv"
    records.write(path, made("gemm", shapes, (2.0,) * 10 + (0.0,) * 10))
    off = errors_in_percent("gemm", shapes, (2.0,) * 10 + (0.0,) * 10)
    limit = float(np.mean(off)) + 0.01
    for flag in ("--regimes", "--verbose", "-v"):
        code, answer, _ = asked(capsys, "--records", path, "--max-mape", f"gemm={limit}", flag)
        figures = {row["regime"]: row["mape_percent"] for row in answer["rows"]}
        assert code == ExitCode.YES and len(answer["bounds"]) == 1
        assert figures["m <= 16"] == pytest.approx(np.mean(off[:10])) and figures["m <= 16"] > limit
        assert figures["m > 2048"] == pytest.approx(0.0, abs=1e-9)
    assert {row["regime"] for row in asked(capsys, "--records", path)[1]["rows"]} == {ALL}


def test_filters_leave_the_rest_out(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (("--kernel", "gemm"), ("--kernel", "GEMM/bf16"), ("--kernel", "gemm", "--device", "h200")):
        _, answer, _ = asked(capsys, "--records", mine, *words)
        assert [row["kernel"] for row in answer["rows"]] == ["gemm/bf16"]
    _, answer, _ = asked(capsys, "--records", mine, "--engine", "vllm")
    assert len(answer["rows"]) == 2


def test_whole_systems_are_passed_over_and_said_so(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    step = Record("h200", "decode-step", DType.BF16, 9.0, "ms", (("batch", 1.0), ("context", 99.0)), model="qwen3-8b")
    records.write(mine, [*records.read(mine), step])
    _, answer, warnings = asked(capsys, "--records", mine)
    assert len(answer["rows"]) == 2
    assert any("1 rows of whole systems (decode-step) are not judged" in w for w in warnings)
    records.write(mine, [step])
    code, _, err = run(capsys, "--records", mine)
    assert code == ExitCode.BAD_INPUT and "no measurement of a kernel" in err and err.count("\n") == 1


# ---- tables that ship


def test_anchors_are_every_file_that_ships(
    mine: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (mine.parent / "independent.csv").write_bytes(mine.read_bytes())
    (mine.parent / "other.csv").write_bytes(mine.read_bytes())
    monkeypatch.setattr(validate, "ANCHORS", mine.parent)
    _, answer, _ = asked(capsys)
    assert [s["evidence"] for s in answer["summaries"]] == ["anchors", "others' anchors"]
    assert [row["kernel"] for row in answer["rows"]] == ["all-reduce/bf16", "gemm/bf16"] * 2
    alone = [row["rows"] for row in answer["rows"] if row["evidence"] != "anchors"]
    assert [row["rows"] for row in answer["rows"] if row["evidence"] == "anchors"] == [2 * n for n in alone]
    _, each, _ = asked(capsys, "--regimes")
    files = [row["kernel"] for row in each["rows"] if row["regime"] == "all"]
    assert files == ["gemm/bf16", "all-reduce/bf16"] * 3, "with regimes every file's kernels stand alone"


def test_pooled_errors_are_those_of_all_rows(mine: Path) -> None:
    judged = list(validate.judge_records(mine, store.known()))
    both = validate.pooled([judged[0], judged[0], judged[1]])
    [case] = both.cases
    sizes = [2 * len(judged[0].rows.measured_s), len(judged[1].rows.measured_s)]
    assert case.errors.n == sum(sizes)
    apart = [judged[0].cases[0].errors.mape, judged[1].cases[0].errors.mape]
    assert case.errors.mape == pytest.approx(np.average(apart, weights=sizes))


def test_no_anchors_is_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        monkeypatch.setattr(validate, "ANCHORS", folder)
        code, out, err = run(capsys)
        assert (code, out, err.count("\n")) == (ExitCode.SURROUNDINGS, "", 1)
        assert "no anchor tables ship" in err and "--records" in err


# ---- forms of output


def junit_of(path: Path) -> list[tuple[str, str, str]]:
    """Class, name and result of every test case."""
    root = Xml.parse(path).getroot()
    [suite] = root
    found = []
    for case in suite:
        results = [child.tag for child in case]
        found.append((case.attrib["classname"], case.attrib["name"], results[0] if results else "passed"))
    for part in (root, suite):
        counts = {tag: sum(result == tag for *_, result in found) for tag in ("failure", "skipped")}
        assert part.attrib["tests"] == str(len(found))
        assert (part.attrib["failures"], part.attrib["skipped"]) == (str(counts["failure"]), str(counts["skipped"]))
    return found


def test_junit_has_a_test_case_for_each_case_and_bound(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = mine.parent / "validation.xml"
    run(
        capsys,
        "--records",
        mine,
        "--max-mape",
        "gemm=1",
        "--max-median",
        "all=99",
        "--min-coverage",
        "50",
        "--junit",
        path,
    )
    found = junit_of(path)
    assert [result for *_, result in found] == ["failure", "passed", "passed", "passed"]
    assert len({(where, name) for where, name, _ in found}) == 4
    [failure] = Xml.parse(path).getroot().iter("failure")
    mape = np.mean(np.abs(errors_in_percent("gemm", GEMM_SHAPES, OFF)))
    assert f"MAPE {mape:.4g} %, at most 1 %" in failure.attrib["message"]
    run(capsys, "--records", mine, "--max-mape", "gemm=99", "--junit", path)
    assert [result for *_, result in junit_of(path)] == ["passed", "skipped"], "what nothing bounds is no success"
    assert sorted(p.name for p in path.parent.iterdir()) == ["mine.csv", "validation.xml"], "no partial files"


def test_odd_names_keep_xml_and_markdown_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "anchors"
    folder.mkdir()
    odd = made("gemm", GEMM_SHAPES, OFF, version='<&"|`*_[x](y)\\]]>')
    (folder / "a\x01\x1b<&|b.csv").write_text(records.to_text(odd), encoding="utf-8")
    monkeypatch.setattr(validate, "ANCHORS", folder)
    junit, markdown = tmp_path / "validation.xml", tmp_path / "validation.md"
    code, _, err = run(capsys, "--max-mape", "all=1", "--junit", junit, "--markdown", markdown)
    assert (code, err) == (ExitCode.NO, "")
    assert run(capsys, "--max-mape", "all=1", "--regimes", "--junit", junit, "--markdown", markdown)[0] is code
    [(where, name, result)] = [case for case in junit_of(junit) if case[2] == "failure"]
    assert '<&"|`*_[x](y)\\]]>' in name and where and result == "failure"
    header, rules, *rows = table_of(markdown.read_text(encoding="utf-8"))
    assert rows and len(header) == len(rules) == len(rows[0])


def table_of(text: str) -> list[list[str]]:
    """The cells of the first table of a page, as GitHub splits them."""
    lines = text.split("\n\n")[0].splitlines()
    assert all(line.startswith("| ") and line.endswith(" |") for line in lines)
    return [re.split(r" (?<!\\)\| ", line[2:-2]) for line in lines]


def test_markdown_is_a_table_of_the_same_figures(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = mine.parent / "validation.md"
    _, out, _ = run(capsys, "--records", mine, "--max-mape", "gemm=1", "--markdown", path)
    header, rules, *rows = table_of(path.read_text(encoding="utf-8"))
    assert header == list(validation_columns())
    assert all(re.fullmatch(":--|--:", rule) for rule in rules) and len(rows) == 2
    assert {len(row) for row in rows} == {len(header)}
    for row in rows:
        shown = next(line for line in out.splitlines() if re.sub(r"\\(.)", r"\1", row[2]) in line)
        assert all(re.sub(r"\\(.)", r"\1", cell) in shown for cell in row)
    assert "- **broken**: records" in path.read_text(encoding="utf-8")


def validation_columns() -> tuple[str, ...]:
    from roofplan.simulator.report.validation_text import COLUMNS

    return COLUMNS


@pytest.mark.parametrize("name", ["validation.png", "validation.svg", "validation.pdf"])
def test_a_picture_is_drawn(name: str, mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = mine.parent / name
    assert run(capsys, "--records", mine, "--plot", path)[0] == ExitCode.YES
    assert path.read_bytes().startswith({"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[path.suffix[1:]])


def test_the_roofline_shows_the_measured_speeds(mine: Path) -> None:
    found = [judged.points for judged in validate.judge_records(mine, validate.shipped())]
    agreement, roof = validation_plots.figure_of(found).axes
    assert len(agreement.collections) == 2 + 2, "two bands, two kernel classes"
    [dots] = roof.collections
    intensity, speed = np.asarray(dots.get_offsets()).T
    m, side = np.array([shape["m"] for shape in GEMM_SHAPES]), 4096.0
    flops, traffic = 2 * m * side * side, 2 * (2 * m * side + side * side)
    assert intensity == pytest.approx(flops / traffic)
    assert speed * 1e12 == pytest.approx(flops / [r.value for r in records.read(mine)][:5])
    links = [points for points in found if points.kernel.startswith("all-reduce")]
    assert len(validation_plots.figure_of(links).axes) == 1, "nothing under a roof"


def test_the_public_function_answers_the_same(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = roofplan.ask_validation(records=mine, max_mape={"gemm": 1.0}, min_coverage=50)
    code, answer, _ = asked(capsys, "--records", mine, "--max-mape", "gemm=1", "--min-coverage", "50")
    assert contract.to_data(report)["answer"] == answer
    assert contract.is_no(report.answer) and code == ExitCode.NO
    for wrong in ({"max_mape": {"gem": 1}}, {"min_coverage": 101}, {"evidence": "silicn"}, {"evidence": "serving"}):
        with pytest.raises(InputError):
            roofplan.ask_validation(records=mine, **wrong)


def test_progress_is_told_after_a_second(
    mine: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(capsys, "--records", mine)[2] == ""
    monkeypatch.setattr(validate_command, "PATIENCE_S", 0.0)
    assert run(capsys, "--records", mine)[2].splitlines() == [
        "mine.csv: h200/gemm/bf16, 5 rows",
        "mine.csv: h200/all-reduce/bf16, 3 rows",
    ]


# ---- what cannot be asked, and what cannot be written

BAD = [
    (("--max-mape", "gem=8"), "did you mean gemm"),
    (("--max-mape", "gemm"), "CLASS=PERCENT"),
    (("--max-mape", "gemm=much"), "percentage"),
    (("--max-mape", "gemm=-1"), "percentage"),
    (("--max-mape", "gemm=nan"), "percentage"),
    (("--max-median", "experts=8"), "judged were: all-reduce, gemm"),
    (("--max-mape", "gemm=8", "--max-mape", "gemm=9"), "twice"),
    (("--min-coverage", "101"), "100 %"),
    (("--min-coverage", "most"), "percentage"),
    (("--kernel", "gemmm"), "did you mean gemm"),
    (("--kernel", "experts"), "unknown kernel"),
    (("--engine", "vlllm"), "did you mean vllm"),
    (("--device", "h201"), "did you mean h20"),
    (("--device", "b200"), "unknown device"),
    (("--from", "silicon"), "drop --from"),
    (("--from", "silicone"), "silicone"),
    (("--kernels",), "drop --records"),
    (("--calibration", "nowhere"), "no such file"),
    (("--plot", "x.gif"), ".png"),
    (("--junit", "same.txt", "--markdown", "same.txt"), "overwrite"),
]


@pytest.mark.parametrize(("arguments", "teaches"), BAD, ids=[" ".join(words) for words, _ in BAD])
def test_bad_options_get_one_clear_line(
    arguments: tuple[str, ...],
    teaches: str,
    mine: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, "--records", mine, *arguments)
    assert (code, out, err.count("\n")) == (ExitCode.BAD_INPUT, "", 1)
    assert teaches in err
    assert [p.name for p in tmp_path.iterdir()] == ["measured"], "nothing written"


def test_other_contradictions(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for words, teaches in (
        (("--from", "serving", "--kernel", "gemm"), "--kernel"),
        (("--from", "silicon", "--calibration", "mine.json"), "--calibration"),
        (("--from", "silicon", "--device", "rtx-4090"), "rtx-4090"),
        (("--kernels", "--max-mape", "gemm=8"), "a bound"),
        (("--kernels", "--junit", "x.xml"), "--junit"),
        (("--records", tmp_path / "nowhere.csv"), "nowhere.csv"),
    ):
        code, out, err = run(capsys, *words)
        assert (code, out, err.count("\n")) == (ExitCode.BAD_INPUT, "", 1), words
        assert teaches in err


EXPERTS = {"tokens": 8.0, "hidden": 512.0, "intermediate": 512.0, "experts": 8.0, "top_k": 2.0}
SHAPES = {
    "elementwise": (("read_bytes", 0.0), ("write_bytes", 0.0)),
    "experts-block-scaled": tuple(EXPERTS.items()),
}


def test_a_record_nobody_can_price_names_its_file(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = records.read(mine)[0]
    for bad, teaches in (
        (good._replace(device="h999"), "h999"),
        (good._replace(cache="warm"), "cold or reused"),
        (good._replace(kernel="elementwise"), "without work"),
        (good._replace(kernel="experts-block-scaled", dtype=DType.INT4), "experts-block-scaled/int4"),
    ):
        shape = SHAPES.get(bad.kernel, good.shape)
        records.write(mine, [bad._replace(shape=shape)])
        code, out, err = run(capsys, "--records", mine)
        assert (code, out, err.count("\n")) == (ExitCode.BAD_INPUT, "", 1)
        assert teaches in err and str(mine) in err


@pytest.mark.parametrize("option", ["--junit", "--markdown", "--plot"])
def test_what_cannot_be_written_is_refused_before_the_work(
    option: str, mine: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def worked(*_: object) -> None:
        raise AssertionError("the work began")

    monkeypatch.setattr(validation, "validate", worked)
    folder = mine.parent / "folder.svg"
    folder.mkdir()
    for target in (mine.parent / "nowhere" / "x.svg", mine / "x.svg", folder):
        code, out, err = run(capsys, "--records", mine, option, target)
        assert (code, out, err.count("\n")) == (ExitCode.SURROUNDINGS, "", 1)

    def read_only(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", read_only)
    code, _, err = run(capsys, "--records", mine, option, mine.parent / "x.svg")
    assert code == ExitCode.SURROUNDINGS and "Read-only" in err


def test_the_measurements_are_never_overwritten(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = mine.read_bytes()
    for option in ("--junit", "--markdown"):
        code, _, err = run(capsys, "--records", mine, option, mine.parent / "." / "mine.csv")
        assert code == ExitCode.BAD_INPUT and "--records" in err
    assert mine.read_bytes() == before


def test_missing_extras_are_named(
    mine: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "aiconfigurator_core", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for words in (("--from", "silicon"), ("--from", "transferred"), ("--from", "serving"), ("--kernels",)):
        code, out, err = run(capsys, *words)
        assert (code, out) == (ExitCode.SURROUNDINGS, "") and "roofplan[silicon]" in err
    code, _, err = run(capsys, "--records", mine, "--plot", mine.parent / "x.png")
    assert code == ExitCode.SURROUNDINGS and "roofplan[plot]" in err
    assert run(capsys, "--records", mine)[0] == ExitCode.YES, "records need no extra"


# ---- the public tables


def test_held_out_sites_are_those_the_calibration_was_judged_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    read, original = set(), silicon._frame
    monkeypatch.setattr(silicon, "_frame", lambda file: (read.add(file), original(file))[1])
    words = ("--from", "silicon", "--device", "a100-80gb", "--kernel", "gemm", "--engine", "vllm")
    code, answer, _ = asked(capsys, *words, "--max-mape", "gemm=20", "--regimes")
    [calibration] = validate.fitted(A100)
    whole, accuracy = answer["rows"][0], calibration.accuracy
    assert accuracy is not None and code == ExitCode.YES
    assert whole["rows"] == calibration.provenance.held_out_rows
    for name in ("mape", "median", "p90", "coverage", "width"):
        assert whole[f"{name}_percent"] == pytest.approx(getattr(accuracy, name), rel=0.02), name
    assert whole["three_constants_mape_percent"] == pytest.approx(accuracy.three_mape, rel=0.02)
    assert len(answer["rows"]) > 3 and len(answer["bounds"]) == 1
    assert read == {calibration.provenance.table}, "no other table is read"


def test_a_transfer_knows_nothing_of_its_device(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--from", "transferred", "--device", "a100-80gb", "--kernel", "gemm", "--engine", "vllm")
    _, answer, _ = asked(capsys, *words)
    [row] = answer["rows"]
    [calibration] = validate.fitted(A100)
    assert row["evidence"] == "transferred" and not row["source"].startswith("a100-80gb")
    assert row["rows"] == calibration.provenance.held_out_rows
    assert row["mape_percent"] > calibration.accuracy.mape, "another device's constants are worse than its own"
    assert row["pure_roofline_mape_percent"] == pytest.approx(calibration.accuracy.pure_mape, rel=0.02)


def test_kernels_are_all_fitted_and_all_left_out(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, answer, _ = asked(capsys, "--kernels", "--device", "a100-80gb")
    rows, ours = answer["rows"], validate.fitted(Wanted(("a100-80gb",)))
    fitted = {(r["kernel"], r["engine"], r["version"]) for r in rows if r["state"] == "fitted"}
    assert fitted == {(str(c.kernel), c.engine, c.version) for c in ours}
    assert len(rows) == len(silicon.catalogue("a100-80gb"))
    assert all(row["reason"] for row in rows)
    dropped = [c for c in validate.shipped() if c not in validate.fitted(A100)]
    monkeypatch.setattr(validate, "shipped", lambda: tuple(dropped))
    _, answer, _ = asked(capsys, "--kernels", "--device", "a100-80gb", "--kernel", "gemm", "--engine", "vllm")
    assert any("host's launch dominates" in r["reason"] and r["state"] == "left out" for r in answer["rows"])
    assert {"host-copy/bf16": "assumed", "gemm/bf16": "pooled"}.items() <= {
        row.kernel: row.state for row in validation.kernels_of_any_device()
    }.items()


# ---- whole steps


@pytest.fixture(scope="module")
def few() -> list[ServingRow]:
    """Two runs that differ in clients only, one more, and one that may not be compared."""
    rows = serving_rows.load()
    near = serving_rows.neighbours(rows).concurrency
    pair = next(p for p in near if p[0].model == "llama-3.1-70b" and p[0].engine == "vllm" and p[0].device == "h200")
    other = next(r for r in rows if r.exclusion is None and r.engine == "trtllm" and r.device == "h100-sxm")
    excluded = next(r for r in rows if r.exclusion == "too_many_clients" and serving.why_not(r) is None)
    return [*pair, other, excluded]


def test_serving_judges_comparable_rows_beside_all(few: list[ServingRow]) -> None:
    found = serving.judge(few, validate.shipped(), lambda _: None)
    whole, unfiltered = found.judged.cases
    assert (whole.regime, whole.errors.n, unfiltered.regime, unfiltered.errors.n) == (ALL, 3, "unfiltered", 4)
    times = []
    for row in few[:3]:
        scenario, load, fleet = serving.question(row)
        known = Calibrations(fleet, validate.shipped(), row.engine)
        times.append(float(serve(scenario, load, known).time_per_output_token.time_s))
    off = [100 * abs(t / row.tpot_s - 1) for t, row in zip(times, few, strict=False)]
    assert whole.errors.mape == pytest.approx(np.mean(off))
    ratio = (times[0] / times[1]) / (few[0].tpot_s / few[1].tpot_s)
    assert found.ratios["more clients"].pairs == 1
    assert found.ratios["more clients"].median == pytest.approx(100 * abs(ratio - 1))
    assert found.left_out == {"too_many_clients": 1}
    assert found.judged.points.predicted_s == pytest.approx(times)


def test_serving_has_bounds_and_says_what_it_does_not_judge(
    few: list[ServingRow], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving_rows, "load", lambda _: few)
    code, answer, warnings = asked(capsys, "--from", "serving", "--max-mape", "serving=0")
    assert code == ExitCode.NO
    assert [b["case"] for b in answer["bounds"]] == ["h100-sxm, h200/serving/trtllm, vllm"]
    assert any("time to first token is not judged" in w for w in warnings)
    code, answer, _ = asked(capsys, "--from", "serving", "--engine", "vllm", "--max-mape", "serving=1000")
    assert code == ExitCode.YES
    assert (answer["rows"][0]["engine"], answer["rows"][0]["rows"]) == ("vllm", 2)
    code, out, _ = run(capsys, "--from", "serving")
    assert "more clients" in out and "note: time to first token" in out


def test_every_class_of_kernels_can_be_bounded() -> None:
    assert {c.kernel.name for c in validate.shipped()} <= set(bounds.CLASSES)
    assert {validation_plots.class_of(name) for name in bounds.CLASSES if name != ALL} <= set(validation_plots.COLOUR)
