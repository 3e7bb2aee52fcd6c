"""Ctrl-C while a bench measures: noted by a signal handler, honoured at safe points of ours. No torch.

Python raises KeyboardInterrupt wherever its main thread is, also in the middle of torch.compile or of a peer's call, which
then is left half done. Between samples it harms nothing.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

from ....ranks.child import Child

INTERRUPTED = 130  # exit status
_SAID = b"\ninterrupting after this sample; Ctrl-C again to stop at once\n"
_STDERR = 2
_POLL_SECONDS = 0.1


class Wish:
    """noted: whether Ctrl-C came. Thread: main (it handles signals)."""

    def __init__(self):
        self.noted = False

    def note(self, _number: int, _frame) -> None:
        """The signal handler; from then on Ctrl-C ends the process, without Python."""
        self.noted = True
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        with contextlib.suppress(OSError):
            os.write(_STDERR, _SAID)  # sys.stderr refuses to be written by a handler while it is being written


_current: Wish | None = None  # one per process, as signal handlers are


@contextlib.contextmanager
def deferred() -> Iterator[Wish]:
    """Within it the first Ctrl-C only notes the wish, which `point` honours; the second ends the process by SIGINT.

    A native call that runs is finished before the first is noted. The handler from before is back afterwards. It stays in
    place where SIGINT is ignored or not handled by Python, and outside of the main thread, where none can be set.
    """
    global _current
    outer, _current = _current, Wish()
    installed = threading.current_thread() is threading.main_thread() and callable(signal.getsignal(signal.SIGINT))
    before = signal.signal(signal.SIGINT, _current.note) if installed else None
    try:
        yield _current
    finally:
        if installed:
            signal.signal(signal.SIGINT, before)
        _current = outer


def point() -> None:
    """A safe point. Raises KeyboardInterrupt when Ctrl-C was noted."""
    if _current is not None and _current.noted:
        raise KeyboardInterrupt("noted before this safe point")


def wait(child: Child, seconds: float = float("inf"), meanwhile: Callable[[], None] = lambda: None) -> int | None:
    """The exit status, None when it still runs after `seconds`. Before every poll there is a safe point, and `meanwhile`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        point()
        meanwhile()
        if (status := child.wait(_POLL_SECONDS)) is not None:
            return status
    return None
