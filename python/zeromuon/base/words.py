"""Words that a user may have meant. No torch."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(word: str, known: Iterable[str], cutoff: float = 0.4) -> str | None:
    """The one of `known` that `word` resembles most; None where none reaches `cutoff`, difflib's ratio."""
    return next(iter(all_near(word, known, 1, cutoff)), None)


def all_near(word: str, known: Iterable[str], most: int, cutoff: float = 0.4) -> list[str]:
    return difflib.get_close_matches(word, list(known), most, cutoff)


def did_you_mean(word: str, known: Iterable[str], otherwise: str = "") -> str:
    """The end of an error's sentence that names the nearest; `otherwise` where there is none."""
    found = nearest(word, known)
    return f'; did you mean "{found}"?' if found else otherwise
