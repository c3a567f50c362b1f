"""A validation as a table for people, as a GitHub table, and as JUnit XML for a CI."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.markup import escape

from .. import catalogue as a
from .text import table

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

    from rich.console import Console

ALL = "all"
COLUMNS = (
    "evidence",
    "device",
    "kernel",
    "engine",
    "source",
    "regime",
    "rows",
    "MAPE",
    "median",
    "p90",
    "bias",
    "in 80 %",
    "width",
    "three constants",
    "pure roofline",
)
TEXTS = 6  # of the columns, from the left
RATIO_COLUMNS = ("ratios between runs with", "pairs", "median", "p90", "ratio 1", "best constant")
UNITS = "errors, widths and coverage in percent; baselines: MAPE / median on the same rows"
MEASURES = {"mape": "MAPE", "median": "median error", "coverage": "rows inside the 80 % intervals"}
NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def cells(row: a.ValidationRow) -> list[str]:
    """A row in the order of the columns."""
    return [
        row.evidence,
        row.device,
        row.kernel,
        f"{row.engine or '-'} {row.version}".strip(),
        row.source,
        row.regime,
        f"{row.rows:,}",
        *(f"{x:.1f}" for x in (row.mape_percent, row.median_percent, row.p90_percent)),
        f"{row.bias_percent:+.1f}",
        f"{row.coverage_percent:.0f}",
        f"{row.width_percent:.0f}",
        f"{row.three_constants_mape_percent:.0f} / {row.three_constants_median_percent:.0f}",
        f"{row.pure_roofline_mape_percent:.0f} / {row.pure_roofline_median_percent:.0f}",
    ]


def _ratio(row: a.RatioRow) -> list[str]:
    return [row.between, f"{row.pairs:,}", *(f"{x:.1f}" for x in row[2:])]


FEW = 4  # names that a sentence bears


def sentence(s: a.EvidenceSummary) -> str:
    """What one kind of evidence comes to."""
    coverage = f"{s.coverage_percent:.1f} % of {s.rows:,} rows inside their 80 % interval"
    parts = [f"{s.evidence}: {coverage}; {_of('worse than three constants', s.worse_than_three_constants, s.cases)}"]
    parts.append(_of("degenerate (a rate that the data did not hold)", s.degenerate, s.cases))
    return "; ".join(parts)


def _of(what: str, names: Sequence[str], cases: int) -> str:
    shown = ", ".join(names[:FEW]) + (f" and {len(names) - FEW} more (--json has them all)" if len(names) > FEW else "")
    return f"{len(names)} of {cases} {what}" + (f": {shown}" if names else "")


def told(bound: a.BoundRow) -> str:
    """A bound and how it was met."""
    limit = f"at {'least' if bound.measure == 'coverage' else 'most'} {bound.limit_percent:g} %"
    return f"{bound.evidence}: {bound.case}: {MEASURES[bound.measure]} {bound.value_percent:.4g} %, {limit}"


def render(out: Console, answer: a.Validation) -> None:
    """Print a validation."""
    out.print(table(COLUMNS, ([escape(c) for c in cells(row)] for row in answer.rows), left=TEXTS))
    out.print(UNITS)
    if answer.ratios:
        out.print()
        out.print(table(RATIO_COLUMNS, map(_ratio, answer.ratios)))
    out.print()
    for summary in answer.summaries:
        out.print(escape(sentence(summary)))
    for bound in answer.bounds:
        if not bound.held:
            out.print(f"[bold red]broken[/] {escape(told(bound))}")
    if answer.bounds:
        held = sum(bound.held for bound in answer.bounds)
        out.print(f"{held} of {len(answer.bounds)} figures keep their bound")


def render_kernels(out: Console, answer: a.KernelList) -> None:
    """Print the kernels there are."""
    rows = (
        [escape(t) for t in (r.device, r.kernel, f"{r.engine} {r.version}", r.source, r.state, f"{r.rows:,}", r.reason)]
        for r in answer.rows
    )
    result = table(["device", "kernel", "engine", "source", "state", "rows", "why"], rows, left=5)
    result.columns[-1].justify = "left"
    out.print(result)
    states = [r.state for r in answer.rows]
    out.print("\n" + ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)))


def markdown(answer: a.Validation, notes: Iterable[str] = ()) -> str:
    """The same as a page GitHub renders."""
    lines = [*_table(COLUMNS, map(cells, answer.rows), TEXTS), "", _plain(UNITS), ""]
    if answer.ratios:
        lines += [*_table(RATIO_COLUMNS, map(_ratio, answer.ratios), 1), ""]
    lines += [f"- {_plain(sentence(summary))}" for summary in answer.summaries]
    lines += [f"- {'held' if bound.held else '**broken**'}: {_plain(told(bound))}" for bound in answer.bounds]
    lines += [f"- note: {_plain(note)}" for note in notes]
    return "\n".join(lines) + "\n"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]], left: int) -> list[str]:
    """A GitHub table; text columns flush left, numbers flush right."""
    rules = [":--" if i < left else "--:" for i in range(len(columns))]
    return [f"| {' | '.join(_plain(cell) for cell in row)} |" for row in (columns, rules, *rows)]


def _plain(text: str) -> str:
    """Text that Markdown shows as it stands, on one line."""
    return re.sub(r"([\\`*_<>\[\]|])", r"\\\1", " ".join(text.split()))


def junit(answer: a.Validation) -> str:
    """One test case a bound and the case it was held to; cases that nothing bounds are skipped ones."""
    from xml.etree import ElementTree as Xml

    bounded = {(bound.evidence, bound.case) for bound in answer.bounds}
    free = [r for r in answer.rows if r.regime == ALL and (r.evidence, r.case) not in bounded]
    broken = [bound for bound in answer.bounds if not bound.held]
    totals = {
        "tests": str(len(answer.bounds) + len(free)),
        "failures": str(len(broken)),
        "errors": "0",
        "skipped": str(len(free)),
    }
    root = Xml.Element("testsuites", totals)
    suite = Xml.SubElement(root, "testsuite", {"name": "roofplan validate", **totals})
    for bound in answer.bounds:
        sign = ">=" if bound.measure == "coverage" else "<="
        limit = f"{MEASURES[bound.measure]} {sign} {bound.limit_percent:g} % ({bound.kernel_class})"
        case = _testcase(suite, bound.evidence, f"{bound.case}: {limit}")
        if not bound.held:
            failure = Xml.SubElement(case, "failure", {"type": "bound", "message": _legal(told(bound))})
            failure.text = _legal(told(bound))
    for row in free:
        figures = f"MAPE {row.mape_percent:.2f} %, median {row.median_percent:.2f} %: no bound was given"
        Xml.SubElement(_testcase(suite, row.evidence, row.case), "skipped", {"message": figures})
    Xml.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + Xml.tostring(root, encoding="unicode") + "\n"


def _testcase(suite: Element, evidence: str, name: str) -> Element:
    from xml.etree import ElementTree as Xml

    where = f"roofplan.validate.{evidence}".replace(" ", "-")
    return Xml.SubElement(suite, "testcase", {"classname": _legal(where), "name": _legal(name)})


def _legal(text: str) -> str:
    """Text without the characters XML cannot hold."""
    return NOT_XML.sub("\ufffd", text)
