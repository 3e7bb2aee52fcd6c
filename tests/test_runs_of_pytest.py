"""What tests/conftest.py asks of every run: skips that are on the list, and no process left. Shown on small runs."""

import json
import os
import re
import subprocess
import sys

import pytest

from tests import processes, skips
from tests.multirank.launch import ROOT, environment

FOR_NO_REASON = "import pytest\n\ndef test_it():\n    pytest.skip('of no known reason')\n"
NO_MODULE = "import pytest\npytest.importorskip('no_such_module')\n\ndef test_it():\n    pass\n"
WITHOUT_GPU = "import pytest\n\ndef test_it():\n    pytest.skip('no CUDA device: the cases over NCCL were not run')\n"
LEAVES = """
import subprocess, sys

def test_it():
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
"""
FAILS = """
import sys, pytest

def test_it(start):
    start([sys.executable, "-c", "import time; time.sleep(600)"])
    assert False
"""


@pytest.fixture
def run(tmp_path):
    """run(text of a test file, its name, CI): the exit status and the output of pytest on it."""

    def ran(text: str, name: str = "tests/test_it.py", ci: str = "true") -> tuple[int, str]:
        file = tmp_path / name
        file.parent.mkdir(parents=True)
        file.write_text(text)
        (tmp_path / "pytest.ini").touch()
        command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider", "-ra", name]
        done = subprocess.run(command, cwd=tmp_path, env={**environment(), "CI": ci}, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    return ran


@pytest.mark.parametrize("text", [FOR_NO_REASON, NO_MODULE], ids=["a test", "a module"])
def test_a_skip_for_a_reason_that_is_not_on_the_list_fails_in_ci_alone(text, run, tmp_path):
    status, output = run(text)
    assert status != 0 and "skipped in CI for a reason that is not in tests/allowed_skips.json" in output
    (tmp_path / "tests/test_it.py").unlink(), (tmp_path / "tests").rename(tmp_path / "before")
    status, output = run(text, ci="")
    assert "1 skipped" in output and "error" not in output.lower()


def test_a_skip_on_the_list_is_one_where_the_list_says_so(run, tmp_path):
    status, output = run(WITHOUT_GPU, "tests/multirank/test_parity_nccl.py")
    assert status == 0 and "1 skipped" in output
    assert run(WITHOUT_GPU, "tests/other/test_it.py")[0] != 0


def test_the_list_names_places_that_are_there_and_says_why():
    files = [path.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("*.*")]
    for entry in json.loads(skips.LIST.read_text()):
        assert any(f"tests/{file}".startswith(entry["where"]) for file in files), entry
        assert re.compile(entry["reason"]) and len(entry["because"]) > 20


def test_a_run_that_leaves_a_process_names_it_and_fails(run):
    status, output = run(LEAVES)
    assert status == 1 and "1 passed" in output
    (process,) = re.findall(r"left by the tests and killed: process (\d+): .*time.sleep\(600\)", output)
    assert not processes.runs(int(process))


def test_a_process_is_known_by_its_mark_from_its_first_moment():
    for _ in range(300):
        with processes.running(["sleep", "60"]) as started:
            assert processes.mark_of(started.pid).startswith(os.environ[processes.MARK])


def test_a_test_that_fails_leaves_no_process(run):
    status, output = run(FAILS)
    assert status == 1 and "1 failed" in output and "left by the tests" not in output


def test_a_signal_is_not_ignored_although_this_process_ignores_it():
    shows = "import signal; print([signal.getsignal(n) == signal.SIG_IGN for n in (signal.SIGINT, signal.SIGQUIT)])"
    inner = f"""
import subprocess, sys
from tests import processes
with processes.running([sys.executable, "-c", {shows!r}], stdout=subprocess.PIPE, text=True) as started:
    print(started.communicate()[0])
"""
    command = ["env", "--ignore-signal=INT,QUIT", sys.executable, "-c", inner]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[False, False]"


def test_what_a_process_started_in_another_session_ends_with_it():
    starts = """
import subprocess, sys, time
print(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True).pid, flush=True)
time.sleep(600)
"""
    with processes.running([sys.executable, "-c", starts], stdout=subprocess.PIPE, text=True) as started:
        other = int(started.stdout.readline())
        assert processes.runs(other)
    assert not processes.runs(other)
