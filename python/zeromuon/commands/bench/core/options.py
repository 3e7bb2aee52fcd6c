"""What the benches' command lines share: numbers, pairs of them, the folder of the results. No torch."""

from __future__ import annotations

import argparse
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

from ....base.parser import Parser


def whole_number(least: int, most: int) -> Callable[[str], int]:
    """The type of an option."""

    def number(text: str) -> int:
        if not re.fullmatch(r"\d+", text) or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(
                f'expected a whole number from {least} to {most}, got "{text}"; e.g. {least}'
            )
        return int(text)

    return number


def two_numbers(words: str, most: tuple[int, int], example: str) -> Callable[[str], tuple[int, int]]:
    """The type of an option whose value is such as "512x8". most: of each; the least is 1."""

    def numbers(text: str) -> tuple[int, int]:
        found = re.fullmatch(r"(\d+)x(\d+)", text)
        if not found or not all(1 <= int(number) <= bound for number, bound in zip(found.groups(), most)):
            raise argparse.ArgumentTypeError(
                f'expected {words}, from 1x1 to {most[0]}x{most[1]}, got "{text}"; e.g. {example}'
            )
        return int(found[1]), int(found[2])

    return numbers


def add_budget(parser: Parser, seconds: float | None, words: str = "") -> None:
    """words: behind what the help says. seconds: by default, None where the words tell."""
    told = "" if seconds is None else f" (default: {seconds:.0f})"
    help_text = f"wall time for all, about{told}{words}"
    parser.add_argument("--budget-seconds", metavar="S", type=whole_number(1, 10**6), default=seconds, help=help_text)


def parsed(parser: Parser, argv: list[str]) -> argparse.Namespace:
    """The options, with `out`, the folder of the results. Raises ValueError where it has some, or cannot be written."""
    name = parser.prog.removeprefix("zeromuon ").replace(" ", "-")
    parser.add_argument("--out", metavar="DIR", help=f"folder of the results (default: {name}-<time>)")
    options, file = parser.parse(argv), f"{parser.prog.split()[-1]}.json"
    folder = Path(options.out or f"{name}-{time.strftime('%Y%m%d-%H%M%S')}").absolute()
    if (folder / file).exists():
        raise ValueError(f"{parser.prog} --out: expected a new folder, {folder} has results ({file}); name another")
    parent = existing(folder)
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise ValueError(
            f"{parser.prog} --out: expected a folder that can be written, {parent} is not one; name another"
        )
    options.out = folder
    return options


def existing(path: Path) -> Path:
    """It, or the nearest above it that exists."""
    return next(p for p in (path, *path.parents) if p.exists())


def check_memory(where: str, what: str, needed_bytes: float, free_bytes: float, advice: str) -> None:
    """Raises ValueError where more is needed than is free."""
    if needed_bytes > free_bytes:
        raise ValueError(
            f"{where}: {what} about {needed_bytes / 1e9:.1f} GB, and {free_bytes / 1e9:.1f} GB are free; {advice}"
        )
