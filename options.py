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
from .units import parse_bytes, parse_count, parse_rate, parse_share

if TYPE_CHECKING:
    from .api import Load
    from .calibrate.transfer import Calibrations
    from .hwspecs.device import Device, Fleet
    from .simulator.planner.fit import Wishes
    from .simulator.planner.passes import Wish
    from .simulator.scenario import Engine, Extras, Scenario
    from .simulator.workload.model import Model as Decoder
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
    str,
    typer.Argument(
        help="Bundled name; config.json or folder, .gguf, .safetensors; ORG/NAME in the Hugging Face cache; name in "
        "Ollama or LM Studio.",
        autocompletion=model_names,
    ),
]
Plot = Annotated[Path | None, option("Also draw a picture: .png, .svg or .pdf.", "FILE")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object (its schema: `roofplan schema`).")]


@dataclass(frozen=True)
class Asked:
    """The options every question takes; one list for all commands."""

    gpu: Annotated[
        str | None,
        option(
            "h200, 2xh100-sxm, m2-max-64gb, p5.48xlarge or your own .toml; default: this machine.",
            "NAME",
            autocompletion=gpu_names,
        ),
    ] = None
    batch: Annotated[str, option("Users served at once.", "N")] = "1"
    context: Annotated[str | None, option("Tokens of each user in the KV cache (32k = 32768); default 8k.", "N")] = None
    prompt: Annotated[str | None, option("Tokens of the prompt; default: the whole context.", "N")] = None
    weights: Annotated[
        str | None,
        option(
            "Pin the weight format: bf16, fp16, fp8, fp8-block, int8, int4, mxfp4, nvfp4, or a GGUF file type.",
            "FORMAT",
        ),
    ] = None
    kv: Annotated[str | None, option("Pin the KV cache format: bf16, fp16, fp8, int8.", "FORMAT")] = None
    tp: Annotated[int | None, option("Pin the tensor-parallel degree.", "N", min=1)] = None
    pp: Annotated[int | None, option("Pin the number of pipeline stages.", "N", min=1)] = None
    ep: Annotated[int | None, option("Pin the expert-parallel degree (a divisor of --tp); default 1.", "N", min=1)] = (
        None
    )
    cp: Annotated[
        int | None,
        option(
            "Pin over how many ranks of --tp that hold the same KV heads the KV cache is shared out (decode context "
            "parallelism); default 1, of `plan` the best.",
            "N",
            min=1,
        ),
    ] = None
    ram: Annotated[
        str | None, option("Host memory, such as 64GB: what does not fit the device may be kept there.", "SIZE")
    ] = None
    ram_bandwidth: Annotated[str | None, option("Host memory bandwidth, such as 80GB/s; else the host's.", "RATE")] = (
        None
    )
    nvme: Annotated[str | None, option("Drive behind the host memory: a rate (7GB/s) or a name.", "RATE")] = None
    offload: Annotated[
        str | None,
        option(
            "What may leave the device: never, layers, experts, kv, of a pipeline networks; default: what is fastest.",
            "WHAT",
        ),
    ] = None
    host: Annotated[str | None, option("Host file (`roofplan hw list`).", "NAME")] = None
    vram: Annotated[
        str | None,
        option(
            "Memory of an unnamed card, such as 24GB; with a --gpu that shares its machine's memory (m2-max, "
            "dgx-spark), the machine's.",
            "SIZE",
        ),
    ] = None
    bandwidth: Annotated[str | None, option("Memory bandwidth of an unnamed card, such as 1TB/s.", "RATE")] = None
    engine: Annotated[
        str | None,
        option(
            "Whose batching, kernels and memory: vllm, sglang, trtllm, llama.cpp, ktransformers, flexgen, accelerate; "
            "vllm-0.12.0: `serve` adds its overhead. Default: vllm, but llama.cpp for GGUF, Apple, Radeon, Arc, CPUs.",
            "NAME",
        ),
    ] = None
    memory_utilization: Annotated[
        float | None, option("Share of a device an engine may claim; default: the engine's own, 0.9 for most.", "SHARE")
    ] = None
    max_batched_tokens: Annotated[
        str | None, option("Most tokens an engine puts into one step; default: the engine's own, 8192.", "N")
    ] = None
    shared_prefix: Annotated[str | None, option("Tokens all users' contexts begin with, kept once.", "N")] = None
    adapters: Annotated[str | None, option("LoRA adapters loaded at once.", "N")] = None
    adapter_rank: Annotated[str, option("Rank of the adapters.", "N")] = "16"
    draft: Annotated[str | None, option("Model that speculates ahead, kept beside it.", "MODEL")] = None
    acceptance: Annotated[
        str | None, option("How often a token guessed by --draft is right, such as 70%.", "PERCENT")
    ] = None
    draft_length: Annotated[int | None, option("Tokens guessed in a round; `plan` chooses.", "N", min=0)] = None
    graphs: Annotated[bool, option("Whether the engine captures CUDA graphs.")] = True
    flash_attention: Annotated[bool, option("Whether attention keeps no scores in memory.")] = True
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
            ram_bytes_per_s=None if self.ram_bandwidth is None else parse_rate(self.ram_bandwidth, "--ram-bandwidth"),
            nvme=self.nvme,
        )

    def wishes(self) -> "Wishes":
        """What the asker pinned."""
        from .simulator.planner.fit import Wishes, offload
        from .simulator.workload.formats import kv_format, weight_format

        weights = None if self.weights is None else weight_format(self.weights)
        kv = None if self.kv is None else kv_format(self.kv)
        away = None if self.offload is None else offload(self.offload)
        return Wishes(weights, kv, self.tp, self.pp, self.ep, away, self.cp)

    def extras(self, length_needed: bool = True) -> "Extras":
        """What keeps memory beside the model."""
        from .simulator.scenario import Extras

        def number(text: str | None, key: str) -> int:
            return 0 if text is None else parse_count(text, key)

        return Extras(
            number(self.shared_prefix, "--shared-prefix"),
            number(self.adapters, "--adapters"),
            parse_count(self.adapter_rank, "--adapter-rank"),
            None if self.draft is None else _draft(self.draft),
            self.draft_length or 0,
            self._acceptance(length_needed),
        )

    def _acceptance(self, needs_length: bool) -> float:
        """How often guesses are right; needed wherever they are priced."""
        if self.draft_length and self.draft is None:
            raise InputError("needs a model that guesses", key="--draft-length", remedy="name one with --draft")
        if self.acceptance is None:
            if self.draft_length:
                remedy = "say how often a guess is right: --acceptance 70%"
                raise InputError("is needed with --draft-length", key="--acceptance", remedy=remedy)
            return 0.0
        if self.draft is None:
            raise InputError("needs a model that guesses", key="--acceptance", remedy="name one with --draft")
        if needs_length and self.draft_length is None:
            raise InputError("needs how many tokens are guessed", key="--acceptance", remedy="--draft-length 4")
        share = parse_share(self.acceptance, "--acceptance")
        if share > 1:
            raise InputError("must be 0% to 100%", key="--acceptance", value=self.acceptance, remedy="such as 70%")
        return share

    def profile(self, device: "Device | None" = None, is_gguf: bool = False) -> "Engine":
        """The profile of the serving engine (the usual one where none is named) with the asker's own knobs."""
        from .simulator import engines

        usual = "vllm" if device is None else engines.usual(device, is_gguf)
        name = usual if self.engine is None else self.engine
        known, own = engines.engine(name), self.max_batched_tokens
        tokens = known.max_batched_tokens if own is None else parse_count(own, "--max-batched-tokens")
        share = known.memory_utilization if self.memory_utilization is None else self.memory_utilization
        graphs = known.graphs and self.graphs
        return dataclasses.replace(
            known,
            memory_utilization=share,
            max_batched_tokens=tokens,
            graphs=graphs,
            flash_attention=self.flash_attention,
        )

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
            "--cp": self.cp, "--max-batched-tokens": self.max_batched_tokens, "--shared-prefix": self.shared_prefix,
            "--adapters": self.adapters, "--draft": self.draft, "--nvme": self.nvme,
        }  # fmt: skip
        for key, value in foreign.items():
            if value is not None:
                problem = "does not apply to a model that runs as one pass"
                raise InputError(problem, key=key, value=value, remedy="drop it")
        return {"batch": parse_count(self.batch, "--batch"), "memory_utilization": self.profile().memory_utilization}

    def pass_wish(self) -> "Wish":
        """What is pinned of a model of one pass."""
        from .simulator.planner.passes import Wish, residency
        from .simulator.workload.formats import weight_format

        weights = None if self.weights is None else weight_format(self.weights)
        return Wish(weights, None if self.offload is None else residency(self.offload))

    def scenario(self, model: str) -> "tuple[Scenario, Wishes, Calibrations, tuple[str, ...]]":
        """The whole question, everything checked before anything is computed."""
        from . import api

        self.profile()  # an unknown engine is refused before anything is read
        wishes, load = self.wishes(), self.load()
        loaded = api.load_model(model)
        fleet, notes = self.fleet()
        is_gguf = loaded.origin.endswith(".gguf") or (wishes.weights is not None and wishes.weights.whole)
        engine = self.profile(fleet.device, is_gguf)
        calibrations = api.load_calibrations(fleet, self.calibration, engine.name)
        scenario = api.make_scenario(loaded, fleet, engine=engine, **load._asdict()).but(extras=self.extras())
        return scenario, wishes, calibrations, notes


def _draft(name: str) -> "Decoder":
    """The model of --draft; what is wrong with it is told of that option."""
    from . import api

    try:
        return api.load_model(name)
    except InputError as error:
        raise InputError(error.problem, key="--draft", value=name, remedy=error.remedy) from None


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
