"""Ranks: torchrun as a child. No torch."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from .channel import tell  # noqa: F401  (the ranks' side of a launch)
from .child import Child
from .machine import core_count

RANKS_PER_CORE = 4  # more is refused


class Launch(Child):
    """Ranks that run a module; started, heard, ended and killed as a Child.

    module: name of a module, or path of a script, that every rank runs. arguments: of its command line. ranks: how many.
    environment, log, shows_output, folder: as Child; the ranks find this package where this process found it, after what is in
    PYTHONPATH.
    """

    def __init__(self, module: str | Path, *arguments, ranks: int, environment: dict[str, str] | None = None, **given):
        path = (environment or {}).get("PYTHONPATH") or os.environ.get("PYTHONPATH")
        package = str(Path(__file__).resolve().parents[2])
        found = {"PYTHONPATH": os.pathsep.join(filter(None, (path, package)))}
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        what = [module] if isinstance(module, Path) else ["-m", module]
        super().__init__([*torchrun, *map(str, (*what, *arguments))], {**(environment or {}), **found}, **given)


def threads_of(ranks: int) -> int:
    """Of each rank: the cores are shared out."""
    return max(1, core_count() // ranks)


def check_ranks(ranks: int, cores: int, gpus: int) -> list[str]:
    """Sentences to warn with. Raises ValueError for fewer than 1 rank, more than the GPUs, or more than 4 per core."""
    if ranks < 1:
        raise ValueError(f"--ranks {ranks}: expected at least 1")
    if gpus and ranks > gpus:
        raise ValueError(f"--ranks {ranks}: expected at most {gpus}, one per GPU; lower it, or set DS_ACCELERATOR=cpu")
    if ranks > RANKS_PER_CORE * cores:
        raise ValueError(f"--ranks {ranks}: expected at most {RANKS_PER_CORE * cores} on {cores} cores; lower it")
    if ranks > cores:
        return [f"{ranks} ranks share {cores} core{'s' if cores > 1 else ''}: each step takes longer"]
    return []
