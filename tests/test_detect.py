"""Detection of the machine's own hardware, with a driver made up for the purpose."""

from __future__ import annotations

import sys
import tomllib
from types import SimpleNamespace
from typing import Any

import pytest

from roofplan.dtypes import DType
from roofplan.errors import SurroundingsError
from roofplan.hwspecs import detect as module
from roofplan.hwspecs.detect import available_host_memory_bytes, detect, usable_cores
from roofplan.hwspecs.load import ROOT

GIB = 2**30


class FakeNvml:
    """NVML as far as detection uses it: cards are namespaces with name, total, free and MIG slices."""

    class NVMLError(Exception):
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
        return SimpleNamespace(total=card.total, free=card.free)

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
        return {1: card.sm_mhz, 2: card.memory_mhz}[which]

    def nvmlDeviceGetMemoryBusWidth(self, card: Any) -> int:
        return card.bus

    def nvmlDeviceGetMaxPcieLinkGeneration(self, card: Any) -> int:
        return 4


def card(name: str, total: int, free: int, **rest: Any) -> SimpleNamespace:
    return SimpleNamespace(name=name, total=total, free=free, slices=[], uuid=f"GPU-{name}", parent=None, **rest)


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Any:
    def install(*cards: SimpleNamespace) -> FakeNvml:
        fake = FakeNvml(*cards)
        monkeypatch.setitem(sys.modules, "pynvml", fake)  # type: ignore[arg-type]
        monkeypatch.setattr(module, "DRIVER_FILES", ("/",))
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        return fake

    return install


def test_a_listed_card_is_recognised_and_its_free_memory_respected(nvml: Any) -> None:
    fake = nvml(card("NVIDIA GeForce RTX 4090", 24 * GIB, 20 * GIB))
    found = detect(64e9)
    assert found.fleet.device.key == "rtx-4090"
    assert found.fleet.usable_bytes() == 20 * GIB
    assert found.fleet.host_memory_bytes == 64e9
    assert (fake.opened, fake.closed) == (1, 1)


@pytest.mark.parametrize(("name", "key"), tomllib.loads((ROOT / "nvml.toml").read_text(encoding="utf-8")).items())
def test_listed_cards_have_the_class_their_compute_capability_says(name: str, key: str, nvml: Any) -> None:
    """A card is priced by the same relatives whether its file was found or it was drafted from its driver."""
    nvml(card(name, 24 * GIB, 20 * GIB))
    device = detect(64e9).fleet.device
    assert device.key == key and device.compute_capability is not None
    major, minor = divmod(round(device.compute_capability.value * 10), 10)
    architecture, class_, operations, _ = module._ARCHITECTURE[major, minor]
    assert (device.architecture, device.architecture_class) == (architecture, class_)
    halved = 2 if any(line in name for line in module.HALVED_LINES) else 1
    assert device.flops_per_clock_per_sm[DType.BF16].value == operations / halved


def test_several_like_cards_are_a_fleet_and_the_fullest_one_counts(nvml: Any) -> None:
    nvml(*(card("NVIDIA H100 80GB HBM3", 80 * GIB, free * GIB) for free in (70, 60, 75)))
    found = detect(64e9)
    assert found.fleet.label == "3xh100-sxm"
    assert found.fleet.usable_bytes() == 60 * GIB


def test_unlike_cards_are_left_out_and_told(nvml: Any) -> None:
    nvml(card("NVIDIA H100 80GB HBM3", 80 * GIB, 70 * GIB), card("NVIDIA GeForce RTX 4090", 24 * GIB, 20 * GIB))
    found = detect(64e9)
    assert found.fleet.count == 1
    assert any("unlike" in note for note in found.notes)


@pytest.mark.parametrize(
    ("visible", "count"), [("0", 1), ("0,1", 2), ("1,9", 1), ("GPU-NVIDIA H200", 1), ("0,junk,1", 1)]
)
def test_only_visible_devices_count(nvml: Any, monkeypatch: pytest.MonkeyPatch, visible: str, count: int) -> None:
    nvml(*(card("NVIDIA H200", 140 * GIB, 139 * GIB) for _ in range(4)))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert detect(64e9).fleet.count == count


def test_no_visible_device_means_the_cpu(nvml: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml(card("NVIDIA H200", 140 * GIB, 139 * GIB))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert detect(64e9).fleet.device.vendor == "cpu"


def test_a_mig_slice_has_its_own_memory_and_its_share_of_the_rates(nvml: Any) -> None:
    whole = card("NVIDIA H100 80GB HBM3", 80 * GIB, 80 * GIB)
    piece = card("slice", 20 * GIB, 19 * GIB, sms=33)
    piece.parent, piece.uuid = whole, "MIG-1"
    whole.slices = [piece]
    nvml(whole)
    device = detect(64e9).fleet.device
    assert device.capacity_bytes.value == 20 * GIB
    assert detect(64e9).fleet.usable_bytes() == 19 * GIB
    assert device.peak_flops_per_s(module.DType.BF16).value == pytest.approx(989.4e12 / 4)
    assert 0.2 < device.bandwidth_bytes_per_s.value / 3.35e12 < 0.3


def test_a_card_nobody_listed_is_drafted_from_its_driver(nvml: Any) -> None:
    unlisted = card("NVIDIA GeForce RTX 3060", 12 * GIB, 11 * GIB, capability=(8, 6), cores=3584, sm_mhz=1777)
    unlisted.memory_mhz, unlisted.bus = 7501, 192
    nvml(unlisted)
    found = detect(64e9)
    device = found.fleet.device
    assert device.bandwidth_bytes_per_s.value == pytest.approx(360e9, rel=0.01)
    assert device.peak_flops_per_s(module.DType.FP32).value == pytest.approx(12.74e12, rel=0.01)
    assert device.peak_flops_per_s(module.DType.BF16).value == pytest.approx(25.5e12, rel=0.01)
    assert any("not listed" in note for note in found.notes)


def test_an_unknown_architecture_is_told_with_the_remedy(nvml: Any) -> None:
    nvml(card("NVIDIA Future", 99 * GIB, 99 * GIB, capability=(99, 0)))
    with pytest.raises(SurroundingsError, match="--toml"):
        detect(64e9)


def test_a_driver_that_fails_is_told(nvml: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = nvml(card("NVIDIA H200", 140 * GIB, 139 * GIB))

    def fails(_: object) -> None:
        raise FakeNvml.NVMLError("GPU is lost")

    monkeypatch.setattr(fake, "nvmlDeviceGetMemoryInfo", fails)
    with pytest.raises(SurroundingsError, match="GPU is lost"):
        detect(64e9)
    assert fake.closed == 1


def test_without_a_gpu_the_cpu_answers_and_says_what_is_assumed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DRIVER_FILES", ())
    found = detect(32e9)
    assert found.fleet.device.vendor == "cpu"
    assert found.fleet.usable_bytes() == 32e9
    assert "assumed" in found.notes[0]


def test_container_limits_bound_memory_and_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "/proc/meminfo": ["MemTotal: 100000000 kB", "MemAvailable: 90000000 kB"],
        "/sys/fs/cgroup/memory.max": [str(8 * GIB)],
        "/sys/fs/cgroup/memory.current": [str(3 * GIB)],
        "/sys/fs/cgroup/cpu.max": ["150000 100000"],
    }
    monkeypatch.setattr(module, "_read_lines", lambda path: files.get(str(path), []))
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert available_host_memory_bytes() == 5 * GIB
    assert usable_cores() == 1
    files["/sys/fs/cgroup/memory.max"], files["/sys/fs/cgroup/cpu.max"] = ["max"], ["max 100000"]
    assert available_host_memory_bytes() == 90000000 * 1024
    assert usable_cores() == 64
