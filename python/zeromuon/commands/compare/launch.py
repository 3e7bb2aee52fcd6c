"""Runs one row on one system in fresh processes and brings its result back. No torch.

A result: {"kind", "seconds"} and, when it was measured, "figures" (one {"value", "bar", "shown"} each), else "error".
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

RANKS = 2
SECONDS_PER_RUN = 120
LOG_CHARACTERS = 1500

# Kinds of results. RAISED and TIMEOUT say something of the system; FAILED is a fault of the comparison itself.
MEASURED, RAISED, TIMEOUT, DIED, FAILED = "measured", "raised", "timeout", "died", "failed"


def measure(name: str, system: str, spoil: bool = False) -> dict:
    """The result of the row `name`. spoil: ours with a wrong learning rate, so that a test sees that it shows."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="zeromuon-compare-") as folder:
        out, log = Path(folder) / "results.jsonl", Path(folder) / "log"
        out.touch()
        arguments = [name, system, str(out), *(["--spoil"] if spoil else [])]
        ended = _run(_command("zeromuon.commands.compare.child", *arguments), folder, log)
        lines = [json.loads(line) for line in out.read_text().splitlines()]
        result = choose(lines, ended, log.read_text(errors="replace")[-LOG_CHARACTERS:])
    return {**result, "seconds": round(time.monotonic() - started, 1)}


def choose(lines: list[dict], ended: bool, log: str) -> dict:
    """One result from what the ranks wrote, in the order they wrote it. What the first rank raised goes first: the
    others then fail in a collective."""
    for line in lines:
        if line["kind"] != MEASURED:
            return {**line, "log": log} if line["kind"] == FAILED else line
    if lines:
        return lines[0]
    if not ended:
        return {"kind": TIMEOUT, "error": f"no end: after {SECONDS_PER_RUN} s"}
    return {"kind": DIED, "error": "died: the ranks ended without a result", "log": log}


def _command(module: str, *arguments: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(RANKS),
        "-m",
        module,
        *arguments,
    ]


def _environment() -> dict[str, str]:
    package = str(Path(__file__).resolve().parents[3])
    # In the order in which this process found its packages.
    path = os.pathsep.join(p for p in (os.environ.get("PYTHONPATH"), package) if p)
    return {
        **os.environ,
        "PYTHONPATH": path,
        "OMP_NUM_THREADS": "1",
        "TORCHDYNAMO_DISABLE": "1",
        "DS_ACCELERATOR": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONWARNINGS": "ignore",
    }


def _run(command: list[str], folder: str, log: Path) -> bool:
    """Whether the ranks ended by themselves in time. When not, or when this process is interrupted, they are ended."""
    with log.open("wb") as out:
        ranks = subprocess.Popen(command, cwd=folder, env=_environment(), stdout=out, stderr=subprocess.STDOUT)
        try:
            ranks.wait(SECONDS_PER_RUN)
            return True
        except subprocess.TimeoutExpired:
            return False
        finally:
            if ranks.poll() is None:
                ranks.terminate()  # it ends the ranks, which a kill would leave behind
                ranks.wait()


def installed_version(package: str) -> str:
    if package == "zeromuon":
        from ... import __version__

        return __version__
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
