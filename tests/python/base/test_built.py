"""What the package says of the torch and the GPU that it was not built for."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from zeromuon import ZeroMuon, _built
from zeromuon.base import built


@pytest.fixture
def of_a_build(monkeypatch):
    """Replaces facts of this build."""

    def replace(**facts):
        for name, value in facts.items():
            monkeypatch.setattr(_built, name, value)

    return replace


def test_this_build_is_of_the_torch_that_is_here():
    built.check_torch()
    assert torch.__version__.startswith(_built.TORCH)


@pytest.mark.parametrize(
    "wish", ["from zeromuon import ZeroMuon", "from zeromuon import StepError", "from zeromuon import _core"]
)
def test_another_minor_version_of_torch_is_one_line_with_the_remedy_before_the_module_is_loaded(wish):
    """Before: an undefined symbol, or nothing until a crash."""
    other = "import torch; torch.__version__ = '2.99.1+cu130'; "
    done = subprocess.run([sys.executable, "-c", other + wish], capture_output=True, text=True, env=os.environ)
    minor = ".".join(_built.TORCH.split(".")[:2])
    assert done.returncode == 1 and done.stderr.splitlines()[-1] == (
        f"ImportError: zeromuon was compiled for torch {minor}, and torch 2.99.1+cu130 is imported: install torch {minor}, "
        f"or build zeromuon again where torch 2.99 is installed"
    )


def test_a_build_without_code_for_gpus_says_why_and_what_to_do(of_a_build):
    of_a_build(WITHOUT_CUDA="no nvcc was found; install the CUDA toolkit or set CUDACXX", CUDA_ARCHITECTURES="")
    said = built.obstacle_on_gpu((9, 0))
    assert (
        "has no code for GPUs, because no nvcc was found; install the CUDA toolkit" in said and "build it again" in said
    )


@pytest.mark.parametrize("capability, fits", [((7, 5), False), ((8, 0), True), ((8, 9), True), ((10, 0), True)])
def test_a_gpu_older_than_compiled_for_is_named_with_the_way_to_build_for_it(of_a_build, capability, fits):
    of_a_build(WITHOUT_CUDA="", CUDA_ARCHITECTURES="80;90")
    said = built.obstacle_on_gpu(capability)
    assert not said if fits else "compute capability 7.5" in said and '"75" in that list' in said


def test_an_optimizer_for_a_gpu_that_this_build_cannot_serve_is_refused_when_it_is_made(of_a_build, monkeypatch):
    import deepspeed.accelerator

    of_a_build(WITHOUT_CUDA="no nvcc was found", CUDA_ARCHITECTURES="")
    gpu = SimpleNamespace(current_device_name=lambda: "cuda:0")
    monkeypatch.setattr(deepspeed.accelerator, "get_accelerator", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    with pytest.raises(ValueError, match="no code for GPUs, because no nvcc was found"):
        ZeroMuon([{"params": [torch.nn.Parameter(torch.zeros(4, 4))], "role": "muon"}])
