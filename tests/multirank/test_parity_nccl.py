"""The parity set on GPUs over NCCL, at every world size up to their number."""

import pytest
import torch

from tests.multirank.configurations import PARITY
from tests.multirank.launch import row, run_rows
from tests.multirank.test_parity import check_parity

GPUS = torch.cuda.device_count()


def _rows():
    return [row(case.name, "parity", **case.as_dict()) for case in PARITY]


@pytest.mark.gpu
@pytest.mark.skipif(GPUS == 0, reason=f"no CUDA device: the {len(PARITY)} parity cases over NCCL were not run")
@pytest.mark.parametrize("world_size", range(1, max(GPUS, 1) + 1))
def test_the_parity_set_holds_over_nccl(world_size):
    from zeromuon import _lab

    assert _lab.built_with_cuda, "there is a GPU and the module was built without CUDA: put nvcc on PATH, ./run setup"
    failures = []
    for name, result in run_rows(world_size, _rows(), device="cuda").items():
        try:
            assert "failed" not in result, result["failed"][-2000:]
            check_parity(result)
        except AssertionError as missed:
            failures.append(f"{name}: {missed}")
    assert not failures, "\n".join(failures)
