"""`zeromuon compare`: its rows, its verdicts, that it can fail, and rows end to end."""

import json
import signal
import subprocess
import sys
import time

import pytest

from tests import processes
from tests.multirank import launch as forked
from zeromuon.commands.compare import command, launch, report
from zeromuon.commands.compare.rows import DEEPSPEED, OURS, ROWS

BY_NAME = {row.name: row for row in ROWS}
DEFECTS = [
    "accumulation",
    "reduce_bucket",
    "zero_init",
    "mixed_shapes",
    "clip",
    "reduce_scatter",
    "bf16_momentum",
    "fp16_underflow",
    "fp16_scale",
    "offload_repeats",
    "bytes_moved",
    "init_roundtrip",
    "universal",
    "roles",
    "unknown_option",
]
SPOILT = ["accumulation", "clip"]
ONE_OF_EACH_KIND = ["mixed_shapes", "offload_repeats", "bf16_momentum", "init_roundtrip"]


def measured(*values, **given):
    return {"kind": launch.MEASURED, "figures": [{"value": value, **given} for value in values], "seconds": 1.0}


def ended(kind, error):
    return {"kind": kind, "error": error, "seconds": 1.0}


def judge(name, theirs, ours):
    """(exit status, printed text) of one row."""
    found = {name: {DEEPSPEED: theirs, OURS: ours}}
    return report.exit_status([BY_NAME[name]], found), report.text([BY_NAME[name]], found)


# ---- the list and the arguments ------------------------------------------------------------------


def test_the_list_names_every_defect(capsys):
    assert command.run(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == DEFECTS


def test_every_row_has_one_measurement():
    from zeromuon.commands.compare import checkpoints, fp32, sixteen_bits, work

    for row in ROWS:
        assert sum(hasattr(m, row.name) for m in (fp32, work, sixteen_bits, checkpoints)) == 1, row.name


def test_an_unknown_row_names_the_nearest():
    with pytest.raises(ValueError, match='did you mean "clip"'):
        command.run(["--row", "clipp"])


def test_an_unknown_option_is_refused():
    with pytest.raises(ValueError, match="--rows"):
        command.run(["--rows", "clip"])


def test_a_json_file_that_cannot_be_written_is_refused_before_anything_runs(tmp_path):
    with pytest.raises(ValueError, match="--json"):
        command.run(["--json", str(tmp_path / "nowhere" / "out.json")])


def test_the_command_starts_without_torch():
    code = "import sys, zeromuon.commands.compare.command; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=forked.environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


# ---- verdicts ------------------------------------------------------------------------------------


def test_ours_over_the_bar_is_missed_and_named():
    status, text = judge("bf16_momentum", measured(5e-3), measured(3e-6))
    assert status == 1
    assert "live; ours MISSED" in text and "MISSED by zeromuon:\n  bf16_momentum" in text


def test_a_bar_that_was_measured_counts():
    assert judge("mixed_shapes", measured(1e-2, bar=2e-6), measured(2e-6, bar=2e-6))[0] == 0
    assert judge("mixed_shapes", measured(1e-2, bar=2e-6), measured(3e-6, bar=2e-6))[0] == 1


def test_one_figure_of_two_over_the_bar_is_missed():
    assert judge("init_roundtrip", measured(0.5, 0.5), measured(0.0, 1e-9))[0] == 1


def test_not_a_number_is_missed():
    assert judge("bf16_momentum", measured(5e-3), measured(float("nan")))[0] == 1


@pytest.mark.parametrize("kind", [launch.RAISED, launch.TIMEOUT, launch.DIED, launch.FAILED])
def test_ours_without_a_figure_is_no_success(kind):
    assert judge("roles", measured(0.0), ended(kind, "ValueError: no"))[0] == 1


def test_what_deepspeed_meets_is_listed_as_fixed_and_what_it_misses_as_live():
    fixed = judge("roles", measured(0.0), measured(0.0))[1]
    assert "fixed in this release, DeepSpeed" in fixed and "release; ours ok" in fixed
    live = judge("roles", measured(2.0), measured(0.0))[1]
    assert "live; ours ok" in live and ":\n  roles: " in live.split("live in DeepSpeed")[1]


@pytest.mark.parametrize("kind", [launch.RAISED, launch.TIMEOUT])
def test_what_deepspeed_raises_is_a_result(kind):
    status, text = judge("reduce_scatter", ended(kind, "ValueError: not together"), measured(1e-7, bar=2e-6))
    assert status == 0
    assert "live; ours ok" in text and "reduce_scatter, deepspeed: ValueError: not together" in text


@pytest.mark.parametrize("kind", [launch.DIED, launch.FAILED])
def test_a_fault_of_the_comparison_is_no_verdict_on_deepspeed(kind):
    status, text = judge("roles", {**ended(kind, "KeyError: 'x'"), "log": "its last words"}, measured(0.0))
    assert status == 1
    assert "not measured; ours ok" in text and "its last words" in text


def test_a_crash_counts_where_the_defect_is_a_crash():
    assert judge("mixed_shapes", ended(launch.DIED, "died: x"), measured(1e-7, bar=2e-6))[0] == 0


def test_what_the_first_rank_raised_goes_before_what_the_others_report():
    lines = [{**measured(1.0), "rank": 0}, ended(launch.RAISED, "ValueError: first"), ended(launch.RAISED, "second")]
    assert launch.choose(lines, True, "")["error"] == "ValueError: first"
    assert launch.choose([], False, "")["kind"] == launch.TIMEOUT
    assert launch.choose([], True, "the log")["log"] == "the log"


# ---- real runs -----------------------------------------------------------------------------------


def test_a_defect_is_measured_on_both_systems(capsys, tmp_path):
    out = tmp_path / "out.json"
    assert command.run(["--row", "unknown_option", "--json", str(out)]) == 0
    found = json.loads(out.read_text())["rows"][0]
    assert found[OURS]["figures"] == [{"value": 0, "shown": "ValueError"}]
    assert "ours ok" in capsys.readouterr().out


@pytest.fixture(scope="module")
def ours_of():
    """(name, spoil) -> ours, all from one launch of forked ranks."""
    rows = [forked.row(name, name, spoil=False) for name in ONE_OF_EACH_KIND]
    rows += [forked.row(f"{name}, spoilt", name, spoil=True) for name in SPOILT]
    found = forked.run_rows(2, rows, worker="tests.python.commands.compare.worker")

    def of(name: str, spoil: bool = False) -> dict:
        ours = found[f"{name}, spoilt" if spoil else name]
        assert "failed" not in ours, ours["failed"]
        return ours

    return of


@pytest.mark.parametrize("name", ONE_OF_EACH_KIND)
def test_ours_meets_the_bars_of_a_row_of_each_kind(name, ours_of):
    ours = ours_of(name)
    assert report.meets(BY_NAME[name], ours), ours


@pytest.mark.parametrize("name", SPOILT)
def test_a_learning_rate_that_is_one_percent_off_misses_the_bar(name, ours_of):
    ours = ours_of(name, spoil=True)
    assert ours["figures"][0]["value"] > 10 * ours["figures"][0]["bar"]
    perfect = measured(*[0.0] * len(BY_NAME[name].figures), bar=1.0)
    status, text = judge(name, perfect, ours)
    assert status == 1 and "ours MISSED" in text


def test_an_interrupt_ends_the_ranks():
    code = "import sys; from zeromuon.commands.compare import command; sys.exit(command.run(['--row', 'clip']))"
    given = {"env": forked.environment(), "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with processes.running([sys.executable, "-c", code], **given) as running:
        _wait_until(lambda: processes.mark_of(running.pid))  # it has none while it is being loaded
        mark = processes.mark_of(running.pid)
        _wait_until(lambda: len(processes.alive(mark)) >= 4)  # the command, torchrun, two ranks
        running.send_signal(signal.SIGINT)
        assert running.wait(300) == command.INTERRUPTED
        _wait_until(lambda: not processes.alive(mark))


def _wait_until(holds, seconds=300):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.2)


@pytest.mark.full
def test_ours_meets_every_bar():
    assert command.run([]) == 0
