"""Which predictions moved since another commit: a fixed list of questions, asked here and there, and what differs.

    python tests/moved.py [COMMIT]      default: the commit before this one

It informs and judges nothing: exit code 0 whatever moved, 1 where a side cannot be priced. A question the other commit
cannot be asked is new. `--price` answers the questions with whatever `roofplan` is importable, as JSON.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from math import inf, isinf
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent
THRESHOLD = 1e-3
ABSENT = ("ImportError", "ModuleNotFoundError", "AttributeError", "TypeError", "UnknownNameError")  # of another commit

DEVICES = ("h200", "h100-sxm", "b200", "a100-80gb", "l40s", "rtx-pro-6000", "rtx-4090")
CLASSES = (("llama-3.1-8b", 1), ("qwen3-30b-a3b", 2), ("deepseek-v3", 8))  # with their tp: every operator class
WHOLE = (
    ("llama-3.1-8b", "h200", 1, "vllm"),
    ("llama-3.1-8b", "rtx-4090", 1, "vllm"),
    ("llama-3.1-70b", "4xh100-sxm", 4, "vllm"),
    ("llama-3.1-70b", "8xa100-80gb", 8, "trtllm"),
    ("qwen3-32b", "2xl40s", 2, "vllm"),
    ("qwen3-32b", "rtx-pro-6000", 1, "sglang"),
    ("qwen3-30b-a3b", "h100-sxm", 1, "sglang"),
    ("mixtral-8x7b", "2xh200", 2, "vllm"),
    ("gpt-oss-120b", "b200", 1, "trtllm"),
    ("gpt-oss-20b", "rtx-4090", 1, "vllm"),
    ("deepseek-v3", "8xh200", 8, "sglang"),
    ("kimi-k2.5", "8xb200", 8, "vllm"),
    ("minimax-m2.5", "4xb200", 4, "vllm"),
)
Values = dict[str, float]


class Question(NamedTuple):
    """What is asked; its answers are named numbers in SI units."""

    group: str
    name: str
    ask: Callable[[], Values]


class Moved(NamedTuple):
    """One number before and after; None where it was not there."""

    group: str
    name: str
    before: float | None
    after: float | None

    @property
    def change(self) -> float:
        """Relative change; infinite for what is new or gone."""
        return self.after / self.before - 1 if self.before and self.after else inf

    def line(self) -> str:
        """For people to read."""
        before, after = ("-" if v is None else f"{v:.6g}" for v in (self.before, self.after))
        told = "new" if self.before is None else "gone" if self.after is None else f"{self.change:+.2%}"
        return f"  {told:>9}  {before:>12} -> {after:<12} {self.name}"


# ---- the questions: public functions only, imported when asked, so that an older package answers what it can


@cache
def _asked(model: str, gpu: str, batch: int, context: int) -> Any:
    from roofplan import api

    fleet = api.load_fleet(gpu)[0]
    scenario = api.make_scenario(api.load_model(model), fleet, batch=batch, context=context)
    return scenario, api.load_calibrations(fleet)


def _operators(model: str, gpu: str, tp: int, phase: str) -> Values:
    """Time of each kernel in a step."""
    from roofplan import api
    from roofplan.simulator.planner.fit import Wishes
    from roofplan.simulator.scenario import Phase

    scenario, calibrations = _asked(model, gpu, 16, 4096)
    answer = api.explain_step(scenario, Phase(phase), Wishes(tp=tp), calibrations).answer
    times: Values = {}
    for row in answer.rows:
        times[row.kernel] = times.get(row.kernel, 0.0) + row.time.value
    return times


def _fit(model: str, gpu: str, tp: int, *fields: str) -> Values:
    """Numbers of the answer whether it fits."""
    from roofplan import api
    from roofplan.simulator.planner.fit import Wishes

    scenario, calibrations = _asked(model, gpu, 8, 4096)
    answer = api.ask_fit(scenario, calibrations, Wishes(tp=tp)).answer
    values = {field: getattr(answer, field) for field in fields}
    numbers = {field: getattr(value, "value", value) for field, value in values.items()}
    return {field: float(number) for field, number in numbers.items() if number is not None}


def _serve(model: str, gpu: str, tp: int, engine: str) -> Values:
    """A closed loop of 16 clients."""
    from roofplan.simulator import engines
    from roofplan.simulator.scenario import Sharding
    from roofplan.simulator.serving import Load, serve

    scenario, calibrations = _asked(model, gpu, 1, 1024)
    scenario = scenario.but(sharding=Sharding(tp), engine=engines.engine(engine))
    served = serve(scenario, Load(16.0, 1024.0, 512.0), dataclasses.replace(calibrations, engine=engine))
    return {
        "time per output token": float(served.time_per_output_token.time_s),
        "first token": float(served.first_token_service.time_s),
    }


def questions() -> Iterator[Question]:
    """The list; its names are the keys of a comparison."""
    for device in DEVICES:
        for model, tp in CLASSES:
            for phase in ("decode", "prefill"):
                gpu = f"{tp}x{device}" if tp > 1 else device
                name = f"{gpu} {model} {phase}"
                yield Question("operators", name, lambda a=(model, gpu, tp, phase): _operators(*a))
    for model, gpu, tp, engine in WHOLE:
        name = f"{gpu} {model} tp{tp}"
        yield Question("decode steps", name, lambda a=(model, gpu, tp): _fit(*a, "decode_step"))
        yield Question("prefills", name, lambda a=(model, gpu, tp): _fit(*a, "prefill"))
        yield Question("memory", name, lambda a=(model, gpu, tp): _fit(*a, "needed", "max_context", "max_users"))
        yield Question("serving", f"{name} {engine}", lambda a=(model, gpu, tp, engine): _serve(*a))


# ---- the comparison


def price() -> dict[str, Any]:
    """Every number by group and name, and what could not be asked with the kind of complaint."""
    values: dict[str, tuple[str, float]] = {}
    failed: dict[str, str] = {}
    for group, name, ask in questions():
        try:
            for field, value in ask().items():
                values[f"{name}: {field}"] = (group, value)
        except Exception as error:  # what an older package raises is not ours to know
            failed[f"{group}, {name}"] = f"{type(error).__name__}: {error}"
    return {"values": values, "failed": failed}


def priced_with(package: Path, scratch: Path) -> dict[str, Any]:
    """The answers of the package whose root this is."""
    (scratch / "roofplan").symlink_to(package, target_is_directory=True)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("ROOFPLAN_")}
    environment |= {"PYTHONPATH": str(scratch), "XDG_CONFIG_HOME": str(scratch), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, str(Path(__file__).resolve()), "--price"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=scratch)
    if done.returncode:
        return {"values": {}, "failed": {"everything": done.stderr.strip()[-2000:] or f"exit code {done.returncode}"}}
    answers: dict[str, Any] = json.loads(done.stdout)
    return answers


def compare(before: dict[str, Any], after: dict[str, Any]) -> list[Moved]:
    """What moved by more than the threshold, the largest change first; then what is new or gone."""
    found = []
    for name in {**after, **before}:
        (group, old), (_, new) = before.get(name, (None, None)), after.get(name, (None, None))
        one = Moved(group or after[name][0], name, old, new)
        if old != new and abs(one.change) > THRESHOLD:
            found.append(one)
    return sorted(found, key=lambda m: (isinf(m.change), -abs(m.change), m.name))


def report(found: list[Moved], asked: int) -> str:
    """Grouped, the group with the most movement first."""
    lines = [f"{len(found)} of {asked} predictions moved by more than {THRESHOLD:.1%}, are new or gone"]
    for group in dict.fromkeys(m.group for m in found):
        own = [m for m in found if m.group == group]
        lines += [f"{group}: {len(own)}", *(m.line() for m in own)]
    return "\n".join(lines)


def git(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)


def main(arguments: list[str]) -> int:
    """Exit code."""
    base = arguments[0] if arguments else "HEAD~1"
    commit = git("merge-base", "HEAD", base)
    if commit.returncode:
        print(f"nothing to compare with: {base} is no commit of this clone that shares history with HEAD")
        return 1 if arguments else 0
    with tempfile.TemporaryDirectory() as folder:
        here, there, clone = (Path(folder) / name for name in ("here", "there", "clone"))
        here.mkdir()
        there.mkdir()
        try:
            if (added := git("worktree", "add", "--detach", str(clone), commit.stdout.strip())).returncode:
                print(added.stderr.strip())
                return 1
            before, after = priced_with(clone, there), priced_with(ROOT, here)
        finally:
            git("worktree", "remove", "--force", str(clone))
    wrong = [f"here, {name}: {why}" for name, why in after["failed"].items()]
    wrong += [f"{base}, {n}: {why}" for n, why in before["failed"].items() if why.partition(":")[0] not in ABSENT]
    print(report(compare(before["values"], after["values"]), len(after["values"])))
    print("\n".join(wrong), end="\n" if wrong else "")
    return 1 if wrong else 0


if __name__ == "__main__":
    if sys.argv[1:] == ["--price"]:
        json.dump(price(), sys.stdout)
    else:
        sys.exit(main(sys.argv[1:]))
