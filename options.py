"""What the commands of the command line share: their options, how those become a question, the words of their help."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .errors import InputError
from .units import parse_bytes, parse_count, parse_rate

if TYPE_CHECKING:
    from .api import Load
    from .calibrate.transfer import Calibrations
    from .hwspecs.device import Fleet
    from .simulator.planner.fit import Wishes
    from .simulator.scenario import Engine, Scenario
    from .simulator.workload.pipelines import Size

EXIT_CODES = (
    "Exit codes: 0 yes or tight; 1 an honest no; 2 bad input; 3 the environment lacks something; 70 internal; "
    "130 interrupted; 141 a pipe's reader has gone."
)


def examples(*lines: str) -> str:
    """The end of a help text."""
    return "\n\n".join(("Examples:", *(f"  roofplan {line}" for line in lines), EXIT_CODES))


def group(help_: str, epilog: str | None = None) -> typer.Typer:
    """A group of commands."""
    return typer.Typer(
        help=help_,
        epilog=epilog,
        no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"]},
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )


def model_names(incomplete: str = "") -> list[str]:
    """Bundled models, for completion."""
    from .simulator.workload import zoo

    return [name for name in (*zoo.names(), *zoo.pipelines()) if name.startswith(incomplete)]


def gpu_names(incomplete: str = "") -> list[str]:
    """Bundled devices and clusters, for completion."""
    from .hwspecs.device import Cluster, Device
    from .hwspecs.load import names

    return [name for name in (*names(Device), *names(Cluster)) if name.startswith(incomplete)]


def option(help_: str, metavar: str | None = None, **rest: Any) -> Any:
    """An option of a command."""
    return typer.Option(help=help_, metavar=metavar, show_default=rest.pop("show_default", True), **rest)


Model = Annotated[
    str, typer.Argument(help="Bundled name, config.json or its folder, or .gguf.", autocompletion=model_names)
]
Plot = Annotated[Path | None, option("Also draw a picture: .png, .svg or .pdf.", "FILE")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object (its schema: `roofplan schema`).")]


@dataclass(frozen=True)
class Asked:
    """The options every question takes; one list for all commands."""

    gpu: Annotated[
        str | None,
        option("h200, 2xh100-sxm, 8xh200 or your own .toml; default: this machine.", "NAME", autocompletion=gpu_names),
    ] = None
    batch: Annotated[str, option("Users served at once.", "N")] = "1"
    context: Annotated[str | None, option("Tokens of each user in the KV cache (32k = 32768); default 8k.", "N")] = None
    prompt: Annotated[str | None, option("Tokens of the prompt; default: the whole context.", "N")] = None
    weights: Annotated[
        str | None, option("Pin the weight format: bf16, fp16, fp8, fp8-block, int8, int4, mxfp4, nvfp4.", "FORMAT")
    ] = None
    kv: Annotated[str | None, option("Pin the KV cache format: bf16, fp16, fp8, int8.", "FORMAT")] = None
    tp: Annotated[int | None, option("Pin the tensor-parallel degree.", "N", min=1)] = None
    pp: Annotated[int | None, option("Pin the number of pipeline stages.", "N", min=1)] = None
    ep: Annotated[int | None, option("Pin the expert-parallel degree (a divisor of --tp); default 1.", "N", min=1)] = (
        None
    )
    ram: Annotated[str | None, option("Host memory, such as 64GB.", "SIZE")] = None
    host: Annotated[str | None, option("Host file (`roofplan hw list`).", "NAME")] = None
    vram: Annotated[str | None, option("Memory of an unnamed card, such as 24GB.", "SIZE")] = None
    bandwidth: Annotated[str | None, option("Memory bandwidth of an unnamed card, such as 1TB/s.", "RATE")] = None
    engine: Annotated[
        str,
        option(
            "Whose batching and kernels: vllm, sglang, trtllm; vllm-0.12.0: `serve` adds its overhead.",
            "NAME",
        ),
    ] = "vllm"
    memory_utilization: Annotated[float, option("Share of a device an engine may claim.", "SHARE")] = 0.9
    max_batched_tokens: Annotated[
        str | None, option("Most tokens an engine puts into one step; default: the engine's own, 8192.", "N")
    ] = None
    graphs: Annotated[bool, option("Whether the engine captures CUDA graphs.")] = True
    calibration: Annotated[str | None, option("Calibration file or folder; else $ROOFPLAN_CALIBRATION.", "PATH")] = None

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
        return Wishes(weights, None if self.kv is None else kv_format(self.kv), self.tp, self.pp, self.ep)

    def profile(self) -> "Engine":
        """The profile of the serving engine with the asker's own knobs."""
        from .simulator import engines

        known, own = engines.engine(self.engine), self.max_batched_tokens
        tokens = known.max_batched_tokens if own is None else parse_count(own, "--max-batched-tokens")
        share, graphs = self.memory_utilization, self.graphs
        return dataclasses.replace(known, memory_utilization=share, max_batched_tokens=tokens, graphs=graphs)

    def size(self, size: str | None, frames: int | None, steps: int | None) -> "Size":
        """What is asked of the result of a model of one pass."""
        from .simulator.workload.pipelines import Size

        width = height = None
        if size is not None:
            parts = [part.strip() for part in size.lower().split("x")]
            if len(parts) not in (1, 2) or not all(part.isdecimal() and int(part) > 0 for part in parts):
                raise InputError("must be WIDTHxHEIGHT in pixels", key="--size", value=size)
            width, height = int(parts[0]), int(parts[-1])
        tokens = None if self.context is None else parse_count(self.context, "--context")
        return Size(width, height, frames, tokens, steps)

    def one_pass(self) -> "dict[str, Any]":
        """What a model of one pass is asked with; options of models that write token by token are refused."""
        foreign = {
            "--prompt": self.prompt, "--kv": self.kv, "--tp": self.tp, "--pp": self.pp, "--ep": self.ep,
            "--max-batched-tokens": self.max_batched_tokens,
        }  # fmt: skip
        for key, value in foreign.items():
            if value is not None:
                problem = "does not apply to a model that runs as one pass"
                raise InputError(problem, key=key, value=value, remedy="drop it")
        return {"batch": parse_count(self.batch, "--batch"), "memory_utilization": self.memory_utilization}

    def scenario(self, model: str) -> "tuple[Scenario, Wishes, Calibrations, tuple[str, ...]]":
        """The whole question, everything checked before anything is computed."""
        from . import api

        engine = self.profile()
        wishes, load = self.wishes(), self.load()
        loaded = api.load_model(model)
        fleet, notes = self.fleet()
        calibrations = api.load_calibrations(fleet, self.calibration, engine.name)
        return api.make_scenario(loaded, fleet, engine=engine, **load._asdict()), wishes, calibrations, notes


def asking(command: Callable[..., None], without: tuple[str, ...] = ()) -> Callable[..., None]:
    """Give a command the options of `Asked` but those it goes `without`, handed over as its parameter `asked`."""
    own = inspect.signature(command).parameters
    hints = Asked.__annotations__
    shared = {n: p for n, p in inspect.signature(Asked).parameters.items() if n not in without}

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
