"""A script of a user ends with status 0, in whatever order it gives up engine and process group."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import processes

SCRIPT = Path(__file__).with_name("exits.py")
FEW, MANY = 6, 100  # launches of two ranks
SECONDS_PER_LAUNCH = 30  # of which it takes some 6, on a machine that has nothing else to do


@pytest.mark.parametrize("launches, whole", [(FEW, []), pytest.param(MANY, ["whole"], marks=pytest.mark.full)])
def test_every_exit_of_a_script_is_one_without_error(launches, whole):
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"}
    given = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": environment}
    with processes.running([sys.executable, str(SCRIPT), str(launches), *whole], **given) as process:
        output, _ = process.communicate(timeout=120 + SECONDS_PER_LAUNCH * launches)
    ends = [line for line in output.splitlines() if "ended with" in line]
    assert not ends and f"{2 * launches} exits" in output, output[-4000:]
