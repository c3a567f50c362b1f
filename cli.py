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

from . import DATA_DATE, __version__, files, plan_command
from .calibrate import commands as measurements
from .errors import ExitCode, InputError, RoofplanError, SurroundingsError
from .hwspecs import commands as hardware
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
models = group("Models: list the bundled ones, show any of them tensor by tensor.")
app.add_typer(models, name="models")


class Step(StrEnum):
    """Which step to open."""

    decode = "decode"
    prefill = "prefill"


GUESSING = ("acceptance", "draft_length")  # of commands that price whole answers
priced_alone = functools.partial(asking, without=GUESSING)


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
@priced_alone
def fits(
    model: Annotated[
        str | None,
        typer.Argument(
            help="Bundled name, file, or local name; default: a list of models.", autocompletion=model_names
        ),
    ] = None,
    *,
    asked: Asked,
    all_: Annotated[bool, typer.Option("--all", help="Without a model: every bundled one, not a choice of them.")] = (
        False
    ),
    size: Annotated[str | None, option("Images and clips: their size, such as 1024x768 or 1024.", "WxH")] = None,
    frames: Annotated[int | None, option("Clips: their frames.", "N", min=1)] = None,
    steps: Annotated[int | None, option("Images and clips: denoising steps.", "N", min=1)] = None,
    json: Json = False,
) -> None:
    """Does it fit: surely, tight or no; how far it can grow, how fast it runs, what would help.

    Without a model: a choice of the bundled ones on the device (--all: every one). Without a device: this machine's
    GPU; where there is none, the listed devices that run the model, smallest first. Of encoders --context is the length
    of an input, --batch how many results are made at once.
    """
    from . import api

    unnamed = asked.gpu is None and asked.vram is None and asked.bandwidth is None
    load, engine = asked.load(), asked.profile()
    if model is None:
        asked.size(size, frames, steps).refuse("a list of models", "width", "frames", "steps")
        wishes = asked.wishes()
        fleet, notes = asked.fleet()
        engine = asked.profile(fleet.device)
        calibrations = api.load_calibrations(fleet, asked.calibration, engine.name)
        from .simulator.workload import zoo

        asked_about = [api.load_model(name) for name in (zoo.names() if all_ else zoo.shown())]
        _answer(api.ask_fit_models(asked_about, fleet, calibrations, wishes, load, engine), json, notes)
        return
    from .simulator.workload.network import Pipeline

    loaded = api.load_any(model, asked.size(size, frames, steps))
    if isinstance(loaded, Pipeline):
        _fits_one_pass(loaded, asked, unnamed, json)
        return
    wishes = asked.wishes()
    if unnamed and asked.fleet()[0].device.vendor == "cpu":
        note = "no GPU in this machine: for each listed device the smallest count that fits (8 where none does)"
        listed = api.ask_fit_devices(loaded, wishes, asked.calibration, load, engine)
        _answer(listed, json, (note,))
        return
    scenario, wishes, calibrations, notes = asked.scenario(model)
    _answer(api.ask_fit(scenario, calibrations, wishes), json, notes)


def _fits_one_pass(pipeline: "Pipeline", asked: Asked, unnamed: bool, json: bool) -> None:
    """`fits` for an encoder or a pipeline: on one device, or on each listed one where this machine has none."""
    from . import api, one_pass

    words, wish = asked.one_pass(), asked.pass_wish()
    fleet, notes = asked.fleet()
    if unnamed and fleet.device.vendor == "cpu":
        note = "no GPU in this machine: each listed device, smallest first"
        _answer(one_pass.ask_pass_devices(pipeline, wish=wish, calibration=asked.calibration, **words), json, (note,))
        return
    calibrations = api.load_calibrations(fleet, asked.calibration, asked.profile().name)
    _answer(one_pass.ask_pass(pipeline, fleet, calibrations, wish=wish, **words), json, notes)


@app.command(epilog=examples("explain qwen3-32b --gpu h200 --batch 16 --context 8k --plot roofline.png"))
@priced_alone
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
@priced_alone
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


@app.command(
    "sweep",
    epilog=examples(
        "sweep llama-3.1-8b --gpu h200,l40s --weights bf16,fp8,int4",
        "sweep llama-3.1-70b --gpu 2xh100-sxm,4xh100-sxm --batch 1:64 --context 4k:64k:4k --csv sweep.csv",
        "sweep qwen3-30b-a3b --gpu rtx-4090 --kv bf16,fp8 --plot sweep.png",
    ),
)
@functools.partial(asking, without=("gpu", "batch", "context", "weights", "kv", *GUESSING))
def sweep_(
    model: Model,
    *,
    asked: Asked,
    gpu: Annotated[
        str | None,
        option("Such as h200,2xh100-sxm; default: this machine.", "NAMES", autocompletion=gpu_names),
    ] = None,
    batch: Annotated[
        str, option("Users at once: 1:256 doubles, 8:64:8 has steps, 1,8,32 is a list.", "RANGE")
    ] = "1:256",
    context: Annotated[
        str | None, option("Tokens of each user, as --batch; default 1k:128k, less where the model ends.", "RANGE")
    ] = None,
    weights: Annotated[str | None, option("Weight formats; default: those `fits` offers.", "FORMATS")] = None,
    kv: Annotated[str | None, option("KV cache formats; default: 16 bits.", "FORMATS")] = None,
    csv: Annotated[Path | None, typer.Option("--csv", help="Write every point as CSV.", metavar="FILE")] = None,
    parquet: Annotated[
        Path | None,
        typer.Option("--parquet", help="Write every point as Parquet (extra `frames`).", metavar="FILE"),
    ] = None,
    plot: Plot = None,
    json: Json = False,
) -> None:
    """Every combination of devices, formats, users and contexts: what fits and how fast, in one evaluation.

    Prints how many users fit and the speed at a few points; every point goes to --csv, --parquet or --json. Each is in
    the layout `fits` would choose for it, unless --tp, --pp, --ep or --cp pin it.
    """
    from . import api, sweeps
    from .simulator.report import sweep_files
    from .simulator.report.progress import Bars

    _check_plot(plot)
    if parquet is not None:
        sweep_files.need("pyarrow")
    files.check({"--csv": csv, "--parquet": parquet, "--plot": plot}, {"MODEL": Path(model)})
    loaded = api.load_model(model)
    named = [None] if gpu is None else sweeps.names(gpu, "--gpu")
    found = [dataclasses.replace(asked, gpu=name).fleet() for name in named]
    question = sweeps.make_sweep(
        loaded,
        [fleet for fleet, _ in found],
        batch=batch,
        context=context,
        prompt=asked.load().prompt,
        weights=sweeps.weight_formats(weights),
        kv=sweeps.kv_formats(kv),
        wishes=asked.wishes(),
        engine=asked.profile(),
        calibration=asked.calibration,
    )
    if plot is not None:
        from .simulator.report import sweep_plots

        sweep_plots.check(len(question.fleets), len(question.numerics))
    if json and question.points > sweeps.MAX_JSON_POINTS:
        problem = f"{question.points:,} points; one object holds at most {sweeps.MAX_JSON_POINTS:,}"
        raise InputError(problem, key="--json", remedy="write them with --csv or --parquet")
    with Bars() as bars:
        report = sweeps.ask_sweep(question, bars.bar("points", question.points))
        if csv is not None:
            sweep_files.write_csv(report, csv, bars.bar("rows", question.points))
        if parquet is not None:
            sweep_files.write_parquet(report, parquet, bars.bar("rows", question.points))
    _answer(report, json, tuple(dict.fromkeys(note for _, notes in found for note in notes)), plot)


@models.command("list", epilog=examples("models list qwen3", "models list --family gpt_oss", "models list --local"))
def models_list(
    word: Annotated[str | None, typer.Argument(help="Only models whose name has this in it.")] = None,
    family: Annotated[str | None, option("Only models of this family.", "NAME")] = None,
    local: Annotated[
        bool, typer.Option("--local", help="Models of Ollama, LM Studio and the Hugging Face cache on this machine.")
    ] = False,
    json: Json = False,
) -> None:
    """Every bundled model with its size, or those other programs keep on this machine."""
    from .simulator.report import models as listed

    found, notes = listed.list_all(word, family, local)
    _plain(found, json, notes)


@models.command("show")
def models_show(model: Model, json: Json = False) -> None:
    """A model tensor by tensor, networks of one pass layer by layer."""
    from . import api
    from .simulator.report import models as listed

    loaded = api.load_any(model)
    _plain(listed.sheet(loaded), json, loaded.warnings)


@app.command()
def schema() -> None:
    """The JSON Schema of everything `--json` prints."""
    from .simulator.report import contract

    typer.echo(contract.schema_text(), nl=False)


def _check_plot(plot: Path | None) -> None:
    if plot is not None:
        from .simulator.report import plots

        plots.check_path(plot)
        files.check({"--plot": plot})


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


measurements.register(app, group, examples, _plain)
hardware.register(app, group, examples, _plain)
plan_command.register(app, examples, _answer, _check_plot)


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
