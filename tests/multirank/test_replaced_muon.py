""" "type": "Muon" after register(replace_muon=True): DeepSpeed's keys and meaning, our arithmetic."""

import pytest

from tests.multirank.launch import row

PARAMS = {
    "defaults": {"ns_method": "standard"},
    "one lr": {"lr": 0.01, "ns_method": "standard"},
    "an lr for each role, decay as told": {
        "lr": 0.5,
        "muon_lr": 0.02,
        "adam_lr": 0.002,
        "weight_decay": 0.1,
        "momentum": 0.9,
        "betas": [0.8, 0.9],
        "eps": 1e-8,
        "ns_method": "standard",
        "torch_adam": True,
        "foreach": False,
        "fp32_optimizer_states": True,
    },
    "Adam with L2": {"lr": 0.01, "weight_decay": 0.1, "adam_w_mode": False, "ns_method": "standard"},
}


def on(name, params, groups=False, tagged=False):
    id = f"{name}, groups {groups}, tagged {tagged}"
    return pytest.param(
        2, row(id, "replaced_muon", params={**params, "ns_dtype": "float32"}, groups=groups, tagged=tagged), id=id
    )


@pytest.mark.parametrize(
    "world_size, row",
    [
        *(on(name, params) for name, params in PARAMS.items()),
        on("an lr for each role, decay as told", PARAMS["an lr for each role, decay as told"], groups=True),
        on("one lr", PARAMS["one lr"], tagged=True),
    ],
)
def test_type_muon_trains_as_deepspeed_means_it(world_size, row, result):
    assert result["type"] == "ZeroMuon"
    assert result["moved"] >= 0.05
    assert result["error"] <= 2.1e-6
    roles = dict(result["roles"])
    assert roles["2.weight"] == ("adamw" if row["arguments"]["tagged"] else "muon"), (
        "the user's own tag beats the rules"
    )
    assert roles["0.weight"] == "muon" and roles["0.bias"] == "adamw"
