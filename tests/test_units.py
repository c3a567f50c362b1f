"""Quantities in and out: GB is not GiB, a unit is never guessed, and nonsense is one clear line."""

import math
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roofplan import units
from roofplan.errors import ExitCode, InputError

RUN = settings(deadline=None, derandomize=True, database=None, max_examples=200)
PREFIXES = "kmgtp"


def refused(parse, text: str) -> InputError:
    with pytest.raises(InputError) as caught:
        parse(text, "--key")
    line = str(caught.value)
    assert len(line.splitlines()) == 1 and line.isprintable() and "--key" in line
    assert caught.value.exit_code is ExitCode.BAD_INPUT
    return caught.value


# ---- bytes: the 7 % that decide whether a model fits


@RUN
@given(st.floats(0.001, 1e6), st.sampled_from(range(1, 4)))
def test_decimal_and_binary_units_differ_by_their_power(number: float, power: int) -> None:
    prefix = PREFIXES[power - 1]
    decimal = units.parse_bytes(f"{number!r}{prefix}B", "k")
    binary = units.parse_bytes(f"{number!r}{prefix}iB", "k")
    assert binary / decimal == pytest.approx((1024 / 1000) ** power, rel=1e-12)
    assert decimal == pytest.approx(number * 1000.0**power, rel=1e-12)


def test_gb_for_gib_trap() -> None:
    assert units.parse_bytes("24GB", "k") == 24e9
    assert units.parse_bytes("24GiB", "k") == 24 * 2**30
    assert units.parse_bytes("24GiB", "k") / units.parse_bytes("24GB", "k") == pytest.approx(1.073741824)
    assert units.format_gib(24e9) == "22.4 GiB"
    assert units.format_gib(24 * 2**30) == "24.0 GiB"
    assert units.format_bytes(24 * 2**30) == "25.8 GB"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1B", 1.0),
        ("64gb", 64e9),
        (" 64 GB ", 64e9),
        (".5TB", 5e11),
        ("1.5e3MiB", 1500 * 2**20),
        ("2PiB", 2 * 2**50),
        ("1000000TB", 1e18),
    ],
)
def test_spellings_of_memory(text: str, value: float) -> None:
    assert units.parse_bytes(text, "k") == value


@RUN
@given(st.floats(1, 9.9e17))
def test_printed_bytes_read_back_within_their_digits(value: float) -> None:
    assert units.parse_bytes(units.format_bytes(value), "k") == pytest.approx(value, rel=5.1e-3)


@RUN
@given(st.floats(1e7, 1e17))
def test_printed_gib_reads_back_within_its_digits(value: float) -> None:
    assert units.parse_bytes(units.format_gib(value), "k") == pytest.approx(value, rel=0.05)


@RUN
@given(st.floats(1e3, 9.9e17))
def test_printed_rates_read_back_within_their_digits(value: float) -> None:
    assert units.parse_rate(units.format_rate(value), "k") == pytest.approx(value, rel=5.1e-3)


def test_the_limit_the_message_names_can_be_written_that_way() -> None:
    assert units.parse_bytes("1EB", "k") == 1e18
    assert "1 EB" in refused(units.parse_bytes, "1.01EB").problem


# ---- counts


@RUN
@given(st.integers(1, 2**20))
def test_k_is_1024_in_counts(number: int) -> None:
    assert units.parse_count(f"{number}k", "k") == number * 1024
    assert units.parse_count(f"{number}K", "k") == number * 1024
    assert units.parse_count(f"{number}m", "k") == number * 1024**2
    assert units.parse_count(str(number), "k") == number
    assert isinstance(units.parse_count(f"{number}k", "k"), int)


def test_32k_is_a_context_of_32768() -> None:
    assert units.parse_count("32k", "k") == 32768
    assert units.parse_count("0.5k", "k") == 512
    assert units.parse_count("1e3", "k") == 1000


@pytest.mark.parametrize("text", ["1.5", "0.3k", "1e-1"])
def test_fractions_of_a_token_are_refused(text: str) -> None:
    assert "whole number" in refused(units.parse_count, text).problem


# ---- refusals, all one printable line that names the key

NONSENSE = [
    "",
    " ",
    "nan",
    "nanGB",
    "inf",
    "infGB",
    "-1",
    "-1GB",
    "+1GB",
    "GB",
    "1..5GB",
    "1,5GB",
    "1_000",
    "0x10",
    "1e999",
    "1e999GB",
    "9" * 400,
    "9" * 400 + "GB",
    "0",
    "0GB",
    "1e-10GB",
    "1e40GB",
    "1e40",
    "5 bananas",
    "\uff11\uff16GB",
    "16\uff27\uff22",
    "\u0661\u0666GB",
    "∞",
    "32\u212a",
    "1GB\x00",
    "1GB;rm",
    "\x1b[31m1GB",
    "1\nGB extra",
    "\ud800",
    "½GB",
]


@pytest.mark.parametrize("text", NONSENSE)
def test_nonsense_is_no_memory(text: str) -> None:
    refused(units.parse_bytes, text)


@pytest.mark.parametrize("text", NONSENSE)
def test_nonsense_is_no_count(text: str) -> None:
    refused(units.parse_count, text)


@pytest.mark.parametrize("text", [*NONSENSE, "936", "936GB", "936GB/", "936/s", "936GB/h", "936Gb/s/s", "1B/s"])
def test_nonsense_is_no_rate(text: str) -> None:
    refused(units.parse_rate, text)


@RUN
@given(st.floats(1, 1e6))
def test_a_missing_unit_of_memory_is_refused(number: float) -> None:
    assert "GiB" in (refused(units.parse_bytes, f"{number!r}").remedy or "")
    refused(units.parse_rate, f"{number!r}")


@RUN
@given(st.text(max_size=30))
def test_any_text_is_a_quantity_in_range_or_one_line(text: str) -> None:
    for parse, low, high in (
        (units.parse_bytes, 1, 1e18),
        (units.parse_rate, 1e3, 1e18),
        (units.parse_count, 1, 2**40),
    ):
        try:
            value = parse(text, "--key")
        except InputError:
            refused(parse, text)
        else:
            assert low <= value <= high and text.isascii() | any(c.isspace() for c in text)


@pytest.mark.parametrize("text", ["1" * 20_000 + "!", "1" * 9_000 + "." + "1" * 9_000 + "!", " " * 50_000 + "!"])
def test_long_nonsense_is_refused_at_once(text: str) -> None:
    start = time.perf_counter()
    error = refused(units.parse_bytes, text)
    assert time.perf_counter() - start < 0.5
    assert len(str(error)) < 300


# ---- printing


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 us"),
        (1.5e-6, "1.5 us"),
        (9.994e-4, "999 us"),
        (9.996e-4, "1 ms"),
        (0.0123, "12.3 ms"),
        (0.9996, "1 s"),
        (99.9, "99.9 s"),
        (100.0, "1.67 min"),
        (7200.0, "2 h"),
        (864_000.0, "10 d"),
        (1e9, "11,574 d"),
        (math.nan, "-"),
        (math.inf, "-"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert units.format_seconds(seconds) == text


_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


@RUN
@given(st.floats(1e-7, 1e7))
def test_durations_keep_three_digits(seconds: float) -> None:
    number, unit = units.format_seconds(seconds).split(" ")
    assert float(number) * _SECONDS[unit] == pytest.approx(seconds, rel=5.1e-3)
    assert float(number) < 1000 or unit == "d"


@pytest.mark.parametrize(
    "form", [units.format_bytes, units.format_rate, units.format_flops, units.format_gib, units.format_count]
)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_prints_as_a_dash(form, value: float) -> None:
    assert form(value).startswith("-") and "n" not in form(value).removesuffix("FLOP").removesuffix(" MiB")


def test_counts() -> None:
    assert units.format_count(1234567) == "1,234,567"
    assert units.format_count(8_030_261_248) == "8.03B"
    assert units.format_count(0) == "0"
    assert units.format_flops(989.4e12) == "989 TFLOP"
    assert units.format_bytes(-5e9) == "-5 GB"
    assert units.format_bytes(999.7) == "1 kB"
