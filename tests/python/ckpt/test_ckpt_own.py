"""Checkpoints that an earlier zeromuon wrote: see fixtures/make_own.py for what lies beside them."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.python.ckpt import tool, zoo
from tests.python.ckpt.fixtures.make_own import OWN, inspected
from tests.python.ckpt.kinds import MOMENTUM, SAVED_AFTER
from tests.python.ckpt.resumes import OWN_FOLDER, RESUMES
from tests.python.ckpt.tensors import (
    assert_same,
    assert_same_models,
    expected_universal,
    flat_states,
    settled,
    universal_tensors,
    whole_model,
)

ENTRY_FILES = {
    "one": "saved/zero_pp_rank_0_mp_rank_00_optim_states.pt",
    "two": "saved/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt",
    "universal": "saved/zero/optimizer_state.pt",
}
each = pytest.mark.parametrize("name", OWN)
resumes = pytest.mark.parametrize("name", [name for name in RESUMES if name.startswith("0.1.0 ")])


def run_of(name: str) -> str:
    return str(OWN_FOLDER / name)


def recorded(name: str, file: str = "live.pt") -> dict:
    """The model when the earlier zeromuon saved it; next.pt: one step later."""
    return torch.load(OWN_FOLDER / name / file)


def universal_of(folder: Path, scratch: Path) -> dict[str, torch.Tensor]:
    """The universal files of a checkpoint, made where it is of another kind."""
    if tool.inspect(str(folder))["kind"] == "universal":
        return universal_tensors(next(folder.glob("**/zero")).parent)
    tool.universal(str(folder), str(scratch / "universal"))
    return universal_tensors(scratch / "universal")


def entry_of(name: str) -> dict:
    state = torch.load(OWN_FOLDER / name / ENTRY_FILES[name], weights_only=False)["optimizer_state_dict"]
    return state["zeromuon"] if "zeromuon" in state else state["optimizer_state_dict"]["zeromuon"]


@each
def test_they_have_the_entry_of_their_time(name):
    assert sorted(entry_of(name)) == ["arithmetic", "blocks", "format", "groups", "options", "roles"]


@each
def test_inspect_says_what_it_said_then(name):
    assert inspected(tool, OWN_FOLDER / name) == json.loads((OWN_FOLDER / name / "inspect.json").read_text())


@each
def test_the_files_are_well(name):
    assert tool.verify(run_of(name))["ok"]


@each
def test_an_export_is_the_live_model(name, tmp_path):
    tool.export(run_of(name), str(tmp_path))
    assert_same(load_file(tmp_path / "model.safetensors"), whole_model(recorded(name)))


@each
def test_the_states_are_the_live_ones(name, tmp_path):
    assert_same(universal_of(OWN_FOLDER / name, tmp_path), expected_universal(recorded(name)))


@each
def test_to_other_world_sizes_and_back_is_the_same(name, tmp_path):
    tool.reshard(run_of(name), str(tmp_path / "five"), 5, sub_group_size=7)
    tool.reshard(str(tmp_path / "five"), str(tmp_path / "two"), 2)
    for other in ("five", "two"):
        report = tool.diff(run_of(name), str(tmp_path / other))
        assert report["same"], report
        assert report["compared"] == report["equal"] > 25


@each
def test_the_momentum_is_converted_from_kind_to_kind(name, tmp_path):
    was = recorded(name)["states"]
    kind = "ema" if name == "one" else "heavy_ball"
    factor = 1 - MOMENTUM if name == "one" else 1 / (1 - MOMENTUM)
    tool.convert_optimizer(run_of(name), str(tmp_path / "out"), "ZeroMuon", momentum_kind=kind)
    found = universal_of(tmp_path / "out", tmp_path)
    for parameter, states in was.items():
        muon = parameter in zoo.MUON
        expected = (states["exp_avg"].double() * (factor if muon else 1)).float().reshape(-1)
        assert torch.equal(found[f"{parameter}: exp_avg"], expected), parameter


@each
def test_it_becomes_an_adamw_with_the_same_weights(name, tmp_path):
    tool.convert_optimizer(run_of(name), str(tmp_path / "out"), "AdamW")
    assert tool.inspect(str(tmp_path / "out"))["optimizer"] == "AdamW"
    assert tool.diff(run_of(name), str(tmp_path / "out"), states=False)["same"]


@resumes
def test_a_run_goes_on_from_it(name, resumed):
    found, expected = resumed(name), recorded(RESUMES[name].source)
    live = found.tensors("live.pt")
    assert_same_models(settled(live) if RESUMES[name].loader.universal else live, expected)
    assert found.row["global_steps"] == SAVED_AFTER and found.row["note"] == "from the client"


@resumes
def test_its_next_step_is_the_one_that_the_earlier_zeromuon_took(name, resumed):
    """Bit for bit where a step is computed as it was there; on other processors within the accuracy of float32."""
    source = RESUMES[name].source
    found, expected = resumed(name).tensors("next.pt"), recorded(source, "next.pt")
    if resumed(name).row["arithmetic"] == entry_of(source)["arithmetic"]:
        assert_same_models(found, expected)
        return
    assert_same(flat_states(found), flat_states(expected))  # element-wise: the same bits everywhere
    for parameter, weights in expected["weights"].items():
        torch.testing.assert_close(found["weights"][parameter], weights, rtol=1e-5, atol=1e-5)
