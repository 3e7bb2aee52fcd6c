"""A script of a user ends with status 0, in whatever order it gives up engine and process group."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import processes

SCRIPT = Path(__file__).with_name("exits.py")
SECONDS_PER_LAUNCH = 30  # of two ranks; it takes 6 to 16 of them, on a machine that has nothing else to do

in_full = functools.partial(pytest.param, marks=pytest.mark.full)


# In all 200 exits in --full. Those of whole interpreters, which take longer, find more.
@pytest.mark.parametrize("launches, whole", [(6, []), in_full(82, []), in_full(12, ["whole"])])
def test_every_exit_of_a_script_is_one_without_error(launches, whole):
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"}
    given = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": environment}
    with processes.running([sys.executable, str(SCRIPT), str(launches), *whole], **given) as process:
        output, _ = process.communicate(timeout=120 + SECONDS_PER_LAUNCH * launches)
    ends = [line for line in output.splitlines() if "ended with" in line]
    assert not ends and f"{2 * launches} exits" in output, output[-4000:]
