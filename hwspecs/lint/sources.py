"""Sources and references: what a file names exists, is used, and is said of one part alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import lru_cache

from ...errors import RoofplanError
from ..device import Cluster, Device, Host, Kind, Link, Part, Storage
from ..load import FOLDERS, load, names
from .base import Finding, facts_of, off

MIN_SOURCED_NUMBERS = 12


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


Line = tuple[str, str, str]  # a source's title and place, and the key of a number it gives


@lru_cache(maxsize=8)
def _said(folder: str) -> Mapping[Line, Mapping[str, float]]:
    """What all bundled files of a folder say on one line of one source, by their keys."""
    kind = next(part for part, known in FOLDERS.items() if known == folder)
    said: dict[Line, dict[str, float]] = defaultdict(dict)
    for name in names(kind):
        part = load(kind, name)
        for key, fact in facts_of(part):
            source = part.sources[fact.source]
            said[source.title, source.where, key][name] = fact.value
    return said


def a_source_line_is_of_one_part(part: Part) -> Iterator[Finding]:
    """The same line of the same document cannot give two parts different numbers: its column or row is not named."""
    said = _said(FOLDERS[type(part)])
    bundled = part.key in names(type(part)) and load(type(part), part.key).file == part.file
    for key, fact in facts_of(part):
        source = part.sources[fact.source]
        others = said.get((source.title, source.where, key), {})
        own = part.key if bundled else ""  # a copy of a bundled file speaks for another part
        unlike = [name for name, value in others.items() if name != own and off(fact.value, value, 1e-9)]
        if unlike:
            problem = (
                f"{unlike[0]} has {others[unlike[0]]:.6g} from the same place of {fact.source!r} "
                f"({source.where or 'no place named'}): name the column or row of each"
            )
            yield Finding(part.file, key, problem)
