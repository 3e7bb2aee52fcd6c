"""What the ranks of `zeromuon bench step` told, as cases of the report; and which contenders share processes. No torch."""

from __future__ import annotations

from collections.abc import Iterator

from ..core.results import FAILED, OURS, PEER, Case, Row, rows_of
from ..core.timing import Contender, Samples
from .contenders import ALL, COUNTED, OURS_OFFLOADED, WIRE_BF16, Size, is_ours, needed_bytes
from .events import Heard
from .verdicts import BUFFERS, COUNTS, GROWTH, MEMORY, OF_PLAN, PEAK, SENT, SENT_MOST, STORAGE, TIME

_MIB = 2**20
_MEMORY_SHARE = 0.9  # of the free memory that engines may take together


def turns(names: tuple[str, ...], ranks: int, size: Size, free_bytes: float) -> list[tuple[str, ...]]:
    """Which contenders share processes: all where their engines fit the free memory, else the first with some of the others
    in turns. Two share them at least: a ratio is of pairs."""
    share = _MEMORY_SHARE * free_bytes
    fitting = max(n for n in range(2, len(names) + 1) if n == 2 or needed_bytes(n, ranks, size) <= share)
    others = names[1:]
    return [(names[0], *others[i : i + fitting - 1]) for i in range(0, len(others), fitting - 1)]


def memory_words(groups: list[tuple[str, ...]], ranks: int, size: Size, free_bytes: float) -> str:
    most = max(map(len, groups))
    needed = needed_bytes(most, ranks, size)
    in_turns = "" if len(groups) == 1 else f", in {len(groups)} launches, each with {OURS_OFFLOADED}"
    return (
        f"engines of {most} contenders in the same {ranks} processes{in_turns}: about {needed / 1e9:.1f} GB are needed,"
        f" {free_bytes / 1e9:.1f} GB were free"
    )


def _kind(name: str) -> str:
    return OURS if is_ours(name) else PEER


def _title(size: Size) -> str:
    return f"{size.key}, {size.numel / 1e6:.1f} M parameters"


def time_case(size: Size, heard: list[Heard], failed: dict[str, str], remarks: list[str]) -> Case:
    """A row per contender that was measured or failed; the first row is that of the first launch."""
    rows: dict[str, Row] = {}
    for launch in heard:
        rows = {row.name: row for row in _rows_of(launch, failed)} | rows
    rows = {name: Row(name, _kind(name), FAILED, why) for name, why in failed.items()} | rows
    phases = dict.fromkeys(line for launch in heard for line in _phase_lines(launch))
    ordered = [rows[name] for name in ALL if name in rows]
    return Case(TIME, size.key, f"engine.step(), {_title(size)}", "", ordered, [*remarks, *phases])


def _rows_of(launch: Heard, failed: dict[str, str]) -> list[Row]:
    """Ratios are to ZeroMuon with CPU offload; without it there are none."""
    names = [OURS_OFFLOADED, *(name for name in ALL if name in launch.seconds and name != OURS_OFFLOADED)]
    samples = Samples(seconds={OURS_OFFLOADED: [], **launch.seconds}, failed=failed)
    rows = rows_of([Contender(name, print, kind=_kind(name)) for name in names], samples)
    return [row for row in rows if row.name in launch.seconds]


def _phase_lines(launch: Heard) -> Iterator[str]:
    """Rank 0's mean per step of each phase of ours."""
    for name, found in launch.found.items():
        phases = ", ".join(f"{phase} {milliseconds:.1f}" for phase, milliseconds in found["phases"].items())
        yield f"{name}, ms of its phases on rank 0: {phases}"


def memory_case(size: Size, heard: dict[str, Heard], mode_words: dict[str, str]) -> Case:
    """heard: contender -> its launch."""
    rows = []
    for name, launch in heard.items():
        found = launch.found.get(name)
        if found:
            values = {PEAK: round(found["peak_bytes"] / _MIB, 1), GROWTH: round(found["growth_bytes"] / _MIB, 1)}
            note = "" if is_ours(name) else mode_words.get(name, "compiled, as it ships")
            rows.append(Row(name, _kind(name), note=note, values=values))
        elif launch.failed:
            rows.append(Row(name, _kind(name), FAILED, launch.failed[1]))
    remark = (
        "the most of a rank, of all ranks and measured steps; growth: above what was resident right before the step"
    )
    return Case(MEMORY, size.key, f"main memory of a rank, {_title(size)}", "", rows, [remark])


def counts_case(size: Size, heard: Heard, ranks: int) -> Case:
    rows = [_counts_row(name, heard.found[name], ranks) for name in COUNTED if name in heard.found]
    if heard.failed:
        rows += [Row(name, OURS, FAILED, heard.failed[1]) for name in COUNTED if name not in heard.found]
    remarks = [
        "sent: to other ranks, per Muon parameter and step, mean over ranks",
        "tensor storage, buffers: allocated in the optimizer's step() after the first, all ranks and steps",
    ]
    return Case(COUNTS, size.key, f"sent and allocated by one step, {_title(size)}", "", rows, remarks)


def _counts_row(name: str, found: dict, ranks: int) -> Row:
    values = {SENT: found["sent"], SENT_MOST: found["sent_most"]}
    planned = planned_bytes(ranks, bytes_each=2 if name == WIRE_BF16 else 4)
    if planned:
        values[OF_PLAN] = found["sent"] / planned
    if found["calls"]:
        values |= {STORAGE: found["tensor_storage"], BUFFERS: found["large_buffers"]}
    note = "" if found["calls"] else "allocations not counted: step() of the optimizer was not called"
    return Row(name, OURS, values={k: round(v, 4) for k, v in values.items()}, note=note)


def planned_bytes(ranks: int, bytes_each: int) -> float:
    """That a rank sends per parameter: its part of the matrices that others own, and the others' parts of its own."""
    return 2 * bytes_each * (ranks - 1) / ranks**2
