"""Published speeds of unlike devices that run one model together, held against what the planner predicts for them.

`reality/clusters.csv` holds the figures with their sources, `clusters_asked.csv` how each is asked or why it is not,
`clusters_nodes.csv` the machines: all settled before anything was predicted (`clusters.md`).
"""

from __future__ import annotations

import csv
import dataclasses
from functools import lru_cache
from typing import NamedTuple

from ..hwspecs.device import Fact, Host, Kind, Link, Storage
from ..hwspecs.load import load, load_fleet
from ..simulator import engines
from ..simulator.planner.nodes import Node
from ..simulator.planner.place import HOST_SHARE
from ..simulator.planner.question import Goal, Pins, Question
from ..simulator.planner.unlike import FoundUnlike, plan_unlike
from ..simulator.planner.unlike_program import Wanted
from . import store
from .speeds import REALITY, model_of, weights_of
from .transfer import Calibrations

GIB = 2.0**30
MET = 0.35  # relative error within which a prediction counts as met
OUTPUT = 256  # tokens; a row's context is that of the mean token


class Row(NamedTuple):
    """A published speed in tokens per second, and how it is asked. `layers` are those of each node, where stated."""

    id: str
    use: str
    cluster: str
    system: str
    model: str
    weights: str
    engine: str
    context: int
    layers: tuple[int, ...]
    every_node: bool
    reads_ahead: bool
    reason: str
    tokens_per_s: float | None
    source: str


class Predicted(NamedTuple):
    """Tokens per second with the 80 % interval, what the time mostly goes to, and the plan behind it."""

    tokens_per_s: float
    low: float
    high: float
    deciding: str
    found: FoundUnlike


@lru_cache(maxsize=1)
def rows() -> tuple[Row, ...]:
    """Every published row, those that are not asked included."""
    published = {r["id"]: r for r in _read("clusters.csv")}
    return tuple(_row(asked, published[asked["id"]]) for asked in _read("clusters_asked.csv"))


def _read(name: str) -> list[dict[str, str]]:
    with (REALITY / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _row(asked: dict[str, str], figure: dict[str, str]) -> Row:
    value = figure["value"]
    speed = None if value == "OOM" else 1e3 / float(value) if figure["quantity"] == "ms_per_token" else float(value)
    return Row(
        id=asked["id"],
        use=asked["use"],
        cluster=figure["cluster"],
        system=figure["system"],
        model=asked["model"],
        weights=asked["weights"],
        engine=asked["engine"],
        context=int(asked["context"]),
        layers=tuple(int(n) for n in asked["layers"].split(":") if n),
        every_node=asked["every_node"] == "1",
        reads_ahead=asked["reads_ahead"] == "1",
        reason=asked["reason"],
        tokens_per_s=speed,
        source=figure["source"],
    )


def nodes_of(row: Row) -> tuple[Node, ...]:
    """The machines of a row's cluster, in the order of the pipeline."""
    return tuple(
        _node(entry, row.reads_ahead) for entry in _read("clusters_nodes.csv") if entry["cluster"] == row.cluster
    )


def _node(entry: dict[str, str], reads_ahead: bool) -> Node:
    def number(key: str) -> float:
        return float(entry[key] or 0)

    fleets = tuple(load_fleet(name) for name in entry["gpus"].split() if name)
    if entry["free_gib"]:
        fleets = tuple(dataclasses.replace(fleet, free_bytes=number("free_gib") * GIB) for fleet in fleets)
    host = load(Host, entry["host"]) if entry["host"] else _stated(entry) if entry["host_gb_s"] else None
    network = load(Link, entry["link"] or "ethernet-1g")
    if entry["link_mbit_s"]:
        rate, latency = number("link_mbit_s") * 1e6 / 8, number("latency_ms") * 1e-3
        source = next(iter(network.sources))
        network = dataclasses.replace(
            network,
            bandwidth_bytes_per_s=Fact(rate, source, Kind.MEASURED),
            latency_s=Fact(latency, source, Kind.MEASURED),
        )
    storage = None
    if entry["drive_gb_s"]:
        like = load(Storage, "nvme-gen3")
        rate_of = Fact(number("drive_gb_s") * 1e9, next(iter(like.sources)), Kind.MEASURED)
        storage = dataclasses.replace(like, read_bytes_per_s=rate_of)
    inside = fleets[0].interconnect if fleets else load(Link, "memory-bus")
    ram = number("ram_gib") * GIB / HOST_SHARE if host is not None else None  # what is available has no system in it
    return Node(entry["node"], fleets, inside, network, host, ram, storage, reads_ahead)


def _stated(entry: dict[str, str]) -> Host:
    """A host by its bandwidth, cores and clock, on the pattern of a desktop."""
    like = load(Host, "desktop-ddr5")

    def stated(value: str, unit: float = 1.0) -> Fact:
        return Fact(float(value) * unit, "amd", Kind.DATASHEET)

    return dataclasses.replace(
        like,
        memory_bandwidth_bytes_per_s=stated(entry["host_gb_s"], 1e9),
        memory_bytes=stated(entry["ram_gib"], GIB),
        cores=stated(entry["cores"]),
        clock_hz=stated(entry["ghz"], 1e9),
        sockets=stated(entry["sockets"]),
        peak_dense_flops_per_s={},
    )


def question_of(row: Row, nodes: tuple[Node, ...]) -> Question:
    """One user whose mean token has the row's context behind it."""
    model = model_of(row.model)
    engine = dataclasses.replace(engines.engine(row.engine), memory_utilization=1.0)
    pins = Pins(weights=weights_of(row.weights, model), kv=model.activation)
    fleets = [fleet for node in nodes for fleet in (node.fleets or (node.fleet_of_host(),))]
    prompt = max(1, row.context - OUTPUT // 2)
    return Question(model, fleets[0], prompt, OUTPUT, Goal.LATENCY, pins=pins, engine=engine)


def predict(row: Row) -> Predicted | None:
    """The fastest plan for a row, priced; None where the planner finds none."""
    nodes = nodes_of(row)
    question = question_of(row, nodes)
    calibrations = Calibrations(question.fleet, store.entries(), row.engine)
    found = plan_unlike(question, nodes, calibrations, Wanted(row.every_node, row.layers))
    if not found.plans:
        return None
    pace = found.plans[0].pace
    spent = found.plans[0].spent
    return Predicted(1 / float(pace.time_s), 1 / float(pace.high_s), 1 / float(pace.low_s), spent.deciding, found)
