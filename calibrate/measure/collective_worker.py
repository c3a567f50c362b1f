"""One rank of the collectives that are timed: `torchrun -m roofplan.calibrate.measure.collective_worker`.

What to do comes as JSON in ROOFPLAN_COLLECTIVES; rank 0 writes the seconds of every repetition of the slowest rank.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

WARM_UPS = 3
BF16_BYTES, FP32_BYTES = 2, 4


def main() -> None:
    """Time every collective at every size."""
    import torch
    import torch.distributed as group

    task = json.loads(os.environ["ROOFPLAN_COLLECTIVES"])
    on_gpu = task["backend"] == "nccl"
    rank = int(os.environ["LOCAL_RANK"])
    if on_gpu:
        torch.cuda.set_device(rank)
    group.init_process_group(task["backend"])
    device = f"cuda:{rank}" if on_gpu else "cpu"
    found: dict[str, dict[str, list[float]]] = {}
    for name in task["names"]:
        for size in task["bytes"]:
            run = launcher(torch, group, name, int(size), device)
            samples = [_one(torch, group, run, on_gpu) for _ in range(WARM_UPS + task["repeats"])][WARM_UPS:]
            slowest = torch.tensor(samples, dtype=torch.float64, device=device)
            group.all_reduce(slowest, op=group.ReduceOp.MAX)
            found.setdefault(name, {})[str(size)] = slowest.tolist()
    if group.get_rank() == 0:
        Path(task["out"]).write_text(json.dumps(found), encoding="utf-8")
    group.barrier()
    group.destroy_process_group()


def launcher(torch: Any, group: Any, name: str, size: int, device: str) -> Callable[[], object]:
    """What runs a collective on a buffer of `size` bytes: the whole one, gathered or not yet scattered."""
    ranks = group.get_world_size()
    wide = device != "cpu"
    dtype = torch.bfloat16 if wide else torch.float32
    count = max(ranks, size // (BF16_BYTES if wide else FP32_BYTES) // ranks * ranks)
    whole = torch.rand(count, device=device).to(dtype)
    part = whole[: count // ranks].clone()
    match name:
        case "all-reduce":
            return lambda: group.all_reduce(whole)
        case "all-gather" if wide:
            return lambda: group.all_gather_into_tensor(whole, part)
        case "all-gather":
            pieces = list(whole.chunk(ranks))
            return lambda: group.all_gather(pieces, part)
        case "reduce-scatter":
            return lambda: group.reduce_scatter_tensor(part, whole)
        case _:
            other = torch.empty_like(whole)
            return lambda: group.all_to_all_single(other, whole)


def _one(torch: Any, group: Any, run: Callable[[], object], on_gpu: bool) -> float:
    """Seconds of one collective on this rank, all ranks starting together."""
    group.barrier()
    if on_gpu:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        return float(start.elapsed_time(end)) * 1e-3
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
