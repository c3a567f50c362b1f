"""torch's own operators on a CPU in fp32: products, attention, and what stands between them, each as one subject.

Weights and the KV cache of decoding come from memory (`pool.py`); activations, and the keys of a prompt, were made a
moment before and are reused. Compound operators (a norm, a rotary embedding) count the bytes a fused kernel would move,
as the lowering of a model does: what torch moves beyond that is part of what is fitted.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

from ...dtypes import DType
from ...simulator.calibration import Cache
from ...simulator.operators import NO_WINDOW, Attention, Elementwise, Gemm, Kernel, KernelName, Table
from ..timer import Run, Timing, on_cpu
from . import pieces
from .pool import Pool
from .subject import Subject, table

ENGINE, COPIES = "torch", "torch-copies"
WIDTH = 4.0  # bytes of an fp32 number
MIB = 2**20

# (n, k) a fit sees: square, wide and deep, and the shapes of a vocabulary. Those held out are of other models' layers.
FIT_WEIGHTS = ((512, 512), (1536, 512), (512, 1536), (1024, 1024), (4096, 1024), (1024, 4096), (8192, 1024))
FIT_M = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
HELD_WEIGHTS = ((768, 768), (2304, 768), (3072, 768), (768, 3072), (1280, 1280), (5120, 1280), (1408, 2048))
HELD_M = (1, 3, 6, 12, 24, 48, 96, 200, 384)
LARGEST = (1536, 2048, 2048)  # the product whose rate is the machine's peak
FIT_PROMPTS = ((1, 32), (1, 128), (1, 512), (4, 64), (4, 256), (8, 32), (8, 128))
FIT_HEADS = ((8, 8, 64), (16, 4, 64), (8, 2, 128), (4, 4, 32))
HELD_PROMPTS = ((1, 96), (2, 200), (1, 384), (6, 48))
HELD_HEADS = ((12, 12, 64), (14, 2, 64))
FIT_CONTEXTS = ((1, 32), (1, 256), (1, 2048), (4, 64), (4, 512), (16, 32), (16, 256), (32, 64))
HELD_CONTEXTS = ((1, 128), (2, 700), (8, 160), (12, 384), (24, 48))
FIT_TOKENS = ((1, 512), (1, 1024), (4, 1024), (16, 512), (32, 1024), (64, 512), (128, 1024), (512, 512), (512, 1024))
HELD_TOKENS = ((1, 768), (6, 768), (24, 1280), (96, 768), (200, 768), (384, 1280))
HEAD_DIM = 64  # of heads whose rotary embedding is timed
DECODED = 32  # tokens up to which they are taken for one of each sequence
STREAM_BYTES = (128 * MIB, 64 * MIB)


@dataclass(frozen=True, eq=False)
class TorchSubject(Subject):
    """One of torch's operators on the CPU."""

    torch: Any
    pool: Pool

    @property
    def follows(self) -> bool:
        """Whether it follows a product in a step."""
        return False

    @property
    def engine(self) -> str:
        """What a record calls torch."""
        return ENGINE

    @property
    def version(self) -> str:
        """torch's own version."""
        return str(self.torch.__version__)

    @abstractmethod
    def launch(self, case: Table) -> Run:
        """Operands of the shape, in what launches it once."""

    def time(self, case: Table, budget_s: float) -> Timing:
        """Single calls, on the threads torch was given, after weights have passed by as they do in a step."""
        threads = int(self.torch.get_num_threads())
        return on_cpu(self.launch(case), budget_s, threads, self.pool.pass_by if self.follows else None)


@dataclass(frozen=True, eq=False)
class Linear(TorchSubject):
    """x W^T: activations at hand, weights from memory."""

    @property
    def identity(self) -> Kernel:
        """A product in fp32."""
        return Kernel(KernelName.GEMM, DType.FP32)

    @property
    def variant(self) -> str:
        """What torch calls it."""
        return "linear"

    def calibration(self, quick: bool) -> Gemm:
        """The largest product, then every count of rows with two or all of the weights."""
        shapes = [LARGEST]
        for i, m in enumerate(FIT_M):
            few = [FIT_WEIGHTS[(3 * i + j) % len(FIT_WEIGHTS)] for j in range(4)]
            shapes += [(m, n, k) for n, k in (few if quick else FIT_WEIGHTS)]
        return self._table(shapes)

    def held_out(self, quick: bool) -> Gemm:
        """Layers of other widths with other counts of rows."""
        shapes = []
        for i, m in enumerate(HELD_M):
            few = [HELD_WEIGHTS[(2 * i + j) % len(HELD_WEIGHTS)] for j in range(2)]
            shapes += [(m, n, k) for n, k in (few if quick else HELD_WEIGHTS)]
        return self._table(shapes)

    def shape(self, m: int, n: int, k: int) -> Gemm:
        """One product."""
        return self._table([(m, n, k)])

    def _table(self, shapes: list[tuple[int, int, int]]) -> Gemm:
        m, n, k = (list(map(float, column)) for column in zip(*shapes, strict=True))
        return table(
            Gemm,
            self.identity,
            m=m,
            n=n,
            k=k,
            weight_bytes=[a * b * WIDTH for a, b in zip(n, k, strict=True)],
            activation_bytes=[WIDTH] * len(m),
            output_bytes=[WIDTH] * len(m),
        )

    def launch(self, case: Table) -> Run:
        """Weights are taken from the pool at each call."""
        assert isinstance(case, Gemm)
        m, n, k = (int(column[0]) for column in (case.m, case.n, case.k))
        x, linear, pool = self.pool.take(m, k).clone(), self.torch.nn.functional.linear, self.pool
        return lambda _: linear(x, pool.take(n, k))


@dataclass(frozen=True, eq=False)
class Attending(TorchSubject):
    """Scaled dot-product attention with grouped heads: prompts, or one query a sequence."""

    decoding: bool = False

    @property
    def identity(self) -> Kernel:
        """Attention over an fp32 cache."""
        name = KernelName.ATTENTION_DECODE if self.decoding else KernelName.ATTENTION_PREFILL
        return Kernel(name, DType.FP32)

    @property
    def variant(self) -> str:
        """What torch calls it."""
        return "scaled_dot_product_attention"

    @property
    def follows(self) -> bool:
        """It does."""
        return True

    @property
    def cache(self) -> Cache:
        """A prompt's keys were just made; a long context is read from memory."""
        return Cache.COLD if self.decoding else Cache.REUSED

    def calibration(self, quick: bool) -> Attention:
        """Prompts or contexts with every kind of heads, half of the pairs where it must be quick."""
        return self._table([*product(FIT_CONTEXTS if self.decoding else FIT_PROMPTS, FIT_HEADS)][:: 1 + quick])

    def held_out(self, quick: bool) -> Attention:
        """Other lengths with other heads."""
        return self._table([*product(HELD_CONTEXTS if self.decoding else HELD_PROMPTS, HELD_HEADS)])

    def _table(self, shapes: list[tuple[tuple[int, int], tuple[int, int, int]]]) -> Attention:
        count = len(shapes)
        tokens = [float(length) for (_, length), _ in shapes]
        return table(
            Attention,
            self.identity,
            sequences=[float(batch) for (batch, _), _ in shapes],
            new_tokens=[1.0] * count if self.decoding else tokens,
            kv_tokens=tokens,
            heads=[float(heads[0]) for _, heads in shapes],
            kv_heads=[float(heads[1]) for _, heads in shapes],
            head_dim=[float(heads[2]) for _, heads in shapes],
            window=[NO_WINDOW] * count,
            kv_bytes=[WIDTH] * count,
            activation_bytes=[WIDTH] * count,
        )

    def launch(self, case: Table) -> Run:
        """Queries at hand; keys and values of a context from the pool, those of a prompt at hand too."""
        assert isinstance(case, Attention)
        b, new, total, heads, kv, dim = (
            int(c[0])
            for c in (case.sequences, case.new_tokens, case.kv_tokens, case.heads, case.kv_heads, case.head_dim)
        )
        attend, pool = self.torch.nn.functional.scaled_dot_product_attention, self.pool
        q = pool.take(b, heads, new, dim).clone()
        if self.decoding:
            return lambda _: attend(q, pool.take(b, kv, total, dim), pool.take(b, kv, total, dim), enable_gqa=True)
        k, v = pool.take(b, kv, total, dim).clone(), pool.take(b, kv, total, dim).clone()
        return lambda _: attend(q, k, v, is_causal=True, enable_gqa=True)


Operator = Callable[[Any, Any, int, int], Run]
"""(torch, pool, tokens, width) -> what launches the operator once."""


@dataclass(frozen=True, eq=False)
class Between(TorchSubject):
    """What stands between products: `passes` are the reads and writes of a tokens x width matrix it counts as."""

    operator: str = ""
    passes: tuple[float, float] = (1.0, 1.0)
    launches: float = 1.0
    make: Operator | None = None
    streams: bool = False  # over operands that exceed the cache, to see the memory itself
    plain: bool = False

    @property
    def identity(self) -> Kernel:
        """Bytes in and out, in fp32."""
        return Kernel(KernelName.ELEMENTWISE, DType.FP32)

    @property
    def variant(self) -> str:
        """Which operator."""
        return self.operator

    @property
    def follows(self) -> bool:
        """Compound operators do; copies are timed by themselves."""
        return not self.plain

    @property
    def engine(self) -> str:
        """Plain copies are a kernel of their own: no model's step has them, and compound operators are slower."""
        return COPIES if self.plain else ENGINE

    @property
    def cache(self) -> Cache:
        """What it reads was written by the operator before it, but for streams."""
        return Cache.COLD if self.streams else Cache.REUSED

    def calibration(self, quick: bool) -> Elementwise:
        """Tokens by width; of streams the sizes that exceed what caches hold."""
        if self.streams:
            return self._table([(1, int(size / WIDTH / sum(self.passes))) for size in STREAM_BYTES])
        return self._table([*FIT_TOKENS])

    def held_out(self, quick: bool) -> Elementwise | None:
        """Other widths and counts; of a quick run every second, so that they weigh as much as another class."""
        return None if self.streams else self._table([*HELD_TOKENS[:: 2 if quick else 1]])

    def _table(self, shapes: list[tuple[int, int]]) -> Elementwise:
        read, write = ([tokens * width * WIDTH * passes for tokens, width in shapes] for passes in self.passes)
        return table(
            Elementwise, self.identity, read_bytes=read, write_bytes=write, launches=[self.launches] * len(shapes)
        )

    def launch(self, case: Table) -> Run:
        """Operands of the tokens and width whose bytes the case has."""
        assert isinstance(case, Elementwise) and self.make is not None
        count = round(float(case.read_bytes[0] + case.write_bytes[0]) / WIDTH / sum(self.passes))
        shapes = [] if self.streams else [*FIT_TOKENS, *HELD_TOKENS]
        tokens, width = next(((t, w) for t, w in shapes if t * w == count), (1, count))
        return self.make(self.torch, self.pool, tokens, width)


def _read(torch: Any, pool: Pool, tokens: int, width: int) -> Run:
    return lambda _: pool.take(tokens, width).sum()


def _copy(torch: Any, pool: Pool, tokens: int, width: int) -> Run:
    out = torch.empty(tokens, width)
    return lambda _: out.copy_(pool.take(tokens, width))


def _triad(torch: Any, pool: Pool, tokens: int, width: int) -> Run:
    out = torch.empty(tokens, width)
    return lambda _: torch.add(pool.take(tokens, width), pool.take(tokens, width), alpha=3.0, out=out)


def _move(torch: Any, pool: Pool, tokens: int, width: int) -> Run:
    x = pool.take(tokens, width).clone()
    return lambda _: x.clone()


def _add_norm(torch: Any, pool: Pool, tokens: int, width: int) -> Run:
    x, r, weight = pool.take(tokens, width).clone(), pool.take(tokens, width).clone(), pool.take(width).clone()
    return lambda _: pieces.add_norm(torch, x, r, weight)


def _gated(torch: Any, pool: Pool, tokens: int, width: int) -> Run:
    both = pool.take(tokens, 2 * width).clone()
    return lambda _: pieces.gated(torch, both)


def _rope(torch: Any, pool: Pool, tokens: int, width: int) -> Run:
    """Heads of 64, two to each pair of keys and values; few tokens are one of each sequence, many are a prompt."""
    heads = max(2, width // HEAD_DIM // 2)
    kv = heads // 2
    batch, new = (tokens, 1) if tokens <= DECODED else (1, tokens)
    made = pool.take(batch, new, (heads + 2 * kv) * HEAD_DIM).clone()
    tables = pool.take(new, HEAD_DIM).clone(), pool.take(new, HEAD_DIM).clone()
    caches = pool.take(batch, kv, new, HEAD_DIM).clone(), pool.take(batch, kv, new, HEAD_DIM).clone()
    return lambda _: pieces.rope_and_append(torch, made, (heads, kv), tables, caches, slice(0, new))


def _softmax(torch: Any, pool: Pool, tokens: int, width: int) -> Run:
    x = pool.take(tokens, width).clone()
    return lambda _: torch.softmax(x, dim=-1)


BETWEEN: tuple[tuple[str, tuple[float, float], float, Operator, bool, bool], ...] = (
    ("stream read", (1.0, 0.0), 1.0, _read, True, True),
    ("stream copy", (1.0, 1.0), 1.0, _copy, True, True),
    ("stream triad", (2.0, 1.0), 1.0, _triad, True, True),
    ("clone", (1.0, 1.0), 1.0, _move, False, True),
    ("add, rms_norm", (2.0, 2.0), 1.0, _add_norm, False, False),
    ("silu, mul", (2.0, 1.0), 1.0, _gated, False, False),
    ("rope, append", (1.0, 1.5), 2.0, _rope, False, False),
    ("softmax", (1.0, 1.0), 1.0, _softmax, False, False),
)


def subjects(torch: Any, pool: Pool) -> list[Subject]:
    """All of torch's operators that are timed on a CPU."""
    between = [Between(torch, pool, *row) for row in BETWEEN]
    return [Linear(torch, pool), Attending(torch, pool), Attending(torch, pool, True), *between]
