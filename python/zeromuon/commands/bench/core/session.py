"""A run of a bench from its first measurement to its report. No torch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from ....base.progress import ProgressLine
from . import interrupt, report
from .machine import OtherLoad, load_words
from .results import Bench, Case, Results
from .timing import Budget

_WIDTH = 110  # columns of the line of progress


class Progress:
    """On stderr: one line that is rewritten on a terminal, else a line per case. budget: whose seconds are shown. Thread: one."""

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


class Session:
    """folder: of the results. seconds: of wall time that it may take, about. Thread: main."""

    def __init__(self, bench: Bench, folder: Path, seconds: float):
        self.folder, self.results, self.budget = folder, Results([], bench=bench), Budget(seconds)
        self.progress = Progress(self.budget)

    def add(self, case: Case) -> None:
        """The file of results has it from now on. Cases without a row were interrupted before anything was found."""
        if case.rows:
            self.results.cases.append(case)
            report.write_json(self.folder, self.results)

    def run(self, measure: Callable[[], None], deferred: bool = True) -> int:
        """Measures, then writes and prints what was found; returns the exit status: 0, or 130 when interrupted. deferred: Ctrl-C
        is honoured at safe points only."""
        others = OtherLoad()
        with interrupt.deferred() if deferred else contextlib.nullcontext() as wish:
            try:
                measure()
            except KeyboardInterrupt:
                self.results.interrupted = True
            finally:
                self.progress.close()
            self.results.header.append(("other processes", load_words(others.cores())))
            self.results.seconds = self.budget.elapsed()
            return report.finish(self.folder, self.results, wish)
