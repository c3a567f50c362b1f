"""The commands that look at this machine: `calibrate` and `doctor`."""

import sys
import time
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import InputError

TOLD_EVERY_S = 10.0  # where standard error is no terminal


class CalibrationSource(StrEnum):
    """Where measurements come from, if not from this machine."""

    silicon = "silicon"


def _option(help_: str, metavar: str, *names: str) -> Any:
    return typer.Option(*names, help=help_, metavar=metavar)


def register(app: typer.Typer, examples: Callable[..., str], show: Callable[..., None]) -> None:
    """Put the commands on the app; `examples` and `show` are the command line's own."""

    @app.command(
        epilog=examples(
            "calibrate --out mine",
            "calibrate --device cpu --out mine",
            "calibrate --device cuda:0 --full --out mine --resume mine/records.csv",
            "calibrate --from silicon --out my-calibrations",
        )
    )
    def calibrate(
        out: Annotated[Path, _option("Folder for records, calibrations and predictions.", "DIR", "--out")],
        device: Annotated[
            str, _option("cuda:N or cpu; default: the first GPU, else the processor.", "DEVICE", "--device")
        ] = "",
        full: Annotated[
            bool, typer.Option("--full/--quick", help="Every shape, for longer; or some, in a minute (GPU: five).")
        ] = False,
        resume: Annotated[
            Path | None,
            _option("Go on with an earlier run's records; DIR/records.csv: if it is there.", "FILE", "--resume"),
        ] = None,
        threads: Annotated[
            int | None, typer.Option(min=1, max=1024, help="Threads on the CPU; default: cores that are free.")
        ] = None,
        kernel: Annotated[
            list[str] | None, _option("GPU: only this kernel, gemm or gemm/bf16; may be repeated.", "NAME", "--kernel")
        ] = None,
        plot: Annotated[
            Path | None, _option("Also draw the device's measured roofline: .png, .svg or .pdf.", "FILE", "--plot")
        ] = None,
        source: Annotated[
            CalibrationSource | None,
            typer.Option("--from", help="Fit public kernel tables (extra `silicon`) instead of measuring."),
        ] = None,
        json: Annotated[bool, typer.Option("--json", help="Print one JSON object (`roofplan schema`).")] = False,
    ) -> None:
        """Measure this machine, fit the cost models to it, and see how well they predict what they did not see.

        Nothing of the device is set. Ctrl-C keeps what was measured (exit code 130); --resume goes on with it. Exit
        code 1 if an error exceeds its gate: 25 % on a CPU; mean 6 and median 4 % for our own kernels on a GPU.
        """
        if source is not None:
            _from_tables(out, {"--device": device, "--resume": resume, "--plot": plot, "--kernel": kernel})
            return
        _from_here(out, device, not full, resume, threads, tuple(kernel or ()), plot, json, show)

    @app.command(epilog=examples("doctor", "doctor --json"))
    def doctor(
        json: Annotated[bool, typer.Option("--json", help="Print one JSON object (`roofplan schema`).")] = False,
    ) -> None:
        """What this machine can and cannot do for roofplan, each line with its remedy."""
        from .doctor import examine

        show(examine(), json)


def _from_tables(out: Path, given: dict[str, object]) -> None:
    from . import bundle
    from .silicon import FOLDERS

    for name, value in given.items():
        if value:
            raise InputError(f"measures nothing: drop {name}", key="--from", value="silicon")
    with_progress = Lines()
    for path in bundle.build(out, FOLDERS, with_progress):
        typer.echo(str(path))


def _from_here(
    out: Path,
    device: str,
    quick: bool,
    resume: Path | None,
    threads: int | None,
    kernels: tuple[str, ...],
    plot: Path | None,
    json: bool,
    show: Callable[..., None],
) -> None:
    from ..files import check, write_text
    from ..simulator.report import calibration, contract
    from . import run

    if plot is not None:
        from ..simulator.report import plots

        plots.check_path(plot)
        check({"--plot": plot}, {"--resume": resume})
    lines = Lines()
    try:
        found = run.calibrate(run.Request(out, device, quick, resume, threads, kernels), lines.count, lines)
    except KeyboardInterrupt:
        lines.end()
        kept = out / run.RECORDS
        if kept.exists():
            typer.echo(f"what was measured is kept: go on with --resume {kept}", err=True)
        raise
    lines.end()
    answer = calibration.report(found)
    write_text(out / "report.json", contract.to_json(contract.envelope(answer)) + "\n", "--out")
    if plot is not None:
        from ..simulator.report import plots, validation_plots

        plots.write(validation_plots.figure_of(found.points), plot)
    show(answer, json)


class Lines:
    """What is being done, on standard error: one line that changes in a terminal, few lines elsewhere."""

    def __init__(self) -> None:
        self._live, self._told_s, self._open = sys.stderr.isatty(), 0.0, False

    def __call__(self, line: str) -> None:
        """Tell what is being done now."""
        self._open = self._live
        typer.echo(f"\r\033[K{line}" if self._live else line, err=True, nl=not self._live)

    def count(self, done: int, total: int, what: str) -> None:
        """Tell how far the measurements are."""
        now = time.monotonic()
        if self._live or done == total or now - self._told_s > TOLD_EVERY_S:
            self._told_s = now
            self(f"{done}/{total} {what}".rstrip())

    def end(self) -> None:
        """Leave no line behind in a terminal."""
        if self._open:
            typer.echo("\r\033[K", err=True, nl=False)
            self._open = False
