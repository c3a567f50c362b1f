"""Calibration files: one JSON per device, schema version 1, written atomically and read with clear complaints."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..dtypes import DType
from ..errors import InputError, SurroundingsError
from ..simulator.calibration import (
    Accuracy,
    Basis,
    Calibration,
    Denominators,
    Hull,
    LatencyBandwidth,
    Parameters,
    Provenance,
    ThreeConstants,
)
from ..simulator.operators import Kernel, KernelName

BUNDLED = Path(__file__).parent / "bundled"
SCHEMA_VERSION = 1
FORMS: dict[str, type[Parameters]] = {"three-constants": ThreeConstants, "latency-bandwidth": LatencyBandwidth}


def bundled_files() -> list[Path]:
    """The calibration files that ship with roofplan."""
    return sorted(BUNDLED.glob("*.json"))


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
    write_atomically(path, json.dumps(content, indent=1) + "\n")


def write_atomically(path: Path, text: str) -> None:
    """Put `text` at `path` completely or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise SurroundingsError(f"cannot be written: {error.strerror}", file=str(path)) from None


def _to_json(c: Calibration) -> dict[str, Any]:
    form = next(name for name, cls in FORMS.items() if isinstance(c.parameters, cls))
    return {
        "kernel": c.kernel.name.value,
        "dtype": c.kernel.dtype.value,
        "engine": c.engine,
        "version": c.version,
        "basis": c.basis.value,
        "form": form,
        "parameters": _rounded(c.parameters._asdict()),
        "covariance": [[float(f"{v:.4g}") for v in row] for row in c.covariance],
        "denominators": c.denominators._asdict(),
        "hull": _rounded(c.hull._asdict()),
        "residual_quantiles": [round(q, 4) for q in c.residual_quantiles],
        "own_log_sd": round(c.own_log_sd, 4),
        "shared_log_sd": round(c.shared_log_sd, 4),
        "transfer_log_sd": round(c.transfer_log_sd, 4),
        "transfer_own_log_sd": round(c.transfer_own_log_sd, 4),
        "accuracy": None if c.accuracy is None else _rounded(c.accuracy._asdict()),
        "provenance": c.provenance._asdict(),
    }


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {k: [float(f"{x:.4g}") for x in v] if isinstance(v, tuple) else float(f"{v:.5g}") for k, v in values.items()}


def _from_json(content: dict[str, Any], entry: dict[str, Any], file: str) -> Calibration:
    parameters = FORMS[entry["form"]](**{k: _positive(v, k) for k, v in entry["parameters"].items()})
    for key, value in parameters._asdict().items():
        if key.endswith("_fraction") and value == 0:
            raise InputError("must be positive", key=key, value=value)
    low, middle, high = (_number(q, "residual_quantiles") for q in entry["residual_quantiles"])
    return Calibration(
        device=str(content["device"]),
        architecture=str(content["architecture"]),
        architecture_class=str(content["architecture_class"]),
        kernel=Kernel(KernelName(entry["kernel"]), DType(entry["dtype"])),
        engine=str(entry["engine"]),
        version=str(entry["version"]),
        basis=Basis(entry["basis"]),
        parameters=parameters,
        covariance=tuple(tuple(_number(v, "covariance") for v in row) for row in entry["covariance"]),
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


def _accuracy(raw: dict[str, Any]) -> Accuracy:
    return Accuracy(**{key: _number(value, key) for key, value in raw.items()})


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
