"""Launches of ranks, each with all rows that were selected for it: forked from one warm process, see fork_server.py."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SECONDS_PER_LAUNCH = 900
SERVER = Path(__file__).resolve().parent / "fork_server.py"
SHARED = "ZEROMUON_TEST_FORK_SERVER"  # the socket of a server that somebody else started, for launches on CPUs
# DeepSpeed imports the second when it makes its first engine; on GPUs nothing comes before the fork.
PRELOADED = {"cpu": ["deepspeed", "torch._dynamo"], "cuda": []}
QUIET = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}  # read when they are imported


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
        variables = {**environment(first_paths), "ZEROMUON_TEST_DEVICE": device}
        ended = launch(
            world_size,
            worker,
            [str(wanted), str(out)],
            Path(folder),
            variables,
            device=device,
            preload=_models_need(rows),
            own_paths=first_paths,
        )
        results = {r["id"]: r for r in map(json.loads, out.read_text().splitlines())}
    return _with_reasons(rows, results, ended)


def _models_need(rows: list[dict]) -> list[str]:
    wanted = {row["arguments"].get("model") for row in rows}
    return ["peft"] if "lora" in wanted else ["transformers.pytorch_utils"] if "convolutions" in wanted else []


def _with_reasons(rows: list[dict], results: dict[str, dict], ended: Ended) -> dict[str, dict]:
    """The results, with the launch's log where a row failed; all fail when only the end of the launch went wrong."""
    for wanted in rows:
        results.setdefault(wanted["id"], {"failed": f"the launch ended before this row: {ended.why or 'no error'}"})
    failed = [result for result in results.values() if "failed" in result]
    if ended.why and not failed:
        failed = list(results.values())
    for result in failed:
        why = result.get("failed", f"all rows were done, and then: {ended.why}")
        result["failed"] = f"{why}\nThe end of the launch's log, of all ranks:\n{ended.log[-6000:]}"
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


# ---- launches ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ended:
    """Of a launch: the exit statuses of its ranks, as of subprocess ([] when it took too long), its log, what went wrong."""

    statuses: list[int]
    log: str
    why: str


def launch(
    world_size: int,
    target: str,
    arguments: list[str],
    folder: Path,
    variables: dict[str, str],
    *,
    device: str = "cpu",
    preload: list[str] | tuple[str, ...] = (),
    own_paths: tuple[str, ...] = (),
    seconds: float = SECONDS_PER_LAUNCH,
) -> Ended:
    """Runs ranks in `folder`. target: a module whose main() they call, or a script. preload: imports that they can share.

    own_paths: where these imports come from before all else, which takes a process of its own.
    Raises RuntimeError when the process that forks them could not import what it was told to.
    """
    log = folder / "ranks.log"
    log.write_text("")
    wish = {
        "world_size": world_size,
        "target": target,
        "arguments": arguments,
        "folder": str(folder),
        "log": str(log),
        "variables": variables,
        "preload": [*PRELOADED[device], *preload],
        "seconds": seconds,
    }
    answer = _ask(_socket_of(device, own_paths), wish)
    if "refused" in answer:
        raise RuntimeError(answer["refused"])
    return Ended(answer["statuses"], log.read_text(errors="replace"), _why(answer, seconds))


def _why(answer: dict, seconds: float) -> str:
    if answer["timed_out"]:
        return f"no end after {seconds} s"
    failed = {rank: status for rank, status in enumerate(answer["statuses"]) if status}
    return f"ranks with an exit status that is not 0: {failed}" if failed else ""


def _ask(path: str, wish: dict) -> dict:
    with socket.socket(socket.AF_UNIX) as server, server.makefile("rw") as lines:
        server.connect(path)
        lines.write(json.dumps(wish) + "\n")
        lines.flush()
        return json.loads(lines.readline() or '{"refused": "the process that forks the ranks has ended"}')


# ---- the process that forks them -----------------------------------------------------------------

_servers = contextlib.ExitStack()


def _socket_of(device: str, own_paths: tuple[str, ...]) -> str:
    shared = os.environ.get(SHARED)
    return shared if shared and device == "cpu" and not own_paths else _started(device, own_paths)


@functools.cache
def _started(device: str, own_paths: tuple[str, ...]) -> str:
    return _servers.enter_context(fork_server(device, own_paths))


@contextlib.contextmanager
def fork_server(device: str = "cpu", own_paths: tuple[str, ...] = ()):
    """Starts one and gives its socket."""
    variables = {**environment(), **QUIET, "PYTHONPATH": os.pathsep.join(own_paths)}
    if device == "cpu":
        variables["DS_ACCELERATOR"] = "cpu"
    with tempfile.TemporaryDirectory(prefix="zeromuon-forks-") as folder:
        path, log = Path(folder) / "socket", Path(folder) / "log"
        command = [sys.executable, "-P", str(SERVER), str(path)]
        server = subprocess.Popen(
            command,
            env=variables,
            stdin=subprocess.PIPE,
            stdout=log.open("w"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            while not path.exists():
                if server.poll() is not None:
                    raise RuntimeError(f"{' '.join(command)} ended with {server.returncode}:\n{log.read_text()}")
                time.sleep(0.01)
            yield str(path)
        finally:
            server.stdin.close()  # at which it ends
            server.wait()


def shared_socket() -> str:
    """Of this process's own server for CPUs, for SHARED in the environment of others."""
    return _started("cpu", ())


def stop() -> None:
    """Ends the processes that this one started, which otherwise end with it."""
    _servers.close()
    _started.cache_clear()
