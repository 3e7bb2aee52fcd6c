"""Runs one command as a child, syncs what it wrote where it does not do so itself, and says what both took.

Started by path with -I -S, so that it is small: the kernel counts what a process had before exec in its child's peak.
usage: launch.py REPORT LOG FOLDER COMMAND... ; FOLDER: to sync, "" for none
"""

import json
import os
import sys
import time

STARTED = "ZEROMUON_BENCH_STARTED"  # time.monotonic() of the start, for the child


def sync(folder: str) -> None:
    """Every file and folder below is on disk afterwards."""
    for path, _, names in os.walk(folder):
        for name in (*names, "."):
            descriptor = os.open(os.path.join(path, name), os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)


def main(report: str, log: str, folder: str, *command: str) -> None:
    start = time.monotonic()
    actions = [(os.POSIX_SPAWN_OPEN, 1, log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), (os.POSIX_SPAWN_DUP2, 1, 2)]
    child = os.posix_spawn(command[0], command, {**os.environ, STARTED: repr(start)}, file_actions=actions)
    _, status, usage = os.wait4(child, 0)
    ended = time.monotonic()
    if folder:
        sync(folder)
    synced = time.monotonic() if folder else ended
    took = {
        "seconds": synced - start,
        "sync_seconds": synced - ended,
        "peak_bytes": usage.ru_maxrss * 1024,
        "status": os.waitstatus_to_exitcode(status),
    }
    with open(report, "w") as out:
        json.dump(took, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
