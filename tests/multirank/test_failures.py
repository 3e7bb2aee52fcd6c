"""Steps that DeepSpeed skips, and steps that fail."""

import re

import pytest

from tests.multirank.launch import row


def on(world_size, id, kind, **arguments):
    return pytest.param(world_size, row(id, kind, **arguments), id=f"{world_size} ranks: {id}")


@pytest.mark.parametrize(
    "world_size, row",
    [
        on(2, "skipped step", "skipped_step", offload=False),
        on(3, "skipped step, offload", "skipped_step", offload=True),
    ],
)
def test_a_skipped_step_changes_nothing_and_is_counted_and_named_once(world_size, row, result):
    assert result["unchanged"] == [True] * world_size
    assert result["skipped"] == [2] * world_size
    assert result["steps"] == [3] * world_size
    assert len(result["warnings"][0]) == 1 and '"0.weight"' in result["warnings"][0][0]
    assert result["warnings"][1:] == [[]] * (world_size - 1)


@pytest.mark.parametrize(
    "world_size, row",
    [on(w, f"poisoned, fused {f}", "poisoned", fused_step=f) for w in (1, 2, 3) for f in ("on", "off")],
)
def test_a_non_finite_momentum_on_one_rank_stops_all_and_poisons_the_optimizer(world_size, row, result):
    for error, again, changed in zip(result["errors"], result["again"], result["changed"]):
        assert 'the momentum of "0.weight"' in error and f"on rank {world_size - 1}" in error, error
        assert "step 3" in error and "bucket 0" in error, error
        assert "poisoned by an earlier failure" in again and "step 3" in again, again
        assert 0 not in changed and set(changed) <= _named_as_applied(error), (
            "the error says which weights were touched"
        )
    if row["arguments"]["fused_step"] == "off":
        assert result["changed"] == [[]] * world_size
    assert all("not saved: the optimizer is poisoned" in error for error in result["saved"]), result["saved"]
    assert not result["left"], "nothing of a checkpoint that was refused"


@pytest.mark.parametrize(
    "world_size, row", [on(2, f"interrupted, fused {f}", "interrupted", fused_step=f) for f in ("on", "off")]
)
def test_an_interrupt_in_a_step_poisons_because_its_counts_are_not_written(world_size, row, result):
    assert result["errors"] == ["RuntimeError: interrupted"] * world_size
    for error in (*result["again"], *result["saved"]):
        assert "poisoned by an earlier failure: KeyboardInterrupt in the middle of a step" in error, error


def _named_as_applied(error: str) -> set[int]:
    """Sub-groups whose weights are not what they were."""
    applied = error.partition("applied in this step: ")[2].partition("; momenta advanced")[0]
    return {int(number) for number in re.findall(r"sub-group (\d+)", applied)}


@pytest.mark.parametrize(
    "world_size, row", [pytest.param(2, row("failed between sub-groups", "failed_between_sub_groups"), id="2 ranks")]
)
def test_an_error_between_two_sub_groups_poisons_and_leaves_nothing_to_step_twice(world_size, row, result):
    assert all("lr: got 'auto'" in error or "could not convert" in error for error in result["errors"])
    assert all("poisoned by an earlier failure" in error for error in result["again"])
    assert set(result["left"]) == {0}
