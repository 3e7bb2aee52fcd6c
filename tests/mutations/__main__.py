"""Applies every mutation to a copy of the sources and shows that the test that it names catches it.

    python -m tests.mutations [--full] [--only TEXT]

Exits with 1 when a mutation survives, or is caught by another test than its own, or when the unchanged copy fails (then
nothing is shown).
"""

from __future__ import annotations

import argparse
import sys
import time

from tests.multirank import launch

from . import tree
from .catalogue import MUTATIONS, PYTEST, Mutation


def unchanged_passes(mutations: list[Mutation], variables: dict[str, str]) -> bool:
    """Whether the tests that are to fail pass without a mutation."""
    good = True
    for runner in dict.fromkeys(m.runner for m in mutations):
        began = time.monotonic()
        tests = list(dict.fromkeys(m.test for m in mutations if m.runner == runner))
        for test, fate in tree.run(runner, tests, variables).items():
            if fate != "passed":
                print(f"the unchanged sources: {test} {fate}")
                good = False
        print(f"  unchanged {len(tests)} tests of {runner} ({time.monotonic() - began:.0f} s)", flush=True)
    return good


def caught(mutation: Mutation, variables: dict[str, str]) -> bool:
    began = time.monotonic()
    with tree.edited(mutation):
        fate = tree.run(mutation.runner, [mutation.test], variables)[mutation.test]
    verdict = "caught" if fate == "failed" else "SURVIVED"
    print(f"  {verdict:<9} {mutation.name} ({time.monotonic() - began:.0f} s)\n            {mutation.test}", flush=True)
    if fate not in ("failed", "passed"):
        print(f"            {fate}", flush=True)
    return fate == "failed"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutations", description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="also those that build C++")
    parser.add_argument("--only", default="", help="of all, mutations whose name contains this text")
    options = parser.parse_args()
    everything = options.full or options.only
    chosen = [m for m in MUTATIONS if options.only in m.name and (everything or m.runner == PYTEST)]
    if not chosen:
        parser.error("no mutation has such a name: " + ", ".join(m.name for m in MUTATIONS))
    tree.copy_sources()
    variables = tree.environment()
    if any(m.runner == PYTEST for m in chosen):
        variables[launch.SHARED] = launch.shared_socket()
    if not unchanged_passes(chosen, variables):
        return 1
    survived = [m.name for m in chosen if not caught(m, variables)]
    print(f"{len(chosen) - len(survived)} of {len(chosen)} mutations caught by the test that they name")
    return 1 if survived else 0


if __name__ == "__main__":
    try:
        status = main()
    finally:
        launch.stop()
    sys.exit(status)
