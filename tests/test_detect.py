"""Detection of the machine's own hardware: a driver, file trees and a sysctl made up for the purpose."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from roofplan.dtypes import DType
from roofplan.errors import SurroundingsError
from roofplan.hwspecs.architectures import GENERATIONS, flops_per_clock
from roofplan.hwspecs.detect import System, detect
from roofplan.hwspecs.detect.system import sysctl
from roofplan.hwspecs.device import Device
from roofplan.hwspecs.lint import lint
from roofplan.hwspecs.load import ROOT, load

GIB = 2**30


class FakeNvml:
    """NVML as far as detection uses it: cards are namespaces with name, total, free and MIG slices."""

    class NVMLError(Exception):
        pass

    class NVMLError_NotSupported(NVMLError):
        pass

    NVML_CLOCK_SM, NVML_CLOCK_MEM = 1, 2

    def __init__(self, *cards: SimpleNamespace) -> None:
        self.cards, self.opened, self.closed = list(cards), 0, 0

    def nvmlInit(self) -> None:
        self.opened += 1

    def nvmlShutdown(self) -> None:
        self.closed += 1

    def nvmlDeviceGetCount(self) -> int:
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any:
        return self.cards[index]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> Any:
        found = [part for card in self.cards for part in (card, *card.slices) if part.uuid == uuid]
        if not found:
            raise self.NVMLError("not found")
        return found[0]

    def nvmlDeviceGetName(self, card: Any) -> bytes:
        return card.name.encode()

    def nvmlDeviceGetMemoryInfo(self, card: Any) -> Any:
        if card.total is None:
            raise self.NVMLError_NotSupported("Not Supported")
        return SimpleNamespace(total=card.total, free=card.free)

    def nvmlSystemGetDriverVersion(self) -> bytes:
        return b"580.65.06"

    def nvmlDeviceGetPowerManagementDefaultLimit(self, card: Any) -> int:
        return int(self.told(card, "watts") * 1000)

    def nvmlDeviceGetMaxPcieLinkWidth(self, card: Any) -> int:
        return int(self.told(card, "lanes"))

    def told(self, card: Any, what: str) -> float:
        if not hasattr(card, what):
            raise self.NVMLError_NotSupported("Not Supported")
        return float(getattr(card, what))

    def nvmlDeviceGetMigMode(self, card: Any) -> tuple[int, int]:
        if getattr(card, "parent", None) is not None:
            raise self.NVMLError("not supported on a slice")
        return (1 if card.slices else 0), 0

    def nvmlDeviceGetMaxMigDeviceCount(self, card: Any) -> int:
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, card: Any, index: int) -> Any:
        if index >= len(card.slices):
            raise self.NVMLError("not found")
        return card.slices[index]

    def nvmlDeviceIsMigDeviceHandle(self, card: Any) -> bool:
        return getattr(card, "parent", None) is not None

    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, card: Any) -> Any:
        return card.parent

    def nvmlDeviceGetAttributes(self, card: Any) -> Any:
        return SimpleNamespace(memorySizeMB=card.total // 2**20, multiprocessorCount=card.sms)

    def nvmlDeviceGetCudaComputeCapability(self, card: Any) -> tuple[int, int]:
        return card.capability

    def nvmlDeviceGetNumGpuCores(self, card: Any) -> int:
        return card.cores

    def nvmlDeviceGetMaxClockInfo(self, card: Any, which: int) -> int:
        return int(self.told(card, {1: "sm_mhz", 2: "memory_mhz"}[which]))

    def nvmlDeviceGetMemoryBusWidth(self, card: Any) -> int:
        return int(self.told(card, "bus"))

    def nvmlDeviceGetMaxPcieLinkGeneration(self, card: Any) -> int:
        return 4


def card(name: str, total: float | None, free: float | None, **rest: Any) -> SimpleNamespace:
    return SimpleNamespace(name=name, total=total, free=free, slices=[], uuid=f"GPU-{name}", parent=None, **rest)


def like(key: str, name: str, **rest: Any) -> SimpleNamespace:
    """A card as its file describes it."""
    total = load(Device, key).capacity_bytes.value
    return card(name, total, total - 2**30, **rest)


Machine = Callable[..., System]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A Linux machine that consists of these files and this environment alone."""

    def make(files: Mapping[str, object] | None = None, platform: str = "linux", **environment: str) -> System:
        for name, content in {"/proc/meminfo": memory(64, 60), **(files or {})}.items():
            path = tmp_path / name.lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{content}\n", encoding="utf-8")
        return System(tmp_path, platform, environment, lambda name: None)

    return make


def memory(total: float, available: float) -> str:
    """/proc/meminfo of so many GiB."""
    return f"MemTotal: {total * 2**20:.0f} kB\nMemFree: 1000 kB\nMemAvailable: {available * 2**20:.0f} kB"


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch, machine: Machine) -> Any:
    """Install a made-up driver with these cards; gives the driver and a machine that has one."""

    def install(*cards: SimpleNamespace, files: Mapping[str, object] | None = None, **environment: str) -> Any:
        fake = FakeNvml(*cards)
        monkeypatch.setitem(sys.modules, "pynvml", fake)  # type: ignore[arg-type]
        return fake, machine({"/dev/nvidiactl": "", **(files or {})}, **environment)

    return install


@pytest.fixture
def no_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose driver files promise an NVML that is not there."""

    def fails() -> None:
        raise FakeNvml.NVMLError("library not found")

    fake = FakeNvml()
    monkeypatch.setattr(fake, "nvmlInit", fails)
    monkeypatch.setitem(sys.modules, "pynvml", fake)  # type: ignore[arg-type]


# ---- NVIDIA


def test_a_listed_card_is_recognised_and_its_free_memory_respected(nvml: Any) -> None:
    fake, system = nvml(card("NVIDIA GeForce RTX 4090", 24 * GIB, 20 * GIB))
    found = detect(64e9, system)
    assert found.fleet.device is load(Device, "rtx-4090")
    assert found.fleet.usable_bytes() == 20 * GIB
    assert found.fleet.host_memory_bytes == 64e9
    assert (fake.opened, fake.closed) == (1, 1)


NVML_NAMES = tomllib.loads((ROOT / "nvml.toml").read_text(encoding="utf-8"))
SLOW_MATRICES = {"a10g", "l40"}  # their data sheets print half of what the generation does, in every matrix format
LISTED = [(n, k) for n, files in NVML_NAMES.items() for k in ([files] if isinstance(files, str) else files)]


@pytest.mark.parametrize(("name", "key"), LISTED)
def test_listed_cards_are_what_their_compute_capability_says(name: str, key: str, nvml: Any) -> None:
    """A card is priced by the same relatives whether its file was found or it was drafted from its driver."""
    _, system = nvml(like(key, name))
    device = detect(64e9, system).fleet.device
    assert device.key == key and device.compute_capability is not None
    major, minor = divmod(round(device.compute_capability.value * 10), 10)
    generation = GENERATIONS[major, minor]
    assert (device.architecture, device.architecture_class) == (generation.architecture, generation.architecture_class)
    drafted = flops_per_clock(generation, name)
    for dtype in (DType.FP16, DType.BF16, DType.FP8, DType.INT8):
        stated = device.flops_per_clock_per_sm.get(dtype)
        if stated is not None and dtype in drafted:
            share = 0.5 if key in SLOW_MATRICES else 1.0
            assert stated.value == pytest.approx(drafted[dtype] * share, rel=0.02), dtype
        assert (dtype in device.peak_dense_flops_per_s) or dtype not in drafted or dtype is DType.INT8, dtype


def test_drivers_before_465_leave_out_the_vendor(nvml: Any) -> None:
    _, system = nvml(like("titan-rtx", "TITAN RTX"))
    assert detect(64e9, system).fleet.device.key == "titan-rtx"


TWO_SIZES = [
    ("NVIDIA GeForce RTX 3080", 10 * GIB, {"bus": 320, "memory_mhz": 9501}, "rtx-3080"),
    ("NVIDIA GeForce RTX 3080", 12 * GIB, {"bus": 384, "memory_mhz": 9501}, "rtx-3080-12gb"),
    ("NVIDIA GeForce RTX 4060 Ti", 8 * GIB, {"bus": 128, "memory_mhz": 9001}, "rtx-4060-ti"),
    ("NVIDIA GeForce RTX 4060 Ti", 16 * GIB, {"bus": 128, "memory_mhz": 9001}, "rtx-4060-ti-16gb"),
    ("NVIDIA GeForce RTX 3060", 12 * GIB, {"bus": 192, "memory_mhz": 7501}, "rtx-3060"),
    ("NVIDIA H100", 95 * GIB, {"bus": 6144, "memory_mhz": 1563}, "h100-96gb"),
]


@pytest.mark.parametrize(("name", "total", "told", "key"), TWO_SIZES)
def test_one_name_for_two_sizes_is_told_apart_by_memory(
    name: str, total: float, told: dict[str, int], key: str, nvml: Any
) -> None:
    found = detect(64e9, nvml(card(name, total, total, **told))[1])
    assert found.fleet.device.key == key and found.notes == ()


NOT_THE_LISTED_ONE = [
    # the RTX 3060 of 8 GB has two thirds of the bandwidth, the H100 of 94 GB two fifths more than that of 96 GB
    ("NVIDIA GeForce RTX 3060", 8, {"bus": 128, "memory_mhz": 7501, "capability": (8, 6), "cores": 3584}, 240e9),
    ("NVIDIA H100", 93.1, {"bus": 6016, "memory_mhz": 2233, "capability": (9, 0), "cores": 16896}, 3.36e12),
]


@pytest.mark.parametrize(("name", "gib", "told", "bandwidth"), NOT_THE_LISTED_ONE)
def test_another_card_of_a_listed_name_is_drafted(
    name: str, gib: float, told: dict[str, Any], bandwidth: float, nvml: Any
) -> None:
    found = detect(64e9, nvml(card(name, gib * GIB, gib * GIB, sm_mhz=1777, **told))[1])
    assert found.fleet.device.file == "NVML"
    assert found.fleet.device.bandwidth_bytes_per_s.value == pytest.approx(bandwidth, rel=0.01)
    assert any("is not the one of" in note for note in found.notes)


def test_a_virtual_gpu_that_tells_nothing_is_the_listed_one_with_its_own_memory(nvml: Any) -> None:
    found = detect(64e9, nvml(card("NVIDIA A10", 8 * GIB, 7 * GIB, capability=(8, 6), cores=9216))[1])
    assert (found.fleet.device.key, found.fleet.usable_bytes()) == ("a10", 7 * GIB)
    assert any("memory as reported, rates as listed" in note for note in found.notes)
    with pytest.raises(SurroundingsError, match="--gpu"):
        detect(64e9, nvml(card("GRID X", 8 * GIB, 7 * GIB, capability=(8, 6), cores=9216))[1])


def test_several_like_cards_are_a_fleet_and_the_fullest_one_counts(nvml: Any) -> None:
    _, system = nvml(*(card("NVIDIA H100 80GB HBM3", 80 * GIB, free * GIB) for free in (70, 60, 75)))
    found = detect(64e9, system)
    assert found.fleet.label == "3xh100-sxm"
    assert found.fleet.usable_bytes() == 60 * GIB


def test_unlike_cards_are_left_out_and_told(nvml: Any) -> None:
    _, system = nvml(
        card("NVIDIA H100 80GB HBM3", 80 * GIB, 70 * GIB), card("NVIDIA GeForce RTX 4090", 24 * GIB, 20 * GIB)
    )
    found = detect(64e9, system)
    assert found.fleet.count == 1
    assert any("unlike" in note for note in found.notes)


@pytest.mark.parametrize(
    ("visible", "count"), [("0", 1), ("0,1", 2), ("1,9", 1), ("GPU-NVIDIA H200", 1), ("0,junk,1", 1)]
)
def test_only_visible_devices_count(nvml: Any, visible: str, count: int) -> None:
    _, system = nvml(*(card("NVIDIA H200", 140 * GIB, 139 * GIB) for _ in range(4)), CUDA_VISIBLE_DEVICES=visible)
    assert detect(64e9, system).fleet.count == count


def test_no_visible_device_means_the_cpu(nvml: Any) -> None:
    _, system = nvml(card("NVIDIA H200", 140 * GIB, 139 * GIB), CUDA_VISIBLE_DEVICES="")
    assert detect(64e9, system).fleet.device.vendor == "cpu"


def test_a_mig_slice_has_its_own_memory_and_its_share_of_the_rates(nvml: Any) -> None:
    whole = card("NVIDIA H100 80GB HBM3", 80 * GIB, 80 * GIB)
    piece = card("slice", 20 * GIB, 19 * GIB, sms=33)
    piece.parent, piece.uuid = whole, "MIG-1"
    whole.slices = [piece]
    _, system = nvml(whole)
    found = detect(64e9, system)
    device = found.fleet.device
    assert device.capacity_bytes.value == 20 * GIB
    assert found.fleet.usable_bytes() == 19 * GIB
    assert device.peak_flops_per_s(DType.BF16).value == pytest.approx(989.4e12 / 4)
    assert 0.2 < device.bandwidth_bytes_per_s.value / 3.35e12 < 0.3


UNLISTED = {"capability": (8, 6), "cores": 2560, "sm_mhz": 1777, "memory_mhz": 7001, "bus": 128}


def test_a_card_nobody_listed_is_drafted_from_its_driver(nvml: Any) -> None:
    """The RTX 3050 by its data sheet: 20 SMs, 224 GB/s, 9.1 TFLOPS."""
    _, system = nvml(card("NVIDIA GeForce RTX 3050", 8 * GIB, 7 * GIB, watts=130, lanes=8, **UNLISTED))
    found = detect(64e9, system)
    device = found.fleet.device
    assert device.bandwidth_bytes_per_s.value == pytest.approx(224e9, rel=0.01)
    assert device.peak_flops_per_s(DType.FP32).value == pytest.approx(9.1e12, rel=0.01)
    assert device.peak_flops_per_s(DType.BF16).value == pytest.approx(18.2e12, rel=0.01)
    assert device.peak_flops_per_s(DType.INT8).value == pytest.approx(72.8e12, rel=0.01)
    assert not device.computes(DType.FP8)
    assert (device.interconnect, device.power_w and device.power_w.value) == ("pcie4-x8", 130)
    assert any("not listed" in note for note in found.notes)
    assert lint(device) == [], "a draft follows the arithmetic that files are held to"


def test_what_a_driver_keeps_to_itself_is_left_out_of_a_draft(nvml: Any) -> None:
    device = detect(64e9, nvml(card("NVIDIA GeForce RTX 3050", 8 * GIB, 7 * GIB, **UNLISTED))[1]).fleet.device
    assert device.power_w is None and device.interconnect == "pcie4-x16"


def test_an_unknown_architecture_is_told_with_the_remedy(nvml: Any) -> None:
    _, system = nvml(card("NVIDIA Future", 99 * GIB, 99 * GIB, capability=(99, 0)))
    with pytest.raises(SurroundingsError, match="hw new"):
        detect(64e9, system)


def test_a_driver_that_fails_is_told(nvml: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fake, system = nvml(card("NVIDIA H200", 140 * GIB, 139 * GIB))

    def fails(_: object) -> None:
        raise FakeNvml.NVMLError("GPU is lost")

    monkeypatch.setattr(fake, "nvmlDeviceGetMemoryInfo", fails)
    with pytest.raises(SurroundingsError, match="GPU is lost"):
        detect(64e9, system)
    assert fake.closed == 1


@pytest.mark.parametrize("total", [None, 0])
def test_memory_of_gb10_is_the_hosts(nvml: Any, total: float | None) -> None:
    """Its NVML says "Not Supported", or nothing at all."""
    _, system = nvml(card("NVIDIA GB10", total, total), files={"/proc/meminfo": memory(121.7, 113)})
    found = detect(system=system)
    assert found.fleet.device.key == "dgx-spark"
    assert found.fleet.usable_bytes() == pytest.approx(113 * GIB)
    assert any("shared with its processor" in note for note in found.notes)


@pytest.mark.parametrize(
    ("board", "gib", "key"),
    [
        ("", 61.4, "jetson-agx-orin"),
        ("", 15.2, "jetson-orin-nx-16gb"),
        ("NVIDIA Jetson AGX Orin Developer Kit\0", 61.4, "jetson-agx-orin"),
        ("NVIDIA Jetson Orin NX Engineering Reference Developer Kit\0", 7.4, "jetson-orin-nx-16gb"),
        ("NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0", 7.4, "jetson-orin-nano"),
    ],
)
def test_modules_of_one_driver_name_are_told_apart_by_board_and_memory(
    board: str, gib: float, key: str, nvml: Any
) -> None:
    files = {"/proc/meminfo": memory(gib, gib - 1), "/proc/device-tree/model": board}
    found = detect(system=nvml(card("Orin (nvgpu)", None, None), files=files)[1])
    assert found.fleet.device.key == key
    assert found.fleet.device.capacity_bytes.value == pytest.approx(gib * GIB, rel=0.12)
    assert found.fleet.usable_bytes() == pytest.approx((gib - 1) * GIB)
    assert any("memory as reported" in note for note in found.notes) == (key == "jetson-orin-nx-16gb" and gib < 8)


@pytest.mark.usefixtures("no_nvml")
def test_a_jetson_without_nvml_is_known_by_its_board(machine: Machine) -> None:
    files = {"/proc/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit\0", "/dev/nvhost-gpu": ""}
    found = detect(system=machine({**files, "/proc/meminfo": memory(61.4, 50)}))
    assert (found.fleet.device.key, found.fleet.usable_bytes()) == ("jetson-agx-orin", pytest.approx(50 * GIB))
    assert any("Jetson AGX Orin" in note for note in found.notes)


# ---- AMD and Intel


def drm(number: int, vendor: str, device: str, revision: str = "0x00", **files: object) -> dict[str, object]:
    """A card below /sys/class/drm; names of files with slashes for what lies deeper."""
    folder = f"/sys/class/drm/card{number}/device"
    ids = {"vendor": vendor, "device": device, "revision": revision}
    return {f"{folder}/{name}": content for name, content in (ids | files).items()}


def amd_card(
    number: int, device: str, revision: str, gib: float, used: float = 0.5, **more: object
) -> dict[str, object]:
    sizes = {"mem_info_vram_total": int(gib * GIB), "mem_info_vram_used": int(used * GIB)}
    return drm(number, "0x1002", device, revision, **sizes, **more)


def test_amd_cards_are_known_by_pci_id_and_revision(machine: Machine) -> None:
    for revision, key, gib in (("0xc8", "rx-7900-xtx", 24), ("0xcc", "rx-7900-xt", 20)):
        found = detect(64e9, machine(amd_card(0, "0x744c", revision, gib)))
        assert found.fleet.device is load(Device, key) and found.notes == ()
        assert found.fleet.usable_bytes() == pytest.approx((gib - 0.5) * GIB, rel=0.01)


def test_several_amd_cards_are_a_fleet_in_the_order_of_their_numbers(machine: Machine) -> None:
    files: dict[str, object] = {
        "/sys/class/drm/card1-HDMI-A-1/status": "connected",
        "/sys/class/drm/renderD128/dev": "",
    }
    for number in range(1, 9):
        files |= amd_card(number, "0x74a1", "0x00", 191.98, used=number)
    files |= amd_card(10, "0x744c", "0xc8", 24) | drm(0, "0x1a03", "0x2000")  # a second kind, and a server's console
    found = detect(64e9, machine(files))
    assert (found.fleet.label, found.fleet.usable_bytes()) == ("8xmi300x", pytest.approx(183.98 * GIB))
    assert any("1 unlike" in note for note in found.notes)


@pytest.mark.parametrize(
    ("variable", "value", "count"),
    [("ROCR_VISIBLE_DEVICES", "0,2", 2), ("HIP_VISIBLE_DEVICES", "1", 1), ("HIP_VISIBLE_DEVICES", "0,7,1", 1)],
)
def test_only_visible_amd_cards_count(machine: Machine, variable: str, value: str, count: int) -> None:
    files = {k: v for n in range(4) for k, v in amd_card(n, "0x74a1", "0x00", 191.98).items()}
    assert detect(64e9, machine(files, **{variable: value})).fleet.count == count
    assert detect(64e9, machine(files, **{variable: ""})).fleet.device.vendor == "cpu"


def test_memory_of_another_size_is_told(machine: Machine) -> None:
    """MI50 and MI60 share their id; there are MI50 of 16 and of 32 GB."""
    found = detect(64e9, machine(amd_card(0, "0x66a1", "0x02", 16, used=0)))
    assert found.fleet.device.key == "mi50" and found.fleet.usable_bytes() == 16 * GIB
    assert any("reports 16.0 GiB where mi50 has 32.0 GiB" in note for note in found.notes)


def test_a_partitioned_device_is_told(machine: Machine) -> None:
    whole, split = (
        detect(64e9, machine(amd_card(0, "0x74a1", "0x00", 191.98, current_compute_partition=mode)))
        for mode in ("SPX", "CPX")
    )
    assert whole.notes == () and any("partitions (CPX)" in note for note in split.notes)


def test_a_strix_halo_has_what_its_kernel_lends(machine: Machine) -> None:
    sizes = {"mem_info_gtt_total": 62 * GIB, "mem_info_gtt_used": 2 * GIB}
    files = amd_card(1, "0x1586", "0xc1", 0.5, used=0.25, **sizes) | {"/proc/meminfo": memory(124.5, 100)}
    found = detect(system=machine(files))
    device = found.fleet.device
    assert device.key == "ryzen-ai-max-395" and device.unified_memory
    assert found.fleet.usable_bytes() == pytest.approx(60.25 * GIB)
    assert device.addressable_share is not None
    assert device.addressable_share.value == pytest.approx(0.5, abs=0.001)
    busy = detect(system=machine(files | {"/proc/meminfo": memory(124.5, 10)}))
    assert busy.fleet.usable_bytes() == pytest.approx(10.25 * GIB), "never more than the host has left"


def test_an_amd_gpu_nobody_listed_is_told_beside_the_cpu(machine: Machine) -> None:
    found = detect(64e9, machine(amd_card(0, "0x1234", "0x01", 8)))
    assert found.fleet.device.vendor == "cpu"
    assert "0x1002:0x1234" in found.notes[0] and "hw new" in found.notes[0]


def test_intel_cards_are_known_by_pci_id(machine: Machine) -> None:
    processor = drm(0, "0x8086", "0xa780")
    for more in ({"tile0/physical_vram_size_bytes": 12 * GIB}, {"lmem_total_bytes": 12 * GIB}, {}):
        found = detect(64e9, machine(processor | drm(1, "0x8086", "0xe20b", **more)))
        assert found.fleet.device is load(Device, "arc-b580")
        assert found.fleet.usable_bytes() == found.fleet.device.capacity_bytes.value
        assert any("in use" in note for note in found.notes)


def test_the_smaller_of_two_intel_cards_has_its_own_memory(machine: Machine) -> None:
    found = detect(64e9, machine(drm(0, "0x8086", "0x56a0", **{"tile0/physical_vram_size_bytes": 8 * GIB})))
    assert found.fleet.usable_bytes() == 8 * GIB
    assert any("memory as reported" in note for note in found.notes)


def test_a_processor_without_a_listed_gpu_is_the_cpu(machine: Machine) -> None:
    assert detect(64e9, machine(drm(0, "0x8086", "0xa780"))).fleet.device.vendor == "cpu"


# ---- Apple


def mac(brand: str, gib: int, wired_mb: int = 0) -> System:
    told = {
        "machdep.cpu.brand_string": brand.encode() + b"\0",
        "hw.memsize": (gib * GIB).to_bytes(8, sys.byteorder),
        "iogpu.wired_limit_mb": wired_mb.to_bytes(4, sys.byteorder),
    }
    return System(Path("/nowhere"), "darwin", {}, told.get)


@pytest.mark.parametrize(
    ("brand", "gib", "wired", "key", "usable"),
    [
        # recommendedMaxWorkingSetSize of public llama.cpp logs
        ("Apple M2 Max", 64, 0, "m2-max", 51539.61e6),
        ("Apple M2 Max", 32, 0, "m2-max", 21845.3 * 2**20),
        ("Apple M4 Max", 36, 0, "m4-max", 28991.03e6),
        ("Apple M1", 16, 0, "m1", 16 * GIB * 2 / 3),
        ("Apple M2 Max", 96, 90000, "m2-max", 90000 * 2**20),
        ("Apple M2 Max", 32, 99999, "m2-max", 32 * GIB),
    ],
)
def test_a_mac_lends_its_gpu_a_share(brand: str, gib: int, wired: int, key: str, usable: float) -> None:
    found = detect(gib * 0.9e9, mac(brand, gib, wired))
    assert found.fleet.device.key == key and found.fleet.device.capacity_bytes.value == gib * GIB
    assert found.fleet.usable_bytes() == pytest.approx(usable, rel=1e-4)
    assert any("iogpu.wired_limit_mb" in note for note in found.notes)


def test_other_macs_are_the_cpu() -> None:
    intel, future = (detect(32e9, mac(brand, 32)) for brand in ("Intel(R) Core(TM) i9-9880H CPU", "Apple M99"))
    assert intel.fleet.device.vendor == future.fleet.device.vendor == "cpu"
    assert "M99 is not listed" in future.notes[0]


def test_sysctl_answers_nothing_where_there_is_none() -> None:
    if sys.platform == "darwin":
        assert sysctl("hw.memsize") and sysctl("no.such.name") is None
    else:
        assert sysctl("hw.memsize") is None


# ---- the CPU and what surrounds it


def test_without_a_gpu_the_cpu_answers_and_says_what_is_assumed(machine: Machine) -> None:
    found = detect(32e9, machine({"/proc/cpuinfo": "flags : fpu avx2 avx512f"}))
    assert found.fleet.device.vendor == "cpu" and "AVX-512" in found.fleet.device.name
    assert found.fleet.usable_bytes() == 32e9
    assert "assumed" in found.notes[0]


def test_container_limits_bound_memory_and_cores(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    files: dict[str, object] = {
        "/proc/meminfo": memory(95, 90),
        "/sys/fs/cgroup/memory.max": 8 * GIB,
        "/sys/fs/cgroup/memory.current": 3 * GIB,
        "/sys/fs/cgroup/cpu.max": "150000 100000",
    }
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(64)), raising=False)
    system = machine(files)
    assert (system.available_bytes(), system.usable_cores()) == (5 * GIB, 1)
    files |= {"/sys/fs/cgroup/memory.max": "max", "/sys/fs/cgroup/cpu.max": "max 100000"}
    system = machine(files)
    assert (system.available_bytes(), system.usable_cores()) == (90 * GIB, 64)


# ---- names


def test_every_name_leads_to_a_file() -> None:
    others = tomllib.loads((ROOT / "names.toml").read_text(encoding="utf-8"))
    tables = [NVML_NAMES, *(table for kinds in others.values() for table in kinds.values())]
    meant = {key for table in tables for files in table.values() for key in ([files] if type(files) is str else files)}
    assert meant <= {path.stem for path in (ROOT / "gpus").glob("*.toml")}


@pytest.mark.parametrize(
    ("spoken", "key"),
    [
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("GeForce RTX 2080 Ti", "rtx-2080-ti"),
        ("Apple M2 Max", "m2-max"),
        ("AMD Instinct MI300X VF", "mi300x"),
        ("Radeon 8060S Graphics", "ryzen-ai-max-395"),
        ("Intel(R) Arc(TM) B580 Graphics", "arc-b580"),
        ("TPU v5 lite", "tpu-v5e"),
        ("NVIDIA GB10", "dgx-spark"),
    ],
)
def test_what_drivers_call_a_device_is_understood_as_its_name(spoken: str, key: str) -> None:
    assert load(Device, spoken).key == key
