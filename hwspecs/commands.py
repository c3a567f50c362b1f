"""The commands about hardware files, `hw ...`: put on the command line's app, loaded when called."""

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import InputError


class Kind(StrEnum):
    """Kinds of hardware files by the words of the command line."""

    GPU = "gpu"
    HOST = "host"
    STORAGE = "storage"
    LINK = "link"
    CLUSTER = "cluster"


def _option(help_: str, metavar: str | None = None, *names: str) -> Any:
    return typer.Option(*names, help=help_, metavar=metavar)


def _known(incomplete: str) -> list[str]:
    """Names of all bundled files, for completion; none is read."""
    from .load import FOLDERS, names

    return sorted({name for kind in FOLDERS for name in names(kind) if name.startswith(incomplete)})


def _devices(incomplete: str) -> list[str]:
    from .device import Device
    from .load import names

    return [name for name in names(Device) if name.startswith(incomplete)]


Name = Annotated[str, typer.Argument(help="Bundled name or your own .toml.", autocompletion=_known)]
OneKind = Annotated[Kind | None, _option("Only files of one kind.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object (its schema: `roofplan schema`).")]


def register(
    app: typer.Typer, group: Callable[..., typer.Typer], examples: Callable[..., str], show: Callable[..., None]
) -> None:
    """Put `hw` on the app; `group`, `examples` and `show` are the command line's own."""
    hw = group("Hardware files: list, show, compare, check, start new ones.")
    app.add_typer(hw, name="hw")

    @hw.command("list", epilog=examples("hw list", "hw list rtx", "hw list h100 --kind cluster"))
    def list_(
        word: Annotated[str, typer.Argument(help="Only what has this in its name, vendor or architecture.")] = "",
        kind: OneKind = None,
        json: Json = False,
    ) -> None:
        """Every GPU, host, drive, link and node that is bundled, a line each."""
        from ..simulator.report import hardware

        show(hardware.list_all(kind, word), json)

    @hw.command("show", epilog=examples("hw show rtx-4090", "hw show p5.48xlarge", "hw show rtx-4090 --toml"))
    def show_(
        name: Name,
        kind: Annotated[Kind | None, _option("Which file, where several kinds share the name.")] = None,
        toml: Annotated[bool, typer.Option("--toml", help="Print the file itself, to copy and edit.")] = False,
        json: Json = False,
    ) -> None:
        """Every number of a hardware file with its source."""
        from ..simulator.report import hardware

        part, notes = hardware.find(name, kind)
        if toml:
            typer.echo(Path(part.file).read_text(encoding="utf-8"), nl=False)
            return
        show(hardware.sheet(part), json, notes)

    @hw.command("lint", epilog=examples("hw lint", "hw lint my-gpu.toml"))
    def lint(
        files: Annotated[
            list[str] | None,
            typer.Argument(help="Names or .toml files; default: all bundled.", autocompletion=_known),
        ] = None,
        json: Json = False,
    ) -> None:
        """Cross-check hardware files; exit code 1 if anything is found."""
        from ..simulator.report import hardware

        parts = [hardware.find(name)[0] for name in files] if files else hardware.bundled_parts()
        show(hardware.lint_all(parts), json)

    @hw.command("compare", epilog=examples("hw compare h200 mi300x tpu-v5p", "hw compare rtx-4090 m2-max-64gb"))
    def compare(
        devices: Annotated[list[str], typer.Argument(help="Two or more devices.", autocompletion=_devices)],
        json: Json = False,
    ) -> None:
        """Devices side by side, each number as a multiple of the first."""
        from ..simulator.report import hardware

        show(hardware.compare([hardware.device(name) for name in devices]), json)

    @hw.command("new", epilog=examples("hw new rtx-3050 --from-nvml", "hw new my-gpu --like rtx-4090"))
    def new(
        name: Annotated[str, typer.Argument(help="Name of the new file, such as rtx-3050.")],
        like: Annotated[str | None, typer.Option(help="Copy this file.", metavar="NAME", autocompletion=_known)] = None,
        from_nvml: Annotated[
            bool, typer.Option("--from-nvml", help="Draft it from what the NVIDIA driver of this machine tells.")
        ] = False,
        out: Annotated[Path | None, _option("File to write; default: NAME.toml here.", "FILE")] = None,
        force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
        json: Json = False,
    ) -> None:
        """Start a file for what is not listed: from the driver, or a copy."""
        from ..simulator.report import hardware

        if (like is None) is not from_nvml:
            raise InputError("one of the two is needed", key="--like/--from-nvml", remedy="say where to start from")
        show(hardware.start(name, like, out, force=force), json)

    @hw.command("schema")
    def schema() -> None:
        """The keys a hardware file may have, with units and meaning."""
        from ..simulator.report import catalogue_text

        catalogue_text.print_schema()
