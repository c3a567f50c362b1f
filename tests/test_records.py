"""Record files: what is written reads back, what is wrong gets one line, and the linter knows the field's mistakes."""

from __future__ import annotations

import csv
import io
import json
import math
import random
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roofplan import api, cli
from roofplan.calibrate import columns, records
from roofplan.calibrate.columns import Quantity
from roofplan.calibrate.lint import CHECKS, Row, lint
from roofplan.calibrate.records import Record
from roofplan.dtypes import DType
from roofplan.errors import ExitCode, InputError, RoofplanError
from roofplan.simulator.costs import estimate, work
from roofplan.simulator.lowering.attention import NO_WINDOW
from roofplan.simulator.operators import Gemm, Kernel, KernelName
from roofplan.simulator.report import contract

GEMM = "device,kernel,dtype,value,unit,m,n,k,version,source"
GEMM_ROW = "h200,gemm,bf16,180,us,4096,4096,4096,12.8,cublas sweep"
DECODE = "device,kernel,dtype,value,unit,model,batch,context,version,source"
DECODE_ROW = "h200,decode-step,bf16,20,ms,llama-3.1-8b,8,4096,0.19.0,a log"


def file(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "mine.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def complaint(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        records.read(path)
    line = str(caught.value)
    assert line.isprintable() and str(path) in line and len(line) < 2500
    return line


# ---- the format

NUMBERS = st.floats(min_value=1e-9, max_value=1e15) | st.integers(1, 2**60).map(float).filter(lambda v: v < 1e18)
TEXTS = st.text(st.characters(exclude_categories=("C", "Z")) | st.sampled_from(' ,";'), max_size=30).map(str.strip)


@st.composite
def any_record(draw: st.DrawFn) -> Record:
    kernel = draw(st.sampled_from(records.KERNELS))
    needed = set(columns.needed(kernel)) - {"model"}
    names = needed | draw(st.sets(st.sampled_from(sorted(columns.allowed(kernel)))))
    shape = {n: draw(st.integers(1, 4096).map(float) if n in columns.LIMITS else NUMBERS) for n in names}
    shape |= {"routing_alpha": 1.01} if "routing_alpha" in names else {}
    texts = {n: draw(TEXTS) for n in columns.TEXTS}
    texts["model"] = texts["model"] or "m"
    return Record(
        device=draw(TEXTS.filter(bool)),
        kernel=str(kernel),
        dtype=draw(st.sampled_from(DType)),
        value=draw(NUMBERS),
        unit=draw(st.sampled_from(records.units_of(kernel))),
        shape=tuple(sorted(shape.items(), key=lambda item: columns.ORDER[item[0]])),
        p10=draw(st.none() | NUMBERS),
        p90=draw(st.none() | NUMBERS),
        **texts,
    )


@given(st.lists(any_record(), max_size=6), st.randoms(use_true_random=False))
def test_what_is_written_reads_back_exactly_in_any_column_order(many: list[Record], shuffle: random.Random) -> None:
    text = records.to_text(many)
    assert records.parse(text, "mine.csv") == tuple(many)
    cells = list(csv.reader(io.StringIO(text, newline="")))
    order = list(range(len(cells[0])))
    shuffle.shuffle(order)
    out = io.StringIO()
    csv.writer(out).writerows([row[i] for i in order] for row in cells)
    assert records.parse(out.getvalue(), "mine.csv") == tuple(many)


def test_write_is_whole_or_not_at_all(tmp_path: Path) -> None:
    path = file(tmp_path, GEMM, GEMM_ROW)
    good = records.read(path)
    for bad in (
        good[0]._replace(note=" outer blank"),
        good[0]._replace(note="two\nlines"),
        good[0]._replace(value=math.nan),
        good[0]._replace(value=math.inf),
        good[0]._replace(kernel="gem"),
        good[0]._replace(shape=()),
    ):
        with pytest.raises(InputError):
            records.write(path, (*good, bad))
        assert records.read(path) == good
    records.write(path, good * 2)
    assert len(records.read(path)) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["mine.csv"]
    with pytest.raises(RoofplanError, match="cannot be written"):
        records.write(path / "below.csv", good)


def test_shape_columns_are_the_numeric_columns_of_the_operator_tables() -> None:
    for name in KernelName:
        for column, field in columns.shape_columns(name):
            assert column in columns.BY_NAME and columns.BY_NAME[column].numeric
            assert column == field or (field, column) == ("value", "value_dim")
    spoken_for = {c for k in records.KERNELS for c in columns.allowed(k)}
    others = {*columns.REQUIRED, *columns.TEXTS, *columns.SPREAD}
    assert spoken_for | others == set(columns.BY_NAME), "a column nobody may fill"
    assert not spoken_for & others
    assert columns.NO_WINDOW == NO_WINDOW


def test_units_and_speeds_become_seconds(tmp_path: Path) -> None:
    rows = [
        DECODE_ROW.replace("20,ms", f"{v},{u}") for v, u in ((0.02, "s"), (2e4, "us"), (2e7, "ns"), (50, "tokens/s"))
    ]
    for record in records.read(file(tmp_path, DECODE, DECODE_ROW, *rows)):
        assert record.si() == pytest.approx(0.02)
    kv = records.read(file(tmp_path, "device,kernel,dtype,value,unit,model", "h200,kv-tokens,bf16,1000,tokens,m"))
    assert kv[0].si() == 1000 and kv[0].number("tp", 1.0) == 1.0 and math.isnan(kv[0].number("context"))


def test_tables_are_what_a_cost_model_prices(tmp_path: Path) -> None:
    """Defaults of blank columns, groups by kernel and device, and seconds in the order of the rows."""
    path = file(
        tmp_path,
        "device,kernel,dtype,value,unit,m,n,k,weight_bytes,sequences,new_tokens,kv_tokens,heads,kv_heads,head_dim,"
        "tokens,hidden,intermediate,experts,top_k,model,batch,context",
        "h200,gemm,bf16,50,us,16,4096,4096,,,,,,,,,,,,,,,",
        "h200,attention-decode,fp8,10,us,,,,,8,1,4096,32,8,128,,,,,,,,",
        "h100-sxm,gemm,bf16,60,us,16,4096,4096,,,,,,,,,,,,,,,",
        "h200,gemm,bf16,0.07,ms,32,4096,4096,12345,,,,,,,,,,,,,,",
        "h200,decode-step,bf16,20,ms,,,,,,,,,,,,,,,,m,8,4096",
        "h200,gemm-weight-only,int4,30,us,16,4096,4096,,,,,,,,,,,,,,,",
        "h200,experts,fp8,1,ms,,,,,,,,,,,64,2048,768,128,8,,,",
    )
    found = records.tables(records.read(path))
    assert [t.rows.tolist() for t in found] == [[0, 3], [1], [2], [5], [6]]
    gemm, attention, _, narrow, experts = found
    assert isinstance(gemm.table, Gemm) and gemm.table.kernel == Kernel(KernelName.GEMM, DType.BF16)
    assert gemm.table.weight_bytes.tolist() == [2 * 4096 * 4096, 12345]
    assert gemm.table.output_bytes.tolist() == gemm.table.activation_bytes.tolist() == [2, 2]
    np.testing.assert_allclose(gemm.seconds, [50e-6, 70e-6])
    assert attention.table.window[0] == NO_WINDOW and attention.table.kv_bytes[0] == 1
    assert narrow.table.weight_bytes[0] == 4096 * 4096 / 2 and narrow.table.activation_bytes[0] == 2
    assert experts.table.expert_bytes[0] == 3 * 2048 * 768 and experts.table.routing_alpha[0] == 0
    fleet, _ = api.load_fleet("h200")
    for t in found:
        assert work(t.table).flops.shape == t.seconds.shape
        priced = estimate(t.table, fleet, api.load_calibrations(fleet))
        assert priced.time_s.shape == t.seconds.shape and (priced.time_s > 0).all()


def test_every_kernel_has_a_table(tmp_path: Path) -> None:
    for name in KernelName:
        shape = dict.fromkeys(columns.needed(name), 4.0)
        record = Record("h200", name.value, DType.BF16, 1.0, "ms", tuple(shape.items()))
        (found,) = records.tables([record])
        assert type(found.table) is columns.table_class(name) and found.seconds.tolist() == [1e-3]


def test_a_hundred_thousand_rows_read_in_seconds(tmp_path: Path) -> None:
    path = file(tmp_path, GEMM, *(f"h200,gemm,bf16,{i + 100},us,{i + 1},64,64,1,x" for i in range(100_000)))
    start = time.perf_counter()
    assert len(records.read(path)) == 100_000
    assert time.perf_counter() - start < 10, "takes about one"


def test_reading_needs_numpy_and_nothing_heavier(tmp_path: Path) -> None:
    path = file(tmp_path, GEMM, GEMM_ROW)
    program = (
        "import sys, pathlib\nfrom roofplan.calibrate import records\n"
        f"records.read(pathlib.Path({str(path)!r}))\nprint(sorted(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(eval(done.stdout))
    assert not {"pandas", "scipy", "rich", "typer", "pydantic", "roofplan.api"} & loaded
    query = (
        "import sys\nfrom roofplan import cli\ncli.run(['models', 'list', '--json'])\n"
        "print(sorted(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", query], capture_output=True, text=True, check=True)
    assert not {"roofplan.calibrate.records", "roofplan.calibrate.lint", "csv"} & set(eval(done.stderr))


# ---- complaints

BAD_FILES = [
    ([""], "empty", "device,kernel"),
    (["device,kernel,dtype,value"], "unit", "needed:"),
    ([GEMM.replace("kernel", "kernal"), GEMM_ROW], "kernal", "did you mean kernel?"),
    ([GEMM.replace("k,version", "m,version"), GEMM_ROW], "line 1: m", "drop one"),
    ([GEMM, GEMM_ROW, GEMM_ROW.replace("gemm", "gemn")], "line 3: kernel", "did you mean gemm?"),
    ([GEMM, GEMM_ROW.replace("bf16", "bf61")], "line 2: dtype", "did you mean bf16?"),
    ([GEMM, GEMM_ROW.replace("us", "µs")], "line 2: unit", "s, ms, us, ns"),
    ([GEMM, GEMM_ROW.replace("us", "tokens/s")], "line 2: unit", "known"),
    ([GEMM, GEMM_ROW.replace("180", "0")], "line 2: value", "positive"),
    ([GEMM, GEMM_ROW.replace("180", "-3")], "line 2: value", "positive"),
    ([GEMM, GEMM_ROW.replace("180", "nan")], "line 2: value", "finite"),
    ([GEMM, GEMM_ROW.replace("180", "1e999")], "line 2: value", "finite"),
    ([GEMM, GEMM_ROW.replace("180", "1e17000")], "line 2: value", "finite"),
    ([GEMM, GEMM_ROW.replace("180", "1e-99")], "line 2: value", "between"),
    ([GEMM, GEMM_ROW.replace("180", "1_0µ")], "line 2: value", "decimal point"),
    ([GEMM, GEMM_ROW.replace("180", '"1,234.5"')], "line 2: value", "thousands separators"),
    ([GEMM, GEMM_ROW.replace("4096,12.8", ",12.8")], "line 2: k", "gemm needs m, n, k"),
    ([GEMM, GEMM_ROW.replace("h200", "")], "line 2: device", "missing"),
    ([GEMM, GEMM_ROW + ",7"], "line 2", "11 cells where the header has 10"),
    ([GEMM, "h200,gemm,bf16"], "line 2", "3 cells"),
    ([GEMM, GEMM_ROW.replace("12.8", "\x1b[31m")], "line 2: version", "printable"),
    ([GEMM, GEMM_ROW.replace("12.8", "v" * 600)], "line 2: version", "500"),
    ([GEMM, GEMM_ROW.replace("12.8", '"1"2')], "line 2", "CSV"),
    ([GEMM, GEMM_ROW.replace("cublas sweep", '"open')], "line 2", "CSV"),
    ([GEMM + ",heads", GEMM_ROW + ",32"], "line 2: heads", "does not belong to gemm"),
    ([DECODE, DECODE_ROW.replace("llama-3.1-8b", "")], "line 2: model", "missing"),
    ([DECODE, DECODE_ROW.replace(",8,", ",,")], "line 2: batch", "decode-step needs"),
    ([DECODE, DECODE_ROW.replace("20,ms", "20,tokens")], "line 2: unit", "tokens/s"),
]


@pytest.mark.parametrize(("lines", "names", "teaches"), BAD_FILES, ids=[f"{b[1]}-{i}" for i, b in enumerate(BAD_FILES)])
def test_a_bad_file_gets_one_line_with_line_column_and_remedy(
    lines: list[str], names: str, teaches: str, tmp_path: Path
) -> None:
    line = complaint(file(tmp_path, *lines))
    assert names in line and teaches in line


def test_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    for raw in (b"", b"\n\n", b"\x00" * 64, b"\xff\xfe" * 40, b"\x89PNG\r\n\x1a\n", b"{}", b'"' * 9, b"a" * 10_000_000):
        path.write_bytes(raw)
        complaint(path)
    path.write_bytes(f"{GEMM}\n{GEMM_ROW}{'9' * 10_000_000}\n".encode())
    assert "line 2" in complaint(path)
    path.write_bytes(f"{GEMM}\n".encode() + b"h200," * 2_000_000)
    assert "line 2" in complaint(path)
    for other in (tmp_path, tmp_path / "missing.csv", path / "below", tmp_path / ("x" * 5000), Path("\x00")):
        with pytest.raises(InputError):
            records.read(other)


def test_damaged_bytes_give_records_or_one_line(tmp_path: Path) -> None:
    rng, path = random.Random(7), tmp_path / "mine.csv"
    whole = f"{GEMM}\n{GEMM_ROW}\n{GEMM_ROW}\n".encode()
    outcomes = {True: 0, False: 0}
    for _ in range(3000):
        raw = bytearray(whole)
        for _ in range(rng.choice((1, 1, 2, 8))):
            at = rng.randrange(len(raw) + 1)
            raw[at : at + rng.randrange(4)] = bytes(
                rng.choices(b'0123456789.e-+,"\n\r\x00\xff abz', k=rng.randrange(4))
            )
        path.write_bytes(raw)
        try:
            found = lint(path)
            assert all(f.problem.isprintable() and f.file == str(path) for f in found)
            outcomes[True] += 1
        except InputError as error:
            assert str(error).isprintable() and len(str(error)) < 2500
            outcomes[False] += 1
    assert min(outcomes.values()) > 100, outcomes


def test_a_byte_order_mark_crlf_and_blank_lines_are_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_bytes(f"\ufeff{GEMM}\r\n\r\n{GEMM_ROW}\r\n,,,,,,,,,\r\n".encode())
    assert len(records.read(path)) == 1


# ---- the linter

ATTENTION = "device,kernel,dtype,value,unit,sequences,new_tokens,kv_tokens,heads,kv_heads,head_dim,version,source"
EXPERTS = "device,kernel,dtype,value,unit,tokens,hidden,intermediate,experts,top_k,version,source"
LINK = "device,kernel,dtype,value,unit,message_bytes,ranks,version,source"
FOUND = [
    ([GEMM, GEMM_ROW.replace("h200", "h20O")], "line 2: device", "did you mean h20?"),
    ([GEMM, GEMM_ROW.replace("h200", "./my-gpu.toml")], "line 2: device", "is a path"),
    ([GEMM, GEMM_ROW.replace("180,us", "120,us")], "line 2: value", "beats the datasheet of h200 (139 us)"),
    ([LINK, "h200,all-reduce,bf16,1,us,1000000,8,2.27,nccl"], "line 2: value", "beats the datasheet"),
    ([GEMM, GEMM_ROW.replace("180,us", "0.2,s")], "line 2: value", "wrong unit"),
    ([GEMM + ",p10", GEMM_ROW + ",181"], "line 2: p10", "above the value"),
    ([GEMM + ",p90", GEMM_ROW + ",179"], "line 2: p90", "below the value"),
    ([GEMM, GEMM_ROW.replace("12.8", "")], "line 2: version", "no version"),
    ([GEMM, GEMM_ROW.replace("cublas sweep", "")], "line 2: source", "no source"),
    ([GEMM, GEMM_ROW, GEMM_ROW], "line 3: value", "the same row as line 2"),
    ([GEMM, GEMM_ROW, GEMM_ROW.replace("180", "216")], "line 3: value", "1.2 times line 2"),
    ([GEMM, GEMM_ROW.replace("180", "NaN")], "line 2: value", "must be finite (got 'NaN')"),
    ([GEMM, GEMM_ROW.replace("180", "0")], "line 2: value", "must be positive"),
    ([GEMM, GEMM_ROW.replace("180", "-1")], "line 2: value", "must be positive"),
    ([GEMM, GEMM_ROW.replace("gemm", "gemn")], "line 2: kernel", "did you mean gemm?"),
    ([GEMM, GEMM_ROW.replace("4096,4096,4096", "4096.5,4096,4096")], "line 2: m", "not a whole number"),
    ([ATTENTION, "h200,attention-decode,bf16,90,us,8,1,4096,30,8,128,1,x"], "line 2: heads", "multiple of 8"),
    ([ATTENTION, "h200,attention-decode,bf16,90,us,8,512,64,32,8,128,1,x"], "line 2: kv_tokens", "new_tokens"),
    ([EXPERTS, "h200,experts,bf16,9,ms,64,2048,768,8,16,1,x"], "line 2: experts", "less than top_k"),
    ([GEMM], "*", "no measurements"),
]  # fmt: skip


@pytest.mark.parametrize(("lines", "key", "problem"), FOUND, ids=[f"{f[1]} {f[2]}" for f in FOUND])
def test_each_mistake_is_found_and_nothing_else(lines: list[str], key: str, problem: str, tmp_path: Path) -> None:
    path = file(tmp_path, *lines)
    (found,) = lint(path)
    assert (found.file, found.key) == (str(path), key)
    assert problem in found.problem


def test_every_check_has_a_file_that_fails_it(tmp_path: Path) -> None:
    for check in CHECKS:
        assert any(list(check("f", rows_of(file(tmp_path, *lines)))) for lines, _, _ in FOUND), check.__name__


def rows_of(path: Path) -> list[Row]:
    return [Row(n, r) for n, r in records.rows(records.read_text(path), str(path)) if isinstance(r, Record)]


GOOD = [
    [GEMM, GEMM_ROW, GEMM_ROW.replace("180", "190"), GEMM_ROW.replace("h200", "h100-sxm")],
    [GEMM, "h200,gemm,bf16,5,us,16,2048,2048,12.8,8 MB of weights stay in the cache of 63 MB"],
    [ATTENTION, "h200,attention-decode,bf16,90,us,8,1,4096,32,8,128,1,x"],
    [DECODE, DECODE_ROW, DECODE_ROW.replace("0.19.0", "0.20.0").replace("20,ms", "40,ms")],
    ["device,kernel,dtype,value,unit,sequences,new_tokens,kv_tokens,heads,latent,rope,nope,value_dim,version,source",
     "h200,mla-decode,bf16,50,us,8,1,4096,128,512,64,128,128,1,no cost model yet"],
    [EXPERTS, "h200,experts,fp8,300,us,64,2048,768,128,8,1,x"],
    [LINK, "h200,reduce-scatter,bf16,50,us,1000000,8,2.27,nccl"],
    ["device,kernel,dtype,value,unit,copy_bytes,version,source", "h200,host-copy,bf16,30,ms,1e9,1,x"],
    ["device,kernel,dtype,value,unit,read_bytes,write_bytes,version,source", "h200,elementwise,bf16,60,us,1e8,1e8,1,x"],
]  # fmt: skip


@pytest.mark.parametrize("lines", GOOD, ids=lambda lines: lines[1][:30])
def test_honest_rows_pass(lines: list[str], tmp_path: Path) -> None:
    assert lint(file(tmp_path, *lines)) == []


def test_one_finding_for_all_rows_without_a_source(tmp_path: Path) -> None:
    header = GEMM.removesuffix(",source")
    rows = [f"h200,gemm,bf16,200,us,{m},4096,4096,12.8" for m in (4096, 4095, 4094)]
    (found,) = lint(file(tmp_path, header, *rows))
    assert (found.key, found.problem) == ("line 2: source", "no source on this row and 2 more")


# ---- the commands


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.run(list(arguments))
    out, err = capsys.readouterr()
    return code, out, err


def test_lint_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = file(tmp_path, GEMM, GEMM_ROW)
    assert run(capsys, "records", "lint", str(path))[0] == ExitCode.YES
    file(tmp_path, GEMM, GEMM_ROW.replace("h200", "[bold]h201"))
    code, out, err = run(capsys, "records", "lint", str(path))
    assert (code, err) == (ExitCode.NO, "")
    assert "unknown device [bold]h201" in out, "what a file says is never markup"
    code, out, _ = run(capsys, "records", "lint", str(path), "--json")
    report = json.loads(out)
    jsonschema.validate(report, json.loads(contract.schema_text()))
    assert code == ExitCode.NO and report["answer"]["findings"][0]["key"] == "line 2: device"
    code, out, err = run(capsys, "records", "lint", str(tmp_path / "none.csv"))
    assert (code, out, err.count("\n")) == (ExitCode.BAD_INPUT, "", 1)


def test_schema_command_lists_every_column(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "records", "schema", "--json")
    report = json.loads(out)
    jsonschema.validate(report, json.loads(contract.schema_text()))
    assert (code, err) == (0, "")
    assert [c["name"] for c in report["answer"]["columns"]] == [c.name for c in columns.COLUMNS]
    shown = run(capsys, "records", "schema")[1]
    assert all(c.meaning in shown for c in columns.COLUMNS)
    assert "roofplan records import" in run(capsys, "records", "import", "--help")[1]


def test_quantities_and_kernels_do_not_collide() -> None:
    assert not set(Quantity) & set(KernelName)
