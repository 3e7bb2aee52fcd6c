"""universal against the live model and DeepSpeed's ds_to_universal, and loaded by DeepSpeed on another world size."""

import pytest

from tests.python.ckpt import tool
from tests.python.ckpt.kinds import KINDS, SAVED_AFTER
from tests.python.ckpt.tensors import assert_same, assert_same_models, expected_universal, settled, universal_tensors
from tests.python.ckpt.test_ckpt_inspect import every

RESUMED = ["AdamW-fp32", "AdamW-bf16", "ZeroMuon-fp32"]


@every
def test_the_files_hold_the_live_model(world_size, name, saved, tmp_path):
    checkpoint = saved(world_size, name)
    tool.universal(checkpoint.run, str(tmp_path / "universal"))
    assert_same(universal_tensors(tmp_path / "universal"), expected_universal(checkpoint.tensors("live.pt")))
    assert (tmp_path / "latest_universal").read_text() == "universal"


@every
def test_the_tensors_are_those_of_ds_to_universal(world_size, name, saved, tmp_path):
    """It has no answer to DeepSpeed's own Muon, whose state is no exp_avg."""
    checkpoint = saved(world_size, name)
    if KINDS.get(name) and KINDS[name].optimizer == "Muon":
        assert checkpoint.row["universal_error"] == "KeyError: 'exp_avg'"
        return
    tool.universal(checkpoint.run, str(tmp_path / "universal"))
    assert_same(universal_tensors(tmp_path / "universal"), universal_tensors(checkpoint.folder / "peer-universal"))


@pytest.mark.parametrize("name", KINDS)
def test_the_note_says_where_deepspeeds_loader_breaks(name, saved, tmp_path):
    notes = tool.universal(saved(2, name).run, str(tmp_path / "universal"))["notes"]
    frozen = [note for note in notes if "frozen weights and buffers" in note]
    assert len(frozen) == 1 and "reshard instead, which keeps them" in frozen[0]
    assert len(notes) - len(frozen) == (1 if name.startswith("Muon") else 0)
    assert all("does not resume from a universal checkpoint" in note for note in notes if note not in frozen)


@pytest.mark.parametrize("name", RESUMED)
def test_deepspeed_loads_it_on_three_ranks_and_its_next_step_is_that_of_two(name, resumed, saved):
    found, before = resumed(f"{name} universal"), saved(2, name)
    now = found.tensors("live.pt")
    assert_same_models(settled(now) if name.startswith("ZeroMuon") else now, before.tensors("live.pt"))
    assert found.row["global_steps"] == SAVED_AFTER
    assert_same_models(found.tensors("next.pt"), before.tensors("next.pt"))


@pytest.mark.parametrize("name", RESUMED)
def test_zero3_files_made_of_it_resume_on_three_ranks(name, resumed, saved):
    found, before = resumed(f"{name} universal back"), saved(2, name)
    assert_same_models(found.tensors("live.pt"), before.tensors("live.pt"))
    assert_same_models(found.tensors("next.pt"), before.tensors("next.pt"))
    assert tool.diff(str(found.output), before.run)["same"]


def test_the_universal_folder_of_deepspeed_is_resharded_too(saved, tmp_path):
    checkpoint = saved(2, "AdamW-fp32")
    tool.reshard(str(checkpoint.folder / "peer-universal"), str(tmp_path), 1)
    report = tool.diff(str(tmp_path), checkpoint.run)
    assert report["same"] and report["compared"] == report["equal"] > 30


@pytest.mark.parametrize("name", RESUMED)
def test_the_step_that_deepspeed_loads_is_the_optimizers(name, resumed):
    assert set(resumed(f"{name} universal").tensors("live.pt")["steps"]) == {SAVED_AFTER}
