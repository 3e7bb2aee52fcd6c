"""The command: launches every (row, system) in fresh processes, prints the table, decides the exit status."""

from __future__ import annotations

import argparse
import difflib
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from .rows import DEEPSPEED, OURS, ROWS, SYSTEMS, Row, bar_of

RANKS = 2
SECONDS_PER_RUN = 150
MISSED, INTERRUPTED = 1, 130


def run(arguments: list[str]) -> int:
    """`zeromuon compare`; returns the exit status: 0 when ours meets every bar, 1 when it misses one.

    Raises ValueError for an unknown row.
    """
    options = _parser().parse_args(arguments)
    if options.list:
        print("\n".join(f"{row.name:<17} {row.defect}" for row in ROWS))
        return 0
    rows = [_row_named(name) for name in options.row or [row.name for row in ROWS]]
    try:
        results = _measure_all(rows)
    except KeyboardInterrupt:
        print("interrupted; nothing is left running", file=sys.stderr)
        return INTERRUPTED
    print(table(rows, results))
    if options.json:
        Path(options.json).write_text(json.dumps({"deepspeed": _version("deepspeed"), "rows": results}, indent=1) + "\n")
    return exit_status(rows, results)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="zeromuon compare",
        description="Runs DeepSpeed's own Muon and this one side by side on 2 ranks on the CPU, each row and system in "
        "fresh processes, and measures both against an independent reference. Under 10 minutes.",
    )
    parser.add_argument("--row", action="append", metavar="NAME", help="only this row; may be given again")
    parser.add_argument("--list", action="store_true", help="name the rows and end")
    parser.add_argument("--json", metavar="FILE", help="write the measured figures there, too")
    return parser


def _row_named(name: str) -> Row:
    by_name = {row.name: row for row in ROWS}
    if name in by_name:
        return by_name[name]
    nearest = difflib.get_close_matches(name, by_name, 1, cutoff=0.4)
    hint = f'; did you mean "{nearest[0]}"?' if nearest else ""
    raise ValueError(f'zeromuon compare --row {name}: expected one of {", ".join(by_name)}{hint}')


# ---- running -------------------------------------------------------------------------------------


def _measure_all(rows: list[Row]) -> dict[str, dict]:
    """row -> system -> {"value", "shown"} or {"error"}; progress goes to stderr."""
    results: dict[str, dict] = {}
    began, runs = time.monotonic(), [(row, system) for row in rows for system in SYSTEMS]
    for number, (row, system) in enumerate(runs, 1):
        print(f"[{number}/{len(runs)}, {time.monotonic() - began:.0f} s] {row.name}: {system}", file=sys.stderr, flush=True)
        results.setdefault(row.name, {})[system] = measure(row.name, system)
    return results


def measure(name: str, system: str, spoil: bool = False) -> dict:
    """Runs one row on one system in fresh processes. spoil: ours with a wrong learning rate, to see that it shows."""
    with tempfile.TemporaryDirectory(prefix="zeromuon-compare-") as folder:
        out = Path(folder) / "result.json"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(RANKS),
                   "-m", "zeromuon.compare.child", name, system, str(out), *(["--spoil"] if spoil else [])]
        log = _run(command, folder)
        if out.exists():
            return json.loads(out.read_text())
    return {"error": f"the run ended without a result: {log[-2000:]}"}


def _run(command: list[str], folder: str) -> str:
    """What the ranks printed. They are ended when this process is interrupted or they take too long."""
    package = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(p for p in (package, os.environ.get("PYTHONPATH")) if p)
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1",
                   "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore"}
    ranks = subprocess.Popen(command, cwd=folder, env=environment, text=True, errors="replace",
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        return ranks.communicate(timeout=SECONDS_PER_RUN)[0]
    except subprocess.TimeoutExpired:
        return f"no end after {SECONDS_PER_RUN} s"
    finally:
        if ranks.poll() is None:
            ranks.terminate()  # torchrun ends its ranks
            ranks.communicate()


# ---- the verdict ---------------------------------------------------------------------------------


def holds(row: Row, result: dict) -> bool:
    return "error" not in result and result["value"] <= bar_of(row)


def exit_status(rows: list[Row], results: dict[str, dict]) -> int:
    return 0 if all(holds(row, results[row.name][OURS]) for row in rows) else MISSED


def table(rows: list[Row], results: dict[str, dict]) -> str:
    """The table, then which defects this release of DeepSpeed has fixed and which it has."""
    heading = ("what", f"DeepSpeed {_version('deepspeed')}", f"zeromuon {_version('zeromuon')}", "bar", "verdict")
    lines = [heading, *(_line(row, results[row.name]) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(heading))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines]
    fixed = [row.defect for row in rows if holds(row, results[row.name][DEEPSPEED])]
    live = [row.defect for row in rows if not holds(row, results[row.name][DEEPSPEED])]
    return "\n".join([*text, "", *_list("fixed in this DeepSpeed, or never there:", fixed),
                      *_list("live in this DeepSpeed:", live), *_errors(rows, results)])


def _line(row: Row, results: dict) -> tuple[str, ...]:
    theirs = "fixed" if holds(row, results[DEEPSPEED]) else "live"
    ours = "ours ok" if holds(row, results[OURS]) else "ours MISSED"
    bar = format(bar_of(row), row.unit)
    return row.measured, _cell(row, results[DEEPSPEED]), _cell(row, results[OURS]), bar, f"{theirs}, {ours}"


def _cell(row: Row, result: dict) -> str:
    return result["error"].partition(":")[0] if "error" in result else format(result["value"], row.unit)


def _list(title: str, defects: list[str]) -> list[str]:
    return [title, *(f"  - {defect}" for defect in defects)] if defects else []


def _errors(rows: list[Row], results: dict) -> list[str]:
    found = [f"  {row.name}, {system}: {results[row.name][system]['error'].strip()}" for row in rows for system in SYSTEMS
             if "error" in results[row.name][system]]
    return ["what was raised:", *found] if found else []


def _version(package: str) -> str:
    if package == "zeromuon":
        from .. import __version__

        return __version__
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
