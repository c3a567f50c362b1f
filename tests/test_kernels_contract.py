"""What holds of every microkernel without running it: laziness, costs, shapes, and that records carry its cases."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from typing import Any

import numpy as np
import pytest

pytest.importorskip("triton", reason="Triton exists for Linux alone")

import torch

from roofplan import load_model
from roofplan.calibrate.columns import shape_columns
from roofplan.calibrate.records import Record, parse, tables, to_text
from roofplan.kernels import registry
from roofplan.kernels.experts import GroupedExperts
from roofplan.kernels.microkernel import Microkernel
from roofplan.kernels.shapes import EXPERT_LAYERS, NAMED
from roofplan.kernels.tables import cases, only, table_of
from roofplan.simulator.costs import work
from roofplan.simulator.operators import Attention, Elementwise, Experts, Gemm, Table
from roofplan.simulator.workload import layers as model_layers

KERNELS = registry.everything()
IDS = [kernel.name.replace(" ", "-") for kernel in KERNELS]
each_kernel = pytest.mark.parametrize("kernel", KERNELS, ids=IDS)
SCRATCH = {"partial", "weight"}  # partial results and what merges them, not counted
GIVEN = {"pages"}  # a page table, not counted


# The columns of a site: a shape is held out with every number of rows or tokens it may have.
SITES = {
    Gemm: ("n", "k"),
    Attention: ("heads", "kv_heads", "head_dim"),
    Experts: ("hidden", "intermediate", "experts", "top_k"),
}


def site(case: Table) -> tuple[float, ...]:
    """What a fit must not have seen: of streams and images the whole row."""
    if type(case) not in SITES:
        return shape(case)
    return tuple(float(getattr(case, field)[0]) for field in SITES[type(case)])


def shape(case: Table) -> tuple[float, ...]:
    return tuple(float(getattr(case, field)[0]) for _, field in shape_columns(case.kernel.name))


def test_the_registry_loads_neither_torch_nor_triton() -> None:
    code = (
        "import sys, roofplan.kernels, roofplan.kernels.registry, roofplan.kernels.microkernel\n"
        "assert not {'torch', 'triton', 'scipy'} & set(sys.modules)\n"
        "assert 'stream' in roofplan.kernels.registry.ALL"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_names_are_distinct_and_kernels_frozen() -> None:
    assert len({kernel.name for kernel in KERNELS}) == len(KERNELS)
    for kernel in KERNELS:
        with pytest.raises(AttributeError):
            kernel.anything = 1  # type: ignore[attr-defined]


@each_kernel
def test_costs_are_those_of_the_simulator(kernel: Microkernel[Any, Any]) -> None:
    for table in (kernel.calibration(True), kernel.calibration(False), kernel.held_out()):
        ours, theirs = (kernel.flops(table), kernel.bytes(table)), work(table)
        np.testing.assert_allclose(ours[0], theirs.flops, rtol=1e-12)
        unfused = 0.0
        if isinstance(table, Experts):  # ours gates in registers: gate and up are never written and read apart
            unfused = 2.0 * table.tokens * table.top_k * table.intermediate * table.activation_bytes
        np.testing.assert_allclose(ours[1] + unfused, theirs.traffic_bytes, rtol=1e-12)


@each_kernel
def test_bytes_are_those_of_the_tensors(kernel: Microkernel[Any, Any]) -> None:
    for case in cases(kernel.calibration(True)):
        inputs = kernel.make(case, "meta", 0)
        if isinstance(kernel, GroupedExperts):
            weights = inputs.gate_up[0].nbytes + inputs.down[0].nbytes
            assert weights == case.expert_bytes[0]
            wide = 2 * inputs.gated.nbytes + inputs.expanded.nbytes + inputs.expanded.nbytes
            chosen = kernel.bytes(case)[0] - wide
            alike = min(only(case.experts), only(case.tokens) * only(case.top_k))
            assert chosen == alike * weights or case.routing_alpha[0] == 0
            continue
        decode = kernel.identity.name == "attention-decode"
        counted = {
            name: value.nbytes
            for name, value in inputs._asdict().items()
            if isinstance(value, torch.Tensor) and not (name == "partial" or (decode and name in SCRATCH | GIVEN))
        }
        if decode:  # whole pages are stored, whole tokens read
            for name in ("k", "v"):
                tensor = getattr(inputs, name)
                counted[name] = tensor[0, 0].nbytes * inputs.kv_tokens * only(case.sequences)
        seen_only = kernel.identity.name == "attention-prefill" and case.window[0] < case.kv_tokens[0]
        if not seen_only:
            assert sum(counted.values()) == kernel.bytes(case)[0], counted


@each_kernel
def test_whole_shapes_are_held_out(kernel: Microkernel[Any, Any]) -> None:
    fitted = {site(case) for quick in (True, False) for case in cases(kernel.calibration(quick))}
    judged = [shape(case) for case in cases(kernel.held_out())]
    assert len(judged) >= 4 and len(set(judged)) == len(judged)
    leaked = [case.label for case in cases(kernel.held_out()) if site(case) in fitted]
    assert not leaked, leaked
    assert kernel.held_out().kernel == kernel.calibration(True).kernel == kernel.identity


def test_a_quick_calibration_is_quick() -> None:
    counts = Counter[str]()
    for kernel in KERNELS:
        counts[str(kernel.identity)] += len(kernel.calibration(True).label)
    assert max(counts.values()) <= 60, counts


@each_kernel
def test_records_carry_every_case(kernel: Microkernel[Any, Any]) -> None:
    table = kernel.calibration(True)
    columns = shape_columns(kernel.identity.name)
    rows = [
        Record(
            "h200",
            str(kernel.identity.name),
            kernel.identity.dtype,
            1e-3,
            "s",
            tuple((column, float(getattr(case, field)[0])) for column, field in columns),
        )
        for case in cases(table)
    ]
    (read,) = tables(parse(to_text(rows), "records.csv"))
    assert type(read.table) is type(table)
    for _, field in columns:
        np.testing.assert_array_equal(getattr(read.table, field), getattr(table, field))
    for case in cases(read.table)[:3]:
        assert kernel.make(case, "meta", 0)


@each_kernel
def test_grids_are_known_without_a_device(kernel: Microkernel[Any, Any]) -> None:
    for case in (*cases(kernel.calibration(True)), *cases(kernel.held_out())):
        calls = kernel.calls(kernel.make(case, "meta", 0), max(90, kernel.least_capability))
        assert all(1 <= call.programs < 2**31 and len(call.grid) <= 3 for call in calls)
        assert all(side <= 65535 for call in calls for side in call.grid[1:]), case.label
        assert {call.warps for call in calls} <= {1, 2, 4, 8, 16}


def test_held_out_layers_are_those_of_the_bundled_models() -> None:
    for layers in NAMED:
        model = load_model(layers.name)
        attention, ffn = model.blocks[0].attention, model.blocks[0].ffn
        assert isinstance(attention, model_layers.Attention) and isinstance(ffn, model_layers.Mlp)
        ours = (layers.hidden, layers.intermediate, layers.heads, layers.kv_heads, layers.head_dim)
        theirs = (model.hidden, ffn.intermediate, attention.heads, attention.kv_heads, attention.head_dim)
        assert ours == theirs, layers.name
    for layer in EXPERT_LAYERS:
        model = load_model(layer.name)
        ffn = model.blocks[0].ffn
        assert isinstance(ffn, model_layers.Experts)
        assert layer[1:] == (model.hidden, ffn.intermediate, ffn.experts, ffn.top_k), layer.name


def test_a_table_is_read_back_row_by_row() -> None:
    kernel = KERNELS[0].identity
    table = table_of(Elementwise, kernel, "label", read_bytes=[2, 4], write_bytes=6, launches=1)
    assert [only(case.read_bytes) for case in cases(table)] == [2, 4]
    assert [only(case.write_bytes) for case in cases(table)] == [6, 6]
    with pytest.raises(ValueError, match="whole"):
        only(np.array([0.5]))
