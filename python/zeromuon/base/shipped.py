"""The files of `configs/`, which lie in the installed package or beside it in the source tree. No torch."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


def config_file(name: str, option: str) -> Path:
    """The path of a shipped file. Raises ValueError, which names the option that gives another, if there is none."""
    folders = [_PACKAGE / "configs", _PACKAGE.parents[1] / "configs", Path("configs").absolute()]
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    places = ", ".join(map(str, folders))
    raise ValueError(f"{option}: expected {name} in one of {places}, found none; name a file")
