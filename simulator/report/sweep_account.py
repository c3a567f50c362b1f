"""A sweep as the contract shows it: flat columns, and what its times rest on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ...calibrate.transfer import Calibrations
from .. import answers as a
from ..estimate import Array, Tier, total
from ..explain import CAUSES
from ..inference import decode_in_detail
from ..planner.fit import Verdict, budget_bytes
from ..scenario import Scenario, Sharding
from ..sweep import Sweep
from .account import evidence_of

Values = npt.NDArray[np.integer[Any]] | Array

VERDICTS = tuple(verdict.label for verdict in Verdict)
BINDS = (*CAUSES, "memory")
EVIDENCE = (*(tier.label for tier in Tier), "")


def empty(points: int, devices: Sequence[str], weights: Sequence[str], kv: Sequence[str]) -> a.SweepColumns:
    """Columns of that many points with nothing in them yet."""
    names = {"device": devices, "weights": weights, "kv": kv}
    names |= {"verdict": VERDICTS, "binds": BINDS, "evidence": EVIDENCE}
    counts: dict[str, npt.DTypeLike] = dict.fromkeys(("device_count", "tp", "pp", "ep", "cp"), np.int16)
    counts |= dict.fromkeys(("batch", "context_tokens", "prompt_tokens"), np.int64)

    def column(name: str) -> Any:
        if name in names:
            return a.Words(tuple(names[name]), np.empty(points, np.int8))
        return np.empty(points, counts.get(name, float))

    return a.SweepColumns(*map(column, a.SweepColumns._fields))


def fill(columns: a.SweepColumns, rows: slice, asked: Scenario, layouts: Sequence[Sharding], found: Sweep) -> None:
    """Write one series, a grid of batches and contexts, into its rows."""
    shape, fits = found.verdict.shape, found.verdict != Verdict.NO

    def known(values: npt.ArrayLike) -> Array:
        """Nobody can have the speed of what does not fit."""
        return np.where(fits, values, np.nan)

    batch = np.asarray(asked.batch)
    degrees = np.array([(s.tp, s.pp, s.ep, s.cp) for s in layouts], np.int16)[found.layout]
    written = a.SweepColumns(
        device=_same(columns.device, asked.fleet.device.key),
        device_count=np.asarray(asked.fleet.count),
        weights=_same(columns.weights, asked.numerics.weights.name),
        kv=_same(columns.kv, asked.numerics.kv.value),
        tp=degrees[..., 0],
        pp=degrees[..., 1],
        ep=degrees[..., 2],
        cp=degrees[..., 3],
        batch=batch,
        context_tokens=np.asarray(asked.context),
        prompt_tokens=np.asarray(asked.prompt),
        verdict=a.Words(VERDICTS, found.verdict),
        binds=a.Words(BINDS, np.where(fits, found.cause, np.int8(BINDS.index("memory")))),
        evidence=a.Words(EVIDENCE, np.where(fits, found.tier, np.int8(EVIDENCE.index("")))),
        needed_bytes=found.needed_bytes,
        needed_low_bytes=found.needed_low_bytes,
        needed_high_bytes=found.needed_high_bytes,
        decode_s=known(found.decode_s),
        decode_low_s=known(found.decode_low_s),
        decode_high_s=known(found.decode_high_s),
        tokens_per_s_user=known(1 / found.decode_s),
        tokens_per_s_user_low=known(1 / found.decode_high_s),
        tokens_per_s_user_high=known(1 / found.decode_low_s),
        tokens_per_s_total=known(batch / found.decode_s),
        tokens_per_s_total_low=known(batch / found.decode_high_s),
        tokens_per_s_total_high=known(batch / found.decode_low_s),
        prefill_s=known(found.prefill_s),
        prefill_low_s=known(found.prefill_low_s),
        prefill_high_s=known(found.prefill_high_s),
    )
    pairs: Iterable[tuple[Any, Any]] = zip(columns, written, strict=True)
    for whole, part in pairs:
        to, values = (whole.codes, part.codes) if isinstance(whole, a.Words) else (whole, part)
        to[rows].reshape(shape)[...] = values


def _same(words: a.Words, word: str) -> a.Words:
    return a.Words(words.names, np.asarray(words.names.index(word), np.int8))


def axes_of(answer: a.SweepAnswer) -> tuple[Values, Values]:
    """The batches and the contexts of a sweep, ascending: columns reshape to (series, batches, contexts)."""
    size = answer.points // len(answer.series)
    batch, context = answer.columns.batch[:size], answer.columns.context_tokens[:size]
    length = int(np.count_nonzero(batch == batch[0]))
    return batch[::length], context[:length]


def corners(batches: Values, contexts: Values) -> tuple[tuple[int, int], ...]:
    """The few points (batch, context) a table shows: ends and middle of both axes."""
    few, many, short, long = 0, len(batches) - 1, 0, len(contexts) - 1
    places = ((few, short), (few, long), (many // 2, long // 2), (many, short))
    return tuple(dict.fromkeys((int(batches[i]), int(contexts[j])) for i, j in places))


def series_of(asked: Scenario, columns: a.SweepColumns, first: int, calibrations: Calibrations) -> a.SweepSeries:
    """What holds for all points of a series, whose rows begin at `first`."""
    batches, contexts = np.ravel(asked.batch), np.ravel(asked.context)
    decoded = []
    for batch, context in corners(batches, contexts):
        row = first + int(np.searchsorted(batches, batch)) * contexts.size + int(np.searchsorted(contexts, context))
        if columns.verdict.codes[row] != Verdict.NO:
            tp, pp, ep, cp = (int(column[row]) for column in (columns.tp, columns.pp, columns.ep, columns.cp))
            sharding = Sharding(tp, pp, ep, cp=cp)
            prompt = int(columns.prompt_tokens[row])
            point = asked.but(batch=batch, context=context, prompt=prompt, sharding=sharding)
            decoded.append(decode_in_detail(point, calibrations))
    operators = [priced for one in decoded for priced in one.operators]
    return a.SweepSeries(
        device=asked.fleet.device.key,
        device_count=asked.fleet.count,
        weights=asked.numerics.weights.name,
        bits_per_weight=asked.numerics.weights.bits_per_weight,
        kv=asked.numerics.kv.value,
        capacity_bytes=asked.fleet.usable_bytes(),
        budget_bytes=budget_bytes(asked),
        evidence=evidence_of(total(d.step for d in decoded), operators, calibrations) if decoded else None,
    )
