"""The command `plan`: put on the command line's app, loaded when called."""

import dataclasses
import functools
import math
import re
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from .errors import InputError
from .options import Asked, Json, Model, Plot, asking, option
from .units import parse_bytes, parse_count, parse_share

if TYPE_CHECKING:
    from .simulator.answers import Report
    from .simulator.planner.question import Goal, Limits, Question
    from .simulator.workload.model import Model as ModelOf

DEFAULT_PPL = "3%"


class Engines(StrEnum):
    """Whose flags a plan can be written as; the files of `planner/export`, not loaded before one is asked for."""

    VLLM = "vllm"
    SGLANG = "sglang"
    TRTLLM = "trtllm"
    LLAMA_CPP = "llama.cpp"
    KTRANSFORMERS = "ktransformers"
    ACCELERATE = "accelerate"


def register(
    app: typer.Typer,
    examples: Callable[..., str],
    answer: Callable[..., None],
    check_plot: Callable[[Path | None], None],
) -> None:
    """Put `plan` on the app; `examples`, `answer` and `check_plot` are the command line's own."""

    @app.command(
        "plan",
        epilog=examples(
            "plan llama-3.1-70b --gpu 2xrtx-4090 --ram 128GB --prompt 2k --output 512 --goal throughput",
            "plan deepseek-v3 --gpu 2x8xh200 --prompt 4k --output 1k --tpot-ms 50 --goal cost --price h200=3.5USD/h",
            "plan mixtral-8x7b --gpu rtx-4090 --ram 64GB --goal latency --max-ppl-increase 1%",
        ),
    )
    @functools.partial(asking, without=("batch", "context", "prompt", "gpu"))
    def plan(
        model: Model,
        *,
        asked: Asked,
        gpu: Annotated[str | None, option("Such as h200, 8xh100-sxm or 2x8xh200: two nodes of eight.", "NAME")] = None,
        gpus: Annotated[
            str | None, option("Unlike devices: 4xrtx-3090,1xrtx-4090; more machines after a ;", "NAMES")
        ] = None,
        link: Annotated[str | None, option("What joins unlike devices, such as pcie4x8.", "NAME")] = None,
        network: Annotated[str | None, option("What joins the machines of --gpus, such as wifi-5.", "NAME")] = None,
        prompt: Annotated[str, option("Tokens of a prompt (1k = 1024).", "N")] = "1k",
        output: Annotated[str, option("Tokens of an answer.", "N")] = "256",
        goal: Annotated[str, option("latency, throughput, cost or energy; two with a comma: their front.", "GOAL")] = (
            "throughput"
        ),
        clients: Annotated[int | None, option("Pin the users of a replica.", "N", min=1)] = None,
        tpot_ms: Annotated[float | None, option("Most milliseconds per output token.", "MS")] = None,
        ttft_service_ms: Annotated[
            float | None, option("Most milliseconds to the first token, without waiting in a queue.", "MS")
        ] = None,
        max_ppl_increase: Annotated[
            str, option("How much perplexity may rise; any: no limit.", "PERCENT")
        ] = DEFAULT_PPL,
        sensitivity: Annotated[
            Path | None, option("Your own changes of log-perplexity: layer,class,format,delta_log_ppl.", "FILE")
        ] = None,
        max_gpus: Annotated[int | None, option("Most devices to use.", "N", min=1)] = None,
        max_power: Annotated[str | None, option("Most power of the devices used, such as 2kW.", "POWER")] = None,
        max_cost: Annotated[str | None, option("Most money an hour, such as 20USD/h; needs --price.", "MONEY")] = None,
        price: Annotated[str | None, option("Price of a device, such as h200=3.5USD/h.", "NAME=MONEY")] = None,
        what_if: Annotated[
            list[str] | None,
            option("Solve again with more of one thing: hbm=+24GB, bandwidth=, ram=, link=, gpus=+2.", "THING=+N"),
        ] = None,
        emit: Annotated[Engines | None, option("Write the plan as an engine's flags and files.")] = None,
        why: Annotated[bool, typer.Option(help="Solve again with a little more of everything.")] = True,
        cxl: Annotated[
            str | None, option("Memory the host reaches over CXL: 512GB, or 512GB@72GB/s.", "SIZE[@RATE]")
        ] = None,
        plot: Plot = None,
        json: Json = False,
    ) -> None:
        """The best way to run it, proved: layout, batch, precision and place of every layer; what would change it."""
        check_plot(plot)
        goals = goals_of(goal)
        limits = limits_of(tpot_ms, ttft_service_ms, max_ppl_increase, max_gpus, max_power, max_cost)
        paid = None if price is None else price_of(price)
        check_money(paid, max_cost)
        if gpus is not None or link is not None:
            if gpus is None:
                raise InputError("joins unlike devices, which --gpus names", key="--link", value=link)
            others: dict[str, object] = {"--gpu": gpu, "--emit": emit, "--cxl": cxl, "--draft": asked.draft}
            others |= {"--price": price, "--sensitivity": sensitivity, "--shared-prefix": asked.shared_prefix}
            _refuse_with_unlike(gpus, others | {"--what-if": what_if[0] if what_if else None})
            if network is not None and ";" not in gpus:
                remedy = "name them after a ; in --gpus"
                raise InputError("joins machines, and there is one", key="--network", value=network, remedy=remedy)
            if len(goals) > 1:
                raise InputError("goes without a second goal", key="--gpus", value=gpus)
            _unlike(
                model, asked, gpus, link, network, prompt, output, goals[0], limits, clients, why, answer, json, plot
            )
            return
        if network is not None:
            remedy = "name machines with --gpus"
            raise InputError("joins the machines of --gpus", key="--network", value=network, remedy=remedy)
        from . import plans
        from .hwspecs.load import with_cxl
        from .simulator.planner.what_if import imagined

        if emit is not None and asked.engine is None:
            asked = dataclasses.replace(asked, engine=emit.value)
        from .simulator.report.progress import Doing

        nodes, fleet_name = nodes_of(gpu)
        question = question_of(model, asked, fleet_name, nodes, prompt, output, goals[0], limits, paid, clients)
        _refuse_without_a_host(question, {"--cxl": cxl, "--nvme": asked.nvme})
        question = dataclasses.replace(question, fleet=with_cxl(question.fleet, cxl))
        if sensitivity is not None:
            question = _with_sensitivities(question, sensitivity)
        with Doing() as progress:
            report = plans.ask_plan(
                question,
                asked.calibration,
                why=why,
                second_goal=goals[1] if len(goals) > 1 else None,
                emit=None if emit is None else emit.value,
                what_if=[imagined(text, question) for text in what_if or ()],
                progress=progress,
            )
        _show(report, answer, json, plot)


def _refuse_with_unlike(gpus: str, others: dict[str, object]) -> None:
    for key, value in others.items():
        if value is not None:
            raise InputError("does not go with unlike devices (--gpus)", key=key, value=str(value), remedy="drop it")


def _refuse_without_a_host(question: "Question", others: dict[str, str | None]) -> None:
    """Drives and memory behind CXL hold what host memory does not: how much there is of it must be known."""
    for key, value in others.items():
        if value is not None and question.fleet.host_memory_bytes is None:
            remedy = "say how much there is: --ram 64GB"
            raise InputError("stands behind host memory", key=key, value=value, remedy=remedy)


def _with_sensitivities(question: "Question", path: Path) -> "Question":
    from .simulator.sensitivities import read_sensitivities, told_apart

    read = read_sensitivities(path)
    read.check(question.model)
    return dataclasses.replace(question, model=told_apart(question.model, read), sensitivities=read)


def _show(report: "Report", answer: Callable[..., None], json: bool, plot: Path | None) -> None:
    """Print, and draw where there is something to draw."""
    none = plot is not None and report.answer.verdict == "no"  # type: ignore[union-attr]
    answer(report, json, ("no picture: there is no plan",) if none else (), None if none else plot)


def _unlike(
    model: str,
    asked: Asked,
    gpus: str,
    link: str | None,
    network: str | None,
    prompt: str,
    output: str,
    goal: "Goal",
    limits: "Limits",
    clients: int | None,
    why: bool,
    answer: Callable[..., None],
    json: bool,
    plot: Path | None,
) -> None:
    from . import plans
    from .simulator.planner.nodes import parse_nodes
    from .simulator.report.progress import Doing

    ram = None if asked.ram is None else parse_bytes(asked.ram, "--ram")
    nodes = parse_nodes(gpus, link, network or "ethernet-1g", asked.host, ram)
    fleet = nodes[0].fleets[0] if nodes[0].fleets else nodes[0].fleet_of_host()
    asked = dataclasses.replace(asked, host=None, ram=None, nvme=None, engine=asked.engine or "llama.cpp")
    question = question_of(model, asked, fleet.label, 1, prompt, output, goal, limits, None, clients)
    question = dataclasses.replace(question, fleet=fleet)
    with Doing() as progress:
        report = plans.ask_unlike(question, nodes, gpus, asked.calibration, why=why, progress=progress)
    _show(report, answer, json, plot)


def nodes_of(gpu: str | None) -> tuple[int, str | None]:
    """The nodes of `2x8xh200`, and one of them."""
    found = None if gpu is None else re.fullmatch(r"(\d+)x(\d+x.+)", gpu.strip().lower())
    if found is None:
        return 1, gpu
    nodes = int(found[1])
    if not 1 <= nodes <= 4096:
        raise InputError("must be 1 to 4096 nodes", key="--gpu", value=gpu)
    return nodes, found[2]


def question_of(
    model: str,
    asked: Asked,
    gpu: str | None,
    nodes: int,
    prompt: str,
    output: str,
    goal: "Goal",
    limits: "Limits",
    paid: "Price | None",
    clients: int | None,
) -> "Question":
    """The whole question, everything checked before anything is computed."""
    from . import api
    from .simulator.planner.question import Pins, Question

    asked = dataclasses.replace(asked, gpu=gpu)
    wishes = asked.wishes()
    loaded = api.load_model(model)
    fleet, _ = asked.fleet()
    is_gguf = loaded.origin.endswith(".gguf") or (wishes.weights is not None and wishes.weights.whole)
    own = asked.max_batched_tokens
    chunk = None if own is None else parse_count(own, "--max-batched-tokens")
    length = asked.draft_length
    pins = Pins(
        wishes.weights, wishes.kv, wishes.tp, wishes.pp, wishes.ep, clients, chunk, wishes.offload, length, wishes.cp
    )
    extras = asked.extras(length_needed=False)  # the plan decides
    if extras.draft is not None:
        if asked.acceptance is None:
            remedy = "say how often its guesses are right: --acceptance 70%"
            raise InputError("is needed with --draft", key="--acceptance", remedy=remedy)
        check_vocabulary(loaded, extras.draft)
    if paid is not None and paid.device not in ("", fleet.device.key):
        remedy = f"write {fleet.device.key}=3.5USD/h"
        raise InputError("prices a device that is not asked about", key="--price", value=paid.device, remedy=remedy)
    return Question(
        model=loaded,
        fleet=fleet,
        prompt=parse_count(prompt, "--prompt"),
        output=parse_count(output, "--output"),
        goal=goal,
        limits=limits,
        pins=pins,
        engine=asked.profile(fleet.device, is_gguf),
        nodes=nodes,
        price_per_hour=None if paid is None else paid.per_hour,
        currency="" if paid is None else paid.currency,
        extras=extras,
    )


VOCABULARY_SHARE = 0.02  # tables are padded to multiples: Qwen2.5 has 151,936 rows or 152,064


def check_vocabulary(model: "ModelOf", draft: "ModelOf") -> None:
    """Refuse a draft of other tokens: engines check its guesses number by number."""
    if abs(draft.vocab / model.vocab - 1) > VOCABULARY_SHARE:
        problem = f"has a vocabulary of {draft.vocab:,} tokens, {model.name} of {model.vocab:,}"
        raise InputError(problem, key="--draft", value=draft.name, remedy="name a smaller model of the same family")


def goals_of(text: str) -> "list[Goal]":
    """One goal, or two of which the front is wanted."""
    from .errors import UnknownNameError
    from .simulator.planner.question import Goal

    words = [word.strip().lower() for word in text.split(",")]
    for word in words:
        if word not in set(Goal):
            raise UnknownNameError("goal", word, Goal, listing="roofplan plan --help")
    if len(words) > 2 or len(set(words)) < len(words):
        raise InputError("one goal, or two different ones", key="--goal", value=text)
    return [Goal(word) for word in words]


def limits_of(
    tpot_ms: float | None,
    ttft_ms: float | None,
    ppl: str,
    devices: int | None,
    power: str | None,
    cost: str | None,
) -> "Limits":
    """The limits in SI units."""
    from .simulator.planner.question import Limits

    return Limits(
        None if tpot_ms is None else _positive(tpot_ms, "--tpot-ms") / 1e3,
        None if ttft_ms is None else _positive(ttft_ms, "--ttft-service-ms") / 1e3,
        None if ppl.strip().lower() == "any" else math.log1p(parse_share(ppl, "--max-ppl-increase")),
        devices,
        None if power is None else _watts(power),
        None if cost is None else _money(cost, "--max-cost").per_hour,
    )


def _positive(value: float, key: str) -> float:
    if not (math.isfinite(value) and value > 0):
        raise InputError("must be positive", key=key, value=value)
    return value


def _watts(text: str) -> float:
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(k?W)\s*", text, re.IGNORECASE)
    if found is None or float(found[1]) <= 0:
        raise InputError("must be a power", key="--max-power", value=text, remedy="write 700W or 2kW")
    return float(found[1]) * (1e3 if found[2].lower() == "kw" else 1.0)


class Price(NamedTuple):
    """Money an hour, of a device where one was named."""

    per_hour: float
    currency: str
    device: str = ""


def _money(text: str, key: str) -> Price:
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z$€]{1,3})\s*/\s*h(?:our)?\s*", text)
    if found is None or float(found[1]) <= 0:
        raise InputError("must be money an hour", key=key, value=text, remedy="write 3.5USD/h")
    return Price(float(found[1]), found[2].upper())


def price_of(text: str) -> Price:
    """The money of `h200=3.5USD/h`, or of `3.5USD/h`."""
    device, _, money = text.rpartition("=")
    return _money(money, "--price")._replace(device=device.strip().lower())


def check_money(paid: Price | None, most: str | None) -> None:
    """Refuse a limit of money without a price, or in another currency."""
    if most is None:
        return
    if paid is None:
        raise InputError("needs the price of a device", key="--max-cost", value=most, remedy="--price 3.5USD/h")
    if _money(most, "--max-cost").currency != paid.currency:
        raise InputError("must be in the currency of --price", key="--max-cost", value=most, remedy=paid.currency)
