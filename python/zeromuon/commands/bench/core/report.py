"""The table, and the files of a run. No torch."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

from ....base.durable import whole_file
from .interrupt import INTERRUPTED, Wish
from .results import MEASURED, ROOF, Case, Figure, Results, Row

SCHEMA = 2


def file_of(folder: Path, results: Results, kind: str) -> Path:
    """kind: json, txt or png."""
    return folder / f"{results.bench.name}.{kind}"


def text(results: Results) -> str:
    """Header, a table per case, what was left out, the figures to reach."""
    width = max(len(what) for what, _ in results.header)
    lines = [f"{what:<{width}}  {value}" for what, value in results.header]
    lines += ["", *results.bench.legend]
    for case in results.cases:
        lines += ["", *_table(case)]
    if results.left_out:
        lines += ["", "left out:", *(f"  {line}" for line in results.left_out)]
    if results.interrupted:
        lines += ["", "INTERRUPTED: what is above was measured before"]
    return "\n".join([*lines, "", *_figures(results)])


def _figures(results: Results) -> list[str]:
    """A line per figure to reach."""
    found = results.bench.figures(results)
    head = f"figures to reach (stated for {results.bench.stated_for}; the exit status does not depend on them)"
    width = max((len(figure.what) for figure in found), default=0)
    return [head, *(_line(figure, width) for figure in found)]


def _line(figure: Figure, width: int) -> str:
    word = {True: "met", False: "NOT met", None: "not measured"}[figure.met]
    value = "" if figure.measured is None else f"{figure.measured:,.2f}"
    bound = "?" if figure.bound is None else f"{figure.bound:,.6g}"
    why = f" ({figure.why})" if figure.why else ""
    return f"  {figure.what:<{width}}  {figure.sense:<2} {bound:<8} {value:>8}  {word}{why}"


def as_json(results: Results) -> dict:
    figures = [
        {"what": f.what, "sense": f.sense, "bound": f.bound, "measured": f.measured, "met": f.met, "why": f.why}
        for f in results.bench.figures(results)
    ]
    return {"schema": SCHEMA, **results.as_json(), "figures": figures}


def write(folder: Path, results: Results) -> None:
    """Writes the files into the folder, which is made if need be; the picture where there is a ratio to show. Each is
    there in whole or not at all."""
    from . import plot

    write_json(folder, results)
    with whole_file(file_of(folder, results, "txt")) as part:
        part.write_text(text(results) + "\n")
    if plot.has_bars(results):
        with whole_file(file_of(folder, results, "png")) as part:
            plot.draw(part, results)


def write_json(folder: Path, results: Results) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(file_of(folder, results, "json")) as part:
        part.write_text(json.dumps(as_json(results), indent=1) + "\n")


def finish(folder: Path, results: Results, wish: Wish | None = None) -> int:
    """Writes and prints all; returns the exit status. wish: of a run in which Ctrl-C is deferred."""
    if results.cases or not results.interrupted:
        write(folder, results)
        print(text(results))
        files = [file for kind in ("json", "txt", "png") if (file := file_of(folder, results, kind)).exists()]
        print(f"\n{results.seconds:.0f} s; results in {folder}: {', '.join(file.name for file in files)}")
    if not results.interrupted and not (wish and wish.noted):
        return 0
    print(_last_words(results), file=sys.stderr)
    return INTERRUPTED


def _last_words(results: Results) -> str:
    """Of a run with a Ctrl-C."""
    if not results.interrupted:
        return "interrupted when all was measured; the results are complete"
    if not results.cases:
        return "interrupted; nothing was measured or written"
    return "interrupted; what was measured so far is written there"


def _table(case: Case) -> list[str]:
    """The columns that have something; those of the rows' own values stand before the note."""
    measured = [row for row in case.rows if row.status == MEASURED]
    cells = [_cells(row, case.unit) for row in measured]
    columns = [[name, *(line[name] for line in cells)] for name in (cells[0] if cells else ())]
    own = dict.fromkeys(name for row in measured for name in row.values)
    columns[-1:-1] = [[name, *(_value(row, name) for row in measured)] for name in own]
    padded = [_padded(column) for column in columns if any(column[1:])]
    lines = ["  ".join(line).rstrip() for line in zip(*padded)]
    absent = [f"{row.name}: {row.status}: {row.why}" for row in case.rows if row.status != MEASURED]
    title = f"{case.part.replace('_', '-')}: {case.title}"
    return [title, *(f"  {line}" for line in [*lines, *absent, *case.remarks])]


def _value(row: Row, name: str) -> str:
    value = row.values.get(name, "")
    return value if isinstance(value, str) else f"{value:,.6g}"


def _padded(column: list[str]) -> list[str]:
    """Words to the left, numbers to the right."""
    width, words = max(map(len, column)), column[0] in ("contender", "note")
    return [cell.ljust(width) if words else cell.rjust(width) for cell in column]


def _cells(row: Row, unit: str) -> dict[str, str]:
    """Of the columns that all benches have."""
    is_roof, accuracy = row.kind == ROOF, row.accuracy
    ratio = row.of_roof if is_roof else row.ratio
    times = f"{ratio.median:.2f}" if ratio else ""
    return {
        "contender": row.name,
        "ms": f"{1000 * statistics.median(row.seconds):.2f}" if row.seconds else "",
        "ratio": "" if is_roof else times,
        "least..most": f"{ratio.least:.2f}..{ratio.greatest:.2f}" if ratio else "",
        "rounds": str(len(row.seconds)) if row.seconds else "",
        "rate": f"{row.rate / 1e9:.1f} G{unit}" if row.rate else "",
        "of roof": times if is_roof else "",
        "mean|s-1|": f"{accuracy.mean_error:.4f}" if accuracy else "",
        "singular values": f"[{accuracy.least:.3f}, {accuracy.greatest:.3f}]" if accuracy else "",
        "note": row.note,
    }
