"""One torchrun launch per world size, with all rows that were selected for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SECONDS_PER_LAUNCH = 900


def row(id: str, kind: str, **arguments) -> dict:
    return {"id": id, "kind": kind, "arguments": arguments}


def run_rows(
    world_size: int,
    rows: list[dict],
    device: str = "cpu",
    first_paths: tuple[str, ...] = (),
    worker: str = "tests.multirank.worker",
) -> dict[str, dict]:
    """id -> result of every row; a row that did not come back says why under "failed". worker: the module that runs them."""
    with tempfile.TemporaryDirectory(prefix="zeromuon-rows-") as folder:
        wanted, out = Path(folder) / "rows.json", Path(folder) / "results.jsonl"
        wanted.write_text(json.dumps(rows))
        out.touch()
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            str(world_size),
            "-m",
            worker,
            str(wanted),
            str(out),
        ]
        log = _launch(command, folder, {**environment(first_paths), "ZEROMUON_TEST_DEVICE": device})
        results = {r["id"]: r for r in map(json.loads, out.read_text().splitlines())}
    for result in results.values():
        if "failed" in result:
            result["failed"] += f"\nThe end of the launch's log, of all ranks:\n{log[-3000:]}"
    for wanted_row in rows:
        results.setdefault(wanted_row["id"], {"failed": f"the launch ended before this row:\n{log[-6000:]}"})
    return results


def environment(first_paths: tuple[str, ...] = ()) -> dict[str, str]:
    """For processes that import the tests and the package of this tree. first_paths: go before both."""
    paths = [*first_paths, str(ROOT), str(ROOT / "python")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": "1",
        "TORCHDYNAMO_DISABLE": "1",
        "PYTHONWARNINGS": "ignore",
    }


def _launch(command: list[str], folder: str, variables: dict[str, str]) -> str:
    torchrun = subprocess.Popen(
        command,
        cwd=folder,
        env=variables,
        text=True,
        errors="replace",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        return torchrun.communicate(timeout=SECONDS_PER_LAUNCH)[0]
    except subprocess.TimeoutExpired:
        torchrun.terminate()  # it ends the ranks, which a kill would leave behind
        return f"no end after {SECONDS_PER_LAUNCH} s:\n{torchrun.communicate()[0]}"
