"""A process of ours with everything that it starts, and one rule for its end: nothing of it stays behind. No torch."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
import uuid
from pathlib import Path

from . import channel, machine

END_SECONDS = 10.0  # that a process has to end its own children when it is asked to
_KILL_SECONDS = 5.0  # that killed processes have to be gone
_POLL_SECONDS = 0.02
_MARKS = "ZEROMUON_CHILDREN"  # of the children that a process belongs to, the outermost first
_PARENT = "ZEROMUON_PARENT"  # machine.identity of the process that started the innermost


class Child:
    """A command in a session of its own, so that the terminal's Ctrl-C reaches this process only.

    It starts when entered (``with Child(...) as child``) and has ended when left, with all processes that carry its mark: a
    variable of the environment, which also those inherit that run in other sessions, as torchrun's ranks do, or whose parent is
    gone. Within, SIGTERM is as Ctrl-C unless this process handles it. It may `tell`, this process hears it in `told`, also once
    it has ended. Thread: the main thread.

    environment: variables beside those of this process. log: file that gets what it prints, appended. shows_output: only its
    stderr goes to the log. folder: to run in.
    """

    def __init__(
        self,
        command: list[str],
        environment: dict[str, str] | None = None,
        log: Path | None = None,
        shows_output: bool = False,
        folder: Path | None = None,
    ):
        self._command, self.log, self._shows_output, self._folder = command, log, shows_output, folder
        self._mark = uuid.uuid4().hex
        marks = ":".join(filter(None, (os.environ.get(_MARKS), self._mark)))
        self._channel = channel.Channel()
        self.told = self._channel.told
        own = {_MARKS: marks, _PARENT: machine.identity(os.getpid()), channel.VARIABLE: str(self._channel.file)}
        self._environment = {**os.environ, **(environment or {}), **own}
        self._process: subprocess.Popen | None = None

    def __enter__(self):
        with contextlib.ExitStack() as started:
            started.callback(self._channel.close)
            started.enter_context(_terminated_as_interrupted())
            started.callback(self.end)
            self._start()
            self._on_exit = started.pop_all()
        return self

    def _start(self) -> None:
        with open(self.log or os.devnull, "ab") as log:
            to_log = log if self.log else None
            self._process = subprocess.Popen(
                self._command,
                env=self._environment,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=None if self._shows_output else to_log,
                stderr=to_log,
                start_new_session=True,
            )

    def __exit__(self, *_):
        self._on_exit.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait(self, seconds: float | None = None) -> int | None:
        """The exit status, or None when it still runs after `seconds`."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def end(self) -> None:
        """Asks it to end, so that it ends and reaps its own children and their time counts as this process's; then kills."""
        if self._process is None:
            return
        try:
            if self._process.poll() is None:
                self._process.terminate()
                self.wait(END_SECONDS)
        finally:
            self.kill()
            self._process.wait()

    def kill(self) -> None:
        """Kills it and all that carries its mark, at once. A signal handler may call it."""
        end = time.monotonic() + _KILL_SECONDS
        while (family := self.family()) and time.monotonic() < end:
            for pid in family:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(_POLL_SECONDS)

    def family(self) -> list[int]:
        """Ids of the processes that run and carry the mark."""
        return [int(folder.name) for folder in Path("/proc").glob("[0-9]*") if _carries(folder, self._mark.encode())]

    def tail(self, characters: int) -> str:
        """The last of the log, in one line."""
        return " ".join(self.log.read_text(errors="replace").split())[-characters:] if self.log.exists() else ""


def _carries(process: Path, mark: bytes) -> bool:
    try:
        return mark in (process / "environ").read_bytes()  # empty when it has ended and waits to be reaped
    except OSError:
        return False


@contextlib.contextmanager
def _terminated_as_interrupted():
    mine = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if mine:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        if mine:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def parent_alive() -> bool:
    """Whether the process that started this one through Child still runs, on this host; True where none did."""
    parent = os.environ.get(_PARENT)
    return parent is None or parent == machine.identity(int(parent.split()[0]))
