"""Apple's chips through sysctl: the chip's name, the machine's memory and what Metal may take of it."""

from __future__ import annotations

from .. import names
from ..device import Device
from ..load import load
from ..unified import with_memory
from .common import Detected, Seen, Unlisted, together
from .system import System


def find(system: System, host_memory_bytes: float | None) -> Detected | Unlisted | None:
    """The GPU of this Mac; one with an Intel processor has none that is listed."""
    if system.platform != "darwin":
        return None
    brand, memory = system.sysctl_text("machdep.cpu.brand_string"), system.sysctl_number("hw.memsize")
    if not brand.startswith("Apple") or not memory:
        return None
    files = names.apple(brand)
    if not files:
        return Unlisted(f"{brand} is not listed: describe it with `roofplan hw new mine --like m4-max`")
    device = with_memory(load(Device, files[0]), float(memory))
    wired = (system.sysctl_number("iogpu.wired_limit_mb") or 0) * 2.0**20  # 0: as delivered
    limit = min(wired, float(memory)) if wired else device.addressable_bytes()
    how = "iogpu.wired_limit_mb" if wired else "as delivered; `sysctl iogpu.wired_limit_mb` raises it"
    notes = (
        f"the GPU may use {limit / 2**30:.1f} of {memory / 2**30:.0f} GiB ({how}), less what other programs hold",
        f"{brand} is taken to have all {device.sm_count.value:.0f} GPU cores it was sold with"
        if device.sm_count
        else "",
    )
    return together([Seen(device, limit, tuple(n for n in notes if n))], host_memory_bytes)
