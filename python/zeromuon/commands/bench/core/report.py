"""The table, and the files of a run. No torch."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

from ....base.whole_file import whole_file
from .interrupt import INTERRUPTED, Wish
from .results import MEASURED, ROOF, Case, Figure, Results, Row

SCHEMA = 2
_COLUMNS = (
    "contender",
    "ms",
    "ratio",
    "least..most",
    "rounds",
    "rate",
    "of roof",
    "mean|s-1|",
    "singular values",
    "note",
)


def json_file(bench: str) -> str:
    return f"{bench}.json"


def text_file(bench: str) -> str:
    return f"{bench}.txt"


def plot_file(bench: str) -> str:
    return f"{bench}.png"


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
    return "\n".join([*lines, "", _figures(results)])


def _figures(results: Results) -> str:
    """A line per figure to reach."""
    found = results.bench.figures(results)
    head = f"figures to reach (stated for {results.bench.stated_for}; the exit status does not depend on them)"
    width = max((len(figure.what) for figure in found), default=0)
    return "\n".join([head, *(_line(figure, width) for figure in found)])


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
    with whole_file(folder / text_file(results.bench.name)) as part:
        part.write_text(text(results) + "\n")
    if plot.has_bars(results):
        with whole_file(folder / plot_file(results.bench.name)) as part:
            plot.draw(part, results)


def write_json(folder: Path, results: Results) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(folder / json_file(results.bench.name)) as part:
        part.write_text(json.dumps(as_json(results), indent=1) + "\n")


def finish(folder: Path, results: Results, wish: Wish | None = None) -> int:
    """Writes and prints all; returns the exit status. wish: of a run in which Ctrl-C is deferred."""
    if results.cases or not results.interrupted:
        write(folder, results)
        print(text(results))
        names = [name(results.bench.name) for name in (json_file, text_file, plot_file)]
        print(f"\n{results.seconds:.0f} s; results in {folder}: {', '.join(n for n in names if (folder / n).exists())}")
    if not results.interrupted and not (wish and wish.noted):
        return 0
    print(_last_words(results), file=sys.stderr)
    return INTERRUPTED


def _last_words(results: Results) -> str:
    """Of a run with a Ctrl-C."""
    if not results.interrupted:
        return "interrupted when all was measured; the results are complete"
    return "interrupted; " + (
        "what was measured so far is written there" if results.cases else "nothing was measured or written"
    )


def _table(case: Case) -> list[str]:
    """The columns that have something; those of the rows' own values stand before the note."""
    measured = [row for row in case.rows if row.status == MEASURED]
    own = list(dict.fromkeys(name for row in measured for name in row.values))
    names = (*_COLUMNS[:-1], *own, _COLUMNS[-1])
    cells = [
        (*(line := _cells(row, case.unit))[:-1], *(_value(row, name) for name in own), line[-1]) for row in measured
    ]
    used = [i for i in range(len(names)) if any(line[i] for line in cells)]
    lines = [names, *cells] if cells else []
    widths = {i: max(len(line[i]) for line in lines) for i in used}
    left = (0, len(names) - 1)  # columns that are not numbers
    padded = ["  ".join(_aligned(line[i], widths[i], i in left) for i in used).rstrip() for line in lines]
    absent = [f"{row.name}: {row.status}: {row.why}" for row in case.rows if row.status != MEASURED]
    return [
        f"{case.part.replace('_', '-')}: {case.title}",
        *(f"  {line}" for line in [*padded, *absent, *case.remarks]),
    ]


def _value(row: Row, name: str) -> str:
    value = row.values.get(name, "")
    return value if isinstance(value, str) else f"{value:,.6g}"


def _aligned(cell: str, width: int, left: bool) -> str:
    return cell.ljust(width) if left else cell.rjust(width)


def _cells(row: Row, unit: str) -> tuple[str, ...]:
    faster = spread = roof = error = singular = ""
    if row.ratio and row.kind != ROOF:
        faster, spread = f"{row.ratio.median:.2f}", f"{row.ratio.least:.2f}..{row.ratio.greatest:.2f}"
    if row.of_roof:
        roof, spread = f"{row.of_roof.median:.2f}", f"{row.of_roof.least:.2f}..{row.of_roof.greatest:.2f}"
    if row.accuracy:
        error = f"{row.accuracy.mean_error:.4f}"
        singular = f"[{row.accuracy.least:.3f}, {row.accuracy.greatest:.3f}]"
    rate = f"{row.rate / 1e9:.1f} G{unit}" if row.rate else ""
    milliseconds = f"{1000 * statistics.median(row.seconds):.2f}" if row.seconds else ""
    rounds = str(len(row.seconds)) if row.seconds else ""
    return row.name, milliseconds, faster, spread, rounds, rate, roof, error, singular, row.note
