"""`zeromuon finetune` and its checkpoints: going on after reshard, and the exported model's logits."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest

from tests.python.commands.finetune.conftest import (  # noqa: F401  (fixtures)
    command,
    masked_model,
    no_command_outlives_its_test,
    text_file,
)
from zeromuon import ckpt
from zeromuon.commands import cli

STEPS, SAVED = 6, 3


@pytest.fixture(scope="module")
def model_without_dropout(masked_model, tmp_path_factory) -> Path:
    """Its gradients do not depend on the random state, of which a rank that a reshard adds has none of its own."""
    folder = tmp_path_factory.mktemp("model") / "bert"
    shutil.copytree(masked_model, folder)
    config = json.loads((folder / "config.json").read_text())
    config.update(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def run(command, model_without_dropout, text_file, tmp_path_factory) -> Path:
    """A finished run of 2 ranks, with checkpoints of the middle and of the end."""
    out = tmp_path_factory.mktemp("run") / "run"
    sizes = ["--ranks", 2, "--batch", 4, "--seq-len", 16, "--steps", STEPS, "--save-every", SAVED]
    status, output = command(
        "--model",
        model_without_dropout,
        "--data",
        text_file,
        "--out",
        out,
        *sizes,
        "--set",
        "bf16.enabled=false",
        "--verify",
    ).finish()
    assert status == 0, output
    return out


@pytest.fixture
def halfway(run, tmp_path) -> Path:
    """A copy of the run as it was after half of the steps."""
    folder = tmp_path / "halfway"
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns(f"step{STEPS}", "model", "result.json"))
    (folder / "checkpoints" / "latest").write_text(f"step{SAVED}")
    (folder / "status.json").write_text(json.dumps({"state": "interrupted", "step": SAVED}))
    return folder


def losses(folder: Path) -> list[float]:
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [entry["loss"] for entry in entries if "loss" in entry]


def test_a_run_goes_on_bit_for_bit_after_reshard_to_three_to_one_and_back_to_two_ranks(command, run, halfway, tmp_path):
    ckpt.reshard(halfway / "checkpoints", tmp_path / "three", 3)
    ckpt.reshard(tmp_path / "three", tmp_path / "one", 1, sub_group_size=500)
    shutil.rmtree(halfway / "checkpoints")
    ckpt.reshard(tmp_path / "one", halfway / "checkpoints", 2)
    status, output = command("--resume", "--out", halfway).finish()
    assert status == 0, output
    assert f"going on from the checkpoint of step {SAVED}" in output
    assert losses(halfway) == losses(run) and len(losses(run)) == STEPS
    weights = [(folder / "model" / "model.safetensors").read_bytes() for folder in (halfway, run)]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("ranks, batch", [pytest.param(3, 4, marks=pytest.mark.full), (1, 8)])
def test_another_number_of_ranks_is_refused_with_the_command_that_makes_it_work(
    command, run, halfway, capsys, ranks, batch
):
    given = ["finetune", "--resume", "--out", str(halfway), "--ranks", str(ranks), "--batch", str(batch)]
    assert cli.main(given) == 2
    error = capsys.readouterr().err.strip()
    assert f"expected a checkpoint of {ranks} rank" in error and "found one of 2" in error
    assert json.loads((halfway / "run.json").read_text())["ranks"] == 2
    reshard = shlex.split(error.partition("with: ")[2])
    assert reshard[:2] == ["zeromuon", "ckpt"] and cli.main(reshard[1:]) == 0
    assert cli.main(["finetune", "--resume", "--out", str(halfway)]) == 2
    assert f"say --ranks {ranks}" in capsys.readouterr().err
    status, output = command(*given[1:]).finish()
    assert status == 0, output
    assert f"{ranks} ranks" in output and f"going on from the checkpoint of step {SAVED}" in output
    assert "the same logits bit for bit" in output
    assert losses(halfway)[:SAVED] == losses(run)[:SAVED] and len(losses(halfway)) == STEPS
    found = ckpt.inspect(halfway / "checkpoints")
    assert (found["world_size"], found["tag"]) == (ranks, f"step{STEPS}")


def test_other_options_stay_refused_when_the_number_of_ranks_changes(run, halfway, capsys):
    assert cli.main(["finetune", "--resume", "--out", str(halfway), "--ranks", "1", "--seed", "5"]) == 2
    assert "seed is 0 there and 5 here" in capsys.readouterr().err
    assert cli.main(["finetune", "--resume", "--out", str(halfway), "--batch", "2"]) == 2
    assert "batch is 4 there and 2 here" in capsys.readouterr().err


def test_a_model_exported_from_the_checkpoint_has_the_logits_of_the_one_that_the_run_saved(run, tmp_path):
    import torch
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    ckpt.export(run / "checkpoints", tmp_path / "exported", config_from=run / "model")
    logits = []
    for folder in (run / "model", tmp_path / "exported"):
        model, info = AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"], info
        ids = AutoTokenizer.from_pretrained(folder)(
            "the shard moves [MASK] between rank and owner", return_tensors="pt"
        )
        with torch.no_grad():
            logits.append(model.eval()(input_ids=ids["input_ids"]).logits)
    assert logits[0].abs().sum() > 0 and torch.equal(*logits)


@pytest.mark.parametrize("changed", ["intermediate_size", "num_hidden_layers"])
@pytest.mark.parametrize("by", [-1, 1])
def test_the_config_of_another_model_is_refused_before_anything_is_written(run, tmp_path, capsys, changed, by):
    config = json.loads((run / "model" / "config.json").read_text())
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({**config, changed: config[changed] + by}))
    source, out = str(run / "checkpoints"), str(tmp_path / "out")
    for verb in (
        ["export", source, "-o", out, "--config-from", str(other)],
        ["convert-optimizer", source, "-o", out, "--to", "ZeroMuon", "--model", str(other)],
    ):
        assert cli.main(["ckpt", *verb]) == 2
        error = capsys.readouterr().err
        assert f"{other}: its config.json describes another model: " in error, error
        assert ".layer.0.intermediate.dense" in error if changed == "intermediate_size" else ".layer." in error, error
    assert not (tmp_path / "out").exists()


def test_the_exported_model_has_the_tensors_of_the_saved_one_bit_for_bit(run, tmp_path):
    ckpt.export(run / "checkpoints", tmp_path / "exported")
    found = ckpt.diff(tmp_path / "exported", run / "model")
    assert found["same"] or set(found["only_in_a"] + found["only_in_b"]) <= {
        "cls.predictions.decoder.weight",
        "cls.predictions.decoder.bias",
    }, found
    assert not found["differences"] and found["equal"] > 30
