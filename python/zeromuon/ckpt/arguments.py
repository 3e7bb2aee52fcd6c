"""What the functions of zeromuon.ckpt share: types of arguments, and how they reach the C++ module. No torch."""

from __future__ import annotations

import os
from collections.abc import Callable

PathLike = str | os.PathLike[str]
Progress = Callable[[int, int], None]  # (bytes done, bytes in all), at most every 100 ms; what it raises cancels
DEFAULT_MEMORY_BYTES = 256 << 20


def text_of(path: PathLike, what: str) -> str:
    """`path` as text. Raises ValueError for what is no path, naming the argument `what`."""
    try:
        text = os.fspath(path)
    except TypeError:
        text = None
    if not isinstance(text, str) or not text or "\0" in text:
        raise ValueError(f"{what}: got {path!r}, expected a path")
    return text


def encoded(path: str | None, what: str = "path") -> bytes:
    """A path or the name of a folder as the bytes that the system keeps, see Note [Bytes that are no UTF-8]; of None none.
    Raises ValueError for what is no such text, naming the argument `what`."""
    try:
        return os.fsencode(path or "")
    except (TypeError, UnicodeEncodeError):
        raise ValueError(f"{what}: got {path!r}, expected a path") from None


def encoded_text(text: str | None, what: str) -> bytes:
    """`text` as the bytes that a file keeps: UTF-8, and those bytes of the command line that are none."""
    try:
        return (text or "").encode("utf-8", "surrogateescape")
    except (AttributeError, UnicodeEncodeError):
        raise ValueError(f"{what}: got {text!r}, expected a text") from None


def existing(path: PathLike, what: str = "path") -> bytes:
    """`path` encoded. Raises ValueError when nothing is there."""
    text = text_of(path, what)
    if not os.path.exists(text):
        raise ValueError(f"{text}: expected a file or folder, got nothing there; check the path")
    return encoded(text, what)


def reading(progress: Progress | None, max_memory_bytes: int, threads: int) -> dict:
    """Keyword arguments of the verbs that read. Raises ValueError for numbers that are not whole or out of range."""
    require_whole("max_memory_bytes", max_memory_bytes, 1 << 20)
    if require_whole("threads", threads, 0) > MOST_THREADS:
        raise ValueError(f"threads: got {threads}, expected at most {MOST_THREADS}")
    return {"progress": progress, "max_memory": max_memory_bytes, "threads": threads}


def writing(progress: Progress | None, max_memory_bytes: int, threads: int, force: bool, resume: bool) -> dict:
    """Keyword arguments of the verbs that write."""
    return {**reading(progress, max_memory_bytes, threads), "force": bool(force), "resume": bool(resume)}


MOST_THREADS = 65536


def require_whole(name: str, value: int, least: int) -> int:
    """`value`. Raises ValueError unless it is a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name}: got {value!r}, expected a whole number of at least {least}")
    if value >= 1 << 63:
        raise ValueError(f"{name}: got {value}, expected less than 2^63")
    return value


def patterns(given, what: str) -> list[bytes]:
    """Shell patterns as a list, encoded; one text is one pattern. Raises ValueError for anything but texts."""
    found = [given] if isinstance(given, str) else list(given or ())
    if not all(isinstance(pattern, str) and pattern for pattern in found):
        raise ValueError(f"{what}: got {given!r}, expected shell patterns of tensor names (texts)")
    return [encoded_text(pattern, what) for pattern in found]
