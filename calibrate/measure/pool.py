"""Operands on a CPU: one buffer of random numbers larger than the last-level cache, dealt out piece after piece.

What a case takes next was last touched a whole buffer ago, so it comes from memory, as the weights of a model's next
layer do. Nothing is generated for each shape. The numbers repeat every 64 MiB, their addresses do not.
"""

from __future__ import annotations

import math
from typing import Any

SEED_BYTES = 2**26  # generated; the rest is copies of it
LEAST_BYTES, MOST_BYTES = 2**28, 2**29
CACHES = 2  # times the last-level cache
MEMORY_SHARE = 0.25  # of what the machine has free
PASSING_BYTES = 2**23
ALIGNED = 16  # fp32 elements of a cache line


def size_bytes(cache_bytes: float, available_bytes: float) -> int:
    """Bytes of the buffer: twice the cache within limits, and no more than a quarter of the memory that is free."""
    wanted = min(max(CACHES * cache_bytes, LEAST_BYTES), MOST_BYTES)
    return int(min(wanted, max(MEMORY_SHARE * available_bytes, SEED_BYTES)))


class Pool:
    """A buffer of random fp32 numbers in [-1, 1) from which operands are taken in turn."""

    def __init__(self, torch: Any, wanted_bytes: int, seed: int = 0) -> None:
        few = min(wanted_bytes, SEED_BYTES) // 4
        random = torch.empty(few).uniform_(-1.0, 1.0, generator=torch.Generator().manual_seed(seed))
        self._numbers = random.repeat(max(1, wanted_bytes // SEED_BYTES))
        self._next = 0

    @property
    def bytes(self) -> int:
        """Bytes of the buffer."""
        return int(self._numbers.numel()) * 4

    def take(self, *shape: int) -> Any:
        """The next piece of the buffer as a tensor of that shape; from the front again where the end is near."""
        count = math.prod(shape)
        if count > self._numbers.numel():
            raise ValueError(f"{count} numbers asked of a pool of {self._numbers.numel()}")
        if self._next + count > self._numbers.numel():
            self._next = 0
        piece = self._numbers[self._next : self._next + count]
        self._next += -(-count // ALIGNED) * ALIGNED
        return piece.view(*shape)

    def sweep(self) -> None:
        """Read all of it once: afterwards the caches hold nothing else."""
        self._numbers.sum()

    def pass_by(self) -> None:
        """Read as much of it as the weights of a small product: a core's own caches hold nothing else afterwards.

        Between the operators of a step weights pass by; in a bare loop over one operator its code and operands would
        stay where no step finds them. On the machine this was found on, small operators take three times as long.
        """
        self.take(PASSING_BYTES // 4).sum()
