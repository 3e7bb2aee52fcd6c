"""One conversion in a process of its own: wall time, peak memory, disk. No torch."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Iterator
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
    for path, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(path, name)).st_blocks * 512
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


@contextlib.contextmanager
def sampled(folder: Path, pid: int) -> Iterator[dict[str, int]]:
    """The most that was seen of "disk_bytes" and "tree_bytes", by a thread; to be read once it is left."""
    most, ended = {"disk_bytes": 0, "tree_bytes": 0}, threading.Event()

    def sample() -> None:
        while not ended.wait(SAMPLE_SECONDS):
            most["disk_bytes"] = max(most["disk_bytes"], disk_bytes(folder))
            most["tree_bytes"] = max(most["tree_bytes"], tree_resident_bytes(pid))

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield most
    finally:
        ended.set()
        thread.join()


def sync(folder: Path) -> float:
    """Every file and folder below is on disk afterwards; returns the seconds that it took."""
    started = time.monotonic()
    for path, _, names in os.walk(folder):
        for name in (*names, "."):
            descriptor = os.open(os.path.join(path, name), os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
    return time.monotonic() - started


class Runner:
    """folder: where outputs and temporary files of a run go, emptied before each. Thread: the main thread."""

    def __init__(self, folder: Path):
        self.folder, self.output, self._temporary = folder, folder / "out", folder / "tmp"
        self._log = folder.with_name(folder.name + ".log")

    def _prepare(self) -> None:
        """An empty folder, and nothing of others that waits for the disk."""
        self.clear()
        for folder in (self.output, self._temporary):
            folder.mkdir(parents=True)
        os.sync()

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self._log.unlink(missing_ok=True)

    def run(self, command: list[str], syncs: bool) -> Measured:
        """In an empty folder. The command tells what convert.py tells. syncs: it does so itself. Raises Failed."""
        self._prepare()
        started = time.monotonic()
        variables = {"TMPDIR": str(self._temporary), "DS_ACCELERATOR": "cpu", STARTED: repr(started)}
        with Child(command, variables, self._log) as child, sampled(self.folder, child.pid) as most:
            status = child.wait()
            seconds = time.monotonic() - started
        told = child.told()
        if status != 0 or not told:
            raise Failed(f"it ended with status {status}: {child.tail(_LOG_CHARACTERS) or 'no output'}")
        sync_seconds, written = 0.0 if syncs else sync(self.output), disk_bytes(self.output)
        return Measured(
            **{name: told[-1][name] for name in ("peak_bytes", "import_seconds")},
            seconds=seconds + sync_seconds,
            sync_seconds=sync_seconds,
            tree_bytes=max(most["tree_bytes"], told[-1]["peak_bytes"]),
            written_bytes=written,
            temporary_bytes=max(0, most["disk_bytes"] - written),
        )
