"""Looks into one optimizer step: how busy each lane was, and a trace file of all ranks where one is asked for."""

from __future__ import annotations

import contextlib
from pathlib import Path

from ...optimizer import trace

TRACED_STEP = 3  # of this process: the first binds, the second meets warm memory


class StepTracer:
    """Records one step of one rank: the third, or the first after it that is not skipped. Thread: one; all ranks take
    part.

    lanes: of rank 0, once that step is done: as trace.busy_by_lane.
    """

    def __init__(self, optimizer, file: str | None, steps_to_go: int, note):
        self._optimizer, self._note = optimizer, note
        self._file = Path(file) if file else None
        self._wait = min(TRACED_STEP, steps_to_go)
        self._done = not hasattr(optimizer, "record_trace")
        self.lanes: dict | None = None
        if self._done and self._file:
            raise ValueError(
                f"--trace {file}: {type(optimizer).__name__} records no trace; train with ZeroMuon, or leave it out"
            )

    @contextlib.contextmanager
    def around_step(self):
        """What is within is one optimizer step."""
        self._wait -= 1
        if self._done or self._wait > 0:
            yield
            return
        self._optimizer.record_trace()
        yield
        self._optimizer.record_trace(False)
        self._look(self._optimizer.take_trace())

    def _look(self, events: list[dict]) -> None:
        if not events:
            return  # skipped, on all ranks alike
        self._done = True
        traces = trace.gather(events, self._optimizer.process_group)
        if traces is None:
            return
        self.lanes = trace.busy_by_lane(events)
        if self._file:
            trace.write_trace(self._file, traces)
            self._note(f"trace of a step written: {self._file} (open it in ui.perfetto.dev)")
