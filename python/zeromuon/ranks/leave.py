"""The end of a process of a gloo group, in which a thread of gloo may still need the interpreter.

A gloo thread drops the tensors of a collective a moment after the collective has ended, and asks for the GIL to do so. When
Python ends in that moment, CPython ends the thread inside of a noexcept destructor and torch (2.15, whatever the program) aborts
the process: "terminate called without an active exception". A loop of all_gather in plain torch on two ranks did in 12 of 50
exits. A process of ours leaves without the interpreter's teardown (`leave`). In one of a user, whose teardown is not ours to
skip, the interpreter is left to the threads for a moment first (`let_threads_finish_at_exit`): no abort in 50 exits. Also
where the process group was destroyed before: others, DeepSpeed among them, may still hold one.
"""

from __future__ import annotations

import atexit
import functools
import os
import sys
import time
from typing import NoReturn

_PAUSE_S = 0.1


def leave(status: int) -> NoReturn:
    """Ends this rank. Other ranks may still wait in a collective: leaving in the ordinary way, it would wait for them."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


class _Output:
    """A stream of text whose reader may go away: what is written then goes nowhere."""

    def __init__(self, stream):
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            self._drop()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            self._drop()

    def _drop(self) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)

    def __getattr__(self, name):
        return getattr(self._stream, name)


def outlive_output() -> None:
    """A terminal that is closed, or a reader that has ended, is no error of this process: it has a model to save."""
    sys.stdout, sys.stderr = _Output(sys.stdout), _Output(sys.stderr)


@functools.cache
def let_threads_finish_at_exit() -> None:
    """Once per process, when it has joined a group: where that is one of gloo, Python's end waits until gloo's threads have most
    likely dropped their tensors."""
    import torch.distributed as dist

    if "gloo" in str(dist.get_backend_config()):
        atexit.register(time.sleep, _PAUSE_S)
