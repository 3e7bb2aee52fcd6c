"""`zeromuon finetune` as a command of torchrun on one machine: what it refuses, a rank that dies, a stop."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests import processes
from tests.python.commands.finetune.conftest import KEPT_MEMORY
from tests.python.commands.finetune.test_runs import losses, weights
from zeromuon.commands.cli import new_settings
from zeromuon.commands.finetune import joined

STEPS = 24
OWN_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}  # of each restart


@pytest.fixture
def two_ranks(monkeypatch):
    """The variables of torchrun."""
    for name, value in {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "TORCHELASTIC_RESTART_COUNT": 0}.items():
        monkeypatch.setenv(name, str(value))


def refusal(given: dict, out: Path | None, wants_resume: bool = False) -> str:
    lock, told = joined._prepared(given, str(out) if out else None, wants_resume, new_settings)
    assert lock is None
    return told["error"]


def test_bad_input_is_an_error_that_all_ranks_hear_before_anything_is_written(
    two_ranks, masked_model, text_file, tmp_path, monkeypatch
):
    given = {"model": str(masked_model), "data": str(text_file)}
    assert "--out is missing: under torchrun name a folder" in refusal(given, None)
    out = tmp_path / "run"
    assert "--ranks 4: torchrun started 2; leave --ranks out" in refusal({**given, "ranks": 4}, out)
    assert "--model is missing" in refusal({}, out)
    assert "no such model" in refusal({**given, "model": "/no such model"}, out)
    assert "found no run.json there; name another, or leave --resume out" in refusal(given, out, wants_resume=True)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")  # before the first start had made the folder
    assert "no such model" in refusal({**given, "model": "/no such model"}, out)
    assert not out.exists()


def test_a_restart_by_torchrun_goes_on_and_a_run_of_somebody_else_is_locked(
    two_ranks, masked_model, text_file, tmp_path, monkeypatch
):
    given, out = {"model": str(masked_model), "data": str(text_file), "steps": 3}, tmp_path / "run"
    lock, told = joined._prepared(given, str(out), False, new_settings)
    assert told["folder"] == str(out)
    assert "expected no run there, found one" in refusal(given, out), "a start that torchrun did not repeat"
    lock.close()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    (out / "torchrun.json").write_text('["another torchrun, whose run it was"]')
    assert "expected no run there, found one" in refusal(given, out), "what was refused once stays refused"
    (out / "torchrun.json").write_text(json.dumps([joined._agent()]))
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "2")
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    lock, told = joined._prepared(given, str(out), False, new_settings)
    assert told["folder"] == str(out)
    assert "export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 before torchrun" in told["warnings"][-1]
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "False")
    lock.close()
    lock, told = joined._prepared(given, str(out), False, new_settings)
    assert not any("DISABLE_SHARE" in warning for warning in told["warnings"])
    lock.close()
    assert "steps is 3 there and 4 here" in refusal({**given, "steps": 4}, out)


class Torchrun:
    """`torchrun -m zeromuon finetune` of two ranks, and what it printed."""

    def __init__(self, folder: Path, *arguments, max_restarts: int = 0):
        self.log = folder / f"torchrun{len(list(folder.glob('torchrun*')))}.log"
        torchrun = ["--standalone", "--nproc-per-node", "2", "--max-restarts", str(max_restarts)]
        command = [sys.executable, "-m", "torch.distributed.run", *torchrun, "-m", "zeromuon", "finetune"]
        self._ends = contextlib.ExitStack()
        with open(self.log, "w") as log:
            running = processes.running(
                [*command, *map(str, arguments)],
                env={**os.environ, "OMP_NUM_THREADS": "1", **OWN_STORE, **KEPT_MEMORY},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            self.process = self._ends.enter_context(running)

    def wait_for_step(self, run: Path, step: int) -> None:
        file, deadline = run / "metrics.jsonl", time.monotonic() + 240
        while not file.exists() or f'"step": {step}, "loss"' not in file.read_text():
            assert self.process.poll() is None and time.monotonic() < deadline, self.log.read_text()[-4000:]
            time.sleep(0.02)

    def rank(self, number: int) -> psutil.Process:
        ranks = psutil.Process(self.process.pid).children(recursive=True)
        return next(process for process in ranks if process.environ().get("RANK") == str(number))

    def finish(self) -> tuple[int, str]:
        with self._ends:
            status = self.process.wait(300)
        return status, self.log.read_text()


@pytest.fixture(scope="module")
def options(masked_model, text_file) -> list:
    sizes = ["--batch", 4, "--seq-len", 16, "--steps", STEPS, "--save-every", 4]
    return ["--model", masked_model, "--data", text_file, *sizes, "--set", "bf16.enabled=false"]


@pytest.fixture(scope="module")
def uninterrupted(command, options, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    status, output = command(*options, "--ranks", 2, "--out", out).finish()
    assert status == 0, output
    return out


@pytest.mark.full
def test_a_rank_that_is_killed_is_restarted_and_the_run_ends_with_the_same_bits(options, uninterrupted, tmp_path):
    out = tmp_path / "run"
    run = Torchrun(tmp_path, *options, "--out", out, max_restarts=1)
    run.wait_for_step(out, 6)
    run.rank(1).kill()
    status, output = run.finish()
    assert status == 0, output[-4000:]
    assert "going on from the checkpoint of step" in output
    assert weights(out) == weights(uninterrupted) and losses(out) == losses(uninterrupted)


@pytest.mark.full
def test_a_torchrun_that_is_asked_to_end_saves_and_a_resume_ends_with_the_same_bits(options, uninterrupted, tmp_path):
    out = tmp_path / "run"
    run = Torchrun(tmp_path, *options, "--out", out, max_restarts=1)
    run.wait_for_step(out, 5)
    run.process.send_signal(signal.SIGTERM)
    _, output = run.finish()
    stopped = json.loads((out / "status.json").read_text())
    assert stopped["state"] == "interrupted" and 5 <= stopped["step"] < STEPS, output[-4000:]
    assert f"stopped after step {stopped['step']} of {STEPS}, saved in {out}" in output
    status, output = Torchrun(tmp_path, *options, "--out", out, "--resume").finish()
    assert status == 0 and f"going on from the checkpoint of step {stopped['step']}" in output, output[-4000:]
    assert weights(out) == weights(uninterrupted) and losses(out) == losses(uninterrupted)
