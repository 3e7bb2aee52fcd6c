"""`zeromuon bench pipeline`: its options and its files. No torch before the options are checked."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ....base.parser import Parser
from ....base.shipped import config_file
from ....base.words import did_you_mean
from ..core import report
from ..core.options import parsed
from ..core.progress import Progress
from ..core.results import Results
from ..core.timing import Budget
from . import outcome, rates, tables, timeline

_PROG = "zeromuon bench pipeline"
_EXPECTED_SECONDS = 60.0
TRACE_FILE = "pipeline.trace.json"


def run(argv: list[str]) -> int:
    """Returns 0, whatever the verdicts. Raises ValueError for bad arguments and files of rates, before anything is written."""
    options = parsed(_parser(), argv)
    given = rates.load(Path(options.rates).absolute() if options.rates else config_file(rates.FILE, f"{_PROG} --rates"))
    if options.case is not None:
        _check_case(options.case, [s.key for s in given.scenarios])
    budget = Budget(_EXPECTED_SECONDS)
    rows = _played(given.scenarios, Progress(budget))
    drawn = options.case or tables.worst(rows).key
    results = tables.results_of(given, rows, drawn)
    results.header.append(("drawn", f"the timeline of {drawn}; for Perfetto in {TRACE_FILE}"))
    results.seconds = budget.elapsed()
    report.write_json(options.out, results)
    _draw(options.out, results, *next((s, row) for s, row in zip(given.scenarios, rows) if row.key == drawn))
    return report.finish(options.out, results)


def _parser() -> Parser:
    parser = Parser(
        prog=_PROG,
        description="Plays an optimizer step of large models with CPU offload on a virtual clock: the plan, the coroutines\n"
        "and the buffers of a real step, with rates in place of work. Ends with a table of makespans beside the lower bound\n"
        "and the serial schedule, a JSON file, and of one case a picture and a trace for Perfetto.",
        epilog="Exit status: 0, or 2 for bad input; it does not depend on the verdicts.",
    )
    add = parser.add_argument
    add("--rates", metavar="FILE", help=f"machines and cases (default: configs/{rates.FILE})")
    drawn = "what is drawn, of the table's first column (default: the one with the largest ratio)"
    add("--case", metavar="NAME", help=drawn)
    return parser


def _check_case(case: str, known: list[str]) -> None:
    if case not in known:
        hint = did_you_mean(case, known, otherwise=f"; e.g. {known[0]}")
        raise ValueError(f'{_PROG} --case: expected a case of the file of rates, got "{case}"{hint}')


def _played(scenarios: Iterable[rates.Scenario], progress: Progress) -> list[outcome.Played]:
    from . import play

    rows = []
    for scenario in scenarios:
        progress.say(scenario.key)
        rows.append(play.play(scenario))
    progress.close()
    return rows


def _draw(out: Path, results: Results, scenario: rates.Scenario, row: outcome.Played) -> None:
    """Plays the case once more, for its tasks: those of all cases would take much memory."""
    from . import play

    step = play.play_plan(play.make_plan(scenario), scenario)
    timeline.draw(report.file_of(out, results, "png"), step, row)
    timeline.write_trace(out / TRACE_FILE, step)
