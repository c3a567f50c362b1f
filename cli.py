"""The command line: parses, calls the public functions, prints. No model lives here."""

import contextlib
import functools
import gc
import inspect
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import DATA_DATE, __version__
from .calibrate import commands
from .errors import ExitCode, InputError, RoofplanError, SurroundingsError
from .units import parse_bytes, parse_count, parse_rate

if TYPE_CHECKING:
    from .api import Load
    from .calibrate.transfer import Calibrations
    from .hwspecs.device import Fleet
    from .simulator.answers import Answer, Report
    from .simulator.catalogue import CatalogueAnswer
    from .simulator.planner.fit import Wishes
    from .simulator.scenario import Engine, Scenario

EXIT_CODES = (
    "Exit codes: 0 yes or tight; 1 an honest no; 2 bad input; 3 the environment lacks something; 70 internal; "
    "130 interrupted; 141 a pipe's reader has gone."
)


def _examples(*lines: str) -> str:
    return "\n\n".join(("Examples:", *(f"  roofplan {line}" for line in lines), EXIT_CODES))


def _typer(help_: str, epilog: str | None = None) -> typer.Typer:
    return typer.Typer(
        help=help_,
        epilog=epilog,
        no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"]},
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )


app = _typer(
    "What fits on your GPUs, how fast it runs, and how far to trust each number.",
    _examples("fits --gpu rtx-4090", "fits qwen3-32b", "explain qwen3-32b --gpu h200", "hw list", "models list"),
)
hw = _typer("Hardware files: list, show, lint, compare.")
models = _typer("Models: list the bundled ones, show any of them tensor by tensor.")
app.add_typer(hw, name="hw")
app.add_typer(models, name="models")


def _model_names(incomplete: str = "") -> list[str]:
    from .simulator.workload import zoo

    return [name for name in zoo.names() if name.startswith(incomplete)]


def _gpu_names(incomplete: str = "") -> list[str]:
    from .hwspecs.device import Cluster, Device
    from .hwspecs.load import names

    return [name for name in (*names(Device), *names(Cluster)) if name.startswith(incomplete)]


def _option(help_: str, metavar: str | None = None, **rest: Any) -> Any:
    return typer.Option(help=help_, metavar=metavar, show_default=rest.pop("show_default", True), **rest)


Model = Annotated[
    str, typer.Argument(help="Bundled name, config.json or its folder, or .gguf.", autocompletion=_model_names)
]
Plot = Annotated[Path | None, _option("Also draw a picture: .png, .svg or .pdf.", "FILE")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object (its schema: `roofplan schema`).")]


@dataclass(frozen=True)
class Asked:
    """The options every question takes; one list for all commands."""

    gpu: Annotated[
        str | None,
        _option(
            "h200, 2xh100-sxm, 8xh200 or your own .toml; default: this machine.", "NAME", autocompletion=_gpu_names
        ),
    ] = None
    batch: Annotated[str, _option("Users served at once.", "N")] = "1"
    context: Annotated[str | None, _option("Tokens of each user in the KV cache (32k = 32768); default 8k.", "N")] = (
        None
    )
    prompt: Annotated[str | None, _option("Tokens of the prompt; default: the whole context.", "N")] = None
    weights: Annotated[
        str | None, _option("Pin the weight format: bf16, fp16, fp8, fp8-block, int8, int4, mxfp4, nvfp4.", "FORMAT")
    ] = None
    kv: Annotated[str | None, _option("Pin the KV cache format: bf16, fp16, fp8, int8.", "FORMAT")] = None
    tp: Annotated[int | None, _option("Pin the tensor-parallel degree.", "N", min=1)] = None
    pp: Annotated[int | None, _option("Pin the number of pipeline stages.", "N", min=1)] = None
    ram: Annotated[str | None, _option("Host memory, such as 64GB.", "SIZE")] = None
    host: Annotated[str | None, _option("Host file (`roofplan hw list`).", "NAME")] = None
    vram: Annotated[str | None, _option("Memory of an unnamed card, such as 24GB.", "SIZE")] = None
    bandwidth: Annotated[str | None, _option("Memory bandwidth of an unnamed card, such as 1TB/s.", "RATE")] = None
    memory_utilization: Annotated[float, _option("Share of a device an engine may claim.", "SHARE")] = 0.9
    max_batched_tokens: Annotated[str, _option("Most tokens an engine puts into one step.", "N")] = "8192"
    graphs: Annotated[bool, _option("Whether the engine captures CUDA graphs.")] = True
    calibration: Annotated[str | None, _option("Calibration file or folder; else $ROOFPLAN_CALIBRATION.", "PATH")] = (
        None
    )

    def load(self) -> "Load":
        """Batch, context and prompt as numbers."""
        from .api import Load

        context = None if self.context is None else parse_count(self.context, "--context")
        prompt = None if self.prompt is None else parse_count(self.prompt, "--prompt")
        return Load(parse_count(self.batch, "--batch"), context, prompt)

    def fleet(self) -> "tuple[Fleet, tuple[str, ...]]":
        """The hardware asked about."""
        from . import api

        return api.load_fleet(
            self.gpu,
            host=self.host,
            ram_bytes=None if self.ram is None else parse_bytes(self.ram, "--ram"),
            vram_bytes=None if self.vram is None else parse_bytes(self.vram, "--vram"),
            bandwidth_bytes_per_s=None if self.bandwidth is None else parse_rate(self.bandwidth, "--bandwidth"),
        )

    def wishes(self) -> "Wishes":
        """What the asker pinned."""
        from .simulator.planner.fit import Wishes
        from .simulator.workload.formats import kv_format, weight_format

        weights = None if self.weights is None else weight_format(self.weights)
        return Wishes(weights, None if self.kv is None else kv_format(self.kv), self.tp, self.pp)

    def engine(self) -> "Engine":
        """The knobs of the serving engine."""
        from .simulator.scenario import Engine

        tokens = parse_count(self.max_batched_tokens, "--max-batched-tokens")
        return Engine(self.memory_utilization, tokens, graphs=self.graphs)

    def scenario(self, model: str) -> "tuple[Scenario, Wishes, Calibrations, tuple[str, ...]]":
        """The whole question, everything checked before anything is computed."""
        from . import api

        engine = self.engine()
        wishes, load = self.wishes(), self.load()
        loaded = api.load_model(model)
        fleet, notes = self.fleet()
        calibrations = api.load_calibrations(fleet, self.calibration)
        return api.make_scenario(loaded, fleet, engine=engine, **load._asdict()), wishes, calibrations, notes


def asking(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of `Asked`, handed over as its parameter `asked`."""
    own = inspect.signature(command).parameters
    hints = Asked.__annotations__
    shared = inspect.signature(Asked).parameters

    @functools.wraps(command)
    def wrapper(**values: Any) -> None:
        asked = Asked(**{name: values.pop(name) for name in shared})
        command(asked=asked, **values)

    keyword = inspect.Parameter.KEYWORD_ONLY
    mine = [p.replace(kind=keyword) for name, p in own.items() if name != "asked"]
    theirs = [inspect.Parameter(n, keyword, default=p.default, annotation=hints[n]) for n, p in shared.items()]
    wrapper.__signature__ = inspect.Signature(mine[:1] + theirs + mine[1:])  # type: ignore[attr-defined]
    wrapper.__annotations__ = {p.name: p.annotation for p in (*mine, *theirs)}
    return wrapper


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
    epilog=_examples(
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
        typer.Argument(help="Bundled name, config.json or .gguf; default: all bundled.", autocompletion=_model_names),
    ] = None,
    *,
    asked: Asked,
    json: Json = False,
) -> None:
    """Does it fit: surely, tight or no; how far it can grow, how fast it runs, what would help.

    Without a model: every bundled one on the device. Without a device: this machine's GPU; where there is none, the
    listed devices that run the model, smallest first.
    """
    from . import api

    unnamed = asked.gpu is None and asked.vram is None and asked.bandwidth is None
    wishes, load, engine = asked.wishes(), asked.load(), asked.engine()
    if model is None:
        fleet, notes = asked.fleet()
        calibrations = api.load_calibrations(fleet, asked.calibration)
        zoo = [api.load_model(name) for name in _model_names()]
        _answer(api.ask_fit_models(zoo, fleet, calibrations, wishes, load, engine), json, notes)
        return
    if unnamed and asked.fleet()[0].device.vendor == "cpu":
        note = "no GPU in this machine: for each listed device the smallest count that fits (8 where none does)"
        listed = api.ask_fit_devices(api.load_model(model), wishes, asked.calibration, load, engine)
        _answer(listed, json, (note,))
        return
    scenario, wishes, calibrations, notes = asked.scenario(model)
    _answer(api.ask_fit(scenario, calibrations, wishes), json, notes)


@app.command(epilog=_examples("explain qwen3-32b --gpu h200 --batch 16 --context 8k --plot roofline.png"))
@asking
def explain(
    model: Model,
    *,
    asked: Asked,
    step: Annotated[Step, _option("Which step to open.")] = Step.decode,
    plot: Plot = None,
    json: Json = False,
) -> None:
    """Where the time goes: one line per operator and layer class with FLOPs, bytes, terms and what binds."""
    from . import api
    from .simulator.scenario import Phase

    _check_plot(plot)
    scenario, wishes, calibrations, notes = asked.scenario(model)
    _answer(api.explain_step(scenario, Phase(step.value), wishes, calibrations), json, notes, plot)


@app.command(epilog=_examples("memory mixtral-8x7b --gpu 2xa100-80gb --context 32k --plot map.png"))
@asking
def memory(model: Model, *, asked: Asked, plot: Plot = None, json: Json = False) -> None:
    """What takes the room: weights, KV cache, activations, graphs, context; allocated, reserved, nvidia-smi."""
    from . import api

    _check_plot(plot)
    scenario, wishes, calibrations, notes = asked.scenario(model)
    _answer(api.ask_ledger(scenario, wishes, calibrations), json, notes, plot)


HardwareName = Annotated[str, typer.Argument(help="Bundled name or your own .toml.", autocompletion=_gpu_names)]


@hw.command("list")
def hw_list(json: Json = False) -> None:
    """Every bundled GPU, host, link and cluster."""
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
    devices: Annotated[list[str], typer.Argument(help="Two or more devices.", autocompletion=_gpu_names)],
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
    """A model tensor by tensor."""
    from . import api
    from .simulator.report import models as listed

    _plain(listed.sheet(api.load_model(model)), json)


@app.command()
def schema() -> None:
    """The JSON Schema of everything `--json` prints."""
    from .simulator.report import contract

    typer.echo(contract.schema_text(), nl=False)


class CalibrationSource(StrEnum):
    """Where measurements come from."""

    silicon = "silicon"


@app.command(epilog=_examples("calibrate --from silicon --out my-calibrations"))
def calibrate(
    out: Annotated[Path, _option("Folder the calibration files are written to.", "DIR")],
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


commands.register(app, _typer, _examples, _plain)


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
