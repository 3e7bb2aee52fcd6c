"""Whose a run folder is: one run at a time, a name of its own for each, and what cannot be written is said in a line."""

from __future__ import annotations

import subprocess

import pytest

from tests.python.commands.finetune.test_runs import options
from zeromuon.commands import cli
from zeromuon.commands.finetune import launch, run_folder, worker
from zeromuon.commands.finetune.settings import Settings


@pytest.fixture
def settings(masked_model, text_file) -> Settings:
    return cli.new_settings({"model": str(masked_model), "data": str(text_file), "steps": 2})


def test_two_runs_of_one_second_have_a_folder_each(settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_folder.time, "strftime", lambda form: "20260101-000000")
    first = run_folder.new_folder(None, "model")
    with launch.prepare_start(first, settings)[0]:
        second = run_folder.new_folder(None, "model")
        assert second.path == first.path.with_name(f"{first.path.name}-2")


def test_who_loses_the_race_for_a_folder_is_told(settings, tmp_path):
    from zeromuon.base import durable

    folder = run_folder.RunFolder(tmp_path / "run")
    with launch.prepare_start(folder, settings)[0]:
        with pytest.raises(durable.InUse, match="in use by"):
            launch.prepare_start(folder, settings)
        with pytest.raises(durable.InUse, match="in use by"):
            launch.resume(folder, {})
    with pytest.raises(ValueError, match="expected no run there, found one"):
        launch.prepare_start(folder, settings)


def test_a_run_whose_checkpoints_are_gone_says_that_it_begins_again(settings, tmp_path):
    folder = run_folder.RunFolder(tmp_path / "run")
    with launch.prepare_start(folder, settings)[0]:
        assert launch.prepare_resume(folder, {})[1] == [], "nothing was saved yet"
        folder.set_status(run_folder.INTERRUPTED, 6)
        assert "the run was at step 6: it begins again at step 0" in launch.prepare_resume(folder, {})[1][0]


def test_notes_of_the_inputs_that_are_damaged_are_named(settings, tmp_path):
    folder = run_folder.RunFolder(tmp_path)
    for content in ("{", "[]", "{}"):
        folder.inputs.write_text(content)
        with pytest.raises(ValueError, match="inputs.json: damaged .* remove it to go on"):
            worker.require_same_inputs(folder, None, "", settings)


def test_a_second_resume_of_a_live_run_names_the_first(command, masked_model, text_file, tmp_path):
    out = tmp_path / "run"
    first = command(*options(masked_model, text_file, out))
    first.wait_for(lambda: (out / "run.json").exists())
    status, output = command("--resume", "--out", out).finish()
    assert status == 2 and f"{out}: in use by process " in output and "zeromuon" in output, output


@pytest.mark.parametrize("words", [["finetune", "--demo"], ["ckpt", "export", "W"], ["ckpt", "universal", "RUN"]])
def test_a_disk_that_may_not_be_written_is_a_line_and_no_traceback(words, disk, masked_model, capsys, tmp_path):
    from tests.python.ckpt import command_inputs

    subprocess.run(["mount", "-o", "remount,ro", str(disk.folder)], check=True)
    given = {"W": masked_model / "model.safetensors", "RUN": tmp_path / "saved"}
    if "RUN" in words:
        command_inputs.zero3(tmp_path / "saved")
    words = [str(given.get(word, word)) for word in words]
    if words[0] == "finetune":
        words = ["finetune", "--model", str(masked_model), "--demo"]
    status = cli.main([*words, "-o" if words[0] == "ckpt" else "--out", str(disk.folder / "out")])
    said = capsys.readouterr().err.strip()
    assert status == (2 if words[0] == "ckpt" else 1) and len(said.splitlines()) == 1, said
    assert said.startswith("error: ") and "ead-only" in said and str(disk.folder) in said
