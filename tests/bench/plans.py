"""Benchmarks of `plan`: seconds, frames, programs and gap of a fixed set of questions, each in a process of its own.

The peer is aiconfigurator 0.12.0 on the question both answer (Qwen3-32B on eight H200), in an environment of its own;
where it cannot be installed the line says so. Nothing is asserted.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PEER = ROOT / ".venv-aiconfigurator"
PEER_PACKAGE = "aiconfigurator==0.12.0"
PATIENCE_S = 240
PEER_QUESTION = ["cli", "default", "--model", "Qwen/Qwen3-32B", "--total-gpus", "8", "--system", "h200_sxm"]
OURS = ("qwen3-32b --gpu 8xh200 --prompt 4k --output 1k", "the question of aiconfigurator")
QUESTIONS = (
    ("llama-3.1-8b --gpu rtx-4090 --goal latency", "one card"),
    ("llama-3.1-70b --gpu 2xrtx-4090 --ram 128GB --nvme 7GB/s --prompt 2k --output 512", "two cards, host and drive"),
    ("mixtral-8x7b --gpu rtx-4090 --ram 64GB --goal latency --max-ppl-increase 1%", "experts on a host"),
    ("deepseek-v3 --gpu 8xh200 --prompt 4k --output 1k --tpot-ms 50 --ttft-service-ms 2000", "a node"),
    ("llama-3.1-405b --gpu 8x8xh100-sxm --prompt 4k --output 1k --tpot-ms 60", "64 GPUs"),
    ("llama-3.1-70b --gpu 128x8xh200 --prompt 2k --output 512 --tpot-ms 40", "1,024 GPUs"),
    OURS,
)


def plan(words: str) -> tuple[float, dict[str, float]]:
    """Wall-clock seconds of a cold process without what-ifs, and the proof."""
    command = [sys.executable, "-m", "roofplan", "plan", *words.split(), "--no-why", "--json"]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    return time.perf_counter() - start, json.loads(done.stdout)["answer"]["proof"]


def peer(own_s: float) -> None:
    """The same question to aiconfigurator."""
    program = PEER / "bin" / "aiconfigurator"
    if not program.exists():
        subprocess.run([sys.executable, "-m", "venv", str(PEER)], check=True)
        install = [str(PEER / "bin" / "python"), "-m", "pip", "install", "--quiet", PEER_PACKAGE]
        try:
            done = subprocess.run(install, capture_output=True, text=True, timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            print(f"peer {PEER_PACKAGE} takes more than {PATIENCE_S} s to install here")
            return
        if done.returncode:
            print(f"peer {PEER_PACKAGE} cannot be installed here: {done.stderr.strip().splitlines()[-1:]}")
            return
    start = time.perf_counter()
    try:
        done = subprocess.run([str(program), *PEER_QUESTION], capture_output=True, text=True, timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        print(f"peer {PEER_PACKAGE} takes more than {PATIENCE_S} s to answer here")
        return
    seconds = time.perf_counter() - start
    if done.returncode:
        print(f"peer {PEER_PACKAGE} did not answer: {(done.stderr or done.stdout).strip().splitlines()[-1:]}")
        return
    print(f"peer {PEER_PACKAGE}: {seconds:.1f} s; roofplan {own_s:.1f} s: {seconds / own_s:.1f} times as fast")


def main() -> None:
    """Print the table."""
    print("plan, cold process without what-ifs: seconds (of which search), frames, programs, gap")
    own = 0.0
    for words, what in QUESTIONS:
        seconds, proof = plan(words)
        own = seconds if words == OURS[0] else own
        print(
            f"  {what:30} {seconds:5.1f} ({proof['seconds']:4.1f})  {proof['frames']:6,} {proof['programs']:4}  "
            f"{proof['gap']:.2%}"
        )
    if "--without-peers" not in sys.argv:
        peer(own)


if __name__ == "__main__":
    main()
