"""Whose a run folder is: one run at a time, a name of its own for each, and what cannot be written is said in a line."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import types
from pathlib import Path

import pytest

from tests.python.commands.finetune.test_runs import options
from zeromuon.commands import cli
from zeromuon.commands.finetune import data, launch, run_folder, worker
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


INPUTS = types.SimpleNamespace(text_sha256="a", tokens_sha256="b")  # of a Prepared


def test_notes_of_the_inputs_that_are_damaged_are_named(settings, tmp_path):
    folder = run_folder.RunFolder(tmp_path)
    ill = (
        '{"config": [], "text_sha256": "a"}',
        '{"config": {}, "text_sha256": 1}',
        '{"config": {}, "model_config": 1}',
    )
    for content in ("{", "[]", "{}", "1", "[" * 100_000, *ill):
        folder.inputs.write_text(content)
        with pytest.raises(ValueError, match="inputs.json: damaged .* remove it to go on"):
            worker.require_same_inputs(folder, None, INPUTS, settings)


def test_a_model_or_tokenizer_that_changed_during_a_run_is_named(settings, masked_model, tmp_path):
    """Before: only text and configuration were compared, and the run went on with other numbers."""
    model = tmp_path / "model"
    shutil.copytree(masked_model, model)
    settings, folder = dataclasses.replace(settings, model=str(model)), run_folder.RunFolder(tmp_path)
    rank_0 = types.SimpleNamespace(rank=0, sum=list)
    worker.require_same_inputs(folder, rank_0, INPUTS, settings)  # notes them
    worker.require_same_inputs(folder, rank_0, INPUTS, settings)
    other_tokens = types.SimpleNamespace(text_sha256="a", tokens_sha256="c")
    with pytest.raises(ValueError, match=f"found changes in the tokenizer of {model}; take them back"):
        worker.require_same_inputs(folder, rank_0, other_tokens, settings)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "hidden_dropout_prob": 0.4}))
    with pytest.raises(ValueError, match=r"found changes in .*/config.json \(hidden_dropout_prob\)"):
        worker.require_same_inputs(folder, rank_0, INPUTS, settings)


def test_tokens_have_the_digest_of_their_order_and_of_no_other():
    digests = {data.tokens_sha256(data.Corpus(*parts)) for parts in (([1, 2], [3]), ([2, 1], [3]), ([1, 2], [4]))}
    assert len(digests) == 3


def test_an_older_zeromuon_that_noted_less_is_gone_on_from(settings, tmp_path):
    folder = run_folder.RunFolder(tmp_path)
    config = json.loads(Path(settings.config).read_text())
    folder.inputs.write_text(json.dumps({"text_sha256": "a", "config": config}))
    alone = types.SimpleNamespace(rank=0, sum=list)
    assert worker.require_same_inputs(folder, alone, INPUTS, settings) == "", "which run it is was not noted"


def test_a_run_has_a_name_of_its_own_and_settings_that_were_changed_in_its_file_are_named(settings, tmp_path):
    """Before: a seed that was changed in run.json gave other masks from there on, without a word."""
    folder, other = run_folder.RunFolder(tmp_path / "a"), run_folder.RunFolder(tmp_path / "b")
    alone = types.SimpleNamespace(rank=0, sum=list)
    for one in (folder, other):
        one.path.mkdir()
    name = worker.require_same_inputs(folder, alone, INPUTS, settings)
    assert name and worker.require_same_inputs(folder, alone, INPUTS, settings) == name
    assert worker.require_same_inputs(other, alone, INPUTS, settings) not in ("", name)
    for change in ({"seed": 5}, {"seq_len": 32}, {"steps": 9}):
        changed = dataclasses.replace(settings, **change)
        with pytest.raises(ValueError, match=rf"found changes in .*run.json \({next(iter(change))}\); take them back"):
            worker.require_same_inputs(folder, alone, INPUTS, changed)


@pytest.mark.parametrize("name", launch.MOST)
def test_numbers_that_no_run_can_have_are_refused_before_anything_else(settings, tmp_path, name):
    """Before: OverflowError from the schedule of the rates, and `ckpt reshard --world-size 0` as the remedy for 0 ranks."""
    folder = run_folder.RunFolder(tmp_path / "run")
    launch.prepare_start(folder, settings)[0].close()
    for value in (10**4000, launch.MOST[name] + 1, *((0, -2) if name != "seed" else (-(10**20),))):
        with pytest.raises(ValueError, match=rf"^--{name.replace('_', '-')} .*: expected at (least|most) "):
            launch.check(dataclasses.replace(settings, **{name: value}))
        with pytest.raises(ValueError, match=rf"^--{name.replace('_', '-')} .*: expected at (least|most) "):
            with pytest.MonkeyPatch.context() as patched:
                changed = dataclasses.replace(settings, **{name: value})
                patched.setattr(Settings, "load", staticmethod(lambda path: changed))
                launch.prepare_resume(folder, {})


def test_a_device_as_data_is_said_to_be_one():
    with pytest.raises(ValueError, match="--data /dev/zero: expected a text file or a folder, found a device"):
        data.check_text(Path("/dev/zero"))


ILL = ("", "{", "{}", "[]", "1", "null", "[" * 100_000, '{"state": "running"}', '{"state": 1, "step": 2}')


@pytest.mark.parametrize("content", [*ILL, '{"state": "running", "step": null}', '{"state": "other", "step": 2}'])
def test_a_status_that_is_damaged_is_that_of_a_run_that_has_not_begun(tmp_path, content):
    folder = run_folder.RunFolder(tmp_path)
    folder.status_file.write_text(content)
    assert folder.status() == {"state": run_folder.FAILED, "step": 0}


def test_lines_of_the_metrics_that_are_none_are_left_out(tmp_path):
    folder = run_folder.RunFolder(tmp_path)
    whole = [{"step": 0, "held_out_loss": 3.0}, {"step": 1, "loss": 2.5, "seconds": {}, "optimizer_wall_seconds": 0.1}]
    ill = [{"step": 0}, {"step": "one", "loss": 1.0}, {"step": True, "loss": 1.0}, {"step": 2, "loss": None}]
    ill += [{"step": 2, "loss": 1.0, "seconds": seconds} for seconds in (None, [], {"forward": "x"})]
    for entry in (*whole, *ill):
        folder.append_metric(entry)
    assert folder.read_metrics() == whole


@pytest.mark.parametrize(
    "change",
    [{"steps": None}, {"ranks": "2"}, {"model": 5}, {"overrides": "a=1"}, {"overrides": [1]}, {"verify": 1}, {"lr": 1}],
)
def test_settings_of_another_type_are_named(settings, tmp_path, change):
    file = tmp_path / "run.json"
    file.write_text(json.dumps({**dataclasses.asdict(settings), **change}))
    if change == {"lr": 1}:
        assert Settings.load(file) == settings, "an unknown field is another version's"
        return
    with pytest.raises(ValueError, match=f"run.json: expected the settings of a run, found {next(iter(change))} "):
        Settings.load(file)


@pytest.mark.parametrize("content", ["[]", "1", "[" * 100_000, "{}"])
def test_settings_that_are_none_are_named(tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(ValueError, match="run.json: expected the settings of a run, found "):
        Settings.load(tmp_path / "run.json")


def test_a_folder_in_the_place_of_latest_is_named_before_a_rank_is_started(settings, tmp_path):
    """Before: the run trained to its next save and asked there for room on the disk."""
    folder = run_folder.RunFolder(tmp_path / "run")
    with launch.prepare_start(folder, settings)[0]:
        (folder.checkpoints / "latest").mkdir(parents=True)
        with pytest.raises(ValueError, match="latest: expected a file with the name of a checkpoint, found a folder"):
            launch.prepare_resume(folder, {})


KILLED = """
Root Cause (first observed failure):
[0]:
  time      : 2026-01-01_00:00:00
  host      : here
  rank      : 1 (local_rank: 1)
  exitcode  : -9 (pid: 123)
  error_file: <N/A>
  traceback : Signal 9 (SIGKILL) received by PID 123
"""


def test_the_rank_that_a_signal_ended_first_is_told_by_the_log_of_torchrun():
    assert launch.killed_rank(KILLED).startswith("rank 1 was ended by SIGKILL: the system does that when memory")
    assert launch.killed_rank(KILLED.replace("-9", "-11")) == "rank 1 was ended by SIGSEGV"
    survivor = KILLED.replace("-9", "1 ").replace("rank      : 1", "rank      : 0")
    assert launch.killed_rank(survivor) == "" == launch.killed_rank("")
    failures = KILLED.replace("Root Cause (first observed failure)", "Failures")
    assert launch.killed_rank(failures + survivor).startswith("rank 1 was ended by SIGKILL"), "both ended at once"
    assert launch.killed_rank(failures.replace("-9", "-15") + survivor) == "", "torchrun ended it"
    assert launch.killed_rank(failures + KILLED.replace("-9", "-15")).startswith("rank 1 was ended by SIGTERM")


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
