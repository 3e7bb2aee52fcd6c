"""The table that says who gets Muon and why: one row per parameter, alike layers folded into one. No torch."""

from __future__ import annotations

import re

_NUMBER = re.compile(r"(?<![^.\s])\d{1,18}(?![^.\s])")


def table_lines(specs) -> list[str]:
    """Lines of the table: a heading, then role, count, name, shape and reason, with the matrices of a parameter that holds
    several.

    specs: objects with role, name, shape, reason, matrices and doubt (:class:`zeromuon.selection.rules.ParamSpec`), in model order.
    """
    rows = [("role", "count", "name", "shape", "reason"), *_folded(specs)]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return ["  ".join([*(c.ljust(w) for c, w in zip(row, widths)), row[4]]).rstrip() for row in rows]


def _folded(specs) -> list[tuple[str, ...]]:
    """Table rows; specs alike but for numbers between dots in their names share one."""
    alike: dict[tuple, list] = {}
    for spec in specs:
        matrices = spec.doubt or spec.matrices
        key = (spec.role, without_numbers(spec.name), spec.shape, without_numbers(spec.reason), matrices)
        alike.setdefault(key, []).append(spec)
    return [
        (
            role,
            str(len(same)),
            common_name([spec.name for spec in same]),
            "x".join(map(str, shape)) or "scalar",
            (same[0].reason if len(same) == 1 else reason) + (matrices and f": {matrices}"),
        )
        for (role, _, shape, reason, matrices), same in alike.items()
    ]


def without_numbers(name: str) -> str:
    """`name` with * for each number between dots: equal for the same parameter of two layers."""
    return _NUMBER.sub("*", name)


def common_name(names: list[str]) -> str:
    """The common name, with each number that varies as a range: layers.[0-11].mlp.weight."""
    columns = zip(*[name.split(".") for name in names])
    return ".".join(_range_of(set(column)) for column in columns)


def _range_of(parts: set[str]) -> str:
    if len(parts) == 1:
        return parts.pop()
    if not all(part.isdecimal() for part in parts):
        return "*"
    numbers = sorted(map(int, parts))
    first, last = numbers[0], numbers[-1]
    return f"[{first}-{last}]" if last - first + 1 == len(numbers) else "*"
