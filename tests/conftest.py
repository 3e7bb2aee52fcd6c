"""Every run of pytest: no skip without a known reason, and no process that outlives it. Imports nothing heavy."""

import contextlib

import pytest

from tests import processes, skips
from tests.multirank import launch

_RUN, _LEFT = pytest.StashKey[str](), pytest.StashKey[dict]()
SECONDS_TO_END = 5  # of processes that are about to, at the end of the run


@pytest.fixture
def start():
    """start(command, **options of Popen): a process that ends with its test at the latest, see processes.running."""
    with contextlib.ExitStack() as started:
        yield lambda command, **given: started.enter_context(processes.running(command, **given))


def pytest_configure(config):
    config.stash[_RUN] = processes.mark_this_run()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    skips.refuse(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    report = yield
    skips.refuse(report)
    return report


def pytest_sessionfinish(session):
    launch.stop()
    mark = session.config.stash[_RUN]
    session.config.stash[_LEFT] = left = processes.left_after(mark, SECONDS_TO_END)
    processes.kill(mark)
    if left and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter, config):
    for process, command in config.stash.get(_LEFT, {}).items():
        terminalreporter.write_line(f"ERROR: left by the tests and killed: process {process}: {command}", red=True)
