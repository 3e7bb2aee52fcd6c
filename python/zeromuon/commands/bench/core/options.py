"""What the benches' command lines share: numbers, the folder of the results. No torch."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path


def whole_number(prog: str, option: str, text: str | None, default, least: int, most: int):
    """The value of an option, `default` where it is not given. Raises ValueError for anything but least..most."""
    if text is None:
        return default
    if not re.fullmatch(r"\d+", text) or not least <= int(text) <= most:
        raise ValueError(
            f'{prog} {option}: expected a whole number from {least} to {most}, got "{text}"; e.g. {option} {least}'
        )
    return int(text)


def new_folder(prog: str, text: str | None, results_file: str) -> Path:
    """Where results can be written; `text` None: named by the time. Raises ValueError when it has some, or cannot be."""
    default = f"{prog.removeprefix('zeromuon ').replace(' ', '-')}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder = Path(text if text is not None else default).absolute()
    if (folder / results_file).exists():
        raise ValueError(f"{prog} --out: expected a new folder, {folder} has results ({results_file}); name another")
    parent = next(p for p in (folder, *folder.parents) if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise ValueError(f"{prog} --out: expected a folder that can be written, {parent} is not one; name another")
    return folder
