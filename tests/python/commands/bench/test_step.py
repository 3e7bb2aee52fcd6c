"""`zeromuon bench step`: rows and verdicts from what ranks told, bad input, tiny runs, a peer that fails, an interrupt."""

import io
import json
import mmap
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.multirank.launch import ROOT, environment
from zeromuon.commands.bench import command
from zeromuon.commands.bench.core import plot, report
from zeromuon.commands.bench.step import (
    beside,
    command as step,
    events as step_events,
    launch as step_launch,
    tables as step_tables,
)
from zeromuon.commands.bench.core.session import Progress, Session
from zeromuon.commands.bench.core.results import FAILED, MEASURED, Results
from zeromuon.commands.bench.step.contenders import (
    ALL,
    COUNTED,
    OURS_HOME,
    OURS_OFFLOADED,
    PEER_HOME,
    PEER_OFFLOADED,
    WIRE_BF16,
    Size,
)
from zeromuon.commands.bench.step.events import Heard, Job, Reporter
from zeromuon.commands.bench.step.memory import Peak
from zeromuon.commands.bench.core.timing import Budget, Samples

SIZE = Size(512, 8)
TINY = ["--model", "16x1"]
RECORD, HEAD = 512, 128  # bytes to each rank beside the matrices: once a step; with each of a bucket's two exchanges
SECONDS = {
    OURS_OFFLOADED: [1.0, 2.0, 1.0],
    OURS_HOME: [2.0, 2.0, 2.0],
    PEER_OFFLOADED: [4.0, 8.0, 3.0],
    PEER_HOME: [3.0, 2.0, 1.0],
}


@pytest.fixture(autouse=True)
def enough_memory(monkeypatch):
    """How contenders share processes does not depend on what else runs here."""
    monkeypatch.setattr(step, "available_memory_bytes", lambda: 64e9)


def silent() -> Progress:
    return Progress(Budget(1.0), io.StringIO())


def timed(seconds=None, **given) -> Heard:
    return Heard(seconds=SECONDS if seconds is None else seconds, **given)


def of_time(heard, failed=None):
    return step_tables.time_case(SIZE, heard, failed or {}, ["a remark"])


def figures(*cases) -> list:
    return step_tables.figures(Results([], list(cases), bench=step_tables.STEP))


def counted(sent=1.0, storage=0):
    found = {"sent": sent, "sent_most": sent * 1.5, "tensor_storage": storage, "large_buffers": 0, "calls": 6}
    return Heard(found={name: dict(found) for name in COUNTED})


# ---- tables and verdicts -------------------------------------------------------------------------


def test_ratios_are_medians_of_pairs_with_the_offloaded_step_of_ours():
    case = of_time([timed()])
    assert [row.name for row in case.rows] == list(ALL) and case.rows[0].ratio is None
    assert case.row(PEER_OFFLOADED).ratio.median == 4.0 and case.row(PEER_HOME).ratio.median == 1.0


def test_the_factors_of_time_are_met_or_not():
    offloaded, home = figures(of_time([timed()]))
    assert (offloaded.bound, offloaded.measured, offloaded.met) == (3.5, 4.0, True)
    assert (home.bound, home.measured, home.met) == (2.0, 1.0, False)


def test_the_factors_of_time_are_stated_for_one_model():
    assert figures(step_tables.time_case(Size(1024, 8), [timed()], {}, [])) == []


def test_a_peer_that_failed_is_a_row_and_a_figure_that_was_not_measured():
    left = {name: seconds for name, seconds in SECONDS.items() if name != PEER_OFFLOADED}
    case = of_time([timed(left)], {PEER_OFFLOADED: "rank 1, step: RuntimeError: broken"})
    row = case.row(PEER_OFFLOADED)
    assert (row.status, row.why) == (FAILED, "rank 1, step: RuntimeError: broken")
    assert case.row(PEER_HOME).ratio.median == 1.0
    assert figures(case)[0].met is None and "broken" in figures(case)[0].why


def test_without_our_step_there_are_times_and_no_ratios():
    left = {name: seconds for name, seconds in SECONDS.items() if name != OURS_OFFLOADED}
    case = of_time([timed(left)], {OURS_OFFLOADED: "rank 0, step: broken"})
    assert {row.name: row.status for row in case.rows} == {**dict.fromkeys(ALL, MEASURED), OURS_OFFLOADED: FAILED}
    assert all(row.ratio is None for row in case.rows)
    assert all(figure.met is None and "broken" in figure.why for figure in figures(case))


def test_launches_in_turns_make_one_table_with_ratios_within_each():
    first = timed({name: SECONDS[name] for name in (OURS_OFFLOADED, OURS_HOME)})
    second = timed({OURS_OFFLOADED: [2.0], PEER_HOME: [10.0]})
    case = of_time([first, second])
    assert case.rows[0].seconds == SECONDS[OURS_OFFLOADED] and case.row(PEER_HOME).ratio.median == 5.0


def test_contenders_share_processes_as_far_as_the_memory_goes():
    def groups(gigabytes):
        return step_tables.turns(ALL, 2, SIZE, gigabytes * 1e9)

    assert groups(24) == [ALL]
    assert groups(6.8) == [(OURS_OFFLOADED, OURS_HOME, PEER_OFFLOADED), (OURS_OFFLOADED, PEER_HOME)]
    assert groups(0) == [(OURS_OFFLOADED, other) for other in ALL[1:]]


def test_memory_is_compared_with_and_without_offload():
    def heard(growth, peak):
        return Heard(found={name: {"growth_bytes": growth * 2**20, "peak_bytes": peak * 2**20} for name in ALL})

    case = step_tables.memory_case(
        SIZE, {name: heard(*(1, 100) if name == OURS_HOME else (5, 200)) for name in ALL}, {}
    )
    assert [(f.measured, f.bound, f.met) for f in figures(case)] == [
        (200.0, 200.0, False),
        (5.0, 5.0, False),
        (100.0, 200.0, True),
        (1.0, 5.0, True),
    ]


def test_a_contender_without_memory_says_why():
    heard = {name: Heard(failed=(name, "PermissionError: clear_refs")) for name in ALL}
    case = step_tables.memory_case(SIZE, heard, {})
    assert [row.why for row in case.rows] == ["PermissionError: clear_refs"] * 4
    text = report.text(Results([("processor", "a test")], [case], bench=step_tables.STEP))
    assert "not measured (PermissionError: clear_refs)" in text and "ms  " not in text


def test_bytes_are_compared_with_what_two_exchanges_take():
    assert (
        step_tables.planned_bytes(2, bytes_each=2) == 1.0
        and step_tables.planned_bytes(8, bytes_each=2) == 4 * 7 / 8 / 8
    )
    wire, *allocations = figures(step_tables.counts_case(SIZE, counted(sent=1.02), ranks=2))
    assert wire.measured == pytest.approx(1.02) and not wire.met and "1.53" in wire.why
    assert [f.met for f in allocations] == [True] * 3
    case = step_tables.counts_case(SIZE, counted(sent=2.0), ranks=2)
    assert (
        case.row(OURS_HOME).values[step_tables.OF_PLAN] == 1.0
        and case.row(WIRE_BF16).values[step_tables.OF_PLAN] == 2.0
    )


def test_one_rank_sends_nothing_and_an_allocation_is_not_met():
    wire, *allocations = figures(step_tables.counts_case(SIZE, counted(sent=0.0, storage=1), ranks=1))
    assert wire.met is None and "one rank" in wire.why
    assert [(f.measured, f.met) for f in allocations] == [(1, False)] * 3


def test_calls_that_were_not_seen_are_not_counted_as_none():
    heard = counted()
    heard.found[OURS_HOME]["calls"] = 0
    case = step_tables.counts_case(SIZE, heard, ranks=2)
    assert "not counted" in case.row(OURS_HOME).note
    assert [f.met for f in figures(case)] == [True, True, None, True]


def test_the_report_has_all_parts(tmp_path):
    peaks = {name: Heard(found={name: {"growth_bytes": 2**20, "peak_bytes": 2**30}}) for name in ALL}
    time = of_time([timed(found={OURS_HOME: {"phases": {"apply": 1.5}}})])
    memory = step_tables.memory_case(SIZE, peaks, {PEER_HOME: "eager: faster"})
    cases = [time, memory, step_tables.counts_case(SIZE, counted(), 2)]
    report.write(tmp_path, Results([("processor", "a test")], cases, bench=step_tables.STEP))
    text = (tmp_path / "step.txt").read_text()
    assert "eager: faster" in text and "a remark" in text and "apply 1.5" in text and "1,024" in text
    found = json.loads((tmp_path / "step.json").read_text())
    assert [case["part"] for case in found["cases"]] == ["time", "memory", "counts"] and len(found["figures"]) == 10
    assert (tmp_path / "step.png").exists()


def test_a_report_without_ratios_has_no_picture(tmp_path):
    results = Results([("processor", "a test")], [step_tables.counts_case(SIZE, counted(), 2)], bench=step_tables.STEP)
    report.write(tmp_path, results)
    assert not plot.has_bars(results) and not (tmp_path / "step.png").exists()


# ---- jobs and events -----------------------------------------------------------------------------


def test_a_job_comes_back_from_its_text():
    job = Job("time", SIZE, ALL, 3.0, {PEER_HOME: "eager"})
    assert Job.of_text(job.as_text()) == job


def test_the_first_failure_is_kept_and_every_rank_may_tell_it(monkeypatch):
    told, heard = [], Heard()
    monkeypatch.setattr(step_events.channel, "tell", lambda **event: told.append(event))
    for rank in (1, 0):
        with pytest.raises(SystemExit), Reporter(rank).during(PEER_HOME, "step"):
            raise RuntimeError(f"broken {rank}")
    Reporter(1).say("only rank 0 says how it goes")
    heard.take_all(told, silent())
    assert heard.failed == (PEER_HOME, "rank 1, step: RuntimeError: broken 1") and heard.doing == (PEER_HOME, "step")


def test_what_rank_0_tells_is_heard_and_what_is_not_known_raises(monkeypatch):
    told, heard = [], Heard()
    monkeypatch.setattr(step_events.channel, "tell", lambda **event: told.append(event))
    reporter = Reporter(0)
    reporter.say("words")
    reporter.tell("round", number=2, seconds={OURS_HOME: [1.0, 2.0]})
    reporter.tell("mode", name=PEER_HOME, mode="eager", words="eager: faster")
    reporter.tell("found", name=OURS_HOME, values={"growth_bytes": 1})
    with reporter.during(OURS_HOME, "step"):
        pass
    reporter.tell("done")
    heard.take_all(told, silent())
    assert heard == Heard(
        {OURS_HOME: [1.0, 2.0]},
        {PEER_HOME: "eager"},
        {PEER_HOME: "eager: faster"},
        {OURS_HOME: {"growth_bytes": 1}},
        None,
        (OURS_HOME, "step"),
        True,
    )
    with pytest.raises(AssertionError, match="does not know"):
        heard.take_all([{"kind": "other"}], silent())


def test_the_peak_is_above_what_was_there_before():
    peak = Peak()
    with mmap.mmap(-1, 2**26) as block:  # fresh pages: malloc may hand out what is resident already
        block.write(b"x" * 2**26)
    assert peak.growth_bytes() > 2**25 and peak.peak_bytes() >= peak.growth_bytes()


class Launches:
    """In place of real ones: each takes the next of `heard`, or raises it."""

    ranks, starting_seconds = 2, 0.0

    def __init__(self, *heard):
        self.heard, self.jobs = list(heard), []

    def run(self, job, heard, longest):
        self.jobs.append(job)
        vars(heard).update(vars(self.heard[0]))
        if isinstance(found := self.heard.pop(0), Interrupted):
            raise KeyboardInterrupt
        return found


class Interrupted(Heard):
    pass


def bench(tmp_path, *heard, parts=("time",), budget=1000.0):
    launches = Launches(*heard)
    session = Session(step_tables.STEP, tmp_path, budget)
    session.results.header.append(("processor", "a test"))
    return step._Bench(parts, launches, session), launches


def test_one_that_fails_is_left_out_and_the_others_start_again(tmp_path):
    left = {name: seconds for name, seconds in SECONDS.items() if name != PEER_OFFLOADED}
    running, launches = bench(tmp_path, Heard(failed=(PEER_OFFLOADED, "broken")), timed(left))
    running.measure(SIZE)
    assert [job.contenders for job in launches.jobs] == [ALL, tuple(left)]
    (case,) = running.session.results.cases
    assert case.row(PEER_OFFLOADED).why == "broken" and case.row(PEER_HOME).ratio is not None


def test_an_interrupt_keeps_the_rounds_that_were_told(tmp_path):
    running, _ = bench(tmp_path, Interrupted(seconds=SECONDS))
    with pytest.raises(KeyboardInterrupt):
        running.measure(SIZE)
    assert (
        running.session.results.cases[0].row(PEER_OFFLOADED).ratio.median == 4.0 and (tmp_path / "step.json").exists()
    )


def test_how_the_peer_runs_is_decided_once(tmp_path):
    running, launches = bench(
        tmp_path, timed(modes={PEER_HOME: "eager"}, mode_words={PEER_HOME: "eager: faster"}), timed()
    )
    running.measure(SIZE)
    running.measure(SIZE)
    assert [job.modes for job in launches.jobs] == [{}, {PEER_HOME: "eager"}]
    assert all(f"{PEER_HOME} runs eager: faster" in case.remarks for case in running.session.results.cases)


def test_what_does_not_fit_the_budget_is_named(tmp_path):
    running, launches = bench(tmp_path, parts=("counts",), budget=100.0)
    running.taken["counts"] = (20.0, 70.0, SIZE.work)
    running.measure(Size(1024, 8))
    running.session.budget = Budget(0.0)
    running.measure(SIZE)
    assert not launches.jobs and not running.session.results.cases
    first, second = running.session.results.left_out
    assert first.startswith("counts of 1024x8: about 580 s") and "is spent; raise --budget-seconds" in second


# ---- another tree ---------------------------------------------------------------------------------

OTHER = Path("/other")
THEIRS = {name: f"{name}, {OTHER}" for name in (OURS_OFFLOADED, OURS_HOME)}


def pair(**given) -> beside.Pair:
    return beside.Pair(OTHER, SIZE, 2, None, 1.0, **given)


def of_trees(factor: float) -> dict[str, list[float]]:
    ours = {OURS_OFFLOADED: [1.0, 2.0, 4.0], OURS_HOME: [1.0, 1.0, 1.0]}
    return ours | {THEIRS[name]: [factor * s for s in seconds] for name, seconds in ours.items()}


def test_each_contender_of_a_tree_is_compared_with_that_of_the_other_in_pairs():
    cases = pair(weights=[["a", "b"], ["a", "c"]]).cases(Samples(of_trees(1.5)))
    assert [[row.name for row in case.rows] for case in cases] == [
        [OURS_OFFLOADED, THEIRS[OURS_OFFLOADED]],
        [OURS_HOME, THEIRS[OURS_HOME]],
    ]
    assert [case.rows[1].ratio.median for case in cases] == [1.5, 1.5] and cases[0].rows[0].ratio is None
    assert ["bit for bit" in case.remarks[0] for case in cases] == [True, False] and "DIFFER" in cases[1].remarks[0]
    assert [figure.met for figure in figures(*cases)] == [True, True]


def test_a_tree_that_is_slower_than_the_other_is_not_met():
    assert [f.met for f in figures(*pair().cases(Samples(of_trees(0.96))))] == [False, False]


def test_a_round_that_was_interrupted_does_not_count():
    seconds = of_trees(2.0)
    seconds[OURS_HOME].pop()
    cases = pair().cases(Samples(seconds))
    assert {len(row.seconds) for case in cases for row in case.rows} == {2} and "not compared" in cases[0].remarks[0]
    assert pair().cases(Samples({name: [] for name in seconds})) == []


def test_a_tree_that_fails_is_a_row_that_says_why():
    failed = dict.fromkeys(THEIRS.values(), "the ranks ended with status 1: no such module")
    left = {name: s for name, s in of_trees(1.0).items() if name not in failed}
    for case in pair().cases(Samples(left, {}, failed)):
        assert [row.status for row in case.rows] == [MEASURED, FAILED] and case.rows[1].why == failed[case.rows[1].name]
    assert all(f.met is None and "no such module" in f.why for f in figures(*pair().cases(Samples(left, {}, failed))))


def test_a_tree_whose_ranks_end_is_told_with_their_last_words(tmp_path):
    (tmp_path / "python/zeromuon").mkdir(parents=True)
    (tmp_path / "python/zeromuon/__init__.py").write_text("raise RuntimeError('this tree is broken')")
    with beside.Tree(tmp_path, Size(16, 1), 1, tmp_path / "log", time.monotonic() + 200) as tree:
        with pytest.raises(RuntimeError, match="the ranks ended with status"):
            tree.ready()
    assert "this tree is broken" in (tmp_path / "log").read_text()


# ---- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--model", "512"], "WIDTHxLAYERS"),
        (["--model", "0x3"], "WIDTHxLAYERS"),
        (["--model", "16384x1024"], "GB are free"),
        (["--ranks", "0"], "whole number from 1"),
        (["--ranks", "100000"], "expected at most"),
        (["--budget-seconds", "soon"], "whole number"),
        (["--only", "speed"], "memory"),
        (["--rank", "2"], 'did you mean "--ranks"'),
        (["--beside", "/nowhere"], "/nowhere has no python/zeromuon/__init__.py; name another"),
        (["--beside", str(ROOT), "--only", "time"], "leave out one of them"),
        (["--beside", str(ROOT), "--model", "8192x16"], "GB are free"),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=words):
        command.run(["step", *arguments])
    assert not list(tmp_path.iterdir())


def test_a_tree_without_built_modules_is_refused(tmp_path):
    (tmp_path / "python/zeromuon").mkdir(parents=True)
    (tmp_path / "python/zeromuon/__init__.py").touch()
    with pytest.raises(ValueError, match=r"expected built modules, .* has no _core\..*; build that tree"):
        command.run(["step", "--beside", str(tmp_path)])


def test_a_folder_with_results_is_refused(tmp_path):
    (tmp_path / "step.json").touch()
    with pytest.raises(ValueError, match="has results"):
        step.run(["--out", str(tmp_path)])


# ---- real runs -----------------------------------------------------------------------------------


@pytest.fixture
def command_line(start):
    """command_line(*arguments, first_paths): the running command; torch.compile is off, the compiler takes longer than the tests."""
    command = [sys.executable, "-m", "zeromuon", "bench", "step"]
    pipes = {"text": True, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return lambda *arguments, first_paths=(): start([*command, *arguments], env=environment(first_paths), **pipes)


def finished(running) -> tuple[str, str]:
    text, progress = running.communicate(timeout=300)
    assert running.returncode == 0, progress
    return text, progress


def rows_in(folder) -> dict[str, dict]:
    (case,) = json.loads((folder / "step.json").read_text())["cases"]
    return {row["name"]: row for row in case["rows"]}


def test_a_tiny_race_with_a_peer_that_fails(command_line, tmp_path):
    """DeepSpeed itself refuses what sitecustomize.py asks of one of the two."""
    (tmp_path / "sitecustomize.py").write_text(
        "import zeromuon.commands.bench.step.contenders as c\n"
        "config = c.config\n"
        "def broken(name):\n"
        "    made = config(name)\n"
        "    if name == c.PEER_HOME:\n"
        "        made['zero_optimization']['reduce_scatter'] = True\n"
        "    return made\n"
        "c.config = broken\n"
    )
    out = tmp_path / "out"
    text, progress = finished(
        command_line(
            *TINY, "--only", "time", "--budget-seconds", "600", "--out", str(out), first_paths=(str(tmp_path),)
        )
    )
    rows = rows_in(out)
    assert rows[PEER_HOME]["status"] == FAILED and "reduce scatter" in rows[PEER_HOME]["why"]
    assert rows[PEER_OFFLOADED]["ratio"]["median"] > 0 and len(rows[OURS_OFFLOADED]["seconds"]) >= 3
    assert "newton_schulz" in text and "torch.compile, which does not work here" in text and "in turns" in progress
    assert (out / "step.png").exists() and (out / "ranks.log").exists()


@pytest.mark.full
def test_a_tree_beside_itself(command_line, tmp_path):
    out = tmp_path / "out"
    text, progress = finished(command_line(*TINY, "--beside", str(ROOT), "--budget-seconds", "100", "--out", str(out)))
    cases = json.loads((out / "step.json").read_text())["cases"]
    assert [case["part"] for case in cases] == ["beside"] * 2 and len(cases) == 2
    for case, name in zip(cases, (OURS_OFFLOADED, OURS_HOME)):
        ours, theirs = case["rows"]
        assert (ours["name"], theirs["name"]) == (name, f"{name}, {ROOT}")
        assert theirs["ratio"]["median"] > 0 and len(ours["seconds"]) == len(theirs["seconds"]) >= 3
        assert "the same, bit for bit" in case["remarks"][0]
    assert f"beside {ROOT}, each with ranks" in text and "in turns" in progress and (out / "step.png").exists()


def test_a_tiny_count_of_bytes_and_allocations(command_line, tmp_path):
    out = tmp_path / "out"
    finished(command_line(*TINY, "--only", "counts", "--budget-seconds", "600", "--out", str(out)))
    rows = rows_in(out)
    for name in COUNTED:
        values = rows[name]["values"]
        planned = step_tables.planned_bytes(ranks=2, bytes_each=2 if name == WIRE_BF16 else 4)
        beside = (values[step_tables.SENT] - planned) * Size(16, 1).muon_numel
        assert beside == pytest.approx(RECORD + 2 * HEAD, abs=1), name
        assert (values[step_tables.STORAGE], values[step_tables.BUFFERS]) == (0, 0), name


def test_the_memory_of_a_tiny_step(tmp_path):
    from zeromuon.commands.bench.step import contenders as step_contenders

    heard = Heard()
    launcher = step_launch.Launcher(1, tmp_path / "log", silent())
    old = dict(os.environ)
    os.environ.update(environment())
    try:
        launcher.run(Job("memory", Size(16, 1), (step_contenders.PEER_HOME,)), heard, 200.0)
    finally:
        os.environ.clear()
        os.environ.update(old)
    assert heard.failed is None and heard.found[PEER_HOME]["peak_bytes"] > heard.found[PEER_HOME]["growth_bytes"] >= 0


def test_ranks_that_take_too_long_are_ended(tmp_path):
    heard = Heard()
    step_launch.Launcher(1, tmp_path / "log", silent()).run(Job("time", Size(16, 1), (PEER_HOME,)), heard, 0.5)
    assert "not done within" in heard.failed[1] and not heard.done


def test_an_interrupt_leaves_what_was_measured(command_line, tmp_path):
    out = tmp_path / "out" / "step.json"
    running = command_line(
        *TINY, "--model", "64x512", "--only", "counts", "--budget-seconds", "1000000", "--out", str(out.parent)
    )
    end = time.monotonic() + 300
    while not out.exists() and time.monotonic() < end:
        time.sleep(0.1)
    running.send_signal(signal.SIGINT)
    text, progress = running.communicate(timeout=300)
    assert running.returncode == report.INTERRUPTED, progress
    assert "INTERRUPTED" in text and "interrupted" in progress
    found = json.loads(out.read_text())
    assert found["interrupted"] and [case["key"] for case in found["cases"]] == ["16x1"]
