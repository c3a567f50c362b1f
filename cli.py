"""The command line: parses, calls the public functions, prints. No model lives here."""

import contextlib
import dataclasses
import functools
import gc
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import DATA_DATE, __version__
from .calibrate import commands
from .errors import ExitCode, InputError, RoofplanError, SurroundingsError
from .options import Asked, Json, Model, Plot, asking, examples, gpu_names, group, model_names, option
from .units import parse_count

if TYPE_CHECKING:
    from .simulator.answers import Answer, Report
    from .simulator.catalogue import CatalogueAnswer
    from .simulator.workload.network import Pipeline

app = group(
    "What fits on your GPUs, how fast it runs, and how far to trust each number.",
    examples("fits --gpu rtx-4090", "fits qwen3-32b", "explain qwen3-32b --gpu h200", "hw list", "models list"),
)
hw = group("Hardware files: list, show, lint, compare.")
models = group("Models: list the bundled ones, show any of them tensor by tensor.")
app.add_typer(hw, name="hw")
app.add_typer(models, name="models")


class Step(StrEnum):
    """Which step to open."""

    decode = "decode"
    prefill = "prefill"


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Version and the date of the data.")] = False,
) -> None:
    if version:
        typer.echo(f"roofplan {__version__}, data of {DATA_DATE}")
        raise typer.Exit


@app.command(
    epilog=examples(
        "fits",
        "fits --gpu rtx-4090 --ram 64GB",
        "fits llama-3.1-70b --gpu 2xh100-sxm --context 32k --batch 8 --json",
        "fits ./config.json --gpu my-gpu.toml",
        "fits ./model-Q4_K_M.gguf --gpu rtx-4090",
    )
)
@asking
def fits(
    model: Annotated[
        str | None,
        typer.Argument(help="Bundled name, config.json or .gguf; default: a list of them.", autocompletion=model_names),
    ] = None,
    *,
    asked: Asked,
    all_: Annotated[bool, typer.Option("--all", help="Without a model: every bundled one, not a choice of them.")] = (
        False
    ),
    size: Annotated[str | None, option("Images and clips: their size, such as 1024x768 or 1024.", "WxH")] = None,
    frames: Annotated[int | None, option("Clips: their frames.", "N", min=1)] = None,
    steps: Annotated[int | None, option("Images and clips: denoising steps.", "N", min=1)] = None,
    offload: Annotated[
        bool | None,
        typer.Option(help="Pin whether one network of a pipeline is on the device at a time.", show_default=False),
    ] = None,
    json: Json = False,
) -> None:
    """Does it fit: surely, tight or no; how far it can grow, how fast it runs, what would help.

    Without a model: a choice of the bundled ones on the device (--all: every one). Without a device: this machine's
    GPU; where there is none, the listed devices that run the model, smallest first. Of encoders --context is the length
    of an input, --batch how many results are made at once.
    """
    from . import api

    unnamed = asked.gpu is None and asked.vram is None and asked.bandwidth is None
    wishes, load, engine = asked.wishes(), asked.load(), asked.profile()
    if model is None:
        fleet, notes = asked.fleet()
        calibrations = api.load_calibrations(fleet, asked.calibration, engine.name)
        from .simulator.workload import zoo

        asked_about = [api.load_model(name) for name in (zoo.names() if all_ else zoo.shown())]
        _answer(api.ask_fit_models(asked_about, fleet, calibrations, wishes, load, engine), json, notes)
        return
    from .simulator.workload.network import Pipeline

    loaded = api.load_any(model, asked.size(size, frames, steps))
    if isinstance(loaded, Pipeline):
        _fits_one_pass(loaded, asked, unnamed, offload, json)
        return
    if offload is not None:
        raise InputError("only networks of one pass take turns on a device", key="--offload", remedy="drop it")
    if unnamed and asked.fleet()[0].device.vendor == "cpu":
        note = "no GPU in this machine: for each listed device the smallest count that fits (8 where none does)"
        listed = api.ask_fit_devices(loaded, wishes, asked.calibration, load, engine)
        _answer(listed, json, (note,))
        return
    scenario, wishes, calibrations, notes = asked.scenario(model)
    _answer(api.ask_fit(scenario, calibrations, wishes), json, notes)


def _fits_one_pass(pipeline: "Pipeline", asked: Asked, unnamed: bool, offload: bool | None, json: bool) -> None:
    """`fits` for an encoder or a pipeline: on one device, or on each listed one where this machine has none."""
    from . import api
    from .simulator.passing import Residency
    from .simulator.planner.passes import Wish

    pinned = None if offload is None else Residency.ONE if offload else Residency.ALL
    words, wish = asked.one_pass(), Wish(asked.wishes().weights, pinned)
    fleet, notes = asked.fleet()
    if unnamed and fleet.device.vendor == "cpu":
        note = "no GPU in this machine: each listed device, smallest first"
        _answer(api.ask_pass_devices(pipeline, wish=wish, calibration=asked.calibration, **words), json, (note,))
        return
    calibrations = api.load_calibrations(fleet, asked.calibration, asked.profile().name)
    _answer(api.ask_pass(pipeline, fleet, calibrations, wish=wish, **words), json, notes)


@app.command(epilog=examples("explain qwen3-32b --gpu h200 --batch 16 --context 8k --plot roofline.png"))
@asking
def explain(
    model: Model,
    *,
    asked: Asked,
    step: Annotated[Step, option("Which step to open.")] = Step.decode,
    plot: Plot = None,
    json: Json = False,
) -> None:
    """Where the time goes: one line per operator and layer class with FLOPs, bytes, terms and what binds."""
    from . import api
    from .simulator.scenario import Phase

    _check_plot(plot)
    scenario, wishes, calibrations, notes = asked.scenario(model)
    _answer(api.explain_step(scenario, Phase(step.value), wishes, calibrations), json, notes, plot)


@app.command(epilog=examples("memory mixtral-8x7b --gpu 2xa100-80gb --context 32k --plot map.png"))
@asking
def memory(model: Model, *, asked: Asked, plot: Plot = None, json: Json = False) -> None:
    """What takes the room: weights, KV cache, activations, graphs, context; allocated, reserved, nvidia-smi."""
    from . import api

    _check_plot(plot)
    scenario, wishes, calibrations, notes = asked.scenario(model)
    _answer(api.ask_ledger(scenario, wishes, calibrations), json, notes, plot)


@app.command(
    epilog=examples(
        "serve llama-3.1-70b --gpu 2xh100-sxm --clients 32 --prompt 1k --output 512",
        "serve qwen3-30b-a3b --gpu h200 --clients 64 --prompt 4k --output 1k --engine sglang --json",
    )
)
@functools.partial(asking, without=("batch", "context", "prompt"))
def serve(
    model: Model,
    *,
    asked: Asked,
    clients: Annotated[str, option("Clients that each send the next request when their answer is complete.", "N")],
    prompt: Annotated[str, option("Mean tokens of a prompt (1k = 1024).", "N")],
    output: Annotated[str, option("Mean tokens of an answer.", "N")],
    alike: Annotated[bool, typer.Option("--alike", help="All requests have these very lengths, as fixed tests do.")] = (
        False
    ),
    json: Json = False,
) -> None:
    """Continuous batching in steady use: time per output token, tokens/s, service time to the first token."""
    from . import api

    batch, taken, made = (
        parse_count(text, f"--{key}") for key, text in (("clients", clients), ("prompt", prompt), ("output", output))
    )
    asked = dataclasses.replace(asked, batch=str(batch), prompt=str(taken), context=str(taken + made))
    scenario, wishes, calibrations, notes = asked.scenario(model)
    _answer(api.ask_serve(scenario, calibrations, wishes, alike=alike), json, notes)


HardwareName = Annotated[str, typer.Argument(help="Bundled name or your own .toml.", autocompletion=gpu_names)]


@hw.command("list")
def hw_list(json: Json = False) -> None:
    """Every bundled GPU, host, drive, link and cluster."""
    from .simulator.report import hardware

    _plain(hardware.list_all(), json)


@hw.command("show")
def hw_show(
    name: HardwareName,
    toml: Annotated[bool, typer.Option("--toml", help="Print the file itself, to copy and edit.")] = False,
    json: Json = False,
) -> None:
    """Every number of a hardware file with its source."""
    from .simulator.report import hardware

    part = hardware.find(name)
    if toml:
        typer.echo(Path(part.file).read_text(encoding="utf-8"), nl=False)
        return
    _plain(hardware.sheet(part), json)


@hw.command("lint")
def hw_lint(
    files: Annotated[list[str] | None, typer.Argument(help="Names or .toml files; default: all bundled.")] = None,
    json: Json = False,
) -> None:
    """Cross-check hardware files; exit code 1 if anything is found."""
    from .simulator.report import hardware

    parts = [hardware.find(name) for name in files] if files else hardware.bundled_parts()
    _plain(hardware.lint_all(parts), json)


@hw.command("compare")
def hw_compare(
    devices: Annotated[list[str], typer.Argument(help="Two or more devices.", autocompletion=gpu_names)],
    json: Json = False,
) -> None:
    """Devices side by side, each number as a multiple of the first."""
    from .hwspecs.device import Device
    from .hwspecs.load import load
    from .simulator.report import hardware

    _plain(hardware.compare([load(Device, name) for name in devices]), json)


@hw.command("schema")
def hw_schema() -> None:
    """The keys a hardware file may have, with units and meaning."""
    from .hwspecs.device import attributes
    from .simulator.report import text
    from .simulator.report.hardware import PARTS

    out = text.console()
    for part in PARTS:
        rows = ([a.name, a.type, a.unit, "yes" if a.required else "", a.meaning] for a in attributes(part))
        out.print(f"\n[bold]{part.__name__.lower()}[/]")
        out.print(text.table(["key", "type", "unit", "required", "meaning"], rows, left=5))


@models.command("list")
def models_list(json: Json = False) -> None:
    """Every bundled model with its size."""
    from .simulator.report import models as listed

    _plain(listed.list_all(), json)


@models.command("show")
def models_show(model: Model, json: Json = False) -> None:
    """A model tensor by tensor, networks of one pass layer by layer."""
    from . import api
    from .simulator.report import models as listed

    _plain(listed.sheet(api.load_any(model)), json)


@app.command()
def schema() -> None:
    """The JSON Schema of everything `--json` prints."""
    from .simulator.report import contract

    typer.echo(contract.schema_text(), nl=False)


class CalibrationSource(StrEnum):
    """Where measurements come from."""

    silicon = "silicon"


@app.command(epilog=examples("calibrate --from silicon --out my-calibrations"))
def calibrate(
    out: Annotated[Path, option("Folder the calibration files are written to.", "DIR")],
    source: Annotated[
        CalibrationSource,
        typer.Option("--from", help="Where measurements come from: public kernel tables (extra `silicon`)."),
    ] = CalibrationSource.silicon,
) -> None:
    """Fit the constants of the cost models to measurements and write calibration files."""
    from .calibrate import bundle
    from .calibrate.silicon import FOLDERS

    interactive = sys.stderr.isatty()
    written = bundle.build(
        out, FOLDERS, lambda line: typer.echo(f"\r\033[K{line}" if interactive else line, err=True, nl=not interactive)
    )
    for path in written:
        typer.echo(str(path))


def _check_plot(plot: Path | None) -> None:
    if plot is not None:
        from .simulator.report import plots

        plots.check_path(plot)


def _plain(answer: "Answer | CatalogueAnswer", json: bool, notes: tuple[str, ...] = ()) -> None:
    """Print an answer that stands without a question."""
    from .simulator.report.contract import envelope

    _answer(envelope(answer), json, notes)


def _answer(report: "Report", json: bool, notes: tuple[str, ...], plot: Path | None = None) -> None:
    """Draw, print, and leave with 1 where the answer is an honest no."""
    from .simulator.report import contract

    if plot is not None:
        from .simulator.report import plots

        plots.save(report, plot)
    if json:
        typer.echo(contract.to_json(contract.with_warnings(report, notes)))
    else:
        from .simulator.report import text

        text.show(report, notes)
    if contract.is_no(report.answer):
        raise typer.Exit(ExitCode.NO)


commands.register(app, group, examples, _plain)


def main() -> None:
    """Run the command line; the one place where outcomes become exit codes, so a crash never passes for a "no"."""
    gc.disable()  # a query lives for a third of a second, a twentieth of it spent looking for cycles that are not there
    code = run(sys.argv[1:])
    if sys.stdout is not None and code in (ExitCode.SURROUNDINGS, ExitCode.READER_GONE):
        _abandon_stdout()
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run with these arguments and return the exit code."""
    try:
        if sys.stdout is None:
            raise SurroundingsError("standard output is closed", remedy="give it a place to go")
        result = app(args=arguments, prog_name="roofplan", standalone_mode=False)
        sys.stdout.flush()
        if result == ExitCode.INTERRUPTED:  # typer turns an interrupt inside a command into this code
            raise KeyboardInterrupt
        return int(result or 0)
    except RoofplanError as error:
        return _complain(error, arguments)
    except (KeyboardInterrupt, typer.Abort):
        typer.echo("roofplan: interrupted", err=True)
        return ExitCode.INTERRUPTED
    except (BrokenPipeError, SystemExit):  # typer leaves this way where a pipe's reader has gone
        return ExitCode.READER_GONE
    except OSError as error:
        where = str(error.filename) if error.filename else "standard output"
        return _complain(SurroundingsError(error.strerror or str(error), file=where), arguments)
    except Exception as error:
        message = getattr(error, "format_message", None)
        if type(error).__name__ == "NoArgsIsHelpError":  # a bare command: typer's message is the whole help
            typer.echo(message() if message else "")
            return ExitCode.YES
        return _complain(_usage_error(error) if message else _internal(error), arguments)


def _abandon_stdout() -> None:
    """Point standard output at nothing, so that what is left in its buffer cannot fail again while Python exits."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _usage_error(error: Exception) -> InputError:
    """A mistake in the options, told like every other bad input."""
    message: str = error.format_message()  # type: ignore[attr-defined]
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "roofplan"
    return InputError(message.rstrip(".").replace("\n", " "), remedy=f"see `{command} --help`")


def _internal(error: Exception) -> RoofplanError:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace is not None else None
    remedy = "this is a bug in roofplan: please report it with the command you ran"
    return RoofplanError(f"internal error: {type(error).__name__}: {error}", file=where, remedy=remedy)


def _complain(error: RoofplanError, arguments: list[str]) -> int:
    """One line on stderr; with --json an object on stdout as well."""
    typer.echo(f"roofplan: {error.line()}", err=True)
    if "--json" in arguments and sys.stdout is not None:
        from .simulator.report import contract

        with contextlib.suppress(OSError):  # where standard output itself is the trouble, the line above is all
            typer.echo(contract.to_json(contract.error_report(error)))
    return error.exit_code
