"""Progress of a bench on stderr: one line that is rewritten on a terminal, else a line per case. No torch."""

from __future__ import annotations

from ....base.progress import ProgressLine
from .timing import Budget

_WIDTH = 110  # columns


class Progress:
    """budget: whose elapsed time and seconds are shown. Thread: one."""

    def __init__(self, budget: Budget, stream=None):
        self._budget, self._line, self._case = budget, ProgressLine(stream), ""
        self.close = self._line.leave

    def say(self, words: str) -> None:
        """What goes on now."""
        self._case = words
        self._show(words)

    def round(self, number: int) -> None:
        """Rounds done of what was said last; without a terminal silent."""
        if self._line.on_terminal:
            self._show(f"{self._case}, round {number}")

    def _show(self, words: str) -> None:
        line = f"{self._budget.elapsed():4.0f} s of at most about {self._budget.seconds:.0f} s: {words}"
        self._line.show(line[:_WIDTH] if self._line.on_terminal else line)
