"""The typed hardware facts. The dataclass fields are the schema: loader, linter and documentation read them.

A `Fact` cannot be built without a source, and a `Device` is built of facts: there is no way to state a
number here without saying where it is printed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

from ..dtypes import DType
from ..errors import InputError


class Kind(StrEnum):
    """How a number came to be known."""

    DATASHEET = "datasheet"
    MEASURED = "measured"
    DERIVED = "derived"
    ASSUMED = "assumed"


@dataclass(frozen=True, slots=True)
class Fact:
    """One number with its source (a key into the file's source table) and its kind."""

    value: float
    source: str
    kind: Kind

    def __post_init__(self) -> None:
        if not self.source:
            raise InputError("a number without a source cannot be built", key="source", value=self.value)
        if not math.isfinite(self.value) or self.value <= 0:
            raise InputError("must be a positive, finite number", key="value", value=self.value)

    def __float__(self) -> float:
        return self.value


class Source(NamedTuple):
    """A document a number was read from."""

    title: str
    publisher: str
    where: str


Rates = Mapping[DType, Fact]


def fact(unit: str, meaning: str, required: bool = True) -> Any:
    """Declare one number of the schema: its unit, its meaning and whether a file must give it."""
    metadata = {"unit": unit, "meaning": meaning, "required": required, "type": "fact"}
    return field(metadata=metadata) if required else field(default=None, metadata=metadata)


def rates(unit: str, meaning: str, required: bool = False) -> Any:
    """Declare a table of numbers by number format (bf16, fp8, ...)."""
    metadata = {"unit": unit, "meaning": meaning, "required": required, "type": "rates"}
    return field(metadata=metadata) if required else field(default_factory=dict, metadata=metadata)


def word(meaning: str, required: bool = True) -> Any:
    """Declare a text field."""
    metadata = {"unit": "text", "meaning": meaning, "required": required, "type": "text"}
    return field(metadata=metadata) if required else field(default="", metadata=metadata)


# What a device without matrix units for a format computes it in; 16-bit formats stand in for each other.
WIDENED_TO: Mapping[DType, tuple[DType, ...]] = {
    DType.FP32: (),
    DType.BF16: (DType.FP16, DType.FP32),
    DType.FP16: (DType.BF16, DType.FP32),
}


@dataclass(frozen=True, eq=False, kw_only=True)
class Part:
    """What every hardware file has: a key (its file name), a printed name and its table of sources."""

    key: str = field(metadata={"type": "internal"})
    file: str = field(metadata={"type": "internal"})
    name: str = word("name as the vendor prints it")
    sources: Mapping[str, Source] = field(metadata={"type": "internal"})


@dataclass(frozen=True, eq=False, kw_only=True)
class Device(Part):
    """One accelerator (or CPU acting as one): datasheet facts only. Units are in the names."""

    vendor: str = word("nvidia, amd, intel, apple, ... in lower case")
    architecture: str = word("vendor's architecture name in lower case, such as hopper or ada")
    architecture_class: str = word("family of matrix instructions that kernels share: wgmma, mma.sync, cpu, ...")
    capacity_bytes: Fact = fact("B", "memory the driver reports in total; what fits is judged by this number")
    bandwidth_bytes_per_s: Fact = fact("B/s", "device memory bandwidth, read plus write")
    peak_dense_flops_per_s: Rates = rates("FLOP/s", "dense matrix rate by input format (a multiply-add is 2)", True)
    interconnect: str = word("link file that joins devices of one node")
    host_link: str = word("link file that joins the device to its host")
    advertised_capacity_bytes: Fact | None = fact("B", "memory as the product name states it", False)
    peak_sparse_flops_per_s: Rates = rates(
        "FLOP/s", "rate with 2:4 structured sparsity, as printed; never used as dense"
    )
    sustained_flops_per_s: Rates = rates(
        "FLOP/s", "rate measured of large products for minutes, where the power limit keeps it far below the peak"
    )
    flops_per_clock_per_sm: Rates = rates("FLOP/clk/SM", "dense operations per clock and multiprocessor")
    sm_count: Fact | None = fact("1", "multiprocessors (cores on a CPU)", False)
    clock_hz: Fact | None = fact("Hz", "clock the peak rates refer to", False)
    l2_bytes: Fact | None = fact("B", "last-level cache", False)
    shared_memory_per_sm_bytes: Fact | None = fact("B", "shared memory and L1 of one multiprocessor", False)
    register_file_per_sm_bytes: Fact | None = fact("B", "registers of one multiprocessor", False)
    memory_bus_bits: Fact | None = fact("bit", "width of the memory interface", False)
    memory_bits_per_s_per_pin: Fact | None = fact("bit/s", "data rate of one memory pin", False)
    interconnect_bytes_per_s: Fact | None = fact("B/s", "device-to-device bandwidth, ONE direction", False)
    power_w: Fact | None = fact("W", "board or module power limit", False)
    compute_capability: Fact | None = fact("1", "CUDA compute capability", False)
    memory_kind: str = word("HBM3, GDDR6X, DDR5, ...", False)
    accumulate: str = word("accumulation type the bf16 and fp16 rates refer to", False)
    addressable_share: Fact | None = fact("1", "share of unified memory its GPU may use as delivered", False)
    unified_memory: bool = field(default=False, metadata={"type": "flag", "meaning": "memory shared with the host"})

    def peak_flops_per_s(self, dtype: DType) -> Fact:
        """Dense peak of the format: its own, else that of a format it is widened to, never that of a narrower one."""
        for candidate in (dtype, *WIDENED_TO.get(dtype, (DType.BF16, DType.FP16, DType.FP32))):
            if candidate in self.peak_dense_flops_per_s:
                return self.peak_dense_flops_per_s[candidate]
        raise InputError(
            "no rate to compute in", file=self.file, key=f"peak_dense_flops_per_s.{dtype}", remedy="add it"
        )

    def sustained(self, dtype: DType) -> float | None:
        """What large products in the format sustain under the power limit, where that was measured."""
        wide = next((d for d in (dtype, *WIDENED_TO.get(dtype, ())) if d in self.peak_dense_flops_per_s), dtype)
        found = self.sustained_flops_per_s.get(wide)
        return None if found is None else found.value

    def computes(self, dtype: DType) -> bool:
        """Whether the device has matrix instructions for the format itself."""
        return dtype in self.peak_dense_flops_per_s

    def addressable_bytes(self) -> float:
        """Bytes its programs may take as delivered: all of its own memory, a share of what it has with its host."""
        share = 1.0 if self.addressable_share is None else self.addressable_share.value
        return self.capacity_bytes.value * share


FP32_OPS_PER_CLOCK = 32  # of a core with two 256-bit multiply-add units
SERVER_BYTES_PER_S = 150e9  # what more than four memory channels give; many channels are reached less fully than two


@dataclass(frozen=True, eq=False, kw_only=True)
class Host(Part):
    """The machine around the devices."""

    memory_bytes: Fact = fact("B", "host memory")
    memory_bandwidth_bytes_per_s: Fact = fact("B/s", "host memory bandwidth over all sockets and channels")
    cores: Fact = fact("1", "physical cores")
    clock_hz: Fact | None = fact("Hz", "base clock", False)
    sockets: Fact | None = fact("1", "processor packages", False)
    memory_channels: Fact | None = fact("1", "memory channels over all sockets", False)
    memory_transfers_per_s: Fact | None = fact("1/s", "transfers per second of one channel (8 bytes each)", False)
    peak_dense_flops_per_s: Rates = rates("FLOP/s", "dense rate of all cores together by input format")
    memory_kind: str = word("DDR4, DDR5, LPDDR5X, ...", False)
    instructions: str = word("widest vector or matrix instructions of the cores: AVX2, AVX-512, AMX, SVE2, ...", False)
    storage: str = word("storage file of the local drive", False)

    def as_device(self) -> Device:
        """The host's cores and memory as a device that computes; rates nobody states follow from its clock."""
        peaks, clock = dict(self.peak_dense_flops_per_s), 2.5e9 if self.clock_hz is None else self.clock_hz.value
        if DType.FP32 not in peaks:
            rate = self.cores.value * clock * FP32_OPS_PER_CLOCK
            peaks[DType.FP32] = Fact(rate, self.cores.source, Kind.ASSUMED)
        return Device(
            key=self.key,
            file=self.file,
            name=self.name,
            sources=self.sources,
            vendor="cpu",
            architecture="cpu",
            architecture_class="cpu" if self.memory_bandwidth_bytes_per_s.value < SERVER_BYTES_PER_S else "cpu-server",
            capacity_bytes=self.memory_bytes,
            bandwidth_bytes_per_s=self.memory_bandwidth_bytes_per_s,
            peak_dense_flops_per_s=peaks,
            interconnect="memory-bus",
            host_link="memory-bus",
            sm_count=self.cores,
            clock_hz=Fact(clock, self.cores.source, Kind.ASSUMED) if self.clock_hz is None else self.clock_hz,
            unified_memory=True,
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class Storage(Part):
    """A class of local drive, or of memory behind CXL; rates are sequential, of one of them."""

    read_bytes_per_s: Fact = fact("B/s", "sequential read")
    write_bytes_per_s: Fact = fact("B/s", "sequential write")
    capacity_bytes: Fact | None = fact("B", "usual capacity", False)
    random_reads_per_s: Fact | None = fact("1/s", "random reads of 4 KiB at full queue depth", False)
    link: str = word("link file that carries it")


SWITCHED_BYTES_PER_S = 100e9  # per direction; slower links between devices are PCIe


@dataclass(frozen=True, eq=False, kw_only=True)
class Link(Part):
    """A connection between two parts; the bandwidth is of ONE direction."""

    bandwidth_bytes_per_s: Fact = fact("B/s", "payload-independent bandwidth, one direction")
    transfers_per_s: Fact | None = fact("1/s", "transfer rate of one lane", False)
    lanes: Fact | None = fact("1", "lanes or links", False)
    encoding: Fact | None = fact("1", "share of transferred bits that carry data", False)
    latency_s: Fact | None = fact("s", "time of the smallest message, one way", False)


@dataclass(frozen=True, eq=False, kw_only=True)
class Cluster(Part):
    """A node or instance by name: how many of which device, in which host."""

    device: str = word("device file")
    host: str = word("host file")
    device_count: Fact = fact("1", "devices in the node")
    interconnect: str = word("link file that joins its devices, where it is not the device's own", False)
    network: str = word("link file of one network port to other nodes", False)
    network_ports: Fact | None = fact("1", "network ports of the node", False)


@dataclass(frozen=True, eq=False)
class Fleet:
    """What a question runs on: `count` like devices in one node, joined by `interconnect`, fed by `host`.

    `cxl` is memory the host reaches over a link of its own, all of it together. A node by name is a `cluster`; its
    `network` is one of its `network_ports` to other nodes. `memory_bytes` is what the asker said of a machine whose
    memory the devices share.
    """

    device: Device
    count: int
    interconnect: Link
    host_link: Link
    host: Host | None
    host_memory_bytes: float | None
    free_bytes: float | None = None
    storage: Storage | None = None
    cxl: Storage | None = None
    cluster: str = ""
    network: Link | None = None
    network_ports: int = 0
    memory_bytes: float | None = None

    def usable_bytes(self) -> float:
        """Bytes a process may count on per device: what is free now where that was read, else what it may address."""
        return self.device.addressable_bytes() if self.free_bytes is None else self.free_bytes

    def network_bytes_per_s(self) -> float:
        """What all network ports of the node carry together, one direction; 0 where none is known."""
        return 0.0 if self.network is None else self.network_ports * self.network.bandwidth_bytes_per_s.value

    @property
    def label(self) -> str:
        """`2xh100-sxm`, or just the device for one of it."""
        return self.device.key if self.count == 1 else f"{self.count}x{self.device.key}"

    def sized(self, count: int) -> Fleet:
        """The same fleet with another number of devices; a node by name it is then no longer."""
        return dataclasses.replace(self, count=count, cluster=self.cluster if count == self.count else "")


class Attribute(NamedTuple):
    """One row of a schema table."""

    name: str
    type: str
    unit: str
    required: bool
    meaning: str


def attributes(part: type[Part]) -> tuple[Attribute, ...]:
    """The schema of a hardware file as a table, read off the dataclass fields."""
    rows = []
    for f in dataclasses.fields(part):
        if f.metadata.get("type") != "internal":
            m = f.metadata
            rows.append(Attribute(f.name, m["type"], m.get("unit", "-"), m.get("required", False), m["meaning"]))
    return tuple(rows)
