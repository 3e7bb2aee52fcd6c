"""What "auto" takes of a host and of a group's patience, on stand-ins of groups and GPUs where there are none."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch

from zeromuon.optimizer import bind, limits
from zeromuon.ranks import machine

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
MIB = 1 << 20


def group_of(backend: str, timeout_s: float | None = None):
    options = SimpleNamespace() if timeout_s is None else SimpleNamespace(_timeout=timedelta(seconds=timeout_s))
    made = SimpleNamespace(name=lambda: backend, options=options)
    return SimpleNamespace(_get_backend=lambda device: made)


@pytest.mark.parametrize(
    "backend, group_s, option, taken_s",
    [
        ("gloo", 1800, "auto", 600),
        ("gloo", 10, 5000.0, 5000),
        ("nccl", 600, "auto", 240),
        ("nccl", 120, "auto", 72),
        ("nccl", 600, 30.0, 30),
        ("nccl", None, "auto", 240),
    ],
)
def test_a_stage_is_given_up_before_nccl_ends_the_process(backend, group_s, option, taken_s):
    seconds, warning = limits.stage_timeout_s(option, group_of(backend, group_s), GPU)
    assert seconds == pytest.approx(taken_s) and not warning
    if backend == "nccl" and group_s:
        assert 1.5 * seconds < group_s, "the wait for other ranks is half as long again"


def test_a_patience_above_that_of_nccl_is_cut_and_said():
    seconds, warning = limits.stage_timeout_s(900.0, group_of("nccl", 600), GPU)
    assert seconds == pytest.approx(360)
    assert "stage_timeout_s: 900 s" in warning and "600 s" in warning and "init_distributed" in warning


@pytest.mark.parametrize(
    "option, cores, ranks, told, threads",
    [
        ("auto", 56, 8, None, 7),
        ("auto", 56, 8, "1", 7),
        ("auto", 56, 8, "4", 4),
        ("auto", 56, 8, "6,2", 6),
        ("auto", 2, 4, "1", 1),
        (3, 56, 8, "4", 3),
    ],
)
def test_threads_are_the_cores_of_the_host_shared_by_its_ranks_whatever_torchrun_set(
    option, cores, ranks, told, threads
):
    assert limits.cpu_threads(option, cores, ranks, told) == threads


def test_the_memory_of_a_host_is_shared_by_its_ranks(monkeypatch):
    monkeypatch.setattr(machine, "available_memory_bytes", lambda: 600 * MIB)
    assert bind._free_bytes(CPU, 2) == 300 * MIB


def test_what_torch_holds_of_a_gpu_and_nothing_uses_is_free(monkeypatch):
    """80 GB, of which torch has reserved 76 and uses 35: 4 are free for all, and 41 for this rank."""
    memory = {
        "mem_get_info": (4096 * MIB, 81920 * MIB),
        "memory_reserved": 77824 * MIB,
        "memory_allocated": 35840 * MIB,
    }
    for name, value in memory.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert bind._free_bytes(GPU, 1) == (4096 + 41984) * MIB
    assert bind._free_bytes(GPU, 2) == (2048 + 41984) * MIB


def test_buffers_that_find_no_room_are_asked_for_again_without_torch_s_cache(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: asked.append("emptied"))

    def make():
        asked.append("made")
        if asked.count("made") == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.02 GiB")
        return "executor"

    assert bind._with_an_empty_cache(make) == "executor" and asked == ["made", "emptied", "made"]


def test_another_error_of_the_buffers_is_not_tried_again(monkeypatch):
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: pytest.fail("emptied"))
    with pytest.raises(RuntimeError, match="another"):
        bind._with_an_empty_cache(lambda: (_ for _ in ()).throw(RuntimeError("another")))
