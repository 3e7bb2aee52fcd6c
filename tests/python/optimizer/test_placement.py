"""Where the momentum lives: what may be asked for, and what "auto" takes by rates and bytes."""

import pytest
import torch

from zeromuon.optimizer import placement
from zeromuon.optimizer.placement import Load, Rates

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")
GB, PLENTY = 1e9, 10**12
# A PCIe 4 link, 200 GB/s of host DRAM, an H100.
USUAL = Rates(to_device=25 * GB, to_host=25 * GB, dram=200 * GB, device_memory=3000 * GB, flops=400e12)
BF16 = Load(
    muon_numel=10**9, adamw_numel=0, wire_bytes=2, momentum_bytes=4, low_precision_bytes=2, newton_schulz_flops=0
)


def changed(base, **values):
    return type(base)(**{**vars(base), **values})


@pytest.mark.parametrize(
    "home, momentum, expected",
    [
        ("cpu", 4, (4, 2, 32)),
        ("cpu_streamed", 4, (10, 6, 28)),
        ("device", 4, (6, 2, 20)),
        ("cpu", 2, (4, 2, 28)),
        ("cpu_streamed", 2, (8, 4, 24)),
        ("device", 2, (6, 2, 20)),
    ],
)
def test_bytes_per_muon_parameter_in_bf16_training(home, momentum, expected):
    assert placement.bytes_per_parameter(home, changed(BF16, momentum_bytes=momentum)) == expected


def test_without_low_precision_weights_and_with_an_fp32_wire():
    load = changed(BF16, wire_bytes=4, low_precision_bytes=0)
    assert placement.bytes_per_parameter("cpu", load) == (4, 4, 36)


CHOICES = {
    "slow link, fast DRAM: computed where it is stored": (USUAL, BF16, 0, "cpu"),
    "slow DRAM, fast link: streamed": (
        changed(USUAL, to_device=300 * GB, to_host=300 * GB, dram=100 * GB),
        BF16,
        0,
        "cpu_streamed",
    ),
    "the DRAM is the bottleneck and the momentum fits: device": (changed(USUAL, dram=50 * GB), BF16, PLENTY, "device"),
    "as before, and it does not fit: least DRAM of the rest": (
        changed(USUAL, to_device=100 * GB, to_host=100 * GB, dram=50 * GB),
        BF16,
        0,
        "cpu_streamed",
    ),
    "the link is the bottleneck: least link bytes, though the device has room": (
        changed(USUAL, to_device=5 * GB),
        BF16,
        PLENTY,
        "cpu",
    ),
    "Newton-Schulz takes longest in any case: its device gets no more work": (
        USUAL,
        changed(BF16, newton_schulz_flops=1e16),
        PLENTY,
        "cpu",
    ),
    "AdamW keeps the DRAM busy": (
        changed(USUAL, to_device=60 * GB, to_host=60 * GB),
        changed(BF16, adamw_numel=10**9),
        PLENTY,
        "device",
    ),
}


@pytest.mark.parametrize("rates, load, free, expected", CHOICES.values(), ids=CHOICES)
def test_auto_takes_the_home_whose_busiest_resource_is_done_first(rates, load, free, expected):
    assert placement.choose_momentum(rates, load, free).home == expected


def test_device_is_taken_only_when_a_quarter_of_the_free_memory_holds_it():
    rates = changed(USUAL, dram=50 * GB)
    assert placement.choose_momentum(rates, BF16, 16 * 10**9).home == "device"
    assert placement.choose_momentum(rates, BF16, 16 * 10**9 - 4).home != "device"


def test_the_reason_names_the_bytes_and_the_times_of_all_homes():
    reason = placement.choose_momentum(USUAL, BF16, 0).reason
    assert reason.startswith("momentum: cpu (computed there): 4+2 B link and 32 B DRAM per parameter take 160.0 ms")
    assert "cpu_streamed 10+6 B link and 28 B DRAM per parameter take 400.0 ms" in reason
    assert "device does not fit: 3815 MiB, 0 MiB are free" in reason


def test_all_ranks_take_the_slowest_of_each_rate():
    other = changed(USUAL, to_device=1.0, flops=2.0)
    assert placement.slowest([USUAL, other]) == other
    assert placement.slowest([other, changed(USUAL, dram=3.0)]) == changed(other, dram=3.0)


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


def test_newton_schulz_work_of_a_rank():
    # 4x8: per iteration 2*(16*8 + 16*8 + 64), five times, on two ranks; its transpose takes the same.
    assert placement.newton_schulz_flops([(4, 8), (8, 4)], 5, 2) == 5 * 2 * (2 * 16 * 8 + 64)
