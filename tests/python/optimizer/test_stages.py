"""The documents' tables of a bucket's stages and of its bytes are those of the plans."""

from pathlib import Path

import pytest

from tests.python.optimizer.test_placement import plan_for
from zeromuon.optimizer import placement

DOCS = Path(__file__).resolve().parents[3] / "docs"


def table(file: str, first_column: str) -> list[list[str]]:
    """The cells of the table whose first heading this is."""
    lines = iter((DOCS / file).read_text().splitlines())
    next(line for line in lines if line.startswith(f"| {first_column} |"))
    next(lines)
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append([cell.strip(" `") for cell in line.strip("|").split("|")])
    return rows


@pytest.mark.parametrize("home", placement.MEANINGS)
def test_the_documented_stages_are_the_rows_of_the_plan(home):
    documented = [
        row[1:6]
        for row in table("pipeline.md", "home of the momentum")
        if row[0] == "all" or home in row[0].split(", ")
    ]
    planned = [
        [row["stage"], row["lane"], "urgent" if row["urgent"] else "filler", ", ".join(row["buffers"]), row["changes"]]
        for row in plan_for(home).stages
    ]
    assert documented == planned


@pytest.mark.parametrize("home", placement.MEANINGS)
def test_the_documented_bytes_are_those_of_the_plan(home):
    documented = {row[0]: row[4] for row in table("memory.md", "home")}
    assert documented[home] == ", ".join(map(str, placement.bytes_per_parameter(plan_for(home))))
