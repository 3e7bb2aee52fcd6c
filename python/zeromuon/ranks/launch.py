"""Ranks: torchrun as a child, and what the ranks tell this process. No torch."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

from .child import Child
from .machine import core_count

RANKS_PER_CORE = 4  # more is refused
_CHANNEL = "ZEROMUON_CHANNEL"  # file of what the ranks tell, a line of JSON each


class Launch(Child):
    """Ranks that run a module. Started, ended and killed as a Child; each may `tell`, this process hears it in `told`.

    module: name of a module, or path of a script, that every rank runs. arguments: of its command line. ranks: how many. environment,
    log, shows_output, folder: as Child; the ranks find this package where this process found it, after those in PYTHONPATH.
    """

    def __init__(self, module: str | Path, *arguments, ranks: int, environment: dict[str, str] | None = None, **given):
        self._folder_of_channel = tempfile.TemporaryDirectory(prefix="zeromuon-ranks-")
        channel = Path(self._folder_of_channel.name) / "told.jsonl"
        channel.touch()
        self._lines = open(channel)
        path = (environment or {}).get("PYTHONPATH") or os.environ.get("PYTHONPATH")
        package = str(Path(__file__).resolve().parents[2])
        found = {"PYTHONPATH": os.pathsep.join(filter(None, (path, package))), _CHANNEL: str(channel)}
        super().__init__(_torchrun(ranks, module, arguments), {**(environment or {}), **found}, **given)
        self._rest: list[dict] = []

    def __exit__(self, *exception):
        super().__exit__(*exception)
        self._rest = self.told()
        self._lines.close()
        self._folder_of_channel.cleanup()

    def told(self) -> list[dict]:
        """What the ranks told since the last call, in order; also once they have ended. Each has "rank", of who told it."""
        if self._lines.closed:
            rest, self._rest = self._rest, []
            return rest
        return list(map(json.loads, self._whole_lines()))

    def _whole_lines(self):
        while True:
            place = self._lines.tell()
            line = self._lines.readline()
            if not line.endswith("\n"):  # it stays for the next call
                self._lines.seek(place)
                return
            yield line


def _torchrun(ranks: int, module: str | Path, arguments: tuple) -> list[str]:
    what = [str(module)] if isinstance(module, Path) else ["-m", module]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    return [*command, *what, *map(str, arguments)]


def tell(**message) -> None:
    """On a rank: gives the message, values that JSON can hold, to the process that launched it."""
    line = json.dumps({"rank": int(os.environ.get("RANK", "0")), **message}) + "\n"
    channel = os.open(os.environ[_CHANNEL], os.O_WRONLY | os.O_APPEND)
    try:
        os.write(channel, line.encode())  # one write of one line: lines of several ranks do not mix
    finally:
        os.close(channel)


def threads_of(ranks: int) -> int:
    """Of each rank: the cores are shared out."""
    return max(1, core_count() // ranks)


def check_ranks(ranks: int, cores: int, gpus: int) -> list[str]:
    """Sentences to warn with. Raises ValueError for fewer than 1 rank, more than the GPUs, or more than 4 per core."""
    if ranks < 1:
        raise ValueError(f"--ranks {ranks}: expected at least 1")
    if gpus and ranks > gpus:
        raise ValueError(
            f"--ranks {ranks}: expected at most {gpus}, one per GPU; lower it, or set DS_ACCELERATOR=cpu to use the CPU"
        )
    if ranks > RANKS_PER_CORE * cores:
        raise ValueError(f"--ranks {ranks}: expected at most {RANKS_PER_CORE * cores} on {cores} cores; lower it")
    if ranks > cores:
        return [f"{ranks} ranks share {cores} core{'s' if cores > 1 else ''}: each step takes longer"]
    return []
