"""Serving measurements: what a record means, which rows are comparable, and what is held out."""

from collections import Counter

import pytest

from roofplan.calibrate import serving_rows
from roofplan.calibrate.serving_rows import RULES, ServingRow, Source, judged, load, neighbours, row_of, summary
from roofplan.dtypes import DType
from roofplan.errors import InputError, UnknownNameError

ROWS = load()
PLAIN = ServingRow(
    id="a",
    device="h200",
    engine="vllm",
    version="0.18.0",
    model="gpt-oss-120b",
    weights="mxfp4",
    kv=DType.BF16,
    tp=4,
    ep=1,
    attention_dp=1,
    pp=1,
    concurrency=16,
    isl=1024,
    osl=1024,
    mean_length=0.9,
    ttft_s=0.1,
    tpot_s=0.01,
    date="2026-03-27",
    source=Source.INFERENCEX,
)
DEEPSEEK = PLAIN._replace(model="deepseek-r1", engine="trtllm", tp=8, ep=8, date="2026-01-14")
RECORD = {
    "id": "2026_04_06_gpt_oss_120b_h200_sxm_vllm_fp4_agg_1024x1024_c16_tp4_ep1_7",
    "silicon_data_source": "source_file=2026-04-06.csv; silicon_concurrency=16; measured=2026-03-27T07:59:49Z",
    "backend": "vllm",
    "backend_version": "0.18.0",
    "model_path": "openai/gpt-oss-120b",
    "system": "h200_sxm",
    "isl": "1024",
    "osl": "8192",
    "gemm_quant_mode": "nvfp4",
    "batch_size": "16",
    "tp_size": "4",
    "pp_size": "1",
    "attention_dp_size": "1",
    "moe_tp_size": "4",
    "moe_ep_size": "1",
    "silicon_ttft_ms": "120.5",
    "silicon_tpot_ms": "8.25",
}
GAP = "source_file=/x/aic-auto-gap-analysis/data/h100_sxm/trtllm/1.0.0rc3/m.csv; silicon_concurrency=8"


def read(device: str = "h200", **changes: str) -> ServingRow:
    return row_of(RECORD | changes, device)


def excluded(*rows: ServingRow) -> list[str | None]:
    return [row.exclusion for row in judged(rows)]


# ---- the file


def test_counts() -> None:
    assert len(ROWS) == len({row.id for row in ROWS}) == 1518
    assert Counter(row.exclusion for row in ROWS) == {
        None: 1186,
        "unknown_load": 132,
        "repeated": 123,
        "unlabelled_speculation": 43,
        "too_many_clients": 32,
        "out_of_order": 2,
    }


def test_the_counts_of_the_design_note_follow_from_its_coarser_rule() -> None:
    def coarse(row: ServingRow) -> bool:
        cut_deepseek = row.model.startswith("deepseek") and row.engine == "trtllm" and row.ep > 1
        return row.concurrency > 256 or cut_deepseek or (row.source is Source.GAP_ANALYSIS and row.isl % 1000 == 0)

    assert sum(not coarse(row) for row in ROWS) == 1296
    back = [row for row in ROWS if coarse(row) and row.exclusion is None]
    assert {(row.model, row.engine, row.ep, row.date) for row in back} == {("deepseek-r1", "trtllm", 8, "2025-12-15")}
    assert len(back) == 15  # 1296 + 15 - 123 repeated - 2 out of order = 1186


def test_the_order_is_that_of_the_file_and_of_no_other_device() -> None:
    assert [row.id for row in load()] == [row.id for row in ROWS]
    assert load(("h200",)) == [row for row in ROWS if row.device == "h200"]
    assert load(("h100-sxm",)) + load(("h200",)) != ROWS and len(load(("h100-sxm",)) + load(("h200",))) == len(ROWS)


def test_every_row_makes_sense() -> None:
    for row in ROWS:
        assert row.engine in ("vllm", "trtllm", "sglang")
        assert row.weights in ("bf16", "fp8", "fp8-block", "int4", "mxfp4") and row.kv in (DType.BF16, DType.FP8)
        assert row.devices in (1, 2, 4, 8) and row.devices % row.ep == 0 and row.pp == 1
        assert 0 < row.tpot_s < 1 and 0 < row.ttft_s < 500 and row.concurrency >= 1
        assert row.mean_length == (0.9 if row.source is Source.INFERENCEX else 1.0)
        assert row.source is Source.GAP_ANALYSIS or {row.isl, row.osl} <= {1024, 8192}


def test_speculation_is_told_by_date_because_the_rows_before_do_not_speculate() -> None:
    """With and without expert parallelism the rows of 2025 agree; those of 2026-01-14 take 0.5 to 0.85 of the time."""
    few = [
        r for r in ROWS if r.model == "deepseek-r1" and r.engine == "trtllm" and r.concurrency == 4 and r.osl == 8192
    ]
    before = [r.tpot_s for r in few if r.date < serving_rows.SPECULATION_SINCE]
    since = [r.tpot_s for r in few if r.date >= serving_rows.SPECULATION_SINCE]
    assert max(before) < 1.01 * min(before) and max(since) < 0.6 * min(before)


@pytest.mark.parametrize("device", serving_rows.HELD_OUT)
def test_the_form_hold_out_is_refused(device: str) -> None:
    with pytest.raises(InputError, match="held out"):
        load(("h200", device))


def test_the_form_hold_out_opens_on_request_only() -> None:
    assert set(serving_rows.HELD_OUT) < set(serving_rows.DEVICES)
    assert {row.device for row in load(("gb200",), held_out=True)} == {"gb200"}


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="h100-sxm"):
        load(("h100",))


# ---- corrections


def test_a_plain_record() -> None:
    row = read()
    assert row == PLAIN._replace(id=row.id, osl=8192, ttft_s=row.ttft_s, tpot_s=row.tpot_s)
    assert (row.ttft_s, row.tpot_s) == pytest.approx((0.1205, 0.00825))


def test_concurrency_is_that_of_the_source() -> None:
    assert read(batch_size="4").concurrency == 16
    assert read(silicon_data_source="measured=2026-01-23", batch_size="28.0").concurrency == 28


@pytest.mark.parametrize(
    ("tail", "columns", "expected"),
    [
        ("tp8_ep8_11", ("64", "1", "8", "8"), (8, 8, 1)),
        ("tp8_ep8_11", ("1", "64", "8", "8"), (1, 8, 8)),
        ("tp8_0_ep8_0_1254", ("1", "8", "1", "8"), (1, 8, 8)),
        ("tp4_ep4_1322", ("4", "4", "1", "16"), (4, 4, 1)),
        ("tp4_0_ep4_0_232", ("4", "1", "1", "4"), (4, 4, 1)),
        ("cfg181", ("64", "1", "8", "8"), (8, 8, 1)),
        ("cfg183", ("1", "64", "8", "8"), (1, 8, 8)),
        ("cfg635", ("4", "4", "1", "16"), (4, 4, 1)),
        ("cfg606", ("4", "1", "4", "1"), (4, 1, 1)),
        ("tp4_epnone_9", ("4", "", "1", "4"), (4, 4, 1)),
        ("tp1_epnone_9", ("1", "", "4", "1"), (1, 1, 4)),
        ("tp2_epnone_9", ("2", "", "1", "0"), (2, 1, 1)),
        ("tp8_0_epnone_1", ("8.0", "", "0", "0"), (8, 1, 1)),
    ],
)
def test_layouts(tail: str, columns: tuple[str, ...], expected: tuple[int, int, int]) -> None:
    names = ("tp_size", "attention_dp_size", "moe_tp_size", "moe_ep_size")
    row = read(id=f"m_h200_trtllm_fp8_agg_1024x1024_c16_{tail}", **dict(zip(names, columns, strict=True)))
    assert (row.tp, row.ep, row.attention_dp) == expected


@pytest.mark.parametrize(
    ("path", "mode", "model", "weights"),
    [
        ("Qwen/Qwen3-32B", "", "qwen3-32b", "bf16"),
        ("Qwen/Qwen3-32B", "fp8", "qwen3-32b", "fp8"),
        ("Qwen/Qwen3-235B-A22B-FP8", "fp8", "qwen3-235b-a22b", "fp8-block"),
        ("MiniMaxAI/MiniMax-M2.5", "fp8", "minimax-m2.5", "fp8-block"),
        ("deepseek-ai/DeepSeek-R1", "fp8", "deepseek-r1", "fp8-block"),
        ("deepseek-ai/DeepSeek-R1", "nvfp4", "deepseek-r1", "nvfp4"),
        ("meta-llama/Llama-3.1-8B-Instruct", "fp8_block", "llama-3.1-8b", "fp8-block"),
        ("nvidia/Llama-3.1-8B-Instruct-FP8", "fp8", "llama-3.1-8b", "fp8"),
        ("moonshotai/Kimi-K2.5", "int4_wo", "kimi-k2.5", "int4"),
        ("openai/gpt-oss-120b", "nvfp4", "gpt-oss-120b", "mxfp4"),
        ("openai/gpt-oss-120b", "fp8", "gpt-oss-120b", "mxfp4"),
    ],
)
def test_models_and_weights(path: str, mode: str, model: str, weights: str) -> None:
    row = read(model_path=path, gemm_quant_mode=mode)
    assert (row.model, row.weights) == (model, weights)


def test_dsr1_is_deepseek_r1() -> None:
    assert (
        read(id="dsr1_h200_trtllm_fp8_agg_1024x1024_c4_cfg83", model_path="deepseek-ai/DeepSeek-V3").model
        == "deepseek-r1"
    )
    assert "deepseek-v3" not in {row.model for row in ROWS}


@pytest.mark.parametrize(
    ("engine", "path", "mode", "source", "kv"),
    [
        ("vllm", "meta-llama/Llama-3.1-70B", "fp8", "", DType.FP8),
        ("trtllm", "meta-llama/Llama-3.1-70B", "fp8", "", DType.FP8),
        ("trtllm", "deepseek-ai/DeepSeek-R1", "fp8", "", DType.FP8),
        ("sglang", "deepseek-ai/DeepSeek-R1", "fp8", "", DType.BF16),
        ("trtllm", "openai/gpt-oss-120b", "nvfp4", "", DType.BF16),
        ("vllm", "MiniMaxAI/MiniMax-M2.5", "fp8", "", DType.BF16),
        ("trtllm", "Qwen/Qwen3-32B", "fp8", GAP, DType.FP8),
        ("trtllm", "meta-llama/Llama-3.1-8B-Instruct", "", GAP, DType.BF16),
        ("vllm", "Qwen/Qwen3-32B", "", GAP, DType.BF16),
    ],
)
def test_kv_formats(engine: str, path: str, mode: str, source: str, kv: DType) -> None:
    row = read(backend=engine, model_path=path, gemm_quant_mode=mode, silicon_data_source=source)
    assert row.kv is kv
    assert row.source is (Source.GAP_ANALYSIS if source else Source.INFERENCEX)
    assert row.mean_length == (1.0 if source else 0.9)


def test_kv_format_of_devices_whose_recipes_were_not_read() -> None:
    assert read("b200", backend="trtllm").kv is DType.FP8 and read("b200").kv is DType.BF16


# ---- rules, each with a row that breaks it and one that just does not


def test_every_rule_states_its_reason_and_takes_rows_out() -> None:
    assert {rule.__name__ for rule in RULES} == {row.exclusion for row in ROWS} - {None}
    assert all(rule.__doc__ for rule in RULES)


def test_a_plain_row_is_comparable() -> None:
    assert excluded(PLAIN) == [None]


def test_too_many_clients() -> None:
    assert excluded(PLAIN._replace(concurrency=256), PLAIN._replace(concurrency=257)) == [None, "too_many_clients"]


def test_unlabelled_speculation() -> None:
    other = {"tpot_s": 0.02}
    assert excluded(DEEPSEEK) == ["unlabelled_speculation"]
    assert excluded(DEEPSEEK._replace(date="2025-12-15", **other)) == [None]
    assert excluded(DEEPSEEK._replace(engine="sglang", **other)) == [None]
    assert excluded(DEEPSEEK._replace(model="gpt-oss-120b", **other)) == [None]


def test_unknown_load() -> None:
    gap = PLAIN._replace(source=Source.GAP_ANALYSIS)
    assert excluded(gap._replace(isl=4000)) == ["unknown_load"]
    assert excluded(gap, PLAIN._replace(isl=4000)) == [None, None]


def test_repeated() -> None:
    rounded = PLAIN._replace(id="b", version="", ttft_s=0.1 + 4e-6, tpot_s=0.01 - 4e-6)
    assert excluded(PLAIN, rounded) == [None, "repeated"]
    assert excluded(PLAIN, rounded._replace(ttft_s=0.101)) == [None, None], "measured again"
    assert excluded(PLAIN, rounded._replace(concurrency=32)) == [None, None]


def test_out_of_order() -> None:
    def after(seconds: float, **changes: object) -> ServingRow:
        return PLAIN._replace(id="b", concurrency=32, tpot_s=seconds, **changes)

    assert excluded(PLAIN, after(0.0079)) == ["out_of_order", None]
    assert excluded(PLAIN, after(0.0081)) == [None, None]
    assert excluded(PLAIN, after(0.0079, date="2026-03-28")) == [None, None], "another run"


def test_the_first_broken_rule_is_named() -> None:
    assert excluded(DEEPSEEK._replace(concurrency=512)) == ["too_many_clients"]


# ---- pairs and the table


def test_neighbours_of_the_file() -> None:
    found = neighbours(ROWS)
    assert (len(found.concurrency), len(found.layout)) == (926, 679)
    for a, b in found.concurrency:
        assert a.concurrency < b.concurrency and serving_rows.run(a) == serving_rows.run(b)
    for a, b in found.layout:
        assert a.tp < b.tp and a.concurrency == b.concurrency and (a.ep > 1) == (b.ep > 1)
    assert all(row.exclusion is None for pair in (*found.concurrency, *found.layout) for row in pair)


def test_neighbours_are_consecutive_and_comparable() -> None:
    rows = [PLAIN._replace(id=str(c), concurrency=c, tpot_s=c * 1e-3) for c in (64, 16, 32)]
    rows += [PLAIN._replace(id="tp8", tp=8, tpot_s=9e-3), PLAIN._replace(id="ep", tp=8, ep=8, tpot_s=8e-3)]
    rows += [PLAIN._replace(id="far", concurrency=512, tpot_s=2.0)]
    found = neighbours(judged(rows))
    assert [(a.id, b.id) for a, b in found.concurrency] == [("16", "32"), ("32", "64")]
    assert [(a.id, b.id) for a, b in found.layout] == [("16", "tp8")]


def test_summary() -> None:
    lines = summary(ROWS).splitlines()
    assert lines[0].split() == ["model", "engine", "device", "version", "rows", "comparable"]
    assert "llama-3.1-70b    trtllm  h200      -                  72         72" in lines
    assert lines[-len(RULES) - 1].split() == ["all", "1518", "1186"]
    assert lines[-1] == "out_of_order: 2"
