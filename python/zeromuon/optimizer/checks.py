"""What the value of an option may be."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Callable, Iterable

from ..base.words import nearest

_MOST_THREADS = 4096
_TRIPLE_LENGTH = 3  # a, b, c of X <- aX + (bA + cAA)X


class Refused(Exception):
    """What was expected of a value, and optionally what to do."""


@dataclass(frozen=True)
class Check:
    """allowed: for the documents. normalise: takes the given value and returns the one to go on with, or raises Refused."""

    allowed: str
    normalise: Callable

    def __call__(self, value):
        return self.normalise(value)


def number(allowed: str, expected: str, accepts: Callable[[float], bool]) -> Check:
    def normalise(value) -> float:
        if isinstance(value, bool) or not isinstance(value, Real):
            raise Refused(f"expected a number ({expected})")
        if not math.isfinite(value) or not accepts(value):
            raise Refused(f"expected {expected}")
        return float(value)

    return Check(allowed, normalise)


AT_LEAST_ZERO = number("at least 0", "a finite number of at least 0", lambda x: x >= 0)
ABOVE_ZERO = number("above 0", "a finite number above 0", lambda x: x > 0)
FRACTION = number("[0, 1]", "a number from 0 to 1", lambda x: 0 <= x <= 1)
DECAY = number("[0, 1)", "a number in [0, 1)", lambda x: 0 <= x < 1)


def optional(inner: Check) -> Check:
    return Check(f"{inner.allowed}, or None", lambda value: None if value is None else inner(value))


def one_of(*names: str) -> Check:
    def normalise(value) -> str:
        if not isinstance(value, str) or value not in names:
            raise Refused(f"expected {_quoted(names)}{_did_you_mean(value, names)}")
        return value

    return Check(", ".join(f'"{name}"' for name in names), normalise)


def _boolean(value) -> bool:
    if not isinstance(value, bool):
        raise Refused("expected True or False")
    return value


def _bytes_or_auto(value):
    if value == "auto" and isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**62:
        raise Refused('expected "auto" or a whole number of bytes from 1 to 2**62')
    return value


def _count_or_auto(value):
    if value == "auto" and isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MOST_THREADS:
        raise Refused(f'expected "auto" or a whole number from 1 to {_MOST_THREADS}')
    return value


def or_auto(inner: Check) -> Check:
    return Check(f'"auto", or {inner.allowed}', lambda value: value if value == "auto" else inner(value))


def _pair_of_decays(value) -> tuple[float, float]:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise Refused("expected two numbers in [0, 1)")
    return tuple(map(DECAY, value))


def _coefficients(value):
    if isinstance(value, str):
        names = coefficient_sets()
        if value not in names:
            raise Refused(f"expected a list of (a, b, c) triples or {_quoted(names)}{_did_you_mean(value, names)}")
        return value
    if not isinstance(value, (list, tuple)) or not value:
        raise Refused("expected the name of a coefficient set or a list of at least one (a, b, c) triple")
    return tuple(_triple(triple, index) for index, triple in enumerate(value))


def coefficient_sets() -> list[str]:
    from .. import _core

    return _core.coefficient_sets()


def _triple(triple, index: int) -> tuple[float, float, float]:
    if not isinstance(triple, (list, tuple)) or len(triple) != _TRIPLE_LENGTH:
        raise Refused(f"expected three numbers (a, b, c) in triple {index}, which is {triple!r}")
    try:
        return tuple(map(_FINITE, triple))
    except Refused:
        raise Refused(f"expected three finite numbers (a, b, c) in triple {index}, which is {triple!r}") from None


_FINITE = number("", "", lambda x: True)
BOOLEAN = Check("True, False", _boolean)
BYTES_OR_AUTO = Check('"auto", or above 0', _bytes_or_auto)
COUNT_OR_AUTO = Check('"auto", or above 0', _count_or_auto)
PAIR_OF_DECAYS = Check("two numbers in [0, 1)", _pair_of_decays)
COEFFICIENTS = Check("name of a coefficient set, or a list of (a, b, c) triples", _coefficients)


def nearest_name(name: str, valid: Iterable[str]) -> str | None:
    """The valid name that `name` most resembles, or None when none is close (difflib ratio below 0.5, case ignored)."""
    return nearest(str(name).lower(), valid, cutoff=0.5)


def _did_you_mean(value, names: Iterable[str]) -> str:
    near = nearest_name(value, names) if isinstance(value, str) else None
    return f"; did you mean {near!r}?" if near else ""


def _quoted(names: Iterable[str]) -> str:
    *first, last = [f'"{name}"' for name in names]
    return f"{', '.join(first)} or {last}" if first else last
