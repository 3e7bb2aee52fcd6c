"""Starts the ranks of one job, listens to what they tell, and ends them when the time is over. No torch."""

from __future__ import annotations

import time
from pathlib import Path

from ....ranks.launch import Launch, threads_of
from ..core import interrupt
from ..core.session import Progress
from .events import Heard, Job

_LOG_CHARACTERS = 200


def environment(ranks: int) -> dict[str, str]:
    """Of the ranks, which use the CPU."""
    threads = str(threads_of(ranks))
    return {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "DS_ACCELERATOR": "cpu", "PYTHONUNBUFFERED": "1"}


class Launcher:
    """ranks: processes per launch. log: file that gets what they print. starting_seconds: that all launches took until their
    ranks had connected. Thread: the main thread."""

    def __init__(self, ranks: int, log: Path, progress: Progress):
        self.ranks, self.log, self.progress = ranks, log, progress
        self.starting_seconds = 0.0

    def run(self, job: Job, heard: Heard, longest: float) -> None:
        """Runs a job to its end and fills `heard`, also when it is interrupted. longest: seconds after which the ranks are
        ended."""
        origin = time.monotonic() - self.starting_seconds
        module, variables = f"{__package__}.ranks", environment(self.ranks)
        ranks = Launch(module, job.as_text(), ranks=self.ranks, environment=variables, log=self.log)
        try:
            with ranks:
                status = interrupt.wait(ranks, longest, lambda: self._listen(ranks, heard, origin))
        finally:
            heard.take_all(ranks.told(), self.progress)
        if not heard.done and heard.failed is None:
            ended = f"the ranks ended with status {status}: {ranks.tail(_LOG_CHARACTERS)}"
            why = f"not done within {longest:.0f} s" if status is None else ended
            heard.failed = (heard.doing[0], f"{heard.doing[1]}: {why}" if heard.doing[1] else why)

    def _listen(self, ranks: Launch, heard: Heard, origin: float) -> None:
        heard.take_all(ranks.told(), self.progress)
        if not heard.doing[0]:
            self.starting_seconds = time.monotonic() - origin
