"""`zeromuon bench ckpt`: its options, the rounds, the files. No torch before the options are checked."""

from __future__ import annotations

import argparse
import shutil
from dataclasses import dataclass
from pathlib import Path

from ....ranks.machine import available_memory_bytes, core_count
from ..core import interrupt, machine, report
from ....base.parser import Parser
from ..core.options import new_folder, whole_number
from ..core.progress import Progress
from ..core.results import OURS, PEER, Case, Results
from ..core.timing import Budget
from . import source as sources
from . import tables
from .contenders import EXPORT, LARGE, UNIVERSAL, Conversion, Source, of_part, output_of
from .measure import Failed, Measured, Runner
from .verdicts import CKPT

PARTS = (EXPORT, UNIVERSAL, LARGE)
BUDGET_SECONDS = 1800.0
_PROG = "zeromuon bench ckpt"
_MIB, _ROUNDS, _LARGE_MB = 1024, 3, 10_000
# Per byte of weights: the checkpoint with both moments; ours and the peer's output at once, with the peer's temporary files.
_CHECKPOINT_SHARE, _OUTPUT_SHARE = 3.1, 9.5
_MEMORY_SHARE = 7.0  # of the ranks that write the checkpoint; the peers take less


def run(argv: list[str]) -> int:
    """Returns the exit status: 0, or 130 when interrupted; it does not depend on what was measured.

    Raises ValueError for bad arguments and where disk or memory do not do, before anything is measured or written.
    """
    options = _checked(_parser().parse(argv))
    budget = Budget(options.budget_seconds)
    progress = Progress(budget)
    work = options.work / f"zeromuon-bench-ckpt-{options.out.name}"
    try:
        results = _measured(options, work, budget, progress)
    finally:
        progress.close()
        shutil.rmtree(work, ignore_errors=True)
    results.seconds = budget.elapsed()
    return report.finish(options.out, results)


# ---- options -----------------------------------------------------------------------------------------------------


def _parser() -> Parser:
    parser = Parser(
        prog=_PROG,
        description="Measures zeromuon ckpt beside DeepSpeed's scripts on a checkpoint of ZeRO-3 that DeepSpeed writes here\n"
        "on 2 gloo ranks. Each conversion is a command in processes of its own, from its start until its files are on disk.\n"
        "Ends with a table, a JSON file and a picture.\n\n"
        "  export     beside zero_to_fp32: fp32 weights as safetensors\n"
        "  universal  beside ds_to_universal\n"
        "  large      export of a synthetic checkpoint of sparse files (only with --full): peak memory",
        epilog="Exit status: 0, 2 for bad input, 130 when interrupted (what was measured until then is written); it does not\n"
        "depend on what was measured.",
    )
    add = parser.add_argument
    add("--weights-mib", metavar="N", help=f"fp32 weights of the checkpoint that is written (default: {_MIB})")
    add("--checkpoint", metavar="DIR", help="convert this one of ZeRO-3 instead (a folder with the file latest)")
    add("--rounds", metavar="N", help=f"of each pair (default: {_ROUNDS}, fewer to keep to the budget)")
    add("--only", choices=PARTS, help="measure this part only")
    add("--full", action="store_true", help=f"the large checkpoint, too: {_LARGE_MB / 1000:.0f} GB of weights")
    add("--large-mb", metavar="N", help=f"weights of the large one (default: {_LARGE_MB})")
    add(
        "--work",
        metavar="DIR",
        help="where checkpoints and outputs go, removed afterwards (default: the folder of the"
        " results); its disk is what is measured",
    )
    add("--budget-seconds", metavar="S", help=f"wall time for all, about (default: {BUDGET_SECONDS:.0f})")
    add("--out", metavar="DIR", help="folder of the results (default: bench-ckpt-<time>)")
    return parser


def _checked(options: argparse.Namespace) -> argparse.Namespace:
    """The options as values. Raises ValueError for those that cannot be."""
    options.weights_mib = whole_number(_PROG, "--weights-mib", options.weights_mib, _MIB, 1, 10**6)
    options.rounds = whole_number(_PROG, "--rounds", options.rounds, _ROUNDS, 1, 100)
    options.large_mb = whole_number(_PROG, "--large-mb", options.large_mb, _LARGE_MB, 1, 10**6)
    options.budget_seconds = whole_number(_PROG, "--budget-seconds", options.budget_seconds, BUDGET_SECONDS, 1, 10**6)
    options.parts = (options.only,) if options.only else PARTS if options.full else (EXPORT, UNIVERSAL)
    options.out = new_folder(_PROG, options.out, report.json_file("ckpt"))
    options.work = Path(options.work).absolute() if options.work else options.out
    options.given = sources.given(Path(options.checkpoint).absolute()) if options.checkpoint else None
    check_room(options)
    return options


def needed_disk_bytes(options: argparse.Namespace) -> float:
    """At once, in the folder of the work."""
    weights = options.given.weights_bytes if options.given else options.weights_mib * 2**20
    converted = (
        weights * (_OUTPUT_SHARE + (0.0 if options.given else _CHECKPOINT_SHARE)) if options.parts != (LARGE,) else 0.0
    )
    return max(converted, sources.sparse_bytes(options.large_mb * 10**6) if LARGE in options.parts else 0)


def check_room(options: argparse.Namespace) -> None:
    """Raises ValueError where disk or memory do not do."""
    parent = next(p for p in (options.work, *options.work.parents) if p.exists())
    needed, free = needed_disk_bytes(options), shutil.disk_usage(parent).free
    if needed > free:
        raise ValueError(
            f"{_PROG}: {parent} needs about {needed / 1e9:.1f} GB free, found {free / 1e9:.1f} GB; name another"
            " folder with --work, or fewer --weights-mib"
        )
    writes = options.given is None and options.parts != (LARGE,)
    needed, free = _MEMORY_SHARE * options.weights_mib * 2**20 + 2e9, available_memory_bytes()
    if writes and needed > free:
        raise ValueError(
            f"{_PROG}: DeepSpeed needs about {needed / 1e9:.1f} GB of memory to write the checkpoint,"
            f" {free / 1e9:.1f} GB are free; choose fewer --weights-mib, or name a --checkpoint"
        )


# ---- the run -----------------------------------------------------------------------------------------------------


def _measured(options: argparse.Namespace, work: Path, budget: Budget, progress: Progress) -> Results:
    options.out.mkdir(parents=True, exist_ok=True)
    results, others = Results(_header(work), bench=CKPT), machine.OtherLoad()
    bench = _Bench(options, work, budget, progress, results)
    with interrupt.deferred():
        try:
            bench.measure()
        except KeyboardInterrupt:
            results.interrupted = True
    results.header.append(("other processes", others.words()))
    return results


def _header(work: Path) -> list[tuple[str, str]]:
    known = dict(machine.header(1))
    parent = next(p for p in (work, *work.parents) if p.exists())
    lines = {name: known[name] for name in ("processor", "versions")}
    lines["threads"] = f"{core_count()} cores; ours with its default number of threads"
    lines["files"] = f"on {file_system(parent)}; inputs in the page cache where they fit; outputs synced"
    return list(lines.items())


def file_system(path: Path) -> str:
    """The kind that `path` lies on, e.g. "ext4"."""
    found, longest = "an unknown file system", -1
    for line in Path("/proc/mounts").read_text().splitlines():
        _, mounted, kind, *_ = line.split()
        inside = path == Path(mounted) or Path(mounted) in path.parents
        if inside and len(mounted) >= longest:
            found, longest = kind, len(mounted)
    return found


@dataclass
class _Bench:
    options: argparse.Namespace
    work: Path
    budget: Budget
    progress: Progress
    results: Results

    def measure(self) -> None:
        left = list(self.options.parts)
        while left:
            part = left.pop(0)
            end = self.budget.elapsed() + self.budget.left() / (len(left) + 1)
            race = _Race(part, self._source(part), self.work, self.progress)
            try:
                self._rounds(race, 1 if part == LARGE else self.options.rounds, end)
            finally:
                case = race.case()
                if case.rows:
                    self.results.cases.append(case)
                    report.write_json(self.options.out, self.results)

    def _rounds(self, race: _Race, most: int, end: float) -> None:
        for number in range(most):
            began = self.budget.elapsed()
            race.round(number)
            now = self.budget.elapsed()
            if now + (now - began) > end:
                return

    def _source(self, part: str) -> Source:
        if part == LARGE:
            shutil.rmtree(self.work / "checkpoint", ignore_errors=True)
            self.progress.say("a large checkpoint of sparse files")
            return sources.sparse(self.work / "large", self.options.large_mb * 10**6)
        if self.options.given is None:
            self.progress.say(f"DeepSpeed writes a checkpoint of {self.options.weights_mib} MiB of weights")
            self.work.mkdir(parents=True, exist_ok=True)
            log = self.options.out / "ranks.log"
            self.options.given = sources.by_deepspeed(self.work / "checkpoint", self.options.weights_mib, log)
        return self.options.given


class _Race:
    """The conversions of a part, each once per round, in an order that turns around. taken: name -> one value per round.
    failed: name -> why."""

    def __init__(self, part: str, source: Source, work: Path, progress: Progress):
        self._part, self._source, self._progress = part, source, progress
        self._conversions = of_part(part, source)
        self._runners = {c.name: Runner(work / f"run-{c.kind}") for c in self._conversions}
        self._taken: dict[str, list[Measured]] = {}
        self._failed: dict[str, str] = {}
        self._remarks: list[str] = []

    def round(self, number: int) -> None:
        """The first one compares the outputs, too."""
        try:
            for conversion in self._conversions[:: -1 if number % 2 else 1]:
                if conversion.name not in self._failed:
                    interrupt.point()
                    self._progress.say(f"{self._part}: {conversion.name}, round {number + 1}")
                    self._convert(conversion, self._runners[conversion.name])
            if number == 0 and self._part != LARGE:
                self._remarks.append(tables.same_words(self._part, self._difference()))
        finally:
            for runner in self._runners.values():
                runner.clear()

    def _convert(self, conversion: Conversion, runner: Runner) -> None:
        runner.prepare()
        try:
            took = runner.run(conversion.command(runner), conversion.kind == OURS)
            self._taken.setdefault(conversion.name, []).append(took)
        except Failed as error:
            self._failed[conversion.name] = str(error)

    def _difference(self) -> dict | None:
        """Of the outputs of ours and of the peer; None when one failed."""
        from .... import _ckpt

        pair = [c.name for c in self._conversions if c.kind in (OURS, PEER) and c.name not in self._failed]
        if len(pair) != 2:
            return None
        return _ckpt.diff(*(str(output_of(self._part, self._runners[name])) for name in pair))

    def case(self) -> Case:
        """Of the rounds that are whole."""
        taken = {name: runs for name, runs in self._taken.items() if name not in self._failed}
        rounds = min(map(len, taken.values()), default=0)
        whole = {name: runs[:rounds] for name, runs in taken.items() if rounds}
        return tables.case_of(self._part, self._source, self._conversions, whole, self._failed, self._remarks)
