"""What children tell the process that started them: lines of JSON in a file. No torch, and nothing else of this package."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

VARIABLE = "ZEROMUON_CHANNEL"  # the file


def tell(**message) -> None:
    """In a child: gives the message, values that JSON can hold, to the process that started it."""
    line = json.dumps({"rank": int(os.environ.get("RANK", "0")), **message}) + "\n"
    file = os.open(os.environ[VARIABLE], os.O_WRONLY | os.O_APPEND)
    try:
        os.write(file, line.encode())  # one write of one line: lines of several ranks do not mix
    finally:
        os.close(file)


class Channel:
    """The end of the process that listens. Thread: one."""

    def __init__(self):
        self._folder = tempfile.TemporaryDirectory(prefix="zeromuon-channel-")
        self.file = Path(self._folder.name) / "told.jsonl"
        self.file.touch()
        self._taken_bytes = 0  # of the file
        self._rest: list[dict] = []

    def told(self) -> list[dict]:
        """What was told since the last call, in order; also after close(). Each has "rank", of who told it."""
        content = b""
        if self.file.exists():
            with open(self.file, "rb") as file:
                file.seek(self._taken_bytes)
                content = file.read()
        lines = content[: content.rfind(b"\n") + 1]  # one that is not whole stays for the next call
        self._taken_bytes += len(lines)
        rest, self._rest = self._rest, []
        return [*rest, *map(json.loads, lines.splitlines())]

    def close(self) -> None:
        """Takes the file away."""
        self._rest = self.told()
        self._folder.cleanup()
