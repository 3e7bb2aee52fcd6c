"""The loop over optimizer steps of one rank: train, measure, save, stop when the ranks agree to."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from ...ranks.child import parent_alive
from ...ranks.connect import Ranks
from . import checkpoints
from .data import TrainingBatches
from .report import Progress
from .run_folder import RunFolder
from .settings import Settings
from .tracing import StepTracer

NO_COUNTS = {"seconds": {}, "wall_seconds": 0.0, "bytes_sent": 0, "bytes_self": 0}


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
            import torch

            torch.cuda.synchronize()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start
        return result

    def split_step(self, before: dict, after: dict) -> None:
        """Takes the optimizer's own phases out of the time of DeepSpeed's step."""
        phases = {name: after["seconds"][name] - before["seconds"].get(name, 0.0) for name in after["seconds"]}
        self.optimizer_wall = after["wall_seconds"] - before["wall_seconds"]
        self.seconds.update(phases)
        self.seconds["zero3"] = max(self.seconds.pop("step") - self.optimizer_wall, 0.0)


def optimizer_counters(engine) -> dict:
    """The optimizer's counters; zeros for an optimizer that keeps none."""
    optimizer = engine.optimizer.optimizer
    return optimizer.counters() if hasattr(optimizer, "counters") else NO_COUNTS


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
    step: int = 0

    def train(self) -> bool:
        """Runs until the last step or an agreed stop; the state is saved either way. Returns whether it reached the last step."""
        self.engine.train()
        stopping = self.ranks.any(self._stop_wanted())
        while self.step < self.settings.steps and not stopping:
            stopping = self._one_step()
            due = self.step % self.settings.save_every == 0
            if due or stopping or self.step == self.settings.steps:
                self._save()
        return self.step == self.settings.steps

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
        stop = float(self._stop_wanted())
        stops, loss, sent = self.ranks.sum([stop, sum(losses) / len(losses), float(sent)])
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
        }

    def _save(self) -> None:
        self.progress.note(f"saving checkpoint at step {self.step}")
        checkpoints.save(self.engine, self.folder.checkpoints, self.step, self.batches.position)
        self.ranks.barrier()
        if self.ranks.rank == 0:
            self.folder.drop_old_checkpoints(self.settings.keep_checkpoints)
