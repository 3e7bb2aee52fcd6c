"""Saving a run's checkpoints with a stand-in for the engine: killed before every operation, on disks of every size."""

from __future__ import annotations

import json
import os
import random
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import torch

from zeromuon import ckpt
from zeromuon.commands import cli
from zeromuon.commands.finetune import checkpoints, launch, saved
from zeromuon.commands.finetune.run_folder import RunFolder

from tests.python.commands.finetune.test_broken_saves import fill

NATIVE = Path(__file__).parents[2] / "ckpt" / "fixtures" / "zeromuon-0.1.0"
OPERATIONS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate"}


class One:
    rank, world_size = 0, 1

    def barrier(self):
        pass


class Engine:
    """Writes what DeepSpeed's would, one small piece after another."""

    def __init__(self, source: Path):
        self._source = source

    def save_checkpoint(self, folder, tag, client_state, save_latest):
        assert not save_latest
        target = Path(folder, tag)
        target.mkdir(exist_ok=True)
        for file in sorted(self._source.iterdir()):
            content = file.read_bytes()
            with open(target / file.name, "wb") as out:
                for begin in range(0, len(content), 1 << 12):
                    out.write(content[begin : begin + (1 << 12)])
                    out.flush()


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """The files of a checkpoint of one rank."""
    run = next(path for path in sorted(NATIVE.rglob("latest")) if len(list(path.parent.rglob("*model_states.pt"))) == 1)
    folder = run.parent / run.read_text().strip()
    assert ckpt.inspect(run.parent)["world_size"] == 1
    return folder


def save(source: Path, folder: Path, step: int, keep: int = 1) -> None:
    checkpoints.save(Engine(source), One(), folder, step, 0)
    saved.drop_old(folder, keep)


def killed_before(operation: int, work) -> bool:
    """Whether `work`, in a process of its own, was killed before that operation on files; else it has ended."""
    pid = os.fork()
    if pid == 0:
        count, fsync = 0, os.fsync

        def note(event, arguments=()):
            nonlocal count
            if event not in OPERATIONS or event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
                return
            count += 1
            if count == operation:
                os._exit(9)

        def counted_fsync(descriptor):
            note("os.truncate")
            fsync(descriptor)

        os.fsync = counted_fsync
        sys.addaudithook(note)
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, 9)
    return status == 9


def same_files(a: Path, b: Path) -> bool:
    return all((b / file.name).read_bytes() == file.read_bytes() for file in a.iterdir())


@pytest.mark.parametrize("again", [False, True], ids=["a new tag", "a tag that exists"])
def test_killed_before_any_operation_of_a_save_a_whole_checkpoint_is_left_and_chosen(source, tmp_path, again):
    """As a kill: also of what follows it, `latest` and the markers say the truth."""
    before = tmp_path / "before"
    save(source, before, 4)
    if again:
        save(source, before, 8, keep=2)
    operation, left = 0, True
    while left:
        operation += 1
        folder = tmp_path / "now"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(before, folder)
        left = killed_before(operation, lambda: save(source, folder, 8))
        chosen, _ = saved.choose(folder, 1)
        assert chosen is not None and same_files(source, chosen), operation
        save(source, folder, 12)
        assert [path.name for path in folder.iterdir() if path.is_dir()] == ["step12"]
    assert operation > 10


class TorchEngine:
    """Writes two files as DeepSpeed does, by torch.save."""

    def save_checkpoint(self, folder, tag, client_state, save_latest):
        target = Path(folder, tag)
        target.mkdir(exist_ok=True)
        for kind in ("model", "optim"):
            state = {str(i): torch.full((size,), 1.0) for i, size in enumerate((3, 1000, 7, 20_000))}
            torch.save({"client": client_state, **state}, target / f"zero_pp_rank_0_mp_rank_00_{kind}_states.pt")


@pytest.mark.parametrize("begin", range(0, 256, 32))
def test_whatever_torch_says_of_a_full_disk_the_save_names_it_and_what_is_whole(disk, begin):
    """begin: KiB that are left, and every KiB from there. torch.save tells it in more ways than one."""
    folder, filler, said = disk.folder / "checkpoints", disk.folder / "filler", set()
    checkpoints.save(TorchEngine(), One(), folder, 4, 0)
    for left in range(begin, begin + 32):
        fill(filler, leave=left << 10)
        try:
            checkpoints.save(TorchEngine(), One(), folder, 8, 0)
        except checkpoints.SaveFailed as error:
            assert str(error).startswith(f"no space left on {folder} while saving step 8; step4 is whole; make room"), (
                error
            )
            said.add(type(error.__cause__).__name__)
        filler.unlink()
        shutil.rmtree(folder / "step8", ignore_errors=True)
        (folder / saved.LATEST).write_text("step4")
    assert said or begin >= 128, "no save failed"


def test_damage_to_a_file_is_seen_or_does_not_count(tmp_path):
    """A bit that is turned, and a file that is cut; torch.load has another error for each, or none."""
    checkpoints.save(TorchEngine(), One(), tmp_path, 4, 0)
    file = tmp_path / "step4" / "zero_pp_rank_0_mp_rank_00_optim_states.pt"
    good, dice, seen = file.read_bytes(), random.Random(0), 0
    expected = torch.load(file, weights_only=False)
    for at in (
        *range(0, 1500, 7),
        *(dice.randrange(len(good)) for _ in range(300)),
        *range(len(good) - 1500, len(good), 11),
    ):
        spoilt = bytearray(good)
        spoilt[at] ^= 1 << dice.randrange(8)
        file.write_bytes(spoilt)
        if saved.damage(tmp_path / "step4", 0):
            seen += 1
        else:
            try:
                got = torch.load(file, weights_only=False)
            except RuntimeError as error:  # of the zip's own fields
                assert any(words in str(error) for words in checkpoints.TORCH_CANNOT_READ), error
                continue
            assert all(torch.equal(got[name], value) for name, value in expected.items() if name != "client"), at
    assert seen > 400
    encrypted = bytearray(good)
    encrypted[good.rindex(b"PK\x01\x02") + 8] |= 1  # of which zipfile says RuntimeError
    file.write_bytes(encrypted)
    assert "optim_states.pt is damaged" in saved.damage(tmp_path / "step4", 0)
    for end in range(0, len(good), 997):
        file.write_bytes(good[:end])
        assert "optim_states.pt is damaged" in saved.damage(tmp_path / "step4", 0), end
    file.write_bytes(good)
    assert saved.damage(tmp_path / "step4", 0) == ""


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_what_ends_a_rank_on_a_full_disk_is_told_as_that(disk):
    """As of safetensors, when the final model does not fit. Before: "SafetensorError: Error while serializing ..."."""
    error = RuntimeError("Error while serializing: I/O error\nmore")
    assert checkpoints.with_room_considered(error, disk.folder) is error
    fill(disk.folder / "filler", leave=0)
    told = checkpoints.with_room_considered(error, disk.folder / "run")
    assert isinstance(
        told, checkpoints.SaveFailed
    ) and f"no space left on {disk.folder}/run (RuntimeError: Error" in str(told)
    wrong = ValueError("bad input")
    assert checkpoints.with_room_considered(wrong, disk.folder) is wrong


def of_another_step(file: Path) -> None:
    """The same tensors with other values, as another step or run saves them."""
    content = torch.load(file, weights_only=False)
    torch.save({**content, "other": 1}, file)


@pytest.mark.parametrize("kind", ["model", "optim"])
def test_a_file_of_another_step_or_run_is_named_by_all_that_read_it(source, tmp_path, kind):
    """Before: a resume, verify and export took it where all ranks' files of a kind were exchanged."""
    save(source, tmp_path, 4)
    tag = tmp_path / "step4"
    assert saved.damage(tag, 0) == "" and not ckpt.verify(tmp_path)["problems"]
    file = next(tag.glob(f"*{kind}_states.pt"))
    of_another_step(file)
    words = "of another step, rank or run"
    assert saved.damage(tag, 0) == f"{file.name} is not the file that was saved there: it is {words}"
    (problem,) = ckpt.verify(tmp_path)["problems"]
    assert problem["file"] == str(file) and words in problem["got"] and "whole.json" in problem["remedy"]
    for verb in (ckpt.inspect, lambda run: ckpt.export(run, tmp_path / "out")):
        with pytest.raises(ckpt.FormatError, match=words):
            verb(tmp_path)
    assert not (tmp_path / "out").exists()
    (tag / "whole.json").unlink()
    assert saved.damage(tag, 0) == "" and not ckpt.verify(tmp_path)["problems"], "nothing is known of it"


def test_a_folder_whose_name_is_no_utf_8_has_seals_too(source, tmp_path):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    save(source, folder, 4)
    assert saved.choose(folder, 1) == (folder / "step4", "") and saved.damage(folder / "step4", 0) == ""
    of_another_step(next((folder / "step4").glob("*optim_states.pt")))
    assert "another step" in saved.damage(folder / "step4", 0)


@pytest.mark.parametrize("kind", ["model", "optim"])
def test_a_file_of_another_rank_is_seen_without_a_seal(source, tmp_path, kind):
    """As in what `zeromuon ckpt reshard` wrote, which has no marker."""
    shutil.copytree(source, tmp_path / "step4")
    file = next((tmp_path / "step4").glob(f"*{kind}_states.pt"))
    other = file.with_name(file.name.replace("rank_0_", "rank_1_"))
    file.rename(other)
    assert saved.damage(tmp_path / "step4", 1) == f"{other.name} was written as {file.name}: it is of another rank"


ILL_MARKERS = ("", "{", "[]", "null", '{"ranks": null}', '{"ranks": "two"}', '{"ranks": true, "saved_at": "x"}')


@pytest.mark.parametrize("content", [*ILL_MARKERS, '{"files": []}', '{"files": {"a": 1}}', "[" * 100_000])
def test_a_marker_that_is_damaged_says_nothing_and_the_checkpoint_is_gone_on_from(source, tmp_path, content):
    save(source, tmp_path, 4)
    (tmp_path / "step4" / "whole.json").write_text(content)
    assert saved.choose(tmp_path, 1) == (tmp_path / "step4", "") and saved.ranks_of(tmp_path / "step4") == 1
    assert saved.missing_file(tmp_path / "step4") == "" == saved.damage(tmp_path / "step4", 0)
    assert saved.time_of(tmp_path / "step4") > 0 and not ckpt.verify(tmp_path)["problems"]


def test_a_checkpoint_that_is_kept_elsewhere_stays_whole_there(source, tmp_path):
    """Before: the marker went from it, and then the run ended, at each resume."""
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    save(source, run, 4)
    (run / "step4").rename(elsewhere)
    (run / "step4").symlink_to(elsewhere)
    save(source, run, 8)
    assert names(run) == {"step8", "latest"}
    (run / "step12").symlink_to(elsewhere)
    save(source, run, 12)
    assert not (run / "step12").is_symlink() and json.loads((elsewhere / "whole.json").read_text())["step"] == 4
    assert saved.damage(elsewhere, 0) == ""


def test_what_the_run_did_not_write_under_its_own_names_stays(source, tmp_path):
    save(source, tmp_path, 4)
    shutil.copytree(tmp_path / "step4", tmp_path / "step4-best")
    (tmp_path / "steps.txt").write_text("notes")
    save(source, tmp_path, 8)
    assert names(tmp_path) == {"step8", "step4-best", "steps.txt", "latest"}


def test_who_goes_back_keeps_what_was_saved_last(source, tmp_path):
    for step in (4, 8, 12):
        save(source, tmp_path, step, keep=3)
    (tmp_path / "latest").write_text("step4")
    assert saved.choose(tmp_path, 1) == (tmp_path / "step4", "")
    save(source, tmp_path, 8)
    assert names(tmp_path) == {"step8", "latest"}


def test_a_torn_checkpoint_goes_first_and_is_never_chosen(source, tmp_path):
    save(source, tmp_path, 4)
    shutil.copytree(source, tmp_path / "step8")
    torn = next((tmp_path / "step8").glob("*optim_states.pt"))
    torn.write_bytes(torn.read_bytes()[:1000])
    (tmp_path / "latest").write_text("step8")
    chosen, why = saved.choose(tmp_path, 1)
    assert chosen == tmp_path / "step4" and "names no whole checkpoint: step4 is the newest that is" in why
    saved.drop_old(tmp_path, 1)
    assert (tmp_path / "step4").is_dir(), "the last whole one"


def test_a_checkpoint_without_marker_counts_when_it_reads(source, tmp_path):
    shutil.copytree(source, tmp_path / "step8")
    (tmp_path / "latest").write_text("step8")
    assert saved.choose(tmp_path, 1) == (tmp_path / "step8", "")
    next((tmp_path / "step8").glob("*optim_states.pt")).unlink()
    assert saved.choose(tmp_path, 1)[0] is None


def test_nothing_saved_is_no_checkpoint(tmp_path):
    assert saved.choose(tmp_path / "nowhere", 2) == (None, "")


def test_a_file_that_went_after_the_save_is_named_with_the_way_back(source, tmp_path):
    """Before: the count of files stood for the ranks, and both remedies of the error failed."""
    for step in (4, 8):
        save(source, tmp_path, step, keep=2)
    for kind in ("model", "optim"):
        file = next((tmp_path / "step8").glob(f"*{kind}_states.pt"))
        kept = file.read_bytes()
        file.unlink()
        assert saved.choose(tmp_path, 1) == (tmp_path / "step8", "") and saved.ranks_of(tmp_path / "step8") == 1
        with pytest.raises(
            ValueError, match=f"{kind}_states.pt, which was there .* is missing; restore it; or else write step4"
        ):
            launch.require_all_files(tmp_path / "step8")
        file.write_bytes(kept)
    launch.require_all_files(tmp_path / "step8")


def test_the_command_that_reshards_names_the_checkpoint_that_was_chosen(source, tmp_path):
    folder = RunFolder(tmp_path)
    save(source, folder.checkpoints, 4)

    def remedy() -> str:
        with pytest.raises(ValueError) as caught:
            launch.require_same_ranks(folder, folder.checkpoints / "step4", 2)
        return str(caught.value).partition("; say --ranks 1, or ")[2]

    command = f"{folder.checkpoints} --tag step4 -o {folder.checkpoints} --world-size 2 --new-tag step4-2ranks"
    assert remedy() == f"write one for 2 with: zeromuon ckpt reshard {command}"
    (folder.checkpoints / saved.LATEST).write_text("nope")
    words = shlex.split(remedy().partition("with: zeromuon ")[2])
    assert cli.main(words) == 0 and saved.ranks_of(folder.checkpoints / "step4-2ranks") == 2
    assert remedy() == f"write step4-2ranks, which is one for 2, into {folder.checkpoints / saved.LATEST}"
    next((folder.checkpoints / "step4-2ranks").glob("*optim_states.pt")).unlink()
    assert remedy().endswith("--new-tag step4-2ranks --force")


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a\0b", b"", b"../step4", b"nope"])
def test_a_latest_that_names_nothing_is_said_and_the_newest_whole_one_taken(source, tmp_path, content):
    save(source, tmp_path, 4)
    (tmp_path / saved.LATEST).write_bytes(content)
    chosen, why = saved.choose(tmp_path, 1)
    assert chosen == tmp_path / "step4" and "names no whole checkpoint" in why


def test_a_checkpoint_beyond_the_last_step_is_refused_before_a_rank_starts(source, masked_model, text_file, tmp_path):
    """Before: "stopped after step 16 of 12", with status 143 and a remedy that said the same again."""
    folder = RunFolder(tmp_path / "run")
    given = {"model": str(masked_model), "data": str(text_file), "steps": 12, "ranks": 1}
    launch.prepare_start(folder, cli.new_settings(given))[0].close()
    save(source, folder.checkpoints, 12)
    launch.prepare_resume(folder, {})
    save(source, folder.checkpoints, 16, keep=2)
    with pytest.raises(
        ValueError, match=r"a checkpoint of step 12 at most.*found .*step16, of step 16.*write step12 into"
    ):
        launch.prepare_resume(folder, {})


class LoadingEngine:
    def __init__(self, run: str | None):
        self._state = {"step": 4, "position": 9, "random": checkpoints.random_state(), "rank": 0}
        self._state |= {} if run is None else {"run": run}

    def load_checkpoint(self, folder, tag):
        return str(Path(folder, tag)), {checkpoints.KEY: self._state}


def test_a_checkpoint_of_another_run_is_refused_and_one_that_does_not_say_is_taken(tmp_path, monkeypatch):
    """Before: a folder that was copied from another run was gone on from, with that run's weights and this one's metrics."""
    monkeypatch.setattr(checkpoints.dist, "broadcast_object_list", lambda words: None)
    monkeypatch.setattr(checkpoints.dist, "all_gather_object", lambda out, said: out.__setitem__(0, said))
    for step in (2, 4):
        checkpoints.save(TorchEngine(), One(), tmp_path, step, 0)

    def load(written_by: str | None, run: str) -> dict:
        return checkpoints.load(LoadingEngine(written_by), One(), tmp_path, 0, run, print)

    assert load("a", "a") == {"step": 4, "position": 9, "run": "a"}
    assert load("a", "")["run"] == "a" and load(None, "a")["run"] == ""
    with pytest.raises(
        ValueError, match=r"step4: expected a checkpoint of this run, found one of another.*write step2 into"
    ):
        load("b", "a")
