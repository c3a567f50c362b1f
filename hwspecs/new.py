"""Files for hardware nobody listed: drafted from the driver of this machine, or copied from a file that is there.

What a draft cannot know stands in it as TODO; nothing is filled in that was not read somewhere.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from ..errors import InputError, SurroundingsError
from .detect import nvidia
from .detect.nvidia_draft import draft, text
from .detect.system import System
from .device import Device, Fact, Part, attributes
from .load import SCHEMA_VERSION

LOOK_UP = ("advertised_capacity_bytes", "l2_bytes", "shared_memory_per_sm_bytes", "register_file_per_sm_bytes")


def check_name(name: str) -> str:
    """A key that people can type and files can have."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{0,60}", name) or name.endswith(".toml"):
        remedy = "lower-case letters, digits and dashes, such as rtx-3050; --out names the file"
        raise InputError("not a name for a hardware file", key="NAME", value=name, remedy=remedy)
    return name


def from_nvml(system: System | None = None) -> str:
    """A file for the first visible NVIDIA GPU of this machine, from what its driver tells."""
    nvml = nvidia.opened()
    if nvml is None:
        raise SurroundingsError(
            "no NVIDIA driver answers on this machine", remedy="copy a file instead: --like rtx-4090"
        )
    system = system or System()
    try:
        handles = nvidia.visible(nvml, system)
        if not handles:
            raise SurroundingsError("the NVIDIA driver shows no device", remedy="copy a file instead: --like rtx-4090")
        handle = nvidia.whole(nvml, handles[0])
        name, memory = text(nvml.nvmlDeviceGetName(handle)), nvidia.memory_of(nvml, handle, system)
        device = draft(nvml, handle, name, memory.total_bytes, shared=memory.shared)
    except nvml.NVMLError as error:
        raise SurroundingsError(
            f"the NVIDIA driver did not tell enough: {error}", remedy="copy a file instead: --like rtx-4090"
        ) from None
    finally:
        nvml.nvmlShutdown()
    return to_toml(device, _head(device), _comments(device))


def _head(device: Device) -> list[str]:
    return [
        f"Drafted from the driver of one {device.name}. Rates follow from its highest clock, which lies above the one",
        "that data sheets refer to on most cards. Look up every TODO, name the document under [sources], and then:",
        "`roofplan hw lint` this file.",
    ]


def _comments(device: Device) -> dict[str, str]:
    """What stands behind a number of a draft, or in place of one, by its key."""
    return {
        "bandwidth_bytes_per_s": "TODO compare with the data sheet",
        "clock_hz": "TODO the boost clock of the data sheet; rates below scale with it",
        "interconnect": "TODO the NVLink file if a bridge or switch joins such cards",
        "peak_dense_flops_per_s": "TODO compare with the dense rates of the data sheet",
        **{key: "TODO" for key in LOOK_UP if getattr(device, key) is None},
    }


def like(name: str, part: Part) -> str:
    """A copy of a file under another name, with a reminder of what a copy is."""
    copied = Path(part.file).read_text(encoding="utf-8")
    head = f"# TODO a copy of {part.key}: all below is that one's until you change it, numbers and sources alike.\n"
    return head + re.sub(r"(?m)^name = .*$", lambda _: f"name = {_quoted(name)}", copied, count=1)


def to_toml(part: Part, head: list[str], comments: dict[str, str]) -> str:
    """A hardware file with the part's words, numbers, tables and sources, in the order of the schema.

    `comments` stand behind their keys; a number that is missing and has a comment is left as a line to fill in.
    """
    words, numbers, tables = [], [], []
    for row in attributes(type(part)):
        value = getattr(part, row.name)
        told = f"  # {comments[row.name]}" if row.name in comments else ""
        if row.type == "rates":
            if value:
                tables += ["", f"[{row.name}]{told}", *(f"{dtype} = {_fact(fact)}" for dtype, fact in value.items())]
        elif isinstance(value, Fact):
            numbers.append(f"{row.name} = {_fact(value)}{told}")
        elif row.type == "fact" and told:
            numbers.append(f'# {row.name} = {{ value = 0, source = "", kind = "datasheet" }}{told}: {row.meaning}')
        elif row.type == "flag" and value:
            words.append(f"{row.name} = true")
        elif row.type == "text" and value:
            words.append(f"{row.name} = {_quoted(value)}{told}")
    sources = [f"{key} = {{ {_fields(source)} }}" for key, source in part.sources.items()]
    first = [*(f"# {line}" for line in head), f"schema = {SCHEMA_VERSION}"]
    return "\n".join([*first, *words, "", *numbers, *tables, "", "[sources]", *sources]) + "\n"


def _fact(fact: Fact) -> str:
    value = int(fact.value) if fact.value == int(fact.value) else fact.value
    return f'{{ value = {value!r}, source = "{fact.source}", kind = "{fact.kind}" }}'


def _fields(source: tuple[str, ...]) -> str:
    return ", ".join(f"{k} = {_quoted(v)}" for k, v in zip(("title", "publisher", "where"), source, strict=True))


def _quoted(words: str) -> str:
    return json.dumps(words, ensure_ascii=False)


def save(path: Path, content: str, *, force: bool = False) -> None:
    """Write the file completely or not at all; one that is there stays unless `force`."""
    from ..calibrate.store import write_atomically

    if path.exists() and not force:
        raise InputError("exists already", file=str(path), remedy="--force replaces it, --out names another file")
    if path.suffix != ".toml":
        raise InputError("a hardware file ends in .toml", key="--out", value=str(path))
    write_atomically(path, content)
