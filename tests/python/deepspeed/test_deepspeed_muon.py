"""The params of DeepSpeed's "type": "Muon" as ZeroMuon reads them."""

import pytest
import torch

import zeromuon
from tests.python.optimizer.other_options import OTHER
from zeromuon.deepspeed.muon_params import KEYS, read_muon_params, read_selection
from zeromuon.optimizer.options import TYPE_MUON_OPTIONS, validate_options


def options(**params):
    return read_muon_params(params, TYPE_MUON_OPTIONS).options


def test_absent_keys_take_the_defaults_of_deepspeed():
    found = options()
    assert (found["lr"], found["adam_lr"], found["momentum"], found["weight_decay"]) == (0.02, 3e-4, 0.95, 0.0)
    assert (found["betas"], found["eps"], found["scale"], found["ns"]) == ((0.9, 0.95), 1e-10, "original", "jordan")


def test_the_installed_deepspeed_has_those_defaults():
    from deepspeed.runtime.zero.muon.original_muon import MuonWithAuxAdam

    matrix, vector = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2))
    groups = [{"params": [matrix], "use_muon": True}, {"params": [vector], "use_muon": False}]
    muon, adam = MuonWithAuxAdam(groups).param_groups
    found = options()
    assert (muon["lr"], muon["momentum"], muon["weight_decay"]) == (
        found["lr"],
        found["momentum"],
        found["weight_decay"],
    )
    assert (adam["lr"], adam["betas"], adam["eps"]) == (found["adam_lr"], found["betas"], found["eps"])


def test_every_key_that_the_installed_deepspeed_reads_is_known():
    from deepspeed.runtime.engine import DeepSpeedEngine

    read = {
        *DeepSpeedEngine._MUON_HALF_KEYS,
        *DeepSpeedEngine._ADAM_HALF_KEYS,
        "muon_lr",
        "adam_lr",
        "torch_adam",
        "adam_w_mode",
        "fp32_optimizer_states",
        "foreach",
        "per_head_muon",
    }
    assert read == set(KEYS)


def test_lr_goes_for_both_roles_and_their_own_before_it():
    assert options(lr=0.1)["lr"] == options(lr=0.1)["adam_lr"] == 0.1
    found = options(lr=0.1, muon_lr=0.2, adam_lr=0.3)
    assert (found["lr"], found["adam_lr"]) == (0.2, 0.3)
    assert options(muon_lr=0.2)["adam_lr"] == 3e-4, "not muon_lr"


@pytest.mark.parametrize("method, form", [("gram", "auto"), ("standard", "standard")])
def test_the_method_chooses_the_form(method, form):
    assert options(ns_method=method)["ns_form"] == form


def test_what_is_read_is_valid_for_zeromuon():
    validate_options(options(lr=0.1, weight_decay=0.1))


def test_the_decay_of_adam_is_coupled_only_when_told():
    assert read_muon_params({}).decoupled_decay and not read_muon_params({"adam_w_mode": False}).decoupled_decay


def test_options_of_zeromuon_that_are_taken_keep_their_names():
    assert {"cautious_wd", "ns_dtype", "stage_timeout_s"} <= set(TYPE_MUON_OPTIONS)
    given = {key: OTHER[key] for key in TYPE_MUON_OPTIONS}
    assert options(**given).items() >= given.items()


def test_cautious_decay_is_refused_where_the_decay_is_coupled(capsys):
    net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 4))
    optimizer = zeromuon.ZeroMuon(zeromuon.param_groups(net), **options(cautious_wd=True))
    optimizer.follow_deepspeed([], decoupled_decay=True)
    with pytest.raises(ValueError, match="cautious_wd: got True together with adam_w_mode=False"):
        optimizer.follow_deepspeed([], decoupled_decay=False)


@pytest.mark.parametrize(
    "params, text",
    [
        ({"per_head_muon": 8}, "per_head_muon: got 8, expected true or false"),
        ({"ns_method": "grams"}, "gram or standard"),
        ({"nesterov": True}, "unknown key"),
        ({"weight_decoy": 0.1}, "did you mean weight_decay"),
        ({"torch_adam": "yes"}, "expected true or false"),
    ],
)
def test_what_cannot_be_done_is_an_error_not_ignored(params, text):
    with pytest.raises(ValueError, match=text):
        read_muon_params(params)


def test_per_head_muon_is_heads_of_whole_projections_and_says_the_same_as_per_head():
    assert read_selection({"lr": 0.1}) == {"split_fused": False, "per_head": "none"}
    assert read_selection({"per_head_muon": True})["per_head"] == "qkv"
    assert read_selection({"per_head_muon": False})["per_head"] == "none"
    own = read_selection({"per_head": "mla", "split_fused": True, "include": ["a"]})
    assert own == {"split_fused": True, "per_head": "mla", "include": ["a"]}
    with pytest.raises(ValueError, match="per_head and per_head_muon say the same"):
        read_selection({"per_head_muon": True, "per_head": "qkv"})


def test_bf16_states_are_said_to_stay_in_float32():
    with pytest.warns(UserWarning, match="keeps its states in float32"):
        read_muon_params({"fp32_optimizer_states": False})
