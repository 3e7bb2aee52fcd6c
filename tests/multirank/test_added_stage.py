"""A stage is a row of the plan and a body: the laboratory module adds one, and the product carries it out."""

import pytest

from tests.multirank.launch import row


@pytest.mark.parametrize(
    "world_size, row", [pytest.param(w, row("added stage", "added_stage"), id=f"{w} ranks") for w in (1, 2)]
)
def test_a_stage_that_is_added_after_newton_schulz_is_carried_out_on_the_owner(world_size, row, result):
    assert result["multiplied"] == result["moved"] == [[True] * 4] * world_size
    assert result["stages"] == ["momentum", "gather_to_owner", "newton_schulz", "factors", "scatter_to_shards", "apply"]
