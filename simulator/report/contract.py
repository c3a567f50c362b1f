"""The machine-readable contract: one JSON object a command, its schema generated from the types (`schema.py`)."""

from __future__ import annotations

import json
import math
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import RoofplanError
from ..answers import (
    SCHEMA_NAME,
    SCHEMA_VERSION,
    Answer,
    ErrorBody,
    ErrorReport,
    Evidence,
    ExplainAnswer,
    FitAnswer,
    FitList,
    MemoryAnswer,
    PassAnswer,
    PassList,
    Question,
    Report,
    SchemaId,
    ServeAnswer,
    SweepAnswer,
    Words,
)

if TYPE_CHECKING:
    from ..catalogue import CatalogueAnswer
    from ..plan_answers import PlanAnswer

SCHEMA_FILE = Path(__file__).parent / "schema.json"


def envelope(
    answer: Answer | CatalogueAnswer | PlanAnswer,
    question: Question | None = None,
    evidence: Evidence | None = None,
    warnings: tuple[str, ...] = (),
) -> Report:
    """An answer in the envelope of the contract."""
    return Report(SchemaId(SCHEMA_NAME, SCHEMA_VERSION), question, answer, evidence, warnings)


def with_warnings(report: Report, notes: tuple[str, ...]) -> Report:
    """The report with notes that arose around it (how hardware was found, say)."""
    return report._replace(warnings=(*report.warnings, *notes))


def is_no(answer: Answer | CatalogueAnswer | PlanAnswer) -> bool:
    """Whether an answer is an honest no: nothing asked about fits, or a check found something."""
    match answer:
        case FitAnswer() | MemoryAnswer() | ServeAnswer() | PassAnswer():
            return answer.verdict == "no"
        case FitList() | PassList():
            return all(row.verdict == "no" for row in answer.rows)
        case SweepAnswer():
            verdict = answer.columns.verdict
            return not bool((verdict.codes != verdict.names.index("no")).any())
        case ExplainAnswer():
            return False
    from ..catalogue import CalibrationReport, LintReport, Validation
    from ..plan_answers import PlanAnswer

    if isinstance(answer, CalibrationReport):
        return not all(gate.held for gate in answer.gates)
    if isinstance(answer, PlanAnswer):
        return answer.verdict == "no"
    if isinstance(answer, Validation):
        return not all(bound.held for bound in answer.bounds)
    return isinstance(answer, LintReport) and bool(answer.findings)


def to_data(value: Any) -> Any:
    """Plain JSON data of an answer; numbers that are not finite become null."""
    if isinstance(value, Words):
        return [value.names[code] for code in value.codes.tolist()]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return {name: to_data(item) for name, item in zip(value._fields, value, strict=True)}
    if isinstance(value, tuple | list):
        return [to_data(item) for item in value]
    if hasattr(value, "tolist"):  # a column of numbers
        return [number if math.isfinite(number) else None for number in value.tolist()]
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def to_json(value: Report | ErrorReport) -> str:
    """The JSON text of a report; columns may be long and are not spread over a line each."""
    columns = isinstance(value, Report) and isinstance(value.answer, SweepAnswer)
    return json.dumps(to_data(value), indent=None if columns else 2, allow_nan=False)


def error_report(error: RoofplanError) -> ErrorReport:
    """An error as an object, beside the one line people see."""
    value = None if error.value is None else str(error.value)[:200]
    body = ErrorBody(int(error.exit_code), error.kind, error.line(), error.file, error.key, value, error.remedy)
    return ErrorReport(SchemaId(SCHEMA_NAME, SCHEMA_VERSION), body)


def schema_text() -> str:
    """The schema as it is committed."""
    return SCHEMA_FILE.read_text(encoding="utf-8")
