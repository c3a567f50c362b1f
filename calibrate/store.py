"""Calibration files: one JSON per device (`SCHEMA_VERSION`), written atomically and read with clear complaints."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..dtypes import DType
from ..errors import InputError
from ..files import write_text
from ..simulator.calibration import (
    Basis,
    Calibration,
    Denominators,
    Errors,
    Hull,
    Parameters,
    Provenance,
)
from ..simulator.operators import Kernel, KernelName
from . import forms

BUNDLED = Path(__file__).parent / "bundled"
SCHEMA_VERSION = 2
VARIABLE = "ROOFPLAN_CALIBRATION"


def bundled_files() -> list[Path]:
    """The calibration files that ship with roofplan."""
    return sorted(BUNDLED.glob("*.json"))


def known(path: str | None = None) -> tuple[Calibration, ...]:
    """Calibrations of a file or folder (argument, else ROOFPLAN_CALIBRATION), then the user's, then ours."""
    return tuple(c if isinstance(c, Calibration) else c.calibration() for c in entries(path))


def entries(path: str | None = None) -> tuple[Calibration | Entry, ...]:
    """The same, ours not yet read."""
    return (*(c for file in _given(path) for c in read(file)), *bundled())


def _given(path: str | None) -> list[Path]:
    """The calibration files somebody gave or keeps."""
    places = [Path(p) for p in (path or os.environ.get(VARIABLE),) if p]
    user = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "roofplan" / "calibrations"
    places += [user] if user.is_dir() else []
    files: list[Path] = []
    for place in places:
        if place.is_dir():
            found = sorted(place.glob("*.json"))
            if not found:
                raise InputError("no calibration files (*.json) in it", file=str(place), key="calibration")
            files += found
        elif place.is_file():
            files.append(place)
        else:
            raise InputError("no such file or folder", file=str(place), key="calibration")
    return files


@lru_cache(maxsize=64)
def read(path: Path) -> tuple[Calibration, ...]:
    """The calibrations in a file."""
    file = str(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=file) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"not valid JSON: {error}", file=file, remedy="write it with `roofplan calibrate`") from None
    if not isinstance(content, dict) or content.get("schema") != SCHEMA_VERSION:
        raise InputError(f"must be a calibration file of schema {SCHEMA_VERSION}", file=file, key="schema")
    try:
        return tuple(_from_json(content, entry, file) for entry in content["calibrations"])
    except InputError as error:
        raise InputError(error.problem, file=file, key=error.key, value=error.value) from None
    except (AttributeError, LookupError, TypeError, ArithmeticError, ValueError) as error:
        raise InputError(f"damaged entry: {error}", file=file, remedy="write it with `roofplan calibrate`") from None


class Entry(NamedTuple):
    """One line of a bundled file, read only when its kernel is asked for: a query needs few of some three hundred."""

    kernel: Kernel
    device: str
    line: str
    head: str
    file: str

    def calibration(self) -> Calibration:
        """The calibration on the line."""
        return _parsed(self)


@lru_cache(maxsize=512)
def _parsed(entry: Entry) -> Calibration:
    return _from_json(json.loads(entry.head), json.loads(entry.line), entry.file)


_KEYS = re.compile(r'\{"kernel":"([^"]+)","dtype":"([^"]+)"')


@lru_cache(maxsize=1)
def bundled() -> tuple[Entry, ...]:
    """The entries of the bundled files, which `write` laid out a line each."""
    found = []
    for path in bundled_files():
        first, *lines, _ = path.read_text(encoding="utf-8").splitlines()
        head = first.removesuffix("[") + "[]}"
        device = str(json.loads(head)["device"])
        for line in lines:
            keys = _KEYS.match(line)
            if keys is None:
                raise InputError("not laid out as `roofplan calibrate` writes it", file=str(path), value=line[:80])
            kernel = Kernel(KernelName(keys[1]), DType(keys[2]))
            found.append(Entry(kernel, device, line.rstrip(","), head, str(path)))
    return tuple(found)


@lru_cache(maxsize=64)
def digest(path: Path) -> str:
    """Short content hash of a file, to name exactly what an answer rests on."""
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def write(path: Path, device: str, calibrations: Iterable[Calibration]) -> None:
    """Write a device's calibrations (at least one); the old file stays whole until the new one is complete."""
    entries = list(calibrations)
    content = {
        "schema": SCHEMA_VERSION,
        "device": device,
        "architecture": entries[0].architecture,
        "architecture_class": entries[0].architecture_class,
        "calibrations": [_to_json(c) for c in entries],
    }
    write_text(path, _pretty(content))


def _pretty(content: dict[str, Any]) -> str:
    """One line an entry: small, and a change of one kernel is a change of one line."""
    head = {k: v for k, v in content.items() if k != "calibrations"}
    lines = ",\n".join(json.dumps(entry, separators=(",", ":")) for entry in content["calibrations"])
    return f'{json.dumps(head)[:-1]}, "calibrations": [\n{lines}\n]}}\n'


def _to_json(c: Calibration) -> dict[str, Any]:
    return {
        "kernel": c.kernel.name.value,
        "dtype": c.kernel.dtype.value,
        "engine": c.engine,
        "version": c.version,
        "source": c.source,
        "basis": c.basis.value,
        "form": _form(c.parameters),
        "parameters": _named(c.parameters),
        "baseline_form": _form(c.baseline),
        "baseline": _named(c.baseline),
        "log_sd": [_short(v, 3) for v in c.log_sd],
        "correlation": [[round(v, 2) for v in row[:i]] for i, row in enumerate(c.correlation)][1:],
        "at_bound": list(c.at_bound),
        "denominators": c.denominators._asdict(),
        "hull": {k: [_short(x, 4) for x in v] for k, v in c.hull._asdict().items()},
        "residual_quantiles": [round(q, 4) for q in c.residual_quantiles],
        "own_log_sd": round(c.own_log_sd, 4),
        "shared_log_sd": round(c.shared_log_sd, 4),
        "transfer_log_sd": round(c.transfer_log_sd, 4),
        "transfer_own_log_sd": round(c.transfer_own_log_sd, 4),
        "accuracy": None
        if c.accuracy is None
        else {"n": c.accuracy.n, **{k: _short(v, 4) for k, v in c.accuracy._asdict().items() if k != "n"}},
        "provenance": c.provenance._asdict(),
    }


def _form(parameters: Parameters) -> str:
    return next(name for name, cls in forms.NAMES.items() if isinstance(parameters, cls))


def _named(parameters: Parameters) -> dict[str, float]:
    names = forms.ranges(type(parameters))
    return {k: _short(v, 5) for k, v in zip(names, forms.values_of(parameters), strict=True)}


def _short(value: float, digits: int) -> float:
    return float(f"{value:.{digits}g}")


def _parameters(form: object, raw: dict[str, Any]) -> Parameters:
    """Parameters of a form, every one of them there, positive where it divides."""
    if not isinstance(form, str) or form not in forms.NAMES:
        raise InputError("unknown form", key="form", value=form)
    cls = forms.NAMES[form]
    values = []
    for key in forms.ranges(cls):
        value = _positive(raw[key], key)
        if value == 0 and key.endswith(("_fraction", "overlap", "droop_s")):
            raise InputError("must be positive", key=key, value=value)
        values.append(value)
    if len(raw) != len(values):
        raise InputError(f"must have the parameters {', '.join(forms.ranges(cls))}", key="parameters", value=list(raw))
    return forms.build(cls, np.array(values))


def _from_json(content: dict[str, Any], entry: dict[str, Any], file: str) -> Calibration:
    low, middle, high = (_number(q, "residual_quantiles") for q in entry["residual_quantiles"])
    return Calibration(
        device=str(content["device"]),
        architecture=str(content["architecture"]),
        architecture_class=str(content["architecture_class"]),
        kernel=Kernel(KernelName(entry["kernel"]), DType(entry["dtype"])),
        engine=str(entry["engine"]),
        version=str(entry["version"]),
        source=str(entry["source"]),
        basis=Basis(entry["basis"]),
        parameters=_parameters(entry["form"], entry["parameters"]),
        baseline=_parameters(entry["baseline_form"], entry["baseline"]),
        log_sd=tuple(_positive(v, "log_sd") for v in entry["log_sd"]),
        correlation=_symmetric(entry["correlation"]),
        at_bound=tuple(str(name) for name in entry["at_bound"]),
        denominators=Denominators(**{k: _positive(v, k) for k, v in entry["denominators"].items()}),
        hull=Hull(_range(entry["hull"]["flops"]), _range(entry["hull"]["bytes"])),
        residual_quantiles=(low, middle, high),
        own_log_sd=_positive(entry["own_log_sd"], "own_log_sd"),
        shared_log_sd=_positive(entry["shared_log_sd"], "shared_log_sd"),
        transfer_log_sd=_positive(entry["transfer_log_sd"], "transfer_log_sd"),
        transfer_own_log_sd=_positive(entry["transfer_own_log_sd"], "transfer_own_log_sd"),
        accuracy=None if entry["accuracy"] is None else _accuracy(entry["accuracy"]),
        provenance=Provenance(**entry["provenance"]),
        file=file,
    )


def _symmetric(below: Any) -> tuple[tuple[float, ...], ...]:
    """A correlation matrix from what stands below its diagonal."""
    rows = [[], *([_number(v, "correlation") for v in row] for row in below)]
    size = len(rows)
    if any(len(row) != i for i, row in enumerate(rows)):
        raise InputError("must be the part below the diagonal, row by row", key="correlation", value=size)
    return tuple(tuple(1.0 if i == j else rows[max(i, j)][min(i, j)] for j in range(size)) for i in range(size))


def _accuracy(raw: dict[str, Any]) -> Errors:
    numbers = {key: _number(value, key) for key, value in raw.items()}
    return Errors(**{**numbers, "n": int(numbers["n"])})  # type: ignore[arg-type]


def _number(value: object, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError("must be a finite number", key=key, value=value)
    return float(value)


def _positive(value: object, key: str) -> float:
    if (number := _number(value, key)) < 0:
        raise InputError("must be zero or more", key=key, value=value)
    return number


def _range(raw: Any) -> tuple[float, float]:
    low, high = (_number(x, "hull") for x in raw)
    if low > high:
        raise InputError("must be [low, high]", key="hull", value=raw)
    return low, high
