"""Ctrl-C while a bench measures: what is finished, what stays, whose signal handler it is. What is measured sends the signals."""

import json
import os
import signal
import subprocess
import sys
import threading

import pytest

from tests.multirank.launch import environment
from zeromuon.commands.bench.kernels import deepspeed_adam, command as kernels, tune
from zeromuon.commands.bench.core import interrupt, plot
from zeromuon.commands.bench.core.results import Case, rows_of
from zeromuon.commands.bench.core.timing import Contender, measure

SAID = "interrupting after this sample; Ctrl-C again to stop at once"


@pytest.fixture(autouse=True)
def handler():
    """A handler of the test's own, which is to be back at the end."""

    def raises(number, frame):
        raise AssertionError("the handler from before got the signal")

    before = signal.signal(signal.SIGINT, raises)
    yield raises
    found = signal.signal(signal.SIGINT, before)
    assert found is raises


def press():
    """Ctrl-C; Python's handler has run when it returns."""
    os.kill(os.getpid(), signal.SIGINT)


class Log:
    """What was started and finished by contenders, of which one presses Ctrl-C in its call number `at` (from 1)."""

    def __init__(self):
        self.started, self.finished = [], []

    def contender(self, name, at=None):
        def run(_):
            self.started.append(name)
            if at is not None and self.started.count(name) == at:
                press()
            self.finished.append(name)

        return Contender(name, run)


# ---- safe points ---------------------------------------------------------------------------------


def test_the_call_that_is_interrupted_is_finished_and_no_other_begins(capfd):
    log = Log()
    with interrupt.deferred() as wish, pytest.raises(KeyboardInterrupt):
        measure([log.contender("A", at=3), log.contender("B")], 0.0)
    assert wish.noted and "".join(log.finished) == "AB" + "AB" + "BA" and log.started == log.finished
    assert capfd.readouterr().err.count(SAID) == 1


def test_an_interrupt_in_a_warm_up_ends_before_the_next_one():
    log = Log()
    with interrupt.deferred(), pytest.raises(KeyboardInterrupt):
        measure([log.contender("A", at=1), log.contender("B")], 0.0)
    assert log.finished == ["A"]


def test_a_case_whose_last_sample_is_interrupted_is_whole():
    log, finishing = Log(), []
    with interrupt.deferred() as wish:
        samples = measure([log.contender("A", at=4)], 0.0, finishing.append)
    assert wish.noted and len(samples.seconds["A"]) == len(finishing) == 3 and not samples.failed


def test_a_contender_that_fails_after_ctrl_c_does_not_hide_it():
    def run(_):
        press()
        raise RuntimeError("the compiler got the signal, too")

    with interrupt.deferred(), pytest.raises(KeyboardInterrupt):
        measure([Contender("A", run), Log().contender("B")], 0.0)


def test_a_keyboard_interrupt_of_a_contender_goes_through():
    def run(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure([Contender("A", run)], 0.0)


def test_a_build_that_is_interrupted_ends_with_its_processes(monkeypatch):
    """The build would take longer than it may; the signal comes with the first word of progress."""
    started, presses, real = [], iter([press]), subprocess.Popen
    monkeypatch.setattr(deepspeed_adam, "_BUILD", "import time; time.sleep(3600)")
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **given: started.append(real(*a, **given)) or started[-1])
    with interrupt.deferred(), pytest.raises(KeyboardInterrupt):
        deepspeed_adam.build(lambda words: next(presses, lambda: None)(), longest=30.0)
    assert started[0].returncode == -signal.SIGKILL


def test_tuning_ends_between_two_cuts(monkeypatch, capsys):
    seen = []

    def measured(kind, side, long_side, dtype, cut):
        seen.append(cut)
        if len(seen) == 2:
            press()
        return 1.0, 1.0

    monkeypatch.setattr(tune, "measure", measured)
    assert tune.run([]) == interrupt.INTERRUPTED and len(seen) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and "interrupted" in printed.err


# ---- the handler ---------------------------------------------------------------------------------


def test_the_handler_is_back_after_an_error(handler):
    with pytest.raises(ValueError), interrupt.deferred():
        assert signal.getsignal(signal.SIGINT) is not handler
        raise ValueError
    assert signal.getsignal(signal.SIGINT) is handler


def test_there_is_nothing_to_honour_outside():
    with interrupt.deferred():
        press()
    interrupt.point()


def test_an_ignored_ctrl_c_stays_ignored(handler):
    """As a shell does it for what runs in the background."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupt.deferred() as wish:
            press()
            interrupt.point()
        assert not wish.noted and signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, handler)


def test_another_thread_measures_without_a_handler(handler):
    seen = []

    def work():
        with interrupt.deferred() as wish:
            seen.extend([wish.noted, signal.getsignal(signal.SIGINT)])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False, handler]


def test_a_second_ctrl_c_ends_the_process_at_once(start):
    code = """if True:
        import os, signal
        from zeromuon.commands.bench.core import interrupt
        with interrupt.deferred():
            os.kill(os.getpid(), signal.SIGINT)
            print("noted", flush=True)
            os.kill(os.getpid(), signal.SIGINT)
            print("alive", flush=True)
    """
    pipes = {"text": True, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    ended = start([sys.executable, "-c", code], env=environment(), **pipes)
    printed, said = ended.communicate(timeout=60)
    assert ended.returncode == -signal.SIGINT and printed == "noted\n" and SAID in said


# ---- a run ---------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the bench with fake contenders: a case per name, which presses Ctrl-C where it is told to; -> (status, folder)."""
    monkeypatch.setattr(kernels, "_set_threads", lambda threads: None)

    def ran(**presses_at):
        def measures(options, session):
            for name, at in presses_at.items():
                racing = [Log().contender("zeromuon", at), Log().contender("peer")]
                session.add(Case("newton_schulz", name, name, "FLOP/s", rows_of(racing, measure(racing, 0.0))))

        monkeypatch.setattr(kernels, "_run_newton_schulz", measures)
        return kernels.run(["--only", "newton_schulz", "--out", str(tmp_path / "out")]), tmp_path / "out"

    return ran


def _files(folder):
    return sorted(path.name for path in folder.iterdir())


JSON_FILE, TEXT_FILE, PLOT_FILE = "kernels.json", "kernels.txt", "kernels.png"
EVERY_FILE = sorted([JSON_FILE, TEXT_FILE, PLOT_FILE])


def test_the_cases_before_stay_with_all_their_samples(run, handler, capsys):
    status, folder = run(first=None, second=3, third=None)
    found = json.loads((folder / JSON_FILE).read_text())
    assert status == interrupt.INTERRUPTED and found["interrupted"] and _files(folder) == EVERY_FILE
    (case,) = found["cases"]
    assert case["key"] == "first" and [len(row["seconds"]) for row in case["rows"]] == [3, 3]
    printed = capsys.readouterr()
    assert "INTERRUPTED" in printed.out and "what was measured so far is written" in printed.err
    assert signal.getsignal(signal.SIGINT) is handler


def test_without_a_case_nothing_is_written(run, capsys):
    status, folder = run(first=1)
    assert status == interrupt.INTERRUPTED and not folder.exists()
    assert "nothing was measured or written" in capsys.readouterr().err


def test_an_interrupt_of_the_imports_ends_before_a_part_begins(monkeypatch, tmp_path):
    begun = []
    monkeypatch.setattr(kernels, "_set_threads", lambda threads: press())
    monkeypatch.setattr(kernels, "_run_newton_schulz", lambda *given: begun.append(given))
    status = kernels.run(["--only", "newton_schulz", "--out", str(tmp_path / "out")])
    assert status == interrupt.INTERRUPTED and not begun and not (tmp_path / "out").exists()


def test_an_interrupt_of_the_writing_leaves_every_file_complete(run, monkeypatch, capsys):
    draw = plot.draw

    def pressed(path, results):
        press()
        draw(path, results)

    monkeypatch.setattr(plot, "draw", pressed)
    status, folder = run(first=None)
    assert status == interrupt.INTERRUPTED and _files(folder) == EVERY_FILE
    assert not json.loads((folder / JSON_FILE).read_text())["interrupted"]
    assert (folder / PLOT_FILE).read_bytes().endswith(b"IEND\xaeB`\x82")
    assert "the results are complete" in capsys.readouterr().err


def test_a_file_whose_writing_fails_is_not_there(run, monkeypatch, tmp_path):
    def fails(path, results):
        path.write_text("half a picture")
        raise KeyboardInterrupt

    monkeypatch.setattr(plot, "draw", fails)
    with pytest.raises(KeyboardInterrupt):
        run(first=None)
    assert _files(tmp_path / "out") == sorted([JSON_FILE, TEXT_FILE])
