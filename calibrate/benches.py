"""What is timed on which device: the subjects, the sentinel and the pace of a CPU and of a GPU."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from typing import Any, NamedTuple

import numpy as np

from ..errors import InputError, SurroundingsError
from ..hwspecs.detect import System, detect
from ..hwspecs.device import Device
from ..simulator.operators import Gemm, KernelName
from .machine import Machine
from .measure import torch_ops, weights_on_cpu
from .measure.pool import Pool, size_bytes
from .measure.subject import Subject, rows_of
from .session import Item, Sentinel, items_of

CPU_DRIFT, GPU_DRIFT = 0.15, 0.02  # of the sentinel; a CPU is shared with the system itself
CPU_CASE_S, CPU_FULL_CASE_S = 0.06, 0.5
GPU_CASE_S, GPU_FULL_CASE_S = 0.05, 0.2
SENTINEL_FLOPS = 1.1e12  # on a GPU
SENTINEL_ROWS = 128  # of a product of 1024 by 1024 on a CPU


class Bench(NamedTuple):
    """One device with what is timed on it. `library` pairs a library's kernel with ours, which it is predicted from.

    `left_out` names kernels that are wrong on this device, with the reason.
    """

    machine: Machine
    subjects: tuple[Subject, ...]
    sentinel: Sentinel | None
    case_s: float
    device: Device | None = None  # where a listed file describes it
    library: tuple[tuple[Subject, Subject], ...] = ()
    pool: Pool | None = None
    left_out: tuple[tuple[str, str], ...] = ()

    def fit_items(self, quick: bool) -> list[Item]:
        """Cases a fit sees."""
        return [item for s in self.subjects for item in items_of(self.machine.key, s, s.calibration(quick))]

    def held_items(self, quick: bool) -> list[Item]:
        """Cases that judge the fits."""
        return [item for s in self.subjects for item in items_of(self.machine.key, s, s.held_out(quick))]

    def library_items(self, quick: bool) -> list[tuple[Item, Subject]]:
        """Cases of the library's kernels, each with the kernel of ours that predicts it."""
        return [
            (item, own)
            for library, own in self.library
            for item in items_of(self.machine.key, library, library.held_out(quick))
        ]


def cpu_bench(torch: Any, machine: Machine, quick: bool, *, host_only: bool = False) -> Bench:
    """The processor: torch's operators; beside a GPU only products and streams, as a host is asked for."""
    available = System().available_bytes() or machine.memory_bytes
    pool = Pool(torch, size_bytes(machine.cache_bytes, available))
    chosen: list[Subject] = torch_ops.subjects(torch, pool)
    if host_only:
        chosen = [s for s in chosen if isinstance(s, torch_ops.Linear) or s.variant.startswith("stream")]
    if host_only or not quick:
        chosen += weights_on_cpu.subjects(torch, pool)
    linear = torch_ops.Linear(torch, pool)
    sentinel = Sentinel(linear, linear.shape(SENTINEL_ROWS, 1024, 1024), CPU_DRIFT)
    pace = CPU_CASE_S if quick else CPU_FULL_CASE_S
    return Bench(machine, tuple(chosen), sentinel, pace, pool=pool)


def cuda_index(torch: Any, name: str) -> int:
    """The index of `cuda:1`, or one clear line why there is no such device."""
    word, _, number = name.partition(":")
    if word not in ("cuda", "gpu") or not (number or "0").isdigit():
        raise InputError("must be cpu, cuda or cuda:N", key="--device", value=name, remedy="write it like cuda:0")
    if not torch.cuda.is_available():
        built = "this torch is built without CUDA" if torch.version.cuda is None else "torch finds no usable GPU"
        raise SurroundingsError(built, key="--device", remedy="measure the processor instead: --device cpu")
    index, count = int(number or 0), int(torch.cuda.device_count())
    if index >= count:
        raise InputError(f"this machine has {count} of them", key="--device", value=name, remedy="write it like cuda:0")
    return index


def gpu_bench(
    torch: Any, index: int, quick: bool, driver: str, told: Callable[[str], None], only: Sequence[str] = ()
) -> Bench:
    """A GPU: our kernels, the library's beside them, the links to its host, and collectives where there are several."""
    from .measure import collectives, links, microkernels

    fleet = detect().fleet
    device = fleet.device
    properties = torch.cuda.get_device_properties(index)
    cache = float(getattr(properties, "L2_cache_size", 0) or (device.l2_bytes.value if device.l2_bytes else 64 * 2**20))
    torch.cuda.set_device(index)
    here = microkernels.Device(torch, index, cache)
    owns, left_out = [], []
    for own in microkernels.own_kernels(here):
        if only and not {own.identity.name.value, str(own.identity)} & set(only):
            continue
        told(f"checking {own.name} against float64")
        failure = own.failure()
        if failure is None:
            owns.append(own)
        else:
            left_out.append((own.name, failure))
    library = [(lib, lib.own) for lib in microkernels.libraries(owns)]
    subjects: list[Subject] = [*owns, *links.copies(here)]
    if torch.cuda.device_count() > 1:
        subjects += collectives.together(torch, "nccl", int(torch.cuda.device_count()), quick)
    machine = Machine(
        key=_key(device),
        name=str(properties.name),
        vendor=device.vendor,
        software=", ".join(software(torch, driver)),
        threads=int(properties.multi_processor_count),
        cache_bytes=cache,
        memory_bytes=float(properties.total_memory),
        clock_hz=device.clock_hz.value if device.clock_hz else 0.0,
        file=device.file if device.file.endswith(".toml") else "",
    )
    sentinel = _gpu_sentinel(owns)
    pace = GPU_CASE_S if quick else GPU_FULL_CASE_S
    return Bench(machine, tuple(subjects), sentinel, pace, device, tuple(library), left_out=tuple(left_out))


def _key(device: Device) -> str:
    """The key of a listed device; of one drafted from its driver a name that files can have."""
    return re.sub(r"[^a-z0-9.-]+", "-", device.key.lower()).strip("-")


def software(torch: Any, driver: str) -> Iterator[str]:
    """What times on a GPU depend on."""
    yield f"torch {torch.__version__}"
    yield f"CUDA {torch.version.cuda}"
    with contextlib.suppress(metadata.PackageNotFoundError):
        yield f"triton {metadata.version('triton')}"
    if driver:
        yield f"driver {driver}"


def _gpu_sentinel(owns: Sequence[Subject]) -> Sentinel | None:
    """A large product of the first kernel that has one, about 8192^3: what a falling clock shows in first."""
    for own in owns:
        shapes = own.calibration(True)
        if isinstance(shapes, Gemm) and own.identity.name is KernelName.GEMM:
            chosen = int(np.argmin(np.abs(np.log(2 * shapes.m * shapes.n * shapes.k / SENTINEL_FLOPS))))
            return Sentinel(own, rows_of(shapes)[chosen], GPU_DRIFT)
    return None
