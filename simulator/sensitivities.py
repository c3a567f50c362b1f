"""What formats cost in single layers, where the asker measured it: the file of --sensitivity."""

from __future__ import annotations

import csv
import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from ..errors import InputError, UnknownNameError
from .quality import LEAST, Part, share
from .workload.formats import WeightFormat, weight_format
from .workload.model import Model


class Sensitivities(NamedTuple):
    """A user's own changes of log-perplexity, one for a layer, part and format."""

    file: str
    changes: Mapping[tuple[int, Part, str], float]

    def of(self, layer: int, part: Part, weights: WeightFormat) -> float | None:
        """What the layer's part costs in that format (None: the file does not say); the layer of tables is -1."""
        return self.changes.get((layer, part, weights.name))

    def check(self, model: Model) -> None:
        """Refuse layers and parts the model does not have."""
        for layer, part, _ in self.changes:
            if layer >= model.layers:
                problem = f"{model.name} has layers 0 to {model.layers - 1}"
                raise InputError(problem, file=self.file, key="layer", value=layer)
            if share(model, part, whole=True) == 0:
                raise InputError(f"{model.name} has no such part", file=self.file, key="class", value=part.value)


def told_apart(model: Model, sensitivities: Sensitivities) -> Model:
    """The model with a block for each kind of layers that cost alike: what a plan may treat as one."""
    kinds: list[tuple[int, tuple[tuple[str, str, float], ...]]] = []
    pattern = []
    for layer, block in enumerate(model.pattern):
        said = sorted((part.value, name, d) for (at, part, name), d in sensitivities.changes.items() if at == layer)
        kind = (block, tuple(said))
        if kind not in kinds:
            kinds.append(kind)
        pattern.append(kinds.index(kind))
    names = [model.blocks[block].name for block, _ in kinds]
    blocks = tuple(
        model.blocks[block]._replace(name=name if names.count(name) == 1 else f"{name} {i}")
        for i, ((block, _), name) in enumerate(zip(kinds, names, strict=True))
    )
    return dataclasses.replace(model, blocks=blocks, pattern=tuple(pattern))


COLUMNS = ("layer", "class", "format", "delta_log_ppl")
MOST_BYTES = 20_000_000


def read_sensitivities(path: Path) -> Sensitivities:
    """The file of --sensitivity: CSV with `COLUMNS`; `layer` counts from 0 and is blank for embedding and head."""
    file = str(path)
    reader = csv.reader(_text(path, file).splitlines())
    try:
        header = tuple(cell.strip() for cell in next(reader, []))
        if header != COLUMNS:
            raise InputError(
                "must have the columns " + ",".join(COLUMNS), file=file, key="line 1", value=",".join(header)
            )
        changes: dict[tuple[int, Part, str], float] = {}
        for row in reader:
            if not any(cell.strip() for cell in row):
                continue
            where = f"line {reader.line_num}"
            key, change = _sensitivity(row, file, where)
            if key in changes:
                raise InputError("the layer, class and format of a line before it", file=file, key=where)
            changes[key] = change
    except csv.Error as error:
        raise InputError(f"not CSV: {error}", file=file, key=f"line {reader.line_num}") from None
    if not changes:
        raise InputError("has no lines", file=file, remedy="give " + ",".join(COLUMNS))
    return Sensitivities(file, MappingProxyType(changes))


def _sensitivity(row: Sequence[str], file: str, where: str) -> tuple[tuple[int, Part, str], float]:
    cells = [cell.strip() for cell in row]
    if len(cells) != len(COLUMNS):
        raise InputError(f"must have {len(COLUMNS)} cells", file=file, key=where, value=len(cells))
    layer, part, name, change = cells
    if part not in list(Part):
        raise InputError("unknown class", file=file, key=where, value=part, remedy=f"one of {', '.join(Part)}")
    tables = part in (Part.EMBEDDING, Part.HEAD)
    if (layer == "") != tables or not (tables or (layer.isascii() and layer.isdigit() and len(layer) < 7)):
        problem = "layer must be blank for embedding and head, for all else a whole number from 0"
        raise InputError(problem, file=file, key=where, value=layer)
    try:
        format_ = weight_format(name).name
    except UnknownNameError as error:
        raise InputError(error.problem, file=file, key=where, value=name, remedy=error.remedy) from None
    try:
        number = float(change)
    except ValueError:
        number = math.nan
    if not LEAST <= number <= 100:
        problem = f"delta_log_ppl must be a number from {LEAST:g} to 100"
        raise InputError(problem, file=file, key=where, value=change)
    return (-1 if tables else int(layer), Part(part), format_), number


def _text(path: Path, file: str) -> str:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise InputError("larger than 20 MB: not a file of sensitivities", file=file)
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=file, key="--sensitivity") from None
    except ValueError:
        remedy = "give the path of a CSV file in UTF-8"
        raise InputError("not UTF-8 text", file=file, key="--sensitivity", remedy=remedy) from None
