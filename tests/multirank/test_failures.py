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
    "world_size, row",
    [
        on(2, f"AdamW with a spoilt {what}, fused {f}", "spoilt_adamw", what=what, fused_step=f)
        for what in ("exp_avg", "exp_avg_sq", "gradient")
        for f in ("on", "off")
    ],
)
def test_what_adamw_writes_and_is_not_finite_stops_all_and_poisons_the_optimizer(world_size, row, result):
    for error, again in zip(result["errors"], result["again"]):
        assert "stage adamw, rank 1" in error and '"0.bias"' in error, error
        assert "NaN or infinite value to the weight, its copy in the model, exp_avg or exp_avg_sq" in error, error
        assert "poisoned by an earlier failure" in again and "step 3" in again, again


@pytest.mark.parametrize(
    "world_size, row", [on(2, f"interrupted, fused {f}", "interrupted", fused_step=f) for f in ("on", "off")]
)
def test_an_interrupt_in_a_step_poisons_because_its_counts_are_not_written(world_size, row, result):
    assert result["errors"] == ["RuntimeError: interrupted"] * world_size
    for error in (*result["again"], *result["saved"]):
        assert "poisoned by an earlier failure: KeyboardInterrupt in the middle of a step" in error, error


@pytest.mark.parametrize("world_size, row", [on(2, "a rank that is late", "missing_rank", late_s=4.0, limit_s=1.0)])
def test_the_rank_that_is_missing_in_deepspeeds_collective_is_named_with_its_place(world_size, row, result):
    waiting, late = result["said"]
    assert "rank 0 is" not in late, "it was not the one that is missing"
    assert "rank 0 has waited for more than 1 s in DeepSpeed's part of engine.step(): rank 1 is at " in waiting
    assert "tests/multirank/rows.py:" in waiting and ", before this call\n" in waiting
    assert result["threads"] == [[1, 0]] * world_size, "a thread while there is an engine"


@pytest.mark.parametrize("world_size, row", [on(2, "two threads", "two_threads_in_a_step")])
def test_a_second_thread_in_a_step_gets_an_error_and_the_step_goes_on(world_size, row, result):
    for errors in result["errors"]:
        assert len(errors) == 1 and "an engine is stepped by one thread at a time" in errors[0], errors
    assert result["same"] == [True] * world_size


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
