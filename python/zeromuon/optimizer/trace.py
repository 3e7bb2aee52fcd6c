"""A step as a picture: what each lane of each rank did and when, in the format that ui.perfetto.dev and chrome://tracing
open.

One process per rank, one track per lane, a bar per task named after its stage; arrows join the tasks of one bucket.
"""

from __future__ import annotations

import json
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from ..base.durable import whole_file
from ..ranks import machine

_STEP_TRACK = 0
_NS_PER_US = 1000


@dataclass(frozen=True)
class RankTrace:
    """What one rank recorded. events: dicts of lane, stage, sub_group, bucket, begin_ns, end_ns, of the clock of its host.
    now_ns: that clock at a moment that is the same on all ranks. kernel: whose clock that is, where names of hosts may be equal
    or one host has several."""

    rank: int
    host: str
    now_ns: int
    events: list[dict]
    kernel: str = ""


def gather(events: list[dict], group=None) -> list[RankTrace] | None:
    """The events of all ranks of the group on its first rank, None on the others. All ranks must call it."""
    import torch.distributed as dist

    rank = dist.get_rank(group)
    dist.barrier(group)
    mine = RankTrace(rank, socket.gethostname(), time.monotonic_ns(), events, machine.host_id())
    traces = [None] * dist.get_world_size(group) if rank == 0 else None
    # Global rank of the first: gather_object counts in those.
    dist.gather_object(mine, traces, dst=0 if group is None else dist.get_global_rank(group, 0), group=group)
    return traces


def chrome_trace(traces: list[RankTrace]) -> dict:
    """The content of a trace file. Times are in us since the first event.

    Ranks on one host share a clock; other hosts are set by `now_ns`, to within the time of a barrier.
    """
    shifts = [_shift_ns(traces[0], trace) for trace in traces]
    starts = [e["begin_ns"] + shift for trace, shift in zip(traces, shifts) for e in trace.events]
    origin = min(starts, default=0)
    events = []
    for trace, shift in zip(traces, shifts):
        events += _of_rank(trace, shift - origin)
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def write_trace(path, traces: list[RankTrace]) -> None:
    """Writes a trace file; it is there whole or not at all. Raises OSError when it cannot be written."""
    with whole_file(Path(path)) as part:
        part.write_text(json.dumps(chrome_trace(traces)) + "\n")


def busy_by_lane(events: list[dict]) -> dict:
    """{"wall_seconds": from the first task to the last, "busy_seconds": {lane: sum of its tasks}} of one rank."""
    if not events:
        return {"wall_seconds": 0.0, "busy_seconds": {}}
    wall = max(e["end_ns"] for e in events) - min(e["begin_ns"] for e in events)
    busy: dict[str, float] = {lane: 0.0 for lane in _lanes_of(events)}
    for event in events:
        busy[event["lane"]] += 1e-9 * (event["end_ns"] - event["begin_ns"])
    return {"wall_seconds": 1e-9 * wall, "busy_seconds": busy}


def _shift_ns(first: RankTrace, other: RankTrace) -> int:
    same = (other.kernel or other.host) == (first.kernel or first.host)
    return 0 if same else first.now_ns - other.now_ns


def lanes() -> tuple[str, ...]:
    """All that a step may have, from top to bottom."""
    from .. import _core  # torch must be there first

    return _core.LANES


def _lanes_of(events: list[dict]) -> list[str]:
    found = {e["lane"] for e in events}
    return [lane for lane in lanes() if lane in found] + sorted(found.difference(lanes()))


def _of_rank(trace: RankTrace, shift_ns: int) -> list[dict]:
    tracks = {lane: track for track, lane in enumerate(_lanes_of(trace.events), _STEP_TRACK + 1)}
    out = [_named("process_name", trace.rank, _STEP_TRACK, name=f"rank {trace.rank} ({trace.host})")]
    for lane, track in {"step": _STEP_TRACK, **tracks}.items():
        out.append(_named("thread_name", trace.rank, track, name=lane))
        out.append(_named("thread_sort_index", trace.rank, track, sort_index=track))
    if trace.events:
        begin, end = min(e["begin_ns"] for e in trace.events), max(e["end_ns"] for e in trace.events)
        out.append(_bar("step", trace.rank, _STEP_TRACK, (begin + shift_ns, end + shift_ns)))
    for event in trace.events:
        times = (event["begin_ns"] + shift_ns, event["end_ns"] + shift_ns)
        arguments = {"sub_group": event["sub_group"], "bucket": event["bucket"]}
        out.append(_bar(event["stage"], trace.rank, tracks[event["lane"]], times, **arguments))
    return out + _arrows(trace, tracks, shift_ns)


def _named(kind: str, rank: int, track: int, **arguments) -> dict:
    return {"ph": "M", "name": kind, "pid": rank, "tid": track, "args": arguments}


def _bar(name: str, rank: int, track: int, times_ns: tuple[int, int], **arguments) -> dict:
    begin, end = times_ns
    times = {"ts": begin / _NS_PER_US, "dur": (end - begin) / _NS_PER_US}
    return {"ph": "X", "name": name, "cat": "step", "pid": rank, "tid": track, **times, "args": arguments}


def _arrows(trace: RankTrace, tracks: dict[str, int], shift_ns: int) -> list[dict]:
    """From each task of a bucket to the next: a flow that starts, passes through, and ends."""
    buckets: dict[tuple, list[dict]] = {}
    for event in sorted(trace.events, key=lambda e: e["begin_ns"]):
        if event["bucket"] >= 0:
            buckets.setdefault((event["sub_group"], event["bucket"]), []).append(event)
    out = []
    for (sub_group, bucket), tasks in buckets.items():
        for position, event in enumerate(tasks if len(tasks) > 1 else []):
            phase = {0: "s", len(tasks) - 1: "f"}.get(position, "t")
            middle = (event["begin_ns"] + event["end_ns"]) // 2 + shift_ns
            name, flow = f"sub-group {sub_group} bucket {bucket}", f"{trace.rank}.{sub_group}.{bucket}"
            place = {"pid": trace.rank, "tid": tracks[event["lane"]], "ts": middle / _NS_PER_US}
            out.append({"ph": phase, "bp": "e", "name": name, "cat": "bucket", "id": flow, **place})
    return out
