"""The power goes: what has reached the disk by then is whole, and a run goes on from it."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.python.commands.finetune.conftest import Disk
from tests.python.commands.finetune.short_runs import expect_to_go_on, options
from tests.python.commands.finetune.test_runs import weights
from zeromuon import ckpt

pytestmark = pytest.mark.full
COMMIT_S = 6  # ext4 writes names every 5 s, also of files whose content is not written yet
PAUSE_S = 0.003


@dataclass(frozen=True)
class Cut:
    """A copy of the disk, and what the run had said when it was made. at_rest: for as long as the disk takes to write names."""

    image: Path
    latest: str
    state: str
    at_rest: bool


def seen(run: Path) -> tuple[str, str]:
    """What `latest` names, and how the run stands; "" for what is not there."""
    latest, status = run / "checkpoints" / "latest", run / "status.json"
    return (
        latest.read_text() if latest.exists() else "",
        json.loads(status.read_text())["state"] if status.exists() else "",
    )


@contextlib.contextmanager
def held(process: psutil.Process):
    """While all of its family stand still."""
    family = [process, *process.children(recursive=True)]
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.suspend()
    yield
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.resume()


def cuts_of(disk: Disk, said: tuple[str, str], number: int) -> list[Cut]:
    """At once, and when the disk has come to rest."""
    made = []
    for at_rest in (False, True):
        time.sleep(COMMIT_S if at_rest else 0)
        made.append(Cut(disk.image.with_name(f"cut{number}-{at_rest}.img"), *said, at_rest))
        disk.copy_of_what_is_written(made[-1].image)
    return made


@contextlib.contextmanager
def after_the_cut(image: Path):
    """The folder of the disk once there is power again."""
    disk = Disk(image, image.with_suffix(""))
    try:
        yield disk.folder
    finally:
        disk.unmount()


def test_what_a_run_has_said_is_on_the_disk_whenever_the_power_goes(
    command, masked_model, text_file, undisturbed, disk, tmp_path
):
    run = disk.folder / "run"
    process = command(*options(masked_model, text_file, run)).process
    cuts: list[Cut] = []
    told = None
    while process.poll() is None:
        if (now := seen(run)) != told:
            told = now
            with held(psutil.Process(process.pid)):
                cuts += cuts_of(disk, told, len(cuts))
        time.sleep(PAUSE_S)
    assert process.returncode == 0
    cuts += cuts_of(disk, seen(run), len(cuts))
    assert {"", "step4", "step8", "step12"} <= {cut.latest for cut in cuts} and cuts[-1].state == "finished"
    resumed: set[str] = set()
    for moment in cuts:
        with after_the_cut(moment.image) as folder:
            left = folder / "run"
            latest, state = seen(left)
            if moment.at_rest:
                assert (latest, state) == (moment.latest, moment.state)
            if latest:
                assert ckpt.verify(left / "checkpoints", tag=latest)["ok"], moment
                from zeromuon.commands.finetune import saved

                chosen, why = saved.choose(left / "checkpoints", 2)
                assert chosen == left / "checkpoints" / latest and not why, (moment, why)
            if state == "finished":
                assert weights(left) == weights(undisturbed) and (left / "model" / "config.json").stat().st_size > 0
            elif latest not in resumed and latest:
                resumed.add(latest)
                copied = tmp_path / f"resumed-{latest}"
                shutil.copytree(left, copied)
                expect_to_go_on(command, copied, undisturbed)
        moment.image.unlink()
    assert {"step4", "step8"} <= resumed


def test_a_run_that_says_finished_has_its_model_on_the_disk(command, masked_model, text_file, disk):
    run = disk.folder / "run"
    process = command(*options(masked_model, text_file, run)).process
    while seen(run)[1] != "finished":
        assert process.poll() is None, process.stdout.read()
        time.sleep(PAUSE_S)
    with held(psutil.Process(process.pid)):
        cuts = cuts_of(disk, seen(run), 0)
    assert process.wait() == 0
    for cut in cuts:
        with after_the_cut(cut.image) as folder:
            state = seen(folder / "run")[1]
            assert state == "finished" or not cut.at_rest
            for file in (run / "model").iterdir() if state == "finished" else ():
                assert (folder / "run" / "model" / file.name).read_bytes() == file.read_bytes(), (file.name, cut)


def test_what_export_has_written_is_on_the_disk_when_it_ends(undisturbed, masked_model, disk):
    out = disk.folder / "new" / "exported"
    command = [sys.executable, "-m", "zeromuon", "ckpt", "export", undisturbed / "checkpoints", "-o", out]
    command += ["--config-from", masked_model, "--force"]
    subprocess.run([str(word) for word in command], check=True)
    names = sorted(path.name for path in out.iterdir())
    image = disk.image.with_name("cut.img")
    disk.copy_of_what_is_written(image)
    with after_the_cut(image) as folder:
        left = folder / "new" / "exported"
        assert sorted(path.name for path in left.iterdir()) == names
        for name in names:
            assert (left / name).read_bytes() == (out / name).read_bytes(), name
