"""Bad input ends in an error that says what to do, on every rank, before anything is changed."""

import pytest

from tests.multirank.launch import row
from zeromuon.optimizer.options import option_names


def on(world_size, id, kind, **arguments):
    return pytest.param(world_size, row(id, kind, **arguments), id=f"{world_size} ranks: {id}")


def check(result, *texts):
    for rank, error in enumerate(result["errors"]):
        for text in texts:
            assert text in error, f"rank {rank}: {error or 'no error'}"
    assert all(result.get("unchanged", [True]))


@pytest.mark.parametrize("world_size, row", [on(2, f"stage {s} in json", "stage_in_json", stage=s) for s in (0, 1, 2)])
def test_a_config_of_another_stage_is_refused_at_initialize(world_size, row, result):
    check(result, "ValueError", "zero_optimization.stage 3", f"says {row['arguments']['stage']}")


@pytest.mark.parametrize(
    "world_size, row", [on(2, f"stage {s} with an object", "stage_with_object", stage=s) for s in (0, 1, 2)]
)
def test_an_optimizer_object_under_another_stage_is_refused(world_size, row, result):
    check(result, "ValueError", "zero_optimization.stage 3")


@pytest.mark.parametrize("world_size, row", [on(1, "unknown option", "unknown_option_in_json")])
def test_an_unknown_option_names_the_nearest(world_size, row, result):
    check(result, "ValueError", "nestrov", "nesterov")


@pytest.mark.parametrize("world_size, row", [on(1, "options read", "options_read")])
def test_there_is_no_option_that_nothing_reads(world_size, row, result):
    assert set(option_names()) <= set(result["read"])


@pytest.mark.parametrize("world_size, row", [on(1, "another optimizer", "not_ours")])
def test_attaching_to_another_optimizer_says_which_it_found(world_size, row, result):
    check(result, "ValueError", "expected ZeroMuon")


@pytest.mark.parametrize(
    "world_size, row", [on(2, "plans differ", "plans_differ"), on(3, "plans differ", "plans_differ")]
)
def test_ranks_whose_plans_differ_all_raise_and_show_the_first_difference(world_size, row, result):
    last = f"rank {world_size - 1} has `"
    check(result, "ValueError", "planned different steps: rank 0 has `", last, "same ZeroMuon options")


@pytest.mark.parametrize("world_size, row", [on(3, "one rank cannot bind", "one_rank_cannot_bind")])
def test_when_one_rank_cannot_bind_all_raise(world_size, row, result):
    check(result, "ValueError", "offload_optimizer.ratio is 0.5")
    assert "rank 2 cannot bind" in result["errors"][0]


@pytest.mark.parametrize("world_size, row", [on(2, "too little memory", "too_little_memory")])
def test_a_plan_that_does_not_fit_in_memory_is_refused_with_figures(world_size, row, result):
    check(result, "MiB of cpu memory", "are free", "the least that works is", "use more ranks")


@pytest.mark.parametrize("world_size, row", [on(2, "memory for one matrix", "memory_for_one_matrix")])
def test_a_plan_that_would_fit_with_less_in_flight_says_how(world_size, row, result):
    check(result["first"], "are free", "the least that works is", '"max_bytes_in_flight": ')
    assert result["then"] == [""] * world_size, "as it said"


@pytest.mark.parametrize("world_size, row", [on(2, "missing attribute", "missing_attribute")])
def test_a_deepspeed_that_lacks_an_attribute_is_named_with_its_version(world_size, row, result):
    import deepspeed

    check(result, "ValueError", "grad_position", deepspeed.__version__)


@pytest.mark.parametrize("world_size, row", [on(2, "changed method", "changed_method")])
def test_a_deepspeed_whose_method_takes_other_parameters_is_named_when_it_binds(world_size, row, result):
    import deepspeed

    taken = "Other._post_step takes ['self', 'timer_names', 'extra'], expected ['self', 'timer_names']"
    check(result, "ValueError", taken, deepspeed.__version__)


@pytest.mark.parametrize("world_size, row", [on(2, "moved layout", "moved_layout")])
def test_master_weights_that_are_not_where_expected_are_refused(world_size, row, result):
    check(result, "ValueError", "0.weight", "flat shard")


@pytest.mark.parametrize("world_size, row", [on(2, "changed after bind", "parameters_changed_after_bind")])
def test_parameters_that_change_after_bind_are_refused(world_size, row, result):
    check(result, "ValueError", "changed after attach()")


@pytest.mark.parametrize(
    "world_size, row, option",
    [
        pytest.param(3, row(f"told another {name}", "told_differently", options=options), name, id=f"3 ranks: {name}")
        for name, options in (
            ("momentum", {"momentum": 0.5}),
            ("adam_lr", {"adam_lr": 0.01}),
            ("weight_decay", {"weight_decay": 0.5}),
        )
    ],
)
def test_a_rank_that_was_told_another_option_is_named(world_size, row, option, result):
    check(result, "ValueError", f"{option}: rank 0 has", "rank 2 has", "the same ZeroMuon options")


CONFIGS = {
    "offload ratio": ({"zero_optimization": {"offload_optimizer": {"ratio": 0.5}}}, "set it to 1.0"),
    "NVMe": (
        {"zero_optimization": {"offload_optimizer": {"device": "nvme", "nvme_path": "/nonexistent"}}},
        "use cpu or none",
    ),
    "SuperOffload": ({"zero_optimization": {"offload_optimizer": {"super_offload": True}}}, "remove super_offload"),
    "ZenFlow": (
        {
            "zero_optimization": {
                "zenflow": {
                    "topk_ratio": 0.1,
                    "update_interval": 2,
                    "select_interval": 4,
                    "full_warm_up_rounds": 0,
                    "select_strategy": "step",
                }
            }
        },
        "remove zenflow",
    ),
    "hpZ": ({"zero_optimization": {"zero_hpz_partition_size": 2}}, "set it to 1"),
}


@pytest.mark.parametrize(
    "world_size, row, remedy",
    [
        pytest.param(
            2, row(f"{name}, {route}", "refused_config", changes=changes, route=route), remedy, id=f"{name}, {route}"
        )
        for name, (changes, remedy) in CONFIGS.items()
        for route in ("json", "groups")
    ],
)
def test_a_configuration_that_is_not_supported_is_refused_with_what_to_do_instead(world_size, row, remedy, result):
    check(result, "ValueError", remedy)


ATTRIBUTES = {
    "ZenFlow": ({"zenflow": True}, "remove zenflow"),
    "NVMe": ({"swap_optimizer": True}, "use cpu or none"),
    "a mpu": ({"model_parallel_group": "WORLD"}, "autotp_size"),
    "AutoEP": ({"sub_group_process_groups": ["WORLD", "ANOTHER"]}, "expert_parallel"),
}


@pytest.mark.parametrize(
    "world_size, row, remedy",
    [
        pytest.param(2, row(f"attribute of {name}", "refused_attributes", attributes=attributes), remedy, id=name)
        for name, (attributes, remedy) in ATTRIBUTES.items()
    ],
)
def test_an_engine_that_runs_so_is_refused_when_binding(world_size, row, remedy, result):
    check(result, "ValueError", remedy)


@pytest.mark.parametrize(
    "world_size, row, what",
    [
        pytest.param(2, row(f"refused {options}", "refused_options", options=options), what, id=str(options))
        for options, what in (
            ({"momentum_device": "cpu_streamed"}, "there is no other device to stream to"),
            ({"max_bytes_in_flight": 100}, "max_bytes_in_flight"),
        )
    ],
)
def test_an_option_that_this_placement_cannot_serve_is_refused_when_binding(world_size, row, what, result):
    check(result, "ValueError", what)


@pytest.mark.parametrize("world_size, row", [on(2, "offload_states", "offload_states")])
def test_offload_states_is_refused_with_what_to_do_instead(world_size, row, result):
    check(result, "ValueError", "offload_states() is not supported", "offload_optimizer.device cpu")
