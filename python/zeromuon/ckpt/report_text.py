"""What verify, diff and the verbs that write print. No torch."""

from __future__ import annotations

import math

from .results import Comparison, Difference, Problem, TensorHealth, Verification, Written
from .text import cut, duration_text, printable, size_text, table, terminal_width

_MANY = 10  # rows that are shown without --all


def verify_text(found: Verification, seconds: float, everything: bool) -> str:
    """Problems first, then the largest norms (all of them on request), then the verdict."""
    blocks = [_problem(problem, number, len(found["problems"])) for number, problem in enumerate(found["problems"], 1)]
    blocks += [_norms(found["tensors"], everything), [_verdict(found, seconds)]]
    return "\n\n".join("\n".join(block) for block in blocks if block)


def _problem(problem: Problem, number: int, count: int) -> list[str]:
    offset = "" if problem["offset"] is None else f"byte {problem['offset']}"
    said = {**problem, "offset": offset}
    rows = [(name, said[name]) for name in ("file", "offset", "expected", "got", "remedy") if said[name]]
    return [f"problem {number} of {count}", *(f"  {line}" for line in table(rows, whole=True))]


def _norms(tensors: list[TensorHealth], everything: bool) -> list[str]:
    """Tensors with NaN or Inf first, then by falling norm."""
    if not tensors:
        return []
    ordered = sorted(tensors, key=lambda health: (-(health["nan"] + health["infinite"]), -health["norm"]))
    shown = ordered if everything else ordered[:_MANY]
    rows = [("norm", "NaN", "Inf", "part", "name"), *(_health(health) for health in shown)]
    lines = table(rows, right=(0, 1, 2), whole=everything)
    if len(shown) < len(ordered):
        lines.append(f"... and {len(ordered) - len(shown)} more, of smaller norm: --all shows them")
    return lines


def _health(health: TensorHealth) -> tuple[str, ...]:
    return f"{health['norm']:.6g}", str(health["nan"]), str(health["infinite"]), health["part"], health["name"]


def _verdict(found: Verification, seconds: float) -> str:
    count = len(found["problems"])
    read = f"{len(found['tensors'])} tensors and states checked, {size_text(found['bytes_read'])} read in"
    verdict = "ok" if not count else f"{count} problem{'s' if count > 1 else ''} found"
    return f"{verdict}: {read} {duration_text(seconds)}"


def diff_text(found: Comparison) -> str:
    """One sentence per difference, and a verdict."""
    lines = [f"only in A: {printable(label)}" for label in found["only_in_a"]]
    lines += [f"only in B: {printable(label)}" for label in found["only_in_b"]]
    lines += [_difference(difference) for difference in found["differences"]]
    lone = len(found["only_in_a"]) + len(found["only_in_b"])
    counts = f"{found['compared']} tensors and states compared, {found['equal']} equal"
    verdict = "same" if found["same"] else f"{len(found['differences'])} different, {lone} in one only"
    return "\n".join([*lines, f"{verdict}: {counts}"])


def _difference(one: Difference) -> str:
    where = printable(one["name"] if one["part"] == "value" else f"{one['name']}: {one['part']}")
    in_a, in_b = printable(one["in_a"]), printable(one["in_b"])
    if one["reason"] == "shape":
        return f"{where}: shape {in_a} in A, {in_b} in B"
    if one["reason"] == "dtype":
        return f"{where}: {in_a} in A, {in_b} in B, the same values"
    types = f"{in_a} in A and {in_b} in B, " if in_a != in_b else ""
    return (
        f"{where}: {types}{one['different']} element{'s' if one['different'] != 1 else ''} differ"
        f"{'s' if one['different'] == 1 else ''}, by at most {one['max_abs']:.3g} (relative {one['max_rel']:.3g})"
    )


def written_text(written: Written, seconds: float) -> str:
    """Files, bytes and rate, tied names, and every note."""
    rate = written["bytes_written"] / seconds if seconds > 0 else 0.0
    kept = f", {written['kept_files']} kept from the run before" if written["kept_files"] else ""
    files = written["files"]
    named = files if len(files) <= _MANY else [*files[:_MANY], f"... and {len(files) - _MANY} more"]
    lines = [f"{len(files)} file{'s' if len(files) != 1 else ''}{kept}", *(f"  {printable(file)}" for file in named)]
    lines.append(f"wrote {size_text(written['bytes_written'])} in {duration_text(seconds)} ({size_text(rate)}/s)")
    width = terminal_width()
    lines += [f"tied: {cut(a, width)} is stored as {cut(stored, width)}" for a, stored in written["aliases"].items()]
    return "\n".join([*lines, *(f"note: {printable(note)}" for note in written["notes"])])


def finite(value):
    """`value` for JSON, which has no infinity: a number that is not finite becomes its name."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, (list, tuple)) else value
