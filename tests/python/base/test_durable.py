"""Whole files, and the lock on a folder."""

import os
import subprocess
import sys

import pytest

from zeromuon.base import durable

HOLDS = "import sys, time\nfrom pathlib import Path\nfrom zeromuon.base import durable\n"
HOLDS += "with durable.Lock(Path(sys.argv[1]), shared=sys.argv[2] == 'shared'):\n    print('held', flush=True)\n    time.sleep(600)"


def test_a_file_is_synced_then_renamed_and_then_its_folder_is_synced(tmp_path, monkeypatch):
    done = []
    sync, replace = durable.sync, os.replace
    monkeypatch.setattr(durable, "sync", lambda path: (done.append(("sync", path)), sync(path)))
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append(("rename", b)), replace(a, b)))
    durable.write_text(tmp_path / "a.json", "{}")
    (first, part), renamed, last = done
    assert (first, part.parent, renamed, last) == (
        "sync",
        tmp_path,
        ("rename", tmp_path / "a.json"),
        ("sync", tmp_path),
    )
    assert part.name != "a.json" and os.listdir(tmp_path) == ["a.json"]


def test_a_file_that_cannot_be_written_stays_what_it_was(tmp_path):
    (tmp_path / "a").write_text("before")
    with pytest.raises(RuntimeError), durable.whole_file(tmp_path / "a") as part:
        part.write_text("half")
        raise RuntimeError
    assert (tmp_path / "a").read_text() == "before" and os.listdir(tmp_path) == ["a"]


def test_a_temporary_name_is_never_one_that_is_there(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").write_text("mine")
    (tmp_path / ".part-same-a").symlink_to(tmp_path / "elsewhere")
    monkeypatch.setattr(durable.secrets, "token_hex", lambda _: "same")
    with pytest.raises(FileExistsError):
        durable.write_text(tmp_path / "a", "text")
    assert (tmp_path / "elsewhere").read_text() == "mine"


def test_new_folders_are_on_disk_with_their_parents(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(durable, "sync", synced.append)
    durable.make_folder(tmp_path / "a" / "b")
    assert synced == [tmp_path, tmp_path / "a"] and (tmp_path / "a" / "b").is_dir()


@pytest.fixture
def held(tmp_path, tmp_path_factory, start):
    """held("alone" or "shared"): another process that holds the lock."""

    program = tmp_path_factory.mktemp("program") / "holds.py"
    program.write_text(HOLDS)

    def hold(how):
        other = start([sys.executable, str(program), str(tmp_path), how], stdout=subprocess.PIPE, text=True)
        assert other.stdout.readline() == "held\n"
        return other

    return hold


@pytest.mark.parametrize("theirs, ours", [("alone", False), ("alone", True), ("shared", False)])
def test_who_holds_the_lock_is_named(held, tmp_path, theirs, ours):
    other = held(theirs)
    with pytest.raises(durable.InUse, match=rf"in use by process {other.pid} \(.*{theirs}\)"):
        durable.Lock(tmp_path, shared=ours)


def test_a_lock_is_shared_and_free_once_its_holder_is_gone(held, tmp_path):
    other = held("shared")
    durable.Lock(tmp_path, shared=True).close()
    other.kill()
    other.wait()
    with durable.Lock(tmp_path) as lock:
        lock.share()
        durable.Lock(tmp_path, shared=True).close()
    assert os.listdir(tmp_path) == []


def test_without_locks_of_the_file_system_a_warning_says_so(tmp_path, monkeypatch, capsys):
    def cannot(*_):
        raise OSError(durable.errno.ENOLCK, "No locks available")

    monkeypatch.setattr(durable.fcntl, "flock", cannot)
    durable.Lock(tmp_path).close()
    assert "No locks available" in capsys.readouterr().err
