"""A placement as an answer shows it, and the words of an engine's command line that make it so."""

from __future__ import annotations

from ...hwspecs.load import host_fleet
from .. import answers as a
from ..memory import Ledger
from ..scenario import (
    EXPERTS_HOST,
    EXPERTS_STREAMED,
    KV_HOST,
    LAYERS_HOST,
    LAYERS_STREAMED,
    MemoryTier,
    Mode,
    Placement,
    Scenario,
)


def words(placement: Placement) -> str:
    """`experts of 38 layers on the host; 4 layers streamed`, or nothing where everything is on the device."""
    return "; ".join(f"{stretch.layers} x {stretch.mode.name}" for stretch in placement.stretches)


def placement_of(scenario: Scenario, memory: Ledger) -> a.Placement:
    """The placement of a decided scenario."""
    placement, rows, first = scenario.placement, [], 0
    for stretch in placement.stretches:
        rows.append(a.PlacementRow(stretch.mode.name, first, stretch.layers, stretch.cached))
        first += stretch.layers
    if not rows:
        return a.Placement((), 0.0, 0.0, "", "")
    host = host_fleet(scenario.fleet, scenario.engine.copies_by_socket).device
    rate = host.bandwidth_bytes_per_s
    said = f"{host.key} at {rate.value / 1e9:.0f} GB/s, {rate.kind.value}"
    held, read = (memory.tier_bytes(tier) for tier in (MemoryTier.HOST, MemoryTier.STORAGE))
    return a.Placement(tuple(rows), held, read, said, _engines(scenario))


def _engines(scenario: Scenario) -> str:
    """Which engine runs the placement, with the options that say so."""
    layers = {stretch.mode: stretch.layers for stretch in scenario.placement.stretches}
    modes = set(layers)
    if modes <= {LAYERS_HOST, EXPERTS_HOST, KV_HOST}:
        return f"llama.cpp: {_llama_cpp(layers, scenario.model.layers)}" + (
            " (or KTransformers)" if modes == {EXPERTS_HOST} else ""
        )
    if modes == {LAYERS_STREAMED}:
        return "vLLM: --cpu-offload-gb with the weights in host memory; accelerate's device map"
    if modes == {EXPERTS_STREAMED}:
        return "engines with an expert cache (MoE-Infinity, mixtral-offloading)"
    return "FlexGen, or an engine with its schedule"


def _llama_cpp(layers: dict[Mode, int], all_layers: int) -> str:
    whole = layers.get(LAYERS_HOST, 0)
    options = [f"-ngl {all_layers - whole + 1}" if whole else "-ngl 999"]
    if EXPERTS_HOST in layers:
        options.append(f"--n-cpu-moe {layers[EXPERTS_HOST] + whole}")
    if KV_HOST in layers:
        options.append("--no-kv-offload")
    return " ".join(options)
