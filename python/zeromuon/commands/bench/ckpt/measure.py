"""One conversion in a process of its own: wall time, peak memory, disk. No torch."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from ....ranks.child import Child
from .convert import STARTED

SAMPLE_SECONDS = 0.1
_LOG_CHARACTERS = 300


class Failed(RuntimeError):
    """The command ended with another status than 0; says which, and its last words."""


@dataclass(frozen=True)
class Measured:
    """seconds: from the start of the process until its files are on disk; sync_seconds: of those, after its end.
    import_seconds: of a peer, from the start to the end of its imports. peak_bytes: the most that one process of the command
    had resident (VmHWM: mapped pages count). tree_bytes: the most that all had together, as sampled. temporary_bytes: disk
    taken at most, beyond what is left at the end, as sampled."""

    seconds: float
    sync_seconds: float
    peak_bytes: int
    tree_bytes: int
    written_bytes: int
    temporary_bytes: int
    import_seconds: float = 0.0


def disk_bytes(folder: Path) -> int:
    """That the files below take, while they come and go."""
    total = 0
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    total += disk_bytes(Path(entry.path))
                else:
                    total += entry.stat(follow_symlinks=False).st_blocks * 512
    except OSError:
        return total
    return total


def tree_resident_bytes(pid: int) -> int:
    """Of the process and all below it, shared pages counted in each."""
    import psutil

    total = 0
    with contextlib.suppress(psutil.Error):
        top = psutil.Process(pid)
        for process in (top, *top.children(recursive=True)):
            total += process.memory_info().rss
    return total


class Sampler:
    """The most that was seen of disk and memory, from a thread. Thread: the one that makes it; the maxima after it is left."""

    def __init__(self, folder: Path, pid: int):
        self.disk_bytes = self.tree_bytes = 0
        self._folder, self._pid = folder, pid
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._ended.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            self.disk_bytes = max(self.disk_bytes, disk_bytes(self._folder))
            self.tree_bytes = max(self.tree_bytes, tree_resident_bytes(self._pid))


def sync(folder: Path) -> None:
    """Every file and folder below is on disk afterwards."""
    for path, _, names in os.walk(folder):
        for name in (*names, "."):
            descriptor = os.open(os.path.join(path, name), os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)


class Runner:
    """folder: where outputs and temporary files of a run go, emptied before each. Thread: the main thread."""

    def __init__(self, folder: Path):
        self.folder, self.output, self._temporary = folder, folder / "out", folder / "tmp"
        self._log = folder.with_name(folder.name + ".log")

    def prepare(self) -> None:
        """An empty folder, and nothing of others that waits for the disk."""
        self.clear()
        for folder in (self.output, self._temporary):
            folder.mkdir(parents=True)
        os.sync()

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self._log.unlink(missing_ok=True)

    def run(self, command: list[str], syncs: bool) -> Measured:
        """After prepare(). The command tells what convert.py tells. syncs: it does so itself. Raises Failed."""
        started = time.monotonic()
        variables = {"TMPDIR": str(self._temporary), "DS_ACCELERATOR": "cpu", STARTED: repr(started)}
        child = Child(command, variables, self._log)
        with child, Sampler(self.folder, child.pid) as sampler:
            status = child.wait()
            ended = time.monotonic()
        told = child.told()
        if status != 0 or not told:
            raise Failed(f"it ended with status {status}: {child.tail(_LOG_CHARACTERS) or 'no output'}")
        syncing = time.monotonic()
        if not syncs:
            sync(self.output)
        sync_seconds = 0.0 if syncs else time.monotonic() - syncing
        written, peak_bytes = disk_bytes(self.output), told[-1]["peak_bytes"]
        return Measured(
            seconds=ended - started + sync_seconds,
            sync_seconds=sync_seconds,
            peak_bytes=peak_bytes,
            tree_bytes=max(sampler.tree_bytes, peak_bytes),
            written_bytes=written,
            temporary_bytes=max(0, sampler.disk_bytes - written),
            import_seconds=told[-1]["import_seconds"],
        )
