"""Read models of one pass: a text or vision encoder by its config.json, or a pipeline of named components.

A pipeline is an object with `components` (each the config.json of one network) and `run`: steps, guidance, size and
how many tokens its text encoders read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from types import MappingProxyType
from typing import Any, NamedTuple

from ...errors import InputError
from .families import one_pass
from .families.pieces import Canvas
from .families.reader import Reader
from .formats import WeightFormat
from .network import Network, Pipeline, Stage

MAX_PIXELS, MAX_FRAMES, MAX_STEPS, MAX_TOKENS = 16384, 4096, 100_000, 2**20
WITHOUT_GUIDANCE, IN_THE_BATCH, IN_PASSES = "none", "batch", "passes"


class Size(NamedTuple):
    """What is asked of a result where it differs from what the model was made for (None: as it was made)."""

    width: int | None = None
    height: int | None = None
    frames: int | None = None
    tokens: int | None = None
    steps: int | None = None

    def refuse(self, what: str, *keys: str) -> None:
        """Refuse what does not apply to a model."""
        for key in keys:
            if getattr(self, key) is not None:
                option = {"width": "--size", "height": "--size", "tokens": "--context"}.get(key, f"--{key}")
                raise InputError(f"does not apply to {what}", key=option, value=getattr(self, key), remedy="drop it")


def is_one_pass(config: object) -> bool:
    """Whether a config describes networks of one pass: a pipeline, an encoder, a vision tower."""
    if not isinstance(config, Mapping):
        return False
    if "components" in config:
        return True
    kind = config.get("model_type")
    return isinstance(kind, str) and (kind in one_pass.WHOLE or _encoder_only(config))


def _encoder_only(config: Mapping[str, Any]) -> bool:
    """Whether only the encoder of an encoder-decoder is meant."""
    named = config.get("architectures")
    return isinstance(named, list) and len(named) == 1 and named[0] in one_pass.ENCODER_CLASSES


def parse_pipeline(
    config: Mapping[str, Any], *, name: str, file: str, origin: str | None = None, size: Size | None = None
) -> Pipeline:
    """The pipeline a parsed config describes; `file` is what messages name."""
    reader = Reader(config, MappingProxyType({}), file, str(config.get("model_type", "pipeline")), name, origin or file)
    return _components(reader, size or Size()) if "components" in config else _single(reader, size or Size())


def _single(get: Reader, size: Size) -> Pipeline:
    """One model of one or two networks. Text models may be asked with another length."""
    size.refuse(get.family, "width", "height", "frames", "steps")
    family = "t5_encoder" if _encoder_only(get.config) and get.family not in one_pass.WHOLE else get.family
    kind = one_pass.WHOLE[family]
    if not kind.reads_text:
        size.refuse(get.family, "tokens")
    limit = get.assuming(**kind.defaults).first(*kind.limit_keys) - kind.padding if kind.limit_keys else None
    tokens = size.tokens if size.tokens is not None else min(limit or kind.tokens, kind.tokens)
    if limit is not None and tokens > limit:
        raise InputError(f"{get.name} reads at most {limit} tokens", key="--context", value=tokens)
    networks = tuple(make(get, tokens) for make in _makers(kind))
    native, _ = get.formats()
    words = f"{tokens} tokens" if kind.reads_text else kind.size(get)
    stages = tuple(Stage(network) for network in networks)
    return Pipeline(get.name, get.family, stages, native, kind.result, words, get.origin)


def _makers(kind: one_pass.Whole) -> Sequence[Callable[[Reader, int], Network]]:
    made: list[Callable[[Reader, int], Network]] = []
    for module, function in kind.makers:
        made.append(getattr(import_module(f".families.{module}", __package__), function))
    return made


class _Run(NamedTuple):
    """How a pipeline is run: passes of denoisers and text encoders, inputs of a pass, size, formats."""

    steps: Mapping[str, int]
    guidance: str
    width: int
    height: int
    frames: int
    tokens: Mapping[str, int]
    condition: int
    wide: tuple[str, ...]
    native: WeightFormat


def _components(get: Reader, size: Size) -> Pipeline:
    parts = {name: get.section("components").section(name) for name in get.section("components").config}
    if not parts:
        raise InputError("names no network", file=get.file, key="components")
    for part in parts.values():
        if not isinstance(part.config.get("_class_name", ""), str):
            raise InputError("must be a name", file=get.file, key="_class_name", value=part.config["_class_name"])
    run = _run(get, size, parts)
    latent = _latents(run, size, parts)
    stages = []
    for name, part in sorted(parts.items(), key=lambda item: _order(item[1], get.file)):
        stages.append(_stage(name, part._replace(name=name), run, latent))
    latent.cut(1)
    frames = f", {run.frames} frames" if run.frames > 1 else ""
    result = "clip" if run.frames > 1 else "image"
    steps = sum(run.steps.values())
    words = f"{run.width}x{run.height}{frames}, {steps} step{'s' * (steps != 1)}"
    family = next((str(p.config["_class_name"]) for n, p in parts.items() if n in run.steps), "pipeline")
    return Pipeline(get.name, family, tuple(stages), run.native, result, words, get.origin)


def _order(part: Reader, file: str) -> int:
    """Text encoders run first, then denoisers, then the autoencoder."""
    kind = part.config.get("_class_name")
    if kind in one_pass.DENOISERS:
        return 1
    if kind in one_pass.AUTOENCODERS:
        return 2
    if kind is not None:
        known = ", ".join((*one_pass.DENOISERS, *one_pass.AUTOENCODERS))
        raise InputError(
            "not a network that is known", file=file, key="_class_name", value=kind, remedy=f"known: {known}"
        )
    return 0


def _run(get: Reader, size: Size, parts: Mapping[str, Reader]) -> _Run:
    run = get.section("run")._replace(defaults=MappingProxyType({"frames": 1, "condition": None, "dtype": "float16"}))
    denoisers = [name for name, part in parts.items() if part.config.get("_class_name") in one_pass.DENOISERS]
    steps = run.config.get("steps")
    shares = steps if isinstance(steps, Mapping) else dict.fromkeys(denoisers, steps)
    if sorted(shares) != sorted(denoisers):
        raise InputError("must be a number, or one for each denoiser", file=get.file, key="run.steps", value=steps)
    counts = {name: run._replace(config={"steps": n}).integer("steps") for name, n in shares.items()}
    if size.steps is not None:
        counts = _shared(size.steps, counts)
    guidance = run.word("guidance", (WITHOUT_GUIDANCE, IN_THE_BATCH, IN_PASSES)) or WITHOUT_GUIDANCE
    height, width = run.several("size", 2)
    frames = run.integer("frames") if size.frames is None else size.frames
    if size.frames is not None and run.integer("frames") == 1:
        size.refuse(get.name, "frames")
    if size.tokens is not None:
        size.refuse(get.name, "tokens")
    read = run.section("tokens") if run.has("tokens") else run._replace(config={})
    tokens = {name: read.integer(name) for name in read.config}
    wide = tuple(run.words("wide", list(parts)) or ())
    native = get._replace(config={"dtype": run.config.get("dtype", "float16")}).formats()[0]
    asked = _Run(
        counts,
        guidance,
        size.width or width,
        size.height or height,
        frames,
        tokens,
        run.optional("condition") or 0,
        wide,
        native,
    )
    whole = sum(counts.values())
    for name, stated, value, limit in (
        ("size", size.width, max(asked.width, asked.height), MAX_PIXELS),
        ("frames", size.frames, asked.frames, MAX_FRAMES),
        ("steps", size.steps, whole, MAX_STEPS),
    ):
        if not 1 <= value <= limit:
            raise InputError(f"must lie between 1 and {limit}", value=value, **_place(name, stated, get.file))
    return asked


def _shared(steps: int, counts: Mapping[str, int]) -> dict[str, int]:
    """So many steps dealt out to denoisers in the proportion they have."""
    whole, reached, result = sum(counts.values()), 0, {}
    before = 0
    for name, count in counts.items():
        reached += count
        upto = round(steps * reached / whole)
        result[name], before = upto - before, upto
    return result


def _place(name: str, stated: int | None, file: str) -> dict[str, str]:
    """Where a value comes from: the option that states it, or the file."""
    return {"key": f"--{name}"} if stated is not None else {"file": file, "key": f"run.{name}"}


def _latents(run: _Run, size: Size, parts: Mapping[str, Reader]) -> Canvas:
    """The size of the latents, by the autoencoder's own factor; which sizes divide the denoiser knows."""
    for part in parts.values():
        known = one_pass.AUTOENCODERS.get(str(part.config.get("_class_name")))
        if known is None:
            continue
        module = import_module(f".families.{known.module}", __package__)
        factor = int(getattr(module, known.factor)(part))
        uneven = f"{run.width}x{run.height}" if run.width % factor or run.height % factor else ""
        if (run.frames - 1) % known.frames:
            problem = f"must be one more than a multiple of {known.frames}"
            raise InputError(problem, value=run.frames, **_place("frames", size.frames, part.file))
        frames = (run.frames - 1) // known.frames + 1
        place = _place("size", size.width, part.file)
        height, width = run.height // factor, run.width // factor
        return Canvas(height, width, frames, run.condition, factor, uneven, place["key"], place.get("file"))
    raise InputError("has no autoencoder", file=next(iter(parts.values())).file, key="components")


def _stage(name: str, part: Reader, run: _Run, latent: Canvas) -> Stage:
    kind, guided = str(part.config.get("_class_name")), run.guidance != WITHOUT_GUIDANCE
    wide = name in run.wide
    if kind in one_pass.DENOISERS:
        module, function = one_pass.DENOISERS[kind]
        network = getattr(import_module(f".families.{module}", __package__), function)(part, latent)
        passes = run.steps[name] * (2 if run.guidance == IN_PASSES else 1)
        return Stage(network, passes, 2 if run.guidance == IN_THE_BATCH else 1, wide)
    if kind in one_pass.AUTOENCODERS:
        known = one_pass.AUTOENCODERS[kind]
        module_ = import_module(f".families.{known.module}", __package__)
        return Stage(getattr(module_, known.function)(part, latent), wide=wide)
    if name not in run.tokens:
        raise InputError("missing: the tokens this text encoder reads", file=part.file, key=f"run.tokens.{name}")
    # With guidance the text is read twice: what is asked for, and what is not.
    return Stage(_text_encoder(part, run.tokens[name]), 2 if guided else 1, wide=wide)


def _text_encoder(part: Reader, tokens: int) -> Network:
    """An encoder by its class, or the body of a decoder, whose head and towers are loaded without running."""
    named = part.config.get("architectures")
    kind = named[0] if isinstance(named, list) and named and isinstance(named[0], str) else None
    known = one_pass.TEXT_CLASSES.get(str(kind))
    part = part._replace(family=str(part.config.get("model_type")))
    if known is not None:
        network: Network = getattr(import_module(f".families.{known[0]}", __package__), known[1])(part, tokens)
        return network
    from .decoder_network import decoder_as_network
    from .hf import parse_config

    model = parse_config(part.config, name=part.name, file=part.file, origin=part.origin)
    with_head = str(kind).endswith(("ForCausalLM", "ForConditionalGeneration"))
    return replace(decoder_as_network(model, tokens, with_head=with_head), name=part.name)
