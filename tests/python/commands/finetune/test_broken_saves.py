"""Saves of whole runs that are cut: ranks killed at an operation, disks that fill. What follows is a resume with the bits of a
run that nobody disturbed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import psutil
import pytest

from zeromuon.commands import cli

from tests.python.commands.finetune.short_runs import EVERY, STEPS, expect_to_go_on, options

# In each rank: counts what Python does below checkpoints/ (it is no time, so that moments repeat) from where it makes
# the folder of a step, and kills the rank there.
HOOK = """
import os, signal, sys
_mine = os.environ.get("RANK") == os.environ.get("TEST_KILLED_RANK")
if _mine and "TEST_UNDER" in os.environ:
    _under, _step = os.environ["TEST_UNDER"], os.environ["TEST_STEP"]
    _at, _done = int(os.environ["TEST_KILLED_AT"]), 0
    def _count(event, arguments):
        global _done
        if event not in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.listdir"):
            return
        path = str(arguments[0])
        if not path.startswith(_under):
            return
        if _done == 0 and not (event == "os.mkdir" and _step in path):
            return
        _done += 1
        if _done == _at:
            os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(_count)
"""


def hook_python(monkeypatch, folder: Path, text: str) -> None:
    """Every Python that starts from now on runs `text` first."""
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(text)
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(dict.fromkeys(paths)))


def interrupted_run(command, model: Path, text_file: Path, out: Path) -> Path:
    """A run that was asked to end after its first save, and saved once more; gives the folder of its checkpoints."""
    run = command(*options(model, text_file, out))
    run.interrupt_after(out, step=EVERY + 1)
    assert run.finish()[0] == 130
    return out / "checkpoints"


@pytest.fixture
def hooked(tmp_path, monkeypatch):
    """Sets the hook for the runs that follow, for the save of a step below a folder."""

    def set_hook(out: Path, rank: int, step: int, at: int) -> None:
        hook_python(monkeypatch, tmp_path / "hook", HOOK)
        given = {"UNDER": out / "checkpoints", "STEP": f"step{step}", "KILLED_RANK": rank, "KILLED_AT": at}
        for name, value in given.items():
            monkeypatch.setenv(f"TEST_{name}", str(value))

    yield set_hook


# (rank, step whose save it is, number of the operation) of kills that follow each other, each of a resume of the one before.
# A save has 30 operations of rank 0, 24 where none came before it, and 5 of rank 1. All files are there, if not on the disk,
# from rank 0's third on, and a resume goes on from them.
OFTEN = 2  # steps from save to save
KILLS = [
    [(0, 8, 13)],
    [(0, 2, 2), (0, 4, 6), (0, 6, 10), (0, 8, 14), (0, 10, 18), (0, 12, 22)],
    [(0, 2, 7), (1, 4, 2), (0, 6, 15), (0, 8, 19), (0, 10, 23), (0, 12, 27)],
    [(1, 2, 1), (0, 4, 17), (1, 6, 3), (0, 8, 24), (0, 10, 28), (0, 12, 3)],
    [(0, 2, 13), (0, 4, 21), (0, 6, 25), (1, 8, 4), (0, 10, 4), (0, 12, 8)],
    [(0, 2, 20), (0, 4, 26), (0, 6, 30), (0, 8, 5), (1, 10, 5), (0, 12, 12)],
]


def in_full_but_the_first(rows: list) -> list:
    return [pytest.param(row, marks=[pytest.mark.full] if i else [], id=str(i)) for i, row in enumerate(rows)]


@pytest.mark.parametrize("kills", in_full_but_the_first(KILLS))
def test_ranks_killed_at_operations_of_saves_cost_no_bit(
    command, masked_model, text_file, undisturbed, hooked, tmp_path, monkeypatch, kills
):
    out = tmp_path / "run"
    words = [*options(masked_model, text_file, out), "--save-every", OFTEN]
    for rank, step, at in kills:
        hooked(out, rank, step, at)
        status, output = command(*words).finish()
        assert status != 0, f"there is no operation {at} of rank {rank} in the save of step {step}: {output[-2000:]}"
        assert f"error: rank {rank} was ended by SIGKILL" in output, "and not what the other says of its connection"
        latest = out / "checkpoints" / "latest"
        if latest.exists():
            assert (latest.parent / latest.read_text() / "whole.json").exists(), "latest names what is whole"
        words = ["--resume", "--out", out]
    monkeypatch.delenv("TEST_UNDER")
    expect_to_go_on(command, out, undisturbed)


# In rank 1: stands still when it is about to write its optimizer states of the second save.
LATE = f"""
import os, signal, sys, threading, time

def _patch():
    while not hasattr(sys.modules.get("torch"), "load"):
        time.sleep(0.01)
    import torch
    save = torch.save
    def late(value, file, *rest, **given):
        if "step{2 * EVERY}" in str(file) and "optim" in str(file):
            os.kill(os.getpid(), signal.SIGSTOP)
        return save(value, file, *rest, **given)
    torch.save = late

if os.environ.get("RANK") == "1":
    threading.Thread(target=_patch, daemon=True).start()
"""


def has_a_stopped_child(pid: int) -> bool:
    for child in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # one that has just ended
            if child.status() == psutil.STATUS_STOPPED:
                return True
    return False


def test_a_save_that_one_rank_has_not_finished_costs_no_bit_when_all_are_killed(
    command, masked_model, text_file, undisturbed, tmp_path, monkeypatch
):
    out = tmp_path / "run"
    with monkeypatch.context() as patched:
        hook_python(patched, tmp_path / "late", LATE)
        run = command(*options(masked_model, text_file, out))
    run.wait_for(lambda: has_a_stopped_child(run.process.pid))
    time.sleep(3)  # the other rank does what it would do without waiting
    run.end()
    expect_to_go_on(command, out, undisturbed)


@pytest.mark.full
def test_a_torn_checkpoint_of_a_later_step_never_outlives_a_whole_one(
    command, masked_model, text_file, undisturbed, tmp_path
):
    out = tmp_path / "run"
    checkpoints = interrupted_run(command, masked_model, text_file, out)
    torn = checkpoints / f"step{10 * STEPS}"
    shutil.copytree(checkpoints / (checkpoints / "latest").read_text(), torn)
    for file in torn.iterdir():
        if "rank_1" in file.name or file.suffix == ".json":
            file.unlink()
    second = command("--resume", "--out", out)
    second.wait_for_step(out, 2 * EVERY + 1)
    second.end()
    expect_to_go_on(command, out, undisturbed)


@pytest.mark.full
def test_a_run_that_was_killed_after_its_last_step_has_one_line_a_step(
    command, masked_model, text_file, undisturbed, tmp_path
):
    out = tmp_path / "run"
    run = command(*options(masked_model, text_file, out))
    run.wait_for_step(out, STEPS, "held_out_loss")
    run.hold_the_ranks()
    run.end()
    expect_to_go_on(command, out, undisturbed)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    seen = [(line["step"], "held_out_loss" in line) for line in lines]
    assert sorted(set(seen)) == sorted(seen)


@pytest.mark.full
def test_what_the_run_did_not_write_stays_in_its_checkpoints(command, masked_model, text_file, undisturbed, tmp_path):
    out = tmp_path / "run"
    checkpoints = interrupted_run(command, masked_model, text_file, out)
    best = checkpoints / f"step{2 * EVERY}-best"
    shutil.copytree(checkpoints / (checkpoints / "latest").read_text(), best)
    (checkpoints / "steps.txt").write_text("mine")
    expect_to_go_on(command, out, undisturbed)
    assert any(best.iterdir()) and (checkpoints / "steps.txt").read_text() == "mine"


def test_a_terminal_that_is_closed_costs_no_step(command, masked_model, text_file, tmp_path):
    """The command is ended by the signal, and rank 0 finds nobody who reads what it prints."""
    out, (terminal, other) = tmp_path / "run", os.openpty()
    run = command(*options(masked_model, text_file, out), "--save-every", 1000, stdout=other, stderr=other)
    os.close(other)
    reader = threading.Thread(target=read_until_closed, args=(terminal,), daemon=True)
    reader.start()
    run.wait_for_step(out, EVERY + 1)
    run.process.send_signal(signal.SIGKILL)
    os.close(terminal)
    run.process.wait()
    deadline = time.monotonic() + 120
    while json.loads((out / "status.json").read_text())["state"] != "interrupted":
        assert time.monotonic() < deadline, "nothing was saved"
        time.sleep(0.1)
    assert (out / "checkpoints" / "latest").exists()


def read_until_closed(terminal: int) -> None:
    with contextlib.suppress(OSError):
        while os.read(terminal, 4096):
            pass


def fill(filler: Path, leave: int) -> None:
    """Takes all of the disk but for some bytes; what the file system needs itself is tried out."""
    for less in range(leave, leave + (4 << 20), 32 << 10):
        with open(filler, "wb") as file, contextlib.suppress(OSError):
            os.posix_fallocate(file.fileno(), 0, max(1, shutil.disk_usage(filler.parent).free - less))
            return
    raise AssertionError("the disk cannot be filled")


def torn_bytes(checkpoints: Path) -> int:
    """Of saves that were not finished: the next one writes over them."""
    torn = [folder for folder in checkpoints.glob("step*") if not (folder / "whole.json").exists()]
    return sum(file.stat().st_size for folder in torn for file in folder.iterdir())


# Of the bytes of one save, those for which there is room when the save begins. Disks that fill one after the other, each in
# the resume of the run before.
ROOM = [[9 / 20], *([i / 20 for i in range(20) if i != 9 and i % 3 == first] for first in range(3))]


@pytest.mark.parametrize("parts", in_full_but_the_first(ROOM))
def test_a_disk_that_fills_in_a_save_names_the_checkpoint_that_is_whole(
    command, masked_model, text_file, undisturbed, disk, parts
):
    saved = undisturbed / "checkpoints" / f"step{STEPS}"
    save_bytes = sum(file.stat().st_size for file in saved.iterdir())
    out, filler = disk.folder / "run", disk.folder / "filler"
    words = options(masked_model, text_file, out)
    for part in parts:
        begun = time.time()
        run = command(*words)
        run.wait_for_step(out, EVERY + 1, since=begun)
        fill(filler, leave=max(0, int(part * save_bytes) - torn_bytes(out / "checkpoints")))
        status, output = run.finish()
        assert status == 1, output
        assert "no space left on" in output and "while saving step" in output and "Traceback" not in output, output
        tag = (out / "checkpoints" / "latest").read_text()
        whole = json.loads((out / "checkpoints" / tag / "whole.json").read_text())
        assert f"step{whole['step']} is whole" in output
        filler.unlink()
        words = ["--resume", "--out", out]
    expect_to_go_on(command, out, undisturbed)


def cut_in_half(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def turn_a_bit(file: Path) -> None:
    """Of the weights and states, which are most of the file."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def take_that_of_another_step(file: Path) -> None:
    """And the other rank's, so that the ranks agree."""
    for name in (file.name, file.name.replace("rank_1_", "rank_0_")):
        shutil.copy(file.parents[1] / f"step{2 * EVERY}" / name, file.with_name(name))


def swap_with_the_other_rank(file: Path) -> None:
    other, kept = file.with_name(file.name.replace("rank_1_", "rank_0_")), file.with_name("kept")
    file.rename(kept)
    other.rename(file)
    kept.rename(other)


@pytest.fixture(scope="module")
def with_two_saves(command, masked_model, text_file, tmp_path_factory):
    """Gives the folder of a run that was asked to end and has two checkpoints, each time as it was then."""
    folder = tmp_path_factory.mktemp("two_saves")
    out, kept = folder / "run", folder / "kept"

    def restored() -> Path:
        if not kept.exists():
            first = command(*options(masked_model, text_file, out), "--keep-checkpoints", 2)
            first.interrupt_after(out, step=EVERY * 2 + 1)
            assert first.finish()[0] == 130
            shutil.copytree(out, kept, symlinks=True)
        shutil.rmtree(out)
        shutil.copytree(kept, out, symlinks=True)
        return out

    return restored


@pytest.mark.full
@pytest.mark.parametrize("spoil", [cut_in_half, turn_a_bit, take_that_of_another_step, swap_with_the_other_rank])
def test_a_checkpoint_that_was_damaged_later_is_named_with_the_way_back(command, undisturbed, with_two_saves, spoil):
    out = with_two_saves()
    latest = out / "checkpoints" / (out / "checkpoints" / "latest").read_text()
    spoil(next(latest.glob("zero_pp_rank_1_*optim_states.pt")))
    status, output = command("--resume", "--out", out).finish()
    assert status == 2 and f"{latest}: cannot be loaded" in output and "zeromuon ckpt verify" in output, output
    assert f"write step{2 * EVERY} into {out / 'checkpoints' / 'latest'} to go on from there" in output
    (out / "checkpoints" / "latest").write_text(f"step{2 * EVERY}")
    expect_to_go_on(command, out, undisturbed)


@pytest.mark.parametrize("room", range(9))
def test_an_export_whose_disk_fills_goes_on_with_resume_once_there_is_room(causal_model, disk, capsys, room):
    """room: KiB beside the weights, for the journal, config.json and tokenizer."""
    out, filler = disk.folder / "out", disk.folder / "filler"
    weights = causal_model / "model.safetensors"
    words = ["ckpt", "export", str(weights), "-o", str(out), "--config-from", str(causal_model)]
    fill(filler, leave=weights.stat().st_size + (room << 10))
    status = cli.main(words)
    said = capsys.readouterr().err
    filler.unlink()
    if status == 0:
        return
    if "; the weights are written: make room, then cp " in said:
        subprocess.run(said[said.index("cp ") :].strip(), shell=True, check=True)
    else:
        assert "No space left" in said and cli.main([*words, "--resume"]) == 0, said
    names = ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json")
    assert {path.name for path in out.iterdir()} >= set(names)
    for name in names[1:]:
        assert (out / name).read_bytes() == (causal_model / name).read_bytes()
    assert cli.main(["ckpt", "diff", str(out / names[0]), str(weights)]) == 0
