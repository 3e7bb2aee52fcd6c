"""One conversion in a process of its own: wall time, peak memory, disk. No torch."""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

from ....ranks.child import Child

SAMPLE_SECONDS = 0.1
_LOG_CHARACTERS = 300
_LAUNCHER = Path(__file__).with_name("launch.py")


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
    """Of all processes below `pid`, shared pages counted in each."""
    import psutil

    total = 0
    try:
        for child in psutil.Process(pid).children(recursive=True):
            total += child.memory_info().rss
    except psutil.Error:
        return total
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


class Runner:
    """folder: where outputs and temporary files of a run go, emptied before each. Thread: the main thread."""

    def __init__(self, folder: Path):
        self.folder, self.output = folder, folder / "out"
        self._temporary, self._own = folder / "tmp", folder.with_name(folder.name + "-report")
        self.imports_file = self._own / "imports.json"

    def prepare(self) -> None:
        """An empty folder, and nothing of others that waits for the disk."""
        self.clear()
        for folder in (self.output, self._temporary, self._own):
            folder.mkdir(parents=True)
        os.sync()

    def clear(self) -> None:
        for folder in (self.folder, self._own):
            shutil.rmtree(folder, ignore_errors=True)

    def run(self, command: list[str], syncs: bool) -> Measured:
        """After prepare(). syncs: the command does so itself. Raises Failed."""
        report, log = self._own / "report.json", self._own / "log"
        launcher = [
            sys.executable,
            "-I",
            "-S",
            str(_LAUNCHER),
            str(report),
            str(log),
            "" if syncs else str(self.output),
        ]
        environment = {"TMPDIR": str(self._temporary), "DS_ACCELERATOR": "cpu"}
        with Child([*launcher, *command], environment) as child, Sampler(self.folder, child.pid) as sampler:
            status = child.wait()
        took = json.loads(report.read_text()) if report.exists() else {"status": status}
        if took.pop("status") != 0 or status != 0:
            raise Failed(f"{' '.join(command[1:4])} failed: {self._tail(log)}")
        return self._measured(took, sampler)

    def _measured(self, took: dict, sampler: Sampler) -> Measured:
        written = disk_bytes(self.output)
        imports = json.loads(self.imports_file.read_text()) if self.imports_file.exists() else {}
        return Measured(
            **took,
            **imports,
            tree_bytes=max(sampler.tree_bytes, took["peak_bytes"]),
            written_bytes=written,
            temporary_bytes=max(0, sampler.disk_bytes - written),
        )

    @staticmethod
    def _tail(log: Path) -> str:
        return " ".join(log.read_text(errors="replace").split())[-_LOG_CHARACTERS:] if log.exists() else "no output"
