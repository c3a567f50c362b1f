"""The constants of every cost model: few, physical, named. What each one means stands beside it.

Fractions are of a datasheet rate, cycles of the clock that rate refers to, so that both carry over to a relative of
the device they were fitted on; launch floors and other latencies are seconds. The formulas are in `costs/`.
"""

from __future__ import annotations

from typing import NamedTuple


class ThreeConstants(NamedTuple):
    """T = floor + max(FLOPs / (compute_fraction * peak), bytes / (memory_fraction * bandwidth)).

    The rule for every operator class and device without a model of its own.
    """

    floor_s: float
    compute_fraction: float
    memory_fraction: float


class SoftRoofline(NamedTuple):
    """T = floor + ((FLOPs / (compute_fraction * peak))^p + (bytes / (memory_fraction * bandwidth))^p)^(1/p).

    Three constants with a fourth: p is infinite where arithmetic and traffic overlap perfectly, 1 where they add, and
    less where each slows the other. What a library on a CPU is described by.
    """

    floor_s: float
    compute_fraction: float
    memory_fraction: float
    overlap: float


class PackedGemm(NamedTuple):
    """A product of a CPU library that packs weights into panels; `costs/packed_gemm.py` has the formula."""

    floor_s: float
    compute_fraction: float
    memory_fraction: float
    packing_passes: float  # over the weights
    packing_rows: float  # of activations, from which weights are packed


class LatencyBandwidth(NamedTuple):
    """T = floor + hop * log2(ranks) + traffic / (link_fraction * link bandwidth), the alpha-beta model."""

    floor_s: float
    hop_s: float
    link_fraction: float


class SplitKGemm(NamedTuple):
    """A library GEMM that picks among tiles and splits of k; `costs/gemm.py` has the formula."""

    floor_s: float  # launch of a captured kernel
    compute_fraction: float  # sustained share of the dense matrix rate
    read_fraction: float  # of memory bandwidth, operands
    write_fraction: float  # of memory bandwidth, result
    l2_write_bytes_per_clock_per_sm: float  # result that stays in the last-level cache
    l2_read_bytes_per_clock_per_sm: float  # operands read again by other tiles
    exposed_write: float  # share of the write that no later tile hides
    k_block_cycles: float  # one step of 128 bytes along k, whatever the tile
    dram_latency_s: float  # first touch of cold weights
    split_s: float  # the second kernel that adds up a split k
    overlap: float  # exponent of the norm over compute, k-loop and memory; infinite is a perfect roofline
    droop: float  # share by which a long kernel slows as the clock gives way to the power limit
    droop_s: float  # time scale of that
    l2_fraction: float  # usable share of the last-level cache
    most_splits: float  # structural, not fitted: 1 where the library never splits k


class Quantise(NamedTuple):
    """The kernels around a GEMM in a narrow format: activations are scaled and narrowed first."""

    row_s: float  # one row's scale
    quantise_fraction: float  # of memory bandwidth, for reading 2 bytes and writing 1 an element
    misaligned_fraction: float  # of memory bandwidth, for repacking weights where m is no multiple of 4


class ScaledGemm(NamedTuple):
    """A GEMM in a narrow format with the quantisation of its activations."""

    gemm: SplitKGemm
    quantise: Quantise


class Streaming(NamedTuple):
    """Bytes in, bytes out; `costs/elementwise.py` has the formula."""

    floor_s: float
    memory_fraction: float
    l2_bytes_per_clock_per_sm: float
    l2_fraction: float  # usable share of the last-level cache


class FlashPrefill(NamedTuple):
    """Fused attention of many queries, tile by tile; `costs/attention.py` has the formula."""

    floor_s: float
    tile_s: float  # start and end of one tile of queries on one multiprocessor
    compute_fraction: float  # of the dense matrix rate, for the two products of a pair
    exponential_share: float  # of the exponentials that no product hides, at 16 a clock and multiprocessor
    query_passes: float  # times queries and outputs cross memory
    kv_passes: float  # times keys and values do, appending to the cache included
    packs_heads: float  # structural, not fitted: 1 where heads that share keys also share a tile


class SplitKvDecode(NamedTuple):
    """Fused attention of one query a sequence, the keys split over multiprocessors; see `costs/attention.py`."""

    floor_s: float
    block_s: float  # one (sequence, KV head) on one multiprocessor, head dimension apart
    block_dim_s: float  # the same, for each 128 of head dimension
    read_fraction: float  # of memory bandwidth, the cache read
    l2_speed: float  # how much faster a cache that stayed in L2 is read; benchmarks only
    l2_fraction: float  # usable share of the last-level cache
    doubling_s: float  # combining partial results, for each doubling of the context beyond 64
    step_s: float  # one step of 128 keys on one multiprocessor


class LatentDecode(NamedTuple):
    """Multi-head latent attention of one query a sequence: every head reads one latent; `costs/latent_attention.py`."""

    floor_s: float
    compute_fraction: float
    read_fraction: float
    block_s: float  # one sequence on one multiprocessor
    doubling_s: float


class GroupedExperts(NamedTuple):
    """A fused mixture-of-experts layer: two grouped GEMMs and the traffic around them; see `costs/experts.py`."""

    floor_s: float
    compute_fraction: float
    read_fraction: float  # of memory bandwidth, weights of the touched experts
    activation_passes: float  # times a rank's assignments cross memory
    k_block_s: float  # one step of 64 along k
    expert_s: float  # one more touched expert
    global_passes: float  # times all ranks' assignments do: routing, scatter, reduction
    doubling_s: float  # sorting tokens, for each doubling of their number


class Ring(NamedTuple):
    """A collective over a switch or a ring; `costs/collective.py`."""

    floor_s: float
    hop_s: float  # for each doubling of the ranks
    link_fraction: float
    half_bytes: float  # traffic at which filling the pipeline costs as much as moving it
    sharing: (
        float  # each link's rate falls as (2 / ranks)^sharing: 0 behind a switch, about 1 over a shared host bridge
    )


class OneOrTwoShot(NamedTuple):
    """An engine's own all-reduce: everybody reads everything, or a reduce-scatter and an all-gather."""

    floor_s: float
    rank_s: float  # for each further rank
    one_shot_fraction: float  # of the link bandwidth
    two_shot_s: float  # the second phase's own latency
    two_shot_fraction: float
    sharing: float  # as in `Ring`
