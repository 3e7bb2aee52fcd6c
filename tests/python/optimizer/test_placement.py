"""Where the momentum lives: what may be asked for, and what "auto" takes by rates and bytes."""

import math

import pytest
import torch

from zeromuon import _core
from zeromuon.optimizer import placement
from zeromuon.optimizer.options import MOMENTUM_HOMES
from zeromuon.optimizer.placement import Rates

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")
GB, PLENTY = 1e9, 10**12
MUON, ADAMW = 10**9, 10**9  # elements
MOMENTA = 4 * MUON  # bytes
# A PCIe 4 link, 200 GB/s of host DRAM, an H100; products take no time unless a test says so.
USUAL = Rates(
    to_device_bytes_per_s=25 * GB,
    to_host_bytes_per_s=25 * GB,
    dram_bytes_per_s=200 * GB,
    device_bytes_per_s=3000 * GB,
    flops_per_s=math.inf,
)


def changed(base, **values):
    return type(base)(**{**vars(base), **values})


def _sub_group(role, rows, cols, count):
    shape = {"rows": rows, "cols": cols} if role == "muon" else {"rows": 0, "cols": 0}
    numel = rows * cols
    return _core.SubGroupSpec(
        role,
        [
            _core.ParamSpec(
                name=f"{role}{k}",
                numel=numel,
                chunk=numel,
                shard_offset=k * numel,
                **shape,
                decay=True,
                transposed=False,
            )
            for k in range(count)
        ],
    )


def plan_for(home, momentum="float32", wire="bfloat16", casts="on_device", adamw=False):
    groups = [_sub_group("muon", 4000, 2500, MUON // 10**7)]
    if adamw:
        groups.append(_sub_group("adamw", ADAMW, 1, 1))
    options = _core.PlanOptions(
        world_size=1,
        newton_schulz=_core.NewtonSchulzRequest(form="auto", dtype="auto", coefficients=_core.CoefficientSet("jordan")),
        target=_core.cuda_target(),
        lanes=1,
        scale="match_rms_adamw",
        wire_dtype=wire,
        flow=_core.Flow(staged=True, momentum_home=MOMENTUM_HOMES[home], momentum_dtype=momentum, casts=casts),
    )
    return _core.make_step_plan(options, groups)


def plans(**given):
    return {home: plan_for(home, **given) for home in placement.MEANINGS}


@pytest.mark.parametrize(
    "home, momentum, expected",
    [
        ("cpu", "float32", (4, 2, 26)),
        ("cpu_streamed", "float32", (10, 6, 12)),
        ("device", "float32", (6, 2, 12)),
        ("cpu", "bfloat16", (4, 2, 22)),
        ("cpu_streamed", "bfloat16", (8, 4, 12)),
        ("device", "bfloat16", (6, 2, 12)),
    ],
)
def test_bytes_per_muon_parameter_in_bf16_training(home, momentum, expected):
    assert placement.bytes_per_parameter(plan_for(home, momentum)) == expected


def test_without_low_precision_weights_and_with_an_fp32_wire():
    plan = plan_for("cpu", wire="float32", casts="none")
    assert placement.bytes_per_parameter(plan) == (4, 4, 28)


def test_a_plan_says_how_long_each_lane_is_busy():
    seconds = plan_for("device", adamw=True).seconds(
        dram_bytes_per_s=1e9,
        to_device_bytes_per_s=1e9,
        to_host_bytes_per_s=1e9,
        device_bytes_per_s=1e9,
        flops_per_s=math.inf,
    )
    # AdamW: weight and two states read and written, a gradient read, a cast written and sent.
    assert tuple(seconds) == _core.LANES
    assert seconds["cpu"] == pytest.approx(12 + 30)
    assert seconds["to_device"] == pytest.approx(6 + 2 + (4 + 8 + 2))  # the momentum runs in the stream of the copies
    assert seconds["to_host"] == pytest.approx(2)
    assert seconds["collective"] == 0
    # What Newton-Schulz reads and writes between its products; their operations take no time here.
    assert 12 < seconds["compute"] < 60


CHOICES = {
    "slow link, fast DRAM: computed where it is stored": (USUAL, False, 0, "cpu"),
    "slow DRAM, fast link: streamed": (
        changed(USUAL, to_device_bytes_per_s=300 * GB, to_host_bytes_per_s=300 * GB, dram_bytes_per_s=100 * GB),
        False,
        0,
        "cpu_streamed",
    ),
    "the DRAM is the bottleneck and the momentum fits: device": (
        changed(USUAL, dram_bytes_per_s=50 * GB),
        False,
        PLENTY,
        "device",
    ),
    "as before, and it does not fit: least DRAM of the rest": (
        changed(USUAL, to_device_bytes_per_s=100 * GB, to_host_bytes_per_s=100 * GB, dram_bytes_per_s=50 * GB),
        False,
        0,
        "cpu_streamed",
    ),
    "the link is the bottleneck: least link bytes, though the device has room": (
        changed(USUAL, to_device_bytes_per_s=5 * GB),
        False,
        PLENTY,
        "cpu",
    ),
    "Newton-Schulz takes longest in any case: its device gets no more work": (
        changed(USUAL, flops_per_s=1e12),
        False,
        PLENTY,
        "cpu",
    ),
    "AdamW keeps the DRAM busy": (
        changed(USUAL, to_device_bytes_per_s=60 * GB, to_host_bytes_per_s=60 * GB),
        True,
        PLENTY,
        "device",
    ),
}


@pytest.mark.parametrize("rates, adamw, free, expected", CHOICES.values(), ids=CHOICES)
def test_auto_takes_the_home_whose_busiest_resource_is_done_first(rates, adamw, free, expected):
    assert placement.choose_momentum(plans(adamw=adamw), rates, MOMENTA, free).home == expected


def test_device_is_taken_only_when_a_quarter_of_the_free_memory_holds_it():
    rates, made = changed(USUAL, dram_bytes_per_s=50 * GB), plans()
    assert placement.choose_momentum(made, rates, MOMENTA, 16 * 10**9).home == "device"
    assert placement.choose_momentum(made, rates, MOMENTA, 16 * 10**9 - 4).home != "device"


def test_the_reason_names_the_bytes_and_the_times_of_all_homes():
    reason = placement.choose_momentum(plans(), USUAL, MOMENTA, 0).reason
    assert reason.startswith("momentum: cpu (computed there): 4+2 B link and 26 B DRAM per parameter take 160.0 ms")
    assert "cpu_streamed 10+6 B link and 12 B DRAM per parameter take 404.7 ms" in reason
    assert "device does not fit: 3815 MiB, 0 MiB are free" in reason


def test_all_ranks_take_the_slowest_of_each_rate():
    other = changed(USUAL, to_device_bytes_per_s=1.0, flops_per_s=2.0)
    assert placement.slowest([USUAL, other]) == other
    assert placement.slowest([other, changed(USUAL, dram_bytes_per_s=3.0)]) == changed(other, dram_bytes_per_s=3.0)


@pytest.mark.parametrize(
    "option, shard, compute, message",
    [
        ("cpu_streamed", CPU, CPU, "no other device to stream to"),
        ("cpu_streamed", GPU, GPU, "offload_optimizer.device cpu"),
        ("cpu", GPU, GPU, "set offload_optimizer.device to cpu"),
    ],
)
def test_a_home_that_is_not_there_is_refused_with_what_to_do(option, shard, compute, message):
    with pytest.raises(ValueError, match=message):
        placement.check_momentum_device(option, shard, compute)


@pytest.mark.parametrize(
    "option, shard, compute",
    [
        *[(option, CPU, GPU) for option in ("auto", "cpu", "cpu_streamed", "device")],
        ("auto", CPU, CPU),
        ("cpu", CPU, CPU),
        ("device", CPU, CPU),
        ("auto", GPU, GPU),
        ("device", GPU, GPU),
    ],
)
def test_homes_that_are_there_are_taken(option, shard, compute):
    placement.check_momentum_device(option, shard, compute)
    assert placement.is_a_choice(option, shard, compute) == (option == "auto" and shard != compute)
