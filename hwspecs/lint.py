"""Cross-checks of hardware files: the mistakes this field really makes, each one a named function.

A check yields findings; it never changes a number. The arithmetic is that of the vendors' own tables:
peak = multiprocessors x clock x operations per clock; bandwidth = bus width x data rate; links per direction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from ..errors import RoofplanError
from .device import Cluster, Device, Fact, Host, Kind, Link, Part, Storage
from .load import load

TOLERANCE = 0.02  # printed figures are rounded to two or three digits
MIN_SOURCED_NUMBERS = 12


class Finding(NamedTuple):
    """One thing wrong with a file, with the arithmetic that shows it."""

    file: str
    key: str
    problem: str


Check = Callable[[Part], Iterator[Finding]]


def _off(stated: float, expected: float, tolerance: float = TOLERANCE) -> bool:
    return expected <= 0 or abs(stated / expected - 1) > tolerance


def facts_of(part: Part) -> Iterator[tuple[str, Fact]]:
    """Every number of a file with its dotted key."""
    for name, value in vars(part).items():
        if isinstance(value, Fact):
            yield name, value
        elif name.startswith(("peak_", "flops_per_")):
            yield from ((f"{name}.{dtype}", fact) for dtype, fact in value.items())


def peak_is_sm_times_clock_times_ops(part: Part) -> Iterator[Finding]:
    """peak_dense = sm_count x clock_hz x flops_per_clock_per_sm; twice that is a sparse rate in disguise."""
    if not isinstance(part, Device) or part.sm_count is None or part.clock_hz is None:
        return
    for dtype, ops in part.flops_per_clock_per_sm.items():
        stated = part.peak_dense_flops_per_s.get(dtype)
        if stated is None:
            continue
        expected = part.sm_count.value * part.clock_hz.value * ops.value
        ratio = stated.value / expected
        key = f"peak_dense_flops_per_s.{dtype}"
        if abs(ratio - 2) < 0.1:
            yield Finding(part.file, key, f"{stated.value:.4g} is twice SMs x clock x ops: a sparse rate used as dense")
        elif _off(stated.value, expected):
            yield Finding(part.file, key, f"{stated.value:.4g} but SMs x clock x ops = {expected:.4g}")


def sparse_is_twice_dense(part: Part) -> Iterator[Finding]:
    """A 2:4 sparse rate is printed as twice the dense one; equal numbers mean one was copied over the other."""
    if not isinstance(part, Device):
        return
    for dtype, sparse in part.peak_sparse_flops_per_s.items():
        dense = part.peak_dense_flops_per_s.get(dtype)
        if dense is not None and _off(sparse.value, 2 * dense.value):
            problem = f"sparse {sparse.value:.4g} is not twice dense {dense.value:.4g}"
            yield Finding(part.file, f"peak_sparse_flops_per_s.{dtype}", problem)


def bandwidth_is_bus_times_rate(part: Part) -> Iterator[Finding]:
    """bandwidth = bus bits x bits per second per pin / 8."""
    if not isinstance(part, Device) or part.memory_bus_bits is None or part.memory_bits_per_s_per_pin is None:
        return
    expected = part.memory_bus_bits.value * part.memory_bits_per_s_per_pin.value / 8
    if _off(part.bandwidth_bytes_per_s.value, expected):
        problem = f"{part.bandwidth_bytes_per_s.value:.4g} but bus x rate / 8 = {expected:.4g}"
        yield Finding(part.file, "bandwidth_bytes_per_s", problem)


def capacity_is_gb_not_gib(part: Part) -> Iterator[Finding]:
    """The driver reports a little less than (or, in GiB products, up to 7.4 % more than) the advertised decimal GB.

    Outside -7 % ... +7.4 % somebody wrote GB for GiB or copied a package figure for one device.
    """
    if not isinstance(part, Device) or part.advertised_capacity_bytes is None:
        return
    ratio = part.capacity_bytes.value / part.advertised_capacity_bytes.value
    if not 0.93 <= ratio <= 2**30 / 1e9:
        problem = f"driver total is {ratio:.3f} of the advertised capacity: GB for GiB, or a per-package figure"
        yield Finding(part.file, "capacity_bytes", problem)


def interconnect_is_one_direction(part: Part) -> Iterator[Finding]:
    """The device's link bandwidth must equal the link file's; twice as much is the sum of both directions."""
    if not isinstance(part, Device) or part.interconnect_bytes_per_s is None:
        return
    link = load(Link, part.interconnect)
    ratio = part.interconnect_bytes_per_s.value / link.bandwidth_bytes_per_s.value
    if abs(ratio - 2) < 0.1:
        yield Finding(part.file, "interconnect_bytes_per_s", f"twice {link.key}: both directions added up")
    elif abs(ratio - 1) > TOLERANCE:
        yield Finding(part.file, "interconnect_bytes_per_s", f"{ratio:.3g} times what {link.key} carries")


def narrower_formats_are_not_slower(part: Part) -> Iterator[Finding]:
    """fp8 and int8 run at least as fast as bf16 where both exist; less means two columns were swapped."""
    if not isinstance(part, Device):
        return
    rates = {str(k): v.value for k, v in part.peak_dense_flops_per_s.items()}
    for narrow, wide in (("fp8", "bf16"), ("int8", "bf16"), ("bf16", "fp32"), ("bf16", "tf32")):
        if narrow in rates and wide in rates and rates[narrow] < rates[wide] * (1 - TOLERANCE):
            yield Finding(part.file, f"peak_dense_flops_per_s.{narrow}", f"slower than {wide}")


def accumulation_is_stated(part: Part) -> Iterator[Finding]:
    """Consumer parts halve fp16 and bf16 with fp32 accumulation, so the type must be written down."""
    if isinstance(part, Device) and not part.accumulate and part.vendor == "nvidia":
        yield Finding(part.file, "accumulate", "accumulation type of the bf16 and fp16 rates is not stated")


def link_is_lanes_times_rate(part: Part) -> Iterator[Finding]:
    """bandwidth = transfers per second x lanes x encoding / 8, one direction."""
    if not isinstance(part, Link) or part.transfers_per_s is None or part.lanes is None:
        return
    encoding = 1.0 if part.encoding is None else part.encoding.value
    expected = part.transfers_per_s.value * part.lanes.value * encoding / 8
    if _off(part.bandwidth_bytes_per_s.value, expected):
        problem = f"{part.bandwidth_bytes_per_s.value:.4g} but rate x lanes x encoding / 8 = {expected:.4g}"
        yield Finding(part.file, "bandwidth_bytes_per_s", problem)


def host_bandwidth_is_channels_times_rate(part: Part) -> Iterator[Finding]:
    """bandwidth = channels x transfers per second x 8 bytes."""
    if not isinstance(part, Host) or part.memory_channels is None or part.memory_transfers_per_s is None:
        return
    expected = part.memory_channels.value * part.memory_transfers_per_s.value * 8
    if _off(part.memory_bandwidth_bytes_per_s.value, expected):
        problem = f"{part.memory_bandwidth_bytes_per_s.value:.4g} but channels x rate x 8 = {expected:.4g}"
        yield Finding(part.file, "memory_bandwidth_bytes_per_s", problem)


def references_exist(part: Part) -> Iterator[Finding]:
    """Links, hosts, drives and devices named by a file must be bundled themselves."""
    wanted: list[tuple[type[Part], str]] = []
    if isinstance(part, Device):
        wanted = [(Link, part.interconnect), (Link, part.host_link)]
    elif isinstance(part, Cluster):
        wanted = [(Device, part.device), (Host, part.host), (Link, part.interconnect), (Link, part.network)]
    elif isinstance(part, Host):
        wanted = [(Storage, part.storage)]
    elif isinstance(part, Storage):
        wanted = [(Link, part.link)]
    for kind, name in wanted:
        try:
            if name:  # optional references may be left out
                load(kind, name)
        except RoofplanError as error:
            yield Finding(part.file, name, error.problem)


def sources_are_used(part: Part) -> Iterator[Finding]:
    """A source nobody cites is a leftover of a copied file."""
    cited = {fact.source for _, fact in facts_of(part)}
    for key in part.sources:
        if key not in cited:
            yield Finding(part.file, f"sources.{key}", "no number cites this source")


def enough_sourced_numbers(part: Part) -> Iterator[Finding]:
    """A device file worth trusting has at least a dozen numbers that were read somewhere."""
    if isinstance(part, Device):
        count = sum(fact.kind is not Kind.ASSUMED for _, fact in facts_of(part))
        if count < MIN_SOURCED_NUMBERS:
            yield Finding(part.file, "*", f"only {count} sourced numbers, at least {MIN_SOURCED_NUMBERS} wanted")


CHECKS: tuple[Check, ...] = (
    references_exist,
    peak_is_sm_times_clock_times_ops,
    sparse_is_twice_dense,
    bandwidth_is_bus_times_rate,
    capacity_is_gb_not_gib,
    interconnect_is_one_direction,
    narrower_formats_are_not_slower,
    accumulation_is_stated,
    link_is_lanes_times_rate,
    host_bandwidth_is_channels_times_rate,
    sources_are_used,
    enough_sourced_numbers,
)


def lint(part: Part) -> list[Finding]:
    """All findings about one file; references are checked first because the others follow them."""
    findings = list(references_exist(part))
    return findings or [finding for check in CHECKS[1:] for finding in check(part)]
