"""Sizes, durations and columns as text; names from files are printed so that they cannot steer a terminal. No torch."""

from __future__ import annotations

import shutil

_UNITS = ("B", "KB", "MB", "GB", "TB", "PB")
_WIDTH_ELSEWHERE = 200  # columns, where there is no terminal
_CUT = "..."


def printable(text: str) -> str:
    """`text` with control and other unprintable characters escaped, newlines of our own messages too."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    """A lone surrogate that stands for a byte is that byte."""
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape", "surrogatepass").decode()


def size_text(count: float) -> str:
    """Bytes in decimal units: 1234567 is "1.23 MB"."""
    unit = 0
    while count >= 999.5 and unit + 1 < len(_UNITS):
        count, unit = count / 1000, unit + 1
    return f"{count:.0f} B" if unit == 0 else f"{count:.{max(0, 3 - len(str(int(count))))}f} {_UNITS[unit]}"


def duration_text(seconds: float) -> str:
    """ "0.4 s", "12 s", "3:05" or "1:02:03"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, hours = whole // 60 % 60, whole // 3600
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


def shape_text(shape) -> str:
    return "x".join(map(str, shape)) or "scalar"


def terminal_width() -> int:
    """Columns of the terminal, as COLUMNS or the system says."""
    return shutil.get_terminal_size((_WIDTH_ELSEWHERE, 1)).columns


def cut(text: str, width: int) -> str:
    """`text`, printable; its beginning and end around "..." where it has more than `width` characters."""
    width = max(width, len(_CUT) + 2)
    if len(text) > width:
        text = _joined(text[:width], text[-width:], width)
    text = printable(text)
    return text if len(text) <= width else _joined(text, text, width)


def _joined(first: str, last: str, width: int) -> str:
    kept = width - len(_CUT)
    return first[: kept - kept // 3] + _CUT + last[len(last) - kept // 3 :]


def table(rows: list[tuple[str, ...]], right: tuple[int, ...] = (), whole: bool = False) -> list[str]:
    """Aligned lines of `rows`; the columns `right` are flush right, the last one is not padded.

    A cell has at most half of the terminal's width, and a line the whole of it. whole: cells are not cut, and no cell is
    padded to more.
    """
    width = terminal_width()
    half = max(width // 2, 20)
    rows = [tuple(printable(cell) if whole else cut(cell, half) for cell in row) for row in rows]
    widths = [min(half, max(len(row[i]) for row in rows)) for i in range(len(rows[0]))]
    flush = [str.rjust if i in right else str.ljust for i in range(len(widths))]
    lines = ["  ".join([f(c, w) for f, c, w in zip(flush, row, widths)]).rstrip() for row in rows]
    return lines if whole else [line if len(line) <= width else line[: width - 3] + _CUT for line in lines]
