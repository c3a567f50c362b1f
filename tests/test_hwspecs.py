"""Hardware files: every bundled number is sourced and consistent, every check catches the mistake it is for."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import pytest

from roofplan.dtypes import DType
from roofplan.errors import InputError, RoofplanError, UnknownNameError
from roofplan.hwspecs import lint as checks
from roofplan.hwspecs import load
from roofplan.hwspecs.device import Cluster, Device, Fact, Host, Kind, Link, Part, Source, attributes
from roofplan.hwspecs.lint import CHECKS, MIN_SOURCED_NUMBERS, Finding, facts_of, lint

PARTS = [(part, name) for part in (Device, Host, Link, Cluster) for name in load.names(part)]


def ids(value: object) -> str:
    return value if isinstance(value, str) else value.__name__.lower()  # type: ignore[attr-defined]


# ---- what is bundled


@pytest.mark.parametrize(("part", "name"), PARTS, ids=ids)
def test_bundled_files_load_and_are_clean(part: type[Part], name: str) -> None:
    loaded = load.load(part, name)
    assert (loaded.key, Path(loaded.file)) == (name, load.path_of(part, name))
    assert lint(loaded) == []
    numbers = dict(facts_of(loaded))
    assert all(fact.source in loaded.sources for fact in numbers.values()) and len(loaded.sources) >= 1
    assert all(s.title.strip() and s.publisher.strip() and s.where.strip() for s in loaded.sources.values())
    stated = Path(loaded.file).read_text(encoding="utf-8").count("value =")
    assert len(numbers) == stated, "facts_of must see every number of the file"
    if part is Device:
        assert sum(f.kind is not Kind.ASSUMED for f in numbers.values()) >= MIN_SOURCED_NUMBERS
        assert load.load_fleet(name).device is loaded


MEASURED = ("a100-80gb", "b200", "h100-sxm", "h200", "l40s", "rtx-pro-6000")  # what the bundled calibrations rest on


@pytest.mark.parametrize("name", MEASURED)
def test_what_kernel_models_count_with_is_stated(name: str) -> None:
    """Waves need multiprocessors and their clock, residency the L2; the rates must follow from the first two."""
    device = load.load(Device, name)
    assert device.sm_count and device.clock_hz and device.l2_bytes
    assert DType.BF16 in device.flops_per_clock_per_sm and device.flops_per_clock_per_sm.keys() >= {
        d for d in device.peak_dense_flops_per_s if d in (DType.FP16, DType.FP8, DType.INT8, DType.FP4)
    }


def test_a_number_without_a_source_cannot_be_built() -> None:
    with pytest.raises(InputError, match="without a source"):
        Fact(1.0, "", Kind.DATASHEET)
    for value in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="positive, finite"):
            Fact(value, "x", Kind.DATASHEET)


def test_the_schema_table_covers_the_files() -> None:
    rows = {row.name: row for row in attributes(Device)}
    assert rows["capacity_bytes"].required and rows["capacity_bytes"].unit == "B"
    assert not rows["l2_bytes"].required and "ONE direction" in rows["interconnect_bytes_per_s"].meaning
    for part, name in PARTS:
        known = {row.name for row in attributes(part)} | {"schema", "sources"}
        assert set(load.read_toml(load.path_of(part, name))) <= known
        assert all(row.meaning and row.unit for row in attributes(part))


# ---- every check fires, alone, on the mistake it is for


def fact(value: float, like: Fact) -> Fact:
    return Fact(value, like.source, like.kind)


def times(part: Part, field: str, by: float, dtype: DType | None = None) -> Part:
    """The part with one number multiplied."""
    old = getattr(part, field)
    new = fact(old.value * by, old) if dtype is None else {**old, dtype: fact(old[dtype].value * by, old[dtype])}
    return dataclasses.replace(part, **{field: new})


def h100() -> Device:
    return load.load(Device, "h100-sxm")


def without(part: Device, *fields: str) -> Device:
    empty: Mapping[str, object] = {f: {} if f.startswith(("peak_", "flops_")) else None for f in fields}
    return dataclasses.replace(part, **empty)


def sparse_as_dense() -> Part:
    return times(without(h100(), "peak_sparse_flops_per_s"), "peak_dense_flops_per_s", 2, DType.FP8)


def sparse_copied_from_dense() -> Part:
    return times(h100(), "peak_sparse_flops_per_s", 0.5, DType.BF16)


def swapped_columns() -> Part:
    """int8 got the tf32 column of the table."""
    bare = without(h100(), "peak_sparse_flops_per_s")
    dense, ops = bare.peak_dense_flops_per_s, dict(bare.flops_per_clock_per_sm)
    del ops[DType.INT8]
    swapped = {**dense, DType.INT8: dense[DType.TF32]}
    return dataclasses.replace(bare, peak_dense_flops_per_s=swapped, flops_per_clock_per_sm=ops)


def foreign_source() -> Part:
    extra = {**h100().sources, "leftover": Source("datasheet of the file this was copied from", "x", "y")}
    return dataclasses.replace(h100(), sources=extra)


def guessed() -> Part:
    kept = ("capacity_bytes", "bandwidth_bytes_per_s", "sm_count", "clock_hz", "power_w")
    bare = without(
        h100(),
        *(f for f, v in vars(h100()).items() if isinstance(v, Fact) and f not in kept),
        "peak_sparse_flops_per_s",
    )
    one = {DType.BF16: h100().peak_dense_flops_per_s[DType.BF16]}
    bare = dataclasses.replace(bare, peak_dense_flops_per_s=one, flops_per_clock_per_sm={})
    cited = {f.source for _, f in facts_of(bare)}
    return dataclasses.replace(bare, sources={k: v for k, v in bare.sources.items() if k in cited})


MISTAKES = {
    "references_exist": [
        (lambda: dataclasses.replace(h100(), interconnect="nvlink44"), "nvlink44", "unknown link"),
        (lambda: dataclasses.replace(h100(), host_link="isa"), "isa", "unknown link"),
        (lambda: dataclasses.replace(load.load(Cluster, "8xh200"), host="dgx"), "dgx", "unknown host"),
        (lambda: dataclasses.replace(load.load(Cluster, "8xh200"), device="h2000"), "h2000", "unknown device"),
    ],
    "peak_is_sm_times_clock_times_ops": [
        (sparse_as_dense, "peak_dense_flops_per_s.fp8", "a sparse rate used as dense"),
        (
            lambda: times(h100(), "flops_per_clock_per_sm", 0.9, DType.TF32),
            "peak_dense_flops_per_s.tf32",
            "SMs x clock",
        ),
    ],
    "sparse_is_twice_dense": [(sparse_copied_from_dense, "peak_sparse_flops_per_s.bf16", "is not twice dense")],
    "bandwidth_is_bus_times_rate": [
        (lambda: times(h100(), "bandwidth_bytes_per_s", 3.0 / 3.35), "bandwidth_bytes_per_s", "bus x rate"),
        (lambda: times(h100(), "memory_bits_per_s_per_pin", 0.5), "bandwidth_bytes_per_s", "bus x rate"),
    ],
    "capacity_is_gb_not_gib": [
        (lambda: times(h100(), "capacity_bytes", 2**30 / 1e9), "capacity_bytes", "GB for GiB"),
        (lambda: times(h100(), "capacity_bytes", 2), "capacity_bytes", "per-package"),
        (lambda: times(h100(), "capacity_bytes", 0.5), "capacity_bytes", "GB for GiB"),
    ],
    "interconnect_is_one_direction": [
        (lambda: times(h100(), "interconnect_bytes_per_s", 2), "interconnect_bytes_per_s", "both directions"),
        (lambda: times(h100(), "interconnect_bytes_per_s", 1 / 18), "interconnect_bytes_per_s", "times what nvlink4"),
    ],
    "narrower_formats_are_not_slower": [(swapped_columns, "peak_dense_flops_per_s.int8", "slower than bf16")],
    "accumulation_is_stated": [(lambda: dataclasses.replace(h100(), accumulate=""), "accumulate", "not stated")],
    "link_is_lanes_times_rate": [
        (lambda: times(load.load(Link, "pcie4-x16"), "lanes", 0.5), "bandwidth_bytes_per_s", "rate x lanes"),
        (lambda: times(load.load(Link, "pcie4-x16"), "bandwidth_bytes_per_s", 2), "bandwidth_bytes_per_s", "lanes"),
    ],
    "host_bandwidth_is_channels_times_rate": [
        (
            lambda: times(load.load(Host, "dgx-h200"), "memory_channels", 0.5),
            "memory_bandwidth_bytes_per_s",
            "channels",
        ),
    ],
    "sources_are_used": [(foreign_source, "sources.leftover", "no number cites")],
    "enough_sourced_numbers": [(guessed, "*", f"at least {MIN_SOURCED_NUMBERS} wanted")],
}


@pytest.mark.parametrize(
    ("check", "mistake", "key", "words"),
    [(check, *case) for check, cases in MISTAKES.items() for case in cases],
    ids=lambda v: v if isinstance(v, str) and v in MISTAKES else "",
)
def test_each_check_finds_its_mistake_and_nothing_else_does(check: str, mistake, key: str, words: str) -> None:
    part = mistake()
    (finding,) = lint(part)
    assert finding == next(iter(getattr(checks, check)(part)))
    assert isinstance(finding, Finding) and finding.file == part.file and finding.key == key
    assert words in finding.problem


def test_no_check_is_untested() -> None:
    assert {check.__name__ for check in CHECKS} == set(MISTAKES)
    assert all(check.__doc__ for check in CHECKS)


def test_both_directions_are_found_on_a_pcie_card_too() -> None:
    card = load.load(Device, "rtx-4090")
    link = load.load(Link, card.interconnect).bandwidth_bytes_per_s.value
    summed = dataclasses.replace(card, interconnect_bytes_per_s=fact(2 * link, card.bandwidth_bytes_per_s))
    assert ["both directions" in f.problem for f in lint(summed)] == [True]


# ---- names


@pytest.mark.parametrize(
    ("part", "name", "hint"),
    [
        (Device, "h1000", "h100-sxm"),
        (Device, "rtx-4900", "rtx-4090"),
        (Link, "nvlink", "nvlink4"),
        (Host, "dgx", "dgx-h200"),
        (Cluster, "8xh100", "8xh200"),
    ],
)
def test_unknown_names_get_did_you_mean(part: type[Part], name: str, hint: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        load.load(part, name)
    assert "did you mean" in str(caught.value) and hint in str(caught.value) and "roofplan hw list" in str(caught.value)


SPELLINGS = {"H200": "h200", "h200 ": "h200", "RTX_4090": "rtx-4090", "rtx 4090": "rtx-4090", "RTX4090": "rtx-4090"}
SHORT = {
    "v100": "v100-16gb",
    "gh200": "gh200-96gb",
    "7900xtx": "rx-7900-xtx",
    "4090": "rtx-4090",
    "h100": "h100-sxm",
    "a100": "a100-80gb",
    "L40S": "l40s",
    "RTX PRO 6000": "rtx-pro-6000",
}


@pytest.mark.parametrize(("spelling", "key"), [*SPELLINGS.items(), *SHORT.items()])
def test_spellings_of_names(spelling: str, key: str) -> None:
    assert load.load(Device, spelling).key == key


# ---- counts


@pytest.mark.parametrize(
    ("name", "count", "device", "host"),
    [
        ("h200", 1, "h200", None),
        ("2xh100-sxm", 2, "h100-sxm", "dgx-h200"),
        ("8xH200", 8, "h200", "dgx-h200"),
        ("8xh100-sxm", 8, "h100-sxm", "dgx-h200"),
        ("8xb200", 8, "b200", "dgx-b200"),
        ("2xl40s", 2, "l40s", None),
        ("8xrtx-pro-6000", 8, "rtx-pro-6000", None),
        ("4xrtx-4090", 4, "rtx-4090", None),
        ("8xrtx-4090", 8, "rtx-4090", None),
        ("1xrtx-4090", 1, "rtx-4090", None),
    ],
)
def test_fleets(name: str, count: int, device: str, host: str | None) -> None:
    fleet = load.load_fleet(name)
    assert (fleet.count, fleet.device.key, fleet.host and fleet.host.key) == (count, device, host)
    assert fleet.host_memory_bytes == (None if host is None else fleet.host.memory_bytes.value)  # type: ignore[union-attr]
    assert load.load_fleet(fleet.label).count == count
    assert fleet.usable_bytes() == fleet.device.capacity_bytes.value
    assert load.load_fleet(name, host="desktop-ddr5").host.key == "desktop-ddr5"  # type: ignore[union-attr]
    assert load.load_fleet(name, host_memory_bytes=5e9).host_memory_bytes == 5e9


@pytest.mark.parametrize("name", ["0xh200", "99999xh200", "9xh200", "999999999xh200"])
def test_absurd_counts(name: str) -> None:
    with pytest.raises(InputError, match="between 1 and 8"):
        load.load_fleet(name)


@pytest.mark.parametrize(
    "name", ["0x", "x", "2x", "xh200", "-1xh200", "1.5xh200", "2x2xh200", "", "2 h200s", "2x" + "y" * 5000]
)
def test_what_is_no_count(name: str) -> None:
    with pytest.raises(UnknownNameError, match="unknown device"):
        load.load_fleet(name)


# ---- a user's own file


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(load.path_of(Device, "rtx-4090").read_text(encoding="utf-8"), encoding="utf-8")
    return path


def edit(path: Path, old: str, new: str) -> Path:
    text = path.read_text(encoding="utf-8")
    assert text.count(old) >= 1
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    return path


def test_a_users_file_in_place_of_a_name(mine: Path) -> None:
    fleet = load.load_fleet(f"2x{mine}")
    assert (fleet.count, fleet.device.key, fleet.device.file) == (2, "mine", str(mine))
    edit(mine, "1008e9", "500e9")
    assert load.load_fleet(str(mine)).device.bandwidth_bytes_per_s.value == 500e9, "user files are never cached"
    with pytest.raises(InputError, match="no such file"):
        load.load_fleet("2xnowhere.toml")


LINE = "l2_bytes = { value = 75497472, source = "
BROKEN = [
    ("schema = 1", "schema = 2", "schema", "must be 1"),
    ("schema = 1\n", "", "schema", "must be 1"),
    ("capacity_bytes =", "#", "capacity_bytes", "missing: memory the driver reports"),
    ("[peak_dense_flops_per_s]", "[peak_sparse_flops]", "peak_sparse_flops", "unknown key"),
    ("l2_bytes =", "l2_byte =", "l2_byte", "did you mean l2_bytes"),
    (LINE, 'l2_bytes = { value = "75 MB", source = ', "l2_bytes", "value must be a number"),
    (LINE, "l2_bytes = { value = true, source = ", "l2_bytes", "value must be a number"),
    (LINE, "l2_bytes = { value = nan, source = ", "l2_bytes", "positive, finite"),
    (LINE, "l2_bytes = { value = inf, source = ", "l2_bytes", "positive, finite"),
    (LINE, "l2_bytes = { value = -5, source = ", "l2_bytes", "positive, finite"),
    (LINE, "l2_bytes = { value = 0, source = ", "l2_bytes", "positive, finite"),
    (LINE, f"l2_bytes = {{ value = 0x{'f' * 6000}, source = ", "l2_bytes", "positive, finite"),
    (LINE, "l2_bytes = { source = ", "l2_bytes", "needs value, source and kind"),
    (LINE, "l2_bytes = { unit = 1, value = 1, source = ", "l2_bytes", "needs value, source and kind"),
    (LINE + '"nvbench"', LINE + '"wikipedia"', "l2_bytes", "source is not in the file's [sources]"),
    (LINE + '"nvbench", kind = "datasheet"', LINE + '"nvbench", kind = "guess"', "l2_bytes", "kind must be one of"),
    ('vendor = "nvidia"', "vendor = 7", "vendor", "short text"),
    ('vendor = "nvidia"', 'vendor = " "', "vendor", "short text"),
    ('vendor = "nvidia"', 'vendor = "nvidia"\nunified_memory = 1', "unified_memory", "true or false"),
    ("\nfp8 = ", "\nfp7 = ", "fp7", "unknown number format"),
    ("[sources]", "[source]", "sources", "missing"),
    ('publisher = "NVIDIA"', 'author = "NVIDIA"', "sources.whitepaper", "a source is"),
    ("schema = 1", "schema = = 1", "", "not valid TOML"),
    ("schema = 1", "schema = 1\nschema = 1", "", "not valid TOML"),
]


@pytest.mark.parametrize(("old", "new", "key", "words"), BROKEN)
def test_broken_files_are_named_with_file_and_key(mine: Path, old: str, new: str, key: str, words: str) -> None:
    edit(mine, old, new)
    with pytest.raises(InputError) as caught:
        load.load(Device, str(mine))
    line = str(caught.value)
    assert str(mine) in line and key in line and words in line and line.isprintable()
    assert len(line) < 700


def test_references_of_a_users_file_are_checked_with_its_name(mine: Path) -> None:
    edit(mine, 'interconnect = "pcie4-x16"', 'interconnect = "pcie4-x17"')
    with pytest.raises(RoofplanError) as caught:
        load.load_fleet(str(mine))
    assert str(mine) in str(caught.value) and "interconnect" in str(caught.value) and "pcie4-x" in str(caught.value)


def test_peak_rates_fall_back_to_what_the_device_computes() -> None:
    a100 = load.load(Device, "a100-80gb")
    assert not a100.computes(DType.FP8) and a100.peak_flops_per_s(DType.FP8) is a100.peak_dense_flops_per_s[DType.BF16]
    assert a100.peak_flops_per_s(DType.INT8).value > a100.peak_flops_per_s(DType.BF16).value
    with pytest.raises(InputError, match="no rate to compute in"):
        dataclasses.replace(a100, peak_dense_flops_per_s={}).peak_flops_per_s(DType.BF16)
    only_bf16 = {DType.BF16: a100.peak_dense_flops_per_s[DType.BF16]}
    with pytest.raises(InputError, match="fp32"):  # a wide format never takes the rate of a narrower one
        dataclasses.replace(a100, peak_dense_flops_per_s=only_bf16).peak_flops_per_s(DType.FP32)
