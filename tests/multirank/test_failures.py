"""Steps that DeepSpeed skips, and steps that fail."""

import pytest

from tests.multirank.launch import row


def on(world_size, id, kind, **arguments):
    return pytest.param(world_size, row(id, kind, **arguments), id=f"{world_size} ranks: {id}")


@pytest.mark.parametrize("world_size, row", [
    on(2, "skipped step", "skipped_step", offload=False), on(3, "skipped step, offload", "skipped_step", offload=True)])
def test_a_skipped_step_changes_nothing_and_is_counted_and_named_once(world_size, row, result):
    assert result["unchanged"] == [True] * world_size
    assert result["skipped"] == [2] * world_size
    assert result["steps"] == [3] * world_size
    assert len(result["warnings"][0]) == 1 and '"0.weight"' in result["warnings"][0][0]
    assert result["warnings"][1:] == [[]] * (world_size - 1)


@pytest.mark.parametrize("world_size, row", [on(w, "poisoned", "poisoned") for w in (1, 2, 3)])
def test_a_non_finite_momentum_on_one_rank_stops_all_and_poisons_the_optimizer(world_size, row, result):
    for error, again in zip(result["errors"], result["again"]):
        assert 'the momentum of "0.weight"' in error and f"on rank {world_size - 1}" in error, error
        assert "step 3" in error and "bucket 0" in error and "applied in this step: nothing" in error
        assert "poisoned by an earlier failure" in again and "step 3" in again, again
    assert result["unchanged"] == [True] * world_size


@pytest.mark.parametrize("world_size, row", [
    pytest.param(2, row("failed between sub-groups", "failed_between_sub_groups"), id="2 ranks")])
def test_an_error_between_two_sub_groups_poisons_and_leaves_nothing_to_step_twice(world_size, row, result):
    assert all("lr: got 'auto'" in error or "could not convert" in error for error in result["errors"])
    assert all("poisoned by an earlier failure" in error for error in result["again"])
    assert set(result["left"]) == {0}
