"""What the ranks agree on: sums over ranks, and whether to stop."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

PARENT_VARIABLE = "ZEROMUON_FINETUNE_PARENT"  # process id of the command that started the ranks


@dataclass(frozen=True)
class Ranks:
    """This rank's place. Thread: one; every method is a collective that all ranks call in the same order."""

    rank: int
    world_size: int
    device: str

    def sum(self, values: list[float]) -> list[float]:
        """Element-wise sums over ranks, in fp64."""
        import torch

        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(tensor)
        return tensor.tolist()

    def agree_to_stop(self, request: Path) -> bool:
        return self.sum([float(stop_wanted(request))])[0] > 0

    def barrier(self) -> None:
        self.sum([0.0])


def stop_wanted(request: Path) -> bool:
    """True if the parent asked to stop (the file exists) or is gone."""
    return request.exists() or not _parent_alive()


def _parent_alive() -> bool:
    parent = int(os.environ.get(PARENT_VARIABLE, "0"))
    if parent == 0:
        return True
    try:
        os.kill(parent, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def connect() -> Ranks:
    """Joins the ranks that torchrun started: NCCL on GPUs, gloo on CPUs. Returns this rank's place."""
    import torch
    import deepspeed
    import deepspeed.ops

    gpu = torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu"
    local = int(os.environ["LOCAL_RANK"])
    if gpu:
        torch.cuda.set_device(local)
    else:
        # Its just-in-time build takes 90 s and the results are the same without it.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("nccl" if gpu else "gloo")
    device = f"cuda:{local}" if gpu else "cpu"
    return Ranks(torch.distributed.get_rank(), torch.distributed.get_world_size(), device)


def leave(status: int) -> NoReturn:
    """Ends this rank's process without the interpreter's teardown.

    A thread of gloo can still hold the last reference to a tensor of Python when the last collective has returned. If it asks
    for the GIL while the interpreter goes down, CPython ends the thread inside of a noexcept destructor: std::terminate.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
