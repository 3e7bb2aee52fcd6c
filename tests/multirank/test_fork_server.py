"""Launches themselves: what ranks are told, how a launch ends, and that nothing of it is left."""

import time

import pytest

from tests import processes
from tests.multirank import launch

SUMS = """
import os, torch, torch.distributed as dist
dist.init_process_group("gloo")
total = torch.ones(1)
dist.all_reduce(total)
line = f"rank {os.environ['LOCAL_RANK']} of {os.environ['LOCAL_WORLD_SIZE']} sees {int(total)}"
os.write(1, line.encode() + bytes([10]))  # in one piece: the ranks share the log
dist.destroy_process_group()
"""
ONE_FAILS = "import os, sys, time\nif os.environ['RANK'] == '1':\n    sys.exit(7)\ntime.sleep(600)\n"
HANGS = """
import subprocess, sys, time
print(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def launched(tmp_path):
    """launched(world size, script, seconds): how it ended."""

    def run(world_size: int, script: str, seconds: float = 60) -> launch.Ended:
        (tmp_path / "script.py").write_text(script)
        target = str(tmp_path / "script.py")
        return launch.launch(world_size, target, [], tmp_path, launch.environment(), seconds=seconds)

    return run


def test_ranks_find_each_other_and_leave_with_their_status(launched):
    ended = launched(3, SUMS)
    assert (ended.statuses, ended.why) == ([0, 0, 0], "")
    assert sorted(ended.log.splitlines()) == [f"rank {rank} of 3 sees 3" for rank in range(3)]


def test_when_a_rank_fails_the_others_are_ended(launched):
    ended = launched(2, ONE_FAILS)
    assert ended.statuses == [-9, 7] and "{0: -9, 1: 7}" in ended.why


def test_a_traceback_names_its_rank(launched):
    ended = launched(1, SUMS + "raise ValueError('of mine')\n")
    assert ended.statuses == [1] and "ValueError: of mine" in ended.log


def test_a_launch_that_takes_too_long_is_killed_with_all_that_its_ranks_started(launched):
    ended = launched(2, HANGS, seconds=2)
    assert ended.statuses == [] and ended.why == "no end after 2 s"
    started = [int(line) for line in ended.log.splitlines()]
    assert len(started) == 2 and not any(map(_runs_within_a_second, started))


def test_a_rank_that_fails_after_its_rows_fails_them():
    ended = launch.Ended([0, -6], "terminate called", "ranks with an exit status that is not 0: {1: -6}")
    found = launch._with_reasons([launch.row("a", "kind")], {"a": {"value": 1}}, ended)
    assert "all rows were done, and then" in found["a"]["failed"] and "terminate called" in found["a"]["failed"]


def test_an_import_that_fails_before_the_fork_is_raised_with_its_reason(tmp_path):
    with pytest.raises(RuntimeError, match="No module named 'no_such_module'"):
        launch.launch(1, "unused", [], tmp_path, launch.environment(), preload=["no_such_module"])


def _runs_within_a_second(process: int) -> bool:
    end = time.monotonic() + 1
    while time.monotonic() < end and processes.runs(process):
        time.sleep(0.05)
    return processes.runs(process)
