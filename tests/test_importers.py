"""Importers against small files shaped like the real ones, and against damage.

The shapes: `vllm bench serve` of vLLM 0.6 (benchmark_serving.py), 0.10 and 0.19; llama-bench of llama.cpp b5163;
start-up logs of vLLM 0.6 and 0.7 (V0), of the first V1 (0.7 dev), of 0.10 with two data-parallel replicas and of 0.19.
Values are made up.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from roofplan import cli
from roofplan.calibrate import commands, records
from roofplan.calibrate.importers import Given, Kind, detect, import_file
from roofplan.calibrate.importers.common import model_of
from roofplan.calibrate.lint import lint
from roofplan.calibrate.records import Record
from roofplan.dtypes import DType
from roofplan.errors import ExitCode, InputError, RoofplanError
from roofplan.simulator.report import contract

DATA = Path(__file__).parent / "data" / "importers"
GIVEN = Given(device="h200")


def bring(name: str, **options: Any) -> tuple[Record, ...]:
    return import_file(DATA / name, None, GIVEN._replace(**options)).records


def bench(tmp_path: Path, **changes: Any) -> Path:
    """The 0.10 result with some fields changed; None drops one."""
    entry = json.loads((DATA / "vllm_bench_0_10.json").read_text()) | changes
    path = tmp_path / "result.json"
    path.write_text(json.dumps({k: v for k, v in entry.items() if v is not None or k not in changes}))
    return path


def test_kinds_are_told_apart() -> None:
    for path in DATA.iterdir():
        kind = detect(path.read_text(), str(path))
        assert path.name.startswith(kind.value.replace("-", "_")), path.name


# ---- vllm bench serve


def test_a_closed_loop_of_many_users_gives_a_decode_step() -> None:
    (step,) = bring("vllm_bench_0_10.json", tp=2, weights="fp8", version="0.10.2", note="idle node")
    assert (step.kernel, step.value, step.unit, step.si()) == ("decode-step", 11.25, "ms", pytest.approx(0.01125))
    assert dict(step.shape) == {"tp": 2, "batch": 16, "context": 1088, "prompt": 1024, "output": 128}
    assert (step.model, step.weights, step.engine, step.version) == (
        "meta-llama/Llama-3.1-8B-Instruct",
        "fp8",
        "vllm",
        "0.10.2",
    )
    assert step.date == "2026-02-14" and step.note.startswith("idle node; median") and "closed loop" in step.note
    reasons = import_file(DATA / "vllm_bench_0_10.json", None, GIVEN).skipped
    assert len(reasons) == 1 and "waiting for other users" in reasons[0]


def test_a_user_alone_gives_a_service_time_too() -> None:
    step, first = bring("vllm_bench_0_19_alone.json")
    assert (step.kernel, step.value, step.p10, step.p90) == ("decode-step", 20.0, 19.75, 20.5)
    assert (first.kernel, first.value, first.p10, first.p90) == ("prefill", 120.5, 118.0, 124.5)
    assert first.version == "0.19.0" and first.number("tp") == 2 and first.number("context") == 2048
    assert step.number("batch") == 1 and step.number("context") == 2048 + 128


def test_an_open_loop_says_so_and_takes_its_batch_from_littles_law() -> None:
    (step,) = bring("vllm_bench_0_6_open_loop.json")
    assert "open loop, 4 requests/s" in step.note and "2 requests failed" in step.note
    assert step.number("batch") == round(460.8 * 0.0125)
    assert step.model == "Mistral-7B-v0.3", "folders of a machine stay behind"
    (step,) = bring("vllm_bench_0_6_open_loop.json", batch=5)
    assert step.number("batch") == 5 and "throughput" not in step.note


def test_variants_of_a_benchmark_result(tmp_path: Path) -> None:
    def one(**changes: Any) -> Record:
        return import_file(bench(tmp_path, **changes), None, GIVEN).records[0]

    assert one(median_tpot_ms=None).value == 11.5, "old files hold means only"
    assert "mean of the requests" in one(median_tpot_ms=None).note
    assert one(backend="sglang").engine == "sglang"
    assert one(num_prompts=8, completed=8, total_input_tokens=8192, total_output_tokens=1024).number("batch") == 8
    assert "all sent at once" in one(max_concurrency=None).note
    assert "open loop" in one(request_rate=3).note and "open loop" not in one(request_rate=float("inf")).note
    assert one(date="yesterday").date == ""

    def reasons(**changes: Any) -> str:
        found = import_file(bench(tmp_path, **changes), None, GIVEN)
        assert found.records == ()
        return " ".join(found.skipped)

    assert "no request was completed" in reasons(completed=0)
    assert "one token for each request" in reasons(total_output_tokens=160)
    assert "speculative" in reasons(spec_decode_acceptance_rate=71.0)
    assert "no time per output token" in reasons(mean_tpot_ms=None, median_tpot_ms=None)
    with pytest.raises(InputError, match="--batch"):
        import_file(bench(tmp_path, max_concurrency=None, output_throughput=0), None, GIVEN)


def test_appended_results_are_one_a_line(tmp_path: Path) -> None:
    path = tmp_path / "many.jsonl"
    lines = [(DATA / f"vllm_bench_{n}.json").read_text() for n in ("0_10", "0_19_alone", "0_6_open_loop")]
    path.write_text("".join(lines))
    assert len(import_file(path, None, GIVEN).records) == 4
    path.write_text("".join(lines)[:-40])
    with pytest.raises(InputError, match="line 3"):
        import_file(path, None, GIVEN)


# ---- llama-bench


def test_llama_bench_prompts_and_generations() -> None:
    found = import_file(DATA / "llama_bench_b5163.json", None, Given())
    prompt, step = found.records
    assert prompt.device == step.device == "rtx-4090", "named as its driver does"
    assert (prompt.kernel, prompt.value, prompt.unit, prompt.p10) == ("prefill", 59.5, "ms", 59.0)
    assert dict(prompt.shape) == {"batch": 1, "context": 1536, "prompt": 512}
    assert (step.kernel, step.value, step.dtype) == ("decode-step", 7.5, DType.FP16)
    assert dict(step.shape) == {"batch": 1, "context": 1024 + 64, "prompt": 1024, "output": 128}
    assert (prompt.model, prompt.weights, prompt.kv) == ("Qwen2.5-7B-Instruct-Q4_K_M.gguf", "q4_k_m", "fp16")
    assert (step.kv, step.engine, step.version, step.date) == ("q8_0/fp16", "llama.cpp", "b5163", "2026-03-04")
    assert "at most 20 layers" in step.note and "layers" not in prompt.note
    assert len(found.skipped) == 1 and "test 3: prompt and generation in one time" in found.skipped[0]


def test_variants_of_llama_bench(tmp_path: Path) -> None:
    whole = json.loads((DATA / "llama_bench_b5163.json").read_text())
    path = tmp_path / "bench.json"

    def one(device: str = "", **changes: Any) -> Any:
        path.write_text(json.dumps([whole[1] | changes]))
        return import_file(path, None, Given(device=device))

    assert one(samples_ns=None).records[0].value == 7.5 and one(samples_ns=[960000000]).records[0].p10 is None
    assert one(model_type="llama 8B all F32").records[0].weights == "fp32"
    assert one(model_type="llama 8B IQ4_XS - 4.25 bpw").records[0].weights == "iq4_xs"
    assert one(model_type="gpt-oss 20B MXFP4 MoE").records[0].weights == "mxfp4"
    assert one(model_type="llama 8B Q8_0").records[0].weights == "q8_0"
    assert one(model_type="?").records[0].weights == ""
    pair = one(gpu_info="NVIDIA GeForce RTX 4090, NVIDIA GeForce RTX 4090").records[0]
    assert pair.number("pp") == 2 and pair.device == "rtx-4090" and "split by layer" in pair.note
    assert (
        one(gpu_info="NVIDIA GeForce RTX 4090, NVIDIA GeForce RTX 4090", split_mode="row").records[0].number("tp") == 2
    )
    assert one("h200", gpu_info="NVIDIA GeForce RTX 3060").records[0].device == "h200"
    assert one(gpu_info="NVIDIA GeForce RTX 3060").records[0].device == "rtx-3060"
    for unclear, reason in (("NVIDIA GeForce GT 710", "--device"), ("NVIDIA GeForce RTX 3080", "rtx-3080-12gb")):
        with pytest.raises(InputError, match=reason):
            one(gpu_info=unclear)
    for changes, reason in (
        ({"n_gpu_layers": 0}, "no layer on the GPU"),
        ({"n_cpu_moe": 4}, "experts on the CPU"),
        ({"no_kv_offload": True}, "KV cache on the CPU"),
        ({"n_gen": 0}, "neither prompt nor generation"),
        ({"avg_ns": 0}, "no time"),
    ):
        found = one(**changes)
        assert found.records == () and reason in found.skipped[0]
    path.write_text("\n".join(json.dumps(entry) for entry in whole))
    assert len(import_file(path, None, Given()).records) == 2, "-o jsonl"


# ---- vLLM logs


def test_a_v1_log() -> None:
    (kv,) = bring("vllm_log_v1_0_19.log", weights="fp8")
    assert (kv.kernel, kv.value, kv.unit) == ("kv-tokens", 857856, "tokens")
    assert dict(kv.shape) == {"tp": 2, "context": 32768}
    assert (kv.model, kv.weights, kv.kv, kv.dtype, kv.version) == (
        "RedHatAI/Qwen3-32B-FP8-dynamic",
        "fp8",
        "fp8",
        DType.BF16,
        "0.19.0",
    )
    assert "memory utilization 0.92" in kv.note and "52.36 GiB" in kv.note and "compressed-tensors" in kv.note
    assert bring("vllm_log_v1_0_19.log")[0].weights == "", "the quantisation method alone names no width"


def test_v0_logs_count_blocks() -> None:
    (kv,) = bring("vllm_log_v0_7.log")
    assert kv.value == 4120 * 16 and "blocks of 16 tokens by the printed concurrency" in kv.note
    assert (kv.model, kv.dtype, kv.weights, kv.kv, kv.version) == ("Qwen/Qwen2.5-7B", "fp16", "fp16", "fp16", "0.7.2")
    (kv,) = bring("vllm_log_v0_6.log")
    assert kv.value == 6001 * 32, "the printed concurrency tells 32 tokens a block"
    assert kv.model == "meta-llama/Meta-Llama-3.1-8B-Instruct", "out of the cache folder's name"
    assert kv.number("tp") == 2 and "memory utilization 0.90" in kv.note
    assert bring("vllm_log_v0_6.log", block_size=8)[0].value == 6001 * 8
    assert bring("vllm_log_v1_0_7_dev.log")[0].value == 691 * 32


def test_replicas_count_once() -> None:
    found = import_file(DATA / "vllm_log_v1_data_parallel.log", None, GIVEN)
    assert [kv.value for kv in found.records] == [640016]
    assert "data parallel 2" in found.records[0].note and "DP1" in found.skipped[0]


def test_variants_of_logs(tmp_path: Path) -> None:
    path = tmp_path / "server.log"

    def one(text: str, **options: Any) -> Any:
        path.write_text(text)
        return import_file(path, Kind.VLLM_LOG, GIVEN._replace(**options))

    tokens = "GPU KV cache size: 100,000 tokens"
    kv = one(f"\x1b[32mINFO\x1b[0m {tokens}, Maximum concurrency for 1,000 tokens per request: 40.00x", model="m")
    assert kv.records[0].value == 100_000
    assert "the log itself says 40 requests of 1,000" in kv.records[0].note, "layers of several kinds"
    workers = "\n".join(tokens.replace("100,000", n) for n in ("100,016", "100,000", "100,016"))
    assert one(workers, model="m").records[0].value == 100_000, "the least of the workers"
    assert "assumed" in one("# GPU blocks: 10, # CPU blocks: 5", model="m").records[0].note
    assert one("# GPU blocks: 10\nargs: Namespace(block_size=64)", model="m").records[0].value == 640
    assert "no room" in one("# GPU blocks: 0, # CPU blocks: 5", model="m").skipped[0]
    config = (DATA / "vllm_log_v0_7.log").read_text().splitlines()[1]
    assert "stopped before" in one(config).skipped[0]
    assert one(f"{config}\n{tokens}\n'enable_expert_parallel': True").records[0].number("ep", 1) == 1, "of one device"
    two = one(f"{config}\n{tokens}\n{config.replace('7B', '3B')}\n{tokens.replace('100', '200')}").records
    assert [(r.model, r.value) for r in two] == [("Qwen/Qwen2.5-7B", 100_000), ("Qwen/Qwen2.5-3B", 200_000)]
    with pytest.raises(InputError, match="--model"):
        one(tokens)
    with pytest.raises(InputError, match="no line about the KV cache"):
        one("INFO hello")


def test_names_of_models() -> None:
    for seen, name in (
        ("Qwen/Qwen3-32B", "Qwen/Qwen3-32B"),
        ("/data/Qwen3-32B/", "Qwen3-32B"),
        ("C:\\models\\a.gguf", "a.gguf"),
        ("models/a.gguf", "a.gguf"),
        ("~/.cache/models--a--b-c/snapshots/1", "a/b-c"),
        ("llama", "llama"),
    ):
        assert model_of(GIVEN, seen, "f") == name


# ---- damage

HOSTILE = [
    b"",
    b"\x00" * 64,
    b"\xff\xfe" * 40,
    b"{}",
    b"[]",
    b"[1]",
    b"null",
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b'{"n_gen": 1, "n_prompt": ' + b"9" * 5000 + b"}",
    b'{"n_gen": 1, "n_prompt": ' + b"9" * 400 + b"}",
    b"x" * 10_000_000,
    b"GPU KV cache size: ," + b"9" * 10_000_000,
    b"Initializing a V1 LLM engine (v1) with config: " + b"a='" * 500_000,
]


@pytest.mark.parametrize("kind", [None, *Kind], ids=str)
def test_files_that_are_none(kind: Kind | None, tmp_path: Path) -> None:
    path = tmp_path / "file"
    for raw in HOSTILE:
        path.write_bytes(raw)
        try:
            assert import_file(path, kind, GIVEN._replace(model="m")).records == ()
        except InputError as error:
            line = str(error)
            assert line.isprintable() and str(path) in line and len(line) < 2500
    for other in (tmp_path, tmp_path / "none", path / "below"):
        with pytest.raises(InputError):
            import_file(other, kind, GIVEN)


def test_truncated_json_gets_one_line(tmp_path: Path) -> None:
    path = tmp_path / "cut.json"
    for name in ("llama_bench_b5163.json", "vllm_bench_0_10.json"):
        raw = (DATA / name).read_bytes().rstrip()
        for at in range(1, len(raw), 97):
            path.write_bytes(raw[:at])
            with pytest.raises(InputError, match="not valid JSON"):
                import_file(path, None, GIVEN)


@pytest.mark.parametrize("name", sorted(p.name for p in DATA.iterdir()))
def test_damaged_values_give_readable_records_or_one_line(name: str, tmp_path: Path) -> None:
    rng, path, out = random.Random(name), tmp_path / "file", tmp_path / "mine.csv"
    whole, outcomes = (DATA / name).read_bytes(), {True: 0, False: 0}
    for _ in range(400):
        raw = bytearray(whole)
        for _ in range(rng.choice((1, 2, 5))):
            at = rng.randrange(len(raw))
            junk = rng.choice(
                (b"0", b"-1", b"NaN", b"1e999", b"null", b"[]", b"\x00", b"\xff", b'"', b"9" * 30, b",", b".")
            )
            raw[at : at + rng.randrange(3)] = junk
        path.write_bytes(raw)
        try:
            found = import_file(path, None, GIVEN._replace(model="m"))
            if found.records:
                records.write(out, found.records)
                assert records.read(out) == found.records
            outcomes[True] += 1
        except RoofplanError as error:
            assert str(error).isprintable() and len(str(error)) < 2500
            outcomes[False] += 1
    assert outcomes[True] > 20, outcomes


# ---- the command


def test_the_command_repeats_what_it_does_not_load() -> None:
    assert [s.value for s in commands.Source] == [k.value for k in Kind]
    assert commands.MAX_TEXT == records.MAX_TEXT


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.run(["records", "import", *arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_import_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "mine.csv"
    options = ("--device", "H200", "--version", "0.10.2", "--tp", "2", "--weights", "fp8", "--out", str(out))
    first, log = str(DATA / "vllm_bench_0_10.json"), str(DATA / "vllm_log_v1_0_19.log")
    code, shown, err = run(capsys, first, *options)
    assert (code, err) == (0, "") and "11.25 ms" in shown and "left out" in shown and "1 new" in shown
    assert records.read(out)[0].device == "h200"
    code, _, err = run(capsys, log, *options)
    assert code == ExitCode.BAD_INPUT and "--append" in err
    code, shown, err = run(capsys, log, *options, "--append", "--json")
    report = json.loads(shown)
    jsonschema.validate(report, json.loads(contract.schema_text()))
    assert (code, err, report["answer"]["records_in_file"]) == (0, "", 2)
    assert report["answer"]["rows"][0]["kernel"] == "kv-tokens"
    code, shown, _ = run(capsys, log, *options, "--append")
    assert code == 0 and "already there" in shown and len(records.read(out)) == 2
    assert lint(out) == [], "what was brought in passes"


BAD = [
    (["--device", "h2000"], "did you mean h200"),
    (["--device", "h200", "--from", "sglang"], "vllm-bench"),
    (["--device", "h200", "--tp", "0"], "--tp"),
    (["--device", "h200", "--tp", "two"], "--tp"),
    (["--device", "h200", "--dtype", "bf61"], "did you mean bf16"),
    (["--device", "h200", "--date", "4/3/2026"], "2026-11-21"),
    (["--device", "h200", "--from", "vllm-log"], "no line about the KV cache"),
    (["--device", "h200", "--from", "llama-bench"], "n_prompt"),
    (["--device", "h200", "--weights", "fp\x1b8"], "--weights"),
    ([], "--device"),
]


@pytest.mark.parametrize(("options", "teaches"), BAD, ids=[" ".join(b[0]) for b in BAD])
def test_bad_options_get_one_line_and_write_nothing(
    options: list[str], teaches: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mine.csv"
    code, shown, err = run(capsys, str(DATA / "vllm_bench_0_10.json"), "--out", str(out), *options)
    assert (code, shown, err.count("\n")) == (ExitCode.BAD_INPUT, "", 1)
    assert teaches in err
    assert not out.exists()


def test_an_import_that_brings_nothing_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = bench(tmp_path, completed=0)
    code, _, err = run(capsys, str(path), "--device", "h200", "--out", str(tmp_path / "mine.csv"))
    assert code == ExitCode.BAD_INPUT and "no request was completed" in err
