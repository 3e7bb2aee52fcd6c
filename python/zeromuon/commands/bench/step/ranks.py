"""What a rank of `zeromuon bench step` does: one job, given as JSON; it tells what it finds.

Started by launch.py. Jobs: "time" (contenders step in turns), "memory" (one contender alone), "counts"
(bytes sent and allocations of ours, one engine after the other).
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys

import torch
import torch.distributed as dist

from ....ranks.connect import Ranks, connect
from ....ranks.leave import leave
from . import contenders
from . import memory as step_memory
from .events import Job, Reporter
from ..core.timing import Contender, Samples, measure, reason

WARM_STEPS, MEMORY_STEPS, COUNTED_STEPS = 2, 2, 3
COMPILED, EAGER = "compiled", "eager"


class Engine:
    """One contender on this rank. mode: COMPILED as it ships, or EAGER with torch.compile left out. Thread: one; every
    method is a collective."""

    def __init__(self, name: str, job: Job, report: Reporter):
        self.name, self.mode, self._report, self._batch = name, COMPILED, report, 0
        self._size = job.size
        with report.during(name, "building"):
            self.deepspeed = contenders.build_engine(name, job.size)

    def backward(self) -> None:
        with self._report.during(self.name, "backward"):
            contenders.backward(self.deepspeed, self._size, self._batch)
            self._batch += 1

    def step(self) -> None:
        eager = torch.compiler.set_stance("force_eager") if self.mode == EAGER else contextlib.nullcontext()
        with self._report.during(self.name, "step", tell=False), eager:
            self.deepspeed.step()

    def seconds(self) -> float:
        self.backward()
        start = contenders.common_clock()
        self.step()
        return contenders.common_clock() - start


# ---- as it ships, or without torch.compile -----------------------------------------------------------------------


def choose_mode(engine: Engine, decided: dict[str, str], why: str, report: Reporter) -> None:
    """DeepSpeed's Muon goes through torch.compile as it ships: takes what is faster here, or what was decided before. why:
    it cannot be compiled, or ""."""
    if contenders.is_ours(engine.name):
        return
    if why:
        engine.mode = EAGER
        why = f"without torch.compile, which does not work here: {why}"
        report.tell("mode", name=engine.name, mode=EAGER, words=why)
    elif engine.name in decided:
        engine.mode = decided[engine.name]
    else:
        _race_modes(engine, report)


def _race_modes(engine: Engine, report: Reporter) -> None:
    taken = {}
    for mode in (COMPILED, EAGER):
        report.say(f"{engine.name}: once {mode}, to take the faster way")
        engine.mode = mode
        engine.seconds()
        taken[mode] = engine.seconds()
    engine.mode = min(taken, key=taken.get)
    both = ", ".join(f"{1e3 * seconds:.0f} ms {mode}" for mode, seconds in taken.items())
    report.tell("mode", name=engine.name, mode=engine.mode, words=f"{engine.mode}: one step took {both}")


def why_not_compiled(job: Job, ranks: Ranks) -> str:
    """Tries DeepSpeed's compiled update on a small matrix, where the job may need it, and forgets it; "" when it works on all
    ranks."""
    if all(contenders.is_ours(name) or job.modes.get(name) == EAGER for name in job.contenders):
        return ""
    import torch._dynamo

    if torch._dynamo.config.disable or os.environ.get("TORCHDYNAMO_DISABLE") == "1":
        return "the environment disables it"
    from deepspeed.runtime.zero.muon.original_muon import muon_update

    why = ""
    try:
        muon_update(torch.randn(8, 16), torch.zeros(8, 16))
    except Exception as error:
        why = reason(error)
    torch._dynamo.reset()
    failures = ranks.sum([float(bool(why))])[0]
    return why or ("on another rank" if failures else "")


# ---- the jobs ----------------------------------------------------------------------------------------------------


def run_time(job: Job, ranks: Ranks, report: Reporter) -> None:
    """All contenders of the job in these processes, step by step in turns."""
    engines, why = [], why_not_compiled(job, ranks)
    for name in job.contenders:
        report.say(f"{job.size.key}: {name}, first steps")
        engine = Engine(name, job, report)
        choose_mode(engine, job.modes, why, report)
        engine.seconds()
        engines.append(engine)
    samples = Samples()
    report.say(f"{job.size.key}: {len(engines)} contenders in turns")
    racing = [Contender(e.name, lambda _, engine=e: engine.step(), e.backward) for e in engines]

    def on_round(number: int) -> None:
        report.tell("round", number=number, seconds=samples.seconds)

    measure(racing, job.seconds, on_round, contenders.common_clock, samples)
    for engine in engines:
        if contenders.is_ours(engine.name):
            report.tell("found", name=engine.name, values={"phases": _phases(engine)})


def _phases(engine: Engine) -> dict[str, float]:
    """Mean milliseconds per step of this rank, over all steps."""
    counters = engine.deepspeed.optimizer.optimizer.counters()
    return {phase: 1e3 * seconds / counters["steps"] for phase, seconds in counters["seconds"].items()}


def run_memory(job: Job, ranks: Ranks, report: Reporter) -> None:
    (name,) = job.contenders
    report.say(f"{job.size.key}: memory of {name}")
    engine = Engine(name, job, report)
    # One that no job has timed yet runs as it ships.
    choose_mode(engine, {name: COMPILED, **job.modes}, why_not_compiled(job, ranks), report)
    for _ in range(WARM_STEPS):
        engine.seconds()
    growths, peaks = [], []
    for _ in range(MEMORY_STEPS):
        engine.backward()
        gc.collect()
        contenders.common_clock()
        with report.during(name, "measuring its memory"):
            peak = step_memory.Peak()
        engine.step()
        growths.append(peak.growth_bytes())
        peaks.append(peak.peak_bytes())
    growth, most = _most_of_ranks([max(growths), max(peaks)])
    report.tell("found", name=name, values={"growth_bytes": growth, "peak_bytes": most})


def run_counts(job: Job, ranks: Ranks, report: Reporter) -> None:
    from .... import _core

    _core.count_allocations()
    for name in job.contenders:
        report.say(f"{job.size.key}: bytes and allocations of {name}")
        engine = Engine(name, job, report)
        engine.seconds()
        optimizer = engine.deepspeed.optimizer.optimizer
        sent_before, allocated = optimizer.counters()["bytes_sent"], step_memory.count_in(optimizer)
        for _ in range(COUNTED_STEPS):
            engine.seconds()
        sent = (optimizer.counters()["bytes_sent"] - sent_before) / COUNTED_STEPS / job.size.muon_numel
        report.tell("found", name=name, values=_counts_over_ranks(sent, allocated, ranks))
        engine.deepspeed.destroy()
        del engine, optimizer
        gc.collect()


def _counts_over_ranks(sent: float, allocated: dict[str, int], ranks: Ranks) -> dict:
    """sent: bytes per Muon parameter and step of this rank."""
    sent_by_all, *totals = ranks.sum([sent, *map(float, allocated.values())])
    (most,) = _most_of_ranks([sent])
    return {"sent": sent_by_all / ranks.world_size, "sent_most": most, **dict(zip(allocated, totals))}


def _most_of_ranks(values: list[float]) -> list[float]:
    tensor = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return tensor.tolist()


JOBS = {"time": run_time, "memory": run_memory, "counts": run_counts}


def main(text: str) -> int:
    """text: the job."""
    import zeromuon

    job = Job.of_text(text)
    ranks = connect()
    report = Reporter(ranks.rank)
    zeromuon.register()
    JOBS[job.kind](job, ranks, report)
    report.tell("done")
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    leave(main(*sys.argv[1:]))
