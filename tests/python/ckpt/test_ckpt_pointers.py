"""Folders in which more than one file says what is newest, and checkpoints of stages that the tool does not read."""

from __future__ import annotations

import shlex
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from tests.python.ckpt import command_inputs as inputs
from tests.python.ckpt.test_ckpt_command import all_weights, ckpt, exported, same  # noqa: F401  (fixtures)


@pytest.fixture
def run(ckpt, tmp_path) -> Path:  # noqa: F811
    """A run whose checkpoint of step 7 was made universal inside of it, and that went on to step 9 with doubled weights."""
    folder = inputs.zero3(tmp_path / "run")
    assert ckpt("universal", folder, "-o", folder / "uni")[0] == 0
    inputs.zero3(folder, tag="step9")
    for file in (folder / "step9").glob("*optim_states.pt"):
        content = torch.load(file, weights_only=False)
        content["optimizer_state_dict"]["fp32_flat_groups"] = [
            2 * flat for flat in content["optimizer_state_dict"]["fp32_flat_groups"]
        ]
        torch.save(content, file)
    return folder


def doubled() -> dict[str, torch.Tensor]:
    return {name: 2 * value if name in inputs.weights() else value for name, value in all_weights().items()}


def test_what_latest_names_is_exported_and_the_other_is_named(ckpt, run, tmp_path):  # noqa: F811
    status, said, _ = ckpt("export", run, "-o", tmp_path / "out")
    assert status == 0 and same(exported(tmp_path / "out"), doubled())
    assert "latest names step9, and latest_universal uni; the first is taken" in said


def test_a_tag_that_names_a_native_folder_counts(ckpt, run, tmp_path):  # noqa: F811
    assert ckpt("export", run, "-o", tmp_path / "out", "--tag", "step7")[0] == 0
    assert same(exported(tmp_path / "out"), all_weights())


def test_the_universal_one_is_taken_by_its_own_name(ckpt, run, tmp_path):  # noqa: F811
    assert ckpt("export", run / "uni", "-o", tmp_path / "out")[0] == 0
    found = exported(tmp_path / "out")
    assert same({name: found[name] for name in inputs.weights()}, inputs.weights())


def test_verify_opens_the_files_of_the_newer(ckpt, run):  # noqa: F811
    file = next((run / "step9").glob("*rank_1*optim_states.pt"))
    file.write_bytes(file.read_bytes()[:-100])
    status, out, _ = ckpt("verify", run)
    assert status == 1 and file.name in out


def test_reshard_into_the_folder_of_the_run_works_as_it_is_printed(ckpt, run, tmp_path):  # noqa: F811
    status, said, _ = ckpt("reshard", run, "-o", run, "--world-size", 3, "--new-tag", "moved")
    assert status == 0 and "latest names step9, and latest_universal uni; the first is taken" in said
    assert (run / "latest").read_text() == "moved"
    assert ckpt("export", run, "-o", tmp_path / "out")[0] == 0
    assert same(exported(tmp_path / "out"), doubled())


def test_the_command_that_a_checkpoint_of_stage_0_is_refused_with_exports_it(ckpt, tmp_path):  # noqa: F811
    folder = tmp_path / "run" / "global_step1"
    folder.mkdir(parents=True)
    (tmp_path / "run" / "latest").write_text(folder.name)
    content = {"module": OrderedDict(inputs.weights()), "ds_version": "0.19.8", "global_steps": 1}
    torch.save(content, folder / "mp_rank_00_model_states.pt")
    status, _, err = ckpt("export", tmp_path / "run", "-o", tmp_path / "out")
    assert status == 2 and "its weights are whole: zeromuon ckpt export" in err
    words = shlex.split(err[err.index("zeromuon ckpt ") :].splitlines()[0])
    assert ckpt(*words[2:], "-o", tmp_path / "out")[0] == 0
    assert same(exported(tmp_path / "out"), inputs.weights())
