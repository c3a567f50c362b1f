"""Public kernel measurements, read in place from the `aiconfigurator-core` wheel (extra `silicon`).

Each series (one kernel of one engine version on one device) becomes one of our own operator tables plus the measured
seconds, so that work and times come from the same functions that price a question. Rows are grouped into sites (a
weight shape, a head configuration): fitting and judging never share a site. `catalogue` lists every series there is,
fitted or left out, with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..dtypes import DType
from ..errors import SurroundingsError
from ..simulator.estimate import Array
from ..simulator.operators import (
    NO_WINDOW,
    Attention,
    Collective,
    Elementwise,
    Experts,
    Gemm,
    Kernel,
    KernelName,
    LatentAttention,
    Table,
)
from ..simulator.workload.routing import BALANCED

if TYPE_CHECKING:
    import pandas as pd

SOURCE = "PyPI wheel aiconfigurator-core 0.12.0 (Apache-2.0), systems/data"
MAX_ROWS = 40_000  # per series; a seeded sample beyond
FOLDERS = {
    "h200": "h200_sxm",
    "h100-sxm": "h100_sxm",
    "b200": "b200_sxm",
    "a100-80gb": "a100_sxm",
    "l40s": "l40s",
    "rtx-pro-6000": "rtx_pro_6000_server",
}
HELD_OUT_FOLDERS = ("b300", "gb200", "gb300", "b60")  # the hold-out of the forms: looked at once a release

K, D = KernelName, DType
GEMM_KERNELS = {
    "bfloat16": Kernel(K.GEMM, D.BF16),
    "fp8": Kernel(K.GEMM, D.FP8),
    "fp8_block": Kernel(K.GEMM_BLOCK_SCALED, D.FP8),
    "nvfp4": Kernel(K.GEMM, D.FP4),
    "sq": Kernel(K.GEMM, D.INT8),
    "int8_wo": Kernel(K.GEMM_WEIGHT_ONLY, D.INT8),
    "int4_wo": Kernel(K.GEMM_WEIGHT_ONLY, D.INT4),
}
EXPERT_KERNELS = {
    "bfloat16": Kernel(K.EXPERTS, D.BF16),
    "fp8": Kernel(K.EXPERTS, D.FP8),
    "fp8_block": Kernel(K.EXPERTS_BLOCK_SCALED, D.FP8),
    "nvfp4": Kernel(K.EXPERTS, D.FP4),
    "int4_wo": Kernel(K.EXPERTS_WEIGHT_ONLY, D.INT4),
    "w4a16_mxfp4": Kernel(K.EXPERTS_WEIGHT_ONLY, D.FP4),
}
WEIGHT_BYTES = {D.BF16: 2.0, D.FP8: 1.0, D.INT8: 1.0, D.FP4: 4.5 / 8, D.INT4: 4.15625 / 8}
EXPERT_WEIGHT_BYTES = {**WEIGHT_BYTES, D.FP4: 4.25 / 8}  # mxfp4: one 8-bit scale for 32 weights
ALPHA = {"balanced": BALANCED, "power_law_1.01": 1.01, "power_law_1.2": 1.2}
COLLECTIVES = {
    "all_reduce": K.ALL_REDUCE,
    "all_gather": K.ALL_GATHER,
    "reduce_scatter": K.REDUCE_SCATTER,
    "alltoall": K.ALL_TO_ALL,
}
UNMODELLED = {
    "encoder_attention": "no causal mask: encoders are not lowered yet",
    "kda": "linear attention is not lowered yet",
    "linear_attention": "state-space models and linear attention are not lowered yet",
    "mhc": "no operator class of ours",
    "mla_bmm": "priced by the GEMM model; no series of its own",
    "mlp": "a module of several kernels, not a kernel",
    "msa": "sparse attention is not lowered yet",
    "sparse_attention": "sparse attention is not lowered yet",
    "dsa": "sparse attention is not lowered yet",
}


class Series(NamedTuple):
    """One kernel of one engine version on one device, and why it is left out where it is."""

    device: str
    engine: str
    version: str
    file: str
    kernel: Kernel | None
    source: str
    label: str
    rows: int
    left_out: str | None

    @property
    def name(self) -> str:
        """Readable key."""
        return f"{self.device}/{self.kernel or self.label}/{self.engine}-{self.version}/{self.source}"


@dataclass(frozen=True, eq=False)
class Measured:
    """An operator table with its measured times (seconds) and the site each row belongs to."""

    table: Table
    seconds: Array
    site: Array


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


@lru_cache(maxsize=8)
def _frame(file: str) -> pd.DataFrame:
    import pandas as pd

    frame = pd.read_parquet(root() / file)
    if "latency" not in frame:
        return frame.assign(latency=np.nan)
    frame = frame[frame["latency"] > 0]
    if "kernel_source" not in frame:
        frame = frame.assign(kernel_source="default")
    return frame


def _order(version: str) -> list[int]:
    return [int(part) for part in version.replace("rc", ".").replace("post", ".").split(".") if part.isdigit()]


@lru_cache(maxsize=16)
def catalogue(device: str) -> tuple[Series, ...]:
    """Every series of a device, fitted or not, in a fixed order."""
    folder = FOLDERS.get(device, device)
    found: list[Series] = []
    for path in sorted((root() / folder).glob("*/*/*/*.parquet")):
        found += _of_file(device, str(path.relative_to(root())))
    return tuple(_main_kernels(found))


def of_file(device: str, file: str) -> list[Series]:
    """The series of one table, judged among themselves: what a calibration names, without reading the others."""
    if not (root() / file).is_file():
        return []
    return _main_kernels(_of_file(device, file))


def _of_file(device: str, file: str) -> list[Series]:
    _, family, engine, version, name = Path(file).parts
    return [
        Series(
            device, engine, version, file, kernel, source, label, rows, _left_out(family, name, label, source, kernel)
        )
        for label, source, kernel, rows in _groups(file, family, name)
    ]


def _label_columns(family: str, name: str) -> tuple[str, ...]:
    """The columns whose values, joined by slashes, label a series of a table; none in a family without a model."""
    match family:
        case "gemm":
            return ("gemm_dtype",)
        case "moe":
            return ("moe_dtype",)
        case "attention":
            return ("attn_dtype", "kv_cache_dtype")
        case "mla":
            return ("mla_dtype", "kv_cache_dtype")
        case "quantize":
            return ("op_name", "quant_dtype")
        case "comm":
            return ("op_name", "nccl_dtype") if "nccl" in name else ("op_name",)
    return ()


def _groups(file: str, family: str, name: str) -> Iterator[tuple[str, str, Kernel | None, int]]:
    """(label, kernel source, kernel, rows) of a table's groups; unmodelled families are one group."""
    frame = _frame(file)
    columns = _label_columns(family, name)
    if not columns or not all(c in frame for c in columns) or frame["latency"].isna().all():
        yield family, "-", None, len(frame)
        return
    for key, rows in frame.groupby([*columns, "kernel_source"], sort=True).size().items():
        *label, source = key
        yield "/".join(map(str, label)), str(source), _kernel(family, name, tuple(map(str, label))), int(rows)


def _kernel(family: str, name: str, label: tuple[str, ...]) -> Kernel | None:
    match family:
        case "gemm":
            return GEMM_KERNELS.get(label[0])
        case "moe" if name == "moe_perf.parquet":
            return EXPERT_KERNELS.get(label[0])
        case "attention":
            which = K.ATTENTION_PREFILL if name.startswith("context") else K.ATTENTION_DECODE
            return Kernel(which, D.FP8 if label[1] == "fp8" else D.BF16)
        case "mla" if name in ("context_mla_perf.parquet", "generation_mla_perf.parquet"):
            which = K.MLA_PREFILL if name.startswith("context") else K.MLA_DECODE
            return Kernel(which, D.FP8 if label[1] == "fp8" else D.BF16)
        case "comm" if label[0] in COLLECTIVES:
            return Kernel(COLLECTIVES[label[0]], D.BF16)
        case "quantize" if label[0] == "scale_matrix":
            return Kernel(K.ELEMENTWISE, D.BF16)
    return None


def _left_out(family: str, name: str, label: str, source: str, kernel: Kernel | None) -> str | None:
    """Why a series cannot be fitted; None where it can."""
    if family in UNMODELLED:
        return UNMODELLED[family]
    if "wideep" in name or "module" in name or "megamoe" in name:
        return "a module of several kernels, not a kernel"
    if "a2a" in name:
        return "all-to-all with expert placement is not lowered yet"
    if kernel is None:
        return "no weight format or operator of ours runs it"
    if "nongated" in source:
        return "two matrices instead of three: no model of ours has it"
    if "eager" in source:
        return "not captured in a graph: the host's launch dominates"
    if family == "quantize" and source == "sglang":
        return "several launches: 7 us where one takes 1 to 2"
    if label.endswith("int8") and family == "comm":
        return "the same bytes as the 16-bit rows"
    return None


def _main_kernels(series: list[Series]) -> list[Series]:
    """One series a kernel and engine: the newest version's with the most rows; the others are left out."""
    best: dict[tuple[str, Kernel], Series] = {}
    for s in series:
        if s.left_out is None and s.kernel is not None:
            key = (s.engine, s.kernel)
            best[key] = max(best.get(key, s), s, key=lambda x: (_order(x.version), x.rows))
    return [s if s.left_out or s.kernel is None else _beside(s, best[s.engine, s.kernel]) for s in series]


def _beside(series: Series, main: Series) -> Series:
    if series == main:
        return series
    older = series.version != main.version
    why = f"older than {main.version}" if older else f"another kernel behind the label of {main.source} ({main.label})"
    return series._replace(left_out=why)


def load(series: Series) -> Measured:
    """The measurements of a fitted series."""
    assert series.kernel is not None
    frame = _frame(series.file)
    _, family, _, _, name = Path(series.file).parts
    frame = frame[frame["kernel_source"] == series.source]
    for column, value in zip(_label_columns(family, name), series.label.split("/"), strict=True):
        frame = frame[frame[column] == value]
    if len(frame) > MAX_ROWS:
        frame = frame.sample(MAX_ROWS, random_state=0)
    table, site = _READERS[family](frame, series.kernel)
    ids = frame.groupby(site, sort=True).ngroup().to_numpy(float)
    return Measured(table, frame["latency"].to_numpy(float) * 1e-3, ids)


def _common(frame: pd.DataFrame, kernel: Kernel) -> dict[str, Any]:
    n = len(frame)
    return {"label": ("table",) * n, "layer": ("table",) * n, "count": np.ones((n, 1)), "kernel": kernel}


def _numbers(frame: pd.DataFrame, *columns: str) -> Iterator[Array]:
    return (frame[c].to_numpy(float) for c in columns)


def _gemm(frame: pd.DataFrame, kernel: Kernel) -> tuple[Table, list[str]]:
    """Dense products; activations are as wide as the matrix units' input."""
    m, n, k = _numbers(frame, "m", "n", "k")
    narrow = kernel.name is not K.GEMM_WEIGHT_ONLY
    activation = np.full_like(m, kernel.dtype.bytes if narrow else 2.0)
    weight_bytes = n * k * WEIGHT_BYTES[kernel.dtype]
    table = Gemm(
        **_common(frame, kernel),
        m=m,
        n=n,
        k=k,
        weight_bytes=weight_bytes,
        activation_bytes=activation,
        output_bytes=np.full_like(m, 2.0),
    )
    return table, ["n", "k"]


def _attention(frame: pd.DataFrame, kernel: Kernel) -> tuple[Table, list[str]]:
    """Causal attention, with and without a window."""
    new, past, heads, kv_heads = _numbers(frame, "isl", "step", "num_heads", "num_key_value_heads")
    window = frame["window_size"].to_numpy(float) if "window_size" in frame else np.zeros_like(new)
    table = Attention(
        **_common(frame, kernel),
        sequences=frame["batch_size"].to_numpy(float),
        new_tokens=new,
        kv_tokens=new + past,
        heads=heads,
        kv_heads=np.where(kv_heads > 0, kv_heads, heads),
        head_dim=frame["head_dim"].to_numpy(float),
        window=np.where(window > 0, window, NO_WINDOW),
        kv_bytes=np.full_like(new, kernel.dtype.bytes),
        activation_bytes=np.full_like(new, 2.0),
    )
    return table, ["num_heads", "num_key_value_heads", "head_dim"]


def _latent(frame: pd.DataFrame, kernel: Kernel) -> tuple[Table, list[str]]:
    """DeepSeek's latent attention: 512 + 64 cached elements, heads of 128 + 64 keys and 128 values."""
    new, past, heads = _numbers(frame, "isl", "step", "num_heads")

    def every(value: float) -> Array:
        return np.full_like(new, value)

    table = LatentAttention(
        **_common(frame, kernel),
        sequences=frame["batch_size"].to_numpy(float),
        new_tokens=new,
        kv_tokens=new + past,
        heads=heads,
        latent=every(512.0),
        rope=every(64.0),
        nope=every(128.0),
        value=every(128.0),
        kv_bytes=every(kernel.dtype.bytes),
        activation_bytes=every(2.0),
    )
    return table, ["num_heads"]


def _experts(frame: pd.DataFrame, kernel: Kernel) -> tuple[Table, list[str]]:
    """Fused experts, uniform and power-law routing, tensor- and expert-parallel."""
    tokens, hidden, width, top_k, experts = _numbers(
        frame, "num_tokens", "hidden_size", "inter_size", "topk", "num_experts"
    )
    cut, ranks = _numbers(frame, "moe_tp_size", "moe_ep_size")
    weight = (EXPERT_WEIGHT_BYTES if kernel.name is K.EXPERTS_WEIGHT_ONLY else WEIGHT_BYTES)[kernel.dtype]
    table = Experts(
        **_common(frame, kernel),
        tokens=tokens,
        hidden=hidden,
        intermediate=width / cut,
        experts=experts,
        top_k=top_k,
        ranks=ranks,
        routing_alpha=frame["distribution"].map(ALPHA).to_numpy(float),
        expert_bytes=3 * hidden * width / cut * weight,
        activation_bytes=np.full_like(tokens, 2.0),
    )
    site = ["hidden_size", "inter_size", "topk", "num_experts"]
    few = len(frame.groupby(site)) < 4
    return table, [*site, "moe_tp_size", "moe_ep_size"] if few else site


def _collective(frame: pd.DataFrame, kernel: Kernel) -> tuple[Table, list[str]]:
    """Messages are stated in 16-bit elements."""
    size, ranks = _numbers(frame, "message_size", "num_gpus")
    return Collective(**_common(frame, kernel), message_bytes=size * 2.0, ranks=ranks), ["message_size"]


def _elementwise(frame: pd.DataFrame, kernel: Kernel) -> tuple[Table, list[str]]:
    """Scaling a 16-bit matrix into fp8: the one elementwise kernel the tables have, read once and written once."""
    m, k = _numbers(frame, "m", "k")
    table = Elementwise(**_common(frame, kernel), read_bytes=2.0 * m * k, write_bytes=m * k, launches=np.ones_like(m))
    return table, ["k"]


_READERS = {
    "gemm": _gemm,
    "attention": _attention,
    "mla": _latent,
    "moe": _experts,
    "comm": _collective,
    "quantize": _elementwise,
}
