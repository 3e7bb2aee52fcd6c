"""Holds the skips of GoogleTest programs against tests/allowed_skips.json, as conftest.py does for pytest.

    python -m tests.gtest_skips REPORT...    (files of --gtest_output=xml:REPORT)

Prints every skip with its reason; exits with 1 where one is refused, which happens in CI only.
"""

from __future__ import annotations

import sys
from pathlib import Path
from xml.etree import ElementTree

from tests import skips


def skipped(report: Path) -> list[tuple[str, str]]:
    """(where, reason) of each skipped test; where: its file, relative to the repository, and its name."""
    found = []
    for case in ElementTree.parse(report).iter("testcase"):
        for skip in case.iter("skipped"):
            file = "tests/" + case.get("file").rsplit("/tests/", 1)[-1]
            # The message is "FILE:LINE\nREASON".
            reason = skip.get("message").split("\n", 1)[-1].strip()
            found.append((f"{file}::{case.get('classname')}.{case.get('name')}", reason))
    return found


def main(reports: list[str]) -> int:
    refusals = []
    for where, reason in [skip for report in reports for skip in skipped(Path(report))]:
        print(f"SKIPPED {where}: {reason}")
        refusals.append(skips.refusal(where, reason))
    print(*filter(None, refusals), sep="\n")
    return int(any(refusals))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
