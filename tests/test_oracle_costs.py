"""An independent oracle for times: the docstrings' formulas as scalar loops, one choice, tile or expert at a time.

Written from the text of `simulator/costs`, not from its arrays. What both agree on is the text, so this finds slips of
broadcasting, signs and axes; whether the text is right is the business of measurements.
"""

import math
from statistics import NormalDist, pstdev

import numpy as np
import pytest

from roofplan.calibrate import forms
from roofplan.calibrate.fit import CHOICES
from roofplan.dtypes import DType
from roofplan.simulator.calibration import Cache, Denominators, Parameters
from roofplan.simulator.costs import attention, terms
from roofplan.simulator.operators import (
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
    one_row,
)
from roofplan.simulator.parameters import (
    FlashPrefill,
    GroupedExperts,
    LatentDecode,
    OneOrTwoShot,
    Ring,
    ScaledGemm,
    SplitKGemm,
    SplitKvDecode,
    Streaming,
)
from roofplan.simulator.workload.routing import busiest_rank

Rng = np.random.Generator
QUESTIONS = 150


def device(rng: Rng) -> Denominators:
    low, high = np.log((1e13, 2e11, 1e10, 20, 8e8, 2e6)), np.log((4e15, 8e12, 1e12, 200, 3e9, 3e8))
    values = [float(v) for v in np.exp(rng.uniform(low, high))]
    return Denominators(*values)._replace(sm_count=float(round(values[3])))


def parameters(rng: Rng, form: type) -> Parameters:
    values = []
    for name, r in forms.ranges(form).items():
        choices = CHOICES.get(name.rpartition(".")[2])
        values.append(rng.choice(choices) if choices else np.exp(rng.uniform(np.log(r.low), np.log(r.high))))
    return forms.build(form, np.array(values))


def number(rng: Rng, low: float, high: float) -> float:
    return float(math.floor(math.exp(rng.uniform(math.log(low), math.log(high + 1)))))


def one(rng: Rng, *values: float) -> float:
    return float(rng.choice(values))


def price(table: Table, d: Denominators, p: Parameters, cache: Cache = Cache.COLD) -> float:
    return float(terms(table, d, p, cache).total_s()[0])


# ---- products


def gemm_seconds(m, n, k, weights, a, o, d: Denominators, p: SplitKGemm, cache: Cache) -> float:
    f, sms, memory_rate = d.clock_hz, d.sm_count, d.bandwidth_bytes_per_s
    read_l2, write_l2 = (v * f * sms for v in (p.l2_read_bytes_per_clock_per_sm, p.l2_write_bytes_per_clock_per_sm))
    inputs, result, c = m * k * a, m * n * o, p.l2_fraction * d.l2_bytes

    def miss(size: float) -> float:
        return 1 / (1 + (c / size) ** 10)

    if cache is Cache.COLD:
        cold_weights, cold = 1.0, miss(inputs + result)
    else:
        cold_weights, cold = miss(5 * weights + inputs + result), miss(weights + inputs + result)
    write = cold * result / (p.write_fraction * memory_rate) + (1 - cold) * result / write_l2
    choices = []
    for b_m, b_n in ((16, 128), (64, 64)):
        for split in (1, 2, 4, 8, 16, 32):
            k_b = 128 / a
            depth = k_b * math.ceil(k / (split * k_b))
            if split > p.most_splits or (split > 1 and depth * (split - 1) >= k):
                continue
            tiles = math.ceil(m / b_m) * math.ceil(n / b_n)
            x = tiles * split / sms
            compute = math.ceil(x) * 2 * b_m * b_n * depth / (p.compute_fraction * d.peak_flops_per_s / sms)
            loop = math.ceil(x / min(4, 32768 // (b_m * b_n))) * (depth / k_b) * p.k_block_cycles / f
            exposed = p.exposed_write + (1 - p.exposed_write) / max(1, x)
            both = a + weights / (n * k)
            again = max(0.0, m * n * k * both / math.sqrt(min(sms, tiles) * b_m * b_n) - inputs - weights)
            again = again / (1 + ((inputs + weights) / c) ** 2)
            memory = (cold * inputs + cold_weights * weights) / (p.read_fraction * memory_rate)
            memory += (1 - exposed) * write
            memory += ((1 - cold) * inputs + (1 - cold_weights) * weights + again) / read_l2
            largest = max(compute, loop, memory)
            busy = largest * sum((v / largest) ** p.overlap for v in (compute, loop, memory)) ** (1 / p.overlap)
            busy += exposed * write + p.dram_latency_s * cold_weights
            if split > 1:
                busy += p.split_s + 8 * split * m * n / read_l2
            choices.append(p.floor_s + busy * (1 + p.droop * busy / (busy + p.droop_s)))
    odds = [(t / min(choices)) ** -50 for t in choices]
    return sum(t * w for t, w in zip(choices, odds, strict=True)) / sum(odds)


@pytest.mark.parametrize("cache", Cache)
@pytest.mark.parametrize("form", [SplitKGemm, ScaledGemm])
def test_products(form: type, cache: Cache) -> None:
    rng = np.random.default_rng(1)
    for _ in range(QUESTIONS):
        d, p = device(rng), parameters(rng, form)
        m, n, k = number(rng, 1, 65536), number(rng, 1, 30000), number(rng, 1, 30000)
        a, weights = one(rng, 0.5, 1, 2), n * k * one(rng, 0.52, 1, 2)
        columns = {"m": m, "n": n, "k": k, "weight_bytes": weights, "activation_bytes": a, "output_bytes": 2.0}
        expected = gemm_seconds(m, n, k, weights, a, 2.0, d, p.gemm if form is ScaledGemm else p, cache)
        if form is ScaledGemm:  # a row's scale; 2 bytes in and 1 out an element; weights repacked for odd m
            expected += m * p.quantise.row_s + 3 * m * k / (p.quantise.quantise_fraction * d.bandwidth_bytes_per_s)
            if m % 4:
                repacked = min(1, m / 256) * n * k
                expected += repacked / (p.quantise.misaligned_fraction * d.bandwidth_bytes_per_s)
        row = one_row(Gemm, "g", "l", 1, Kernel(KernelName.GEMM, DType.FP8), **columns)
        assert price(row, d, p, cache) == pytest.approx(expected, rel=1e-6), columns


# ---- attention


def flash_seconds(
    batch, new, kv, heads, kv_heads, d_qk, d_v, window, a, kv_bytes, d: Denominators, p: FlashPrefill
) -> float:
    def filled(rows: float) -> float:
        return rows / (128 * math.ceil(rows / 128))

    group, past = heads / kv_heads, kv - new
    packed = bool(p.packs_heads) and filled(new) < 0.9 * filled(new * group)
    together = group if packed else 1
    queries = 128 / together
    longest = min(128 * math.ceil(kv / 128), window + queries + 64)
    tiles = math.ceil(new * together / 128)
    keys = 0.0
    for i in range(1, tiles + 1):
        keys += min(past + i * queries, longest)
    keys = max(keys, 128 * tiles)
    pair = 2 * (d_qk + d_v) / (p.compute_fraction * d.peak_flops_per_s / d.sm_count)
    pair += p.exponential_share / (16 * d.clock_hz)
    units = batch * heads / together
    spread = units * (128 * keys * pair + tiles * p.tile_s) / d.sm_count
    passes = (p.query_passes * heads + p.kv_passes * kv_heads) * (d_qk + d_v) * batch * new * a
    before = max(min(kv, window + new - 1) - new, 0)  # keys of earlier chunks, read once
    passes += (d_qk + d_v) * batch * before * kv_heads * kv_bytes
    memory = passes / (0.9 * d.bandwidth_bytes_per_s)
    return p.floor_s + max(spread, 128 * longest * pair + p.tile_s) + memory


def test_prefill() -> None:
    rng = np.random.default_rng(2)
    for _ in range(QUESTIONS):
        d, p = device(rng), parameters(rng, FlashPrefill)
        new, kv_heads, batch = number(rng, 1, 5000), number(rng, 1, 16), number(rng, 1, 64)
        kv, heads = new + number(rng, 1, 50_000) - 1, kv_heads * one(rng, 1, 2, 3, 5, 8, 16)
        dim, window = one(rng, 64, 80, 128, 256), one(rng, 1, 100, 1024, 4096, NO_WINDOW, NO_WINDOW)
        row = one_row(
            Attention,
            "a",
            "l",
            1,
            Kernel(KernelName.ATTENTION_PREFILL, DType.BF16),
            sequences=batch,
            new_tokens=new,
            kv_tokens=kv,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=dim,
            window=window,
            kv_bytes=1.0,
            activation_bytes=2.0,
        )
        expected = flash_seconds(batch, new, kv, heads, kv_heads, dim, dim, window, 2.0, 1.0, d, p)
        assert price(row, d, p) == pytest.approx(expected, rel=1e-6), row


def latent(rng: Rng, name: KernelName, most_new: float) -> dict[str, float]:
    new = number(rng, 1, most_new)
    return {
        "sequences": number(rng, 1, 128),
        "new_tokens": new,
        "kv_tokens": new + number(rng, 1, 100_000) - 1,
        "heads": one(rng, 1, 16, 40, 128),
        "latent": one(rng, 256, 512),
        "rope": one(rng, 32, 64),
        "nope": one(rng, 64, 128),
        "value": one(rng, 64, 128),
        "kv_bytes": one(rng, 1, 2),
        "activation_bytes": 2.0,
    }


def test_latent_prefill() -> None:
    """Every head has keys and values of its own, keys of nope + rope."""
    rng = np.random.default_rng(3)
    for _ in range(QUESTIONS):
        d, p, c = device(rng), parameters(rng, FlashPrefill), latent(rng, KernelName.MLA_PREFILL, 5000)
        widths = c["nope"] + c["rope"], c["value"]
        load = c["sequences"], c["new_tokens"], c["kv_tokens"], c["heads"], c["heads"]
        row = one_row(LatentAttention, "a", "l", 1, Kernel(KernelName.MLA_PREFILL, DType.BF16), **c)
        assert price(row, d, p) == pytest.approx(flash_seconds(*load, *widths, NO_WINDOW, 2.0, 2.0, d, p), rel=1e-6)


def test_tiles_hold_every_pair_that_the_mask_keeps() -> None:
    """Brute force over queries and keys: what tiles multiply is never less than what causal mask and window keep."""
    rng = np.random.default_rng(4)
    for _ in range(200):
        new, past, window = number(rng, 1, 400), number(rng, 1, 400) - 1, one(rng, 1, 7, 100, 300, NO_WINDOW)
        kv_heads, group = number(rng, 1, 4), one(rng, 1, 2, 4, 8)
        kept = 0
        for i in range(int(new)):
            kept += sum(1 for j in range(int(past + i + 1)) if past + i - j < window)
        row = one_row(
            Attention,
            "a",
            "l",
            1,
            Kernel(KernelName.ATTENTION_PREFILL, DType.BF16),
            sequences=1,
            new_tokens=new,
            kv_tokens=new + past,
            heads=kv_heads * group,
            kv_heads=kv_heads,
            head_dim=64,
            window=window,
            kv_bytes=2,
            activation_bytes=2,
        )
        assert float(attention.pairs(row)[0]) == kept
        for packs in (False, True):
            cut = attention.tiling(row, packs)
            assert float(cut.heads[0] * cut.pairs[0]) >= kept * kv_heads * group
            assert float(cut.heads[0] * cut.tiles[0]) * 128 >= new * kv_heads * group
            assert float(cut.longest[0]) >= min(window, new + past)


def test_decode() -> None:
    rng = np.random.default_rng(5)
    for i in range(2 * QUESTIONS):
        d, p, cache = device(rng), parameters(rng, SplitKvDecode), list(Cache)[i % 2]
        new, kv_heads, batch = one(rng, 1, 1, 1, 4), number(rng, 1, 16), number(rng, 1, 512)
        kv, group, dim = new + number(rng, 1, 100_000) - 1, one(rng, 1, 3, 8, 16, 96), one(rng, 64, 128, 256)
        window, width = one(rng, 1, 128, 4096, NO_WINDOW, NO_WINDOW), one(rng, 1, 2)
        seen = set()
        for query in range(int(new)):  # the first and the last key of each query
            last = kv - new + query
            seen |= {max(0.0, last - window + 1), last}
        keys = max(seen) - min(seen) + 1
        blocks = batch * kv_heads * math.ceil(group * new / 64)
        held = batch * kv_heads * keys * 2 * dim * width
        miss = 1.0
        if cache is Cache.REUSED:
            x = (held / (p.l2_fraction * d.l2_bytes)) ** 4
            miss = x / (1 + x)
        moved = held * (miss + (1 - miss) / p.l2_speed) + 2 * batch * new * kv_heads * group * dim * 2.0
        memory = moved / (p.read_fraction * d.bandwidth_bytes_per_s)
        block = (p.block_s + p.block_dim_s * dim / 128) * blocks / d.sm_count
        step = blocks * math.ceil(keys / 128) * p.step_s * dim / 128 / d.sm_count
        expected = p.floor_s + p.doubling_s * math.log2(1 + keys / 64) + math.sqrt(memory**2 + block**2 + step**2)
        row = one_row(
            Attention,
            "a",
            "l",
            1,
            Kernel(KernelName.ATTENTION_DECODE, DType.BF16),
            sequences=batch,
            new_tokens=new,
            kv_tokens=kv,
            heads=kv_heads * group,
            kv_heads=kv_heads,
            head_dim=dim,
            window=window,
            kv_bytes=width,
            activation_bytes=2.0,
        )
        assert price(row, d, p, cache) == pytest.approx(expected, rel=1e-6), row


def test_latent_decode() -> None:
    rng = np.random.default_rng(6)
    for _ in range(QUESTIONS):
        d, p = device(rng), parameters(rng, LatentDecode)
        c = latent(rng, KernelName.MLA_DECODE, one(rng, 1, 3))
        row = one_row(LatentAttention, "a", "l", 1, Kernel(KernelName.MLA_DECODE, DType.BF16), **c)
        batch, queries, keys = c["sequences"], c["new_tokens"] * c["heads"], c["kv_tokens"]
        flops = 2 * batch * keys * 64 * math.ceil(queries / 64) * (c["latent"] + c["rope"] + c["latent"])
        read = batch * keys * (c["latent"] + c["rope"]) * c["kv_bytes"]
        touched = batch * queries * (c["latent"] + c["rope"] + c["latent"]) * 2.0
        memory = (read + touched) / (p.read_fraction * d.bandwidth_bytes_per_s)
        compute, block = flops / (p.compute_fraction * d.peak_flops_per_s), p.block_s * batch / d.sm_count
        together = math.sqrt(memory**2 + compute**2 + block**2)
        expected = p.floor_s + p.doubling_s * math.log2(1 + keys / 64) + together
        assert price(row, d, p) == pytest.approx(expected, rel=1e-6), c


# ---- experts


def expected_maximum(n: int) -> float:
    """Of n standard normals: n integral of x phi(x) Phi(x)^(n - 1)."""
    normal, step = NormalDist(), 1e-3
    points = [(i + 0.5) * step for i in range(int(-8 / step), int(8 / step))]
    return sum(x * n * normal.pdf(x) * normal.cdf(x) ** (n - 1) for x in points) * step


def shares(tokens: float, experts: int, alpha: float) -> list[float]:
    """Of the most to the least quiet expert: the inverse CDF of x^-alpha on [1, 0.8 N] at (i - 1/2) / E."""
    loads, top = [], max(0.8 * tokens, 1 + 1e-9)
    for i in range(experts):
        q = (i + 0.5) / experts
        if alpha == 0:
            loads.append(1.0)
        elif alpha == 1:
            loads.append(top**q)
        else:
            loads.append((1 + q * (top ** (1 - alpha) - 1)) ** (1 / (1 - alpha)))
    return [load / sum(loads) for load in loads]


class Busiest:
    """The busiest rank, expert by expert; `above` normal deviations is how far the busiest of the ranks lies out."""

    def __init__(
        self, tokens: float, experts: int, top_k: int, ranks: int, alpha: float, above: float, blocks: tuple[float, ...]
    ) -> None:
        local = experts // ranks
        s = shares(tokens, local, max(alpha, 0.0))
        everywhere = shares(tokens, experts, max(alpha, 0.0))
        normal = local / experts + above * pstdev(everywhere) * math.sqrt(local)
        popular = max(everywhere)
        beside = popular + (local - 1) * (1 - popular) / (experts - 1)
        busiest = 1.0 if ranks == 1 else max(normal, beside)
        self.rows = min(tokens * top_k * busiest, tokens * min(top_k, local))
        loads = [self.rows * share for share in s]
        self.touched = 0.0
        for share in s:
            if ranks == 1:
                self.touched += 1 - (1 - min(1 - 1e-12, top_k * share)) ** tokens
            else:
                self.touched += 1 - math.exp(-self.rows * share)
        self.touched = min(self.touched, self.rows)
        if alpha < 0:
            self.touched = min(self.rows, local)
            loads = [self.rows / max(self.touched, 1.0) if i < self.touched else 0.0 for i in range(local)]
        mean = self.rows / self.touched
        self.block = next((block for block in blocks if mean <= block), blocks[-1])
        number = sum(math.ceil(load / self.block - 1e-9) for load in loads)
        self.blocks = max(number - (local - self.touched), self.touched)


MAXIMA = {1: 0.0, 2: 0.564, 4: 1.029, 8: 1.424}


@pytest.mark.parametrize("ranks", [2, 4, 8, 16, 32, 64])
def test_expected_maxima_are_those_of_normal_variables(ranks: int) -> None:
    """Read off the spread of a rank's rows where no expert stands out: the constants are the integral, to 3 digits."""
    experts, top_k, tokens, alpha = ranks * 64, 1, 100.0, 0.05
    s = shares(tokens, experts, alpha)
    rows = float(busiest_rank(np.array([tokens]), experts, top_k, ranks, alpha, (16.0,)).rows[0])
    above = (rows / (tokens * top_k) - 1 / ranks) / (pstdev(s) * math.sqrt(64))
    assert above == pytest.approx(expected_maximum(ranks), abs=2e-3)


@pytest.mark.parametrize(
    "kernel", [Kernel(KernelName.EXPERTS, DType.BF16), Kernel(KernelName.EXPERTS_WEIGHT_ONLY, DType.INT4)], ids=str
)
@pytest.mark.parametrize("alpha", [-1.0, 0.0, 1.0, 1.01, 1.2])
@pytest.mark.parametrize("ranks", MAXIMA)
def test_experts(ranks: int, alpha: float, kernel: Kernel) -> None:
    blocks = (8.0, 16.0, 32.0, 64.0) if kernel.dtype is DType.INT4 else (16.0, 64.0, 128.0)
    rng = np.random.default_rng(7 + ranks)
    for _ in range(40):
        d, p = device(rng), parameters(rng, GroupedExperts)
        experts, top_k, tokens = int(one(rng, 8, 64, 128)), int(one(rng, 1, 2, 6, 8)), number(rng, 1, 50_000)
        hidden, width = 64 * number(rng, 1, 100), 64 * number(rng, 1, 50)
        expert_bytes = 3 * hidden * width * one(rng, 0.53, 1, 2)
        on = Busiest(tokens, experts, top_k, ranks, alpha, MAXIMA[ranks], blocks)
        expected = p.floor_s + p.doubling_s * math.log2(1 + tokens) + p.expert_s * on.touched
        for columns, depth in ((2 * width, hidden), (hidden, width)):
            across = math.ceil(columns / 128)
            tiles = max(1.0, on.blocks * across)
            waves = math.ceil(tiles / d.sm_count)
            compute = 2 * on.blocks * max(on.block, 16) * 128 * across * depth * (waves * d.sm_count / tiles)
            compute /= p.compute_fraction * d.peak_flops_per_s
            weights = on.touched * expert_bytes * columns * depth / (3 * hidden * width)
            memory, loop = weights / (p.read_fraction * d.bandwidth_bytes_per_s), waves * depth / 64 * p.k_block_s
            expected += (compute**3 + memory**3 + loop**3) ** (1 / 3)
        passes = p.activation_passes * on.rows * (2 * hidden + 2 * width) * 2.0
        passes += p.global_passes * tokens * top_k * hidden * 2.0
        expected += passes / (0.9 * d.bandwidth_bytes_per_s)
        columns = {"tokens": tokens, "hidden": hidden, "intermediate": width, "experts": experts, "top_k": top_k}
        columns |= {"ranks": ranks, "routing_alpha": alpha, "expert_bytes": expert_bytes, "activation_bytes": 2.0}
        row = one_row(Experts, "e", "l", 1, kernel, **columns)
        assert price(row, d, p) == pytest.approx(expected, rel=1e-6), columns


# ---- links and streams

BUS = {"all-reduce": 2.0, "all-gather": 1.0, "reduce-scatter": 1.0, "all-to-all": 1.0}


@pytest.mark.parametrize("name", BUS)
def test_rings(name: str) -> None:
    rng = np.random.default_rng(8)
    for _ in range(QUESTIONS):
        d, p = device(rng), parameters(rng, Ring)
        ranks, size = int(number(rng, 2, 16)), number(rng, 1, 1e10)
        crossing = BUS[name] * sum(size / ranks for _ in range(ranks - 1))  # a piece for every other rank
        rate = p.link_fraction * d.link_bytes_per_s * (2 / ranks) ** p.sharing
        expected = p.floor_s + p.hop_s * math.log2(ranks) + crossing / rate + math.sqrt(crossing * p.half_bytes) / rate
        row = one_row(Collective, "c", "l", 1, Kernel(KernelName(name), DType.BF16), message_bytes=size, ranks=ranks)
        assert price(row, d, p) == pytest.approx(expected, rel=1e-6)


def test_one_or_two_shots() -> None:
    rng, kinds = np.random.default_rng(9), set()
    for _ in range(QUESTIONS):
        d, p = device(rng), parameters(rng, OneOrTwoShot)
        ranks, size = int(number(rng, 2, 16)), number(rng, 1, 1e10)
        link = d.link_bytes_per_s * (2 / ranks) ** p.sharing
        one_shot = sum(size for _ in range(ranks - 1)) / (p.one_shot_fraction * link)
        two_shots = p.two_shot_s + 2 * (ranks - 1) * size / ranks / (p.two_shot_fraction * link)
        kinds.add(one_shot < two_shots)
        expected = p.floor_s + p.rank_s * (ranks - 1) + min(one_shot, two_shots)
        kernel = Kernel(KernelName.ALL_REDUCE, DType.BF16)
        row = one_row(Collective, "c", "l", 1, kernel, message_bytes=size, ranks=ranks)
        assert price(row, d, p) == pytest.approx(expected, rel=1e-6)
    assert kinds == {True, False}


def test_streams() -> None:
    rng = np.random.default_rng(10)
    for _ in range(QUESTIONS):
        d, p = device(rng), parameters(rng, Streaming)
        read, write, launches = number(rng, 1, 1e9), number(rng, 1, 1e9), one(rng, 1, 2, 5)
        moved = read + write
        misses = moved / (1 + (p.l2_fraction * d.l2_bytes / moved) ** 4)
        hits = (moved - misses) / (p.l2_bytes_per_clock_per_sm * d.clock_hz * d.sm_count)
        expected = launches * p.floor_s + misses / (p.memory_fraction * d.bandwidth_bytes_per_s) + hits
        kernel = Kernel(KernelName.ELEMENTWISE, DType.BF16)
        row = one_row(Elementwise, "s", "l", 1, kernel, read_bytes=read, write_bytes=write, launches=launches)
        assert price(row, d, p) == pytest.approx(expected, rel=1e-6)
