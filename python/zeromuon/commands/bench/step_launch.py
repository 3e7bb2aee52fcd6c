"""Starts the ranks of one job through torchrun, listens to what they tell, and ends them. No torch."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from ..finetune.launch import kill_tree
from ...ranks.machine import core_count
from .progress import Progress
from .step_events import Heard, Job

POLL_SECONDS = 0.1
END_SECONDS = 10.0  # that torchrun has to end its ranks when it is asked to
_LOG_CHARACTERS = 200


def threads_of(ranks: int) -> int:
    """Of each rank: the cores are shared out."""
    return max(1, core_count() // ranks)


def environment(ranks: int) -> dict[str, str]:
    """Of the ranks, which use the CPU."""
    threads = str(threads_of(ranks))
    chosen = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "DS_ACCELERATOR": "cpu", "PYTHONUNBUFFERED": "1"}
    return {**os.environ, **chosen}


class Launcher:
    """ranks: processes per launch. log: file that gets what they print. starting_seconds: that all launches took until their
    ranks had connected. Thread: the main thread."""

    def __init__(self, ranks: int, log: Path, progress: Progress):
        self.ranks, self._log, self._progress = ranks, log, progress
        self.starting_seconds = 0.0

    def run(self, job: Job, heard: Heard, longest: float) -> None:
        """Runs a job to its end and fills `heard`, also when it is interrupted. longest: seconds after which the ranks are
        ended."""
        with tempfile.TemporaryDirectory(prefix="zeromuon-bench-step-") as folder:
            events = Path(folder) / "events.jsonl"
            events.touch()
            path = Path(folder) / "job.json"
            replace(job, events=str(events)).save(path)
            with open(events) as lines:
                self._run(path, lines, heard, longest)

    def _run(self, job_path: Path, lines, heard: Heard, longest: float) -> None:
        previous = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: no rank stays behind
        process = self._start(job_path)
        try:
            status = self._listen(process, lines, heard, time.monotonic() + longest)
        finally:
            _end(process)
            signal.signal(signal.SIGTERM, previous)
            self._take(lines, heard)
        if not heard.done and heard.failed is None:
            ended = f"the ranks ended with status {status}: {self._tail()}"
            why = f"not done within {longest:.0f} s" if status is None else ended
            heard.failed = (heard.doing[0], f"{heard.doing[1]}: {why}" if heard.doing[1] else why)

    def _start(self, job_path: Path) -> subprocess.Popen:
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            str(self.ranks),
            "-m",
            f"{__package__}.step_ranks",
            str(job_path),
        ]
        with open(self._log, "ab") as log:
            # Its own session: the terminal's Ctrl-C reaches this process only.
            return subprocess.Popen(
                command,
                env=environment(self.ranks),
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def _listen(self, process: subprocess.Popen, lines, heard: Heard, end: float) -> int | None:
        """The exit status, None when the time is over."""
        while process.poll() is None and time.monotonic() < end:
            time.sleep(POLL_SECONDS)
            self._take(lines, heard)
            self.starting_seconds += POLL_SECONDS if not heard.doing[0] else 0.0
        return process.poll()

    def _take(self, lines, heard: Heard) -> None:
        """What was told since the last time; a line that is not complete yet stays for the next."""
        while True:
            place = lines.tell()
            line = lines.readline()
            if not line.endswith("\n"):
                lines.seek(place)
                return
            heard.take(line, self._progress)

    def _tail(self) -> str:
        return " ".join(self._log.read_text(errors="replace").split())[-_LOG_CHARACTERS:]


def _end(process: subprocess.Popen) -> None:
    """Ends torchrun and its ranks; torchrun first, which ends and reaps them, so that their time counts as this process's."""
    if process.poll() is not None:
        return
    try:
        process.terminate()
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        pass
    finally:
        if process.poll() is None:
            kill_tree(process)
            process.wait()
