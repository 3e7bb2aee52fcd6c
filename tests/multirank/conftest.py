"""Collects the rows of the selected tests, so that each world size is launched once."""

import pytest

from tests.multirank.launch import run_rows


def pytest_configure(config):
    config.zeromuon_results = {}


@pytest.fixture
def result(request):
    """The result of this test's row, from the one launch of its world size."""
    world_size, row = request.node.callspec.params["world_size"], request.node.callspec.params["row"]
    done = request.config.zeromuon_results
    if world_size not in done:
        done[world_size] = run_rows(world_size, _rows_of(request.session.items, world_size))
    outcome = done[world_size][row["id"]]
    assert "failed" not in outcome, outcome["failed"]
    return outcome


def _rows_of(items, world_size: int) -> list[dict]:
    rows = {}
    for item in items:
        params = getattr(getattr(item, "callspec", None), "params", {})
        if params.get("world_size") == world_size and "row" in params:
            rows[params["row"]["id"]] = params["row"]
    return list(rows.values())
