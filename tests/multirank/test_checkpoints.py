"""Saving, loading and going on through DeepSpeed's own checkpoints."""

import pytest
import torch  # noqa: F401  (the core needs it loaded)
from zeromuon import _core

from tests.multirank.launch import row

PRODUCTS = "bfloat16" if _core.this_cpu().name in ("avx512_bf16+onednn", "amx_bf16+onednn") else "auto"


def on(world_size, id, kind, **arguments):
    return pytest.param(world_size, row(id, kind, **arguments), id=f"{world_size} ranks: {id}")


@pytest.mark.parametrize(
    "world_size, row",
    [on(w, f"checkpoint, offload {o}", "save_load_go_on", offload=o) for w in (1, 2, 3) for o in (False, True)]
    + [
        on(2, f"checkpoint, {dtype}, offload {o}", "save_load_go_on", offload=o, dtype=dtype)
        for dtype in ("bf16", "fp16")
        for o in (False, True)
    ]
    + [
        on(
            w,
            "checkpoint, bfloat16 products where they can be",
            "save_load_go_on",
            offload=True,
            ns_dtype=PRODUCTS,
            ns_form="auto",
        )
        for w in (1, 2, 3)
    ]
    + [
        on(
            2,
            f"checkpoint, {dtype}, bf16 momentum, offload {o}",
            "save_load_go_on",
            offload=o,
            dtype=dtype,
            momentum_dtype="bfloat16",
        )
        for dtype, o in (("fp32", False), ("bf16", True))
    ]
    + [on(2, "checkpoint, cautious decay", "save_load_go_on", offload=True, cautious_wd=True)],
)
def test_a_resumed_run_continues_bit_for_bit(world_size, row, result):
    assert result["same"] == [True] * world_size
    roles = result["entry"]["roles"]
    assert roles["0.weight"] == "muon" and roles["1.weight"] == "adamw"
    assert result["entry"]["format"] == 1
    assert result["entry"]["arithmetic"] == result["arithmetic"]
    assert result["entry"]["options"]["weight_decay"] == 0.1
    assert result["entry"]["options"]["cautious_wd"] == row["arguments"].get("cautious_wd", False)
    assert sorted(result["states"][0]) == ["exp_avg", "step"], "a Muon shard holds one state"
    assert result["states"][-1] == ["exp_avg", "exp_avg_sq", "step"]
    assert all(s == ["exp_avg", "exp_avg_sq", "step"] for s in result["saved_states"])
    assert result["momentum_dtypes"] == [f"torch.{result['entry']['options']['momentum_dtype']}"]
    assert result["placeholder_numel"] == 1, "the zeros of exp_avg_sq take no room on disk"


MUON_CLIP = {"per_head": "mla", "qk_clip": True, "qk_clip_threshold": 0.2}


@pytest.mark.parametrize(
    "world_size, row",
    [
        on(w, "checkpoint, latent attention, clipped", "save_load_go_on", offload=True, model="latent", **MUON_CLIP)
        for w in (2, 3)
    ],
)
def test_a_resumed_run_of_experts_and_heads_that_are_clipped_continues_bit_for_bit(world_size, row, result):
    assert result["same"] == [True] * world_size
    splits = result["entry"]["splits"]
    assert splits["model.model.layers.0.self_attn.kv_b_proj.weight"] == {"sizes": [4, 3], "heads": 2, "per_head": True}
    assert splits["model.model.layers.1.mlp.experts.down_proj"]["stack"] == 4
    assert result["entry"]["options"]["qk_clip"] is True


@pytest.mark.parametrize(
    "world_size, row",
    [
        on(2, f"momentum {a} to {b}", "other_momentum_dtype", saved=a, loaded=b)
        for a, b in (("float32", "bfloat16"), ("bfloat16", "float32"))
    ],
)
def test_a_momentum_of_another_data_type_is_converted_and_said(world_size, row, result):
    saved, loaded = row["arguments"]["saved"], row["arguments"]["loaded"]
    assert result["same"] and result["momentum_dtypes"] == [f"torch.{loaded}"] and result["steps"] == 2
    assert result["warnings"] == [
        f"momentum_dtype: the checkpoint was written with {saved}; its momentum is converted to {loaded}"
    ]


@pytest.mark.parametrize(
    "world_size, row",
    [
        on(w, f"zero.Init on one side, saving {s}", "zero_init_on_one_side", saving=s)
        for w in (2, 3)
        for s in (False, True)
    ],
)
def test_zero_init_on_one_side_only_changes_nothing(world_size, row, result):
    assert result["same"] == [True] * world_size
    assert result["groups"] == [[0.02, 0.3], [0.002, 0.3], [0.02, 0.1], [0.002, 0.1]], "each group's own rate and decay"


@pytest.mark.parametrize(
    "world_size, row", [on(2, f"zero_to_fp32, {dtype}", "zero_to_fp32", dtype=dtype) for dtype in ("fp32", "bf16")]
)
def test_zero_to_fp32_gives_the_live_master_weights(world_size, row, result):
    assert result["missing"] == [] and result["same"]


@pytest.mark.parametrize("world_size, row", [on(2, "states by name", "states_by_name")])
def test_whole_states_are_there_by_name_and_muon_has_no_second_moment(world_size, row, result):
    assert result["shapes"] == {"0.weight exp_avg": [32, 16], "0.bias exp_avg": [32], "0.bias exp_avg_sq": [32]}
    assert result["errors"] == ["KeyError: 'exp_avg_sq'"] * 2


@pytest.mark.parametrize("world_size, row", [on(2, "foreign states", "foreign_states")])
def test_optimizer_state_that_does_not_fit_is_refused_and_changes_nothing(world_size, row, result):
    adamw, other_role, other_kind, other_order, later_need, later_field, good = result["errors"]
    assert "not written by ZeroMuon" in adamw and "load_optimizer_states=False" in adamw
    assert '"0.weight" is adamw in the checkpoint and muon in this run' in other_role
    assert "momentum_kind" in other_kind and "heavy_ball" in other_kind
    assert "the parameters are in another order" in other_order
    assert "needs 'heads', which this version does not know" in later_need
    assert later_field == good == ""
    assert result["unchanged"]


@pytest.mark.parametrize(
    "world_size, row, whose",
    [
        pytest.param(2, row(f"checkpoint of {name}", "foreign_checkpoint", optimizer=name), text, id=name)
        for name, text in (("AdamW", "converted from AdamW to Muon"), ("Muon", "DeepSpeed's own Muon wrote it"))
    ],
)
def test_a_checkpoint_of_another_optimizer_is_refused_with_the_conversion_it_needs(world_size, row, whose, result):
    assert all(whose in error and "Convert the checkpoint first" in error for error in result["errors"])
    assert result["unchanged"] == [True, True]
    assert set(result["steps"]) == {2}, "the step after the refusal is one step of every sub-group"
    assert result["weights_only"] == ""


@pytest.mark.parametrize("world_size, row", [on(2, "poisoned then loaded", "poisoned_then_loaded")])
def test_a_broken_step_is_not_saved_and_a_load_goes_on_from_the_last_checkpoint(world_size, row, result):
    assert all("NaN or infinite" in error for error in result["errors"])
    assert all("StepError: not saved: the optimizer is poisoned" in error for error in result["saving"])
    assert result["latest"] == "good"
    assert result["same"] == [True, True]


@pytest.mark.parametrize("world_size, row", [on(2, "other rates", "other_rates_on_load")])
def test_both_learning_rates_are_gone_on_with_as_saved_and_said(world_size, row, result):
    assert result["same"] == [True, True]
    assert len(result["warnings"]) == 1 and result["warnings"][0].startswith("lr: the checkpoint was written with 0.02")
