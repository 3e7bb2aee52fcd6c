"""`zeromuon compare`: its rows, its verdicts, that it can fail, and rows end to end."""

import subprocess
import sys

import pytest

from tests.multirank.launch import environment
from zeromuon.compare import command
from zeromuon.compare.rows import DEEPSPEED, OURS, ROWS, bar_of

CLIP = next(row for row in ROWS if row.name == "clip")
ROLES = next(row for row in ROWS if row.name == "roles")


def results(theirs, ours):
    return {DEEPSPEED: theirs, OURS: ours}


def test_every_row_has_its_measurement():
    from zeromuon.compare import checkpoints, fp32, sixteen_bits

    for row in ROWS:
        found = [m for m in (fp32, sixteen_bits, checkpoints) if hasattr(m, row.name)]
        assert len(found) == 1, row.name


def test_the_list_names_every_row(capsys):
    assert command.run(["--list"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert listed == [row.name for row in ROWS] and len(set(listed)) == len(listed)


def test_an_unknown_row_names_the_nearest():
    with pytest.raises(ValueError, match='did you mean "clip'):
        command.run(["--row", "clipp"])


def test_the_command_starts_without_torch():
    code = "import sys, zeromuon.compare.command; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_ours_over_the_bar_is_missed_and_the_exit_status_says_so():
    found = {"clip": results({"value": 1e-2}, {"value": 3e-6})}
    assert command.exit_status([CLIP], found) == 1
    assert "live, ours MISSED" in command.table([CLIP], found)


def test_what_ours_raises_is_missed():
    found = {"clip": results({"value": 0.0}, {"error": "ValueError: no"})}
    assert command.exit_status([CLIP], found) == 1
    assert "zeromuon: ValueError: no" in command.table([CLIP], found)


def test_not_a_number_is_missed():
    assert not command.holds(CLIP, {"value": float("nan")})


def test_what_deepspeed_fixed_and_what_it_has_are_named():
    found = {"clip": results({"value": 1e-7}, {"value": 1e-7}), "roles": results({"value": 2.0}, {"value": 0.0})}
    text = command.table([CLIP, ROLES], found)
    fixed, live = text.split("live in this DeepSpeed:")
    assert CLIP.defect in fixed.split("fixed in this DeepSpeed")[1] and ROLES.defect in live
    assert command.exit_status([CLIP, ROLES], found) == 0


def test_a_defect_is_measured_on_deepspeed_and_not_on_ours(capsys):
    assert command.run(["--row", "unknown_option", "--row", "clip"]) == 0
    assert "ours ok" in capsys.readouterr().out


def test_a_spoilt_learning_rate_of_ours_misses_the_bar():
    assert command.measure("clip", OURS, spoil=True)["value"] > 10 * bar_of(CLIP)


@pytest.mark.full
def test_ours_meets_every_bar():
    assert command.run([]) == 0
