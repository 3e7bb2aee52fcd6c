"""Checkpoints of older DeepSpeeds: see fixtures/make_older.py for who wrote which."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.python.ckpt import tool
from tests.python.ckpt.tensors import assert_same, universal_tensors

FIXTURES = Path(__file__).parent / "fixtures"
VERSIONS = ["0.12.6", "0.5.10", "0.3.16"]
versions = pytest.mark.parametrize("version", VERSIONS)


def run_of(version: str) -> str:
    return str(FIXTURES / f"deepspeed-{version}")


def reference(version: str, states: bool = False) -> dict[str, torch.Tensor]:
    """The live model when it was saved. states: only its optimizer states, as "name: part"."""
    tensors = torch.load(FIXTURES / f"deepspeed-{version}/reference.pt")
    return {name: tensor for name, tensor in tensors.items() if (": " in name) == states}


@versions
def test_inspect_tells_what_the_version_recorded(version):
    found = tool.inspect(run_of(version))
    assert (found["kind"], found["tag"], found["world_size"]) == ("ZeRO-3", "saved", 2)
    assert (found["optimizer"], found["sub_groups"]) == ("AdamW", 2)
    assert found["facts"]["global_steps"] == "2"
    assert found["facts"].get("ds_version", "").strip() == ("" if version == "0.3.16" else version)
    assert found["aliases"] == ({"head.weight": "embed.weight"} if version == "0.12.6" else {})
    assert sorted(t["name"] for t in found["tensors"]) == sorted(reference(version))
    roles = {t["name"]: t["role"] for t in found["tensors"]}
    assert roles["running"] == roles["counts"] == "buffer"
    assert roles.get("fixed.weight", "frozen") == "frozen"


def test_buffers_that_the_version_does_not_name_are_warned_of():
    [warning] = tool.inspect(run_of("0.3.16"))["warnings"]
    assert "does not list the buffers" in warning
    assert tool.inspect(run_of("0.5.10"))["warnings"] == []


@versions
def test_its_files_are_well(version):
    assert tool.verify(run_of(version))["ok"]


@versions
def test_an_export_is_the_live_model(version, tmp_path):
    tool.export(run_of(version), str(tmp_path))
    assert_same(load_file(tmp_path / "model.safetensors"), reference(version))


@versions
def test_the_states_are_the_live_ones(version, tmp_path):
    tool.universal(run_of(version), str(tmp_path / "universal"))
    found = {name: tensor for name, tensor in universal_tensors(tmp_path / "universal").items() if "fp32" not in name}
    assert_same(found, {name: tensor.reshape(-1) for name, tensor in reference(version, states=True).items()})


@versions
def test_to_another_world_size_and_back_is_the_same(version, tmp_path):
    tool.reshard(run_of(version), str(tmp_path / "three"), 3, sub_group_size=3)
    tool.reshard(str(tmp_path / "three"), str(tmp_path / "two"), 2)
    tool.universal(run_of(version), str(tmp_path / "universal"))
    for other in ("three", "two", "universal"):
        report = tool.diff(run_of(version), str(tmp_path / other))
        assert report["same"], report
        assert report["compared"] == report["equal"]


@versions
def test_todays_deepspeed_reads_what_becomes_of_it(version, consolidated):
    found = consolidated(version)
    expected = reference(version)
    if version == "0.12.6":
        expected["head.weight"] = expected["embed.weight"]
    assert_same(found, expected)


@versions
def test_roles_turn_its_adamw_into_ours(version, tmp_path):
    roles = {"embed.weight": "adamw", "hidden.weight": "muon", "hidden.bias": "adamw"}
    tool.convert_optimizer(run_of(version), str(tmp_path), "ZeroMuon", roles=roles, numbers={"lr": 0.02})
    found = tool.inspect(str(tmp_path))
    assert found["optimizer"] == "ZeroMuon"
    assert {t["name"]: sorted(t["states"]) for t in found["tensors"] if t["states"]} == {
        "embed.weight": ["exp_avg", "exp_avg_sq"],
        "hidden.bias": ["exp_avg", "exp_avg_sq"],
        "hidden.weight": ["exp_avg"],
    }
    assert tool.diff(run_of(version), str(tmp_path), states=False)["same"]
