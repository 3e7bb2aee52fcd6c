"""`zeromuon bench ckpt`: its options, the rounds, the files. No torch before the options are checked."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from ....ranks.machine import available_memory_bytes, core_count
from ....base.parser import Parser
from ..core import interrupt, machine
from ..core.options import add_budget, check_memory, existing, parsed, whole_number
from ..core.results import OURS, Case
from ..core.session import Progress, Session
from . import source as sources
from . import tables
from .contenders import EXPORT, LARGE, UNIVERSAL, Conversion, Source, of_part
from .measure import Failed, Measured

PARTS = (EXPORT, UNIVERSAL, LARGE)
BUDGET_SECONDS = 1800.0
_PROG = "zeromuon bench ckpt"
_MIB, _ROUNDS, _LARGE_MB = 1024, 3, 10_000
# Per byte of weights: the checkpoint with both moments; ours and the peer's output at once, with the peer's temporary files.
_CHECKPOINT_SHARE, _OUTPUT_SHARE = 3.1, 9.5
_MEMORY_SHARE = 7.0  # of the ranks that write the checkpoint; the peers take less


def run(argv: list[str]) -> int:
    """See bench/command.py; raises ValueError also where disk or memory do not do."""
    options = _options(argv)
    session = Session(tables.CKPT, options.out, options.budget_seconds)
    return session.run(lambda: _measure(options, session))


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
    number = {"metavar": "N", "type": whole_number(1, 10**6)}
    add(
        "--weights-mib",
        default=_MIB,
        help="fp32 weights of the checkpoint that is written (default: %(default)s)",
        **number,
    )
    add("--checkpoint", metavar="DIR", help="convert this one of ZeRO-3 instead (a folder with the file latest)")
    rounds = "of each pair (default: %(default)s, fewer to keep to the budget)"
    add("--rounds", metavar="N", type=whole_number(1, 100), default=_ROUNDS, help=rounds)
    add("--only", choices=PARTS, help="measure this part only")
    add("--full", action="store_true", help=f"the large checkpoint, too: {_LARGE_MB / 1000:.0f} GB of weights")
    add("--large-mb", default=_LARGE_MB, help="weights of the large one (default: %(default)s)", **number)
    work = "where checkpoints and outputs go, removed afterwards (default: the folder of the results);"
    add("--work", metavar="DIR", help=f"{work} its disk is what is measured")
    add_budget(parser, BUDGET_SECONDS)
    return parser


def _options(argv: list[str]) -> argparse.Namespace:
    """Raises ValueError for those that cannot be."""
    options = parsed(_parser(), argv)
    options.parts = (options.only,) if options.only else PARTS if options.full else (EXPORT, UNIVERSAL)
    options.work = Path(options.work).absolute() if options.work else options.out
    options.given = sources.given(Path(options.checkpoint).absolute()) if options.checkpoint else None
    check_room(options)
    return options


def needed_disk_bytes(options: argparse.Namespace) -> float:
    """At once, in the folder of the work."""
    converted = 0.0
    if options.parts != (LARGE,):
        weights = options.given.weights_bytes if options.given else options.weights_mib * 2**20
        converted = weights * (_OUTPUT_SHARE + (0.0 if options.given else _CHECKPOINT_SHARE))
    return max(converted, sources.sparse_bytes(options.large_mb * 10**6) if LARGE in options.parts else 0)


def check_room(options: argparse.Namespace) -> None:
    """Raises ValueError where disk or memory do not do."""
    parent = existing(options.work)
    needed, free = needed_disk_bytes(options), shutil.disk_usage(parent).free
    if needed > free:
        raise ValueError(
            f"{_PROG}: {parent} needs about {needed / 1e9:.1f} GB free, found {free / 1e9:.1f} GB; name another"
            " folder with --work, or fewer --weights-mib"
        )
    if options.given is None and options.parts != (LARGE,):
        needed = _MEMORY_SHARE * options.weights_mib * 2**20 + 2e9
        advice = "choose fewer --weights-mib, or name a --checkpoint"
        check_memory(_PROG, "to write the checkpoint DeepSpeed needs", needed, available_memory_bytes(), advice)


# ---- the run -----------------------------------------------------------------------------------------------------


def _measure(options: argparse.Namespace, session: Session) -> None:
    options.out.mkdir(parents=True, exist_ok=True)
    work = options.work / f"zeromuon-bench-ckpt-{options.out.name}"
    session.results.header += _header(work)
    try:
        for number, part in enumerate(options.parts):
            end = session.budget.elapsed() + session.budget.left() / (len(options.parts) - number)
            race = _Race(part, _source(part, options, work, session.progress), work, session)
            try:
                race.run(1 if part == LARGE else options.rounds, end)
            finally:
                session.add(race.case())
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _source(part: str, options: argparse.Namespace, work: Path, progress: Progress) -> Source:
    if part == LARGE:
        shutil.rmtree(work / "checkpoint", ignore_errors=True)
        progress.say("a large checkpoint of sparse files")
        return sources.sparse(work / "large", options.large_mb * 10**6)
    if options.given is None:
        progress.say(f"DeepSpeed writes a checkpoint of {options.weights_mib} MiB of weights")
        work.mkdir(parents=True, exist_ok=True)
        options.given = sources.by_deepspeed(work / "checkpoint", options.weights_mib, options.out / "ranks.log")
    return options.given


def _header(work: Path) -> list[tuple[str, str]]:
    known = dict(machine.header(1))
    lines = {name: known[name] for name in ("processor", "versions")}
    lines["threads"] = f"{core_count()} cores; ours with its default number of threads"
    lines["files"] = f"on {file_system(existing(work))}; inputs in the page cache where they fit; outputs synced"
    return list(lines.items())


def file_system(path: Path) -> str:
    """The kind that `path` lies on, e.g. "ext4"."""
    mounts = (line.split() for line in Path("/proc/mounts").read_text().splitlines())
    around = [(mounted, kind) for _, mounted, kind, *_ in mounts if path.is_relative_to(mounted)]
    unknown = ("", "an unknown file system")
    return sorted([unknown, *around], key=lambda mount: len(mount[0]))[-1][1]  # of two at one place the later


class _Race:
    """The conversions of a part, each once per round, in an order that turns around. taken: name -> one value per round.
    failed: name -> why."""

    def __init__(self, part: str, source: Source, work: Path, session: Session):
        self._part, self._source, self._session = part, source, session
        self._conversions = of_part(part, source, work)
        self._taken: dict[str, list[Measured]] = {}
        self._failed: dict[str, str] = {}
        self._remarks: list[str] = []

    def run(self, most: int, end: float) -> None:
        """At most so many rounds, and no more than are over by `end`, seconds of the budget."""
        for number in range(most):
            began = self._session.budget.elapsed()
            try:
                self._round(number)
            finally:
                for conversion in self._conversions:
                    conversion.runner.clear()
            now = self._session.budget.elapsed()
            if now + (now - began) > end:
                return

    def _round(self, number: int) -> None:
        """The first one compares the outputs, too."""
        for conversion in self._conversions[:: -1 if number % 2 else 1]:
            if conversion.name not in self._failed:
                interrupt.point()
                self._session.progress.say(f"{self._part}: {conversion.name}, round {number + 1}")
                self._convert(conversion)
        if number == 0 and self._part != LARGE:
            self._remarks.append(tables.same_words(self._part, self._difference()))

    def _convert(self, conversion: Conversion) -> None:
        try:
            took = conversion.runner.run(conversion.command, conversion.kind == OURS)
            self._taken.setdefault(conversion.name, []).append(took)
        except Failed as error:
            self._failed[conversion.name] = str(error)

    def _difference(self) -> dict | None:
        """Of the outputs of ours and of the peer; None when one failed."""
        from .... import _ckpt

        ours, peer, _ = self._conversions
        failed = {ours.name, peer.name} & set(self._failed)
        return None if failed else _ckpt.diff(str(ours.output), str(peer.output))

    def case(self) -> Case:
        """Of the rounds that are whole."""
        taken = {name: runs for name, runs in self._taken.items() if name not in self._failed}
        rounds = min(map(len, taken.values()), default=0)
        whole = {name: runs[:rounds] for name, runs in taken.items() if rounds}
        return tables.case_of(self._part, self._source, whole, self._failed, self._remarks)
