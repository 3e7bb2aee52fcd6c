"""The loop over optimizer steps of one rank: train, measure, look into one of them, save, stop when the ranks agree to."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ...optimizer import trace
from ...ranks.child import parent_alive
from ...ranks.connect import Ranks
from . import checkpoints, saved
from .data import TrainingBatches
from .report import Progress
from .run_folder import RUNNING, RunFolder
from .settings import Settings

NO_COUNTS = {"seconds": {}, "wall_seconds": 0.0, "bytes_sent": 0}
TRACED_STEP = 3  # of this process: the first binds, the second meets warm memory


@dataclass
class StepClock:
    """Seconds by phase of one optimizer step. Phases of the optimizer run at the same time: what each was busy for.
    "zero3" is what DeepSpeed's step takes around the optimizer's.

    optimizer_wall: seconds that all phases of the optimizer took together.
    """

    device: str
    seconds: dict[str, float] = field(default_factory=dict)
    optimizer_wall: float = 0.0

    def measure(self, phase: str, work):
        """Runs `work` and books its wall time."""
        start = time.perf_counter()
        result = work()
        if self.device != "cpu":
            torch.cuda.synchronize()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start
        return result

    def split_step(self, before: dict, after: dict) -> None:
        """Takes the optimizer's own phases out of the time of DeepSpeed's step."""
        self.optimizer_wall = after["wall_seconds"] - before["wall_seconds"]
        for phase, seconds in after["seconds"].items():
            self.seconds[phase] = seconds - before["seconds"].get(phase, 0.0)
        self.seconds["zero3"] = max(self.seconds.pop("step") - self.optimizer_wall, 0.0)


def optimizer_counters(engine) -> dict:
    """The optimizer's counters; zeros for an optimizer that keeps none."""
    optimizer = engine.optimizer.optimizer
    return optimizer.counters() if hasattr(optimizer, "counters") else NO_COUNTS


def attention_metrics(engine) -> dict:
    """The largest attention logit of the step and how many heads were clipped, where the optimizer watches them."""
    optimizer = engine.optimizer.optimizer
    if not getattr(optimizer, "watches_attention", False):
        return {}
    seen = optimizer.attention_logits()
    return {key: seen[key] for key in ("largest_logit", "clipped_heads") if seen["largest_logit"] is not None}


class StepTracer:
    """Records one step of one rank: the third, or the first after it that is not skipped. Thread: one; all ranks take
    part, in the constructor, too.

    lanes: of rank 0, once that step is done: as trace.busy_by_lane.
    """

    def __init__(self, optimizer, file: str | None, steps_to_go: int, note):
        self._optimizer, self._note = optimizer, note
        self._file = Path(file) if file else None
        self._wait = min(TRACED_STEP, steps_to_go)
        self._done = not hasattr(optimizer, "record_trace")
        self.lanes: dict | None = None
        if not self._done:
            optimizer.bind()  # here all ranks are; the traced step may be the first
        elif self._file:
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


@dataclass
class Trainer:
    """One rank's training. Thread: one."""

    engine: object
    batches: TrainingBatches
    settings: Settings
    folder: RunFolder
    ranks: Ranks
    progress: Progress
    tracer: StepTracer
    run: str  # which run it is
    step: int = 0

    def train(self) -> bool:
        """Runs until the last step or an agreed stop; the state is saved either way. Returns whether it reached the last step."""
        self.engine.train()
        last, stopping = self.settings.steps, self.ranks.sum([self._stop_wanted()])[0] > 0
        while self.step < last and not stopping:
            stopping = self._one_step()
            if stopping or self.step == last or self.step % self.settings.save_every == 0:
                self._save()
        return self.step == last

    def _stop_wanted(self) -> bool:
        """Whether the command asked to stop, or is gone."""
        return self.folder.stop_request.exists() or not parent_alive()

    def _one_step(self) -> bool:
        start = time.perf_counter()
        clock = StepClock(self.ranks.device)
        before = optimizer_counters(self.engine)
        with self.tracer.around_step():
            losses = [self._micro_batch(clock) for _ in range(self.engine.gradient_accumulation_steps())]
        after = optimizer_counters(self.engine)
        clock.split_step(before, after)
        self.step += 1
        sent = after["bytes_sent"] - before["bytes_sent"]
        stops, loss, sent = self.ranks.sum([self._stop_wanted(), sum(losses) / len(losses), sent])
        entry = self._entry(loss / self.ranks.world_size, clock, int(sent), time.perf_counter() - start)
        if self.ranks.rank == 0:
            self.folder.append_metric(entry)
            self.progress.show(entry)
        return stops > 0

    def _micro_batch(self, clock: StepClock) -> float:
        input_ids, labels = (tensor.to(self.ranks.device) for tensor in self.batches.next())
        loss = clock.measure("forward", lambda: self.engine(input_ids=input_ids, labels=labels).loss)
        clock.measure("backward", lambda: self.engine.backward(loss))
        clock.measure("step", self.engine.step)
        return loss.item()

    def _entry(self, loss: float, clock: StepClock, bytes_sent: int, wall: float) -> dict:
        tokens = self.engine.train_batch_size() * self.settings.seq_len
        return {
            "step": self.step,
            "loss": loss,
            "lr": self.engine.get_lr()[0],
            "step_seconds": wall,
            "tokens_per_second": tokens / wall,
            "seconds": {name: round(value, 6) for name, value in clock.seconds.items()},
            "optimizer_wall_seconds": round(clock.optimizer_wall, 6),
            "bytes_sent": bytes_sent,
            "skipped_steps": self.engine.skipped_steps,
            **attention_metrics(self.engine),
        }

    def _save(self) -> None:
        self.progress.note(f"saving checkpoint at step {self.step}")
        metrics, folder = self.folder.metrics, self.folder.checkpoints
        checkpoints.save(self.engine, self.ranks, folder, self.step, self.batches.position, metrics, self.run)
        if self.ranks.rank == 0:
            saved.drop_old(self.folder.checkpoints, self.settings.keep_checkpoints)
            self.folder.set_status(RUNNING, self.step)
        self.ranks.barrier()
