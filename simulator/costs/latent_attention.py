"""Multi-head latent attention: keys and values are one latent a token, which all heads share.

DeepSeek-V2 (arXiv 2405.04434, section 2.1). Prefill expands the latent (a GEMM of its own) and is flash attention with
heads of `nope + rope` keys and `value` values. Decode folds the expansion into the queries, so that each head
multiplies the latent itself: 2 (2 latent + rope) FLOPs a pair, the latent read once for all heads.

    T = t_0 + c_log log2(1 + L / 64) + sqrt(T_memory^2 + T_compute^2 + T_block^2),  compute in whole tiles of 64
    T_compute = 2 sequences L 64 ceil(heads queries / 64) (2 latent + rope) / (e P);  T_block = t_b sequences / SMs
    T_memory = (queries and outputs of every head, the latent of every key once) / (e_m B)

Source: form and starting values from a study on public tables of TensorRT-LLM's kernels.
"""

from __future__ import annotations

import numpy as np

from ..calibration import Cache, Denominators
from ..estimate import Array, Terms
from ..operators import NO_WINDOW, Attention, KernelName, LatentAttention
from ..overlap import norm_of
from ..parameters import FlashPrefill, LatentDecode
from . import attention

HEAD_TILE = 64  # heads one decode tile multiplies, full or not


def expanded(table: LatentAttention) -> Attention:
    """The prefill as attention over expanded heads; its head dimension is that of keys."""
    return Attention(
        table.label,
        table.layer,
        table.count,
        table.kernel,
        sequences=table.sequences,
        new_tokens=table.new_tokens,
        kv_tokens=table.kv_tokens,
        heads=table.heads,
        kv_heads=table.heads,
        head_dim=table.nope + table.rope,
        window=np.full_like(table.kv_tokens, NO_WINDOW),
        kv_bytes=table.activation_bytes,  # expanded heads are activations
        activation_bytes=table.activation_bytes,
    )


def widths(table: LatentAttention) -> tuple[Array, Array]:
    """Elements of a head's query and key, and of its value and output: expanded in prefill, latent in decode."""
    if table.kernel.name is KernelName.MLA_DECODE:
        return table.latent + table.rope, table.latent
    return table.nope + table.rope, table.value


def flops(table: LatentAttention) -> Array:
    """2 FLOPs for each element of a key and of a value, for each kept pair and head."""
    key, value = widths(table)
    return np.asarray(2.0 * (key + value) * table.heads * table.sequences * attention.pairs(expanded(table)))


def traffic_bytes(table: LatentAttention) -> Array:
    """Queries in and outputs out for each head; expanded keys and values of each head, or the cached latent once."""
    key, value = widths(table)
    query_output = table.new_tokens * table.heads * (key + value) * table.activation_bytes
    if table.kernel.name is KernelName.MLA_DECODE:
        keys_values = table.kv_tokens * key * table.kv_bytes
    else:
        keys_values = table.kv_tokens * table.heads * (key + value) * table.activation_bytes
    return np.asarray(np.where(table.new_tokens > 0, table.sequences * (query_output + keys_values), 0.0))


def prefill(table: LatentAttention, d: Denominators, p: FlashPrefill, cache: Cache) -> Terms:
    """Flash attention over the expanded heads."""
    return attention.flash(expanded(table), table.nope + table.rope, table.value, d, p)


def decode(table: LatentAttention, d: Denominators, p: LatentDecode, cache: Cache) -> Terms:
    """Time of each row by the formula above."""
    rows = table.heads * table.new_tokens
    tiles = HEAD_TILE * np.ceil(rows / HEAD_TILE)
    width = 2.0 * table.latent + table.rope
    arithmetic = 2.0 * table.sequences * table.kv_tokens * tiles * width
    compute = arithmetic / (p.compute_fraction * d.peak_flops_per_s)
    memory = traffic_bytes(table) / (p.read_fraction * d.bandwidth_bytes_per_s)
    block = p.block_s * table.sequences / d.sm_count
    _, (multiplied, loaded, started) = norm_of((compute, memory, block), 2.0)
    log = p.doubling_s * np.log2(1 + table.kv_tokens / 64.0)
    floor = np.full_like(log, p.floor_s)
    return Terms(multiplied, loaded, floor, latency_s=np.asarray(started + log)).where(table.new_tokens > 0)
