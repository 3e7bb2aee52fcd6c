"""`zeromuon finetune` as a command of torchrun, on one machine or several: every process of it is a rank.

Rank 0 looks at the options and makes the run folder, which all machines must see; the others hear of it, or of what is wrong. A
restart by torchrun goes on from the newest whole checkpoint.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from ...base import durable
from ...ranks import machine
from ...ranks.leave import leave, outlive_output
from . import launch, run_folder
from .run_folder import FAILED, INTERRUPTED, RunFolder
from .settings import Settings


def by_torchrun() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ and "RANK" in os.environ


def run(given: dict, out: str | None, wants_resume: bool, new_settings: Callable[[dict], Settings]) -> NoReturn:
    """The life of this rank, with torchrun's number of ranks. new_settings: of a new run, from what was given.

    Does not return: it leaves with the exit status, 0 when finished or stopped and saved, 2 for bad input, 1 for what failed.
    """
    os.environ.update(launch.rank_environment(_number("LOCAL_WORLD_SIZE")))
    outlive_output()
    import torch

    from ...ranks.connect import connect

    ranks = connect()
    lock, told = None, [None]
    if ranks.rank == 0:
        lock, told[0] = _prepared(given, out, wants_resume, new_settings)
    torch.distributed.broadcast_object_list(told, src=0)
    error = told[0].get("error") or _not_seen_everywhere(Path(told[0]["folder"]))
    if error:
        if ranks.rank == 0:
            for sentence in _restarts_that_may_fail():
                print(f"warning: {sentence}", file=sys.stderr)
            print(f"error: {error}", file=sys.stderr, flush=True)
        torch.distributed.destroy_process_group()
        leave(2)
    folder = RunFolder(Path(told[0]["folder"]))
    _note_agents(folder)
    if ranks.rank == 0:
        for sentence in told[0]["warnings"]:
            print(f"warning: {sentence}", file=sys.stderr)
        print(f"run folder: {folder.path}", flush=True)
    _train(folder, ranks, lock)


def _prepared(given: dict, out: str | None, wants_resume: bool, new_settings: Callable) -> tuple:
    """(the lock of the run folder, what the other ranks are told): the folder and warnings, or an error."""
    try:
        if not out:
            raise ValueError("--out is missing: under torchrun name a folder that every machine sees")
        world_size, here = _number("WORLD_SIZE"), _number("LOCAL_WORLD_SIZE")
        if given.get("ranks", world_size) != world_size:
            raise ValueError(f"--ranks {given['ranks']}: torchrun started {world_size}; leave --ranks out")
        given = {**given, "ranks": world_size}
        if wants_resume or _is_restart_of(RunFolder(Path(out).absolute())):
            folder = run_folder.unfinished_folder(out)
            lock = durable.Lock(folder.path)
            warnings = launch.prepare_resume(folder, given, here)[1]
        else:
            settings = new_settings(given)
            folder = run_folder.new_folder(out, settings.model_name)
            lock, warnings = launch.prepare_start(folder, settings, here)
        lock.share()
        folder.stop_request.unlink(missing_ok=True)
        durable.write_text(folder.started_by, json.dumps([_agent()]) + "\n")
        return lock, {"folder": str(folder.path), "warnings": [*warnings, *_restarts_that_may_fail()]}
    except OSError as error:
        return None, {"error": f"--out {out}: {error.strerror}; choose a folder that can be written"}
    except ValueError as error:
        return None, {"error": str(error)}


def _agent() -> str:
    """The torchrun of this machine that started this rank."""
    return machine.identity(os.getppid())


def _is_restart_of(folder: RunFolder) -> bool:
    """Whether a torchrun that had this run before has restarted its ranks: what it was refused once stays refused."""
    if _number("TORCHELASTIC_RESTART_COUNT") < 1 or not folder.settings.exists():
        return False
    agents = durable.read_json(folder.started_by)
    return isinstance(agents, list) and _agent() in agents


def _note_agents(folder: RunFolder) -> None:
    """Rank 0 may be on another machine after a restart. Every rank must call it."""
    import torch.distributed as dist

    agents: list = [None] * dist.get_world_size()
    dist.all_gather_object(agents, _agent())
    if dist.get_rank() == 0:
        durable.write_text(folder.started_by, json.dumps(sorted(set(agents))) + "\n")


def _restarts_that_may_fail() -> list[str]:
    """A warning where torchrun may restart ranks with the store of those before, in which gloo looks up addresses."""
    if _number("TORCHELASTIC_MAX_RESTARTS") < 1 or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return []
    return [
        "a restart by this torchrun may find the addresses of the ranks before it and end with 'Connection refused': export "
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 before torchrun, on all machines, gives each restart a store of its own"
    ]


def _number(variable: str) -> int:
    return int(os.environ.get(variable, "0"))


def _not_seen_everywhere(folder: Path) -> str:
    """An error where a machine does not see the run folder, the same on all ranks; else ""."""
    import torch.distributed as dist

    seen: list = [None] * dist.get_world_size()
    dist.all_gather_object(seen, (socket.gethostname(), RunFolder(folder).settings.is_file()))
    blind = sorted({host for host, sees in seen if not sees})
    if not blind:
        return ""
    return f"--out {folder}: not there on {', '.join(blind)}; name a folder that all machines share"


def _train(folder: RunFolder, ranks, lock) -> NoReturn:
    """lock: of rank 0; it is held until this process ends."""
    import torch

    from . import checkpoints, worker

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: _ask_to_stop(folder))
    settings = Settings.load(folder.settings)
    try:
        held = lock or durable.Lock(folder.path, shared=True)
        worker.train(folder, settings, ranks)
        held.close()
    except Exception as error:
        worker.log_traceback(folder)
        error = checkpoints.with_room_considered(error, folder.path)
        print(f"error: rank {ranks.rank}: {error}; the traceback is in {folder.log}", file=sys.stderr, flush=True)
        if ranks.rank == 0:
            folder.set_status(FAILED, folder.status()["step"])
        leave(2 if isinstance(error, ValueError) else 1)
    status = folder.status()
    stopped = status["state"] == INTERRUPTED
    if stopped and ranks.rank == 0:
        print(launch.stopped_text(status["step"], settings.steps, folder))
        print("go on with: the same command and --resume", flush=True)
    ranks.barrier()
    torch.distributed.destroy_process_group()
    leave(0)  # also when stopped: torchrun would restart what ends with another status


def _ask_to_stop(folder: RunFolder) -> None:
    """All ranks see it after their step. torchrun sends more than one signal, and kills after 30 seconds itself."""
    with contextlib.suppress(OSError):  # a full disk: the rank goes on, or says so when it saves
        folder.stop_request.touch()
