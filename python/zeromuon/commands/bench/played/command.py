"""`zeromuon bench pipeline`: its options and its files. No torch before the options are checked."""

from __future__ import annotations

import argparse
from pathlib import Path

from ....base.parser import Parser
from ....base.shipped import config_file
from ....base.words import did_you_mean
from ..core import report
from ..core.options import parsed
from ..core.session import Progress
from ..core.results import Results
from ..core.timing import Budget
from . import rates, tables, timeline

_PROG = "zeromuon bench pipeline"
_EXPECTED_SECONDS = 60.0
TRACE_FILE = "pipeline.trace.json"


def run(argv: list[str]) -> int:
    """See bench/command.py; raises ValueError for a bad file of rates, too."""
    options = parsed(_parser(), argv)
    given = rates.load(Path(options.rates).absolute() if options.rates else config_file(rates.FILE, f"{_PROG} --rates"))
    scenarios = {s.key: s for s in given.scenarios}
    if options.case is not None and options.case not in scenarios:
        hint = did_you_mean(options.case, scenarios, otherwise=f"; e.g. {next(iter(scenarios))}")
        raise ValueError(f'{_PROG} --case: expected a case of the file of rates, got "{options.case}"{hint}')
    return report.finish(options.out, _measured(options, given, scenarios))


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


def _measured(options: argparse.Namespace, given: rates.Rates, scenarios: dict[str, rates.Scenario]) -> Results:
    from . import play

    budget = Budget(_EXPECTED_SECONDS)
    progress, rows = Progress(budget), {}
    for key, scenario in scenarios.items():
        progress.say(key)
        rows[key] = play.play(scenario)
    progress.close()
    drawn = options.case or tables.worst(rows.values()).key
    results = tables.results_of(given, list(rows.values()), drawn)
    results.header.append(("drawn", f"the timeline of {drawn}; for Perfetto in {TRACE_FILE}"))
    results.seconds = budget.elapsed()
    report.write_json(options.out, results)
    # Played once more, for its tasks: those of all cases would take much memory.
    step = play.play_plan(play.make_plan(scenarios[drawn]), scenarios[drawn])
    timeline.draw(report.file_of(options.out, results, "png"), step, rows[drawn])
    timeline.write_trace(options.out / TRACE_FILE, step)
    return results
