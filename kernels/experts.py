"""Mixture-of-experts feed-forward: two grouped products over assignments sorted by expert, then a sum for each token.

    h_a = silu(x_t G_e) (x_t U_e),   y_t = sum over the top k of s_a h_a D_e,   a = (t, e)

6 hidden intermediate FLOPs an assignment. Bytes: weights of the experts any token chose, and for each assignment its
input, the gated product (written and read) and its output. Gate and up are one launch with two accumulators, so that
the product is gated before it leaves the multiprocessor. Rows are padded to blocks of one expert each; which rows a
block has is given (an engine sorts them in a kernel of its own, which is not timed). Grid: blocks times columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional
from triton.tools.tensor_descriptor import TensorDescriptor

from ..dtypes import DType
from ..simulator.estimate import Array
from ..simulator.operators import Experts, Kernel, KernelName
from ..simulator.workload.routing import BALANCED
from .data import Source, blocks, interpreted
from .microkernel import HOPPER, Call, Microkernel
from .shapes import EXPERT_LAYERS, ExpertLayer
from .tables import CALIBRATION, HELD_OUT, SMALL, log_uniform, only, table_of

UNIFORM = 0.0
COLUMNS, DEPTH = 128, 64  # of one tile; half the columns before Hopper, whose accumulators are the threads' own
SUM_BLOCK = 1024


class ExpertCase(NamedTuple):
    """Tokens, widths, experts, experts of a token, and how tokens spread (UNIFORM or BALANCED)."""

    tokens: int
    hidden: int
    intermediate: int
    experts: int
    top_k: int
    routing_alpha: float


class Routing(NamedTuple):
    """Experts of each token (tokens, top k); assignments in blocks of one expert, padded; the expert of each block."""

    chosen: npt.NDArray[np.int64]
    order: npt.NDArray[np.int32]
    expert: npt.NDArray[np.int32]


class ExpertInputs(NamedTuple):
    """Inputs, gates over ups (experts, 2 intermediate, hidden), downs, shares, routing; products and results.

    `order` numbers assignments token by token; a number past the last one is padding.
    """

    x: Tensor
    gate_up: Tensor
    down: Tensor
    share: Tensor
    chosen: Tensor
    order: Tensor
    expert: Tensor
    gated: Tensor
    expanded: Tensor
    out: Tensor


@triton.jit
def _weight(source, row, at, k, BN: tl.constexpr, BK: tl.constexpr, DESCRIBED: tl.constexpr):
    """BN rows of a weight from `row` on, over BK of its k."""
    if DESCRIBED:
        block = source.load([row, at])
    else:
        rows, depth = tl.arange(0, BN), at + tl.arange(0, BK)
        start = source + row.to(tl.int64) * k
        block = tl.load(start + rows[:, None] * k + depth[None, :], (depth < k)[None, :], 0.0)
    return block


@triton.jit(do_not_specialize=["assignments"])
def _gate_up(
    x,
    gate_up,
    order,
    expert,
    gated,
    assignments,
    hidden,
    intermediate,
    TOP_K: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    DESCRIBED: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """One block of assignments and BN columns of the gated product."""
    block, column = tl.program_id(0), tl.program_id(1) * BN
    rows = tl.load(order + block * BM + tl.arange(0, BM))
    inside = rows < assignments
    start = x + (rows // TOP_K).to(tl.int64)[:, None] * hidden
    first = tl.load(expert + block) * 2 * intermediate + column
    gate, up = tl.zeros((BM, BN), tl.float32), tl.zeros((BM, BN), tl.float32)
    for at in range(0, hidden, BK):
        depth = at + tl.arange(0, BK)
        tokens = tl.load(start + depth[None, :], inside[:, None] & (depth < hidden)[None, :], 0.0)
        g = _weight(gate_up, first, at, hidden, BN, BK, DESCRIBED)
        u = _weight(gate_up, first + intermediate, at, hidden, BN, BK, DESCRIBED)
        if UPCAST:
            tokens, g, u = tokens.to(tl.float32), g.to(tl.float32), u.to(tl.float32)
        gate = tl.dot(tokens, g.T, gate)
        up = tl.dot(tokens, u.T, up)
    product = gate * tl.sigmoid(gate) * up
    to = gated + rows.to(tl.int64)[:, None] * intermediate + column + tl.arange(0, BN)[None, :]
    tl.store(to, product.to(gated.dtype.element_ty), inside[:, None])


@triton.jit(do_not_specialize=["assignments"])
def _down(
    gated,
    down,
    share,
    order,
    expert,
    expanded,
    assignments,
    hidden,
    intermediate,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    DESCRIBED: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """One block of assignments and BN columns of what they add to their tokens."""
    block, column = tl.program_id(0), tl.program_id(1) * BN
    rows = tl.load(order + block * BM + tl.arange(0, BM))
    inside = rows < assignments
    start = gated + rows.to(tl.int64)[:, None] * intermediate
    first = tl.load(expert + block) * hidden + column
    total = tl.zeros((BM, BN), tl.float32)
    for at in range(0, intermediate, BK):
        depth = at + tl.arange(0, BK)
        product = tl.load(start + depth[None, :], inside[:, None] & (depth < intermediate)[None, :], 0.0)
        weight = _weight(down, first, at, intermediate, BN, BK, DESCRIBED)
        if UPCAST:
            product, weight = product.to(tl.float32), weight.to(tl.float32)
        total = tl.dot(product, weight.T, total)
    total = total * tl.load(share + rows, inside, 0.0)[:, None]
    to = expanded + rows.to(tl.int64)[:, None] * hidden + column + tl.arange(0, BN)[None, :]
    tl.store(to, total.to(expanded.dtype.element_ty), inside[:, None])


@triton.jit
def _combine(expanded, out, TOP_K: tl.constexpr, HIDDEN: tl.constexpr, BLOCK: tl.constexpr):
    """The sum over the experts of a token."""
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < HIDDEN
    total = tl.zeros((BLOCK,), tl.float32)
    for each in tl.static_range(TOP_K):
        total += tl.load(expanded + (token * TOP_K + each) * HIDDEN + columns, inside, 0.0).to(tl.float32)
    tl.store(out + token * HIDDEN + columns, total.to(out.dtype.element_ty), inside)


def block_rows(case: ExpertCase) -> int:
    """Rows of a block: the first size that holds the mean load of a chosen expert, else the last."""
    load = case.tokens * case.top_k / max(1.0, chosen_experts(case))
    return next((rows for rows in (16, 64) if load <= rows), 128)


def chosen_experts(case: ExpertCase) -> float:
    """Experts at least one token chose: all alike, or E (1 - (1 - k / E)^N) in expectation."""
    if case.routing_alpha == BALANCED:
        return float(min(case.experts, case.tokens * case.top_k))
    return case.experts * (1.0 - (1.0 - case.top_k / case.experts) ** case.tokens)


def route(case: ExpertCase, seed: int) -> Routing:
    """Experts of every token and the blocks they make."""
    if case.routing_alpha == BALANCED:
        numbers = np.arange(case.tokens * case.top_k, dtype=np.int64)
        chosen = (numbers % case.experts).reshape(case.tokens, case.top_k)
    elif case.routing_alpha == UNIFORM:
        score = np.random.default_rng(seed).random((case.tokens, case.experts))
        chosen = np.argsort(score, axis=1)[:, : case.top_k].astype(np.int64)
    else:
        raise ValueError(f"routing_alpha = {case.routing_alpha}; it takes {UNIFORM} and {BALANCED}")
    rows, flat = block_rows(case), chosen.ravel()
    order, expert = [], []
    for number in range(case.experts):
        own = np.flatnonzero(flat == number)
        padded = np.full(blocks(len(own), rows) * rows, len(flat), dtype=np.int32)
        padded[: len(own)] = own
        order.append(padded)
        expert += [number] * (len(padded) // rows)
    return Routing(chosen, np.concatenate(order), np.array(expert, dtype=np.int32))


def experts_table(kernel: Kernel, cases: Sequence[ExpertCase], labels: Sequence[str]) -> Experts:
    """The operator table of these cases on one rank."""
    columns = dict(zip(ExpertCase._fields, zip(*cases, strict=True), strict=True))
    arrays = {name: np.array(column, dtype=float) for name, column in columns.items()}
    weights = 3.0 * arrays["hidden"] * arrays["intermediate"] * kernel.dtype.bytes
    return table_of(Experts, kernel, labels, ranks=1.0, expert_bytes=weights, activation_bytes=2.0, **arrays)


def words(case: ExpertCase) -> str:
    """`128 tokens, 8 of 128 experts of 2048 x 768, all alike`."""
    spread = "all alike" if case.routing_alpha == BALANCED else "uniform"
    return (
        f"{case.tokens} tokens, {case.top_k} of {case.experts} experts of {case.hidden} x {case.intermediate}, {spread}"
    )


def case_of(table: Experts) -> ExpertCase:
    """The case in a table of one row."""
    if only(table.ranks) != 1:
        raise ValueError("experts of one rank only")
    tokens, hidden, intermediate = only(table.tokens), only(table.hidden), only(table.intermediate)
    return ExpertCase(
        tokens, hidden, intermediate, only(table.experts), only(table.top_k), float(table.routing_alpha[0])
    )


@dataclass(frozen=True)
class GroupedExperts(Microkernel[Experts, ExpertInputs]):
    """Experts in bf16."""

    tolerance = 2e-2  # the gated product, each expert's share and their sum are rounded to bf16: at most 2^-8 each

    @property
    def identity(self) -> Kernel:
        """Experts in bf16."""
        return Kernel(KernelName.EXPERTS, DType.BF16)

    @property
    def variant(self) -> str:
        """How they are computed."""
        return "grouped"

    def calibration(self, quick: bool) -> Experts:
        """Tokens at three layers, experts all alike and drawn at random."""
        layers = (
            ExpertLayer("few", 4096, 8192, 8, 2),
            ExpertLayer("some", 4096, 1536, 64, 6),
            ExpertLayer("many", 2048, 1024, 256, 8),
        )
        balanced, uniform = (1, 128, 8192), (16, 2048)
        if not quick:
            balanced = uniform = tuple(2**n for n in range(14))
        cases = [
            ExpertCase(n, *layer[1:], alpha)
            for layer in layers
            for alpha, tokens in ((BALANCED, balanced), (UNIFORM, uniform))
            for n in tokens
        ]
        return experts_table(self.identity, cases, [f"{CALIBRATION}: {words(case)}" for case in cases])

    def held_out(self) -> Experts:
        """The experts of two models."""
        cases = [ExpertCase(n, *layer[1:], UNIFORM) for layer in EXPERT_LAYERS for n in log_uniform(17, 8, 1, 8192)]
        return experts_table(self.identity, cases, [f"{HELD_OUT}: {words(case)}" for case in cases])

    def small(self) -> Experts:
        """Experts nobody chose, blocks with padding."""
        cases = [
            ExpertCase(3, 128, 128, 4, 2, BALANCED),
            ExpertCase(40, 256, 128, 5, 2, UNIFORM),
            ExpertCase(1, 128, 256, 8, 1, UNIFORM),
        ]
        return experts_table(self.identity, cases, [f"{SMALL}: {words(case)}" for case in cases])

    def make(self, case: Experts, device: str, seed: int) -> ExpertInputs:
        """Normal inputs and weights that keep the size of their inputs; positive shares."""
        c = case_of(case)
        if c.hidden % COLUMNS or c.intermediate % COLUMNS:
            raise ValueError(f"{self.name}: it takes widths that are multiples of {COLUMNS}")
        source, routing = Source(device, seed), route(c, seed)
        wide = c.tokens * c.top_k
        return ExpertInputs(
            source.normal(c.tokens, c.hidden),
            source.normal(c.experts, 2 * c.intermediate, c.hidden, scale=c.hidden**-0.5),
            source.normal(c.experts, c.hidden, c.intermediate, scale=c.intermediate**-0.5),
            source.uniform(c.tokens, c.top_k, low=0.1, high=1.0, dtype=torch.float32),
            source.given(torch.from_numpy(routing.chosen)),
            source.given(torch.from_numpy(routing.order)),
            source.given(torch.from_numpy(routing.expert)),
            source.empty(wide, c.intermediate),
            source.empty(wide, c.hidden),
            source.empty(c.tokens, c.hidden),
        )

    def calls(self, inputs: ExpertInputs, capability: int) -> tuple[Call, ...]:
        """Gate and up, down, and the sum."""
        i = inputs
        (tokens, hidden), intermediate, top_k = i.x.shape, i.gated.shape[1], i.share.shape[1]
        count, described = len(i.expert), capability >= HOPPER
        rows, columns = len(i.order) // count, COLUMNS if described else COLUMNS // 2
        up, down = (w.view(-1, w.shape[2]) for w in (i.gate_up, i.down))
        weights = [TensorDescriptor.from_tensor(w, [columns, DEPTH]) if described else w for w in (up, down)]
        constants = {
            "BM": rows,
            "BN": columns,
            "BK": DEPTH,
            "DESCRIBED": described,
            "UPCAST": interpreted(),
        }
        common = {"order": i.order, "expert": i.expert, "assignments": tokens * top_k}
        common |= {"hidden": hidden, "intermediate": intermediate}
        gating = {"x": i.x, "gate_up": weights[0], "gated": i.gated} | common
        adding = {"gated": i.gated, "down": weights[1], "share": i.share, "expanded": i.expanded} | common
        warps, stages = (8, 3) if rows > 64 else (4, 3)
        sums = {"TOP_K": top_k, "HIDDEN": hidden, "BLOCK": SUM_BLOCK}
        up_grid, down_grid = (count, blocks(intermediate, columns)), (count, blocks(hidden, columns))
        return (
            Call(_gate_up, up_grid, gating, constants | {"TOP_K": top_k}, warps, stages),
            Call(_down, down_grid, adding, constants, warps, stages),
            Call(_combine, (tokens, blocks(hidden, SUM_BLOCK)), {"expanded": i.expanded, "out": i.out}, sums),
        )

    def outputs(self, inputs: ExpertInputs) -> tuple[Tensor, ...]:
        """The sums of all tokens."""
        return (inputs.out,)

    def reference(self, inputs: ExpertInputs) -> tuple[Tensor, ...]:
        """In float64, one expert at a time."""
        x, result = inputs.x.double(), torch.zeros(inputs.out.shape, dtype=torch.float64, device=inputs.out.device)
        for expert in range(len(inputs.down)):
            token, slot = torch.nonzero(inputs.chosen == expert, as_tuple=True)
            if len(token):
                gate, up = (x[token] @ inputs.gate_up[expert].double().T).chunk(2, 1)
                added = (functional.silu(gate) * up) @ inputs.down[expert].double().T
                result.index_add_(0, token, added * inputs.share[token, slot].double()[:, None])
        return (result,)

    def flops(self, table: Experts) -> Array:
        """6 hidden intermediate for each assignment."""
        return np.asarray(6.0 * table.tokens * table.top_k * table.hidden * table.intermediate)

    def bytes(self, table: Experts) -> Array:
        """Weights of the chosen experts (uniform: in expectation); input, gated product twice and output."""
        rows = zip(*(getattr(table, name) for name in ExpertCase._fields), strict=True)
        chosen = np.array([chosen_experts(ExpertCase(*row)) for row in rows])
        wide = 2.0 * (table.hidden + table.intermediate) * table.activation_bytes
        return np.asarray(chosen * table.expert_bytes + table.tokens * table.top_k * wide)


MICROKERNELS: tuple[Microkernel[Experts, ExpertInputs], ...] = (GroupedExperts(),)
