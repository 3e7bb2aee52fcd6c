"""`zeromuon compare`: its options, the progress, the order of the runs. No torch."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from ...base.parser import Parser
from ...base.words import did_you_mean
from . import launch, report
from .rows import ROWS, SYSTEMS, Row

INTERRUPTED = 130


def run(argv: list[str]) -> int:
    """`zeromuon compare`; returns the exit status: 0 when ours meets every bar, 1 when it misses one or a run did not
    come back, 130 when interrupted.

    Raises ValueError for bad arguments, before anything runs.
    """
    options = _parser().parse(argv)
    if options.list:
        print("\n".join(f"{row.name:<16} {row.defect}" for row in ROWS))
        return 0
    rows = [_row_named(name) for name in dict.fromkeys(options.row or [row.name for row in ROWS])]
    out = _writable(options.json)
    try:
        results = _measure_all(rows)
    except KeyboardInterrupt:
        print("interrupted; the ranks were ended", file=sys.stderr)
        return INTERRUPTED
    print(report.text(rows, results))
    if out:
        out.write_text(json.dumps(_as_json(rows, results), indent=1) + "\n")
    return report.exit_status(rows, results)


def _parser() -> Parser:
    parser = Parser(
        prog="zeromuon compare",
        description="Runs DeepSpeed's own Muon and this one side by side on 2 ranks on the CPU, each row and system in\n"
        "fresh processes, and measures both against an independent reference. All rows take about five minutes.\n"
        "Exit status: 0 when zeromuon meets every bar, 1 when it misses one or a run did not come back.",
    )
    parser.add_argument("--row", action="append", metavar="NAME", help="only this row; may be given again")
    parser.add_argument("--list", action="store_true", help="name the rows and end")
    parser.add_argument("--json", metavar="FILE", help="write the measured figures there, too")
    return parser


def _row_named(name: str) -> Row:
    by_name = {row.name: row for row in ROWS}
    if name in by_name:
        return by_name[name]
    known, hint = ", ".join(by_name), did_you_mean(name, by_name)
    raise ValueError(f"zeromuon compare --row {name}: expected one of {known}{hint}")


def _writable(path: str | None) -> Path | None:
    """Checked before minutes of measuring. Raises ValueError when the file cannot be written."""
    if path is None:
        return None
    try:
        with open(path, "a"):
            return Path(path)
    except OSError as error:
        raise ValueError(f"zeromuon compare --json {path}: {error.strerror}; name a file that can be written") from None


def _measure_all(rows: list[Row]) -> dict[str, dict]:
    """row -> system -> result; progress goes to stderr."""
    results, started = {row.name: {} for row in rows}, time.monotonic()
    for number, row in enumerate(rows, 1):
        for system in SYSTEMS:
            _say(f"row {number} of {len(rows)}, {time.monotonic() - started:4.0f} s: {row.name}, {system} ...", end=" ")
            result = results[row.name][system] = launch.measure(row.name, system)
            _say(f"{result['kind']} in {result['seconds']:.0f} s")
    _say(f"{len(rows)} rows in {time.monotonic() - started:.0f} s\n")
    return results


def _say(words: str, end: str = "\n") -> None:
    print(words, end=end, file=sys.stderr, flush=True)


def _as_json(rows: list[Row], results: dict) -> dict:
    versions = {package: launch.installed_version(package) for package in ("deepspeed", "zeromuon", "torch")}
    return {
        "versions": versions,
        "ranks": launch.RANKS,
        "rows": [
            {
                "name": row.name,
                "defect": row.defect,
                "figures": [{"what": f.what, "bar": f.bar} for f in row.figures],
                **results[row.name],
                "meets": {s: report.meets(row, results[row.name][s]) for s in SYSTEMS},
            }
            for row in rows
        ],
    }
