"""Devices: rates, clocks, bandwidth and memory against the arithmetic of the vendors' own tables.

peak = multiprocessors x clock x operations per clock; bandwidth = bus width x data rate; links per direction.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import median

from ...dtypes import DType
from ..architectures import FORMATS, halves
from ..device import Device, Link, Part
from ..load import load
from .base import TOLERANCE, Finding, about, off


def _rate_ratios(device: Device) -> Mapping[DType, float]:
    """Stated dense rate over multiprocessors x clock x operations, by format, where all three are stated."""
    if device.sm_count is None or device.clock_hz is None:
        return {}
    clocks = device.sm_count.value * device.clock_hz.value
    dense = device.peak_dense_flops_per_s
    return {k: dense[k].value / (clocks * ops.value) for k, ops in device.flops_per_clock_per_sm.items() if k in dense}


def _bandwidth_ratio(device: Device) -> float | None:
    """Stated bandwidth over bus x data rate / 8."""
    if device.memory_bus_bits is None or device.memory_bits_per_s_per_pin is None:
        return None
    return device.bandwidth_bytes_per_s.value / (
        device.memory_bus_bits.value * device.memory_bits_per_s_per_pin.value / 8
    )


def _is_a_package(device: Device) -> bool:
    """Whether bandwidth and every rate are twice what one device's own arithmetic gives."""
    rates, bandwidth = _rate_ratios(device).values(), _bandwidth_ratio(device)
    return bandwidth is not None and about(bandwidth, 2) and bool(rates) and all(about(r, 2) for r in rates)


def _other_clock(device: Device) -> float | None:
    """The clock that all rates refer to, as a multiple of the stated one, where they agree on another."""
    ratios = list(_rate_ratios(device).values())
    if len(ratios) < 2 or any(off(r, median(ratios)) for r in ratios) or about(median(ratios), 2):
        return None
    return median(ratios) if off(median(ratios), 1) else None


def figures_are_of_one_device(part: Part) -> Iterator[Finding]:
    """Bandwidth and rates both twice the device's own arithmetic are those of a package of two (MI250X, A16, Max)."""
    if isinstance(part, Device) and _is_a_package(part):
        problem = "bandwidth and rates are twice what bus, SMs and clock give: figures of a package of two devices"
        yield Finding(part.file, "bandwidth_bytes_per_s", problem)


def clock_is_the_one_of_the_rates(part: Part) -> Iterator[Finding]:
    """Where all rates agree on another clock than the stated one, that one is the base clock, or a card's own boost."""
    if not isinstance(part, Device) or part.clock_hz is None:
        return
    ratio = _other_clock(part)
    if ratio is not None:
        what = "a base clock" if ratio > 1 else "a card's own boost, or a driver's highest clock"
        told = f"{part.clock_hz.value / 1e9:.3f} GHz, but all rates are at {part.clock_hz.value * ratio / 1e9:.3f} GHz"
        yield Finding(part.file, "clock_hz", f"{told}: {what}?")


def peak_is_sm_times_clock_times_ops(part: Part) -> Iterator[Finding]:
    """peak_dense = sm_count x clock_hz x flops_per_clock_per_sm; twice that is a sparse rate in disguise."""
    if not isinstance(part, Device) or _is_a_package(part) or _other_clock(part) is not None:
        return
    for dtype, ratio in _rate_ratios(part).items():
        stated = part.peak_dense_flops_per_s[dtype].value
        key = f"peak_dense_flops_per_s.{dtype}"
        if about(ratio, 2):
            yield Finding(part.file, key, f"{stated:.4g} is twice SMs x clock x ops: a sparse rate used as dense")
        elif off(ratio, 1):
            yield Finding(part.file, key, f"{stated:.4g} but SMs x clock x ops = {stated / ratio:.4g}")


def sparse_is_twice_dense(part: Part) -> Iterator[Finding]:
    """A 2:4 sparse rate is printed as twice the dense one; equal numbers mean one was copied over the other."""
    if not isinstance(part, Device):
        return
    for dtype, sparse in part.peak_sparse_flops_per_s.items():
        dense = part.peak_dense_flops_per_s.get(dtype)
        if dense is not None and off(sparse.value, 2 * dense.value):
            equal = ": one column for both" if not off(sparse.value, dense.value) else ""
            problem = f"sparse {sparse.value:.4g} is not twice dense {dense.value:.4g}{equal}"
            yield Finding(part.file, f"peak_sparse_flops_per_s.{dtype}", problem)


def consumer_cards_accumulate_at_half_rate(part: Part) -> Iterator[Finding]:
    """GeForce runs 16-bit and fp8 products with fp32 accumulation at half rate: a quarter, half of its int8 rate."""
    if not isinstance(part, Device) or part.vendor != "nvidia" or part.accumulate != "fp32" or not halves(part.name):
        return
    rates = {k: v.value for k, v in part.peak_dense_flops_per_s.items()}
    shares = {DType.FP16: 4, DType.BF16: 4, DType.FP8: 2}
    full = [k for k, share in shares.items() if k in rates and rates[k] > 1.2 * rates.get(DType.INT8, 1e99) / share]
    if full:
        problem = f"{', '.join(full)}: the rate with fp16 accumulation; with fp32 a GeForce has half of it"
        yield Finding(part.file, f"peak_dense_flops_per_s.{full[0]}", problem)


def formats_exist_on_the_architecture(part: Part) -> Iterator[Finding]:
    """No bf16 before Ampere, no fp8 before Ada, Hopper and MI300, no fp4 before Blackwell and MI350, and so on."""
    if not isinstance(part, Device):
        return
    known = FORMATS.get(part.architecture)
    tables = ("peak_dense_flops_per_s", "peak_sparse_flops_per_s", "sustained_flops_per_s", "flops_per_clock_per_sm")
    stated = {dtype: table for table in reversed(tables) for dtype in getattr(part, table)}
    for dtype, table in stated.items():
        if known is not None and dtype not in known:
            yield Finding(part.file, f"{table}.{dtype}", f"{part.architecture} has no instructions for {dtype}")


def bandwidth_is_bus_times_rate(part: Part) -> Iterator[Finding]:
    """bandwidth = bus bits x bits per second per pin / 8."""
    ratio = _bandwidth_ratio(part) if isinstance(part, Device) and not _is_a_package(part) else None
    if isinstance(part, Device) and ratio is not None and off(ratio, 1):
        stated = part.bandwidth_bytes_per_s.value
        problem = f"{stated:.4g} but bus x rate / 8 = {stated / ratio:.4g}"
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


def _links_worth(device: Device) -> tuple[float, Link] | None:
    """The device's bandwidth to its like as a multiple of the link file's, with that file."""
    if device.interconnect_bytes_per_s is None:
        return None
    link = load(Link, device.interconnect)
    return device.interconnect_bytes_per_s.value / link.bandwidth_bytes_per_s.value, link


def interconnect_is_one_direction(part: Part) -> Iterator[Finding]:
    """The device's link bandwidth must equal the link file's; twice as much is the sum of both directions."""
    worth = _links_worth(part) if isinstance(part, Device) else None
    if worth is None or _is_a_sum(worth[0]):
        return
    ratio, link = worth
    if about(ratio, 2):
        yield Finding(part.file, "interconnect_bytes_per_s", f"twice {link.key}: both directions added up")
    elif off(ratio, 1):
        yield Finding(part.file, "interconnect_bytes_per_s", f"{ratio:.3g} times what {link.key} carries")


def _is_a_sum(ratio: float) -> bool:
    """A whole multiple of what one device's link carries, beyond both directions of it."""
    return ratio > 2.5 and not off(ratio, round(ratio))


def interconnect_is_of_one_device(part: Part) -> Iterator[Finding]:
    """A node's total is a whole multiple of one device's bandwidth; eight times may also be bits for bytes."""
    worth = _links_worth(part) if isinstance(part, Device) else None
    if worth is not None and _is_a_sum(worth[0]):
        bits = ", or gigabits for gigabytes" if round(worth[0]) == 8 else ""
        problem = f"{worth[0]:.0f} times {worth[1].key}: the total of all devices of a node{bits}"
        yield Finding(part.file, "interconnect_bytes_per_s", problem)


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


def shared_memory_has_a_share(part: Part) -> Iterator[Finding]:
    """A system lends its GPU a part of the memory they share; without the share all of it would count."""
    if not isinstance(part, Device):
        return
    if part.unified_memory and part.addressable_share is None:
        problem = "memory is shared with the host: state the share that programs of the GPU may take (1.0 for all)"
        yield Finding(part.file, "addressable_share", problem)
    elif part.addressable_share is not None and not part.unified_memory:
        yield Finding(part.file, "addressable_share", "the device has memory of its own: unified_memory is not set")


def what_kernel_models_count_with(part: Part) -> Iterator[Finding]:
    """Note: waves need multiprocessors and their clock, residency the last-level cache; without them terms drop out."""
    wanted = ("sm_count", "clock_hz", "l2_bytes")
    if isinstance(part, Device):
        for key in wanted:
            if getattr(part, key) is None:
                yield Finding(part.file, key, "not stated: kernel times leave out what depends on it")
