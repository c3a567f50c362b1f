"""Which calibration answers for a kernel on a device, and what that answer is worth.

In order: the device's own with the engine that is asked about (calibrated); the device's own with another engine, then
the nearest relative's within its class of matrix instructions: the same architecture first, then the same engine, then
the closest ratio of bytes to FLOPs (transferred); the pooled parameters of all devices (datasheet). A kernel nobody has
measured borrows the parameters of its nearest kin, by the table below, and is then only assumed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from ..dtypes import DType
from ..hwspecs.device import SWITCHED_BYTES_PER_S, Device, Fleet
from ..simulator.calibration import Basis, Calibration, Denominators, Resolved
from ..simulator.estimate import Tier
from ..simulator.operators import Kernel, KernelName
from . import store

ANY_DEVICE = "any"
LIBRARIES = ("nccl",)
ENGINES = ("vllm", "sglang", "trtllm")
RUNTIMES = ("llama.cpp",)  # measured as a whole on many devices, not kernel by kernel on a few
SERVERS = "servers"  # the serving engines on devices whose kernels nobody publishes (AMD): constants for all of them
SAME_DATASHEET = 0.05  # a file whose numbers differ by more from those a calibration was fitted with is another device
ASSUMED_LOG_SD = 0.3  # added to a kernel that borrows another kernel's parameters: no rows to derive it from

K, D = KernelName, DType
KIN: Mapping[Kernel, Kernel] = {
    Kernel(K.GEMM, D.FP16): Kernel(K.GEMM, D.BF16),
    Kernel(K.GEMM, D.FP32): Kernel(K.GEMM, D.BF16),
    Kernel(K.GEMM_WEIGHT_ONLY, D.FP4): Kernel(K.GEMM_WEIGHT_ONLY, D.INT4),
    Kernel(K.EXPERTS, D.FP16): Kernel(K.EXPERTS, D.BF16),
    Kernel(K.EXPERTS, D.FP32): Kernel(K.EXPERTS, D.BF16),
    Kernel(K.EXPERTS, D.INT8): Kernel(K.EXPERTS, D.FP8),
    Kernel(K.EXPERTS_WEIGHT_ONLY, D.INT8): Kernel(K.EXPERTS, D.BF16),
    Kernel(K.ATTENTION_PREFILL, D.FP16): Kernel(K.ATTENTION_PREFILL, D.BF16),
    Kernel(K.ATTENTION_PREFILL, D.INT8): Kernel(K.ATTENTION_PREFILL, D.FP8),
    Kernel(K.ATTENTION_DECODE, D.FP16): Kernel(K.ATTENTION_DECODE, D.BF16),
    Kernel(K.ATTENTION_DECODE, D.INT8): Kernel(K.ATTENTION_DECODE, D.FP8),
    **{
        Kernel(name, D.INT4): Kernel(name, D.FP8)
        for name in (K.ATTENTION_PREFILL, K.ATTENTION_DECODE, K.MLA_PREFILL, K.MLA_DECODE)
    },
    **{Kernel(name, D.FP16): Kernel(name, D.BF16) for name in (K.MLA_PREFILL, K.MLA_DECODE)},
    **{Kernel(name, D.INT8): Kernel(name, D.FP8) for name in (K.MLA_PREFILL, K.MLA_DECODE)},
    Kernel(K.ATTENTION_PREFILL, D.FP32): Kernel(K.ATTENTION_PREFILL, D.BF16),
    **{Kernel(K.CONVOLUTION, dtype): Kernel(K.GEMM, D.BF16) for dtype in (D.BF16, D.FP16, D.TF32, D.FP32)},
    **{Kernel(name, D.FP16): Kernel(name, D.BF16) for name in (K.ELEMENTWISE, K.ALL_REDUCE, K.ALL_GATHER, K.SEND)},
    **{Kernel(name, D.FP32): Kernel(name, D.BF16) for name in (K.ELEMENTWISE, K.ALL_REDUCE, K.ALL_GATHER, K.SEND)},
    Kernel(K.SEND, D.BF16): Kernel(K.ALL_GATHER, D.BF16),
}
WEIGHT_ONLY = (K.GEMM_WEIGHT_ONLY, K.EXPERTS_WEIGHT_ONLY)
COLLECTIVES = (K.ALL_REDUCE, K.ALL_GATHER, K.REDUCE_SCATTER, K.ALL_TO_ALL, K.SEND)
SAME_ARITHMETIC = {(D.FP16, D.BF16)}  # kin by name only: the same kernel in the other 16-bit format


@dataclass(frozen=True, eq=False)
class Calibrations:
    """All calibrations at hand, asked for one fleet."""

    fleet: Fleet
    known: tuple[Calibration | store.Entry, ...]
    engine: str = "vllm"

    @cached_property
    def _by_kernel(self) -> dict[Kernel, list[Calibration | store.Entry]]:
        groups: dict[Kernel, list[Calibration | store.Entry]] = {}
        for calibration in self.known:
            groups.setdefault(calibration.kernel, []).append(calibration)
        return groups

    @cached_property
    def _answers(self) -> dict[Kernel, Resolved]:
        return {}

    def on(self, fleet: Fleet) -> Calibrations:
        """The same calibrations asked for another fleet."""
        return Calibrations(fleet, self.known, self.engine)

    def resolve(self, kernel: Kernel) -> Resolved:
        """The best calibration for the kernel on this fleet's device; remembered, and always found."""
        if kernel not in self._answers:
            self._answers[kernel] = self._resolve(kernel)
        return self._answers[kernel]

    def _resolve(self, kernel: Kernel) -> Resolved:
        found = self._runtime(kernel) or self._direct(kernel)
        if found is not None:
            return found
        kin = KIN.get(kernel)
        if kin is None:
            raise LookupError(f"no calibration and no kin for kernel {kernel}")
        borrowed = self.resolve(kin)
        if kernel.name is kin.name and (kernel.dtype, kin.dtype) in SAME_ARITHMETIC:
            return borrowed
        own = math.hypot(borrowed.own_log_sd, ASSUMED_LOG_SD)
        reason = f"{kernel}: not measured anywhere, priced with the fractions of {borrowed.calibration.id}"
        return Resolved(borrowed.calibration, Tier.ASSUMED, borrowed.shared_log_sd, own, reason)

    def _runtime(self, kernel: Kernel) -> Resolved | None:
        """Constants of a runtime on a vendor's devices: where it is asked for; on a CPU for every engine."""
        device = self.fleet.device
        if device.vendor == "cpu" and self._own(kernel):  # somebody calibrated this very processor
            return None
        key = f"{ANY_DEVICE}-{device.architecture_class if device.vendor == 'cpu' else device.vendor}"
        entries = [e for e in self._by_kernel.get(kernel, []) if e.device == key]
        runtime = self.engine if self.engine in RUNTIMES else SERVERS
        found = [c for c in _read(entries) if c.engine == runtime or device.vendor == "cpu"]
        if not found:
            return None
        best = found[0]
        reason = f"{kernel}: constants of {best.engine} on {device.vendor} devices, fitted on whole runs ({best.id})"
        return Resolved(best, Tier.TRANSFERRED, best.transfer_log_sd, best.transfer_own_log_sd, reason)

    def _direct(self, kernel: Kernel) -> Resolved | None:
        group = self._by_kernel.get(kernel, [])
        device = self.fleet.device
        if own := self._own(kernel):  # earlier places win
            best = min(own, key=lambda c: (self._other_engine(c), c.engine != self.engine, c.engine != ENGINES[0]))
            if best.basis is Basis.ASSUMED:
                return Resolved(
                    best, Tier.ASSUMED, best.shared_log_sd, best.own_log_sd, f"{kernel}: assumed ({best.id})"
                )
            if self._other_engine(best) < 3:
                reason = f"{kernel}: calibrated on {best.id}"
                return Resolved(best, Tier.CALIBRATED, best.shared_log_sd, best.own_log_sd, reason)
            reason = f"{kernel}: no measurement of {self.engine} on {device.key}, that of another engine ({best.id})"
            return Resolved(best, Tier.TRANSFERRED, best.transfer_log_sd, best.transfer_own_log_sd, reason)
        candidates = [c for c in _read(group) if not c.device.startswith(f"{ANY_DEVICE}-")]
        relatives = [c for c in candidates if c.device != ANY_DEVICE and _related(c, device, self.fleet)]
        if relatives:
            best = min(relatives, key=lambda c: self._distance(c, kernel))
            reason = f"{kernel}: nearest relative of {device.key} is {best.device} ({best.id})"
            return Resolved(best, Tier.TRANSFERRED, best.transfer_log_sd, best.transfer_own_log_sd, reason)
        pooled = [c for c in candidates if c.device == ANY_DEVICE]
        if pooled:
            best = pooled[0]
            tier = Tier.DATASHEET if best.basis is Basis.POOLED else Tier.ASSUMED
            what = "pooled fractions of all devices" if best.basis is Basis.POOLED else "assumed constants"
            reason = f"{kernel}: datasheet and {what} ({best.id})"
            return Resolved(best, tier, best.transfer_log_sd, best.transfer_own_log_sd, reason)
        return None

    def _own(self, kernel: Kernel) -> list[Calibration]:
        """The calibrations of the kernel that were fitted on this very device."""
        mine = (e for e in self._by_kernel.get(kernel, []) if e.device == self.fleet.device.key)
        return [c for c in _read(mine) if self._same_datasheet(c, kernel)]

    def _same_datasheet(self, calibration: Calibration, kernel: Kernel) -> bool:
        """Whether the device's numbers are those the calibration's fractions refer to: a key alone proves nothing."""
        d = calibration.denominators
        if calibration.kernel.name in (*COLLECTIVES, K.HOST_COPY):
            link = self.fleet.host_link if calibration.kernel.name is K.HOST_COPY else self.fleet.interconnect
            pairs = [(link.bandwidth_bytes_per_s.value, d.link_bytes_per_s)]
        else:
            peak = self.fleet.device.peak_flops_per_s(kernel.arithmetic).value
            bandwidth = self.fleet.device.bandwidth_bytes_per_s.value
            pairs = [(peak, d.peak_flops_per_s), (bandwidth, d.bandwidth_bytes_per_s)]
        return all(abs(here / there - 1) <= SAME_DATASHEET for here, there in pairs)

    def _other_engine(self, calibration: Calibration) -> int:
        """0 for a user's own kernels, 1 for the engine asked about, 2 for what every engine calls, 3 for others."""
        if calibration.engine not in (*ENGINES, *LIBRARIES):
            return 0
        return 1 if calibration.engine == self.engine else 2 if calibration.engine in LIBRARIES else 3

    def _distance(self, calibration: Calibration, kernel: Kernel) -> tuple[bool, int, float]:
        """Another architecture, another engine, then |log| of the ratio of bytes per FLOP of the two devices."""
        device, d = self.fleet.device, calibration.denominators
        here = device.bandwidth_bytes_per_s.value / device.peak_flops_per_s(kernel.arithmetic).value
        ratio = here / (d.bandwidth_bytes_per_s / d.peak_flops_per_s)
        other = calibration.architecture != device.architecture
        return other, self._other_engine(calibration), abs(math.log(ratio))


def _read(entries: Iterable[Calibration | store.Entry]) -> list[Calibration]:
    return [e if isinstance(e, Calibration) else e.calibration() for e in entries]


def _related(calibration: Calibration, device: Device, fleet: Fleet) -> bool:
    """Same matrix instructions; for collectives also the same kind of link (switched NVLink or PCIe).

    Weight-only products use the older instructions on every NVIDIA device: widened weights come from registers.
    """
    same = kindred(calibration.architecture_class, device.architecture_class)
    if not same and not (calibration.kernel.name in WEIGHT_ONLY and device.vendor == "nvidia"):
        return False
    link = fleet.interconnect.bandwidth_bytes_per_s.value
    return may_lend(calibration, calibration.denominators._replace(link_bytes_per_s=link))


def kindred(one: str, other: str) -> bool:
    """Whether kernels of two classes of matrix instructions share their latencies: Blackwell's extend Hopper's."""
    return one == other or {one, other} == {"wgmma", "tcgen05"}


def may_lend(calibration: Calibration, target: Denominators) -> bool:
    """Collectives over switched NVLink say nothing about PCIe, nor the other way round."""
    fast, here = (d.link_bytes_per_s > SWITCHED_BYTES_PER_S for d in (calibration.denominators, target))
    return fast == here or calibration.kernel.name not in COLLECTIVES
