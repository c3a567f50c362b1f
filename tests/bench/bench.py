"""Benchmarks: each prints a ratio to a limit or to a peer measured in the same run; nothing is asserted.

Limits are those of CONTRIBUTING.md. The peer is GenZ (genz-llm 0.0.16 from PyPI), in its own environment because its
dependencies are many; without a registry it is left out and the line says so.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent.parent
PEER = ROOT / ".venv-peer"
PEER_PACKAGE = "genz-llm==0.0.16"
PEER_PROGRAM = """
import json, time
start = time.perf_counter()
from GenZ import decode_moddeling
loaded = time.perf_counter() - start
QUESTION = dict(model="meta-llama/Llama-3.1-70B", input_tokens=4096, output_tokens=1, Bb=1)
def ask(batch):
    return decode_moddeling(batch_size=batch, system_name="H100_GPU", bits="bf16", tensor_parallel=2, **QUESTION)
ask(1)
start = time.perf_counter()
for batch in range(2, 12):
    ask(batch)
print(json.dumps({"import_s": loaded, "point_s": (time.perf_counter() - start) / 10}))
"""


def seconds_of(*command: str) -> float:
    """Wall-clock seconds of a fresh process."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *command], check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def start_up(repeat: int = 11) -> None:
    """Cold commands against `python -c "import numpy"`, taken in turns so that both see the same machine."""
    commands = (
        (3.0, "fits", "--gpu", "rtx-4090", "--json"),
        (3.0, "fits", "--json"),
        (4.5, "fits", "--gpu", "rtx-4090"),
        (3.0, "fits", "llama-3.1-70b", "--gpu", "2xh100-sxm", "--json"),
        (3.0, "fits", "--gpu", "8xh200", "--json"),
    )
    times: dict[tuple[str, ...], list[float]] = {}
    for _ in range(repeat):
        for command in (("-c", "import numpy"), *(("-m", "roofplan", *words) for _, *words in commands)):
            times.setdefault(command, []).append(seconds_of(*command))
    base = statistics.median(times[("-c", "import numpy")])
    print(f'cold process, median of {repeat}, as a multiple of `python -c "import numpy"` ({base * 1e3:.0f} ms):')
    for limit, *words in commands:
        own = statistics.median(times[("-m", "roofplan", *words)])
        print(f"  roofplan {' '.join(words):48} {own * 1e3:5.0f} ms  {own / base:4.2f}x  (limit {limit}x)")


def million_points() -> float:
    """A grid and unrelated points: every column of a sweep in one layout. Returns seconds a point."""
    from roofplan import api
    from roofplan.simulator.scenario import Sharding
    from roofplan.simulator.sweep import sweep

    fleet, _ = api.load_fleet("2xh100-sxm")
    calibrations = api.load_calibrations(fleet)
    rng = np.random.default_rng(0)
    print("a million points on one core, decode and prefill with intervals, memory, verdict, evidence, what binds:")
    for name in ("llama-3.1-70b", "qwen3-30b-a3b"):
        scenario = api.make_scenario(api.load_model(name), fleet, sharding=Sharding(2, 1))
        batch, context = np.arange(1.0, 1001.0)[:, None], 128.0 * np.arange(1, 1001)[None, :]
        grid = scenario.but(batch=batch, context=context, prompt=context)
        contexts = rng.integers(128, 131072, 10**6).astype(float)
        unrelated = scenario.but(batch=rng.integers(1, 1000, 10**6).astype(float), context=contexts, prompt=contexts)
        for kind, question, limit in (("grid 1000 x 1000", grid, 1.0), ("unrelated points", unrelated, 5.0)):
            start = time.perf_counter()
            sweep(question, calibrations)
            seconds = time.perf_counter() - start
            print(f"  {name:14} {kind:18} {seconds:5.2f} s  {seconds / limit:4.2f} of the limit of {limit:g} s")
    return seconds / 1e6


def sweep_against_loops(points: int = 60) -> None:
    """A sweep of a million points against loops over `points` of them: through `fits`, and with its bare parts."""
    from roofplan import api, sweeps
    from roofplan.simulator.inference import decode, prefill
    from roofplan.simulator.memory import ledger
    from roofplan.simulator.planner.fit import Wishes, verdict
    from roofplan.simulator.workload.formats import weight_format

    model, (fleet, _) = api.load_model("llama-3.1-8b"), api.load_fleet("h200")
    calibrations, weights = api.load_calibrations(fleet), weight_format("bf16")
    asked = sweeps.make_sweep(model, [fleet], batch="1:1000:1", context="128:128000:128", weights=[weights])
    start = time.perf_counter()
    sweeps.ask_sweep(asked)
    rate = asked.points / (time.perf_counter() - start)
    print(f"sweep of {asked.points:,} points of {model.name} on one {fleet.label}, one core: {rate:,.0f} points/s")
    rng = np.random.default_rng(0)
    some = [(int(rng.choice(asked.batch)), int(rng.choice(asked.context))) for _ in range(points)]
    scenarios = [api.make_scenario(model, fleet, batch=b, context=c) for b, c in some]

    def fits() -> None:
        for scenario in scenarios:
            api.ask_fit(scenario, calibrations, Wishes(weights=weights))

    def bare() -> None:
        for scenario in scenarios:
            decode(scenario, calibrations)
            prefill(scenario, calibrations)
            verdict(scenario, ledger(scenario))

    for name, loop in (("`fits`", fits), ("decode, prefill and ledger", bare)):
        start = time.perf_counter()
        loop()
        own = points / (time.perf_counter() - start)
        print(f"  a loop over {name:27} {own:7,.0f} points/s; the sweep does {rate / own:,.0f} times as many")


def peer(own_point_s: float) -> None:
    """The same kind of question to GenZ, point by point, which is the way it is asked."""
    python = PEER / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(PEER)], check=True)
    install = [str(python), "-m", "pip", "install", "--quiet", PEER_PACKAGE]
    done = subprocess.run(install, capture_output=True, text=True)
    if done.returncode:
        print(f"peer {PEER_PACKAGE} cannot be installed here: {done.stderr.strip().splitlines()[-1:]}")
        return
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run([str(python), "-c", PEER_PROGRAM], capture_output=True, text=True, env=environment)
    if run.returncode:
        print(f"peer {PEER_PACKAGE} did not answer: {run.stderr.strip().splitlines()[-1:]}")
        return
    figures = json.loads(run.stdout.strip().splitlines()[-1])
    ratio = figures["point_s"] / own_point_s
    print(
        f"peer {PEER_PACKAGE}: {figures['import_s']:.2f} s to import, {figures['point_s'] * 1e3:.1f} ms a decode point;"
    )
    print(f"  roofplan {own_point_s * 1e6:.2f} us an unrelated point of a sweep: {ratio:,.0f} times as many a second")


def one_core() -> None:
    """Keep this process on one core, so that times mean the same everywhere."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


if __name__ == "__main__":
    start_up()
    one_core()
    own = million_points()
    sweep_against_loops()
    if "--without-peers" not in sys.argv:
        peer(own)
