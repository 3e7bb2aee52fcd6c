"""Verdicts, the table, the exit status. A result is what `launch.measure` returns. No torch."""

from __future__ import annotations

from ...ckpt.text import table
from .launch import DIED, FAILED, MEASURED, installed_version
from .rows import DEEPSPEED, OURS, SYSTEMS, Figure, Row

MISSED = 1
LONGEST_MESSAGE = 160  # characters


def meets(row: Row, result: dict) -> bool:
    """Whether every figure of the row was measured and is within its bar; not-a-number is not."""
    return all(_within(figure, index, result) for index, figure in enumerate(row.figures))


def _within(figure: Figure, index: int, result: dict) -> bool:
    if result["kind"] != MEASURED:
        return False
    measured = result["figures"][index]
    return measured["value"] <= _bar(figure, measured)


def _bar(figure: Figure, measured: dict) -> float:
    return measured["bar"] if figure.bar is None else figure.bar


def is_a_result(row: Row, system: str, result: dict) -> bool:
    """False when nothing can be said of the system: its ranks died without a word, or the comparison itself failed."""
    if result["kind"] == DIED:
        return row.crash_counts and system == DEEPSPEED
    return result["kind"] != FAILED


def exit_status(rows: list[Row], results: dict) -> int:
    """0 when ours meets every bar and every run came back, else 1."""
    ours_holds = all(meets(row, results[row.name][OURS]) for row in rows)
    complete = all(is_a_result(row, s, results[row.name][s]) for row in rows for s in SYSTEMS)
    return 0 if ours_holds and complete else MISSED


def text(rows: list[Row], results: dict) -> str:
    """The table, which defects this DeepSpeed has fixed and which it has, what was raised, what ours missed."""
    theirs = f"DeepSpeed {installed_version('deepspeed')}"
    judged = [row for row in rows if is_a_result(row, DEEPSPEED, results[row.name][DEEPSPEED])]
    fixed = [row for row in judged if meets(row, results[row.name][DEEPSPEED])]
    live = [row for row in judged if row not in fixed]
    ours = [(row, results[row.name][OURS]) for row in rows]
    missed = [row for row, result in ours if is_a_result(row, OURS, result) and not meets(row, result)]
    return "\n".join(
        [
            *_table(theirs, rows, results),
            "",
            *_list(f"fixed in this release, {theirs}:", [_named(row) for row in fixed]),
            *_list(f"live in {theirs}:", [_named(row) for row in live]),
            *_list("raised or failed:", _messages(rows, results)),
            *_list("MISSED by zeromuon:", [_named(row) for row in missed]),
        ]
    )


def _named(row: Row) -> str:
    return f"{row.name}: {row.defect}"


def _list(title: str, entries: list[str]) -> list[str]:
    return [title, *(f"  {entry}" for entry in entries)] if entries else [f"{title} none"]


def _table(theirs: str, rows: list[Row], results: dict) -> list[str]:
    heading = ("what", theirs, f"zeromuon {installed_version('zeromuon')}", "bar", "verdict")
    lines = [_line(row, index, results[row.name]) for row in rows for index in range(len(row.figures))]
    padded = table([heading, *lines])
    return [padded[0], "-" * max(map(len, padded)), *padded[1:]]


def _line(row: Row, index: int, of: dict) -> tuple[str, ...]:
    figure = row.figures[index]
    measured = next((of[s]["figures"][index] for s in reversed(SYSTEMS) if of[s]["kind"] == MEASURED), None)
    known = figure.bar is not None or measured is not None
    bar = format(_bar(figure, measured or {}), figure.unit) if known else "?"
    cells = (_cell(figure, index, of[system]) for system in SYSTEMS)
    return (figure.what, *cells, bar, _verdict(row, index, of))


def _cell(figure: Figure, index: int, result: dict) -> str:
    if result["kind"] != MEASURED:
        return result["error"].partition(":")[0]
    measured = result["figures"][index]
    return measured.get("shown") or format(measured["value"], figure.unit)


def _verdict(row: Row, index: int, of: dict) -> str:
    def word(system: str, holds: str, fails: str) -> str:
        if not is_a_result(row, system, of[system]):
            return "not measured"
        return holds if _within(row.figures[index], index, of[system]) else fails

    return f"{word(DEEPSPEED, 'fixed in this release', 'live')}; ours {word(OURS, 'ok', 'MISSED')}"


def _messages(rows: list[Row], results: dict) -> list[str]:
    return [
        f"{row.name}, {system}: {_message(results[row.name][system])}"
        for row in rows
        for system in SYSTEMS
        if results[row.name][system]["kind"] != MEASURED
    ]


def _message(result: dict) -> str:
    first = " ".join(result["error"].split())
    short = first if len(first) <= LONGEST_MESSAGE else first[:LONGEST_MESSAGE] + "..."
    log = result.get("log", "").strip()
    return f"{short}\n    the end of its log:\n    " + "\n    ".join(log.splitlines()) if log else short
