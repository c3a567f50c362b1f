"""Models of one pass as answers: the question as understood, what each network holds and takes, what else would do."""

from __future__ import annotations

import numpy as np

from ...calibrate.transfer import Calibrations
from .. import answers as a
from ..explain import known, quantity, rate, sentence, shares
from ..memory import Ledger
from ..passing import PASS_SPREAD, Passed, held, run
from ..planner.passes import Choice, Option, Wish, max_results, word_of
from ..planner.verdict import Verdict
from .account import UNNAMED, needed, unfit


def question_of(option: Option, wish: Wish) -> a.PassQuestion:
    """The question as the JSON contract shows it."""
    asked = option.asked
    return a.PassQuestion(
        model=asked.pipeline.name,
        model_origin=asked.pipeline.origin,
        family=asked.pipeline.family,
        device=asked.fleet.device.key,
        device_count=asked.fleet.count,
        batch=int(asked.batch),
        result=asked.pipeline.result,
        size=asked.pipeline.size,
        weights=asked.weights.name,
        bits_per_weight=asked.weights.bits_per_weight,
        activations=asked.activation.value,
        residency=asked.residency.value,
        memory_utilization=asked.memory_utilization,
        pinned=tuple(name for name, value in wish._asdict().items() if value is not None),
    )


def answer_of(choice: Choice, wish: Wish, calibrations: Calibrations) -> a.PassAnswer:
    """The answer to `fits` for a model of one pass."""
    chosen, passed = choice.chosen, choice.passed
    fits, parts = chosen.verdict is not Verdict.NO, shares(passed.operators)
    words = question_of(chosen, wish)
    per_s = f"{words.result}s/s"
    return a.PassAnswer(
        asked=words,
        verdict=chosen.verdict.label,
        needed=needed(chosen.memory),
        capacity_bytes=chosen.asked.fleet.usable_bytes(),
        budget_bytes=chosen.asked.budget_bytes(),
        max_batch=max_results(chosen),
        time=quantity(passed.whole) if fits else unfit("s"),
        results_per_s=rate(passed.whole, words.batch, per_s) if fits else unfit(per_s),
        copying=quantity(passed.copying) if fits else unfit("s"),
        networks=_networks(chosen, passed, fits),
        memory=_rows(chosen.memory),
        binds=sentence(f"one {words.result}", parts, "time") if fits else "memory",
        shares=parts if fits else (),
        options=tuple(_option(choice, option, calibrations) for option in choice.options),
        next_step=_next_step(chosen, choice, wish),
    )


def _networks(chosen: Option, passed: Passed, fits: bool) -> tuple[a.PassNetwork, ...]:
    whole = max(float(passed.whole.time_s), 1e-300)
    rows = []
    for stage, part, time in zip(chosen.asked.pipeline.stages, held(chosen.asked), passed.stages, strict=True):
        low, usual, high = (float(part.activations) * factor for factor in PASS_SPREAD)
        rows.append(
            a.PassNetwork(
                name=stage.network.name,
                parameters=stage.network.parameters,
                passes=stage.passes,
                inputs=stage.inputs,
                fp32=stage.wide,
                weight_bytes=part.weights,
                activations=known(usual, low, high, "B"),
                time=quantity(time) if fits else unfit("s"),
                share=float(time.time_s) / whole if fits else 0.0,
            )
        )
    return tuple(rows)


def _rows(memory: Ledger) -> tuple[a.MemoryRow, ...]:
    def one(value: object) -> float:
        return float(np.ravel(np.asarray(value, float))[0])

    return tuple(
        a.MemoryRow(
            e.tensor_class.value, e.tier.value, known(one(e.bytes), one(e.low_bytes), one(e.high_bytes), "B"), e.basis
        )
        for e in memory.entries
    )


def _option(choice: Choice, option: Option, calibrations: Calibrations) -> a.PassOption:
    fits = option.verdict is not Verdict.NO
    passed = choice.passed if option is choice.chosen else run(option.asked, calibrations) if fits else None
    return a.PassOption(
        weights=option.asked.weights.name,
        residency=option.asked.residency.value,
        verdict=option.verdict.label,
        needed=needed(option.memory),
        max_batch=max_results(option),
        time=quantity(passed.whole) if fits and passed is not None else unfit("s"),
    )


def row_of(choice: Choice) -> a.PassRow:
    """A line of a list of devices."""
    option, fits = choice.chosen, choice.chosen.verdict is not Verdict.NO
    whole, per_s = choice.passed.whole, f"{option.asked.pipeline.result}s/s"
    return a.PassRow(
        model=option.asked.pipeline.name,
        device=option.asked.fleet.device.key,
        verdict=option.verdict.label,
        weights=option.asked.weights.name,
        residency=option.asked.residency.value,
        batch=int(option.asked.batch),
        needed=needed(option.memory),
        max_batch=max_results(option),
        time=quantity(whole) if fits else unfit("s"),
        results_per_s=rate(whole, int(option.asked.batch), per_s) if fits else unfit(per_s),
        weakest=whole.weakest_tier().label if fits else "",
    )


def _next_step(chosen: Option, choice: Choice, wish: Wish) -> str:
    """What to ask next: the largest batch, or on which device it fits."""
    asked = chosen.asked
    name = asked.pipeline.name if asked.pipeline.origin == "bundled" else asked.pipeline.origin
    device = asked.fleet.device
    if chosen.verdict is Verdict.NO:
        return f"roofplan fits {name} --gpu NAME   (a device with more memory: roofplan hw list)"
    where = "" if device.file == UNNAMED else f" --gpu {device.key}"
    most, again = max_results(chosen), _pins(wish)
    if most > int(asked.batch):
        return f"roofplan fits {name}{where}{again} --batch {most}   (the most at once)"
    narrower = [o for o in choice.options if o.verdict > chosen.verdict or max_results(o) > most]
    if narrower and not again:
        flags = f" --weights {narrower[0].asked.weights.name}"
        return f"roofplan fits {name}{where}{flags}   (room for more)"
    return f"roofplan models show {name}   (layer by layer)"


def _pins(wish: Wish) -> str:
    weights = f" --weights {wish.weights.name}" if wish.weights else ""
    residency = "" if wish.residency is None else f" --offload {word_of(wish.residency)}"
    return weights + residency
