"""Runs a command of docs/integration.md in a folder of its own and reads what its ranks reported."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.integration import doc_blocks

ROOT = Path(__file__).resolve().parents[2]
PROBE = Path(__file__).resolve().parent / "probe"
SECONDS_PER_LAUNCH = 300


@dataclass(frozen=True)
class Outcome:
    """Of one launch. ranks: the reports of probe/watching.py, by rank."""

    code: int
    log: str
    ranks: list[dict]

    @property
    def losses(self) -> list[float]:
        """Every loss in the log, in order."""
        return [
            float(x) for x in re.findall(r"""\bloss['"]?:? *['"]?([-+]?(?:[0-9.]+(?:e-?[0-9]+)?|nan|inf))""", self.log)
        ]


def environment(**more: str) -> dict[str, str]:
    """For processes that run on CPUs, import this tree's package and find this python's programs."""
    dropped = ("LOCAL_RANK", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    kept = {k: v for k, v in os.environ.items() if k not in dropped}
    paths = {
        "PYTHONPATH": os.pathsep.join([str(PROBE), str(ROOT / "python")]),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }
    quiet = {
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PET_STANDALONE": "1",
    }  # torchrun then takes a free port
    return {
        **kept,
        **paths,
        **quiet,
        "DS_ACCELERATOR": "cpu",
        "TORCHDYNAMO_DISABLE": "1",
        "OMP_NUM_THREADS": "1",
        **more,
    }


def run_block(name: str, folder: Path) -> Outcome:
    """Runs the bash block run=`name` as written, in `folder`."""
    return run(["bash", "-e", "-c", doc_blocks.command(name)], folder)


def run(command: list[str], folder: Path, **variables: str) -> Outcome:
    """Runs `command` in `folder`, with these variables beside `environment`."""
    for old in folder.glob("rank*.json"):
        old.unlink()
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment(ZEROMUON_PROBE=str(folder), **variables),
        text=True,
        errors="replace",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        log = process.communicate(timeout=SECONDS_PER_LAUNCH)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGTERM)  # the launcher ends its ranks, which a kill would leave behind
        log = f"no end after {SECONDS_PER_LAUNCH} s:\n{process.communicate(timeout=60)[0]}"
    reports = sorted(folder.glob("rank*.json"))
    return Outcome(process.returncode, log, [json.loads(r.read_text()) for r in reports])
