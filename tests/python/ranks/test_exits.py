"""A script of a user ends with status 0, in whatever order it gives up engine and process group."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import processes
from tests.python.ranks.exits import ORDERS

SCRIPT = Path(__file__).with_name("exits.py")
FEW, MANY = 2, 25  # launches of two ranks for each of four orders


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    "launches", [pytest.param(FEW, id="few"), pytest.param(MANY, id="many", marks=pytest.mark.full)]
)
def test_every_exit_of_a_script_is_one_without_error(order, launches):
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"}
    given = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": environment}
    with processes.running([sys.executable, str(SCRIPT), order, str(launches)], **given) as process:
        output, _ = process.communicate(timeout=500)
    ends = [line for line in output.splitlines() if "ended with" in line]
    assert not ends and f"{2 * launches} exits" in output, output[-4000:]
