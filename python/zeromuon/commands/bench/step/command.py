"""`zeromuon bench step`: its options, the order of the launches, the tables. No torch before the options are checked.

Legend: a size is a model; a launch is one run of all ranks.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path

from ....base.parser import Parser
from ....ranks.launch import check_ranks, threads_of
from ....ranks.machine import available_memory_bytes, core_count
from ..core import machine
from ..core.options import add_budget, check_memory, parsed, two_numbers, whole_number
from ..core.session import Session
from ..core.timing import Budget, Samples
from . import beside
from . import tables as step_tables
from .contenders import ALL, COUNTED, OURS, Size, needed_bytes
from .events import Heard, Job
from .launch import Launcher
from .tables import BESIDE, COUNTS, MEMORY, STEP, TIME

PARTS = (TIME, MEMORY, COUNTS)
DEFAULT_SIZES = (Size(512, 8), Size(1024, 8))
BUDGET_SECONDS = 1800.0
_PROG = "zeromuon bench step"
_PEER = "DeepSpeed's Muon as it ships (ns_method gram); torch_adam, so that no operator is compiled for the norms"
_LARGEST_WIDTH, _MOST_LAYERS = 16384, 1024
_TIME_SHARE, _MOST_TIME_SECONDS = 0.25, 240.0
_GRACE_SECONDS = 60.0  # a launch may go on for so long when the budget is spent


def run(argv: list[str]) -> int:
    """See bench/command.py."""
    options = _options(argv)
    session = Session(STEP, options.out, options.budget_seconds)
    return session.run(lambda: _measure(options, session), deferred=False)


# ---- options -----------------------------------------------------------------------------------------------------


def _parser() -> Parser:
    parser = Parser(
        prog=_PROG,
        description="Measures engine.step() of ZeRO-3 with ZeroMuon and with DeepSpeed's own Muon, each with and without CPU\n"
        "offload, in fp32 on gloo ranks. Ends with a table, a JSON file and a picture.\n\n"
        "  time    all four in the same processes, step by step in turns; ratios are medians of pairs of one round\n"
        "  memory  peak of a rank's main memory in a step; each contender in processes of its own\n"
        "  counts  bytes that a rank sends per Muon parameter, and what a step allocates\n\n"
        "With --beside TREE only ZeroMuon steps, with and without offload: of this tree and of that one, in turns, each in ranks\n"
        "of its own. Ratios are medians of pairs of one round, and the weights of both are compared at the end.\n\n"
        "A model WxL has L layers with matrices of a transformer's shapes, W x W four times, 4W x W and W x 4W.",
        epilog="A contender that fails is a row that says why. Exit status: 0, 2 for bad input, 130 when interrupted (what\n"
        "was measured until then is written); it does not depend on what was measured.",
    )
    sizes = " and ".join(f"{size.key} ({size.numel / 1e6:.1f} M parameters)" for size in DEFAULT_SIZES)
    add = parser.add_argument
    model = two_numbers("WIDTHxLAYERS", (_LARGEST_WIDTH, _MOST_LAYERS), "512x8")
    words = f"width and layers; may be given again (default: {sizes})"
    add("--model", action="append", metavar="WxL", type=model, default=[], help=words)
    add("--ranks", metavar="N", type=whole_number(1, 10**6), default=2, help="processes (default: %(default)s)")
    add("--only", choices=PARTS, help="measure this part only")
    tree = "another checkout of zeromuon, with built modules, to be stepped beside this one"
    add("--beside", metavar="TREE", help=tree)
    add_budget(parser, BUDGET_SECONDS, "; models and parts are left out and rounds are fewer to keep to it")
    return parser


def _options(argv: list[str]) -> argparse.Namespace:
    """Raises ValueError for those that cannot be."""
    options = parsed(_parser(), argv)
    options.warnings = check_ranks(options.ranks, core_count(), 0)
    if options.beside and options.only:
        raise ValueError(f"{_PROG}: --only is of a run without --beside; leave out one of them")
    options.beside = beside.checked_tree(_PROG, options.beside) if options.beside else None
    sizes = [Size(*numbers) for numbers in dict.fromkeys(options.model)]
    for size in sizes:
        _check_memory(size, options)
    options.sizes = sorted(sizes or DEFAULT_SIZES, key=lambda size: size.work)
    options.parts = (BESIDE,) if options.beside else (options.only,) if options.only else PARTS
    return options


def _check_memory(size: Size, options: argparse.Namespace) -> None:
    alone, ranks = needed_bytes(1, options.ranks, size), options.ranks
    needed = 2 * needed_bytes(len(OURS), ranks, size) if options.beside else alone
    what = f"{size.key} with {ranks} ranks needs"
    check_memory(f"{_PROG} --model", what, needed, available_memory_bytes(), "choose a smaller one")


# ---- the run -----------------------------------------------------------------------------------------------------


def _measure(options: argparse.Namespace, session: Session) -> None:
    options.out.mkdir(parents=True, exist_ok=True)
    session.results.header += [*_header(options), *(("note", sentence) for sentence in options.warnings)]
    launcher = Launcher(options.ranks, options.out / "ranks.log", session.progress)
    bench = _Bench(options.parts, launcher, session, options.beside)
    for size in options.sizes:
        bench.measure(size)


def _header(options: argparse.Namespace) -> list[tuple[str, str]]:
    threads = threads_of(options.ranks)
    lines = dict(machine.header(threads))
    lines["threads"] = f"{options.ranks} gloo ranks with {threads} of {core_count()} cores each"
    if options.beside:
        lines["trees"] = f"{beside.THIS_TREE} beside {options.beside}, each with ranks of its own"
    else:
        lines["peer"] = _PEER
    return list(lines.items())


@dataclass
class _Bench:
    """The launches of a run. modes: how DeepSpeed's Muon runs, found by the first launch that times it. taken: part ->
    (seconds of starting the ranks, seconds after that, work) of the last size."""

    parts: tuple[str, ...]
    launcher: Launcher
    session: Session
    beside: Path | None = None
    modes: dict[str, str] = field(default_factory=dict)
    mode_words: dict[str, str] = field(default_factory=dict)
    taken: dict[str, tuple[float, float, float]] = field(default_factory=dict)

    @property
    def budget(self) -> Budget:
        return self.session.budget

    def measure(self, size: Size) -> None:
        for part in self.parts:
            why = self._why_not(part, size)
            if why:
                self.session.results.left_out.append(f"{part} of {size.key}: {why}")
                continue
            start, starting = self.budget.elapsed(), self.launcher.starting_seconds
            {TIME: self._time, MEMORY: self._memory, COUNTS: self._counts, BESIDE: self._beside}[part](size)
            starting = self.launcher.starting_seconds - starting
            self.taken[part] = (starting, self.budget.elapsed() - start - starting, size.work)

    def _why_not(self, part: str, size: Size) -> str:
        """By what the size before took; the time of "time" is chosen to fit."""
        starting, working, work = self.taken.get(part, (0.0, 0.0, 1.0))
        estimate, left = starting + working * (1.0 if part in (TIME, BESIDE) else size.work / work), self.budget.left()
        if left <= 0:
            return self._spent()
        return f"about {estimate:.0f} s, and {left:.0f} s are left; raise --budget-seconds" if estimate > left else ""

    def _spent(self) -> str:
        return f"the budget of {self.budget.seconds:.0f} s is spent; raise --budget-seconds"

    def _launch(self, kind: str, size: Size, names: tuple[str, ...], heard: Heard, seconds: float = 0.0) -> None:
        job = Job(kind, size, names, seconds, dict(self.modes))
        try:
            self.launcher.run(job, heard, self.budget.left() + _GRACE_SECONDS)
        finally:
            self.modes |= heard.modes
            self.mode_words |= heard.mode_words

    def _time(self, size: Size) -> None:
        free = available_memory_bytes()
        groups = step_tables.turns(ALL, self.launcher.ranks, size, free)
        seconds = min(_MOST_TIME_SECONDS, self.budget.left() * _TIME_SHARE) / max(1, len(groups))
        heard, failed = [], {}
        try:
            for names in groups:
                self._race(size, names, seconds, heard, failed)
        finally:
            modes = [f"{name} runs {words}" for name, words in self.mode_words.items()]
            remarks = [step_tables.memory_words(groups, self.launcher.ranks, size, free), *modes]
            self.session.add(step_tables.time_case(size, heard, failed, remarks))

    def _race(
        self, size: Size, names: tuple[str, ...], seconds: float, heard: list[Heard], failed: dict[str, str]
    ) -> None:
        """One that fails takes all its processes along: the others start again without it."""
        names = tuple(name for name in names if name not in failed)
        while names:
            heard.append(Heard())
            self._launch(TIME, size, names, heard[-1], seconds)
            if heard[-1].failed is None:
                return
            culprit, why = heard[-1].failed
            if culprit not in names or self.budget.left() <= 0:
                failed |= {name: why for name in names if name not in heard[-1].seconds}
                return
            heard.pop()
            failed[culprit] = why
            names = tuple(name for name in names if name != culprit)

    def _memory(self, size: Size) -> None:
        heard: dict[str, Heard] = {}
        try:
            for name in ALL:
                heard[name] = Heard()
                if self.budget.left() > 0:
                    self._launch(MEMORY, size, (name,), heard[name])
                else:
                    heard[name].failed = (name, self._spent())
        finally:
            self.session.add(step_tables.memory_case(size, heard, self.mode_words))

    def _counts(self, size: Size) -> None:
        heard = Heard()
        try:
            self._launch(COUNTS, size, COUNTED, heard)
        finally:
            self.session.add(step_tables.counts_case(size, heard, self.launcher.ranks))

    def _beside(self, size: Size) -> None:
        ranks, log, progress = self.launcher.ranks, self.launcher.log, self.session.progress
        pair, samples = beside.Pair(self.beside, size, ranks, log, self.budget.left() + _GRACE_SECONDS), Samples()
        progress.say(f"{size.key}: this tree and {self.beside}, in turns")
        try:
            pair.measure(min(_MOST_TIME_SECONDS, self.budget.left() * _TIME_SHARE), samples, progress.round)
        finally:
            for case in pair.cases(samples):
                self.session.add(case)
