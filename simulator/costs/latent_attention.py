"""Multi-head latent attention: expanded heads in a prefill, one latent that every head reads in a decode step.

DeepSeek-V2 (arXiv 2405.04434, section 2.1). Decoding folds the matrix that expands keys into the query and the one
that expands values into the output, so that scores and sums run over the cached latent itself. Causal masking keeps
q (p + (q + 1) / 2) of the q (p + q) pairs for q queries behind p past tokens.
"""

from __future__ import annotations

import numpy as np

from ..estimate import Array
from ..operators import KernelName, LatentAttention


def pairs(table: LatentAttention) -> Array:
    """(query, key) pairs of one head of one sequence that causal masking keeps."""
    past = table.kv_tokens - table.new_tokens
    return np.asarray(table.new_tokens * (past + (table.new_tokens + 1) / 2))


def widths(table: LatentAttention) -> tuple[Array, Array]:
    """Elements of a head's query and key, and of its value and output: expanded in prefill, latent in decode."""
    if table.kernel.name is KernelName.MLA_DECODE:
        return table.latent + table.rope, table.latent
    return table.nope + table.rope, table.value


def flops(table: LatentAttention) -> Array:
    """2 FLOPs for each element of a key and of a value, for each pair and head."""
    key, value = widths(table)
    return np.asarray(2.0 * (key + value) * table.heads * table.sequences * pairs(table))


def traffic_bytes(table: LatentAttention) -> Array:
    """Queries in and outputs out for each head; expanded keys and values of each head, or the cached latent once."""
    key, value = widths(table)
    query_output = table.new_tokens * table.heads * (key + value) * table.activation_bytes
    if table.kernel.name is KernelName.MLA_DECODE:
        keys_values = table.kv_tokens * key * table.kv_bytes
    else:
        keys_values = table.kv_tokens * table.heads * (key + value) * table.activation_bytes
    return np.asarray(np.where(table.new_tokens > 0, table.sequences * (query_output + keys_values), 0.0))
