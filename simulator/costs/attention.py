"""Flash attention: no S x S matrix ever reaches memory, and grouped queries share their keys and values.

Dao et al., "FlashAttention" (arXiv 2205.14135). Per head, (query, key) pairs cost 4 head_dim FLOPs (scores and
values). Causal masking keeps q (p + (q + 1) / 2) of the q (p + q) pairs for q queries behind p past tokens.
"""

from __future__ import annotations

import numpy as np

from ..estimate import Array
from ..operators import Attention


def pairs(table: Attention) -> Array:
    """(query, key) pairs of one head of one sequence that causal masking and the window keep.

    Query i (1-based) sees min(past + i, window) keys.
    """
    q, past, window = table.new_tokens, table.kv_tokens - table.new_tokens, table.window
    growing = np.clip(window - past, 0.0, q)  # queries that still see everything before them
    return np.asarray(growing * past + growing * (growing + 1) / 2 + (q - growing) * np.minimum(window, past + q))


def causal_factor(new_tokens: Array, kv_tokens: Array) -> Array:
    """Kept pairs over all pairs; (S + 1) / (2 S) for a prompt. Divide by it to compare with non-causal counters."""
    past = kv_tokens - new_tokens
    return np.asarray((past + (new_tokens + 1) / 2) / kv_tokens)


def keys_read(table: Attention) -> Array:
    """Keys of one sequence that any query sees, so that must be read."""
    return np.asarray(np.minimum(table.kv_tokens, table.window + table.new_tokens - 1))


def flops(table: Attention) -> Array:
    """4 head_dim FLOPs for each pair and query head."""
    return np.asarray(4.0 * table.head_dim * table.heads * table.sequences * pairs(table))


def traffic_bytes(table: Attention) -> Array:
    """Queries in, outputs out (per query head); keys and values in (per KV head: grouped queries share them)."""
    query_output = 2.0 * table.new_tokens * table.heads * table.head_dim * table.activation_bytes
    keys_values = 2.0 * keys_read(table) * table.kv_heads * table.head_dim * table.kv_bytes
    return np.asarray(np.where(table.new_tokens > 0, table.sequences * (query_output + keys_values), 0.0))
