"""Progress of a verb on stderr: a bar with rate and time to go, or plain lines at a slow rhythm. No torch."""

from __future__ import annotations

import time

from ..base.progress import ProgressLine
from .text import duration_text, size_text

_BAR = 24  # columns
_LINE_SECONDS = 10  # between lines where there is no terminal


class ProgressBar:
    """Called with (bytes done, bytes in all); begins again where a verb reads once more, as verify does after the CRCs.

    Thread: the one that called the verb.
    """

    def __init__(self, verb: str, stream=None, clock=time.monotonic):
        self._verb, self._shown, self._clock = verb, ProgressLine(stream), clock
        self._started = self._said = clock()
        self._done = 0
        self.close = self._shown.erase

    def __call__(self, done: int, total: int) -> None:
        if total <= 0:
            return
        now = self._clock()
        if done < self._done:
            self._started = now
        self._done = done
        if self._shown.on_terminal or now - self._said >= _LINE_SECONDS:
            self._said = now
            self._shown.show(self._line(done, total, now))

    def _line(self, done: int, total: int, now: float) -> str:
        share = min(1.0, done / total)
        seconds = now - self._started
        rate = done / seconds if seconds > 0 else 0.0
        left = f"{duration_text((total - done) / rate)} to go" if rate > 0 else "starting"
        bar = f" [{'#' * int(share * _BAR):<{_BAR}}]" if self._shown.on_terminal else ""
        return f"{self._verb}{bar} {share:4.0%}  {size_text(done)} of {size_text(total)}  {size_text(rate)}/s  {left}"
