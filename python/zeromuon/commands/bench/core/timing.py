"""The measurement core: contenders take turns in one process, and ratios come from pairs of one round. No torch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from . import interrupt

LEAST_ROUNDS, MOST_ROUNDS = 3, 25
LONG_SAMPLE_SECONDS = 20.0  # with a sample longer than this one round is enough


@dataclass(frozen=True)
class Contender:
    """One way to do a piece of work.

    run: what is timed; gets what `prepare` returned. prepare: called before each run, not timed. kind: "ours", "peer" or
    "roof". work: bytes moved or operations done by one run, 0 where it is not told. note: said beside its result.
    """

    name: str
    run: Callable
    prepare: Callable = lambda: None
    kind: str = "peer"
    work: float = 0.0
    note: str = ""


@dataclass
class Samples:
    """seconds: name -> one value per round. outputs: name -> what the warm-up returned. failed: name -> why."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    outputs: dict[str, object] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Ratio:
    """Of two contenders: median, least and greatest over the rounds."""

    median: float
    least: float
    greatest: float


class Budget:
    """Wall time that a bench may take, counted from now. seconds: in all. clock: returns seconds."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.perf_counter):
        self.seconds, self._clock, self._start = seconds, clock, clock()

    def elapsed(self) -> float:
        return self._clock() - self._start

    def left(self) -> float:
        return max(0.0, self.seconds - self.elapsed())


def measure(
    contenders: list[Contender],
    seconds: float,
    on_round: Callable[[int], None] = lambda number: None,
    clock: Callable[[], float] = time.perf_counter,
    samples: Samples | None = None,
) -> Samples:
    """Runs every contender once per round, in an order that turns around from round to round, for about `seconds`.

    The warm-up, in which peers may compile themselves, is not counted. There are LEAST_ROUNDS at least, or one when a sample
    is longer than LONG_SAMPLE_SECONDS, and MOST_ROUNDS at most. A contender that raises is left out from then on, with what
    it raised. on_round: gets the number of rounds that are done. samples: filled as it goes, and returned.

    Before every run there is a safe point (interrupt.point); the case is given up there.
    """
    samples = Samples() if samples is None else samples
    racing = [c for c in contenders if _sample(c, samples, clock, warm_up=True)]
    rounds, longest, start = 0, 0.0, clock()
    while racing and rounds < MOST_ROUNDS:
        round_start = clock()
        racing = [c for c in (racing[::-1] if rounds else racing) if _sample(c, samples, clock)]
        rounds += 1
        on_round(rounds)
        longest = max([longest, *(samples.seconds[c.name][-1] for c in racing)])
        least = 1 if longest > LONG_SAMPLE_SECONDS else LEAST_ROUNDS
        now = clock()
        if rounds >= least and now - start + (now - round_start) > seconds:
            break
    return samples


def ratio(of: list[float], to: list[float]) -> Ratio:
    """`of` divided by `to`, round by round."""
    pairs = [a / b for a, b in zip(of, to, strict=True)]
    return Ratio(statistics.median(pairs), min(pairs), max(pairs))


def _sample(contender: Contender, samples: Samples, clock: Callable[[], float], warm_up: bool = False) -> bool:
    """Whether it did not raise."""
    interrupt.point()
    try:
        prepared, start = contender.prepare(), clock()
        if warm_up:
            samples.outputs[contender.name] = contender.run(prepared)
        else:
            contender.run(prepared)  # a result that nobody keeps: freeing it is a part of the time
        seconds = clock() - start
    except Exception as error:
        samples.failed[contender.name] = reason(error)
        samples.seconds.pop(contender.name, None)
        return False
    if not warm_up:
        samples.seconds.setdefault(contender.name, []).append(seconds)
    return True


def reason(error: BaseException) -> str:
    """The error in one line of at most 300 characters."""
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words}"[:300]
