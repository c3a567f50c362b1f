"""Public kernel measurements, read in place from the `aiconfigurator-core` wheel (extra `silicon`).

Each table becomes one of our own operator tables plus the measured seconds, so that FLOPs and bytes come from the
same functions that price a question. Rows are grouped into sites (a weight shape, a head configuration): fitting
and judging never share a site.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..dtypes import DType
from ..errors import SurroundingsError
from ..simulator.estimate import Array
from ..simulator.lowering.attention import NO_WINDOW
from ..simulator.operators import Attention, Collective, Experts, Gemm, Kernel, KernelName, Table

if TYPE_CHECKING:
    import pandas as pd

SOURCE = "PyPI wheel aiconfigurator-core 0.12.0 (Apache-2.0), systems/data"
MAX_ROWS = 40_000  # per table; a seeded sample beyond


@dataclass(frozen=True)
class SiliconDevice:
    """A device of the tables with the datasheet numbers its fractions will refer to."""

    key: str
    folder: str
    architecture: str
    architecture_class: str
    engine: str
    peak: dict[DType, float]
    bandwidth_bytes_per_s: float
    link_bytes_per_s: float


DEVICES = (
    SiliconDevice(
        "h200", "h200_sxm", "hopper", "wgmma", "vllm", {DType.BF16: 989.4e12, DType.FP8: 1978.9e12}, 4.8e12, 450e9
    ),
    SiliconDevice(
        "h100-sxm", "h100_sxm", "hopper", "wgmma", "vllm", {DType.BF16: 989.4e12, DType.FP8: 1978.9e12}, 3.35e12, 450e9
    ),
    SiliconDevice("a100-80gb", "a100_sxm", "ampere", "mma.sync", "sglang", {DType.BF16: 312e12}, 2.039e12, 300e9),
    SiliconDevice(
        "l40s", "l40s", "ada", "mma.sync", "vllm", {DType.BF16: 362.05e12, DType.FP8: 733e12}, 864e9, 31.508e9
    ),
)


@dataclass(frozen=True, eq=False)
class Measured:
    """An operator table with its measured times (seconds) and the site each row belongs to."""

    table: Table
    seconds: Array
    site: Array
    version: str
    file: str


def root() -> Path:
    """The folder of the measurement tables, or the remedy when the extra is missing."""
    try:
        import aiconfigurator_core
        import pandas  # noqa: F401
    except ImportError as error:
        raise SurroundingsError(
            f"the public measurement tables are not installed ({error.name})",
            remedy="pip install 'roofplan[silicon]'",
        ) from None
    return Path(str(aiconfigurator_core.__file__)).parent / "systems" / "data"


def _newest(folder: Path, name: str) -> Path | None:
    """The table of the newest version below an engine's folder."""

    def order(path: Path) -> list[int]:
        return [int(part) for part in path.parent.name.replace("rc", ".").split(".") if part.isdigit()]

    return max(folder.glob(f"*/{name}"), key=order, default=None)


def _read(device: SiliconDevice, family: str, engine: str, name: str) -> tuple[pd.DataFrame, Path] | None:
    import pandas as pd

    path = _newest(root() / device.folder / family / engine, name)
    if path is None:
        return None
    frame = pd.read_parquet(path)
    frame = frame[frame["latency"] > 0]
    return frame, path


def _finish(frame: pd.DataFrame, site: list[str], path: Path, table: Table) -> Measured:
    ids = frame.groupby(site, sort=True).ngroup().to_numpy(float)
    relative = str(path.relative_to(root()))
    return Measured(table, frame["latency"].to_numpy(float) * 1e-3, ids, path.parent.name, relative)


def _limited(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.sample(MAX_ROWS, random_state=0) if len(frame) > MAX_ROWS else frame


def _labels(frame: pd.DataFrame, what: str) -> dict[str, object]:
    n = len(frame)
    return {"label": (what,) * n, "layer": ("table",) * n, "count": np.ones((n, 1))}


def load_gemm(device: SiliconDevice, engine: str, dtype: DType) -> Measured | None:
    """Dense GEMMs; bf16 through the framework's linear layer, fp8 through its scaled product."""
    found = _read(device, "gemm", engine, "gemm_perf.parquet")
    if found is None:
        return None
    frame, path = found
    frame = _limited(frame[frame["gemm_dtype"] == {DType.BF16: "bfloat16", DType.FP8: "fp8"}[dtype]])
    if frame.empty:
        return None
    m, n, k = (frame[c].to_numpy(float) for c in ("m", "n", "k"))
    element = np.full_like(m, dtype.bytes)
    table = Gemm(
        **_labels(frame, "gemm"),  # type: ignore[arg-type]
        kernel=Kernel(KernelName.GEMM, dtype),
        m=m,
        n=n,
        k=k,
        weight_bytes=n * k * element,
        activation_bytes=element,
        output_bytes=np.full_like(m, 2.0),
    )
    return _finish(frame, ["n", "k"], path, table)


def load_attention(device: SiliconDevice, engine: str, dtype: DType, phase: KernelName) -> Measured | None:
    """Prefill or decode attention without windows; the KV cache format is the kernel's dtype."""
    prefill = phase is KernelName.ATTENTION_PREFILL
    found = _read(device, "attention", engine, f"{'context' if prefill else 'generation'}_attention_perf.parquet")
    if found is None:
        return None
    frame, path = found
    if "window_size" not in frame:
        frame = frame.assign(window_size=0)
    wanted = (frame["window_size"] == 0) & (
        frame["kv_cache_dtype"] == {DType.BF16: "bfloat16", DType.FP8: "fp8"}[dtype]
    )
    frame = _limited(frame[wanted & (frame["attn_dtype"] == "bfloat16")])
    if frame.empty:
        return None
    new = frame["isl"].to_numpy(float)
    kv_heads = frame["num_key_value_heads"].to_numpy(float)
    kv_heads = np.where(kv_heads > 0, kv_heads, frame["num_heads"].to_numpy(float))
    table = Attention(
        **_labels(frame, "attention"),  # type: ignore[arg-type]
        kernel=Kernel(phase, dtype),
        sequences=frame["batch_size"].to_numpy(float),
        new_tokens=new,
        kv_tokens=new + frame["step"].to_numpy(float),
        heads=frame["num_heads"].to_numpy(float),
        kv_heads=kv_heads,
        head_dim=frame["head_dim"].to_numpy(float),
        window=np.full_like(new, NO_WINDOW),
        kv_bytes=np.full_like(new, dtype.bytes),
        activation_bytes=np.full_like(new, 2.0),
    )
    return _finish(frame, ["num_heads", "num_key_value_heads", "head_dim"], path, table)


def load_experts(device: SiliconDevice, engine: str, kernel: Kernel) -> Measured | None:
    """Fused mixture-of-experts layers without expert parallelism, power-law routing."""
    found = _read(device, "moe", engine, "moe_perf.parquet")
    if found is None:
        return None
    frame, path = found
    dtype = kernel.dtype
    names = {DType.BF16: ("bfloat16",), DType.FP8: ("fp8_block",), DType.INT4: ("int4_wo",)}[dtype]
    frame = frame[~frame["kernel_source"].str.contains("flashinfer_cutlass")]  # another kernel under the same dtype
    skewed = frame["distribution"] == "power_law_1.01"
    frame = _limited(frame[frame["moe_dtype"].isin(names) & skewed & (frame["moe_ep_size"] == 1)])
    if frame.empty:
        return None
    tokens, top_k = frame["num_tokens"].to_numpy(float), frame["topk"].to_numpy(float)
    hidden = frame["hidden_size"].to_numpy(float)
    width = frame["inter_size"].to_numpy(float) / frame["moe_tp_size"].to_numpy(float)
    weight = {DType.BF16: 2.0, DType.FP8: 1.0, DType.INT4: 4.15625 / 8}[dtype]
    table = Experts(
        **_labels(frame, "experts"),  # type: ignore[arg-type]
        kernel=kernel,
        tokens=tokens,
        hidden=hidden,
        intermediate=width,
        top_k=top_k,
        experts=frame["num_experts"].to_numpy(float),
        ranks=np.ones_like(tokens),
        routing_alpha=np.full_like(tokens, 1.01),
        expert_bytes=3 * hidden * width * weight,
        activation_bytes=np.full_like(tokens, 2.0),
    )
    return _finish(frame, ["hidden_size", "inter_size", "topk", "num_experts", "moe_tp_size"], path, table)


def load_collective(device: SiliconDevice, engine: str, dtype: DType, name: KernelName) -> Measured | None:
    """All-reduce: the faster of NCCL and the engine's own kernel at each size, as engines choose; all-gather: NCCL."""
    import pandas as pd

    found = _read(device, "comm", "nccl", "nccl_perf.parquet")
    if found is None:
        return None
    frame, path = found
    op = {KernelName.ALL_REDUCE: "all_reduce", KernelName.ALL_GATHER: "all_gather"}[name]
    frame = frame[(frame["op_name"] == op) & (frame["nccl_dtype"] == "half")]
    frame = frame[["num_gpus", "message_size", "latency"]]
    if name is KernelName.ALL_REDUCE:
        own = _read(device, "comm", engine, "custom_allreduce_perf.parquet")
        if own is not None:
            graph = own[0][own[0]["kernel_source"].str.contains("graph")]
            frame = pd.concat([frame, graph[["num_gpus", "message_size", "latency"]]])
        frame = frame.groupby(["num_gpus", "message_size"], as_index=False)["latency"].min()
    if frame.empty:
        return None
    table = Collective(
        **_labels(frame, op),  # type: ignore[arg-type]
        kernel=Kernel(name, dtype),
        message_bytes=frame["message_size"].to_numpy(float) * 2.0,
        ranks=frame["num_gpus"].to_numpy(float),
    )
    return _finish(frame, ["message_size"], path, table)


def load(device: SiliconDevice, engine: str, kernel: Kernel) -> Measured | None:
    """The measurements of a kernel on a device, None where the tables have none."""
    match kernel.name:
        case KernelName.GEMM:
            return load_gemm(device, engine, kernel.dtype)
        case KernelName.ATTENTION_PREFILL | KernelName.ATTENTION_DECODE:
            return load_attention(device, engine, kernel.dtype, kernel.name)
        case KernelName.EXPERTS | KernelName.EXPERTS_WEIGHT_ONLY:
            return load_experts(device, engine, kernel)
        case KernelName.ALL_REDUCE | KernelName.ALL_GATHER:
            return load_collective(device, engine, kernel.dtype, kernel.name)
    return None
