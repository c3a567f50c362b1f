"""Cross-checks of hardware files: the mistakes this field really makes, each one a named function.

A check yields findings; it never changes a number. Notes are what a file may go without, at a cost.
"""

from __future__ import annotations

from ..device import Part
from . import devices, nodes, plausible, sources
from .base import TOLERANCE, Check, Finding, facts_of
from .sources import MIN_SOURCED_NUMBERS

__all__ = ["CHECKS", "MIN_SOURCED_NUMBERS", "NOTES", "TOLERANCE", "Check", "Finding", "facts_of", "lint", "notes"]

# A stage is entered when those before it found nothing: what follows would only repeat them.
STAGES: tuple[tuple[Check, ...], ...] = (
    (sources.references_exist,),
    (plausible.numbers_are_in_their_units,),
    (
        devices.figures_are_of_one_device,
        devices.clock_is_the_one_of_the_rates,
        devices.peak_is_sm_times_clock_times_ops,
        devices.sparse_is_twice_dense,
        devices.consumer_cards_accumulate_at_half_rate,
        devices.formats_exist_on_the_architecture,
        devices.bandwidth_is_bus_times_rate,
        devices.capacity_is_gb_not_gib,
        devices.interconnect_is_one_direction,
        devices.interconnect_is_of_one_device,
        devices.narrower_formats_are_not_slower,
        devices.accumulation_is_stated,
        devices.shared_memory_has_a_share,
        nodes.link_carries_bytes_not_bits,
        nodes.link_is_lanes_times_rate,
        nodes.host_bandwidth_is_channels_times_rate,
        nodes.host_bandwidth_counts_channels_not_modules,
        nodes.network_ports_carry_bytes_not_bits,
        sources.sources_are_used,
        sources.enough_sourced_numbers,
        sources.a_source_line_is_of_one_part,
    ),
)
CHECKS: tuple[Check, ...] = tuple(check for stage in STAGES for check in stage)
NOTES: tuple[Check, ...] = (devices.what_kernel_models_count_with,)


def lint(part: Part) -> list[Finding]:
    """All findings about one file."""
    for stage in STAGES:
        findings = [finding for check in stage for finding in check(part)]
        if findings:
            return findings
    return []


def notes(part: Part) -> list[Finding]:
    """What the file leaves out and the models would use."""
    return [finding for check in NOTES for finding in check(part)]
