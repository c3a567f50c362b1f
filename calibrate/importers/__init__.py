"""Importers: what other tools write about a run, as records. What their files do not say is given by options."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

from ...errors import InputError
from ..records import read_text
from . import llama_bench, vllm_bench, vllm_log
from .common import Given, Imported, read_objects

__all__ = ["Given", "Imported", "Kind", "detect", "import_file"]


class Kind(StrEnum):
    """Whose file it is."""

    VLLM_BENCH = "vllm-bench"
    LLAMA_BENCH = "llama-bench"
    VLLM_LOG = "vllm-log"


def detect(text: str, file: str) -> Kind:
    """Whose file it is, by what only that tool writes."""
    if text.lstrip()[:1] in ("{", "["):
        try:
            objects = read_objects(text, file)
        except InputError:
            if not vllm_log.is_one(text):
                raise
        else:
            if any(llama_bench.is_one(entry) for entry in objects):
                return Kind.LLAMA_BENCH
            if any(vllm_bench.is_one(entry) for entry in objects):
                return Kind.VLLM_BENCH
    if vllm_log.is_one(text):
        return Kind.VLLM_LOG
    raise InputError("not a file any importer knows", file=file, remedy=f"say which with --from: {', '.join(Kind)}")


def import_file(path: Path, kind: Kind | None, given: Given) -> Imported:
    """The records in a file; its kind is found out where it is not given."""
    text, file = read_text(path), str(path)
    match kind or detect(text, file):
        case Kind.VLLM_BENCH:
            return vllm_bench.records(read_objects(text, file), file, given)
        case Kind.LLAMA_BENCH:
            return llama_bench.records(read_objects(text, file), file, given)
        case Kind.VLLM_LOG:
            return vllm_log.records(text, file, given)
