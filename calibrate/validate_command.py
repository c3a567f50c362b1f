"""The command `roofplan validate`: predictions held against measurements, for a user's CI."""

import sys
import time
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InputError
from ..files import Paths, check, write_text

if TYPE_CHECKING:
    from ..simulator.catalogue import ChoiceReport, FigureReport
    from ..simulator.report.validation import Found

PATIENCE_S = 1.0  # before which nobody wonders whether it is still running


class From(StrEnum):
    """What predictions are held against; of `simulator.report.validation.Evidence`, not loaded before a question is."""

    anchors = "anchors"
    silicon = "silicon"
    transferred = "transferred"
    serving = "serving"
    speeds = "speeds"
    memory = "memory"
    clusters = "clusters"
    choices = "choices"


PUBLISHED = (From.speeds, From.memory, From.clusters, From.choices)


def _option(help_: str, metavar: str, *names: str) -> Any:
    return typer.Option(*names, help=help_, metavar=metavar)


Names = list[str] | None


def register(app: typer.Typer, examples: Callable[..., str], show: Callable[..., None]) -> None:
    """Put `validate` on the app; `examples` and `show` are the command line's own."""

    @app.command(
        epilog=examples(
            "validate",
            "validate --records mine.csv --max-mape gemm=8 --max-mape attention-decode=20 --junit validation.xml",
            "validate --from silicon --device h200 --kernel gemm --engine vllm --regimes",
            "validate --from transferred --device h200 --plot transferred.png",
            "validate --from serving",
            "validate --from speeds",
            "validate --from clusters",
            "validate --from choices",
            "validate --kernels",
        )
    )
    def validate(
        source: Annotated[
            From | None,
            typer.Option(
                "--from",
                help="anchors: tables that ship (default); silicon: sites of the public tables that no fit saw; "
                "transferred: the same as if the device had no calibration; serving: whole steps of public runs; "
                "choices: layout and users chosen by price (these four need the extra `silicon`); speeds, memory, "
                "clusters (of unlike devices): figures people published, chosen before predicting.",
            ),
        ] = None,
        records: Annotated[Path | None, _option("Your own measurements (.csv).", "FILE", "--records")] = None,
        kernels: Annotated[
            bool, typer.Option("--kernels", help="List every kernel that was fitted or left out, with the reason.")
        ] = False,
        device: Annotated[Names, _option("Only this device; may be repeated.", "NAME", "--device")] = None,
        kernel: Annotated[Names, _option("Only this kernel: gemm or gemm/bf16.", "NAME", "--kernel")] = None,
        engine: Annotated[Names, _option("Only this engine.", "NAME", "--engine")] = None,
        max_mape: Annotated[
            Names,
            _option("Most a kernel, `serving` or `all` may be off on average.", "CLASS=PERCENT", "--max-mape"),
        ] = None,
        max_median: Annotated[Names, _option("The same for the median error.", "CLASS=PERCENT", "--max-median")] = None,
        min_coverage: Annotated[
            str | None, _option("Least share of all rows inside their 80 % interval.", "PERCENT", "--min-coverage")
        ] = None,
        regimes: Annotated[
            bool, typer.Option("--regimes", "--verbose", "-v", help="Also a line for each range of shapes.")
        ] = False,
        calibration: Annotated[
            str | None, _option("Calibration file or folder; else $ROOFPLAN_CALIBRATION.", "PATH", "--calibration")
        ] = None,
        junit: Annotated[Path | None, _option("Also write JUnit XML.", "FILE", "--junit")] = None,
        markdown: Annotated[Path | None, _option("Also write a GitHub table.", "FILE", "--markdown")] = None,
        plot: Annotated[Path | None, _option("Also draw a picture: .png, .svg or .pdf.", "FILE", "--plot")] = None,
        json: Annotated[bool, typer.Option("--json", help="Print one JSON object (`roofplan schema`).")] = False,
    ) -> None:
        """Hold predictions against measurements; exit code 1 if an error exceeds a bound."""
        from ..simulator.report import validation
        from . import bounds

        wanted = validation.wanted(device or (), kernel or (), engine or ())
        limits = (
            *bounds.parse(max_mape or (), bounds.Measure.MAPE, "--max-mape"),
            *bounds.parse(max_median or (), bounds.Measure.MEDIAN, "--max-median"),
            *(() if min_coverage is None else (bounds.coverage(min_coverage, "--min-coverage"),)),
        )
        files = {"--junit": junit, "--markdown": markdown, "--plot": plot}
        if kernels:
            judging = {"--from": source, "--records": records, "--calibration": calibration, "a bound": limits, **files}
            for name, given in judging.items():
                if given:
                    raise InputError(f"lists kernels and judges none: drop {name}", key="--kernels")
            listed, notes = validation.kernels(wanted)
            show(listed, json, notes)
            return
        if records is not None and source is not None:
            raise InputError("names what to judge: drop --from", key="--records", value=str(records))
        if source in PUBLISHED:
            _refuse(source, {"--device": device, "--kernel": kernel, "--engine": engine, "a bound": limits, **files})
            show(_published(source), json)
            return
        evidence = validation.Evidence(source or From.anchors) if records is None else validation.Evidence.RECORDS
        if plot is not None:
            from ..simulator.report import plots

            plots.check_path(plot)
        check(files, {"--records": records})
        request = validation.Request(evidence, wanted, limits, regimes, records, calibration)
        with_progress = Progress()
        found = validation.validate(request, with_progress)
        with_progress.end()
        _write(found, files)
        show(found.answer, json, found.notes)


def _refuse(source: From | None, given: dict[str, object]) -> None:
    """Published figures are judged as they are: no filter, no bound, no file."""
    for name, value in given.items():
        if value:
            raise InputError(f"is judged as a whole: drop {name}", key="--from", value=str(source))


def _published(source: From | None) -> "FigureReport | ChoiceReport":
    with_progress = Progress()
    found = _judges(source)(with_progress)
    with_progress.end()
    return found


def _judges(source: From | None) -> "Callable[[Progress], FigureReport | ChoiceReport]":
    if source is From.choices:
        from .choices import choice_figures

        return choice_figures
    from . import published

    match source:
        case From.speeds:
            return published.speed_figures
        case From.clusters:
            return published.cluster_figures
    return published.memory_figures


class Progress:
    """Says on standard error what is being done, once that has taken longer than a second."""

    def __init__(self) -> None:
        self._since, self._told, self._live = time.monotonic(), False, sys.stderr.isatty()

    def __call__(self, line: str) -> None:
        """Tell what is being done now."""
        if time.monotonic() - self._since > PATIENCE_S:
            self._told = True
            typer.echo(f"\r\033[K{line}" if self._live else line, err=True, nl=not self._live)

    def end(self) -> None:
        """Leave no line behind in a terminal."""
        if self._told and self._live:
            typer.echo("\r\033[K", err=True, nl=False)


def _write(found: "Found", files: Paths) -> None:
    """Put every file that was asked for in its place, each completely or not at all."""
    from ..simulator.report import validation_text

    junit, markdown, plot = files.values()
    if junit is not None:
        write_text(junit, validation_text.junit(found.answer), "--junit")
    if markdown is not None:
        write_text(markdown, validation_text.markdown(found.answer, found.notes), "--markdown")
    if plot is not None:
        from ..simulator.report import plots, validation_plots

        plots.write(validation_plots.figure_of(found.points), plot)
