"""Processes that tests start: signals reach them as in the foreground, and none outlives its test.

All that a run of pytest starts, and what that starts in turn, carries a mark in its environment, by which it is found,
whoever its parent and its session are by then.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
import uuid
from pathlib import Path
from typing import Iterator

MARK = "ZEROMUON_TEST_RUN"
# A shell lets what it starts in the background ignore these, and children inherit that.
_IN_THE_FOREGROUND = ("env", "--default-signal=INT,QUIT")


def mark_this_run() -> str:
    """What is started from now on carries the mark that is returned."""
    os.environ[MARK] = uuid.uuid4().hex
    return os.environ[MARK]


@contextlib.contextmanager
def running(command: list[str], **given) -> Iterator[subprocess.Popen]:
    """A process in a session of its own that, with all it started, ends with this block. given: as for Popen."""
    mark = f"{os.environ.get(MARK, '')}/{uuid.uuid4().hex}"
    given["env"] = {**given.get("env", os.environ), MARK: mark}
    started = subprocess.Popen([*_IN_THE_FOREGROUND, *command], start_new_session=True, **given)
    try:
        yield started
    finally:
        kill(mark)
        started.wait()
        for pipe in (started.stdin, started.stdout, started.stderr):
            if pipe:
                pipe.close()


def kill(mark: str) -> None:
    """Ends every process with that mark, and those that they start meanwhile."""
    while left := alive(mark):
        for process in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.01)


def alive(mark: str) -> dict[int, str]:
    """Process -> command line of all that carry the mark or one below it, but for this process and zombies."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            with contextlib.suppress(OSError):
                if mark_of(int(folder.name)).split("/")[: mark.count("/") + 1] == mark.split("/"):
                    found[int(folder.name)] = _text(folder / "cmdline").replace("\0", " ").strip()
    return {process: command for process, command in found.items() if runs(process)}


def runs(process: int) -> bool:
    """Whether it is there and not a zombie, which its parent has only to notice."""
    try:
        return _text(Path(f"/proc/{process}/stat")).rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def left_after(mark: str, seconds: float) -> dict[int, str]:
    """`alive`, once those that are about to end have had some seconds for it."""
    end = time.monotonic() + seconds
    while (left := alive(mark)) and time.monotonic() < end:
        time.sleep(0.05)
    return left


def mark_of(process: int) -> str:
    """ "" if it has none. Raises OSError if it is gone or somebody else's."""
    variables = _environment(Path(f"/proc/{process}")).split("\0")
    return next((v.removeprefix(f"{MARK}=") for v in variables if v.startswith(f"{MARK}=")), "")


def _environment(folder: Path) -> str:
    """The kernel shows none for a moment of a process that is in the middle of an exec: looked at again for so long."""
    end = time.monotonic() + 0.2
    while not (text := _text(folder / "environ")) and time.monotonic() < end:
        if _text(folder / "statm").startswith("0 "):  # no memory: a thread of the kernel, or a zombie
            break
        time.sleep(0.001)
    return text


def _text(path: Path) -> str:
    return path.read_bytes().decode(errors="replace")
