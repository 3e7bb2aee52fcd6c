"""Runs a command of docs/integration.md in a folder of its own and reads what its ranks reported."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests import processes
from tests.integration import doc_blocks
from tests.multirank import launch

ROOT = Path(__file__).resolve().parents[2]
PROBE = Path(__file__).resolve().parent / "probe"
SECONDS_PER_LAUNCH = 300
_LAUNCHERS = "torchrun --nproc-per-node 2|accelerate launch --use_deepspeed --num_processes 2"
_LAUNCHED = re.compile(rf"(?:{_LAUNCHERS}) (\w+\.py\b[^\n|&;<>]*)\n")
PRELOADED = ("peft", "transformers.models.llama.modeling_llama")  # transformers.trainer would start a thread


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
    quiet = {**launch.QUIET, "PET_STANDALONE": "1"}  # torchrun then takes a free port
    return {
        **kept,
        **paths,
        **quiet,
        "DS_ACCELERATOR": "cpu",
        "TORCHDYNAMO_DISABLE": "1",
        "OMP_NUM_THREADS": "1",
        **more,
    }


def run_block(name: str, folder: Path, as_written: bool) -> Outcome:
    """Runs the bash block run=`name` in `folder`.

    as_written: by bash; otherwise a command that is no more than a launcher and a script gets its two ranks by a fork.
    """
    command = doc_blocks.command(name)
    alone = _LAUNCHED.fullmatch(command)
    if as_written or not alone:
        return run(["bash", "-e", "-c", command], folder)
    return run_script(alone.group(1).split(), folder)


def run(command: list[str], folder: Path) -> Outcome:
    """Runs `command` in `folder`; it and its ranks end with this call."""
    _forget_reports(folder)
    given = {"cwd": folder, "env": environment(ZEROMUON_PROBE=str(folder)), "text": True, "errors": "replace"}
    with processes.running(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **given) as process:
        try:
            log = process.communicate(timeout=SECONDS_PER_LAUNCH)[0]
        except subprocess.TimeoutExpired as late:
            log = f"no end after {SECONDS_PER_LAUNCH} s:\n{late.output!r}"
    return Outcome(process.returncode, log, _reports(folder))


def run_script(command: list[str], folder: Path) -> Outcome:
    """As two ranks that run the script command[0] with the rest as its arguments, watched by probe/watching.py."""
    return run_ranks("tests.integration.watched_script", folder, *command)


def run_ranks(target: str, folder: Path, *arguments: str) -> Outcome:
    """Two ranks that run a script in `folder`, or the main() of a module of the tests, without a launcher of users."""
    _forget_reports(folder)
    variables = environment(ZEROMUON_PROBE=str(folder))
    variables["PYTHONPATH"] += os.pathsep + str(ROOT)
    ended = launch.launch(2, target, list(arguments), folder, variables, preload=PRELOADED, seconds=SECONDS_PER_LAUNCH)
    return Outcome(int(bool(ended.why)), f"{ended.log}{ended.why}", _reports(folder))


def _forget_reports(folder: Path) -> None:
    for old in folder.glob("rank*.json"):
        old.unlink()


def _reports(folder: Path) -> list[dict]:
    return [json.loads(report.read_text()) for report in sorted(folder.glob("rank*.json"))]
