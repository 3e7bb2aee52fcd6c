"""The figures that `zeromuon bench step` is to reach. No torch."""

from __future__ import annotations

from ..core.results import NOT_RUN, Bench, Case, Figure, Results, Row, faster, of_rows
from .contenders import COUNTED, OURS_HOME, OURS_OFFLOADED, PEER_HOME, PEER_OFFLOADED, WIRE_BF16

TIME, MEMORY, COUNTS, BESIDE = "time", "memory", "counts", "beside"
STATED_KEY = "512x8"  # the model of 26 M parameters
GROWTH, PEAK = "growth in a step, MiB", "peak in a step, MiB"
SENT, SENT_MOST, OF_PLAN = "sent, bytes/parameter", "most of a rank", "of 4f/W (fp32: 8f/W)"
STORAGE, BUFFERS = "tensor storage", "buffers >= 4 KiB"
_AS_FAST = 0.97
_TIMES = ((3.5, PEER_OFFLOADED), (2.0, PEER_HOME))
_MEMORY = ((OURS_OFFLOADED, PEER_OFFLOADED), (OURS_HOME, PEER_HOME))


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
    return of_rows(
        case, what, row and row.values[value], (ours, peer), lambda our_row, _: (our_row.values[value], ""), "<"
    )


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
