"""Which calibration answers, and with what right: every rule of the order, with synthetic calibrations."""

import dataclasses
import math
from typing import Any

import pytest

from roofplan.calibrate.transfer import (
    ANY_DEVICE,
    ASSUMED_LOG_SD,
    COLLECTIVES,
    ENGINES,
    KIN,
    SAME_DATASHEET,
    Calibrations,
    kindred,
    may_lend,
)
from roofplan.dtypes import DType
from roofplan.hwspecs.device import Device, Fact, Fleet, Kind
from roofplan.hwspecs.load import fleet_of, load
from roofplan.simulator.calibration import Basis, Calibration, Denominators, Hull, Provenance, Resolved
from roofplan.simulator.costs import datasheet
from roofplan.simulator.estimate import Tier
from roofplan.simulator.operators import Kernel, KernelName
from roofplan.simulator.parameters import ThreeConstants

GEMM, REDUCE = Kernel(KernelName.GEMM, DType.BF16), Kernel(KernelName.ALL_REDUCE, DType.BF16)
OWN, SHARED, LENT, LENT_OWN = 0.05, 0.03, 0.2, 0.1


def fact(value: float) -> Fact:
    return Fact(value, "test", Kind.DATASHEET)


def fleet(
    key: str = "mine",
    architecture: str = "hopper",
    family: str = "wgmma",
    intensity: float = 1.0,
    link: float = 4.5e11,
    scale: float = 1.0,
) -> Fleet:
    """One device: `intensity` is how many times more bytes it moves for each FLOP than an H200."""
    base = fleet_of(load(Device, "h200"))
    rates = {k: fact(v.value * scale) for k, v in base.device.peak_dense_flops_per_s.items()}
    device = dataclasses.replace(
        base.device,
        key=key,
        architecture=architecture,
        architecture_class=family,
        peak_dense_flops_per_s=rates,
        bandwidth_bytes_per_s=fact(base.device.bandwidth_bytes_per_s.value * intensity * scale),
    )
    interconnect = dataclasses.replace(base.interconnect, bandwidth_bytes_per_s=fact(link))
    return dataclasses.replace(base, device=device, interconnect=interconnect)


def calibrated(on: Fleet, engine: str = "vllm", kernel: Kernel = GEMM, **changes: Any) -> Calibration:
    """A calibration made on that fleet's device."""
    constants = ThreeConstants(3e-6, 0.7, 0.8)
    made = Calibration(
        device=on.device.key,
        architecture=on.device.architecture,
        architecture_class=on.device.architecture_class,
        kernel=kernel,
        engine=engine,
        version="1",
        source="test",
        basis=Basis.FITTED,
        parameters=constants,
        baseline=constants,
        log_sd=(0.1,) * 3,
        correlation=((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
        at_bound=(),
        denominators=datasheet(on, kernel),
        hull=Hull((0.0, 20.0), (0.0, 20.0)),
        residual_quantiles=(-0.1, 0.0, 0.1),
        own_log_sd=OWN,
        shared_log_sd=SHARED,
        transfer_log_sd=LENT,
        transfer_own_log_sd=LENT_OWN,
        accuracy=None,
        provenance=Provenance("test", "test", "2026-01-01", 1, 1),
    )
    return made._replace(**changes)


def pool(kernel: Kernel = GEMM, basis: Basis = Basis.POOLED) -> Calibration:
    nowhere = {"device": ANY_DEVICE, "architecture": ANY_DEVICE, "architecture_class": ANY_DEVICE, "basis": basis}
    return calibrated(fleet(), "pooled", kernel, **nowhere)


def ask(on: Fleet, *known: Calibration, engine: str = "vllm", kernel: Kernel = GEMM) -> Resolved:
    """The answer, which must not depend on the order of what is known."""
    answer = Calibrations(on, known, engine).resolve(kernel)
    again = Calibrations(on, known[::-1], engine).resolve(kernel)
    assert again.calibration == answer.calibration and again.tier is answer.tier
    return answer


MINE = fleet()
SIBLING = fleet("sibling", intensity=3.0)  # same architecture, far from it in bytes per FLOP
COUSIN = fleet("cousin", "blackwell", "tcgen05")  # kin, of the very same rates
STRANGER = fleet("stranger", "ada", "mma.sync")


# ---- the order


def test_the_order_from_the_best_to_the_last() -> None:
    """Each time the best one is taken away, the next one answers, with the errors of its tier."""
    order = [
        (calibrated(MINE, "own kernels"), Tier.CALIBRATED),
        (calibrated(MINE, "vllm"), Tier.CALIBRATED),
        (calibrated(MINE, "sglang"), Tier.TRANSFERRED),
        (calibrated(SIBLING, "own kernels"), Tier.TRANSFERRED),
        (calibrated(SIBLING, "vllm"), Tier.TRANSFERRED),
        (calibrated(SIBLING, "trtllm"), Tier.TRANSFERRED),
        (calibrated(COUSIN, "vllm"), Tier.TRANSFERRED),
        (calibrated(COUSIN, "sglang"), Tier.TRANSFERRED),
        (pool(), Tier.DATASHEET),
    ]
    for i, (expected, tier) in enumerate(order):
        answer = ask(MINE, *(c for c, _ in order[i:]))
        assert answer.calibration == expected and answer.tier is tier, i
        errors = (SHARED, OWN) if tier is Tier.CALIBRATED else (LENT, LENT_OWN)
        assert (answer.shared_log_sd, answer.own_log_sd) == errors
        assert str(GEMM) in answer.reason and expected.device in answer.reason


@pytest.mark.parametrize("engine", ENGINES)
def test_the_engine_asked_about_comes_first(engine: str) -> None:
    known = [calibrated(MINE, e) for e in ENGINES]
    answer = ask(MINE, *known, engine=engine)
    assert answer.calibration.engine == engine and answer.tier is Tier.CALIBRATED
    if engine != ENGINES[0]:  # without its own the first of the engines stands in
        rest = [c for c in known if c.engine != engine]
        other = ask(MINE, *rest, engine=engine)
        assert other.calibration.engine == ENGINES[0] and other.tier is Tier.TRANSFERRED
        assert engine in other.reason and "another engine" in other.reason


@pytest.mark.parametrize("engine", ENGINES)
def test_what_every_engine_calls_is_calibrated_for_each(engine: str) -> None:
    nccl = calibrated(MINE, "nccl", REDUCE)
    answer = ask(
        MINE, nccl, *(calibrated(MINE, e, REDUCE) for e in ENGINES if e != engine), engine=engine, kernel=REDUCE
    )
    assert answer.calibration == nccl and answer.tier is Tier.CALIBRATED


@pytest.mark.parametrize("engine", ENGINES)
def test_a_users_own_measurements_on_its_device_are_calibrated(engine: str) -> None:
    own = calibrated(MINE, "mine")
    others = (calibrated(SIBLING), calibrated(COUSIN), pool(), *(calibrated(MINE, e) for e in ENGINES if e != engine))
    answer = ask(MINE, own, *others, engine=engine)
    assert answer.calibration == own and answer.tier is Tier.CALIBRATED
    assert (answer.shared_log_sd, answer.own_log_sd) == (SHARED, OWN)


def test_of_equal_ones_the_first_answers() -> None:
    """Files a user names are read before the bundled ones."""
    mine, bundled = calibrated(MINE, version="mine"), calibrated(MINE, version="bundled")
    assert Calibrations(MINE, (mine, bundled)).resolve(GEMM).calibration is mine
    assert Calibrations(MINE, (bundled, mine)).resolve(GEMM).calibration is bundled


# ---- relatives


def test_bytes_per_flop_decide_among_relatives_of_one_architecture_and_engine() -> None:
    """By ratio, either way: twice the bytes a FLOP is as far as half of them."""
    near, far = calibrated(fleet("near", intensity=1.5)), calibrated(fleet("far", intensity=1 / 1.6))
    assert ask(MINE, near, far).calibration == near
    farther = calibrated(fleet("farther", intensity=1.7))
    assert ask(MINE, farther, far).calibration == far
    scaled = calibrated(fleet("scaled", scale=0.1))  # ten times slower in everything is no distance
    assert ask(MINE, near, far, scaled).calibration == scaled


def test_an_engine_outweighs_the_ratio_and_an_architecture_the_engine() -> None:
    other_engine = calibrated(fleet("same rates"), "sglang")
    assert ask(MINE, calibrated(SIBLING), other_engine).calibration.device == "sibling"
    assert ask(MINE, calibrated(COUSIN), other_engine).calibration == other_engine


@pytest.mark.parametrize(
    ("one", "other", "kin"),
    [
        ("wgmma", "wgmma", True),
        ("mma.sync", "mma.sync", True),
        ("wgmma", "tcgen05", True),
        ("tcgen05", "wgmma", True),
        ("wgmma", "mma.sync", False),
        ("tcgen05", "mma.sync", False),
        ("cpu", "wgmma", False),
        (ANY_DEVICE, "wgmma", False),
    ],
)
def test_who_is_kin(one: str, other: str, kin: bool) -> None:
    assert kindred(one, other) is kindred(other, one) is kin
    lender, asking = fleet("lender", one, one), fleet("asking", other, other)
    answer = ask(asking, calibrated(lender), pool())
    assert answer.calibration.device == ("lender" if kin else ANY_DEVICE)
    assert answer.tier is (Tier.TRANSFERRED if kin else Tier.DATASHEET)


def test_strangers_never_lend() -> None:
    assert ask(MINE, calibrated(STRANGER), pool()).tier is Tier.DATASHEET
    with pytest.raises(LookupError, match="no calibration and no kin"):
        ask(MINE, calibrated(STRANGER))


@pytest.mark.parametrize("name", KernelName)
def test_collectives_over_nvlink_and_over_pcie_never_lend_to_each_other(name: KernelName) -> None:
    kernel = Kernel(name, DType.BF16)
    nvlink, pcie = fleet("nvlink", link=4.5e11), fleet("pcie", link=6.3e10)
    slower = fleet("older nvlink", link=3e11)
    for here, there in ((nvlink, pcie), (pcie, nvlink)):
        lender = calibrated(there, "nccl", kernel)
        answer = ask(here, lender, pool(kernel), kernel=kernel)
        lends = name not in COLLECTIVES
        assert (answer.calibration == lender) is lends
        assert may_lend(lender, datasheet(here, kernel)) is lends
    assert ask(slower, calibrated(nvlink, "nccl", kernel), pool(kernel), kernel=kernel).calibration.device == "nvlink"


# ---- the same device


@pytest.mark.parametrize("by", [1.0, 1 + 0.8 * SAME_DATASHEET, 1 - 0.8 * SAME_DATASHEET])
def test_a_device_with_the_numbers_of_the_fit_is_the_device(by: float) -> None:
    assert ask(fleet(scale=by), calibrated(MINE), pool()).tier is Tier.CALIBRATED


@pytest.mark.parametrize("by", [0.5, 1 - 1.3 * SAME_DATASHEET, 1 + 1.3 * SAME_DATASHEET, 3.0])
def test_a_file_of_other_numbers_is_another_device(by: float) -> None:
    """A key alone proves nothing: the fractions still help, as those of a relative."""
    for changed in (fleet(scale=by), fleet(intensity=by)):
        answer = ask(changed, calibrated(MINE), pool())
        assert answer.tier is Tier.TRANSFERRED and answer.shared_log_sd == LENT


def test_of_links_only_the_link_must_be_the_same() -> None:
    nccl = calibrated(MINE, "nccl", REDUCE)
    assert ask(fleet(scale=2.0), nccl, pool(REDUCE), kernel=REDUCE).tier is Tier.CALIBRATED
    assert ask(fleet(link=3e11), nccl, pool(REDUCE), kernel=REDUCE).tier is Tier.TRANSFERRED
    assert ask(fleet(link=6e10), nccl, pool(REDUCE), kernel=REDUCE).tier is Tier.DATASHEET
    assert ask(fleet(link=3e11), calibrated(MINE), pool()).tier is Tier.CALIBRATED


def test_stated_constants_are_assumed_wherever_they_stand() -> None:
    own = ask(MINE, calibrated(MINE, basis=Basis.ASSUMED), pool())
    assert own.tier is Tier.ASSUMED and (own.shared_log_sd, own.own_log_sd) == (SHARED, OWN)
    assert ask(MINE, pool(basis=Basis.ASSUMED)).tier is Tier.ASSUMED


# ---- kin of kernels


@pytest.mark.parametrize("kernel", KIN, ids=str)
def test_an_unmeasured_kernel_borrows_from_its_kin(kernel: Kernel) -> None:
    lender = KIN[kernel]
    while lender in KIN:
        lender = KIN[lender]
    answer = ask(MINE, calibrated(MINE, kernel=lender), kernel=kernel)
    assert answer.calibration.kernel == lender
    steps, at = [], kernel
    while at in KIN:
        steps.append((at, KIN[at]))
        at = KIN[at]
    named = [a.name is b.name and (a.dtype, b.dtype) == (DType.FP16, DType.BF16) for a, b in steps]
    assert answer.tier is (Tier.CALIBRATED if all(named) else Tier.ASSUMED)
    assert answer.own_log_sd == pytest.approx(math.hypot(OWN, *[ASSUMED_LOG_SD] * named.count(False)))
    assert answer.shared_log_sd == SHARED
    direct = ask(MINE, calibrated(MINE, kernel=lender), calibrated(MINE, kernel=kernel), kernel=kernel)
    assert direct.calibration.kernel == kernel and direct.tier is Tier.CALIBRATED
    pooled = ask(MINE, calibrated(MINE, kernel=lender), pool(kernel), kernel=kernel)
    assert pooled.calibration.kernel == kernel, "anything of the kernel itself comes before its kin"


def test_kin_ends_and_never_turns_around() -> None:
    for kernel in KIN:
        seen, at = [kernel], kernel
        while at in KIN:
            at = KIN[at]
            assert at not in seen
            seen.append(at)


def test_answers_are_remembered_for_the_fleet() -> None:
    calibrations = Calibrations(MINE, (calibrated(MINE), pool()))
    assert calibrations.resolve(GEMM) is calibrations.resolve(GEMM)
    assert Calibrations(STRANGER, calibrations.known).resolve(GEMM).tier is Tier.DATASHEET


def test_lending_looks_at_links_only() -> None:
    d = Denominators(1.0, 1.0, 4.5e11)
    lender = calibrated(MINE, "nccl", REDUCE, denominators=d)
    assert may_lend(lender, d._replace(link_bytes_per_s=1.01e11)) and not may_lend(
        lender, d._replace(link_bytes_per_s=1e11)
    )
