"""What a rank may take of its host, and how long it may wait: the options that say "auto"."""

from __future__ import annotations

import os
from datetime import timedelta

import torch

_PATIENCE_S, _NCCL_PATIENCE_S = 600.0, 240.0
# Of the group's own timeout: a rank waits 1.5 times as long for the others as for a lane of its own, and must have said
# so by then.
_SHARE_OF_TIMEOUT = 0.6


def stage_timeout_s(option, group, device: torch.device) -> tuple[float, str]:
    """(seconds, a warning or "") for the option of this name in a process group whose tensors are on `device`.

    Where that is NCCL, its watchdog ends the *process* when a collective takes longer than the group's timeout: ours comes
    first.
    """
    timeout_s = watchdog_timeout_s(group, device)
    if timeout_s is None:
        return (_PATIENCE_S if option == "auto" else option), ""
    most = _SHARE_OF_TIMEOUT * timeout_s
    if option == "auto":
        return min(_NCCL_PATIENCE_S, most), ""
    if option <= most:
        return option, ""
    return most, (
        f"stage_timeout_s: {option:g} s is more than {_SHARE_OF_TIMEOUT:g} of the {timeout_s:g} s after which NCCL ends a "
        f"process of this group; {most:g} s is taken. To wait longer give deepspeed.init_distributed a longer timeout"
    )


def watchdog_timeout_s(group, device: torch.device) -> float | None:
    """After which a collective of the group ends the process; None where none does."""
    backend = group._get_backend(device)
    if "nccl" not in backend.name():
        return None
    told = getattr(getattr(backend, "options", None), "_timeout", None)
    return (told or timedelta(minutes=10)).total_seconds()


def cpu_threads(option, cores: int, ranks_here: int, told: str | None) -> int:
    """Of the OpenMP team of one rank. cores: of this host that a process may use. told: OMP_NUM_THREADS.

    torchrun sets that to 1 where the user says nothing, so a 1 is not heeded.
    """
    if option != "auto":
        return option
    first = (told or "").split(",")[0].strip()
    if first.isdigit() and int(first) > 1:
        return int(first)
    return max(1, cores // ranks_here)


def told_threads() -> str | None:
    return os.environ.get("OMP_NUM_THREADS")
