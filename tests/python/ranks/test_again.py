"""An aborted group leaves nothing in its store that ends the steps of the next."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_a_group_that_is_started_again_on_the_same_store_does_not_find_the_cause_of_before():
    own = {"OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"}
    script = Path(__file__).with_name("again.py")
    done = subprocess.run([sys.executable, script], env={**os.environ, **own}, capture_output=True, text=True)
    said = [line for line in done.stdout.splitlines() if line.startswith("limit ")]
    assert done.returncode == 0 and len(said) == 2, done.stderr[-3000:]
    assert "no progress for" in said[0] and "the process group is aborted" in said[0]
    assert said[1] == "limit 600: stepped"
