"""The command that measures what was planned, in a form `roofplan records import` reads."""

from __future__ import annotations

from .planned import Kind, Planned, kind_of

RESULT = "result.json"
ROUNDS = 5  # requests each client sends one after another: the first round also warms up


def clients_of_one(planned: Planned) -> int:
    """Requests under way at one replica."""
    return -(-planned.clients // planned.replicas)


def serve(planned: Planned, engine: str, port: int) -> tuple[str, tuple[str, ...]]:
    """`vllm bench serve` against the first replica's OpenAI endpoint, and what to know about its result.

    Percentiles and metadata are those the importer reads (`calibrate/importers/vllm_bench.py`).
    """
    scenario, together = planned.scenario, clients_of_one(planned)
    is_file = engine == "llama.cpp" or kind_of(scenario.numerics.weights) is Kind.GGUF
    shared = min(scenario.extras.shared_prefix, planned.prompt - 1)
    words = [
        "vllm bench serve",
        f"--backend {'vllm' if engine == 'vllm' else 'openai'}",
        f"--base-url http://127.0.0.1:{port}",
        '--model "$MODEL"',
        *(['--tokenizer "$TOKENIZER"'] if is_file else []),
        "--dataset-name random",
        *([f"--random-prefix-len {shared}"] if shared else []),
        f"--random-input-len {planned.prompt - shared}",
        f"--random-output-len {planned.output}",
        f"--num-prompts {ROUNDS * together}",
        f"--max-concurrency {together}",
        "--ignore-eos",
        "--percentile-metrics ttft,tpot,itl,e2el",
        "--metric-percentiles 10,50,90",
        f"--metadata tensor_parallel_size={scenario.sharding.tp} pipeline_parallel_size={scenario.sharding.pp}",
        "--save-result",
        f"--result-filename {RESULT}",
    ]
    notes = [f"read the benchmark's result with: roofplan records import {RESULT}" + _said(planned, engine)]
    if is_file:
        notes.append(f"TOKENIZER is the repository of {scenario.model.name}: the benchmark counts tokens with it")
    if scenario.sharding.cp > 1:
        notes.append("records have no column for context parallelism yet: keep what the importer makes of it apart")
    if planned.replicas > 1:
        notes.append(f"the benchmark loads the first replica with its share of the clients, {together}")
    if together > planned.users:
        notes.append(
            f"{together} clients at a replica for {planned.users} users wait: times to first token hold a queue"
        )
    if scenario.extras.draft is not None:
        notes.append("the importer leaves out runs with a draft model, where a token is not a step")
    return " ".join(words), tuple(notes)


def llama_bench(planned: Planned, placed: str) -> tuple[str, tuple[str, ...]]:
    """`llama-bench` of one user: the prompt, and tokens behind it, each in a test of its own."""
    tests = f"-p {planned.prompt} -n {planned.output} -d 0,{planned.prompt} -r {ROUNDS}"
    words = f'llama-bench -m "$MODEL" {tests} {placed} -o json'
    read = f"read the benchmark's result with: roofplan records import {RESULT}{_said(planned, 'llama.cpp')}"
    return f"{words} > {RESULT}", (read,)


def _said(planned: Planned, engine: str) -> str:
    """What the result does not say of itself."""
    scenario = planned.scenario
    numerics, sharding = scenario.numerics, scenario.sharding
    words = {"--engine": engine, "--device": scenario.fleet.device.key, "--model": scenario.model.name}
    words |= {"--weights": numerics.weights.name, "--kv": numerics.kv.value, "--ep": str(sharding.ep)}
    return "".join(f" {key} {value}" for key, value in words.items()) + " --out mine.csv"


def in_script(planned: Planned) -> tuple[str, ...]:
    """What to know where the script that runs the plan is also what measures it."""
    notes = [f"read its result with: roofplan records import {RESULT}{_said(planned, 'accelerate')}"]
    if clients_of_one(planned) != planned.users:
        notes.append(
            f"the script serves the planned {planned.users} users of a replica, whatever the number of clients"
        )
    if planned.replicas > 1:
        notes.append(f"start every replica in a folder of its own: each writes {RESULT}")
    return tuple(notes)
