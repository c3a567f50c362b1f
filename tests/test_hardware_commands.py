"""`hw list`, `show`, `compare` and `new`, nodes and machines by name: what a user types about hardware."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest

from roofplan import cli
from roofplan.dtypes import DType
from roofplan.errors import ExitCode, InputError, SurroundingsError, UnknownNameError
from roofplan.hwspecs import new
from roofplan.hwspecs.detect import System
from roofplan.hwspecs.device import Cluster, Device, Host, Kind, Link, Storage
from roofplan.hwspecs.lint import facts_of, lint
from roofplan.hwspecs.load import cluster_of, load, load_fleet, names, path_of, read
from roofplan.simulator.report import contract, hardware

GIB = 2**30
SCHEMA = json.loads(contract.schema_text())


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.run(list(arguments))
    out, err = capsys.readouterr()
    return code, out, err


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    code, out, _ = run(capsys, *arguments, "--json")
    assert code == 0, out
    report = json.loads(out)
    jsonschema.validate(report, SCHEMA)
    return report


# ---- nodes


def test_every_node_is_a_fleet_of_what_its_file_says() -> None:
    for name in names(Cluster):
        node, fleet = load(Cluster, name), load_fleet(name)
        assert (fleet.count, fleet.device.key, fleet.cluster) == (node.device_count.value, node.device, name)
        assert fleet.host is not None and fleet.host.key == node.host
        assert (fleet.network.key if fleet.network else "") == node.network
        assert fleet.network_ports == (node.network_ports.value if node.network_ports else 0)
        assert fleet.interconnect.key == (node.interconnect or fleet.device.interconnect)


def test_the_network_of_a_node_is_that_of_all_its_ports() -> None:
    assert load_fleet("p5.48xlarge").network_bytes_per_s() == 400e9  # 3200 Gb/s, as AWS prints
    assert load_fleet("h100-sxm").network_bytes_per_s() == 0.0


@pytest.mark.parametrize(
    ("spoken", "key"),
    [
        ("p5.48xlarge", "p5-48xlarge"),
        ("P5.48xlarge", "p5-48xlarge"),
        ("p6-b200.48xlarge", "p6-b200-48xlarge"),
        ("g6e.xlarge", "g6e-xlarge"),
        ("Standard_ND96isr_H100_v5", "standard-nd96isr-h100-v5"),
        ("ND96isr_H100_v5", "standard-nd96isr-h100-v5"),
        ("a3-highgpu-8g", "a3-highgpu-8g"),
        ("DGX H200", "dgx-h200"),
    ],
)
def test_instances_by_the_names_of_their_clouds(spoken: str, key: str) -> None:
    node = cluster_of(spoken)
    assert node is not None and node.key == key
    assert load_fleet(spoken).cluster == key


@pytest.mark.parametrize(
    ("name", "count"), [("dgx-2", 16), ("16xv100-32gb", 16), ("gb200-nvl72", 72), ("72xgb200", 72)]
)
def test_a_count_beyond_eight_is_a_node_only_where_one_is_listed(name: str, count: int) -> None:
    fleet = load_fleet(name)
    assert fleet.count == count
    assert load_fleet(fleet.label).count == count, "its label asks for it again"
    with pytest.raises(InputError, match=f"between 1 and {count} .got {count + 1}"):
        load_fleet(f"{count + 1}x{fleet.device.key}")


def test_a_node_may_join_its_devices_by_a_link_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = path_of(Cluster, "g6-12xlarge").read_text(encoding="utf-8")
    path = tmp_path / "own.toml"
    path.write_text(text.replace('device = "l4"', 'device = "l4"\ninterconnect = "pcie5-x16"'), encoding="utf-8")
    monkeypatch.setattr("roofplan.hwspecs.load.cluster_of", lambda name: read(Cluster, path))
    assert load_fleet("own").interconnect is load(Link, "pcie5-x16")
    assert load(Device, "l4").interconnect == "pcie4-x16"


@pytest.mark.parametrize(("name", "tp"), [("dgx-2", None), ("dgx-2", 16), ("gb200-nvl72", None), ("gb200-nvl72", 64)])
def test_questions_about_large_nodes_are_answered(
    name: str, tp: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Collectives over more ranks than any measured node has still have a price, and more ranks a higher one."""
    wide = ["--tp", str(tp)] if tp else []
    report = answer(capsys, "fits", "llama-3.1-70b", "--gpu", name, "--batch", "4", *wide)
    assert report["answer"]["tokens_per_s_user"]["value"] > 0
    assert report["question"]["device_count"] == load_fleet(name).count
    assert f"--gpu {name}" in report["answer"]["next_step"]
    if tp:
        assert report["question"]["layout"]["tp"] == tp
        assert collectives_s(capsys, name, tp) > collectives_s(capsys, name, 8) > 0


def collectives_s(capsys: pytest.CaptureFixture[str], name: str, tp: int) -> float:
    """Seconds a decode step communicates for."""
    rows = answer(capsys, "explain", "llama-3.1-70b", "--gpu", name, "--tp", str(tp))["answer"]["rows"]
    return sum(row["time"]["value"] * row["repetitions"] for row in rows if row["operator_class"] == "collective")


# ---- machines whose memory is shared


@pytest.mark.parametrize(
    ("name", "vram", "counted_gib", "usable_gib"),
    [
        ("m2-max", None, 96, 72),
        ("m2-max-64gb", None, 64, 48),
        ("M2 Max 64GB", None, 64, 48),
        ("m2-max", 64e9, 64, 48),
        ("m2-max", 64 * GIB, 64, 48),
        ("m2-max-32gb", None, 32, 64 / 3),
        ("m4-max-36gb", None, 36, 27),
        ("m4-max", None, 128, 0.84 * 128),
        ("2xm2-max-64gb", None, 64, 48),
        ("ryzen-ai-max-395-64gb", None, 64, 32),
        ("dgx-spark", None, 119.7, 119.7),
    ],
)
def test_a_gpu_may_use_its_share_of_the_machines_memory(
    name: str, vram: float | None, counted_gib: float, usable_gib: float
) -> None:
    fleet = load_fleet(name, memory_bytes=vram)
    assert fleet.device.capacity_bytes.value / GIB == pytest.approx(counted_gib, rel=1e-3)
    assert fleet.usable_bytes() / GIB == pytest.approx(usable_gib, rel=1e-3)
    assert fleet.device.bandwidth_bytes_per_s == load(Device, fleet.device.key).bandwidth_bytes_per_s


def test_memory_of_its_own_is_usable_whole() -> None:
    for name in names(Device):
        device = load(Device, name)
        assert device.unified_memory == (device.addressable_share is not None)
        if not device.unified_memory:
            assert load_fleet(name).usable_bytes() == device.capacity_bytes.value


def test_an_answer_about_a_mac_asks_again_for_the_same_mac(capsys: pytest.CaptureFixture[str]) -> None:
    report = answer(capsys, "fits", "llama-3.1-8b", "--gpu", "m2-max-64gb")
    assert report["answer"]["capacity_bytes"] == 48 * GIB
    assert "--gpu m2-max --vram 64GB" in report["answer"]["next_step"]
    again = answer(capsys, "fits", "llama-3.1-8b", "--gpu", "m2-max", "--vram", "64GB")
    assert again["answer"] == report["answer"]
    assert any("48.0 GiB of 64.0 GiB" in note for note in report["warnings"])


BAD_MEMORY = [
    (["--gpu", "h200", "--vram", "24GB"], "has 141 GB of its own"),
    (["--gpu", "m2-max", "--vram", "128GB"], "comes with up to 96 GB"),
    (["--gpu", "m2-max-128gb"], "comes with up to 96 GB"),
    (["--gpu", "m2-max-64gb", "--vram", "64GB"], "unknown device"),
    (["--gpu", "h200-64gb"], "unknown device"),
    (["--gpu", "m2-max", "--vram", "64GB", "--bandwidth", "400GB/s"], "already"),
    (["--gpu", "8xh200", "--vram", "64GB"], "of its own"),
]


@pytest.mark.parametrize(("arguments", "words"), BAD_MEMORY)
def test_memory_that_cannot_be_is_refused(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "fits", "llama-3.1-8b", *arguments)
    assert (code, out) == (ExitCode.BAD_INPUT, "") and words in err and len(err.splitlines()) == 1


# ---- list


def test_the_list_has_every_file_once_by_kind(capsys: pytest.CaptureFixture[str]) -> None:
    rows = answer(capsys, "hw", "list")["answer"]["rows"]
    assert [(r["kind"], r["key"]) for r in rows] == [
        (part.__name__.lower(), name) for part in (Device, Host, Storage, Link, Cluster) for name in names(part)
    ]
    for row in rows:
        if row["kind"] == "device":
            part = load(Device, row["key"])
            assert row["memory_bytes"] == part.capacity_bytes.value
            assert row["flops_per_s"] == part.peak_dense_flops_per_s[DType(row["dtype"])].value
    devices = {r["key"]: r for r in rows if r["kind"] == "device"}
    assert devices["h200"]["dtype"] == "bf16" and devices["v100-16gb"]["dtype"] == "fp16"


def test_a_word_and_a_kind_narrow_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    rows = answer(capsys, "hw", "list", "H100")["answer"]["rows"]
    assert {"device", "cluster"} <= {r["kind"] for r in rows} and "p5-48xlarge" in {r["key"] for r in rows}
    nodes = answer(capsys, "hw", "list", "h100", "--kind", "cluster")["answer"]["rows"]
    assert {r["kind"] for r in nodes} == {"cluster"} and set(map(str, nodes)) < set(map(str, rows))
    assert {r["key"] for r in answer(capsys, "hw", "list", "apple9")["answer"]["rows"]} >= {"m3-max", "m4"}


def test_the_printed_list_is_a_line_a_part(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "hw", "list")
    lines = out.splitlines()
    assert (code, err) == (0, "")
    for part in (Device, Host, Storage, Link, Cluster):
        for name in names(part):
            assert sum(line.split(" ")[0] == name for line in lines) >= 1, name
    (line,) = (line for line in lines if line.startswith("rtx-4090 "))
    assert line.split("  ")[0] == "rtx-4090" and all(w in line for w in ("23.6 GiB", "1.01 TB/s", "165 TFLOP/s bf16"))
    assert max(map(len, lines)) < 160


def test_nothing_of_that_name(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "hw", "list", "rtx-5009")
    assert code == ExitCode.BAD_INPUT and "did you mean rtx-50" in err


def test_names_are_completed_without_reading_a_file() -> None:
    program = (
        "import pathlib\n"
        "read = []\n"
        "for reader in ('read_bytes', 'read_text'):\n"
        "    original = getattr(pathlib.Path, reader)\n"
        "    log = lambda self, *a, o=original, **k: (read.append(self.name), o(self, *a, **k))[1]\n"
        "    setattr(pathlib.Path, reader, log)\n"
        "from roofplan.hwspecs import commands\n"
        "from roofplan import options\n"
        "found = commands._known('dgx'), commands._devices('rtx'), options.gpu_names('p5')\n"
        "print([len(f) > 0 for f in found], read)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[True, True, True] []"


# ---- show and compare


def test_a_name_of_several_kinds_shows_the_node_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    shared = set(names(Cluster)) & set(names(Host))
    assert "dgx-h200" in shared
    for name in sorted(shared):
        report = answer(capsys, "hw", "show", name)
        assert report["answer"]["kind"] == "cluster"
        assert report["warnings"] == ["there is a host of that name too: --kind host"]
        other = answer(capsys, "hw", "show", name, "--kind", "host")
        assert other["answer"]["kind"] == "host" and other["warnings"] == []


def test_a_sheet_has_the_words_of_its_file(capsys: pytest.CaptureFixture[str]) -> None:
    sheet = answer(capsys, "hw", "show", "p5.48xlarge")["answer"]
    words = {w["key"]: w["value"] for w in sheet["words"]}
    assert words == {"device": "h100-sxm", "host": "aws-p5", "network": "efa-v2"}
    mac = {w["key"]: w["value"] for w in answer(capsys, "hw", "show", "m2-max-64gb")["answer"]["words"]}
    assert mac["unified_memory"] == "true" and mac["vendor"] == "apple"


@pytest.mark.parametrize(
    ("kind", "name"), [(Host, "desktop-ddr5"), (Link, "nvlink4"), (Cluster, "dgx-2"), (Device, "l4")]
)
def test_a_users_file_is_of_the_kind_whose_keys_it_has(kind: type, name: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(path_of(kind, name).read_text(encoding="utf-8"), encoding="utf-8")
    part, _ = hardware.find(str(path))
    assert type(part) is kind and lint(part) == []


def test_devices_of_all_vendors_compare(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("rtx-2080-ti", "mi355x", "m5", "tpu-v4", "gaudi-3", "arc-b580", "b300", "gtx-1080-ti")
    rows = {r["key"]: r for r in answer(capsys, "hw", "compare", *asked)["answer"]["rows"]}
    fp4 = rows["peak_dense_flops_per_s.fp4"]
    assert [v is not None for v in fp4["values"]] == [a in ("mi355x", "b300") for a in asked]
    assert all(r is None for r in fp4["ratios"]), "nothing to be a multiple of"
    order = [k.split(".")[1] for k in rows if k.startswith("peak_dense")]
    assert order == sorted(order, key=list(DType).index)
    for key, row in rows.items():
        for name, value in zip(asked, row["values"], strict=True):
            fact = dict(facts_of(load(Device, name))).get(key)
            assert value == (None if fact is None else fact.value)


def test_machines_and_nodes_compare_by_their_devices() -> None:
    assert hardware.device("m2-max-64gb").capacity_bytes.value == 64 * GIB
    assert hardware.device("p5.48xlarge").key == "h100-sxm"
    with pytest.raises(UnknownNameError):
        hardware.device("nosuch")


# ---- new files


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A driver with one RTX 3050, as far as a draft asks it."""

    class NVMLError(Exception):
        pass

    def refuses(*_: object) -> None:
        raise NVMLError("Not Supported")

    told = {
        "nvmlDeviceGetName": "NVIDIA GeForce RTX 3050",
        "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=8589934592, free=8000000000),
        "nvmlDeviceGetCudaComputeCapability": (8, 6),
        "nvmlDeviceGetNumGpuCores": 2560,
        "nvmlDeviceGetMemoryBusWidth": 128,
        "nvmlDeviceGetMaxPcieLinkGeneration": 4,
        "nvmlDeviceGetMaxPcieLinkWidth": 8,
        "nvmlDeviceGetPowerManagementDefaultLimit": 130000,
    }
    fake = SimpleNamespace(
        NVMLError=NVMLError,
        NVMLError_NotSupported=NVMLError,
        NVML_CLOCK_SM=1,
        NVML_CLOCK_MEM=2,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlSystemGetDriverVersion=lambda: b"580.65.06",
        nvmlDeviceGetCount=lambda: 1,
        nvmlDeviceGetHandleByIndex=lambda i: i,
        nvmlDeviceGetMigMode=refuses,
        nvmlDeviceIsMigDeviceHandle=refuses,
        nvmlDeviceGetMaxClockInfo=lambda _, which: {1: 2100, 2: 7001}[which],
        **{name: (lambda _, value=value: value) for name, value in told.items()},
    )
    monkeypatch.setitem(sys.modules, "pynvml", fake)  # type: ignore[arg-type]
    return fake


@pytest.mark.usefixtures("driver")
def test_a_draft_is_what_the_driver_told_and_says_what_it_did_not(tmp_path: Path) -> None:
    text = new.from_nvml(System(tmp_path, "linux", {}))
    path = tmp_path / "rtx-3050.toml"
    path.write_text(text, encoding="utf-8")
    device = load(Device, str(path))
    assert lint(device) == [], "arithmetic, formats and sources of a draft are in order"
    assert device.name == "NVIDIA GeForce RTX 3050" and device.power_w is not None and device.power_w.value == 130
    assert device.bandwidth_bytes_per_s.value == pytest.approx(224e9, rel=1e-3)
    assert device.peak_flops_per_s(DType.BF16).value == pytest.approx(20 * 2.1e9 * 512)
    assert all(f.kind in (Kind.MEASURED, Kind.DERIVED) for _, f in facts_of(device))
    assert all(f"# {key} = " in text for key in new.LOOK_UP), "what the driver does not know is left to fill in"
    assert text.count("TODO") >= len(new.LOOK_UP) + 3
    filled = text.replace('# l2_bytes = { value = 0, source = ""', 'l2_bytes = { value = 2097152, source = "driver"')
    path.write_text(filled, encoding="utf-8")
    assert load(Device, str(path)).l2_bytes is not None


@pytest.mark.parametrize("name", ["rtx-4090", "h200", "m2-max", "mi355x", "gtx-1080-ti"])
def test_a_device_survives_being_written(name: str, tmp_path: Path) -> None:
    device, path = load(Device, name), tmp_path / f"{name}.toml"
    path.write_text(new.to_toml(device, ["a comment"], {}), encoding="utf-8")
    again = load(Device, str(path))
    assert dict(facts_of(again)) == dict(facts_of(device)) and again.sources == device.sources
    assert hardware.sheet(again).words == hardware.sheet(device).words


def test_a_copy_is_the_file_under_another_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, "hw", "new", "my-gpu", "--like", "rtx-4090")
    assert (code, err) == (0, "") and "hw lint my-gpu.toml" in out
    mine, listed = load(Device, "my-gpu.toml"), load(Device, "rtx-4090")
    assert mine.name == "my-gpu" and dict(facts_of(mine)) == dict(facts_of(listed))
    assert (tmp_path / "my-gpu.toml").read_text(encoding="utf-8").startswith("# TODO a copy of rtx-4090")
    assert [p.name for p in tmp_path.iterdir()] == ["my-gpu.toml"], "no temporary file stays"


@pytest.mark.usefixtures("driver")
def test_new_files_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    drafted = answer(capsys, "hw", "new", "rtx-3050", "--from-nvml")["answer"]
    assert drafted["file"] == "rtx-3050.toml" and drafted["findings"] == []
    assert [note["key"] for note in drafted["notes"]] == ["l2_bytes"]
    code, out, _ = run(capsys, "fits", "llama-3.1-8b", "--gpu", "rtx-3050.toml")
    assert code in (0, 1) and "rtx-3050" in out
    host = answer(capsys, "hw", "new", "my-host", "--like", "desktop-ddr5", "--out", "sub/host.toml")["answer"]
    assert host["file"] == str(Path("sub/host.toml")) and type(hardware.find(host["file"])[0]) is Host


def test_what_is_there_stays_unless_forced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text("precious", encoding="utf-8")
    code, _, err = run(capsys, "hw", "new", "mine", "--like", "h200")
    assert code == ExitCode.BAD_INPUT and "exists already" in err and "--force" in err
    assert (tmp_path / "mine.toml").read_text(encoding="utf-8") == "precious"
    assert run(capsys, "hw", "new", "mine", "--like", "h200", "--force")[0] == 0
    assert load(Device, "mine.toml").capacity_bytes == load(Device, "h200").capacity_bytes


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["mine"], ExitCode.BAD_INPUT, "--like/--from-nvml"),
        (["mine", "--like", "h200", "--from-nvml"], ExitCode.BAD_INPUT, "--like/--from-nvml"),
        (["mine", "--like", "h2000"], ExitCode.BAD_INPUT, "did you mean"),
        (["../mine", "--like", "h200"], ExitCode.BAD_INPUT, "not a name"),
        (["mine", "--like", "h200", "--out", "mine.txt"], ExitCode.BAD_INPUT, "ends in .toml"),
        (["mine", "--like", "h200", "--out", "/proc/nowhere/mine.toml"], ExitCode.SURROUNDINGS, "cannot be written"),
    ],
)
def test_new_files_that_cannot_be_are_refused_in_one_line(
    arguments: list[str],
    code: int,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    got, out, err = run(capsys, "hw", "new", *arguments)
    assert (got, out) == (code, "") and words in err and len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_without_a_driver_there_is_nothing_to_draft_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(SurroundingsError, match="--like"):
        new.from_nvml()


def test_a_driver_that_tells_too_little_is_told(driver: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(_: object) -> None:
        raise driver.NVMLError("Not Supported")

    monkeypatch.setattr(driver, "nvmlDeviceGetMemoryBusWidth", refuses)
    with pytest.raises(SurroundingsError, match="did not tell enough"):
        new.from_nvml()
