"""The fused step: the bits of the plain path, in one call; what it does where it cannot run or fails."""

import pytest

from tests.multirank.cases import Case
from tests.multirank.launch import row

_SUM_FP32 = {"data_types": {"grad_accum_dtype": "fp32"}}
_FP16 = {"fp16": {"initial_scale_power": 17, "loss_scale_window": 2, "hysteresis": 1}}
_DECAY = {"weight_decay": 0.1}
IN_ONE_CALL = (
    Case("fp32", clip=0.05, accumulation=2, sub_group=150, options=_DECAY),
    Case("fp32, no clipping, whole groups", zero_init=True, persistence=10**5),
    Case("fp32, offload", offload=True, clip=0.05, accumulation=2, sub_group=150, options=_DECAY),
    Case("fp32, offload, no clipping", offload=True, options={"momentum_kind": "heavy_ball"}),
    Case("bf16, summed in fp32", dtype="bf16", extra=_SUM_FP32, clip=0.05, accumulation=2, sub_group=150),
    Case("bf16, offload", dtype="bf16", offload=True, clip=0.05, accumulation=2, sub_group=150, options=_DECAY),
    Case(
        "bf16, offload, bf16 momentum",
        dtype="bf16",
        offload=True,
        sub_group=150,
        options={"momentum_dtype": "bfloat16"},
    ),
    Case(
        "bf16, parameters offloaded, persistent",
        dtype="bf16",
        offload=True,
        offload_param=True,
        persistence=10**5,
        clip=0.05,
    ),
    Case(
        "fp16, offload, skipped steps",
        dtype="fp16",
        extra=_FP16,
        offload=True,
        clip=0.05,
        accumulation=2,
        sub_group=150,
    ),
    Case("fp16, summed in fp32, skipped steps", dtype="fp16", extra={**_FP16, **_SUM_FP32}, sub_group=150, clip=0.05),
    Case("fp16, no clipping, skipped steps", dtype="fp16", extra={**_FP16, **_SUM_FP32}),
)
IN_SEVERAL_CALLS = (
    Case("bf16, summed in bf16", dtype="bf16", clip=0.05, accumulation=2, sub_group=150, options=_DECAY),
    Case("fp16, summed in fp16, skipped steps", dtype="fp16", extra=_FP16, clip=0.05, sub_group=150),
)


def on(world_size, id, kind, **arguments):
    return pytest.param(world_size, row(f"fused: {id}", kind, **arguments), id=f"{world_size} ranks: {id}")


def compared(cases, world_sizes):
    return [on(w, case.name, "fused_and_plain", case=case.as_dict()) for case in cases for w in world_sizes]


def check_same_bits(result, world_size):
    assert result["differing"] == [[]] * world_size
    assert {"master", "precision", "exp_avg", "exp_avg_sq"} <= set(result["kinds"])
    assert result["skipped"][0] >= 1 and result["taken"][0] >= 4, "steps were taken and skipped"
    assert result["skipped"][0] == result["skipped"][1] and result["taken"][0] == result["taken"][1]
    assert set(result["plain_tasks"]) == {1}


@pytest.mark.parametrize("world_size, row", compared(IN_ONE_CALL, (2, 3)))
def test_one_call_steps_all_sub_groups_with_the_bits_of_the_plain_path(world_size, row, result):
    check_same_bits(result, world_size)
    assert result["sub_groups"] >= 2
    assert result["fused_tasks"] == [result["sub_groups"]] * result["taken"][0]


@pytest.mark.parametrize("world_size, row", compared(IN_SEVERAL_CALLS, (2,)))
def test_sixteen_bit_sums_are_copied_for_a_few_sub_groups_at_a_time(world_size, row, result):
    check_same_bits(result, world_size)
    calls = result["fused_tasks"]
    assert sum(calls) == result["sub_groups"] * result["taken"][0]
    assert result["taken"][0] < len(calls) < sum(calls), "more than a call per step, more than a sub-group per call"


FAKE_DEVICE = (
    Case("fake device, bf16", dtype="bf16", offload=True, clip=0.05, accumulation=2, sub_group=150, options=_DECAY),
    Case("fake device, fp32", offload=True, clip=0.05, sub_group=150),
    Case(
        "fake device, cautious weight decay",
        dtype="bf16",
        offload=True,
        sub_group=150,
        options={**_DECAY, "cautious_wd": True},
    ),
)


@pytest.mark.parametrize(
    "world_size, row", [on(2, case.name, "fake_device_homes", case=case.as_dict()) for case in FAKE_DEVICE]
)
def test_every_home_of_the_momentum_gives_the_bits_of_the_plain_path(world_size, row, result):
    for home in ("shard", "streamed"):
        check_same_bits(result[home], world_size)


OBSTACLES = {
    "autocast": "GradScaler",
    "replaced": "_release_sub_group of this engine was replaced",
    "signature": "takes ['self', 'sub_group_id', 'extra'], expected",
    "missing": "has no clip_grad",
}


@pytest.mark.parametrize(
    "world_size, row, why",
    [
        pytest.param(2, row(f"fused obstacle: {name}", "fused_obstacle", obstacle=name), why, id=name)
        for name, why in OBSTACLES.items()
    ],
)
def test_auto_gives_way_and_says_why_once_and_on_refuses(world_size, row, why, result):
    assert result["auto"]["errors"] == ["", ""]
    warned, quiet = result["auto"]["warnings"]
    assert len(warned) == 1 and why in warned[0] and quiet == []
    assert all(
        "ValueError" in error and 'fused_step: got "on"' in error and why in error for error in result["on"]["errors"]
    )


@pytest.mark.parametrize("world_size, row", [on(2, "bad value", "fused_bad_value")])
def test_a_bad_value_in_the_last_group_is_found_before_anything_is_stepped(world_size, row, result):
    assert all("ValueError" in error for error in result["errors"])
    assert result["unchanged"] == [True] * world_size
    assert result["again"] == ["", ""] and result["steps"] == 2, "the next step goes on"
    assert set(result["left"]) == {0}


@pytest.mark.parametrize(
    "world_size, row", [on(2, f"failure, offload {o}", "fused_failure", offload=o) for o in (False, True)]
)
def test_a_failed_step_poisons_and_leaves_nothing_recorded(world_size, row, result):
    assert all("a stage failed" in error for error in result["errors"])
    assert all("poisoned by an earlier failure: a stage failed" in error for error in result["again"])
    assert result["recorded"] == 0 and set(result["left"]) == {0}
    assert bool(result["held"]) == row["arguments"]["offload"], "gradients live on only in the buffers of offload"


@pytest.mark.parametrize("world_size, row", [on(2, "hooks", "fused_hooks")])
def test_schedulers_and_hooks_see_one_call_per_step(world_size, row, result):
    assert result["seen"] == ["before", "after"] * 2
    assert result["warnings"] == [] and result["opt_called"]


UNREGISTERED = (
    Case("unregistered, fp32", clip=0.05, accumulation=2, sub_group=150, options=_DECAY),
    Case("unregistered, bf16, offload", dtype="bf16", offload=True, sub_group=150),
)


@pytest.mark.parametrize(
    "world_size, row", [on(2, case.name, "unregistered", case=case.as_dict()) for case in UNREGISTERED]
)
def test_a_bound_engine_goes_on_with_the_same_bits_when_all_hooks_are_undone(world_size, row, result):
    check_same_bits(result, world_size)
    one_by_one = result["taken"][0] * result["sub_groups"]
    assert sum(result["fused_tasks"]) == one_by_one and {1, result["sub_groups"]} == set(result["fused_tasks"])
