"""The blocks of docs/integration.md, as files and commands: ```python title=FILE, ```json title=FILE, ```bash run=NAME."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "integration.md"
_BLOCK = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LABEL = re.compile(r"\b(title|run)=(\S+)")


@dataclass(frozen=True)
class Block:
    """One fenced block. file: its title, or None. run: the name of a bash block, or None."""

    language: str
    file: str | None
    run: str | None
    text: str


def blocks(document: Path = DOCUMENT) -> list[Block]:
    """All fenced blocks, in order."""
    found = []
    for language, label, text in _BLOCK.findall(document.read_text()):
        labels = dict(_LABEL.findall(label))
        found.append(Block(language, labels.get("title"), labels.get("run"), text))
    return found


def write_files(folder: Path) -> None:
    """Every titled block as a file in `folder`."""
    for block in blocks():
        if block.file:
            (folder / block.file).write_text(block.text)


def command(name: str) -> str:
    """The bash block of that name. Raises KeyError if there is not exactly one."""
    found = [b.text for b in blocks() if b.run == name]
    if len(found) != 1:
        raise KeyError(f"{DOCUMENT.name} has {len(found)} bash blocks with run={name}, expected 1")
    return found[0]
