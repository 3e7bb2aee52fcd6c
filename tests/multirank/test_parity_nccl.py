"""On GPUs over NCCL, at every world size up to their number: the parity set, with gradients as ZeRO-3 reduced them, for a GPU
sums in another order than the reference; saving, loading and going on for every home of the momentum; a fault on one rank."""

import pytest
import torch

from tests.multirank.cases import STEPS
from tests.multirank.configurations import PARITY
from tests.multirank.launch import row, run_rows

GPUS = torch.cuda.device_count()


def rows() -> list[dict]:
    """In the standard form, whose bar is the common one; without what the captured reference has not: groups with a decay of
    their own, transposed storage."""
    from zeromuon import _lab

    cases = [c for c in PARITY if c.options.get("ns_form", "standard") == "standard"]
    cases = [c for c in cases if c.group_decay is None and c.model != "convolutions"]
    if dict(_lab.cpu_kernels())["onednn"]:  # why it is not there
        cases = [c for c in cases if c.options.get("cpu_kernels") != "onednn"]
    return [row(case.name, "captured", **case.as_dict()) for case in cases]


def missed(name: str, result: dict) -> str:
    """What a row does not hold; "" for none."""
    if "failed" in result:
        return f"{name}: {result['failed'][-2000:]}"
    held = result["error"] <= result["bar"] and result["moved"] >= 0.05 and result["norm_error"] <= 1e-5
    held = held and result["momentum_error"] <= 1e-6 and result["taken"] >= STEPS
    return (
        "" if held else f"{name}: error {result['error']:.1e}, bar {result['bar']:.1e}, norm {result['norm_error']:.1e}"
    )


HOMES = ("cpu", "device", "cpu_streamed")  # of a momentum with CPU offload; a CPU alone has the first


def checkpoint_rows(homes: tuple[str, ...]) -> list[dict]:
    return [
        row(f"{dtype}, {home}", "save_load_go_on", offload=True, dtype=dtype, momentum_device=home)
        for home in homes
        for dtype in ("fp32", "bf16")
    ] + [row("fp16, no offload", "save_load_go_on", offload=False, dtype="fp16")]


def expect_the_same_bits(world_size: int, results: dict[str, dict]) -> None:
    for name, result in results.items():
        assert result.get("same") == [True] * world_size, f"{name}: {result}"


def expect_one_cause(world_size: int, results: dict[str, dict]) -> None:
    for name, result in results.items():
        assert "failed" not in result, f"{name}: {result}"
        for error, again in zip(result["errors"], result["again"], strict=True):
            assert 'the momentum of "0.weight"' in error and f"on rank {world_size - 1}" in error, error
            assert "poisoned by an earlier failure" in again, again


FAULTS = [row(f"poisoned, fused {fused}", "poisoned", fused_step=fused) for fused in ("on", "off")]

on_gpus = pytest.mark.parametrize("world_size", range(1, max(GPUS, 1) + 1))


@pytest.mark.gpu
@pytest.mark.skipif(GPUS == 0, reason="no CUDA device: checkpoints over NCCL were not written")
@on_gpus
def test_a_resumed_run_continues_bit_for_bit_over_nccl(world_size):
    expect_the_same_bits(world_size, run_rows(world_size, checkpoint_rows(HOMES), device="cuda"))


@pytest.mark.gpu
@pytest.mark.skipif(GPUS == 0, reason="no CUDA device: no fault was made over NCCL")
@on_gpus
def test_a_fault_on_one_rank_stops_all_over_nccl(world_size):
    expect_one_cause(world_size, run_rows(world_size, FAULTS, device="cuda"))


@pytest.mark.gpu
@pytest.mark.skipif(GPUS == 0, reason=f"no CUDA device: the {len(PARITY)} parity cases over NCCL were not run")
@on_gpus
def test_the_parity_set_holds_over_nccl(world_size):
    from zeromuon import _lab

    assert _lab.built_with_cuda, "there is a GPU and the module was built without CUDA: put nvcc on PATH, ./run setup"
    results = run_rows(world_size, rows(), device="cuda")
    assert not [text for name, result in results.items() if (text := missed(name, result))]


@pytest.mark.full
def test_the_checkpoints_and_faults_for_gpus_hold_over_gloo():
    expect_the_same_bits(2, run_rows(2, checkpoint_rows(HOMES[:1])))
    expect_one_cause(2, run_rows(2, FAULTS))


@pytest.mark.full
def test_the_rows_for_gpus_hold_over_gloo():
    results = run_rows(2, rows())
    assert not [text for name, result in results.items() if (text := missed(name, result))]
