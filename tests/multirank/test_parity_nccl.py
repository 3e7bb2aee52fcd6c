"""The parity set on GPUs over NCCL, at every world size up to their number; with gradients as ZeRO-3 reduced them, for a GPU
sums in another order than the reference."""

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


@pytest.mark.gpu
@pytest.mark.skipif(GPUS == 0, reason=f"no CUDA device: the {len(PARITY)} parity cases over NCCL were not run")
@pytest.mark.parametrize("world_size", range(1, max(GPUS, 1) + 1))
def test_the_parity_set_holds_over_nccl(world_size):
    from zeromuon import _lab

    assert _lab.built_with_cuda, "there is a GPU and the module was built without CUDA: put nvcc on PATH, ./run setup"
    results = run_rows(world_size, rows(), device="cuda")
    assert not [text for name, result in results.items() if (text := missed(name, result))]


@pytest.mark.full
def test_the_rows_for_gpus_hold_over_gloo():
    results = run_rows(2, rows())
    assert not [text for name, result in results.items() if (text := missed(name, result))]
