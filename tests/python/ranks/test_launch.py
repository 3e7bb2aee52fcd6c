"""Children and ranks: what they tell, and that nothing of them stays behind, however they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from zeromuon.ranks import child, machine
from zeromuon.ranks.child import Child
from zeromuon.ranks.launch import Launch, check_ranks, threads_of

# A child that ignores SIGTERM, with a grandchild in a session of its own.
STUBBORN = """if True:
    import signal, subprocess, sys, time
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sleeps = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    subprocess.Popen([sys.executable, "-c", sleeps], start_new_session=True)
    print("started", flush=True)
    time.sleep({seconds})
"""


def stubborn(log: Path, seconds: float = 600) -> Child:
    return Child([sys.executable, "-c", STUBBORN.format(seconds=seconds)], log=log)


def until(condition, seconds: float = 30.0):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    assert condition()


def started(family: Child, log: Path) -> None:
    until(lambda: "started" in log.read_text())
    until(lambda: len(family.family()) == 2)


def test_a_kill_ends_a_child_and_its_child_of_another_session(tmp_path):
    with stubborn(tmp_path / "log") as running:
        started(running, tmp_path / "log")
        running.kill()
        assert running.family() == []
    assert running.wait() == -signal.SIGKILL


def test_what_ignores_the_request_to_end_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(child, "END_SECONDS", 0.2)
    with stubborn(tmp_path / "log") as running:
        started(running, tmp_path / "log")
    assert running.family() == [] and running.wait() == -signal.SIGKILL


def test_an_orphan_of_a_child_that_ended_is_killed(tmp_path):
    with stubborn(tmp_path / "log", seconds=0) as running:
        until(lambda: len(running.family()) == 1)
        assert running.wait(30) == 0
    assert running.family() == []


def test_a_child_that_is_asked_ends_by_itself(tmp_path):
    code = "import signal, sys, time\nsignal.signal(15, lambda *_: sys.exit(7))\nprint('started', flush=True)\ntime.sleep(600)"
    with Child([sys.executable, "-c", code], log=tmp_path / "log") as running:
        until(lambda: "started" in (tmp_path / "log").read_text())
    assert running.wait() == 7


def test_a_child_of_a_child_carries_both_marks(tmp_path):
    inner = "import sys; from zeromuon.ranks.child import Child\nwith Child([sys.executable, '-c', {!r}], log=None) as c: c.wait()"
    with Child([sys.executable, "-c", inner.format("import time; time.sleep(600)")]) as running:
        until(lambda: len(running.family()) == 2)
        running.kill()
        assert running.family() == []


def test_output_goes_to_the_log_and_its_end_is_one_line(tmp_path):
    (tmp_path / "log").write_text("before\n")
    with Child([sys.executable, "-c", "print('one\\ntwo')"], log=tmp_path / "log") as running:
        assert running.wait(30) == 0
    assert running.tail(200) == "before one two" and running.tail(3) == "two"


def test_a_child_knows_whether_its_parent_is_alive(tmp_path, monkeypatch):
    code = "from zeromuon.ranks.child import parent_alive; print(parent_alive())"
    with Child([sys.executable, "-c", code], log=tmp_path / "log") as running:
        running.wait(30)
    assert running.tail(10) == "True"
    assert child.parent_alive()  # of a process that none of ours started
    ended = subprocess.Popen([sys.executable, "-c", ""])
    was = machine.identity(ended.pid)
    ended.wait()
    mine = machine.identity(os.getpid())
    pid, started, host = mine.split()
    for name, alive in {
        was: False,
        mine: True,
        f"{pid} {int(started) - 1} {host}": False,  # an id that was used again
        f"{pid} {started} another": False,
    }.items():
        monkeypatch.setenv("ZEROMUON_PARENT", name)
        assert child.parent_alive() == alive, name


def test_sigterm_is_an_interrupt_while_a_child_runs_and_the_child_ends(tmp_path):
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    with pytest.raises(KeyboardInterrupt), stubborn(tmp_path / "log") as running:
        started(running, tmp_path / "log")
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
        try:
            running.wait(30)
        finally:
            running.kill()  # what it does without is END_SECONDS longer
    assert running.family() == [] and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_command_that_cannot_be_started_leaves_the_handler_and_no_file():
    missing = Child(["/no/such/program"])
    with pytest.raises(FileNotFoundError), missing:
        raise AssertionError("it was entered")
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert not Path(missing._environment["ZEROMUON_CHANNEL"]).exists()


def test_a_handler_of_sigterm_of_this_process_stays(tmp_path):
    seen = []
    before = signal.signal(signal.SIGTERM, lambda *_: seen.append(1))
    try:
        with Child([sys.executable, "-c", "import time; time.sleep(600)"]) as running:
            os.kill(os.getpid(), signal.SIGTERM)
            assert running.wait(0.2) is None and seen == [1]
    finally:
        signal.signal(signal.SIGTERM, before)


# ---- ranks -------------------------------------------------------------------------------------------------------

RANK = """if True:
    import os, sys, time
    from zeromuon.ranks.launch import tell
    if os.environ["RANK"] == "0" or "long" in sys.argv:
        tell(arguments=sys.argv[1:], world=int(os.environ["WORLD_SIZE"]), threads=os.environ["OMP_NUM_THREADS"], text="x" * 100_000)
    time.sleep(600 if "long" in sys.argv else 0)
    sys.exit(3 if "fails" in sys.argv else 0)
"""


@pytest.fixture
def ranks(tmp_path):
    script = tmp_path / "rank.py"
    script.write_text(RANK)

    def launch(*arguments, count=1):
        variables = {"OMP_NUM_THREADS": str(threads_of(count))}
        return Launch(script, *arguments, ranks=count, environment=variables, log=tmp_path / "log")

    return launch


def test_what_a_rank_told_is_there_when_it_has_ended(ranks):
    with ranks("a", 2) as launched:
        assert launched.wait(120) == 0
    (message,) = launched.told()
    assert (message["rank"], message["arguments"], message["world"]) == (0, ["a", "2"], 1)
    assert message["threads"] == str(threads_of(1)) and launched.told() == []


def test_ranks_tell_while_they_run_and_a_kill_leaves_none(ranks):
    with ranks("long", count=2) as launched:
        heard = []
        until(lambda: heard.extend(launched.told()) or len(heard) == 2, seconds=120)
        assert sorted(message["rank"] for message in heard) == [0, 1]
        launched.kill()
        assert launched.family() == []
    assert launched.told() == []


def test_a_rank_that_fails_ends_the_launch_with_a_status_and_its_words_in_the_log(ranks, tmp_path):
    with ranks("fails") as launched:
        assert launched.wait(120) not in (0, None)
    assert "exitcode" in (tmp_path / "log").read_text()


def test_a_message_that_is_not_complete_yet_is_heard_later(ranks):
    launched = ranks()
    channel = Path(launched._environment["ZEROMUON_CHANNEL"])
    channel.write_text('{"rank": 0, "a": 1}\n{"rank": 1')
    assert launched.told() == [{"rank": 0, "a": 1}]
    with open(channel, "a") as more:
        more.write(', "a": 2}\n')
    assert launched.told() == [{"rank": 1, "a": 2}]
    launched._channel.close()


def test_ranks_are_held_against_cores_and_gpus():
    with pytest.raises(ValueError, match="at least 1"):
        check_ranks(0, cores=2, gpus=0)
    with pytest.raises(ValueError, match="at most 8 on 2 cores"):
        check_ranks(9, cores=2, gpus=0)
    with pytest.raises(ValueError, match="at most 1, one per GPU"):
        check_ranks(2, cores=16, gpus=1)
    assert check_ranks(2, cores=2, gpus=0) == []
    assert "share 1 core" in check_ranks(2, cores=1, gpus=0)[0]


def test_starting_ranks_imports_no_torch():
    code = "import sys, zeromuon.ranks.launch, zeromuon.ranks.leave, zeromuon.ranks.connect; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
