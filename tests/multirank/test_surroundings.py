"""What is around a step: who asks before the first, engines before this one, settings of torch that a script left on."""

import pytest

from tests.multirank.launch import row

SETTINGS = (
    "default bfloat16",
    "default float16",
    "default float64",
    "inference",
    "no grad",
    "autocast",
    "deterministic",
)


def on(world_size, id, kind, **arguments):
    return pytest.param(world_size, row(id, kind, **arguments), id=f"{world_size} ranks: {id}")


@pytest.mark.parametrize("world_size, row", [on(2, "asked by one rank", "asked_by_one_rank")])
def test_one_rank_that_asks_before_the_first_step_gets_an_error_and_hangs_nobody(world_size, row, result):
    assert len(result["asked"]) == 2
    assert all("call zeromuon.attach(engine) on all ranks first" in error for error in result["asked"])
    assert result["states"] == ["exp_avg", "exp_avg_sq", "step"], "what is saved before the first step has its states"
    assert result["steps"] == [1, 1]


@pytest.mark.parametrize("world_size, row", [on(2, "engine after engine", "engine_after_engine")])
def test_an_engine_that_never_stepped_does_not_stand_in_the_way_of_the_next(world_size, row, result):
    assert result == {**result, "steps": 1, "first": False}


@pytest.mark.parametrize(
    "world_size, row",
    [
        on(2, f"ambient {setting}, fused {fused}", "ambient", setting=setting, fused_step=fused)
        for setting in SETTINGS
        for fused in ("on", "off")
    ],
)
def test_a_step_has_the_same_bits_whatever_setting_is_on(world_size, row, result):
    assert result["same"] == [True] * world_size


@pytest.mark.full
@pytest.mark.parametrize("world_size, row", [on(2, "soak", "soak", steps=2000)])
def test_a_long_run_takes_no_more_at_its_end_than_after_its_beginning(world_size, row, result):
    for rank in result["ranks"]:
        steps = [point["step"] for point in rank]
        assert (steps[0], steps[-1]) == (200, 2000)
        for what in ("threads", "descriptors", "shared_memory"):
            assert rank[0][what] == rank[-1][what], what
        middle = sum(steps) / len(steps)
        resident = [point["resident_bytes"] for point in rank]
        slope = sum((s - middle) * r for s, r in zip(steps, resident)) / sum((s - middle) ** 2 for s in steps)
        assert slope * 1000 < 1e6, f"{slope * 1000:.0f} bytes per 1,000 steps"


@pytest.mark.parametrize("world_size, row", [on(2, "DeepSpeed's Muon", "deepspeeds_muon")])
def test_whose_muon_steps_is_said_once(world_size, row, result):
    first, second = result["warnings"]
    assert len(first) == 1 and 'name "type": "ZeroMuon", or call zeromuon.register(replace_muon=True)' in first[0]
    assert second == []
