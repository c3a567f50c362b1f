"""roofplan: what fits on your GPUs, how fast it runs, which plan is best, and how far to trust each number."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
DATA_DATE = "2026-11-21"
"""Date of the newest bundled calibration and hardware file."""

if TYPE_CHECKING:
    from roofplan.api import (
        ask_fit,
        ask_ledger,
        ask_serve,
        ask_validation,
        explain_step,
        load_calibrations,
        load_fleet,
        load_model,
        make_scenario,
    )
    from roofplan.errors import RoofplanError
    from roofplan.plans import ask_plan
    from roofplan.sweeps import ask_sweep, make_sweep, sweep

_PUBLIC = {
    "ask_fit": "roofplan.api",
    "ask_ledger": "roofplan.api",
    "ask_plan": "roofplan.plans",
    "ask_serve": "roofplan.api",
    "ask_sweep": "roofplan.sweeps",
    "ask_validation": "roofplan.api",
    "explain_step": "roofplan.api",
    "load_calibrations": "roofplan.api",
    "load_fleet": "roofplan.api",
    "load_model": "roofplan.api",
    "make_scenario": "roofplan.api",
    "make_sweep": "roofplan.sweeps",
    "RoofplanError": "roofplan.errors",
    "sweep": "roofplan.sweeps",
}
__all__ = [
    "DATA_DATE",
    "RoofplanError",
    "__version__",
    "ask_fit",
    "ask_ledger",
    "ask_plan",
    "ask_serve",
    "ask_sweep",
    "ask_validation",
    "explain_step",
    "load_calibrations",
    "load_fleet",
    "load_model",
    "make_scenario",
    "make_sweep",
    "sweep",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: `import roofplan` itself loads nothing."""
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'roofplan' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
