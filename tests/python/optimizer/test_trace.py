"""Trace files: what stands in them, and that a file is whole or not there."""

import json

import pytest

from zeromuon.optimizer import trace
from zeromuon.optimizer.trace import RankTrace


def event(lane, stage, begin, end, bucket=0, sub_group=0):
    return {"lane": lane, "stage": stage, "sub_group": sub_group, "bucket": bucket, "begin_ns": begin, "end_ns": end}


FIRST = RankTrace(
    0,
    "one",
    0,
    [
        event("cpu", "momentum", 5000, 6000),
        event("collective", "gather_to_owner", 6000, 9000),
        event("cpu", "adamw", 6000, 8000, bucket=-1, sub_group=1),
        event("compute", "newton_schulz", 9000, 10000),
    ],
)


def of_kind(content, phase):
    return [e for e in content["traceEvents"] if e["ph"] == phase]


def names(content, kind, rank):
    return [e["args"]["name"] for e in of_kind(content, "M") if e["name"] == kind and e["pid"] == rank]


def test_each_rank_is_a_process_and_each_lane_a_track_in_a_fixed_order():
    content = trace.chrome_trace([FIRST, RankTrace(1, "one", 0, [event("gpu 7", "apply", 7000, 8000)])])
    assert names(content, "process_name", 0) == ["rank 0 (one)"]
    assert names(content, "thread_name", 0) == ["step", "cpu", "compute", "collective"]
    assert names(content, "thread_name", 1) == ["step", "gpu 7"]


def test_bars_have_stage_bucket_and_microseconds_from_the_first_event():
    bars = of_kind(trace.chrome_trace([FIRST]), "X")
    assert [(b["name"], b["ts"], b["dur"]) for b in bars] == [
        ("step", 0, 5),
        ("momentum", 0, 1),
        ("gather_to_owner", 1, 3),
        ("adamw", 1, 2),
        ("newton_schulz", 4, 1),
    ]
    assert bars[3]["args"] == {"sub_group": 1, "bucket": -1}
    assert bars[1]["tid"] == bars[3]["tid"] != bars[2]["tid"]


def test_arrows_follow_a_bucket_through_the_lanes_and_leave_out_what_has_none():
    arrows = [e for e in trace.chrome_trace([FIRST])["traceEvents"] if e["ph"] in "stf"]
    assert [(a["ph"], a["ts"]) for a in arrows] == [("s", 0.5), ("t", 2.5), ("f", 4.5)]
    assert {a["id"] for a in arrows} == {"0.0.0"}


def test_hosts_with_other_clocks_are_set_by_a_common_moment():
    there = RankTrace(1, "two", 1_000_000, [event("cpu", "momentum", 1_005_000, 1_006_000)])
    here = RankTrace(1, "one", 1_000_000, [event("cpu", "momentum", 5000, 6000)])
    for other in (there, here):
        bars = [b for b in of_kind(trace.chrome_trace([FIRST, other]), "X") if b["pid"] == 1]
        assert [b["ts"] for b in bars] == [0, 0]


def test_a_step_without_events_is_an_empty_trace():
    content = trace.chrome_trace([RankTrace(0, "one", 0, [])])
    assert of_kind(content, "X") == []
    assert trace.busy_by_lane([]) == {"wall_seconds": 0.0, "busy_seconds": {}}


def test_busy_times_are_summed_by_lane_beside_the_wall_time():
    found = trace.busy_by_lane(FIRST.events)
    assert found["wall_seconds"] == pytest.approx(5e-6)
    assert found["busy_seconds"] == pytest.approx({"cpu": 3e-6, "compute": 1e-6, "collective": 3e-6})


def test_a_file_is_whole_or_the_old_one_stays(tmp_path, monkeypatch):
    path = tmp_path / "step.json"
    trace.write_trace(path, [FIRST])
    whole = path.read_text()
    assert json.loads(whole) == trace.chrome_trace([FIRST])
    monkeypatch.setattr(trace.json, "dumps", lambda *_: (_ for _ in ()).throw(OSError("no room")))
    with pytest.raises(OSError, match="no room"):
        trace.write_trace(path, [FIRST])
    assert path.read_text() == whole and list(tmp_path.iterdir()) == [path]
