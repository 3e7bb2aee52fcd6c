"""A rank that torchrun started: joins the process group, with DeepSpeed quiet, and sums over ranks."""

from __future__ import annotations

import datetime
import logging
import os
from dataclasses import dataclass


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

    def barrier(self) -> None:
        self.sum([0.0])


def connect(level: int = logging.WARNING, seconds: float | None = None) -> Ranks:
    """Joins the ranks that torchrun started: NCCL on GPUs, gloo on CPUs. Returns this rank's place.

    level: what DeepSpeed's logger shows from, on every rank. seconds: that a collective may take; None for torch's default.
    """
    import torch
    import deepspeed
    import deepspeed.ops

    logger = logging.getLogger("DeepSpeed")
    logger.setLevel(level)
    logger.addFilter(_helps)
    gpu = torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu"
    local = int(os.environ["LOCAL_RANK"])
    if gpu:
        torch.cuda.set_device(local)
    else:
        # A shared-memory collective; its just-in-time build takes 90 s and the results are the same without it.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    limit = {} if seconds is None else {"timeout": datetime.timedelta(seconds=seconds)}
    deepspeed.init_distributed("nccl" if gpu else "gloo", **limit)
    device = f"cuda:{local}" if gpu else "cpu"
    return Ranks(torch.distributed.get_rank(), torch.distributed.get_world_size(), device)


def _helps(record: logging.LogRecord) -> bool:
    """False for DeepSpeed's warning that its own scheduler triggers in its constructor."""
    return "before it has started" not in record.getMessage()
