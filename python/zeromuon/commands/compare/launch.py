"""Runs one row on one system in fresh processes and brings its result back. No torch.

A result: {"kind", "seconds"} and, when it was measured, "figures" (one {"value", "bar", "shown"} each), else "error".
"""

from __future__ import annotations

import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ... import __version__
from ...ranks.launch import Launch

RANKS = 2
SECONDS_PER_RUN = 120
LOG_CHARACTERS = 1500
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "DS_ACCELERATOR": "cpu",
    "CUDA_VISIBLE_DEVICES": "",
    "PYTHONWARNINGS": "ignore",
}

# Kinds of results. RAISED and TIMEOUT say something of the system; FAILED is a fault of the comparison itself.
MEASURED, RAISED, TIMEOUT, DIED, FAILED = "measured", "raised", "timeout", "died", "failed"


def measure(name: str, system: str) -> dict:
    """The result of the row `name`."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="zeromuon-compare-") as folder:
        log = Path(folder) / "log"
        given = {"ranks": RANKS, "environment": ENVIRONMENT, "log": log, "folder": Path(folder)}
        with Launch(f"{__package__}.child", name, system, **given) as ranks:
            ended = ranks.wait(SECONDS_PER_RUN) is not None
        result = choose(ranks.told(), ended, log.read_text(errors="replace")[-LOG_CHARACTERS:])
    return {**result, "seconds": round(time.monotonic() - started, 1)}


def choose(told: list[dict], ended: bool, log: str) -> dict:
    """One result from what the ranks told, in order. What the first rank raised goes first: the others then fail in a
    collective."""
    for result in told:
        if result["kind"] != MEASURED:
            return {**result, "log": log} if result["kind"] == FAILED else result
    if told:
        return told[0]
    if not ended:
        return {"kind": TIMEOUT, "error": f"no end: after {SECONDS_PER_RUN} s"}
    return {"kind": DIED, "error": "died: the ranks ended without a result", "log": log}


def installed_version(package: str) -> str:
    if package == "zeromuon":
        return __version__
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
