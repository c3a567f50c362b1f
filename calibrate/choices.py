"""Judge decisions, not times: layout and number of users chosen by our prices, beside what was measured to be best.

A question is one public serving run (engine, version, device, model, formats, lengths) with a limit on the time per
output token; what may be chosen are the points that were measured, and the most output tokens a second and device win.
Every point is priced as `plan` prices it, by `serve`; nothing is fitted on these rows. A point that was chosen and in
truth breaks the limit is a failure, told in three ways (`Regrets`).
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from enum import StrEnum
from functools import lru_cache
from math import erf, log, sqrt
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import InputError
from ..simulator import catalogue as a
from ..simulator.calibration import Calibration
from ..simulator.estimate import Estimate
from ..simulator.serving import serve
from . import serving_rows, validate
from .serving import question, why_not
from .serving_rows import Key, ServingRow
from .transfer import Calibrations
from .validate import Progress

LIMITS_S = (0.010, 0.015, 0.020, 0.030, 0.050)
GATES = Path(__file__).parent / "choice_gates.csv"

Layout = tuple[int, int, int, int]


class Rule(StrEnum):
    """How to choose among priced points. Which of the three serves best was asked of one half of the runs."""

    MEDIAN = "predicted time keeps the limit"  # what `plan` does
    UPPER = "upper end of the 80 % interval keeps the limit"
    EXPECTED = "most tokens times the chance that the limit is kept"


class Baseline(StrEnum):
    """Choices without a model, all of them told by the measurements how many users keep the limit."""

    FEWEST = "fewest devices"
    MOST = "most devices"
    RANDOM = "any point that keeps the limit"


class Half(StrEnum):
    """Runs in the order of their names: every second one is held out from the choice between rules."""

    ALL = "all"
    CHOOSING = "choosing"
    HELD_OUT = "held out"


class Point(NamedTuple):
    """A measured point of a run and its prices: time per output token, and tokens a second and device."""

    row: ServingRow
    time: Estimate
    predicted_rate: float

    @property
    def layout(self) -> Layout:
        """Degrees of tensor, pipeline, expert and attention data parallelism."""
        return self.row.tp, self.row.pp, self.row.ep, self.row.attention_dp

    @property
    def rate(self) -> float:
        """Output tokens a second and device that were measured: clients over the time of a request (Little's law)."""
        output = self.row.osl * self.row.mean_length
        seconds = self.row.ttft_s + max(output - 1.0, 0.0) * self.row.tpot_s
        return self.row.concurrency * output / seconds / self.row.devices

    def keeps(self, limit_s: float) -> bool:
        """Whether it was measured to keep the limit."""
        return self.row.tpot_s <= limit_s

    @property
    def label(self) -> str:
        """`tp4 ep4, 32 clients`."""
        named = zip(("tp", "pp", "ep", "dp"), self.layout, strict=True)
        degrees = " ".join(f"{name}{n}" for name, n in named if n > 1 or name == "tp")
        return f"{degrees}, {self.row.concurrency} clients"


class Question(NamedTuple):
    """The points of a run and a limit that at least two layouts were measured to keep."""

    run: tuple[Point, ...]
    limit_s: float
    half: Half

    @property
    def possible(self) -> list[Point]:
        """The points that keep the limit."""
        return [p for p in self.run if p.keeps(self.limit_s)]

    @property
    def best(self) -> Point:
        """The best of them."""
        return max(self.possible, key=lambda p: p.rate)

    @property
    def label(self) -> str:
        """`llama-3.1-70b fp8, h200, vllm 0.12.0, 1024/1024`."""
        r = self.run[0].row
        return f"{r.model} {r.weights}, {r.device}, {r.engine} {r.version}".strip() + f", {r.isl}/{r.osl}"


class Regrets(NamedTuple):
    """Shares of the best rate that are lost by a choice.

    `strict` loses everything where the limit is broken. `fewer` turns down the users, on the chosen layout, to the next
    measured number that keeps it. `layout` is told the best number of users of the chosen layout.
    """

    strict: float
    fewer: float
    layout: float


class Judged(NamedTuple):
    """A question, what was chosen, and what that lost."""

    question: Question
    chosen: Point
    regrets: Regrets

    @property
    def best_layout(self) -> bool:
        """Whether the layout is the best one."""
        return self.chosen.layout == self.question.best.layout

    @property
    def broken(self) -> bool:
        """Whether the limit is broken in truth."""
        return not self.chosen.keeps(self.question.limit_s)


def run_of(row: ServingRow) -> Key:
    """Equal for rows that differ in nothing but layout, number of clients, day and what was measured."""
    return serving_rows.run(row._replace(tp=0, pp=0, ep=0, attention_dp=0, date=""))


def priced(rows: Sequence[ServingRow], known: Sequence[Calibration], progress: Progress) -> dict[Key, list[Point]]:
    """The comparable rows of every run, of repeated points the latest, each priced as it is asked."""
    latest: dict[tuple[Key, Layout, int], ServingRow] = {}
    for row in rows:
        if row.exclusion is None and why_not(row) is None:
            key = run_of(row), (row.tp, row.pp, row.ep, row.attention_dp), row.concurrency
            if key not in latest or latest[key].date < row.date:
                latest[key] = row
    answers: dict[tuple[str, int, str], Calibrations] = {}
    runs: dict[Key, list[Point]] = {}
    for number, ((run, _, _), row) in enumerate(latest.items(), start=1):
        if number % 100 == 0:
            progress(f"serving row {number}/{len(latest)}")
        scenario, load, fleet = question(row)
        where = row.device, row.devices, row.engine
        if where not in answers:
            answers[where] = Calibrations(fleet, tuple(known), row.engine)
        served = serve(scenario, load, answers[where])
        rate = 1.0 / float(served.time_per_token_of_all.time_s) / row.devices
        runs.setdefault(run, []).append(Point(row, served.time_per_output_token, rate))
    return runs


def questions(runs: dict[Key, list[Point]]) -> tuple[Question, ...]:
    """Every run at every limit that leaves a choice of layouts."""
    found = []
    for i, run in enumerate(sorted(runs, key=str)):
        half = Half.HELD_OUT if i % 2 else Half.CHOOSING
        for limit_s in LIMITS_S:
            asked = Question(tuple(runs[run]), limit_s, half)
            if len({p.layout for p in asked.possible}) > 1:
                found.append(asked)
    return tuple(found)


def chance(time: Estimate, limit_s: float) -> float:
    """How likely a time keeps a limit: the error's logarithm is normal."""
    return 0.5 * (1.0 + erf(log(limit_s / float(time.time_s)) / float(time.log_sd) / sqrt(2.0)))


def choose(asked: Question, rule: Rule) -> Point:
    """The point a rule takes; it sees no measurement. The fastest where none is priced to keep the limit."""
    limit_s = asked.limit_s
    if rule is Rule.EXPECTED:
        return max(asked.run, key=lambda p: p.predicted_rate * chance(p.time, limit_s))
    times = {p: float(p.time.time_s if rule is Rule.MEDIAN else p.time.high_s) for p in asked.run}
    keeping = [p for p in asked.run if times[p] <= limit_s]
    return max(keeping, key=lambda p: p.predicted_rate) if keeping else min(asked.run, key=lambda p: times[p])


def judged(asked: Question, chosen: Point) -> Judged:
    """What a choice loses."""
    best = asked.best.rate
    here = [p for p in asked.possible if p.layout == chosen.layout]
    fewer = [p.rate for p in here if p.row.concurrency <= chosen.row.concurrency]
    kept = (
        chosen.rate if chosen.keeps(asked.limit_s) else 0.0,
        max(fewer, default=0.0),
        max((p.rate for p in here), default=0.0),
    )
    return Judged(asked, chosen, Regrets(*(1.0 - rate / best for rate in kept)))


def without_model(asked: Question, baseline: Baseline) -> list[Judged]:
    """What a baseline chooses: one point with the best number of users for it, or each that keeps the limit."""
    if baseline is Baseline.RANDOM:
        return [judged(asked, p) for p in asked.possible]
    fewest = baseline is Baseline.FEWEST
    devices = (min if fewest else max)(p.row.devices for p in asked.possible)
    return [judged(asked, max((p for p in asked.possible if p.row.devices == devices), key=lambda p: p.rate))]


def summary(name: str, half: Half, found: Sequence[Sequence[Judged]]) -> a.ChoiceSummary:
    """Shares and regrets of choices; where a question has several, they share its weight."""
    weights = np.array([1.0 / len(group) for group in found for _ in group])
    each = [one for group in found for one in group]

    def percent(values: Sequence[bool]) -> float:
        return 100.0 * float(np.average(np.array(values, dtype=float), weights=weights))

    def regret(values: Sequence[float]) -> a.RegretSummary:
        lost = 100.0 * np.array(values)
        median, p90 = np.quantile(lost, [0.5, 0.9], weights=weights, method="inverted_cdf")
        return a.RegretSummary(float(median), float(p90), float(np.average(lost, weights=weights)))

    return a.ChoiceSummary(
        name,
        half,
        len(found),
        percent([one.best_layout for one in each]),
        percent([one.broken for one in each]),
        *(regret([getattr(one.regrets, field) for one in each]) for field in Regrets._fields),
    )


def summaries(asked: Sequence[Question]) -> Iterator[a.ChoiceSummary]:
    """The rules on all questions, the baselines, and the rules on the two halves of the runs."""
    for half in Half:
        here = [q for q in asked if half in (Half.ALL, q.half)]
        for rule in Rule if here else ():
            yield summary(rule, half, [[judged(q, choose(q, rule))] for q in here])
        for baseline in Baseline if half is Half.ALL else ():
            yield summary(baseline, half, [without_model(q, baseline) for q in here])


def preferred(found: Sequence[a.ChoiceSummary]) -> str:
    """The rule that loses least on the choosing half, a broken limit losing everything."""
    return min((s for s in found if s.half == Half.CHOOSING), key=lambda s: s.strict.mean_percent).rule


def report(rows: Sequence[ServingRow], progress: Progress) -> a.ChoiceReport:
    """The answer of `validate --from choices`."""
    asked = questions(priced(rows, validate.shipped(), progress))
    if not asked:
        raise InputError("no question with two layouts that keep a limit", key="rows", value=len(rows))
    found = tuple(summaries(asked))
    return a.ChoiceReport(
        tuple(_row(judged(q, choose(q, Rule.MEDIAN))) for q in asked),
        found,
        preferred(found),
        tuple(gate.row(found) for gate in gates()),
    )


def choice_figures(progress: Progress) -> a.ChoiceReport:
    """The report on the public rows."""
    return report(serving_rows.load(), progress)


def _row(one: Judged) -> a.ChoiceRow:
    asked, chosen = one.question, one.chosen
    return a.ChoiceRow(
        asked.label,
        asked.limit_s,
        len(asked.run),
        len({p.layout for p in asked.possible}),
        asked.best.label,
        chosen.label,
        asked.best.rate,
        chosen.rate,
        chosen.predicted_rate,
        chosen.row.tpot_s,
        float(chosen.time.time_s),
        one.best_layout,
        one.broken,
        *(100.0 * regret for regret in one.regrets),
    )


class Gate(NamedTuple):
    """A figure of a rule on all questions and its limit; `missed` gates hold what was measured."""

    rule: str
    figure: str
    limit: float
    source: str

    @property
    def missed(self) -> bool:
        """Whether what was wished for is not met yet."""
        return "missed" in self.source

    def value(self, found: Sequence[a.ChoiceSummary]) -> float:
        """The figure, in percent: a column of the summary, or one of a regret's (`layout.p90_percent`)."""
        (one,) = (s for s in found if (s.rule, s.half) == (self.rule, Half.ALL))
        outer, _, inner = self.figure.partition(".")
        value = getattr(one, outer)
        return float(getattr(value, inner) if inner else value)

    def row(self, found: Sequence[a.ChoiceSummary]) -> a.ChoiceGate:
        """The gate beside what was found; the share of best layouts must reach it, all else stay below."""
        value = self.value(found)
        kept = value >= self.limit if self.figure == "best_layout_percent" else value <= self.limit
        return a.ChoiceGate(self.rule, self.figure, self.limit, value, kept, self.source)


@lru_cache(maxsize=1)
def gates() -> tuple[Gate, ...]:
    """The committed limits."""
    with GATES.open(encoding="utf-8", newline="") as file:
        return tuple(Gate(r["rule"], r["figure"], float(r["limit"]), r["source"]) for r in csv.DictReader(file))
