"""What the ranks of `zeromuon bench step` told, as cases of the report, and the figures to reach. No torch."""

from __future__ import annotations

from collections.abc import Iterator

from ..core.results import FAILED, NOT_RUN, OURS, PEER, Bench, Case, Figure, Results, Row, faster, of_rows, rows_of
from ..core.timing import Contender, Samples
from .contenders import ALL, COUNTED, OURS_HOME, OURS_OFFLOADED, PEER_HOME, PEER_OFFLOADED, WIRE_BF16
from .contenders import Size, is_ours, needed_bytes
from .events import Heard

TIME, MEMORY, COUNTS, BESIDE = "time", "memory", "counts", "beside"
STATED_KEY = "512x8"  # the model of 26 M parameters
GROWTH, PEAK = "growth in a step, MiB", "peak in a step, MiB"
SENT, SENT_MOST, OF_PLAN = "sent, bytes/parameter", "most of a rank", "of 4f/W (fp32: 8f/W)"
STORAGE, BUFFERS = "tensor storage", "buffers >= 4 KiB"
_AS_FAST = 0.97
_TIMES = ((3.5, PEER_OFFLOADED), (2.0, PEER_HOME))
_MEMORY = ((OURS_OFFLOADED, PEER_OFFLOADED), (OURS_HOME, PEER_HOME))
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
    rows = {name: Row(name, _kind(name), FAILED, why) for name, why in failed.items()}
    for launch in reversed(heard):
        rows |= {row.name: row for row in _rows_of(launch, failed)}
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
    words = "the most of a rank, of all ranks and measured steps; growth: above what was resident right before the step"
    return Case(MEMORY, size.key, f"main memory of a rank, {_title(size)}", "", rows, [words])


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


# ---- the figures to reach --------------------------------------------------------------------------------------


def figures(results: Results) -> list[Figure]:
    """One per figure to reach of the cases that were asked for."""
    found = []
    for case in results.of_part(TIME):
        found += [
            faster(case, f"{case.key}: {OURS_OFFLOADED}, times {peer}", least, peer, OURS_OFFLOADED)
            for least, peer in _TIMES
            if case.key == STATED_KEY
        ]
    for case in results.of_part(MEMORY):
        found += [_lower(case, value, *pair) for pair in _MEMORY for value in (PEAK, GROWTH)]
    for case in results.of_part(COUNTS):
        found += [_wire(case), *(_none_allocated(case, name) for name in COUNTED)]
    return found + [_no_slower(case) for case in results.of_part(BESIDE)]


def _no_slower(case: Case) -> Figure:
    """ours: the first row; the other tree's: the second."""
    ours, theirs = ([row.name for row in case.rows] * 2)[:2]
    return faster(case, f"{case.key}: the other tree's step, times this one's", _AS_FAST, theirs, ours)


def _lower(case: Case, value: str, ours: str, peer: str) -> Figure:
    """The bound is what the peer takes."""
    what = f"{case.key}: {value.split(',')[0]}, {ours.rpartition(', ')[2]}, MiB, below DeepSpeed's"
    row = case.measured(peer)
    bound = row.values[value] if row else None
    return of_rows(case, what, bound, (ours, peer), lambda our_row, _: (our_row.values[value], ""), "<")


def _wire(case: Case) -> Figure:
    def found(row: Row) -> tuple[float | None, str]:
        if OF_PLAN not in row.values:
            return None, "one rank sends nothing"
        most = row.values[SENT_MOST] / row.values[SENT] * row.values[OF_PLAN]
        return row.values[OF_PLAN], f"mean over ranks; of the rank that sends most {most:.2f}"

    return of_rows(case, f"{case.key}: sent per Muon parameter in bf16, of 4f/W", 1.01, (WIRE_BF16,), found)


def _none_allocated(case: Case, name: str) -> Figure:
    def found(row: Row) -> tuple[float | None, str]:
        if STORAGE not in row.values:
            return None, NOT_RUN
        return row.values[STORAGE] + row.values[BUFFERS], "tensor storage and buffers of 4 KiB or more"

    return of_rows(case, f"{case.key}: allocations after the first step, {name}", 0, (name,), found)


STEP = Bench(
    "step",
    legend=(
        "ms: median of the rounds, from the moment when the last rank begins engine.step() to the moment when the last has ended.",
        "ratio: the median over the rounds of a contender's time divided by that of the first line in the same round; above 1",
        "ours is faster. least..most: of those.",
    ),
    stated_for=f"2 ranks; the factors of time for the model {STATED_KEY}, 25.2 M parameters",
    figures=figures,
    titles={TIME: "engine.step()", BESIDE: "engine.step() beside another tree"},
)
