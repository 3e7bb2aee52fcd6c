"""One line of progress: rewritten on a terminal, written anew elsewhere. No torch."""

from __future__ import annotations

import sys


class ProgressLine:
    """on_terminal: whether a line can be rewritten. Thread: one. stream: stderr by default."""

    def __init__(self, stream=None):
        self._stream = stream or sys.stderr
        self.on_terminal = self._stream.isatty()
        self._width = 0

    def show(self, text: str) -> None:
        """On a terminal the text takes the place of the one before."""
        if not self.on_terminal:
            print(text, file=self._stream, flush=True)
            return
        self._stream.write("\r" + text.ljust(self._width))
        self._stream.flush()
        self._width = len(text)

    def leave(self) -> None:
        """What is shown stays."""
        if self._width:
            self._stream.write("\n")
            self._width = 0

    def erase(self) -> None:
        if self._width:
            self.show("")
            self._stream.write("\r")
            self._stream.flush()
