"""What this machine can and cannot do for roofplan, a line each with its remedy. Nothing is changed or measured."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Iterator
from importlib import metadata, util
from pathlib import Path

from ..errors import RoofplanError
from ..hwspecs.detect import System, detect
from ..hwspecs.device import Fleet
from ..simulator.catalogue import DoctorReport, DoctorRow
from ..units import format_bytes, format_gib
from .sensors import Sensors

OK, LIMITED, MISSING = "ok", "limited", "missing"
LEAST_DISK_BYTES = 2**30  # records and a file to read the drive by
LEAST_MEMORY_BYTES = 4 * 2**30  # a pool of operands and a small transformer
# Packages, what they are for, and how to get them.
EXTRAS = (
    ("scipy", "fits: `calibrate`", "pip install 'roofplan[calibrate]'"),
    ("triton", "our own kernels on an NVIDIA GPU: `calibrate --device cuda`", "it comes with torch for CUDA on Linux"),
    ("matplotlib", "pictures: `--plot`", "pip install 'roofplan[plot]'"),
    ("pandas", "data frames: `roofplan.sweep`", "pip install 'roofplan[frames]'"),
    ("pyarrow", "`sweep --parquet`", "pip install 'roofplan[frames]'"),
    ("aiconfigurator_core", "public kernel tables: `validate --from silicon`", "pip install 'roofplan[silicon]'"),
)


def examine(folder: Path = Path(), system: System | None = None) -> DoctorReport:
    """Look at everything roofplan may use."""
    system = system or System()
    return DoctorReport((*_python(), *_devices(system), *_host(system), *_room(folder), *_extras()))


def _python() -> Iterator[DoctorRow]:
    yield DoctorRow("Python", OK, platform.python_version(), "everything", "")
    version = _version("torch")
    use = "timing operators: `calibrate`"
    if version is None:
        yield DoctorRow("torch", MISSING, "not installed", use, "pip install torch")
        return
    yield DoctorRow("torch", OK, version, use, "")


def _version(package: str) -> str | None:
    """The version of an installed package, without importing it."""
    if util.find_spec(package) is None:
        return None
    try:
        return metadata.version(package.replace("_", "-"))
    except metadata.PackageNotFoundError:
        return "installed"


def _devices(system: System) -> Iterator[DoctorRow]:
    """The GPU, its file, its driver, and whether torch reaches it."""
    try:
        fleet, notes = detect(system=system)
    except RoofplanError as error:
        yield DoctorRow("device", MISSING, error.problem, "questions without --gpu", error.remedy or "name it: --gpu")
        return
    if fleet.device.vendor == "cpu":
        remedy = "name one to ask about it: --gpu rtx-4090; measure the processor: calibrate --device cpu"
        yield DoctorRow("GPU", MISSING, "none that roofplan knows", "questions without --gpu", remedy)
        return
    yield _known(fleet, notes)
    if fleet.device.vendor == "nvidia":
        with Sensors(0, system=system) as sensors:
            driver, line = sensors.driver, sensors.read().line()
        state = OK if driver else MISSING
        remedy = "" if driver else "install the NVIDIA driver; without it clocks and power are not recorded"
        yield DoctorRow(
            "NVML", state, ", ".join(p for p in (driver, line) if p) or "no answer", "clocks, power", remedy
        )
        yield _cuda()


def _known(fleet: Fleet, notes: tuple[str, ...]) -> DoctorRow:
    device = fleet.device
    label = f"{fleet.label}: {device.name}, {format_gib(device.capacity_bytes.value)}"
    if device.file.endswith(".toml"):
        return DoctorRow("GPU", OK, label, "questions without --gpu", "")
    remedy = "draft a file and complete it: `roofplan hw new my-gpu --from-nvml`"
    return DoctorRow("GPU", LIMITED, "; ".join((label, *notes)), "questions without --gpu", remedy)


def _cuda() -> DoctorRow:
    """torch is imported only where there is a GPU to find."""
    use = "`calibrate --device cuda:0`"
    if _version("torch") is None:
        return DoctorRow("torch with CUDA", MISSING, "torch is not installed", use, "pip install torch")
    import importlib

    torch = importlib.import_module("torch")
    if torch.version.cuda is None:
        remedy = "install the CUDA build: https://pytorch.org/get-started/locally"
        return DoctorRow("torch with CUDA", MISSING, "this torch is built for the CPU", use, remedy)
    if not torch.cuda.is_available():
        remedy = "its CUDA may be newer than the driver: compare `nvidia-smi`"
        return DoctorRow("torch with CUDA", MISSING, f"CUDA {torch.version.cuda} finds no GPU", use, remedy)
    return DoctorRow("torch with CUDA", OK, f"CUDA {torch.version.cuda}, {torch.cuda.device_count()} GPU", use, "")


def _host(system: System) -> Iterator[DoctorRow]:
    from .machine import free_cores

    cores, free = system.usable_cores(), free_cores(system)
    use = "`calibrate --device cpu`"
    if free < cores:
        remedy = "end what else runs, or measure with the free ones (the default)"
        yield DoctorRow("cores", LIMITED, f"{free} of {cores} free now", use, remedy)
    else:
        yield DoctorRow("cores", OK, f"{cores}", use, "")
    available = system.available_bytes()
    if available is None:
        yield DoctorRow("memory", LIMITED, "the system does not tell", use, "give it: --ram")
    elif available < LEAST_MEMORY_BYTES:
        remedy = "end what else runs: a calibration takes up to 2 GB"
        yield DoctorRow("memory", LIMITED, f"{format_gib(available)} free", use, remedy)
    else:
        yield DoctorRow("memory", OK, f"{format_gib(available)} free", use, "")


def _room(folder: Path) -> Iterator[DoctorRow]:
    free = shutil.disk_usage(folder).free
    state, remedy = (OK, "") if free >= LEAST_DISK_BYTES else (LIMITED, "name a folder with room: --out DIR")
    yield DoctorRow("disk", state, f"{format_bytes(free)} free here", "records, and how fast the drive reads", remedy)


def _extras() -> Iterator[DoctorRow]:
    for package, use, remedy in EXTRAS:
        version = _version(package)
        if version is None:
            yield DoctorRow(package, MISSING, "not installed", use, remedy)
        else:
            yield DoctorRow(package, OK, version, use, "")
