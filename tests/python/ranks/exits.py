"""Ranks that train one step as a user's script does and end in Python's own way, in each order in turn.

`exits.py LAUNCHES`: each launch is two processes that are forked here, where torch and DeepSpeed are imported already, and
that return from this module: the interpreter is torn down. `exits.py LAUNCHES whole`: two interpreters of their own, as a
launcher starts them; before gloo was given time, 2 of 40 such exits failed, and none of 140 forked ones. Prints a line for
every exit that was none.
"""

from __future__ import annotations

import gc
import itertools
import os
import socket
import sys

from small_engine import small_engine, step


def trained(steps: int = 1):
    """An engine after some steps."""
    import zeromuon

    engine = small_engine(layers=4)
    zeromuon.attach(engine)
    for _ in range(steps):
        step(engine)
    return engine


def destroyed_while_the_engine_lives():
    import torch.distributed as dist

    engine = trained()
    dist.destroy_process_group()
    return engine


def not_destroyed():
    return trained()


def engine_first():
    import torch.distributed as dist

    trained().destroy()
    gc.collect()
    dist.destroy_process_group()


def bound_and_never_stepped():
    import torch.distributed as dist

    engine = trained(steps=0)
    dist.destroy_process_group()
    return engine


ORDERS = {
    f.__name__: f for f in (destroyed_while_the_engine_lives, not_destroyed, engine_first, bound_and_never_stepped)
}


def be_rank(rank: int, port: int, order: str) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    import deepspeed

    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    deepspeed.init_distributed("gloo")
    global kept
    kept = ORDERS[order]()


def import_what_ranks_share() -> None:
    import deepspeed.ops  # noqa: F401
    import torch._dynamo  # noqa: F401  (torch would import it in each rank)
    import torch.distributed  # noqa: F401
    import zeromuon.optimizer.optimizer  # noqa: F401

    threads = len(os.listdir("/proc/self/task"))
    assert threads == 1, f"{threads} threads: forking is not safe"


def main(launches: int, whole: bool) -> None:
    if not whole:
        import_what_ranks_share()
    for order in itertools.islice(itertools.cycle(ORDERS), launches):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        ranks = []
        for rank in range(2):
            pid = os.fork()
            if pid == 0 and whole:
                os.execv(sys.executable, [sys.executable, __file__, str(rank), str(port), order])
            if pid == 0:
                return be_rank(rank, port, order)
            ranks.append(pid)
        for rank, pid in enumerate(ranks):
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            if status:
                print(f"rank {rank} of {order} ended with {status}", flush=True)
    print(f"{2 * launches} exits", flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 3:
        be_rank(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
    else:
        main(int(sys.argv[1]), whole="whole" in sys.argv)
