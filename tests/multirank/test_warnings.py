"""What DeepSpeed does wrong for every optimizer is said once, with the remedy, or stands in the documents."""

import pytest

from tests.multirank.launch import row


def on(id, kind, **arguments):
    return pytest.param(2, row(id, kind, **arguments), id=id)


@pytest.mark.parametrize(
    "world_size, row",
    [
        on(f"{dtype} sums, told {told}", "coarse_accumulation", dtype=dtype, told=told)
        for dtype, told in (("bf16", False), ("bf16", True), ("fp16", False), ("fp32", False))
    ],
)
def test_sums_in_sixteen_bits_are_warned_of_once_on_rank_0(world_size, row, result):
    first, *others = result["warnings"]
    dtype, told = row["arguments"]["dtype"], row["arguments"]["told"]
    if dtype == "fp32" or told:
        assert first == []
    else:
        assert len(first) == 1 and '"grad_accum_dtype": "fp32"' in first[0]
    assert others == [[]]


@pytest.mark.parametrize(
    "world_size, row", [on(f"unused, offload {o}", "unused_parameter", offload=o) for o in (False, True)]
)
def test_a_parameter_that_is_stepped_with_an_old_gradient_is_named_once(world_size, row, result):
    assert result["used"] == [[], []], "one that never had a gradient does no harm"
    first, second = result["unused"]
    assert len(first) == 1 and '"middle.weight", "middle.bias"' in first[0] and "never" not in first[0]
    assert "requires_grad_(False); later it changes nothing" in first[0]
    assert "parameter.sum()" not in first[0], "which has no elements under ZeRO-3"
    assert second == []
    assert result["moved"] > 1e-3, "DeepSpeed does step it: when it no longer does, the warning must go"


@pytest.mark.parametrize(
    "world_size, row", [on("unused, warnings are errors", "unused_parameter_where_warnings_are_errors")]
)
def test_where_warnings_are_errors_no_rank_stops_alone(world_size, row, result):
    assert result["errors"] == [[], []]


@pytest.mark.parametrize(
    "world_size, row",
    [
        on(f"unused, {remedy}, offload {o}", "unused_parameter_remedied", remedy=remedy, offload=o)
        for remedy in ("frozen before", "a group of lr 0", "takes part")
        for o in (False, True)
    ],
)
def test_each_remedy_of_that_warning_does_what_it_says(world_size, row, result):
    remedy = row["arguments"]["remedy"]
    if remedy != "a group of lr 0":
        assert result["unused"] == [[], []]
    if remedy == "takes part":
        assert result["moved"] > 1e-3, "the documents say so: Muon goes on along its momentum"
    else:
        assert result["moved"] == 0


@pytest.mark.parametrize(
    "world_size, row",
    [on(f"gradient after a step, fused {f}", "gradient_after_a_step", fused_step=f) for f in ("on", "off")],
)
def test_a_gradient_that_is_read_after_a_fused_step_is_not_clipped(world_size, row, result):
    clipped = 1e-3 if row["arguments"]["fused_step"] == "off" else result["before"]
    assert result["before"] > 0.1 and result["after"] == pytest.approx(clipped, rel=1e-4)


@pytest.mark.parametrize("world_size, row", [on("module only", "module_only")])
def test_load_module_only_needs_to_be_told_that_there_are_no_states(world_size, row, result):
    assert (result["alone"], result["told"]) == (False, True)


@pytest.mark.parametrize("world_size, row", [on("batch size set", "batch_size_that_is_set")])
def test_a_batch_size_set_between_its_multiples_cuts_the_next_step_short(world_size, row, result):
    assert result["lengths"] == [2, 2, 2, 3]
