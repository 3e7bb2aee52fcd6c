"""Prints the parity table: python -m tests.multirank [--ranks 1 2 3] [--full]"""

from __future__ import annotations

import argparse
import sys

from tests.multirank.configurations import FULL, PARITY
from tests.multirank.launch import row, run_rows


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.multirank", description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 3], help="world sizes, one launch each")
    parser.add_argument("--full", action="store_true", help="also the long product of options")
    options = parser.parse_args()
    cases = [*PARITY, *FULL] if options.full else list(PARITY)
    found = {}
    for ranks in options.ranks:
        print(f"training {len(cases)} configurations on {ranks} ranks", file=sys.stderr, flush=True)
        found[ranks] = run_rows(ranks, [row(c.name, "parity", **c.as_dict()) for c in cases])
    print("| configuration | bar | " + " | ".join(f"W = {ranks}" for ranks in options.ranks) + " |")
    print("|---|---|" + "---|" * len(options.ranks))
    missed = 0
    for case in cases:
        results = [found[ranks][case.name] for ranks in options.ranks]
        missed += sum("failed" in r or not r["error"] <= r["bar"] for r in results)
        bar = next((f"{r['bar']:.1e}" for r in results if "bar" in r), "?")
        print(f"| {case.name} | {bar} | " + " | ".join(_cell(r) for r in results) + " |")
    return 1 if missed else 0


def _cell(result: dict) -> str:
    if "failed" in result:
        print(result["failed"], file=sys.stderr)
        return "failed"
    return f"{result['error']:.1e}" + ("" if result["error"] <= result["bar"] else " MISSED")


if __name__ == "__main__":
    sys.exit(main())
