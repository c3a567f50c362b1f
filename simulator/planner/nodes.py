"""Machines of unlike devices: which cards, what host, and what joins them."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass

from ...errors import InputError, UnknownNameError
from ...hwspecs.device import Device, Fleet, Host, Link, Storage
from ...hwspecs.load import load, load_fleet, names
from ...units import parse_bytes

MOST_PLACES = 16  # devices of all nodes: more make programs that take minutes
HOST_WORD = "cpu"


@dataclass(frozen=True, eq=False)
class Node:
    """One machine: groups of like devices, joined by `link`, and its host, where it takes part.

    `network` joins the node to the others. Weights that do not fit host memory are read from `storage`. An engine that
    `reads_ahead` does so a window at a time, beside whatever else happens, and only what does not fit; one that maps
    the file waits for it, and for all of the host's weights: a cache that drops the least recently used page serves
    nothing of a sweep it is too small for.
    """

    name: str
    fleets: tuple[Fleet, ...]
    link: Link
    network: Link
    host: Host | None = None
    host_memory_bytes: float | None = None
    storage: Storage | None = None
    reads_ahead: bool = True

    def __post_init__(self) -> None:
        if not self.fleets and self.host is None:
            raise InputError("has neither devices nor a host", key="node", value=self.name)

    @property
    def devices(self) -> int:
        """Devices of all groups."""
        return sum(fleet.count for fleet in self.fleets)

    @property
    def computes(self) -> bool:
        """Whether its host has memory and cores of its own."""
        return self.host is not None and not any(fleet.device.unified_memory for fleet in self.fleets)

    def memory_bytes(self) -> float:
        """Bytes of host memory there are."""
        if self.host_memory_bytes is not None:
            return self.host_memory_bytes
        return 0.0 if self.host is None else self.host.memory_bytes.value

    def fleet_of_host(self) -> Fleet:
        """The host with its memory, as what `hwspecs.load.host_fleet` turns into a device."""
        assert self.host is not None
        bus, device = load(Link, "memory-bus"), self.host.as_device()
        return Fleet(device, 1, bus, bus, self.host, self.memory_bytes(), storage=self.storage)


def parse_nodes(
    text: str,
    link: str | None = None,
    network: str = "ethernet-1g",
    host: str | None = None,
    ram_bytes: float | None = None,
) -> tuple[Node, ...]:
    """Machines from a text: groups of devices after commas, machines after semicolons, with `@host` or `@host/RAM`.

    `4xrtx-3090,1xrtx-4090` is one machine; `rtx-4090@desktop-ddr5/64GiB; m1-max-64gb; cpu@mate-40-pro` are three, the
    last of which computes on its cores. `link` joins the devices of a machine (default: the slowest of their own),
    `network` the machines; `host` and `ram_bytes` are those of machines that state none.
    """
    parts = [part.strip() for part in text.split(";")]
    if not text.strip() or not all(parts):
        raise InputError("names no devices", key="--gpus", value=text, remedy="write 4xrtx-3090,1xrtx-4090")
    between = link_of(network, "--network")
    nodes = tuple(_node(part, link, between, host, ram_bytes) for part in parts)
    check_places(nodes)
    return nodes


def check_places(nodes: tuple[Node, ...]) -> None:
    """Refuse no nodes at all, and more places than a program of this kind is solved for."""
    count = sum(node.devices + (node.host is not None) for node in nodes)
    if not 1 <= count <= MOST_PLACES:
        problem = f"devices and hosts together must be between 1 and {MOST_PLACES}"
        raise InputError(
            problem, key="--gpus", value=count, remedy="like devices of one node are planned without --gpus"
        )


def text_of(nodes: tuple[Node, ...]) -> str:
    """The text that names such nodes."""
    return "; ".join(node.name for node in nodes)


def resized(node: Node, group: int, count: int) -> Node:
    """The node with another number of devices of one group, and named so; 0 takes the group out."""
    written, at, around = node.name.partition("@")
    names = [name for each in written.split(",") if (name := each.strip()) != HOST_WORD]
    if len(names) != len(node.fleets):
        names = [fleet.label for fleet in node.fleets]
    fleet, found = node.fleets[group], re.fullmatch(r"\d+x(.+)", names[group], re.IGNORECASE)
    bare = fleet.device.key if fleet.cluster else found[1] if found else names[group]
    names[group : group + 1] = [f"{count}x{bare}" if count > 1 else bare] if count else []
    fleets = (*node.fleets[:group], *([fleet.sized(count)] if count else []), *node.fleets[group + 1 :])
    return dataclasses.replace(node, name=",".join(names or [HOST_WORD]) + at + around, fleets=fleets)


def hosted_by(node: Node, host: Host) -> Node:
    """The node with that host taking part, its local drive behind it."""
    return dataclasses.replace(node, host=host, storage=load(Storage, host.storage) if host.storage else None)


def with_memory(node: Node, size: float) -> Node:
    """The node with whole gigabytes of host memory, and named so."""
    assert node.host is not None
    written, _, around = node.name.partition("@")
    host = around.partition("/")[0].strip() or node.host.key
    return dataclasses.replace(node, name=f"{written}@{host}/{size / 1e9:.0f}GB", host_memory_bytes=size)


def link_of(name: str, key: str = "--link") -> Link:
    """A link by its name, with or without its dashes: `pcie4x8` is `pcie4-x8`."""
    if name.endswith(".toml"):
        return load(Link, name)
    known = names(Link)
    bare = re.sub(r"[^a-z0-9]", "", name.lower())
    for candidate in known:
        if re.sub(r"[^a-z0-9]", "", candidate) == bare:
            return load(Link, candidate)
    error = UnknownNameError("link", name, known, listing="roofplan hw list")
    raise InputError(error.problem, key=key, value=name, remedy=error.remedy)


def _node(text: str, link: str | None, network: Link, host: str | None, ram_bytes: float | None) -> Node:
    devices, _, around = text.partition("@")
    named, _, ram = around.partition("/")
    host = named.strip() or host
    ram_bytes = parse_bytes(ram.strip(), "--gpus") if ram else ram_bytes
    part = load(Host, host) if host else None
    fleets = []
    for group in (g.strip() for g in devices.split(",")):
        if group == HOST_WORD:
            if part is None:
                raise InputError("needs a host", key="--gpus", value=text, remedy="write cpu@desktop-ddr5")
            continue
        fleets.append(_fleet(group, text))
    if not fleets and part is None:
        raise InputError("names no devices", key="--gpus", value=text, remedy="write 4xrtx-3090,1xrtx-4090")
    links = [f.interconnect for f in fleets] or [load(Link, "memory-bus")]
    inside = link_of(link) if link else min(links, key=lambda each: each.bandwidth_bytes_per_s.value)
    storage = load(Storage, part.storage) if part is not None and part.storage else None
    fleets = [dataclasses.replace(f, interconnect=inside, host_link=_host_link(f, inside)) for f in fleets]
    return Node(text, tuple(fleets), inside, network, part, ram_bytes, storage)


def _host_link(fleet: Fleet, inside: Link) -> Link:
    """Cards reach their host over the slots that join them; a bridge between cards says nothing about their slots."""
    slots = inside.key.startswith(("pcie", "thunderbolt", "oculink", "usb"))
    return inside if slots and not fleet.device.unified_memory else fleet.host_link


def _fleet(group: str, text: str) -> Fleet:
    if not group:
        raise InputError("names no devices between its commas", key="--gpus", value=text)
    match = re.fullmatch(r"(\d{1,9})x(.+)", group, re.IGNORECASE)
    if match and int(match.group(1)) == 0:
        problem = "number of devices must be at least 1"
        raise InputError(problem, key="--gpus", value=group, remedy=f"write 1x{match.group(2)} or leave it out")
    try:
        return load_fleet(group)
    except UnknownNameError as error:
        if error.value == group:
            raise
        raise UnknownNameError("device", str(error.value), names(Device), listing="roofplan hw list") from None
