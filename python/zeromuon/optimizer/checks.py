"""What the value of an option may be: each check takes it and the names of the coefficient sets, and returns it
normalised or raises :class:`Refused`."""

from __future__ import annotations

import math
from numbers import Real
from typing import Callable, Iterable

from ..base.words import nearest

_TRIPLE_LENGTH = 3  # a, b, c of X <- aX + (bA + cAA)X


class Refused(Exception):
    """What was expected of a value, and optionally what to do."""


def number(expected: str, accepts: Callable[[float], bool]) -> Callable:
    def check(value, _sets):
        if isinstance(value, bool) or not isinstance(value, Real):
            raise Refused(f"expected a number ({expected})")
        if not math.isfinite(value) or not accepts(value):
            raise Refused(f"expected {expected}")
        return float(value)

    return check


at_least_zero = number("a finite number of at least 0", lambda x: x >= 0)
decay = number("a number in [0, 1)", lambda x: 0 <= x < 1)


def optional(inner: Callable) -> Callable:
    return lambda value, sets: None if value is None else inner(value, sets)


def boolean(value, _sets) -> bool:
    if not isinstance(value, bool):
        raise Refused("expected True or False")
    return value


def bytes_or_auto(value, _sets):
    if value == "auto" and isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**62:
        raise Refused('expected "auto" or a whole number of bytes from 1 to 2**62')
    return value


def pair_of_decays(value, sets) -> tuple[float, float]:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise Refused("expected two numbers in [0, 1)")
    return tuple(decay(beta, sets) for beta in value)


def one_of(*names: str) -> Callable:
    def check(value, _sets):
        if not isinstance(value, str) or value not in names:
            raise Refused(f"expected {_quoted(names)}{_did_you_mean(value, names)}")
        return value

    return check


def coefficients(value, sets: Callable[[], Iterable[str]]):
    if isinstance(value, str):
        names = list(sets())
        if value not in names:
            raise Refused(f"expected a list of (a, b, c) triples or {_quoted(names)}{_did_you_mean(value, names)}")
        return value
    if not isinstance(value, (list, tuple)) or not value:
        raise Refused("expected the name of a coefficient set or a list of at least one (a, b, c) triple")
    return tuple(_triple(triple, index) for index, triple in enumerate(value))


def _triple(triple, index: int) -> tuple[float, float, float]:
    if not isinstance(triple, (list, tuple)) or len(triple) != _TRIPLE_LENGTH:
        raise Refused(f"expected three numbers (a, b, c) in triple {index}, which is {triple!r}")
    finite = number("", lambda x: True)
    try:
        return tuple(finite(x, None) for x in triple)
    except Refused:
        raise Refused(f"expected three finite numbers (a, b, c) in triple {index}, which is {triple!r}") from None


def nearest_name(name: str, valid: Iterable[str]) -> str | None:
    """The valid name that `name` most resembles, or None when none is close (difflib ratio below 0.5, case ignored)."""
    return nearest(str(name).lower(), valid, cutoff=0.5)


def _did_you_mean(value, names: Iterable[str]) -> str:
    nearest = nearest_name(value, names) if isinstance(value, str) else None
    return f"; did you mean {nearest!r}?" if nearest else ""


def _quoted(names: Iterable[str]) -> str:
    *first, last = [f'"{name}"' for name in names]
    return f"{', '.join(first)} or {last}" if first else last
