"""./run test: what becomes of its parts. The parts themselves are replaced by commands that do nothing, or fail."""

import re
import signal
import subprocess
from pathlib import Path

import pytest

RUN = Path(__file__).resolve().parents[1] / "run"
PARTS = ("set_up_for_tests", "check_format", "build", "cpp_tests", "compile_checks", "python_tests", "fuzz", "tidy")
FUZZING = "Fuzzing, 30 s a target"
STANDINS = "\n".join(
    f"{part}() {{ :; }}"
    for part in (*PARTS, "set_up_system", "sanitized_tests", "install_fuzzer", "install_tidy", "dev_build", "python")
)


def run_tests(changes: str = "", *arguments: str, **given) -> tuple[int, dict[str, str], str]:
    """(status, title -> fate, all output) of run_tests with these definitions in place of the real ones."""
    script = f'. "{RUN}"\n{STANDINS}\n{changes}\nmain test "$@"'
    done = subprocess.run(["bash", "-c", script, "run", *arguments], capture_output=True, text=True, **given)
    table = done.stdout.partition("\nPart ")[2]
    rows = re.findall(r"^(\S.*?) +(?:\d+|-) +(?:\d+|-)  (.*)$", table, re.MULTILINE)
    return done.returncode, dict(rows), done.stdout + done.stderr


def test_every_part_is_in_the_table():
    status, fates, output = run_tests()
    assert status == 0, output
    assert set(fates.values()) == {"passed"}
    assert {
        "System packages",
        "Set-up",
        "Format and lint",
        "Build",
        FUZZING,
        "Python tests",
        "Mutations",
    } < fates.keys()
    assert "clang-tidy" not in fates
    assert "clang-tidy" in run_tests("", "--full")[1]


@pytest.mark.parametrize(
    "part, title",
    [("check_format", "Format and lint"), ("python_tests", "Python tests"), ("fuzz", FUZZING), ("python", "Mutations")],
)
def test_a_part_that_fails_does_not_stop_the_others_but_fails_the_run(part, title):
    _, all_fates, _ = run_tests()
    status, fates, _ = run_tests(f"{part}() {{ false; echo not reached; }}")
    assert status == 1
    assert fates == {**all_fates, title: "FAILED"}


@pytest.mark.parametrize("fuzz, fuzzed", [("sleep 600", []), ("echo no finding", [FUZZING])])
def test_nothing_follows_a_build_that_fails(fuzz, fuzzed):
    status, fates, output = run_tests(f'build() {{ sleep 1; fail "no compiler"; }}\nfuzz() {{ {fuzz}; }}')
    assert status == 1
    passed = ("System packages", "Set-up", "Format and lint", *fuzzed)
    assert fates == {**dict.fromkeys(passed, "passed"), "Build": "FAILED"}
    assert "error: no compiler" in output and ("no finding" in output) == bool(fuzzed)


def test_what_is_not_done_is_said_with_its_reason():
    status, fates, _ = run_tests("install_fuzzer() { return 1; }")
    assert status == 0
    assert fates["Fuzzing"].startswith("NOT DONE: there is no clang++")


def test_a_run_whose_signals_are_ignored_is_the_same():
    def as_in_the_background():
        for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)

    status, fates, output = run_tests(preexec_fn=as_in_the_background, stdin=subprocess.DEVNULL)
    assert status == 0, output
    assert fates == {**run_tests()[1]}
