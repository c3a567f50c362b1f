"""The commands about measurements and about this machine: put on the command line's app, loaded when called."""

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InputError, UnknownNameError
from ..units import parse_count
from . import device_command, validate_command

if TYPE_CHECKING:
    from ..dtypes import DType


MAX_TEXT = 500  # that of `records`, not loaded before a file is


class Source(StrEnum):
    """Whose file is imported; the values of `importers.Kind`, not loaded before a file is."""

    VLLM_BENCH = "vllm-bench"
    LLAMA_BENCH = "llama-bench"
    VLLM_LOG = "vllm-log"


def _option(help_: str, metavar: str, *names: str) -> Any:
    return typer.Option(*names, help=help_, metavar=metavar)


Files = Annotated[list[Path], typer.Argument(help="Record files (.csv).")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object (its schema: `roofplan schema`).")]


def register(
    app: typer.Typer, group: Callable[..., typer.Typer], examples: Callable[..., str], show: Callable[..., None]
) -> None:
    """Put the commands on the app; `group`, `examples` and `show` are the command line's own."""
    validate_command.register(app, examples, show)
    device_command.register(app, examples, show)
    records = group("Measurements: bring them in, check them, list their columns.")
    app.add_typer(records, name="records")

    @records.command("lint", epilog=examples("records lint mine.csv"))
    def lint(files: Files, json: Json = False) -> None:
        """Check files of measurements; exit code 1 if anything is found."""
        from ..simulator.report import measurements

        show(measurements.lint_all(files), json)

    @records.command("schema", epilog=examples("records schema"))
    def schema(json: Json = False) -> None:
        """The columns a file of measurements may have, with units and meaning."""
        from ..simulator.report import measurements

        show(measurements.schema(), json)

    @records.command(
        "import",
        epilog=examples(
            "records import result.json --device h100-sxm --tp 2 --weights fp8 --version 0.10.2 --out mine.csv",
            "records import llama-bench.json --device rtx-4090 --out mine.csv --append",
            "records import server.log --from vllm-log --device h200 --out mine.csv",
        ),
    )
    def import_(
        file: Annotated[Path, typer.Argument(help="Result of another tool.")],
        out: Annotated[Path, _option("Record file to write (.csv).", "FILE")],
        source_kind: Annotated[
            Source | None, typer.Option("--from", help="Whose file it is; default: found out from its content.")
        ] = None,
        append: Annotated[bool, typer.Option("--append", help="Add to the file instead of making it.")] = False,
        device: Annotated[str, _option("Device it ran on (`roofplan hw list`).", "NAME")] = "",
        model: Annotated[str, _option("Model, where the file's name for it is not the one wanted.", "NAME")] = "",
        tp: Annotated[str | None, _option("Tensor-parallel degree.", "N")] = None,
        pp: Annotated[str | None, _option("Pipeline stages.", "N")] = None,
        ep: Annotated[str | None, _option("Expert-parallel degree.", "N")] = None,
        weights: Annotated[str, _option("Weight format, such as fp8.", "FORMAT")] = "",
        kv: Annotated[str, _option("KV cache format.", "FORMAT")] = "",
        dtype: Annotated[str | None, _option("Format of the activations; default: the file's, else bf16.", "T")] = None,
        batch: Annotated[str | None, _option("Users served at once, where the run had no limit.", "N")] = None,
        block_size: Annotated[str | None, _option("Tokens of a KV block (logs that count blocks).", "N")] = None,
        engine: Annotated[str, _option("Engine, where the file does not name it.", "NAME")] = "",
        version: Annotated[str, _option("Version of the engine.", "V")] = "",
        source: Annotated[str, _option("Where the file comes from; default: its name.", "TEXT")] = "",
        date: Annotated[str, _option("When it was measured, where the file does not say.", "YYYY-MM-DD")] = "",
        note: Annotated[str, _option("Anything a reader must know.", "TEXT")] = "",
        json: Json = False,
    ) -> None:
        """Bring in what another tool measured: `vllm bench serve`, `llama-bench -o json`, a vLLM start-up log."""
        from ..simulator.report import measurements
        from .importers import Given, Kind

        texts = {"model": model, "weights": weights, "kv": kv, "engine": engine, "version": version}
        texts |= {"source": source, "note": note}
        counts = {"tp": tp, "pp": pp, "ep": ep, "batch": batch, "block_size": block_size}
        values: dict[str, Any] = {name: _text(text, f"--{name}") for name, text in texts.items()}
        values |= {k: parse_count(v, f"--{k.replace('_', '-')}") for k, v in counts.items() if v is not None}
        number_format = None if dtype is None else _dtype(dtype)
        given = Given(device=device, dtype=number_format, date=_date(date), **values)
        kind = None if source_kind is None else Kind(source_kind.value)
        show(measurements.bring_in(file, kind, given, out, append), json)


def _text(text: str, key: str) -> str:
    if not text.isprintable() or len(text) > MAX_TEXT:
        raise InputError(f"must be one line of at most {MAX_TEXT} printable characters", key=key, value=text)
    return text.strip()


def _dtype(name: str) -> "DType":
    from ..dtypes import DType

    if name.lower() not in set(DType):
        raise UnknownNameError("number format", name, list(DType), listing="roofplan records import --help")
    return DType(name.lower())


def _date(text: str) -> str:
    import datetime

    try:
        return datetime.date.fromisoformat(text).isoformat() if text else ""
    except ValueError:
        raise InputError("not a date", key="--date", value=text, remedy="write it as 2026-11-21") from None
