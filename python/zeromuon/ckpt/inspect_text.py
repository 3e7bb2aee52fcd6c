"""What `zeromuon ckpt inspect` prints. No torch."""

from __future__ import annotations

import math

from ..selection.table import common_name, without_numbers
from .results import Inspection, TensorInfo
from .text import cut, printable, shape_text, size_text, table, terminal_width

_MANY = 8  # aliases and files that are named before only their number is


def inspect_text(found: Inspection, everything: bool) -> str:
    """Facts, tensors and totals. everything: one row per tensor, all files and aliases."""
    blocks = [_facts(found, everything), _tensors(found["tensors"], everything), _totals(found["tensors"])]
    tied = [f"tied: {alias} is {stored}" for alias, stored in found["aliases"].items()]
    files = [f"file: {file}" for file in found["files"]]
    blocks += [_shortened(tied, everything), _shortened(files, everything)]
    blocks.append([f"warning: {printable(warning)}" for warning in found["warnings"]])
    blocks.append([f"verbs: {', '.join(found['verbs'])}"])
    return "\n\n".join("\n".join(block) for block in blocks if block)


def _facts(found: Inspection, everything: bool) -> list[str]:
    momentum = f" ({found['momentum_kind']} momentum)" if found["momentum_kind"] else ""
    rows = [("kind", found["kind"]), ("folder", found["folder"]), ("tag", found["tag"])]
    rows.append(("world size", str(found["world_size"] or "")))
    rows.append(("sub-groups", str(found["sub_groups"] or "")))
    rows.append(("optimizer", found["optimizer"] + momentum))
    rows += sorted((name.replace("_", " "), value) for name, value in found["facts"].items())
    return table([(name, value) for name, value in rows if value], whole=everything)


def _tensors(tensors: list[TensorInfo], everything: bool) -> list[str]:
    groups = [[tensor] for tensor in tensors] if everything else _alike(tensors)
    if not groups:
        return ["no tensors"]
    heading = ("role", "count", "name", "shape", "dtype", "size", "states")
    return table([heading, *map(_row, groups)], right=(1, 5), whole=everything)


def _alike(tensors: list[TensorInfo]) -> list[list[TensorInfo]]:
    """Tensors that differ only by numbers in their names, together."""
    groups: dict[tuple, list[TensorInfo]] = {}
    for tensor in tensors:
        states = tuple(sorted(tensor["states"].items())) if tensor["states"] else ()
        key = (without_numbers(tensor["name"]), tensor["role"], tensor["dtype"], tensor["shape"], states)
        groups.setdefault(key, []).append(tensor)
    return list(groups.values())


def _row(same: list[TensorInfo]) -> tuple[str, ...]:
    one = same[0]
    states = ", ".join(f"{name} {dtype}" for name, dtype in one["states"].items())
    name = one["name"] if len(same) == 1 else common_name([tensor["name"] for tensor in same])
    size = size_text(sum(tensor["bytes"] for tensor in same))
    return one["role"] or "-", str(len(same)), name, shape_text(one["shape"]), one["dtype"], size, states


def _totals(tensors: list[TensorInfo]) -> list[str]:
    by_role: dict[str, list[TensorInfo]] = {}
    for tensor in tensors:
        by_role.setdefault(tensor["role"], []).append(tensor)
    return [
        f"{role or 'weights'}: {len(found)} tensors, {sum(math.prod(t['shape']) for t in found) / 1e6:.3f} M elements,"
        f" {size_text(sum(t['bytes'] for t in found))}"
        for role, found in by_role.items()
    ]


def _shortened(lines: list[str], everything: bool) -> list[str]:
    if everything:
        return [printable(line) for line in lines]
    shown = [cut(line, 2 * terminal_width()) for line in lines[:_MANY]]
    return shown if len(lines) <= _MANY else [*shown, f"... and {len(lines) - _MANY} more: --all names them"]
