"""Who is missing where ranks wait for each other in Python or in the host: a collective there waits in silence for as long as
the group's timeout.

Each rank notes in memory which call it is in. One that is in it for longer than a limit asks through the group's store,
and the others' threads answer with where they are. A step costs two notes; the store is looked at a few times in a limit.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
import sysconfig
import threading
import time
import weakref
from collections.abc import Callable, Iterator

from ..base.warn import warn

_LOOKS_PER_LIMIT = 4
_LOOKS_TO_ANSWER = 2
_LONGEST_PAUSE_S = 5.0
_END_S = 1.0  # for a thread that is in a call of the store
_numbers = itertools.count()  # of this process; equal on all ranks, which make the same ones in the same order


class RollCall:
    """Over the life of one engine. Made by all ranks of the group, in the same order.

    limit_s: of a call, before a rank asks for the others; 0: never, and no thread runs.
    close(): ends the thread, and with it its connection.
    Thread: inside() and close() from the thread that steps; one thread of its own.
    """

    def __init__(self, group, limit_s: float):
        import torch.distributed as dist

        self._rank, self._world_size = (dist.get_rank(group), dist.get_world_size(group)) if limit_s > 0 else (0, 1)
        self._limit_s, self._prefix = limit_s, f"zeromuon/roll_call/{next(_numbers)}"
        self._main = threading.get_ident()
        self._call, self._since, self._done = "", 0.0, 0
        self._ended = threading.Event()
        self._looked = threading.Event()  # set once in each call that takes longer than the limit, with what was found
        self._found = ""
        self.close: Callable = lambda: None
        store = None
        if limit_s > 0 and self._world_size > 1:
            store = _own_store()
        self._watched = store is not None
        if store is not None:
            thread = threading.Thread(target=_watch, args=(weakref.ref(self), store), daemon=True)
            thread.start()
            self.close = weakref.finalize(self, _end, self._ended, thread)  # at the latest when Python ends

    @contextlib.contextmanager
    def inside(self, call: str) -> Iterator[Callable[[], str]]:
        """While this rank is in `call`, which all ranks make the same number of times.

        What it gives says, within the call, who is missing: "" where the call has not taken longer than the limit, else after
        a few looks at most.
        """
        before = self._call
        self._looked.clear()
        self._since, self._call = time.monotonic(), call
        try:
            yield self._who_is_missing
        finally:
            self._call, self._since = before, time.monotonic()
            self._done += 1

    def _who_is_missing(self) -> str:
        if not self._watched or time.monotonic() - self._since <= self._limit_s:
            return ""
        if self._looked.wait((_LOOKS_TO_ANSWER + 2) * self.pause_s()):
            return self._found
        host = os.environ.get("MASTER_ADDR", "rank 0's host")
        return f"the store of the process group, at {host}, does not answer: the host, or the connection to it, is down"

    def found(self, question: str, who: str) -> None:
        """What the thread heard on `question`, unless this rank has gone on since."""
        if question == f"{self._done} {self._call}":
            self._found = who
            self._looked.set()

    def pause_s(self) -> float:
        return min(self._limit_s / _LOOKS_PER_LIMIT, _LONGEST_PAUSE_S)

    def _state(self) -> dict:
        return {"call": self._call, "done": self._done, "at": "" if self._call else _place(self._main)}


def _own_store():
    """A connection of our own to the group's store, so that no other call waits behind ours; None, with a warning, where that
    store has no second one."""
    import torch.distributed as dist

    try:
        return dist.distributed_c10d._get_default_store().clone()
    except (AttributeError, NotImplementedError, RuntimeError) as error:
        warn(f"ranks that are missing in a step will not be named: the process group's store cannot be asked ({error})")
        return None


def _end(ended: threading.Event, thread: threading.Thread) -> None:
    ended.set()
    if thread is not threading.current_thread():
        thread.join(_END_S)


def _watch(held: weakref.ref[RollCall], store) -> None:
    """The thread: answers, and asks when this rank waits too long. Ends with the store, and with what it watches."""
    answered = asked = None
    with contextlib.suppress(Exception):  # the store's host is gone: nobody is left to ask
        while (roll_call := held()) is not None:
            ended, pause_s, prefix = roll_call._ended, roll_call.pause_s(), roll_call._prefix
            state, since = roll_call._state(), roll_call._since
            waits = state["call"] and time.monotonic() - since > roll_call._limit_s
            rank, world_size, limit_s = roll_call._rank, roll_call._world_size, roll_call._limit_s
            del roll_call  # not held while it sleeps
            question = f"{state['done']} {state['call']}"
            if waits and asked != question:
                asked = question
                store.set(f"{prefix}/{question}/{rank}", json.dumps(state))
                asks = store.compare_set(f"{prefix}/{question}", "", str(rank)).decode() == str(rank)
                if asks:
                    store.set(f"{prefix}/asked", question)
                ended.wait(_LOOKS_TO_ANSWER * pause_s)
                who = _missing(_answers(store, f"{prefix}/{question}", world_size), state)
                if asks:
                    said = f"zeromuon: rank {rank} has waited for more than {limit_s:g} s in {state['call']}: {who}"
                    print(said, file=sys.stderr, flush=True)
                if (roll_call := held()) is not None:
                    roll_call.found(question, who)
                    del roll_call
            elif store.check([f"{prefix}/asked"]):
                question = store.get(f"{prefix}/asked").decode()
                if question != answered:
                    answered = question
                    store.set(f"{prefix}/{question}/{rank}", json.dumps(state))
            if ended.wait(pause_s):
                return


def _answers(store, key: str, world_size: int) -> list[dict | None]:
    keys = [f"{key}/{rank}" for rank in range(world_size)]
    return [json.loads(store.get(key)) if store.check([key]) else None for key in keys]


def _missing(answers: list[dict | None], mine: dict) -> str:
    """answers: of each rank, None where it gave none. mine: where the asking rank is."""
    missing = []
    for other, state in enumerate(answers):
        if state is None:
            missing.append(f"rank {other} does not answer: it ended, is stopped, or its host cannot be reached")
        elif (state["call"], state["done"]) != (mine["call"], mine["done"]):
            where = f"in {state['call']}" if state["call"] else f"at {state['at']}"
            behind = mine["done"] - state["done"]
            how_far = (
                f"{behind} calls behind" if behind > 0 else "after this call" if behind < 0 else "before this call"
            )
            missing.append(f"rank {other} is {where}, {how_far}")
    return "; ".join(missing) or "all ranks are in it: the connection between them, or the slowest of them, holds it up"


def _place(thread: int) -> str:
    """Where a thread is in the user's code, if it can be told: the innermost line outside of installed packages."""
    frame = sys._current_frames().get(thread)
    installed = tuple({sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    innermost = frame
    while frame is not None and frame.f_code.co_filename.startswith(installed):
        frame = frame.f_back
    found = frame or innermost
    return f"{found.f_code.co_filename}:{found.f_lineno}" if found is not None else "an unknown place"
