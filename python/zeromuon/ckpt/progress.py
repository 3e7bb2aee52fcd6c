"""Progress of a verb on stderr: a bar with rate and time to go, or plain lines at a slow rhythm. No torch."""

from __future__ import annotations

import sys
import time

from .text import duration_text, size_text

_BAR = 24  # columns
_LINE_SECONDS = 10  # between lines where there is no terminal


class ProgressBar:
    """Called with (bytes done, bytes in all); begins again where a verb reads once more, as verify does after the CRCs.

    Thread: the one that called the verb.
    """

    def __init__(self, verb: str, stream=None, clock=time.monotonic):
        self._verb, self._stream, self._clock = verb, stream or sys.stderr, clock
        self._terminal = self._stream.isatty()
        self._started = self._said = clock()
        self._width = self._done = 0

    def __call__(self, done: int, total: int) -> None:
        if total <= 0:
            return
        now = self._clock()
        if done < self._done:
            self._started = now
        self._done = done
        if self._terminal:
            self._rewrite(self._line(done, total, now))
        elif now - self._said >= _LINE_SECONDS:
            self._said = now
            print(self._line(done, total, now), file=self._stream, flush=True)

    def close(self) -> None:
        """Takes the bar away."""
        if self._width:
            self._rewrite("")
            self._stream.write("\r")
            self._stream.flush()
            self._width = 0

    def _rewrite(self, line: str) -> None:
        self._stream.write("\r" + line.ljust(self._width))
        self._stream.flush()
        self._width = len(line)

    def _line(self, done: int, total: int, now: float) -> str:
        share = min(1.0, done / total)
        seconds = now - self._started
        rate = done / seconds if seconds > 0 else 0.0
        left = f"{duration_text((total - done) / rate)} to go" if rate > 0 else "starting"
        bar = f" [{'#' * int(share * _BAR):<{_BAR}}]" if self._terminal else ""
        return f"{self._verb}{bar} {share:4.0%}  {size_text(done)} of {size_text(total)}  {size_text(rate)}/s  {left}"
