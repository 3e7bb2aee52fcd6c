"""A process that has imported torch and DeepSpeed, and forks the ranks of every launch: what they import costs once.

    python -P fork_server.py SOCKET

Runs by itself, outside of the package of tests, and imports nothing of this repository: a launch says where that comes from.
Launches come over the socket one by one, a line of JSON each (see `Launch`), and are answered by a line with the exit
statuses. It ends when its standard input does. Forking is safe as long as there is one thread, which is checked: no OpenMP
and no process group before.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
import time
import traceback

LONELY_S = 5.0  # after a rank failed, the others get this long to say what they know; then they are killed


@dataclasses.dataclass(frozen=True)
class Launch:
    """One launch of ranks.

    target: a module whose main() a rank calls, or a file ending in .py that it runs. variables: the whole environment;
    its PYTHONPATH goes first on the path. preload: what to import before the fork, once. log: stdout and stderr of all ranks.
    """

    world_size: int
    target: str
    arguments: list[str]
    folder: str
    log: str
    variables: dict[str, str]
    preload: list[str]
    seconds: float


def serve(path: str) -> None:
    """Until stdin ends. A launch whose client goes away is ended, too."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"{path}.new")
        listening.listen()
        os.rename(f"{path}.new", path)
        while listening in select.select([listening, sys.stdin], [], [])[0]:
            client, _ = listening.accept()
            with client, contextlib.suppress(BrokenPipeError), client.makefile("rw") as lines:
                launch = Launch(**json.loads(lines.readline()))
                lines.write(json.dumps(_answer(launch, client)) + "\n")


def _answer(launch: Launch, client: socket.socket) -> dict:
    """{"statuses": one per rank, as of subprocess} or {"refused": why}, and "timed_out"."""
    try:
        for name in launch.preload:
            importlib.import_module(name)
    except Exception:
        return {"refused": traceback.format_exc()}
    threads = len(os.listdir("/proc/self/task"))
    if threads != 1:
        return {"refused": f"{threads} threads run after importing {launch.preload}, expected 1: forking is not safe"}
    gc.collect()
    gc.freeze()
    return _run(launch, client)


def _run(launch: Launch, client: socket.socket) -> dict:
    """Forks the keeper of a session, in which the ranks are, and waits for its word."""
    receiving, sending = os.pipe()
    keeper = os.fork()
    if keeper == 0:
        os.close(receiving)
        _leave_with(lambda: _keep(launch, sending))
    os.close(sending)
    ended, _, _ = select.select([receiving, client], [], [], launch.seconds)
    with open(receiving) as said:
        statuses = json.loads(said.read() or "[]") if receiving in ended else []
    _kill_session(keeper)
    os.waitpid(keeper, 0)
    return {"statuses": statuses, "timed_out": not ended}


def _kill_session(keeper: int) -> None:
    """What the ranks started and left is in it, too."""
    try:
        os.killpg(keeper, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _keep(launch: Launch, said: int) -> None:
    """Forks the ranks into a session of their own, holds their store, and writes their exit statuses to `said`.

    The store starts after the forks, since it has a thread; its port goes to the ranks through a pipe.
    """
    os.setsid()
    _prepare(launch)
    port_of, to_ranks = os.pipe()
    ranks = []
    for rank in range(launch.world_size):
        pid = os.fork()
        if pid == 0:
            os.close(to_ranks), os.close(said)
            _leave_with(lambda: _be_rank(rank, launch, port_of))
        ranks.append(pid)
    os.close(port_of)
    import torch.distributed

    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    os.write(to_ranks, f"{store.port:5d}".encode() * launch.world_size)
    os.write(said, json.dumps(_statuses(ranks)).encode())


def _prepare(launch: Launch) -> None:
    """Working folder, environment, path and output of a launch."""
    os.chdir(launch.folder)
    os.environ.clear()
    os.environ.update(launch.variables)
    sys.path[:0] = launch.variables.get("PYTHONPATH", "").split(os.pathsep)
    importlib.invalidate_caches()
    log = os.open(launch.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0), os.dup2(log, 1), os.dup2(log, 2)
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def _statuses(ranks: list[int]) -> list[int]:
    """Waits for all; when one fails the others have LONELY_S left."""
    statuses, kill_at = {}, None
    while len(statuses) < len(ranks):
        for rank in [rank for rank in ranks if rank not in statuses]:
            pid, status = os.waitpid(rank, os.WNOHANG)
            if pid:
                statuses[rank] = os.waitstatus_to_exitcode(status)
            elif kill_at is not None and time.monotonic() > kill_at:
                os.kill(rank, signal.SIGKILL)
        if any(statuses.values()) and kill_at is None:
            kill_at = time.monotonic() + LONELY_S
        time.sleep(0.01)
    return [statuses[rank] for rank in ranks]


def _be_rank(rank: int, launch: Launch, port_of: int) -> None:
    """As torchrun's ranks, whose store is not rank 0's either."""
    port = os.read(port_of, 5).decode().strip()
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(launch.world_size),
        LOCAL_WORLD_SIZE=str(launch.world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=port,
        TORCHELASTIC_USE_AGENT_STORE="True",
    )
    sys.argv = [launch.target, *launch.arguments]
    if launch.target.endswith(".py"):
        sys.path.insert(0, os.path.dirname(launch.target))
        runpy.run_path(launch.target, run_name="__main__")
    else:
        importlib.import_module(launch.target).main()


def _leave_with(action) -> None:
    """Ends this process as python would after `action`, but for the interpreter's teardown: see zeromuon.ranks.leave."""
    status = 1
    try:
        action()
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    serve(sys.argv[1])
