"""What stands between the products of a transformer in torch: timed alone, and run in the steps of one."""

from __future__ import annotations

from typing import Any

EPSILON = 1e-6


def add_norm(torch: Any, x: Any, residual: Any, weight: Any) -> tuple[Any, Any]:
    """The sum of both and its RMS norm over the last axis."""
    total = residual + x
    return total, torch.nn.functional.rms_norm(total, weight.shape, weight, EPSILON)


def gated(torch: Any, gate_up: Any) -> Any:
    """silu(gate) * up of (..., 2 wide)."""
    gate, up = gate_up.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate) * up


def rotated(torch: Any, x: Any, cos: Any, sin: Any) -> Any:
    """Rotary embedding in halves of (batch, heads, tokens, dim)."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def rope_and_append(
    torch: Any, made: Any, heads: tuple[int, int], tables: tuple[Any, Any], caches: tuple[Any, Any], positions: slice
) -> Any:
    """Rotate the queries and keys of (batch, tokens, (heads + 2 KV heads) dim) and append keys and values to caches.

    `heads` are those of queries and of keys; `tables` cosine and sine by position; returns the queries.
    """
    batch, tokens, _ = made.shape
    dim = caches[0].shape[-1]
    parts = made.view(batch, tokens, -1, dim).transpose(1, 2)
    q, k, v = parts.split([heads[0], heads[1], heads[1]], dim=1)
    cos, sin = (one[positions] for one in tables)
    caches[0][:, :, positions], caches[1][:, :, positions] = rotated(torch, k, cos, sin), v
    return rotated(torch, q, cos, sin)
