"""Saving, loading and going on through DeepSpeed's own checkpoints."""

import pytest

from tests.multirank.launch import row


def on(world_size, id, kind, **arguments):
    return pytest.param(world_size, row(id, kind, **arguments), id=f"{world_size} ranks: {id}")


@pytest.mark.parametrize("world_size, row", [
    on(w, f"checkpoint, offload {o}", "save_load_go_on", offload=o) for w in (1, 2, 3) for o in (False, True)])
def test_a_resumed_run_continues_bit_for_bit(world_size, row, result):
    assert result["same"] == [True] * world_size
    roles = result["entry"]["roles"]
    assert roles["0.weight"] == "muon" and roles["1.weight"] == "adamw"
    assert result["entry"]["format"] == 1
    assert result["entry"]["options"]["weight_decay"] == 0.1
    assert sorted(result["states"][0]) == ["exp_avg", "step"], "a Muon shard holds one state"
    assert result["states"][-1] == ["exp_avg", "exp_avg_sq", "step"]
    assert all(s == ["exp_avg", "exp_avg_sq", "step"] for s in result["saved_states"])
    assert result["placeholder_numel"] == 1, "the zeros of exp_avg_sq take no room on disk"


@pytest.mark.parametrize("world_size, row", [on(2, "foreign checkpoints", "foreign_checkpoints")])
def test_optimizer_state_that_does_not_fit_is_refused_and_changes_nothing(world_size, row, result):
    adamw, other_role, other_kind, good = result["errors"]
    assert "not written by ZeroMuon" in adamw and "load_optimizer_states=False" in adamw
    assert '"0.weight" is adamw in the checkpoint and muon in this run' in other_role
    assert "momentum_kind" in other_kind and "heavy_ball" in other_kind
    assert good == ""
    assert result["unchanged"]
