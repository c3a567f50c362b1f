"""Hardware files: every bundled number is sourced and consistent, every check catches the mistake it is for."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import pytest

from roofplan.dtypes import DType
from roofplan.errors import InputError, RoofplanError, UnknownNameError
from roofplan.hwspecs import load
from roofplan.hwspecs.device import Cluster, Device, Fact, Host, Kind, Link, Part, Source, Storage, attributes
from roofplan.hwspecs.lint import CHECKS, MIN_SOURCED_NUMBERS, STAGES, Finding, facts_of, lint, notes
from roofplan.hwspecs.lint.plausible import RANGES

PARTS = [(part, name) for part in (Device, Host, Link, Storage, Cluster) for name in load.names(part)]


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
    return cleaned(bare)


def cleaned(part: Device) -> Device:
    """The device without sources that nothing cites any more."""
    cited = {f.source for _, f in facts_of(part)}
    return dataclasses.replace(part, sources={k: v for k, v in part.sources.items() if k in cited})


def all_times(part: Device, by: float, *fields: str) -> Device:
    """The device with numbers or whole tables of numbers multiplied."""
    for field in fields:
        old = getattr(part, field)
        new = fact(old.value * by, old) if isinstance(old, Fact) else {k: fact(v.value * by, v) for k, v in old.items()}
        part = dataclasses.replace(part, **{field: new})
    return part


def both_dies() -> Part:
    """The MI250X as its data sheet has it: two dies with twice everything."""
    rates = [f for f in ("peak_dense_flops_per_s", "peak_sparse_flops_per_s") if getattr(part_of("mi250x-gcd"), f)]
    return all_times(part_of("mi250x-gcd"), 2, "bandwidth_bytes_per_s", *rates)


def part_of(name: str) -> Device:
    return load.load(Device, name)


def full_rate_geforce() -> Part:
    """The RTX 4090 with the columns of fp16 accumulation, in every table."""
    card = part_of("rtx-4090")
    formats = (DType.FP16, DType.BF16, DType.FP8)
    for field in ("peak_dense_flops_per_s", "peak_sparse_flops_per_s", "flops_per_clock_per_sm"):
        for dtype in formats:
            card = times(card, field, 2, dtype)
    return card


def with_rate(name: str, dtype: DType, like: DType) -> Part:
    """The device with a format it does not have, at the rate of one it has."""
    part = part_of(name)
    rates = {**part.peak_dense_flops_per_s, dtype: part.peak_dense_flops_per_s[like]}
    return dataclasses.replace(part, peak_dense_flops_per_s=rates)


def stated(part: Part, field: str, value: float) -> Part:
    """The part with one number written as something else."""
    return dataclasses.replace(part, **{field: fact(value, getattr(part, field))})


def copied() -> Part:
    """A device that was started as a copy: one number changed, its source not."""
    return dataclasses.replace(times(h100(), "power_w", 0.5), key="h100-quiet", file="h100-quiet.toml")


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
            lambda: times(part_of("rtx-4090"), "flops_per_clock_per_sm", 0.9, DType.FP8),
            "peak_dense_flops_per_s.fp8",
            "SMs x clock",
        ),
    ],
    "sparse_is_twice_dense": [
        (sparse_copied_from_dense, "peak_sparse_flops_per_s.bf16", "one column for both"),
        (lambda: times(h100(), "peak_sparse_flops_per_s", 2, DType.FP8), "peak_sparse_flops_per_s.fp8", "not twice"),
    ],
    "figures_are_of_one_device": [(both_dies, "bandwidth_bytes_per_s", "a package of two")],
    "clock_is_the_one_of_the_rates": [
        (lambda: stated(part_of("rtx-4090"), "clock_hz", 2.235e9), "clock_hz", "rates are at 2.521 GHz: a base clock"),
        (lambda: stated(part_of("rtx-3090"), "clock_hz", 1.86e9), "clock_hz", "a card's own boost"),
    ],
    "consumer_cards_accumulate_at_half_rate": [
        (full_rate_geforce, "peak_dense_flops_per_s.fp16", "fp16, bf16, fp8: the rate with fp16 accumulation"),
    ],
    "formats_exist_on_the_architecture": [
        (lambda: with_rate("rtx-2080-ti", DType.BF16, DType.FP16), "peak_dense_flops_per_s.bf16", "turing has no"),
        (lambda: with_rate("v100-32gb", DType.TF32, DType.FP32), "peak_dense_flops_per_s.tf32", "volta has no"),
        (lambda: with_rate("a100-80gb", DType.FP8, DType.INT8), "peak_dense_flops_per_s.fp8", "ampere has no"),
        (lambda: with_rate("l40s", DType.FP4, DType.FP8), "peak_dense_flops_per_s.fp4", "ada has no"),
        (lambda: with_rate("mi210", DType.FP8, DType.INT8), "peak_dense_flops_per_s.fp8", "cdna2 has no"),
        (lambda: with_rate("mi300x", DType.FP4, DType.FP8), "peak_dense_flops_per_s.fp4", "cdna3 has no"),
        (lambda: with_rate("rx-7900-xtx", DType.FP8, DType.INT8), "peak_dense_flops_per_s.fp8", "rdna3 has no"),
        (lambda: with_rate("m1", DType.BF16, DType.FP16), "peak_dense_flops_per_s.bf16", "apple7 has no"),
        (lambda: with_rate("arc-b580", DType.FP8, DType.INT8), "peak_dense_flops_per_s.fp8", "xe2-hpg has no"),
        (lambda: with_rate("tpu-v4", DType.INT4, DType.INT8), "peak_dense_flops_per_s.int4", "tpu-v4 has no"),
    ],
    "numbers_are_in_their_units": [
        (lambda: stated(h100(), "clock_hz", 1830), "clock_hz", "MHz or GHz"),
        (lambda: stated(h100(), "clock_hz", 1.83), "clock_hz", "MHz or GHz"),
        (lambda: stated(h100(), "power_w", 0.7), "power_w", "kilowatts"),
        (lambda: stated(h100(), "l2_bytes", 50), "l2_bytes", "megabytes"),
        (lambda: stated(h100(), "bandwidth_bytes_per_s", 3350), "bandwidth_bytes_per_s", "GB/s"),
        (lambda: stated(h100(), "capacity_bytes", 80), "capacity_bytes", "gigabytes"),
        (lambda: stated(h100(), "shared_memory_per_sm_bytes", 228), "shared_memory_per_sm_bytes", "kilobytes"),
        (lambda: stated(h100(), "memory_bits_per_s_per_pin", 5.2), "memory_bits_per_s_per_pin", "Gb/s"),
        (lambda: stated(h100(), "sm_count", 132.5), "sm_count", "not whole"),
        (lambda: times(h100(), "peak_sparse_flops_per_s", 1e-12, DType.FP8), "peak_sparse_flops_per_s.fp8", "TFLOP/s"),
        (lambda: stated(part_of("m2-max"), "addressable_share", 75), "addressable_share", "per cent"),
        (lambda: stated(load.load(Host, "dgx-h200"), "memory_transfers_per_s", 4400), "memory_transfers_per_s", "MT/s"),
        (lambda: stated(load.load(Link, "pcie4-x16"), "encoding", 98.5), "encoding", "per cent"),
        (lambda: stated(load.load(Storage, "nvme-gen4"), "read_bytes_per_s", 7450), "read_bytes_per_s", "MB/s"),
        (lambda: stated(load.load(Cluster, "8xh200"), "device_count", 7.5), "device_count", "not whole"),
    ],
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
    "interconnect_is_of_one_device": [
        (lambda: stated(h100(), "interconnect_bytes_per_s", 7.2e12), "interconnect_bytes_per_s", "16 times nvlink4"),
        (lambda: times(h100(), "interconnect_bytes_per_s", 8), "interconnect_bytes_per_s", "or gigabits"),
    ],
    "shared_memory_has_a_share": [
        (lambda: cleaned(without(part_of("m2-max"), "addressable_share")), "addressable_share", "state the share"),
        (lambda: dataclasses.replace(part_of("m2-max"), unified_memory=False), "addressable_share", "unified_memory"),
    ],
    "link_carries_bytes_not_bits": [
        (lambda: times(load.load(Link, "nvlink4"), "bandwidth_bytes_per_s", 8), "bandwidth_bytes_per_s", "gigabits"),
        (
            lambda: stated(load.load(Link, "ethernet-400g"), "bandwidth_bytes_per_s", 400e9),
            "bandwidth_bytes_per_s",
            "5e+10",
        ),
        (
            lambda: stated(load.load(Link, "infiniband-ndr"), "bandwidth_bytes_per_s", 400e9),
            "bandwidth_bytes_per_s",
            "bits",
        ),
    ],
    "network_ports_carry_bytes_not_bits": [
        (
            lambda: times(load.load(Cluster, "p5-48xlarge"), "network_ports", 8),
            "network_ports",
            "gigabits for gigabytes",
        ),
    ],
    "narrower_formats_are_not_slower": [(swapped_columns, "peak_dense_flops_per_s.int8", "slower than bf16")],
    "accumulation_is_stated": [(lambda: dataclasses.replace(h100(), accumulate=""), "accumulate", "not stated")],
    "link_is_lanes_times_rate": [
        (lambda: times(load.load(Link, "pcie4-x16"), "lanes", 0.5), "bandwidth_bytes_per_s", "rate x lanes"),
        (lambda: times(load.load(Link, "pcie4-x16"), "bandwidth_bytes_per_s", 2), "bandwidth_bytes_per_s", "lanes"),
    ],
    "host_bandwidth_is_channels_times_rate": [
        (
            lambda: times(load.load(Host, "dgx-h200"), "memory_bandwidth_bytes_per_s", 4.8 / 4.4),
            "memory_bandwidth_bytes_per_s",
            "channels x rate x 8",
        ),
    ],
    "host_bandwidth_counts_channels_not_modules": [
        (
            lambda: times(load.load(Host, "dgx-h200"), "memory_bandwidth_bytes_per_s", 2),  # 32 modules
            "memory_bandwidth_bytes_per_s",
            "2 times channels",
        ),
        (
            lambda: times(load.load(Host, "dgx-h200"), "memory_channels", 0.5),  # of one socket
            "memory_bandwidth_bytes_per_s",
            "channels are a socket's",
        ),
    ],
    "a_source_line_is_of_one_part": [(copied, "power_w", "h100-sxm has 700 from the same place")],
    "sources_are_used": [(foreign_source, "sources.leftover", "no number cites")],
    "enough_sourced_numbers": [(guessed, "*", f"at least {MIN_SOURCED_NUMBERS} wanted")],
}


BY_NAME = {check.__name__: check for check in CHECKS}


@pytest.mark.parametrize(
    ("check", "mistake", "key", "words"),
    [(check, *case) for check, cases in MISTAKES.items() for case in cases],
    ids=lambda v: v if isinstance(v, str) and v in MISTAKES else "",
)
def test_each_check_finds_its_mistake_and_nothing_else_does(check: str, mistake, key: str, words: str) -> None:
    part = mistake()
    (finding,) = lint(part)
    assert finding == next(iter(BY_NAME[check](part)))
    assert isinstance(finding, Finding) and finding.file == part.file and finding.key == key
    assert words in finding.problem


def test_no_check_is_untested() -> None:
    assert set(BY_NAME) == set(MISTAKES) and len(CHECKS) == len(BY_NAME) == sum(map(len, STAGES))
    assert all(check.__doc__ for check in CHECKS)


def test_every_number_of_the_schema_has_a_range_with_its_unit() -> None:
    for part in (Device, Host, Link, Storage, Cluster):
        numbers = {row.name for row in attributes(part) if row.type in ("fact", "rates")}
        assert numbers == set(RANGES[part])
        assert all(r.low < r.high and r.slip for r in RANGES[part].values())


@pytest.mark.slow
def test_any_number_that_slipped_by_a_million_or_a_billion_is_found() -> None:
    for part, name in PARTS:
        loaded = load.load(part, name)
        for key, _ in facts_of(loaded):
            field, _, dtype = key.partition(".")
            for by in (1e-9, 1e-6, 1e6, 1e9):
                assert lint(times(loaded, field, by, DType(dtype) if dtype else None)), (name, key, by)


def test_what_is_left_out_is_a_note_and_no_finding() -> None:
    bare = cleaned(without(h100(), "l2_bytes"))
    assert [n.key for n in notes(bare)] == ["l2_bytes"] and lint(bare) == [] and notes(h100()) == []
    assert [n.key for n in notes(without(h100(), "sm_count", "clock_hz"))] == ["sm_count", "clock_hz"]


def test_a_users_copy_answers_for_its_own_sources(mine: Path) -> None:
    """As long as nothing is changed a copy is the same card; a changed number needs another source."""
    assert lint(load.load(Device, str(mine))) == []
    edit(mine, "power_w = { value = 450", "power_w = { value = 320")
    (finding,) = lint(load.load(Device, str(mine)))
    assert (finding.key, finding.file) == ("power_w", str(mine)) and "rtx-4090 has 450" in finding.problem


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
