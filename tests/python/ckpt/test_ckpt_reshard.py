"""reshard, as DeepSpeed resumes from it: with optimizer states, on another world size, as if nothing had happened."""

import pytest

from tests.python.ckpt import tool
from tests.python.ckpt.kinds import KINDS, SAVED_AFTER
from tests.python.ckpt.tensors import assert_same_models
from tests.python.ckpt.resumes import OTHER_SUB_GROUP, RESUMES

RESHARDS = [r.name for r in RESUMES.values() if " on " in r.name]


@pytest.mark.parametrize("name", RESHARDS)
def test_deepspeed_loads_the_same_model_and_states(name, resumed, saved):
    found = resumed(name)
    assert_same_models(found.tensors("live.pt"), saved(2, RESUMES[name].source).tensors("live.pt"))
    assert found.row["global_steps"] == SAVED_AFTER
    assert found.row["note"] == "from the client"


@pytest.mark.parametrize("name", RESHARDS)
def test_the_next_step_on_equal_gradients_is_that_of_a_run_that_was_never_resharded(name, resumed, saved):
    assert_same_models(resumed(name).tensors("next.pt"), saved(2, RESUMES[name].source).tensors("next.pt"))


@pytest.mark.parametrize("name", KINDS)
def test_two_to_three_to_one_to_two_ranks_is_the_same_checkpoint(name, output, saved):
    run = saved(2, name).run
    for world_size in (3, 1, 2):
        folder, _ = output(f"{name} on {world_size}")
        assert tool.inspect(str(folder))["world_size"] == world_size
        report = tool.diff(run, str(folder))
        assert report["same"], report
        assert report["compared"] == report["equal"] > 25
        assert tool.verify(str(folder))["ok"]


@pytest.mark.parametrize("name", KINDS)
def test_sub_groups_close_when_they_hold_the_size_that_was_asked_for(name, output, saved):
    folder, _ = output(f"{name} on 3")
    by_group = {}
    for tensor in tool.inspect(str(folder))["tensors"]:
        if tensor["sub_group"] is not None:
            chunk = -(-(tensor["bytes"] // 4) // 3)
            by_group.setdefault(tensor["sub_group"], []).append((chunk, tensor["role"]))
    for chunks in by_group.values():
        assert sum(chunk for chunk, _ in chunks[:-1]) < OTHER_SUB_GROUP
        assert KINDS[name].optimizer == "AdamW" or len({role for _, role in chunks}) == 1
    assert len(by_group) > saved(2, name).row["sub_groups"]


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("name", KINDS)
def test_what_other_world_sizes_saved_becomes_that_of_two(name, world_size, saved, tmp_path):
    tool.reshard(saved(world_size, name).run, str(tmp_path), 2, new_tag="two")
    assert (tmp_path / "latest").read_text() == "two"
    report = tool.diff(str(tmp_path), saved(2, name).run)
    assert report["same"], "equal gradients made equal runs on any number of ranks"


def test_more_ranks_than_elements_leave_trailing_ranks_of_padding(saved, tmp_path):
    run = saved(2, "AdamW-fp32").run
    tool.reshard(run, str(tmp_path), 17)
    assert tool.inspect(str(tmp_path))["world_size"] == 17
    assert tool.diff(run, str(tmp_path))["same"]


def test_a_sub_group_for_every_parameter(saved, tmp_path):
    run = saved(2, "ZeroMuon-fp32").run
    tool.reshard(run, str(tmp_path), 2, sub_group_size=1)
    found = tool.inspect(str(tmp_path))
    groups = [t["sub_group"] for t in found["tensors"] if t["sub_group"] is not None]
    assert groups == list(range(found["sub_groups"]))
    assert tool.diff(run, str(tmp_path))["same"]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"world_size": 0}, "world_size: expected 1"),
        ({"world_size": 2, "sub_group_size": -1}, "sub_group_size"),
        ({"world_size": 2, "new_tag": "../up"}, "tag: expected the name of a folder"),
    ],
)
def test_options_out_of_range_write_nothing(options, message, saved, tmp_path):
    with pytest.raises(ValueError, match=message):
        tool.reshard(saved(2, "AdamW-fp32").run, str(tmp_path / "out"), **options)
    assert not (tmp_path / "out").exists()


def test_an_output_with_files_of_another_world_size_is_refused(saved, tmp_path):
    run = saved(2, "AdamW-fp32").run
    tool.reshard(run, str(tmp_path), 3)
    with pytest.raises(tool.FormatError, match="without files of another checkpoint"):
        tool.reshard(run, str(tmp_path), 2, force=True)
