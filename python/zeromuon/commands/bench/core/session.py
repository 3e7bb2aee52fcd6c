"""A run of a bench from its first measurement to its report. No torch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from . import interrupt, report
from .machine import OtherLoad, load_words
from .progress import Progress
from .results import Bench, Case, Results
from .timing import Budget


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
