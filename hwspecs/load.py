"""Read hardware files: TOML in, typed frozen parts out; every complaint names file, key, value and remedy."""

from __future__ import annotations

import dataclasses
import math
import os.path
import re
import tomllib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from ..dtypes import DType
from ..errors import InputError, UnknownNameError
from ..units import parse_bytes, parse_rate
from . import names as spoken
from .device import Cluster, Device, Fact, Fleet, Host, Kind, Link, Part, Source, Storage
from .unified import as_sold

ROOT = Path(__file__).parent
FOLDERS: Mapping[type[Part], str] = {
    Device: "gpus",
    Host: "hosts",
    Link: "links",
    Storage: "storage",
    Cluster: "clusters",
}
SCHEMA_VERSION = 1
MAX_FILE_BYTES = 1_000_000
MAX_DEVICES = 8

PartT = TypeVar("PartT", bound=Part)
_COPY_ONE = "start from a working file: `roofplan hw show rtx-4090 --toml`"


def names(part: type[Part]) -> list[str]:
    """The keys of all bundled files of a kind, sorted; reads no file."""
    return sorted(path.stem for path in (ROOT / FOLDERS[part]).glob("*.toml"))


def path_of(part: type[Part], name: str) -> Path:
    """The file behind a bundled name or a path ending in .toml."""
    if name.endswith(".toml"):
        path = Path(name)
        if not os.path.isfile(path):  # noqa: PTH113 - Path.is_file raises on a name too long
            raise InputError("no such file", file=name, remedy="give the path of a TOML file or a bundled name")
        return path
    key = name.strip().lower().replace("_", "-").replace(" ", "-")
    known = names(part)
    if key not in known:
        alias = tomllib.loads((ROOT / "aliases.toml").read_text(encoding="utf-8")).get(part.__name__.lower(), {})
        if key in alias:
            return ROOT / FOLDERS[part] / f"{alias[key]}.toml"
        close = [k for k in known if _bare(k) == _bare(key) or k.startswith(f"{key}-") or k.endswith(f"-{key}")]
        if part is Device and len(close) == 1:  # what people type; references between files are exact
            return ROOT / FOLDERS[part] / f"{close[0]}.toml"
        if part is Device and (files := spoken.called(name)):  # what drivers and systems call it
            return ROOT / FOLDERS[part] / f"{files[0]}.toml"
        if "/" in name or os.path.exists(name):  # noqa: PTH110 - Path.exists raises on a name too long
            raise InputError("not a hardware file", file=name, remedy="give the path of a .toml file or a bundled name")
        raise UnknownNameError(part.__name__.lower(), name, known, listing="roofplan hw list")
    return ROOT / FOLDERS[part] / f"{key}.toml"


def _bare(name: str) -> str:
    return "".join(ch for ch in name if ch.isalnum())


def load(part: type[PartT], name: str) -> PartT:
    """The part of that name (or at that path). Bundled files are parsed once per process."""
    path = path_of(part, name)
    if not path.is_relative_to(ROOT):
        return read(part, path)
    bundled = _load_bundled(path)
    assert isinstance(bundled, part)
    return bundled


@lru_cache(maxsize=256)
def _load_bundled(path: Path) -> Part:
    part = next(part for part, folder in FOLDERS.items() if folder == path.parent.name)
    return read(part, path)


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file as nested tables, or one clear line why not."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise InputError("larger than 1 MB: not a hardware file", file=str(path))
        return tomllib.loads(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=str(path)) from None
    except UnicodeDecodeError:
        raise InputError("not UTF-8 text", file=str(path), remedy=_COPY_ONE) from None
    except (tomllib.TOMLDecodeError, ValueError) as error:
        raise InputError(f"not valid TOML: {error}", file=str(path), remedy=_COPY_ONE) from None
    except RecursionError:
        raise InputError("nested too deeply: not a hardware file", file=str(path), remedy=_COPY_ONE) from None


def read(part: type[PartT], path: Path) -> PartT:
    """Build the part from the file at `path`, checking every key against the schema."""
    file = str(path)
    table = read_toml(path)
    version = table.pop("schema", None)
    if version != SCHEMA_VERSION:
        raise InputError(f"must be {SCHEMA_VERSION}", file=file, key="schema", value=version, remedy=_COPY_ONE)
    sources = _sources(table.pop("sources", None), file)
    fields = {f.name: f for f in dataclasses.fields(part) if f.metadata["type"] != "internal"}
    for key in table:
        if key not in fields:
            import difflib

            close = difflib.get_close_matches(key, fields, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise InputError("unknown key", file=file, key=key, remedy=f"{hint}`roofplan hw schema` lists them all")
    values: dict[str, Any] = {}
    for name, f in fields.items():
        if name in table:
            values[name] = _READERS[f.metadata["type"]](table[name], file, name, sources)
        elif f.metadata.get("required"):
            raise InputError(f"missing: {f.metadata['meaning']}", file=file, key=name, remedy=_COPY_ONE)
    return part(key=path.stem, file=file, sources=MappingProxyType(sources), **values)


def _sources(raw: object, file: str) -> dict[str, Source]:
    if not isinstance(raw, dict) or not raw:
        raise InputError("missing: the table of documents the numbers come from", file=file, key="sources")
    sources = {}
    for key, entry in raw.items():
        if not isinstance(entry, dict) or not all(isinstance(entry.get(k), str) for k in ("title", "publisher")):
            raise InputError("a source is { title, publisher, where }", file=file, key=f"sources.{key}", value=entry)
        where = entry.get("where", "")
        if not isinstance(where, str):
            raise InputError("must be a text", file=file, key=f"sources.{key}.where", value=where)
        sources[key] = Source(entry["title"], entry["publisher"], where)
    return sources


def _fact(raw: object, file: str, key: str, sources: Mapping[str, Source]) -> Fact:
    if not isinstance(raw, dict) or set(raw) != {"value", "source", "kind"}:
        remedy = 'write { value = 1.0e12, source = "datasheet", kind = "datasheet" }'
        raise InputError("a number needs value, source and kind", file=file, key=key, value=raw, remedy=remedy)
    value, source, kind = raw["value"], raw["source"], raw["kind"]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError("value must be a number", file=file, key=key, value=value)
    if not isinstance(source, str) or source not in sources:
        raise InputError("source is not in the file's [sources]", file=file, key=key, value=source)
    if not isinstance(kind, str) or kind not in set(Kind):
        raise InputError(f"kind must be one of {', '.join(Kind)}", file=file, key=key, value=kind)
    try:
        return Fact(float(value), source, Kind(kind))
    except (InputError, OverflowError):
        raise InputError("must be a positive, finite number", file=file, key=key, value=value) from None


def _rates(raw: object, file: str, key: str, sources: Mapping[str, Source]) -> Mapping[DType, Fact]:
    if not isinstance(raw, dict) or not raw:
        raise InputError("must be a table of numbers by format", file=file, key=key, value=raw, remedy=_COPY_ONE)
    for name in raw:
        if name not in set(DType):
            raise InputError(
                "unknown number format", file=file, key=f"{key}.{name}", remedy=f"known: {', '.join(DType)}"
            )
    return MappingProxyType({DType(k): _fact(v, file, f"{key}.{k}", sources) for k, v in raw.items()})


def _text(raw: object, file: str, key: str, sources: Mapping[str, Source]) -> str:
    if not isinstance(raw, str) or not raw.strip() or len(raw) > 200:
        raise InputError("must be a short text", file=file, key=key, value=raw)
    return raw


def _flag(raw: object, file: str, key: str, sources: Mapping[str, Source]) -> bool:
    if not isinstance(raw, bool):
        raise InputError("must be true or false", file=file, key=key, value=raw)
    return raw


_READERS = {"fact": _fact, "rates": _rates, "text": _text, "flag": _flag}


def load_fleet(
    name: str, host: str | None = None, host_memory_bytes: float | None = None, memory_bytes: float | None = None
) -> Fleet:
    """A fleet from `h200`, `2xh100-sxm`, a node or instance such as `8xh200` or `p5.48xlarge`, or a user's own TOML
    (`2x./mine.toml`).

    Without a host the fleet has no host memory; `host_memory_bytes` states it alone. `memory_bytes` is the memory of
    the machine, where devices share it (`m2-max`; `m2-max-64gb` says it in the name).
    """
    node = cluster_of(name)
    if node is not None:
        found = load(Device, node.device)
        device = found if memory_bytes is None else as_sold(found, memory_bytes)
        count, host = int(node.device_count.value), host or node.host
    else:
        match = re.fullmatch(r"(\d{1,9})x(.+)", name, re.IGNORECASE)
        count = 1
        if match and not os.path.isfile(name):  # noqa: PTH113 - Path.is_file raises on a name too long
            count, name = int(match.group(1)), match.group(2)
        device, memory_bytes = _device(name, memory_bytes)
        if not 1 <= count <= MAX_DEVICES:
            _refuse_absurd(count, device)
    fleet = fleet_of(device, count, load(Host, host) if host else None, host_memory_bytes)
    fleet = dataclasses.replace(fleet, memory_bytes=memory_bytes)
    return fleet if node is None else _in_node(fleet, node)


def cluster_of(name: str) -> Cluster | None:
    """The node or instance of that name, if there is one: clouds write dots, underscores and capitals."""
    key = re.sub(r"[ _.]", "-", name.strip().lower())
    known = names(Cluster)
    found = next((k for k in (key, f"standard-{key}") if k in known), None)
    return None if found is None else load(Cluster, found)


def _in_node(fleet: Fleet, node: Cluster) -> Fleet:
    """The fleet as the node joins it: its own link between devices where it has one, and its network."""
    return dataclasses.replace(
        fleet,
        cluster=node.key,
        interconnect=load(Link, node.interconnect) if node.interconnect else fleet.interconnect,
        network=load(Link, node.network) if node.network else None,
        network_ports=int(node.network_ports.value) if node.network_ports else 0,
    )


def _device(name: str, memory_bytes: float | None) -> tuple[Device, float | None]:
    """The device of that name, with the memory stated beside it or at its end (`m2-max-64gb`), and that memory."""
    try:
        device = load(Device, name)
    except UnknownNameError:
        match = re.fullmatch(r"(.+?)[-_ ]?(\d{1,4}) ?gb", name.strip(), re.IGNORECASE)
        if match is None or memory_bytes is not None or not _shares_memory(match.group(1)):
            raise
        device, memory_bytes = load(Device, match.group(1)), float(match.group(2)) * 1e9
    return (device if memory_bytes is None else as_sold(device, memory_bytes)), memory_bytes


def _shares_memory(name: str) -> bool:
    """Whether that is a device without memory of its own."""
    try:
        return load(Device, name).unified_memory
    except UnknownNameError:
        return False


def _refuse_absurd(count: int, device: Device) -> None:
    """More devices than usual are one node only where a listed node has as many of them."""
    nodes = (load(Cluster, key) for key in names(Cluster))
    most = max((int(n.device_count.value) for n in nodes if n.device == device.key), default=0)
    limit = max(MAX_DEVICES, most)
    if not 1 <= count <= limit:
        problem = f"number of devices of one node must lie between 1 and {limit}"
        raise InputError(problem, key="--gpu", value=count, remedy="several nodes are not modelled yet")


def fleet_of(device: Device, count: int = 1, host: Host | None = None, host_memory_bytes: float | None = None) -> Fleet:
    """A fleet of `count` such devices with the links its file names."""
    try:
        interconnect, host_link = load(Link, device.interconnect), load(Link, device.host_link)
    except UnknownNameError as error:
        key = "interconnect" if device.interconnect == error.value else "host_link"
        raise InputError(error.problem, file=device.file, key=key, value=error.value, remedy=error.remedy) from None
    if host_memory_bytes is None and host is not None:
        host_memory_bytes = host.memory_bytes.value
    storage = load(Storage, host.storage) if host is not None and host.storage else None
    return Fleet(device, count, interconnect, host_link, host, host_memory_bytes, storage=storage)


def with_bandwidth(fleet: Fleet, bytes_per_s: float | None) -> Fleet:
    """The fleet with the host memory bandwidth somebody stated (None: as it is)."""
    if bytes_per_s is None:
        return fleet
    host = fleet.host or load(Host, STAND_IN)
    stated = {"stated": Source("stated on the command line", "the asker", "--ram-bandwidth"), **host.sources}
    rate = Fact(bytes_per_s, "stated", Kind.DATASHEET)
    host = dataclasses.replace(host, memory_bandwidth_bytes_per_s=rate, sources=stated)
    return dataclasses.replace(fleet, host=host)


def with_drive(fleet: Fleet, drive: str | None) -> Fleet:
    """The fleet with a drive behind its host memory: a storage file by name, or its reading rate such as `7GB/s`."""
    if drive is None:
        return fleet
    if drive[:1].isdigit():
        rate = parse_rate(drive, "--nvme")
        like = load(Storage, "nvme-gen4")
        stated = {"stated": Source("stated on the command line", "the asker", "--nvme"), **like.sources}
        fact = Fact(rate, "stated", Kind.DATASHEET)
        return dataclasses.replace(fleet, storage=dataclasses.replace(like, read_bytes_per_s=fact, sources=stated))
    return dataclasses.replace(fleet, storage=load(Storage, drive))


def with_cxl(fleet: Fleet, cxl: str | None) -> Fleet:
    """The fleet with memory behind CXL: its size, and at what rate the host reads it (`512GB@72GB/s`).

    Without a rate as many modules of the bundled kind as hold it, all read at once.
    """
    if cxl is None:
        return fleet
    size, at, rate = cxl.partition("@")
    module = load(Storage, "cxl-cz120")
    held, one = parse_bytes(size, "--cxl"), module.capacity_bytes
    assert one is not None
    modules = math.ceil(held / one.value)
    bytes_per_s = parse_rate(rate, "--cxl") if at else modules * module.read_bytes_per_s.value
    stated = {"stated": Source("stated on the command line", "the asker", "--cxl"), **module.sources}
    kind = Kind.DATASHEET if at else Kind.ASSUMED
    there = dataclasses.replace(
        module,
        read_bytes_per_s=Fact(bytes_per_s, "stated", kind),
        write_bytes_per_s=Fact(bytes_per_s, "stated", kind),
        capacity_bytes=Fact(held, "stated", Kind.DATASHEET),
        sources=stated,
    )
    return dataclasses.replace(fleet, cxl=there)


STAND_IN = "desktop-ddr5"


def host_fleet(fleet: Fleet, copies: bool = False) -> Fleet:
    """The fleet's host as a device of its own; where only its memory is known a desktop is assumed.

    Of several sockets it counts on the bandwidth of one, unless each keeps its own copy of what it reads (`copies`):
    public runs on two and four sockets reach 1.2 and 1.0 times what one socket's memory gives.
    """
    host = fleet.host
    if host is None:
        stand_in = load(Host, STAND_IN)
        guessed = dataclasses.replace(stand_in.memory_bandwidth_bytes_per_s, kind=Kind.ASSUMED)
        host = dataclasses.replace(stand_in, memory_bandwidth_bytes_per_s=guessed)
    bus, device = load(Link, "memory-bus"), host.as_device()
    if host.sockets is not None and host.sockets.value > 1 and not copies:
        rate = device.bandwidth_bytes_per_s
        one = Fact(rate.value / host.sockets.value, rate.source, Kind.DERIVED)
        device = dataclasses.replace(device, bandwidth_bytes_per_s=one)
    return Fleet(device, 1, bus, bus, None, fleet.host_memory_bytes)
