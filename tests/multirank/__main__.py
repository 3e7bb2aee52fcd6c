"""Prints the parity tables: python -m tests.multirank [--ranks 1 2 3] [--full]"""

from __future__ import annotations

import argparse
import sys

from tests.multirank.configurations import FULL, PARITY, SIXTEEN_BITS, USERS
from tests.multirank.launch import row, run_rows


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.multirank", description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 3], help="world sizes, one launch each")
    parser.add_argument("--full", action="store_true", help="also the long product of options")
    options = parser.parse_args()
    missed = _table("fp32", "parity", [*PARITY, *USERS, *(FULL if options.full else ())], options.ranks)
    print()
    return 1 if missed + _table("16 bits", "captured", list(SIXTEEN_BITS), options.ranks) else 0


def _table(title: str, kind: str, cases: list, world_sizes: list[int]) -> int:
    """Prints one row per case; returns how many missed their bar."""
    found = {}
    for ranks in world_sizes:
        print(f"{title}: training {len(cases)} configurations on {ranks} ranks", file=sys.stderr, flush=True)
        found[ranks] = run_rows(ranks, [row(c.name, kind, **c.as_dict()) for c in cases])
    print(f"| {title} | bar | " + " | ".join(f"W = {ranks}" for ranks in world_sizes) + " |")
    print("|---|---|" + "---|" * len(world_sizes))
    missed = 0
    for case in cases:
        results = [_with_wire_bar(case, found[ranks][case.name]) for ranks in world_sizes]
        missed += sum("failed" in r or not r["error"] <= r["bar"] for r in results)
        bar = next((f"{r['bar']:.1e}" for r in results if "bar" in r), "?")
        print(f"| {case.name} | {bar} | " + " | ".join(_cell(r) for r in results) + " |")
    return missed


def _with_wire_bar(case, result: dict) -> dict:
    """A bf16 wire is held to the relative error of the update, not to that of the weights."""
    if case.dtype == "fp32" or "wire_dtype" in case.options or "failed" in result:
        return result
    return {**result, "error": result["update_error"], "bar": 1e-2}


def _cell(result: dict) -> str:
    if "failed" in result:
        print(result["failed"], file=sys.stderr)
        return "failed"
    return f"{result['error']:.1e}" + ("" if result["error"] <= result["bar"] else " MISSED")


if __name__ == "__main__":
    sys.exit(main())
