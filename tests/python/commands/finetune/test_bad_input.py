"""Each bad input is refused with a message that names it and the remedy, before anything is written."""

from __future__ import annotations

import json
import struct

import pytest

from zeromuon.commands import cli
from zeromuon.ranks import machine


@pytest.fixture
def stage_3(tmp_path):
    """Writes a configuration with the given changes and returns its path."""

    def write(**changes):
        config = {
            "optimizer": {"type": "ZeroMuon", "params": {"lr": 0.01}},
            "zero_optimization": {"stage": 3},
            **changes,
        }
        file = tmp_path / "config.json"
        file.write_text(json.dumps(config))
        return str(file)

    return write


@pytest.fixture
def refused(capsys, tmp_path, monkeypatch):
    """Runs the command, which must exit with 2 and write no run folder; returns its message."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        assert cli.main(["finetune", *map(str, arguments)]) == 2
        assert not (tmp_path / "runs").exists() and not (tmp_path / "out").exists()
        return capsys.readouterr().err

    return run


def expect(message: str, *parts: str) -> None:
    for part in parts:
        assert part in message, f"{part!r} is missing in {message!r}"


def test_a_missing_model_is_named(refused, text_file, tmp_path):
    expect(
        refused("--model", tmp_path / "nowhere", "--data", text_file),
        "nowhere",
        "found nothing there",
        "check the path",
    )


def test_a_trace_file_that_cannot_be_written_is_refused(refused, masked_model, text_file, tmp_path):
    for file in (tmp_path / "nowhere" / "step.json", tmp_path):
        expect(
            refused("--model", masked_model, "--data", text_file, "--trace", file),
            f"--trace {file}",
            "a folder that exists",
        )


def test_an_empty_model_folder_is_refused(refused, text_file, tmp_path):
    (tmp_path / "empty").mkdir()
    expect(refused("--model", tmp_path / "empty", "--data", text_file), "empty folder", "download")


def test_a_file_as_model_is_refused(refused, text_file):
    expect(refused("--model", text_file, "--data", text_file), "found a file", "give its folder")


def test_a_folder_without_config_is_not_a_model(refused, text_file):
    expect(
        refused("--model", text_file.parent, "--data", text_file),
        "config.json",
        "words.txt",
        "not a Hugging Face model folder",
    )


def test_a_weight_file_that_is_a_pointer_is_refused(refused, masked_model, text_file, tmp_path):
    folder = copy_of(masked_model, tmp_path / "pointer")
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    expect(refused("--model", folder, "--data", text_file), "model.safetensors", "git-lfs pointer", "download it again")


def test_a_model_without_weights_is_refused(refused, masked_model, text_file, tmp_path):
    folder = copy_of(masked_model, tmp_path / "bare")
    (folder / "model.safetensors").unlink()
    expect(refused("--model", folder, "--data", text_file), "expected weights", "found none")


def copy_of(model, folder):
    folder.mkdir()
    for file in model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def test_missing_data_is_named(refused, masked_model, tmp_path):
    expect(refused("--model", masked_model, "--data", tmp_path / "none.txt"), "none.txt", "found nothing there")


def test_empty_data_is_refused(refused, masked_model, tmp_path):
    (tmp_path / "empty.txt").touch()
    expect(refused("--model", masked_model, "--data", tmp_path / "empty.txt"), "empty.txt", "found 0 bytes")


def test_a_folder_without_files_is_refused(refused, masked_model, tmp_path):
    (tmp_path / "texts").mkdir()
    expect(refused("--model", masked_model, "--data", tmp_path / "texts"), "texts", "found none")


@pytest.mark.parametrize("content", [b"text\0more", b"caf\xe9 au lait"])
def test_data_that_is_not_text_is_refused_with_the_offset(refused, masked_model, tmp_path, content):
    (tmp_path / "data.bin").write_bytes(content)
    expect(
        refused("--model", masked_model, "--data", tmp_path / "data.bin"), "data.bin", "expected UTF-8 text", "offset"
    )


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_other_stages_than_3_are_refused(refused, masked_model, text_file, stage_3, stage):
    config = stage_3(zero_optimization={"stage": stage})
    expect(refused("--model", masked_model, "--data", text_file, "--config", config), f"stage is {stage}", "expected 3")


def test_a_misspelt_optimizer_type_is_refused(refused, masked_model, text_file, stage_3):
    config = stage_3(optimizer={"type": "zeromuon"})
    expect(
        refused("--model", masked_model, "--data", text_file, "--config", config), '"zeromuon"', 'expected "ZeroMuon"'
    )


def test_a_negative_learning_rate_is_refused(refused, masked_model, text_file):
    expect(refused("--model", masked_model, "--data", text_file, "--lr", "-1"), "lr is -1.0", "not negative")


def test_a_batch_size_that_contradicts_the_configuration_is_refused(refused, masked_model, text_file, stage_3):
    config = stage_3(train_micro_batch_size_per_gpu=4)
    message = refused("--model", masked_model, "--data", text_file, "--config", config)
    expect(message, "train_micro_batch_size_per_gpu is 4", "8 by --batch", '"auto"')


def test_a_configuration_that_is_not_json_is_refused(refused, masked_model, text_file):
    expect(refused("--model", masked_model, "--data", text_file, "--config", text_file), "expected JSON", "words.txt")


def test_an_override_without_a_value_is_refused(refused, masked_model, text_file):
    expect(refused("--model", masked_model, "--data", text_file, "--set", "optimizer"), "expected KEY=VALUE")


@pytest.mark.parametrize(
    "assignment, key, nearest",
    [
        ("lr=1", "lr", None),
        ("gradient_cliping=1", "gradient_cliping", "gradient_clipping"),
        ("optimizer.param.lr=1", "optimizer.param", "params"),
        ("optimizer.params.nestrov=true", "optimizer.params.nestrov", "nesterov"),
        ("scheduler.parms.warmup_num_steps=3", "scheduler.parms", "params"),
    ],
)
def test_an_override_that_nobody_would_read_is_refused(refused, masked_model, text_file, assignment, key, nearest):
    message = refused("--model", masked_model, "--data", text_file, "--set", assignment)
    expect(message, f"--set {assignment}: {key} is no key that is read", f'did you mean "{nearest}"' if nearest else "")


def test_too_little_memory_is_refused_with_the_plan(refused, masked_model, text_file, monkeypatch):
    monkeypatch.setattr(machine, "available_memory_bytes", lambda: 1 << 30)
    message = refused("--model", masked_model, "--data", text_file)
    expect(message, "1.0 GiB are available", "optimizer state", "fewer ranks")


def test_a_model_larger_than_memory_is_refused_from_its_header_alone(refused, masked_model, text_file, tmp_path):
    folder = copy_of(masked_model, tmp_path / "huge")
    numel = 1 << 40
    header = json.dumps({"w": {"dtype": "U8", "shape": [numel], "data_offsets": [0, numel]}}).encode()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + numel)  # sparse: takes no disk
    expect(refused("--model", folder, "--data", text_file), "needs about", "are available")


def test_a_weight_file_cut_short_is_refused(refused, masked_model, text_file, tmp_path):
    folder = copy_of(masked_model, tmp_path / "cut")
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-8])
    expect(refused("--model", folder, "--data", text_file), "cut short", str(len(content)))


def test_a_count_below_one_is_refused(refused, masked_model, text_file):
    expect(refused("--model", masked_model, "--data", text_file, "--steps", "0"), "--steps 0", "at least 1")


def test_resume_without_a_run_is_refused(refused, tmp_path):
    expect(refused("--resume"), "unfinished run under runs/", "--out")
    expect(refused("--resume", "--out", tmp_path), "run.json", "leave --resume out and name a new one")


def test_a_folder_with_other_things_is_not_overwritten(capsys, masked_model, text_file, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    assert cli.main(["finetune", "--model", str(masked_model), "--data", str(text_file), "--out", str(tmp_path)]) == 2
    assert "expected a new or empty folder" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_model_and_data_must_be_named(refused, masked_model):
    expect(refused("--model", masked_model), "--data is missing", "--demo")


def test_sequences_longer_than_the_positions_of_the_model_are_refused(refused, masked_model, text_file):
    expect(
        refused("--model", masked_model, "--data", text_file, "--seq-len", "100000"),
        "--seq-len 100000",
        "expected at most",
    )
