"""What stands in a parameter group is what a step takes, on all ranks alike, and what a checkpoint brings back."""

import pytest

from tests.multirank.launch import row


def on(world_size, id, kind, **arguments):
    return pytest.param(world_size, row(id, kind, **arguments), id=f"{world_size} ranks: {id}")


CHANGES = {"lr": 0.011, "weight_decay": 0.2, "momentum": 0.5, "nesterov": False, "betas": [0.5, 0.9], "eps": 1e-3}


@pytest.mark.parametrize(
    "world_size, row", [on(2, f"one rank changes {k}", "one_rank_changes", key=k, value=v) for k, v in CHANGES.items()]
)
def test_a_value_that_one_rank_changed_poisons_all_and_says_so(world_size, row, result):
    for text in (*result["errors"], *result["poisoned"]):
        assert "rank 1 stepped with other values than rank 0" in text and "This step was taken apart" in text


@pytest.mark.parametrize(
    "world_size, row", [on(2, "rates: one number", "rates_at_the_start", schedule="WarmupLR", lr=0.02, adam_lr=0.001)]
)
def test_one_number_in_the_config_is_printed_and_used_for_both_roles_in_their_ratio(world_size, row, result):
    assert result["printed"] == ["zeromuon: learning rates: Muon 0.02, AdamW 0.001, WarmupLR's warmup_max_lr"]
    assert result["warnings"] == []
    assert result["rates"] == pytest.approx([0.02, 0.001])


@pytest.mark.parametrize(
    "world_size, row",
    [on(2, "rates: another number", "rates_at_the_start", schedule="WarmupLR", lr=0.04, adam_lr=0.004)],
)
def test_a_peak_that_takes_the_place_of_the_optimizers_rate_is_warned_of(world_size, row, result):
    (warning,) = result["warnings"]
    assert warning.startswith("WarmupLR: warmup_max_lr 0.02 of the scheduler section takes the place of lr 0.04")
    assert result["rates"] == pytest.approx([0.02, 0.002])


@pytest.mark.parametrize(
    "world_size, row",
    [on(2, "rates: a list", "rates_at_the_start", schedule="a rate for each group", lr=0.02, adam_lr=0.001)],
)
def test_a_list_in_the_config_is_taken_as_it_is(world_size, row, result):
    assert result["printed"] == ["zeromuon: learning rates: Muon 0.02, AdamW 0.007, WarmupLR's warmup_max_lr"]
    assert result["warnings"] == []
    assert result["rates"] == pytest.approx([0.02, 0.007])


@pytest.mark.parametrize("world_size, row", [on(2, "rates: of another kind", "rates_of_another_kind")])
def test_a_rate_in_the_config_that_is_no_number_is_refused_by_name(world_size, row, result):
    for error in result["errors"]:
        assert "scheduler WarmupLR: \"warmup_max_lr\" is '1e-2', expected a number" in error, error


@pytest.mark.parametrize("world_size, row", [on(2, "between steps", "state_dict_between_steps")])
def test_the_states_that_are_asked_for_between_steps_are_deepspeeds(world_size, row, result):
    assert all("call engine.optimizer.state_dict()" in error for error in result["errors"])


@pytest.mark.parametrize("world_size, row", [on(2, "values by hand, saved", "saved_by_hand")])
def test_values_that_were_changed_come_back_with_a_checkpoint(world_size, row, result):
    assert result["loaded"] == result["saved"]
    assert result["saved"][0] == {**result["saved"][0], "momentum": 0.8, "nesterov": False, "lr": 0.01}
    assert result["saved"][1] == {**result["saved"][1], "betas": [0.8, 0.9], "eps": 1e-6, "lr": 0.004}
    assert result["same"]


@pytest.mark.parametrize("world_size, row", [on(2, "another cut", "another_cut")])
def test_a_checkpoint_of_another_cut_names_what_changed_and_changes_nothing(world_size, row, result):
    for error in result["errors"]:
        assert (
            "zero_optimization.sub_group_size has changed" in error
            and "ckpt reshard CHECKPOINT -o FOLDER --world-size N --sub-group-size" in error
        )
    assert result["same"]


@pytest.mark.parametrize("world_size, row", [on(2, "weights of a tag", "weights_of_a_tag")])
def test_weights_alone_are_those_of_the_tag_that_was_named(world_size, row, result):
    assert result == {**result, "early": True, "late": False}


@pytest.mark.parametrize("world_size, row", [on(2, "engines destroyed", "engines_destroyed", engines=6)])
def test_threads_and_descriptors_end_with_their_engine(world_size, row, result):
    _, second, *later = result["counts"]
    # What engines of other rows had may still end meanwhile.
    assert all(n <= most for count in later for n, most in zip(count, second)), result["counts"]


@pytest.mark.parametrize("world_size, row", [on(2, "a key that nobody reads", "unread_key")])
def test_a_key_of_the_optimizer_section_that_nobody_reads_is_warned_of_once(world_size, row, result):
    first, second = result["warnings"]
    assert len(first) == 1 and '"parms"' in first[0] and 'did you mean "params"?' in first[0]
    assert second == []
