"""Links, hosts and nodes: bytes and bits, channels and modules, ports."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ..device import Cluster, Device, Host, Link, Part
from ..load import load
from .base import Finding, about, off


def _expected(link: Link) -> float | None:
    """What the link carries by its lanes; else by the bit rate in its printed name."""
    if link.transfers_per_s is not None and link.lanes is not None:
        encoding = 1.0 if link.encoding is None else link.encoding.value
        return link.transfers_per_s.value * link.lanes.value * encoding / 8
    named = re.search(r"([0-9.]+) Gb/s", link.name)
    return float(named[1]) * 1e9 / 8 if named else None


def link_carries_bytes_not_bits(part: Part) -> Iterator[Finding]:
    """Networks and lanes are named by bits per second: eight times what a byte counter shows."""
    expected = _expected(part) if isinstance(part, Link) else None
    if isinstance(part, Link) and expected and about(part.bandwidth_bytes_per_s.value / expected, 8):
        problem = f"{part.bandwidth_bytes_per_s.value:.4g} is eight times {expected:.4g}: gigabits for gigabytes"
        yield Finding(part.file, "bandwidth_bytes_per_s", problem)


def link_is_lanes_times_rate(part: Part) -> Iterator[Finding]:
    """bandwidth = transfers per second x lanes x encoding / 8, one direction."""
    if not isinstance(part, Link) or part.transfers_per_s is None or part.lanes is None:
        return
    stated, expected = part.bandwidth_bytes_per_s.value, _expected(part)
    if expected and off(stated, expected) and not about(stated / expected, 8):
        problem = f"{stated:.4g} but rate x lanes x encoding / 8 = {expected:.4g}"
        yield Finding(part.file, "bandwidth_bytes_per_s", problem)


def _channels_worth(host: Host) -> float | None:
    """Stated bandwidth over channels x transfers per second x 8 bytes."""
    if host.memory_channels is None or host.memory_transfers_per_s is None:
        return None
    return host.memory_bandwidth_bytes_per_s.value / (
        host.memory_channels.value * host.memory_transfers_per_s.value * 8
    )


def _counts_modules(ratio: float) -> bool:
    return ratio > 1.5 and not off(ratio, round(ratio))


def host_bandwidth_is_channels_times_rate(part: Part) -> Iterator[Finding]:
    """bandwidth = channels x transfers per second x 8 bytes."""
    ratio = _channels_worth(part) if isinstance(part, Host) else None
    if isinstance(part, Host) and ratio is not None and off(ratio, 1) and not _counts_modules(ratio):
        stated = part.memory_bandwidth_bytes_per_s.value
        problem = f"{stated:.4g} but channels x rate x 8 = {stated / ratio:.4g}"
        yield Finding(part.file, "memory_bandwidth_bytes_per_s", problem)


def host_bandwidth_counts_channels_not_modules(part: Part) -> Iterator[Finding]:
    """Two modules on a channel share it: modules x rate is a whole multiple of what the channels carry."""
    ratio = _channels_worth(part) if isinstance(part, Host) else None
    if isinstance(part, Host) and ratio is not None and _counts_modules(ratio):
        problem = (
            f"{ratio:.0f} times channels x rate x 8: modules on one channel do not add up (or channels are a socket's)"
        )
        yield Finding(part.file, "memory_bandwidth_bytes_per_s", problem)


MOST_NETWORK = 2.0  # ports over what the devices' host links carry; a node is built so that its devices can feed them


def network_ports_carry_bytes_not_bits(part: Part) -> Iterator[Finding]:
    """Ports of a node carry about what its devices' host links do: eight times that is gigabits for gigabytes."""
    if not isinstance(part, Cluster) or not part.network or part.network_ports is None:
        return
    carried = part.network_ports.value * load(Link, part.network).bandwidth_bytes_per_s.value
    host_link = load(Link, load(Device, part.device).host_link)
    fed = part.device_count.value * host_link.bandwidth_bytes_per_s.value
    if carried > MOST_NETWORK * fed:
        problem = (
            f"{part.network_ports.value:.0f} ports of {part.network} carry {carried:.3g} B/s, its devices' host links "
            f"{fed:.3g}: gigabits for gigabytes, or ports of several nodes"
        )
        yield Finding(part.file, "network_ports", problem)
