"""`zeromuon bench pipeline`: its options and its files. No torch before the options are checked."""

from __future__ import annotations

from pathlib import Path

from ....base.parser import Parser
from ....base.shipped import config_file
from ....base.words import did_you_mean
from ..core.options import new_folder
from ..core.progress import Progress
from ..core.timing import Budget
from . import outcome, rates, report, timeline

_PROG = "zeromuon bench pipeline"
_EXPECTED_SECONDS = 60.0


def run(argv: list[str]) -> int:
    """Returns 0, whatever the verdicts. Raises ValueError for bad arguments and files of rates, before anything is written."""
    options = _parser().parse(argv)
    given = rates.load(Path(options.rates).absolute() if options.rates else config_file(rates.FILE, f"{_PROG} --rates"))
    scenarios = outcome.scenarios(given)
    if options.case is not None:
        _check_case(options.case, [s.key for s in scenarios])
    out = new_folder(_PROG, options.out, report.JSON_FILE)
    result = _played(given, scenarios, options.case)
    report.write(out, result)
    _draw(out, result)
    print(report.text(result))
    files = ", ".join((report.JSON_FILE, report.TEXT_FILE, report.PLOT_FILE, report.TRACE_FILE))
    print(f"\n{result.seconds:.0f} s; timeline of {result.drawn}; results in {out}: {files}")
    return 0


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
    add(
        "--case",
        metavar="NAME",
        help="what is drawn, of the table's first column (default: the one with the largest ratio)",
    )
    add("--out", metavar="DIR", help="folder of the results (default: bench-pipeline-<time>)")
    return parser


def _check_case(case: str, known: list[str]) -> None:
    if case not in known:
        hint = did_you_mean(case, known, otherwise=f"; e.g. {known[0]}")
        raise ValueError(f'{_PROG} --case: expected a case of the file of rates, got "{case}"{hint}')


def _played(given: rates.Rates, scenarios: list[outcome.Scenario], case: str | None) -> report.Report:
    from . import play as played

    budget = Budget(_EXPECTED_SECONDS)
    progress, rows = Progress(budget), []
    for scenario in scenarios:
        progress.say(scenario.key)
        rows.append(played.play(scenario))
    progress.close()
    return report.Report(given, scenarios, rows, case or report.worst(rows).key, budget.elapsed())


def _draw(out: Path, result: report.Report) -> None:
    """Plays the case once more, for its tasks: those of all cases would take much memory."""
    from . import play as played

    scenario, row = next((s, r) for s, r in zip(result.scenarios, result.rows) if r.key == result.drawn)
    step = played.play_plan(played.make_plan(scenario), scenario)
    timeline.draw(out / report.PLOT_FILE, step, row)
    timeline.write_trace(out / report.TRACE_FILE, step)
