"""Progress of a bench on stderr: one line that is rewritten on a terminal, else a line per case. No torch."""

from __future__ import annotations

import sys

from .timing import Budget

_WIDTH = 110  # columns


class Progress:
    """budget: whose elapsed time and seconds are shown. Thread: one."""

    def __init__(self, budget: Budget, stream=None):
        self._budget, self._stream = budget, stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._case, self._open = "", False

    def say(self, words: str) -> None:
        """What goes on now; on a terminal the next one takes its place."""
        self._case = words
        self._write(words, keeps=not self._terminal)

    def round(self, number: int) -> None:
        """Rounds done of what was said last; without a terminal silent."""
        if self._terminal:
            self._write(f"{self._case}, round {number}", keeps=False)

    def close(self) -> None:
        """Leaves the line."""
        if self._open:
            self._stream.write("\n")
            self._open = False

    def _write(self, words: str, keeps: bool) -> None:
        line = f"{self._budget.elapsed():4.0f} s of at most about {self._budget.seconds:.0f} s: {words}"
        self._stream.write(line + "\n" if keeps else "\r" + line[:_WIDTH].ljust(_WIDTH))
        self._stream.flush()
        self._open = not keeps
